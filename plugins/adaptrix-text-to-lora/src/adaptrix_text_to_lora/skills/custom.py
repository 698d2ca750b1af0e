"""Skills that users add: what they may say of one, and what is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adaptrix import Problem, RefusedError
from adaptrix_text_to_lora.encoders import Encoder
from adaptrix_text_to_lora.skills.classifier import Scaling, regression
from adaptrix_text_to_lora.skills.features import counted, embedded
from adaptrix_text_to_lora.skills.keywords import KEYWORDS
from adaptrix_text_to_lora.skills.labelled import of_split

_SAID = ("keywords", "examples", "description")
_EXPECTED = "a list of keywords, or a mapping with keywords, examples (lists of texts) or a description (a text)"


@dataclass(frozen=True)
class CustomSkill:
    """A skill by its keywords, and by texts that ask for it: examples, of which a description is one."""

    name: str
    keywords: tuple[str, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True)
class CustomScorer:
    """Scores texts for a custom skill: by the keywords or by likeness to the examples, whichever says more.

    Keywords are scaled as the ten skills' were, taken together. Examples are held against the labelled prompts, of
    which none has the skill; that score has no split to be calibrated on.
    """

    skill: CustomSkill
    keyword: Scaling
    weight: torch.Tensor | None
    bias: torch.Tensor | None

    def __call__(self, text: str, encoder: Encoder) -> float:
        """The probability."""
        scores = []
        if self.skill.keywords:
            scores.append(float(self.keyword(counted([text], [self.skill.keywords]))))
        if self.weight is not None and self.bias is not None:
            scores.append(float(torch.sigmoid(embedded([text], encoder) @ self.weight.T + self.bias)))
        return max(scores)


def scorer(skill: CustomSkill, keyword: Scaling, encoder: Encoder) -> CustomScorer:
    """The scorer of a skill; a row of weights is trained where it has examples, which takes a second."""
    if not skill.examples:
        return CustomScorer(skill, keyword, None, None)
    others = [prompt.text for prompt in of_split("train")]
    features = embedded([*skill.examples, *others], encoder)
    wanted = torch.zeros(len(features), 1, dtype=torch.float64)
    wanted[: len(skill.examples)] = 1
    return CustomScorer(skill, keyword, *regression(features, wanted, len(others) / len(skill.examples)))


def custom_skills(given: Mapping[str, Any]) -> list[CustomSkill]:
    """The skills of a mapping from names to what is said of each. Raises :class:`RefusedError` with all problems."""
    problems = [problem for name, said in given.items() for problem in _problems(name, said)]
    if problems:
        raise RefusedError(problems)
    return [_skill(name, said) for name, said in given.items()]


def _skill(name: str, said: Any) -> CustomSkill:
    parts = said if isinstance(said, Mapping) else {"keywords": said}
    described = [parts["description"]] if parts.get("description") else []
    return CustomSkill(name, tuple(parts.get("keywords") or ()), (*(parts.get("examples") or ()), *described))


def _problems(name: object, said: Any) -> Iterator[Problem]:
    where = f"skill {name!a:.60}"
    if not isinstance(name, str) or not name.strip():
        yield Problem("skill", where, "a name that is no text", "a name")
    elif name in KEYWORDS:
        yield Problem("skill", where, "this is one of the ten that are trained", "a name of its own")
    parts = said if isinstance(said, Mapping) else {"keywords": said}
    if strange := [key for key in parts if key not in _SAID]:
        yield Problem("skill", where, f"it has {strange!a:.80}", _EXPECTED)
    for key in ("keywords", "examples"):
        if not _texts(parts.get(key) or ()):
            yield Problem("skill", f"{where} {key}", f"{parts[key]!a:.80}", "a list of texts, none of them empty")
    described = parts.get("description")
    if described is not None and not (isinstance(described, str) and described.strip()):
        yield Problem("skill", f"{where} description", f"{described!a:.80}", "a text")
    if not any(parts.get(key) for key in _SAID):
        yield Problem("skill", where, "nothing is said of it", _EXPECTED)


def _texts(value: Any) -> bool:
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return listed and all(isinstance(text, str) and text.strip() for text in value)
