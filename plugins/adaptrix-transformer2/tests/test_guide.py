"""The guide's calls, with trained experts and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptrix_transformer2 import (
    Decomposition,
    Transformer2Config,
    create_transformer2_model,
    decomposed,
    expert,
    save,
    z_of_expert,
)
from adaptrix_transformer2.dispatch import OTHER

import adaptrix
from tests.helpers.families import tiny_model

TOKENS = torch.tensor([[5, 9, 2, 11, 7], [3, 4, 8, 1, 6], [2, 2, 9, 13, 4]])
OPTIONS: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}


def some(parts: Decomposition, name: str, seed: int, **config: Any) -> Any:
    rng = np.random.default_rng(seed)
    return expert(parts, name, {path: rng.normal(1, 1, one.rank) for path, one in parts.spectra.items()}, config)


@pytest.fixture
def files(llama: Any, tmp_path: Path) -> dict[str, Path]:
    """Two experts and a classifier in files, of layers 1 and 2."""
    parts = decomposed(llama, layers=[1, 2])
    names = {"maths": [5], "code": [6], OTHER: [7]}
    made = [some(parts, "maths", 1), some(parts, "code", 2)]
    made.append(some(parts, "sorter", 3, question={"ask": [9], "names": names}))
    return {one.name: save(one, parts, tmp_path / f"{one.name}.adaptrix.safetensors") for one in made}


def created(llama: Any, files: dict[str, Path], config: Transformer2Config | None = None) -> Any:
    experts = {name: files[name] for name in ("maths", "code")}
    return create_transformer2_model(llama, config, experts=experts, classifier=files["sorter"])


def test_without_experts_there_are_eight_that_change_nothing_and_say_so(llama: Any) -> None:
    wanted = llama(TOKENS).logits
    with pytest.warns(adaptrix.AdaptrixWarning, match="8 experts of z = 1 change nothing"):
        model = create_transformer2_model(llama)
    told = model(TOKENS)
    assert told.detected_skill == (OTHER,) * 3
    assert len(told.adaptations) == 8
    assert not any(one.any() for one in told.adaptations.values())
    assert torch.equal(told.logits, wanted)
    model.close()
    assert not any(module._forward_hooks for module in llama.modules())


def test_every_row_is_read_under_its_expert(llama: Any, files: dict[str, Path]) -> None:
    with created(llama, files) as model:
        told, rows = model(TOKENS), [model(row) for row in TOKENS]
        assert len(set(told.detected_skills)) > 1
        for at, row in enumerate(rows):
            assert row.detected_skill == told.detected_skills[at]
            acting = {name for name, one in told.adaptations.items() if one[at] == 1}
            assert acting == {row.detected_skill} - {OTHER}
        again = model.generate(TOKENS, **OPTIONS)
        names = [None if name == OTHER else name for name in told.detected_skills]
        with model.session.route(names):
            assert torch.allclose(told.logits, llama(TOKENS).logits)
            assert torch.equal(again, llama.generate(TOKENS, **OPTIONS))


class Heard:
    """A streamer that takes down what it hears."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)


def test_answers_are_streamed(llama: Any, files: dict[str, Path]) -> None:
    heard = Heard()
    with created(llama, files) as model:
        told = model.generate(TOKENS[:1], streamer=heard, **OPTIONS)
    assert heard.tokens == [*told[0].tolist(), -1]


def test_no_strength_is_the_base_bit_for_bit(llama: Any, files: dict[str, Path]) -> None:
    wanted, answer = llama(TOKENS).logits, llama.generate(TOKENS, **OPTIONS)
    with created(llama, files, Transformer2Config(adaptation_strength=0.0)) as model:
        told = model(TOKENS)
        assert torch.equal(told.logits, wanted)
        assert torch.equal(model.generate(TOKENS, **OPTIONS), answer)
        assert set(told.detected_skills) - {OTHER}
        assert not any(one.any() for one in told.adaptations.values())


def test_strength_layers_and_numbers_shape_an_expert(llama: Any, files: dict[str, Path]) -> None:
    config = Transformer2Config(expert_vector_dim=3, adaptation_strength=0.5, adaptation_layers=[2])
    whole, parts = z_of_expert(adaptrix.load(files["maths"])), decomposed(llama)
    with created(llama, files, config) as model:
        z = z_of_expert(model.session.adapter("maths"))
    assert {path.split(".")[2] for path in z} == {"2"}
    for path, one in z.items():
        size = np.abs((whole[path] - 1) * parts.spectra[path].S.float64())
        acting = np.argsort(-size)[:3]
        assert sorted(np.flatnonzero(one != 1)) == sorted(acting)
        assert one[acting] == pytest.approx(1 + 0.5 * (whole[path][acting] - 1), abs=1e-6)


def test_layers_that_the_base_has_not_are_refused(llama: Any, files: dict[str, Path]) -> None:
    with pytest.raises(adaptrix.UsageError, match=r"no MLP of the base is in \[99\]"):
        created(llama, files, Transformer2Config(adaptation_layers=[0, 99]))
    assert not any(module._forward_hooks for module in llama.modules())


def test_the_base_is_asked_where_there_is_no_classifier(llama: Any, files: dict[str, Path]) -> None:
    def tokenizer(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 20 for letter in text]}

    with create_transformer2_model(llama, experts={"maths": files["maths"]}, tokenizer=tokenizer) as model:
        assert set(model(TOKENS).detected_skills) <= {"maths", OTHER}


def test_what_makes_no_sense_is_refused_and_the_base_left_alone(llama: Any, files: dict[str, Path]) -> None:
    with pytest.raises(adaptrix.UsageError) as error:
        created(llama, files, Transformer2Config(0, 0, float("nan"), []))
    assert len(error.value.problems) == 4
    with pytest.raises(adaptrix.UsageError, match="nothing decides which"):
        create_transformer2_model(llama, experts={"maths": files["maths"]})
    with pytest.raises(adaptrix.RefusedError, match="'code'"):
        create_transformer2_model(llama, experts={"maths": files["maths"]}, classifier=files["sorter"])
    with pytest.raises(adaptrix.RefusedError, match="no question"):
        create_transformer2_model(llama, experts={"maths": files["maths"]}, classifier=files["code"])
    with pytest.raises(adaptrix.UsageError, match="no tokens"), created(llama, files) as model:
        model("a text")
    with pytest.raises(adaptrix.AdaptrixError, match="the model knows"), created(llama, files) as model:
        model(TOKENS + 10_000)
    with pytest.raises(adaptrix.RefusedError, match="base"):
        created(tiny_model("llama", seed=1), files)
    assert not any(module._forward_hooks for module in llama.modules())
