"""Mixtures of experts and their search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptrix_transformer2 import Decomposition, decomposed, expert, save, untrained, z_of_expert
from adaptrix_transformer2.dispatch import Score, Search, adapt, mixture, score_on, search
from adaptrix_transformer2.dispatch.searching import normalised
from adaptrix_transformer2.train import Example

import adaptrix
from tests.helpers.families import tiny_model

IDS = torch.tensor([[5, 9, 2, 11, 7], [3, 4, 8, 1, 6]])


def some(parts: Decomposition, name: str, seed: int) -> Any:
    """An expert with z drawn around 1."""
    rng = np.random.default_rng(seed)
    return expert(parts, name, {path: rng.normal(1, 0.5, one.rank) for path, one in parts.spectra.items()})


@pytest.fixture
def experts(parts: Decomposition) -> dict[str, Any]:
    return {name: some(parts, name, at) for at, name in enumerate(("one", "two", "three"))}


def test_a_mixture_is_the_weighted_mean_of_z(llama: Any, parts: Decomposition, experts: dict[str, Any]) -> None:
    mixed = mixture(parts, experts, np.array([[0.2], [0.0], [0.6]]))
    z, one, three = (z_of_expert(it) for it in (mixed, experts["one"], experts["three"]))
    for path in parts.spectra:
        assert z[path] == pytest.approx(0.25 * one[path] + 0.75 * three[path], abs=1e-6)
    with adaptrix.attach(llama, {"mixed": mixed, **experts}) as session:
        with session.use("mixed"):
            whole = llama(IDS).logits
        with session.use({"one": 0.25, "three": 0.75}):
            assert torch.allclose(whole, llama(IDS).logits, atol=1e-4)


def test_every_matrix_may_have_weights_of_its_own(parts: Decomposition, experts: dict[str, Any]) -> None:
    weights = np.zeros((3, len(parts.spectra)))
    weights[np.arange(len(parts.spectra)) % 3, np.arange(len(parts.spectra))] = 0.5
    z, own = z_of_expert(mixture(parts, experts, weights)), [z_of_expert(it) for it in experts.values()]
    for at, path in enumerate(parts.spectra):
        assert z[path] == pytest.approx(own[at % 3][path])


def test_weights_that_are_all_zero_count_alike() -> None:
    assert normalised(np.array([[0.0, 0.2], [0.0, 0.6]])) == pytest.approx(np.array([[0.5, 0.25], [0.5, 0.75]]))


@pytest.mark.parametrize("bad", [np.ones((2, 1)), np.ones((3, 4)), -np.ones((3, 1)), np.full((3, 1), np.nan)])
def test_weights_that_do_not_fit_are_refused(parts: Decomposition, experts: dict[str, Any], bad: Any) -> None:
    with pytest.raises(adaptrix.UsageError, match=r"weights|negative"):
        mixture(parts, experts, bad)


def test_experts_of_another_base_are_refused(parts: Decomposition) -> None:
    other = untrained(decomposed(tiny_model("llama", seed=1)), "other")
    with pytest.raises(adaptrix.RefusedError) as error:
        mixture(parts, {"other": other}, np.ones((1, 1)))
    assert {problem.code for problem in error.value.problems} == {"base-mismatch"}
    assert len(error.value.problems) == len(parts.spectra)


def test_a_base_may_be_read_in_another_dtype_than_its_experts_were_made_in(llama: Any) -> None:
    made = untrained(decomposed(llama.bfloat16()), "made")
    parts = decomposed(llama.float())
    assert {one.basis.dtype for one in parts.spectra.values()} == {"F32"}
    assert mixture(parts, {"made": made}, np.ones((1, 1))).deltas.keys() == made.deltas.keys()
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3, 5] += 0.01
    with pytest.raises(adaptrix.RefusedError) as error:
        mixture(decomposed(llama), {"made": made}, np.ones((1, 1)))
    assert [problem.where for problem in error.value.problems] == ["made model.layers.1.mlp.up_proj"]


def aim(weights: Any) -> Score:
    """Near to 0.9 and 0.1, in steps; how near tells those of a step apart."""
    far = float(np.abs(weights[:, 0] - np.array([0.9, 0.1, 0.1])).max())
    return Score(-round(far, 1), -far)


def test_the_search_keeps_the_incumbent_and_counts() -> None:
    judged = []

    def objective(weights: Any) -> Score:
        judged.append(weights)
        return aim(weights)

    found = search(objective, 3, options=Search(generations=6))
    assert found.evaluations == len(judged) == 1 + 6 * 31
    assert all(((one >= 0) & (one <= 1)).all() and one.shape == (3, 1) for one in judged)
    assert judged[0].tolist() == [[1 / 3]] * 3
    assert found.score == max(map(aim, judged)) == aim(found.weights)
    assert list(found.history) == sorted(found.history)
    assert any((one == 0).any() for one in judged)  # the clamp was at work


@pytest.mark.parametrize("method", ["cem", "random"])
def test_the_best_of_any_generation_is_found(method: Any) -> None:
    judged = []

    def objective(weights: Any) -> Score:
        judged.append(Score(0.0, float(np.sin(1e4 * weights.sum()))))  # as good as noise
        return judged[-1]

    found = search(objective, 3, options=Search(method, population=4, elites=2, generations=9))
    assert found.score == max(judged) == Score(0.0, float(np.sin(1e4 * found.weights.sum())))


def test_cross_entropy_beats_chance_at_equal_evaluations() -> None:
    scores = {
        method: [search(aim, 3, options=Search(method, generations=6, seed=seed)).score.likelihood for seed in range(9)]
        for method in ("cem", "random")
    }
    assert np.mean(scores["cem"]) > np.mean(scores["random"]) + 0.02


def test_ties_are_told_apart_by_likelihood() -> None:
    found = search(lambda weights: Score(1.0, float(weights[0, 0])), 2, options=Search(generations=3))
    assert found.weights[0, 0] > 0.9


def test_settings_that_make_no_sense_are_all_told() -> None:
    with pytest.raises(adaptrix.UsageError) as error:
        search(aim, 3, options=Search("guess", population=1, generations=0))  # type: ignore[arg-type]
    assert [problem.where for problem in error.value.problems] == ["method", "population", "generations"]


def test_adapting_finds_the_expert_that_fits(
    llama: Any, parts: Decomposition, experts: dict[str, Any], tmp_path: Path
) -> None:
    before = {name: one.clone() for name, one in llama.state_dict().items()}
    with adaptrix.attach(llama, experts) as session, session.use("two"):
        told = llama.generate(IDS, max_new_tokens=4, do_sample=False, eos_token_id=None)
    shots = [Example(tuple(row[:5]), tuple(row[5:])) for row in told.tolist()]
    found = adapt(llama, parts, experts, shots, options=Search(generations=3), ends=())
    assert found.score.right == 1.0
    assert found.weights[1, 0] > found.weights[[0, 2], 0].max()
    path = save(mixture(parts, experts, found.weights, "mixed"), parts, tmp_path / "mixed.adaptrix.safetensors")
    with adaptrix.attach(llama, {"mixed": path}) as session, session.use("mixed"):
        assert score_on(llama, shots, ()) == pytest.approx(found.score, rel=1e-3)
    assert all(torch.equal(one, before[name]) for name, one in llama.state_dict().items())
    assert not any(module._forward_hooks for module in llama.modules())
