"""Experts: which matrices they change, how they are saved, and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptrix_transformer2 import Decomposition, decomposed, expert, save, untrained, z_of_expert
from adaptrix_transformer2.parametrisation import start, z_of
from hypothesis import given
from hypothesis import strategies as st

import adaptrix
from adaptrix import Site
from tests.helpers.families import FAMILIES, tiny_model


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"mixtral"}))
def test_every_familys_mlps_are_found_by_role(family: str) -> None:
    model = tiny_model(family)
    parts = decomposed(model)
    roles = {parts.identity.architecture.locate(path).role.rpartition("_")[2] for path in parts.spectra}  # type: ignore[union-attr]  # located when it was found
    assert roles in ({"gate", "up", "down"}, {"up", "down"})
    for path, delta in parts.spectra.items():
        module = model.get_submodule(path)
        out, inp = module.weight.shape[::-1] if type(module).__name__ == "Conv1D" else module.weight.shape
        assert delta.shape == (out, inp)
        assert "attn" not in path
        assert "attention" not in path


def test_a_family_without_mlps_is_refused() -> None:
    with pytest.raises(adaptrix.RefusedError, match="only stacked experts"):
        decomposed(tiny_model("mixtral"))


def test_layers_are_those_asked_for(llama: Any) -> None:
    assert {path.split(".")[2] for path in decomposed(llama, layers=[1, 2]).spectra} == {"1", "2"}
    with pytest.raises(adaptrix.UsageError, match="no MLP in layers 7"):
        decomposed(llama, layers=[1, 7])


def test_weights_that_cannot_be_taken_apart_are_all_named(llama: Any) -> None:
    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight[2, 3] = torch.nan
        llama.model.layers[2].mlp.down_proj.weight.zero_()
    with pytest.raises(adaptrix.RefusedError) as error:
        decomposed(llama)
    assert sorted(problem.code for problem in error.value.problems) == ["nonfinite", "svd-failed"]


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=20), st.integers(0, 99))
def test_the_reference_keeps_the_nuclear_norm(numbers: list[float], seed: int) -> None:
    p = torch.tensor(numbers, dtype=torch.float64)
    S = torch.rand(len(p), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort(descending=True)[0]
    z = z_of("reference", p, S)
    assert float((S * z).sum()) == pytest.approx(float(S.sum()), rel=1e-9)
    assert torch.allclose(z / z[0], torch.sigmoid(p) / torch.sigmoid(p[0]))
    assert torch.equal(z_of("paper", p, S), p)


def test_where_training_starts() -> None:
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(start("paper", 5, generator), torch.ones(5))
    drawn = start("reference", 4000, generator)
    assert float(drawn.mean()) == pytest.approx(0.1, abs=1e-3)
    assert float(drawn.std()) == pytest.approx(0.01, rel=0.1)


def test_an_expert_comes_back_from_its_file(parts: Decomposition, tmp_path: Path) -> None:
    z = {path: np.linspace(0.5, 1.5, one.rank) for path, one in parts.spectra.items()}
    made = expert(parts, "maths", z, {"method": "by hand"})
    found = adaptrix.load(save(made, parts, tmp_path / "maths.adaptrix.safetensors"))
    assert found.name == "maths"
    assert found.provenance.config == {"method": "by hand"}
    assert {path: one.tolist() for path, one in z_of_expert(found).items()} == {
        path: one.astype(np.float32).tolist() for path, one in z.items()
    }
    assert found.recorded is not None
    assert found.recorded.family == "llama"
    assert found.recorded.policy == "all"
    assert not any(delta.resolved for delta in found.deltas.values())
    assert (tmp_path / "maths.adaptrix.safetensors").stat().st_size < 20_000


def test_an_untrained_expert_changes_nothing(parts: Decomposition) -> None:
    assert all(delta.energy() == 0 for delta in untrained(parts, "idle").deltas.values())


def test_every_problem_of_z_is_told(parts: Decomposition) -> None:
    z = {path: np.ones(one.rank) for path, one in parts.spectra.items()}
    first, second, third, *_ = z
    del z[first]
    z |= {second: np.ones(3), third: np.full(24, np.inf), "model.layers.9.mlp.gate_proj": np.ones(24)}
    with pytest.raises(adaptrix.RefusedError) as error:
        expert(parts, "odd", z)
    assert sorted(problem.code for problem in error.value.problems) == [
        "nonfinite",
        "shape",
        "tensor-missing",
        "tensor-unexpected",
    ]


def test_an_expert_of_another_base_is_refused(parts: Decomposition) -> None:
    with pytest.raises(adaptrix.RefusedError) as error:
        adaptrix.attach(tiny_model("llama", seed=1), {"idle": untrained(parts, "idle")})
    assert [problem.code for problem in error.value.problems] == ["base-mismatch"] * 9


def test_conv1d_is_taken_apart_as_out_by_in() -> None:
    model = tiny_model("gpt2")
    parts = decomposed(model)
    site = Site(1, "up")
    path = parts.identity.architecture.path(site)
    U, Vt = parts.spectra[path].vectors()
    again = (U * parts.spectra[path].S.float32()) @ Vt
    assert again == pytest.approx(model.transformer.h[1].mlp.c_fc.weight.detach().numpy().T, abs=1e-6)
