"""Two passes: the class of a prompt, and the expert for it, without reading the prompt twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from adaptrix_transformer2 import Decomposition, decomposed, expert, save, untrained
from adaptrix_transformer2.dispatch import OTHER, Question, TwoPasses, question_of, train_classifier
from adaptrix_transformer2.train import TrainingSettings

import adaptrix
from tests.helpers.families import tiny_model

from .world import END, base

ASKED = Question((9,), {"one": (5,), "two": (6, 7), OTHER: (6, 8)})
LEFT = {
    "input_ids": torch.tensor([[0, 0, 5, 9, 2], [3, 4, 8, 1, 6], [0, 7, 7, 3, 2], [9, 1, 4, 4, 8]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [0, 1, 1, 1, 1], [1] * 5]),
}
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


def some(parts: Decomposition, name: str, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return expert(parts, name, {path: rng.normal(1, 1, one.rank) for path, one in parts.spectra.items()})


@pytest.fixture(params=["llama", "gpt2", "gpt_neox"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


@pytest.fixture
def session(model: Any) -> Iterator[Any]:
    upper = decomposed(model, layers=[1, 2])
    experts = {name: some(upper, name, at) for at, name in enumerate(("one", "two", "sorter"))}
    with adaptrix.attach(model, experts) as session:
        yield session


def plain(model: Any, session: Any, classifier: str | None) -> torch.Tensor:
    """log p of the classes, every row read whole and alone."""
    found = []
    for row, mask in zip(LEFT["input_ids"], LEFT["attention_mask"], strict=True):
        prompt, each = row[mask == 1].tolist(), []
        for name in ASKED.names.values():
            with session.use(classifier):
                log_p = model(torch.tensor([[*prompt, *ASKED.ask, *name]])).logits[0].log_softmax(-1)
            at = len(prompt) + len(ASKED.ask) - 1
            each.append(sum(float(log_p[at + place, token]) for place, token in enumerate(name)))
        found.append(each)
    return torch.tensor(found)


@pytest.mark.parametrize("classifier", [None, "sorter"])
def test_rows_go_to_the_likeliest_class_and_are_answered_by_its_expert(
    model: Any, session: Any, classifier: str | None
) -> None:
    if classifier is None:
        session.unload("sorter")
    passes = TwoPasses(model, session, ASKED, classifier)
    with torch.no_grad():
        wanted = plain(model, session, classifier)
    told, chosen = passes.generate(LEFT, **OPTIONS)
    assert torch.allclose(chosen.probabilities, wanted.softmax(1), atol=1e-5)
    names = [[*ASKED.names][at] for at in wanted.argmax(1)]
    assert list(chosen.names) == [None if name == OTHER else name for name in names]
    with session.route(chosen.names):
        assert torch.equal(told, model.generate(**LEFT, **OPTIONS))


def test_what_lies_under_the_experts_is_read_once(session: Any, model: Any) -> None:
    chosen = TwoPasses(model, session, ASKED, "sorter").choose(LEFT)
    shared = type(model).__name__ != "GPTNeoXForCausalLM"
    assert (chosen.kept, chosen.recomputed) == ((1, 2) if shared else (0, 3))


def test_a_prompt_of_one_token_is_answered(session: Any, model: Any) -> None:
    passes, ids = TwoPasses(model, session, ASKED, "sorter"), torch.tensor([[5], [6]])
    told, chosen = passes.generate({"input_ids": ids}, **OPTIONS)
    assert chosen.cache is None
    with session.route(chosen.names):
        assert torch.equal(told, model.generate(ids, **OPTIONS))


def test_padding_after_a_text_is_refused(session: Any, model: Any) -> None:
    with pytest.raises(adaptrix.UsageError, match="padding"):
        TwoPasses(model, session, ASKED).choose({**LEFT, "attention_mask": LEFT["attention_mask"].flip(1)})


def test_a_question_about_unknown_experts_is_refused(session: Any, model: Any) -> None:
    odd = Question((9,), {"one": (5,), "three": (6,), "four": (7,), OTHER: (8,)})
    with pytest.raises(adaptrix.RefusedError) as error:
        TwoPasses(model, session, odd, "sorter")
    assert [problem.code for problem in error.value.problems] == ["adapter-unknown"] * 2
    assert "'three'" in str(error.value)
    with pytest.raises(adaptrix.UsageError, match="no such adapter"):
        TwoPasses(model, session, ASKED, "nobody")


def test_a_question_in_tokens_of_another_model_is_refused(session: Any, model: Any) -> None:
    odd = Question((9, -1), {"one": (5,), "two": (10**9,), OTHER: (8,)})
    with pytest.raises(adaptrix.RefusedError) as error:
        TwoPasses(model, session, odd, "sorter")
    assert [problem.code for problem in error.value.problems] == ["vocabulary"] * 2


@pytest.mark.parametrize("names", [{}, {"one": ()}, {"one": (5,), "two": (5,)}, {"one": (5,), "two": (5, 6)}])
def test_classes_that_cannot_be_told_apart_are_refused(names: dict[str, Any]) -> None:
    with pytest.raises(adaptrix.UsageError):
        Question((9,), names)


def test_a_classifier_learns_what_prompts_are_about(tmp_path: Path) -> None:
    model, rng = base(), Random(3)
    prompts: dict[str, list[tuple[int, ...]]] = {"low": [], "high": []}
    for _ in range(120):
        digits = tuple(rng.randrange(2, 10) for _ in range(3))
        prompts["low" if digits[-1] < 6 else "high"].append(digits)
    asked = Question((1,), {"low": (2,), "high": (3,)})
    parts = decomposed(model)
    with adaptrix.attach(model, {"low": untrained(parts, "low"), "high": untrained(parts, "high")}) as session:
        before = _right(TwoPasses(model, session, asked), prompts)
    settings = TrainingSettings(steps=120, batch=32, kind="paper")
    made = train_classifier(model, prompts, asked, settings, decomposition=parts).adapter
    made = adaptrix.load(save(made, parts, tmp_path / "sorter.adaptrix.safetensors"))
    assert question_of(made) == asked
    experts = {"low": untrained(parts, "low"), "high": untrained(parts, "high"), "sorter": made}
    with adaptrix.attach(model, experts) as session:
        after = _right(TwoPasses(model, session, question_of(made), "sorter"), prompts)
    assert after > 0.9 > before
    assert END not in asked.ask


def _right(passes: TwoPasses, prompts: dict[str, list[tuple[int, ...]]]) -> float:
    found = [
        one == name
        for name, several in prompts.items()
        for one in passes.choose({"input_ids": torch.tensor(several)}).names
    ]
    return sum(found) / len(found)


def test_an_expert_that_is_no_classifier_is_refused(llama: Any, parts: Decomposition) -> None:
    with pytest.raises(adaptrix.RefusedError, match="no question"):
        question_of(untrained(parts, "idle"))
    with pytest.raises(adaptrix.UsageError, match="no such answer"):
        train_classifier(llama, {"five": [(3, 4)]}, ASKED, decomposition=parts)
