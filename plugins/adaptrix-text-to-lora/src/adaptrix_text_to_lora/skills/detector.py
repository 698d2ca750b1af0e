"""``SkillDetector``: which skills a prompt asks for, and how surely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptrix_text_to_lora.encoders import Encoder, HashedNgrams
from adaptrix_text_to_lora.prompts import require_prompts
from adaptrix_text_to_lora.skills.custom import CustomScorer, custom_skills, scorer
from adaptrix_text_to_lora.skills.features import looking
from adaptrix_text_to_lora.skills.keywords import KEYWORDS
from adaptrix_text_to_lora.skills.model import WIDTH, read, train


class SkillDetector:
    """Scores a prompt for ten skills and those that were added; it may have none or several.

    ``encoder``: by default hashed n-grams with the weights that ship; for any other the classifier is trained here,
    on the same labelled prompts, in as long as they take to embed.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        self._encoder = encoder or HashedNgrams(WIDTH)
        self._model = train(encoder) if encoder else read()
        self._look = looking("both", self._encoder)
        self._custom: dict[str, CustomScorer] = {}

    @property
    def skills(self) -> tuple[str, ...]:
        """The names of the skills that it knows."""
        return (*KEYWORDS, *self._custom)

    def add_custom_skills(self, skills: Mapping[str, Any]) -> None:
        """Adds skills, each a list of keywords or a mapping with ``keywords``, ``examples`` or a ``description``.

        One of the same name is replaced. Raises :class:`RefusedError` with every problem, and then adds none.
        """
        made = [scorer(skill, self._model.keyword, self._encoder) for skill in custom_skills(skills)]
        self._custom |= {each.skill.name: each for each in made}

    def scores(self, prompt: str) -> dict[str, float]:
        """The probability of every skill. Raises :class:`RefusedError` for what is no prompt."""
        (text,) = require_prompts([prompt])
        known = self._model.classifier(self._look([text]))[0].tolist()
        added = {name: score(text, self._encoder) for name, score in self._custom.items()}
        return dict(zip(KEYWORDS, known, strict=True)) | added

    def detect(self, prompt: str) -> dict[str, float]:
        """The skills that the prompt asks for and their probabilities, the surest first; empty where there is none."""
        limits = dict.fromkeys(KEYWORDS, self._model.classifier.threshold)
        found = {
            name: score
            for name, score in self.scores(prompt).items()
            if score >= limits.get(name, self._model.keyword_threshold)
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))
