"""Files as the published code writes them: what they mean, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptrix_transformer2 import Decomposition, decomposed, decomposed_base, read_published, save
from torch import Tensor, nn
from torch.func import functional_call

import adaptrix
from adaptrix.cli import run
from adaptrix.extend import Pipeline
from tests.helpers.families import tiny_model
from tests.helpers.json_documents import document


class Policy(nn.Module):
    """The published class, as far as it is saved: p of every weight of an MLP, in the order of the state dict."""

    def __init__(self, model: Any, init: float = 0.1) -> None:
        super().__init__()
        own = {k: v for k, v in model.state_dict().items() if "mlp" in k}
        torch.manual_seed(3)
        self.learnable_params = {
            k: nn.Parameter(torch.randn(min(v.shape), dtype=torch.bfloat16) * 0.4 + init) for k, v in own.items()
        }
        self.learnable_params_module_list = nn.ParameterList(self.learnable_params.values())


def published_weights(model: Any, policy: Policy, max_mult: float = 1.0) -> dict[str, Tensor]:
    """The weights that the published code makes: U·diag(s⊙m)·Vᵀ·Σs/Σ(s⊙m), here in fp64 but for m."""
    weights = {}
    for key, p in policy.learnable_params.items():
        U, S, V = torch.svd(model.state_dict()[key].double())
        m = (torch.sigmoid(p.detach()).to(torch.bfloat16) * max_mult).double()
        weights[key] = (U @ torch.diag_embed(S * m) @ V.T) * (S.sum() / (S * m).sum())
    return weights


def decomposed_params(model: Any) -> dict[str, Tensor]:
    """What the published code saves of a base: of norms nothing, of everything else U, S and V."""
    parts = {}
    for key, weight in model.state_dict().items():
        if "norm" not in key:
            parts |= dict(zip([f"{key}.{side}" for side in "USV"], torch.svd(weight.float()), strict=True))
    return parts


def agree(adapter: adaptrix.Adapter, model: Any, weights: dict[str, Tensor]) -> None:
    assert {str(target) for target in adapter.deltas} == {key.removesuffix(".weight") for key in weights}
    for target, delta in adapter.deltas.items():
        wanted = weights[f"{target}.weight"] - model.state_dict()[f"{target}.weight"].double()
        assert delta.dense() == pytest.approx(wanted.numpy(), abs=1e-6), target
        S, z = delta.S.float64(), delta.z.float64()
        assert (S * z).sum() == pytest.approx(S.sum(), rel=1e-6)


def test_both_files_mean_the_published_weights(llama: Any, parts: Decomposition, tmp_path: Path) -> None:
    policy = Policy(llama)
    torch.save(policy.state_dict(), tmp_path / "policy_params.pt")
    torch.save(policy.learnable_params, tmp_path / "learnable_params.pt")
    for file in ("policy_params.pt", "learnable_params.pt"):
        found = read_published(tmp_path / file, parts)
        agree(found, llama, published_weights(llama, policy))
        assert list(found.provenance.files) == [file]


def test_attached_it_is_the_published_model(llama: Any, parts: Decomposition, tmp_path: Path) -> None:
    policy = Policy(llama)
    torch.save(policy.state_dict(), tmp_path / "policy_params.pt")
    file = save(read_published(tmp_path / "policy_params.pt", parts), parts, tmp_path / "p.adaptrix.safetensors")
    weights = {key: weight.float() for key, weight in published_weights(llama, policy).items()}
    ids = torch.randint(3, 67, (2, 9), generator=torch.Generator().manual_seed(0))
    wanted = functional_call(llama, weights, (ids,)).logits
    with adaptrix.attach(llama, {"published": file}) as session, session.use("published"), torch.no_grad():
        assert torch.allclose(llama(ids).logits, wanted, atol=1e-5)
    assert not torch.allclose(llama(ids).logits, wanted, atol=1e-3)


def test_the_factor_of_m_means_nothing(llama: Any, parts: Decomposition, tmp_path: Path) -> None:
    policy = Policy(llama)
    torch.save(policy.state_dict(), tmp_path / "policy_params.pt")
    agree(read_published(tmp_path / "policy_params.pt", parts), llama, published_weights(llama, policy, max_mult=2.0))


def test_the_published_decomposition_is_held_to_the_base(llama: Any, parts: Decomposition, tmp_path: Path) -> None:
    policy = Policy(llama)
    torch.save(policy.state_dict(), tmp_path / "p.pt")
    torch.save(decomposed_params(llama), tmp_path / "d.pt")
    found = read_published(tmp_path / "p.pt", parts, tmp_path / "d.pt")
    wanted = published_weights(llama, policy)
    for target, delta in found.deltas.items():
        gap = wanted[f"{target}.weight"] - llama.state_dict()[f"{target}.weight"].double()
        assert abs(delta.dense() - gap.numpy()).max() < 0.02 * abs(gap.numpy()).max()
    assert not found.problems
    torch.save(decomposed_params(tiny_model("llama", seed=5)), tmp_path / "other.pt")
    with pytest.raises(adaptrix.RefusedError) as error:
        read_published(tmp_path / "p.pt", parts, tmp_path / "other.pt")
    assert [problem.code for problem in error.value.problems] == ["base-mismatch"] * 9


def _changed(state: dict[str, Any], change: str) -> dict[str, Any]:
    first, second, *_ = state
    if change == "lacks two":
        del state[first], state[second]
    elif change == "strange":
        state["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(24)
    elif change == "sizes":
        state[first], state[second] = torch.zeros(7), torch.zeros(24, 1)
    elif change == "nan":
        state[first] = torch.full((24,), torch.nan)
    elif change == "integers":
        state[first] = torch.zeros(24, dtype=torch.int64)
    elif change == "decomposition":
        state = {f"{first}.U": torch.zeros(2, 2)}
    elif change == "empty":
        state = {}
    return state


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ("lacks two", ["tensor-missing"] * 2),
        ("strange", ["tensor-unexpected"]),
        ("sizes", ["shape", "shape"]),
        ("nan", ["nonfinite"]),
        ("integers", ["dtype"]),
        ("decomposition", ["kind-unsupported"]),
        ("empty", ["tensor-missing"] * 9),
    ],
)
def test_every_problem_of_a_file_is_told(
    change: str, codes: list[str], llama: Any, parts: Decomposition, tmp_path: Path
) -> None:
    torch.save(_changed(dict(Policy(llama).learnable_params), change), tmp_path / "learnable_params.pt")
    with pytest.raises(adaptrix.RefusedError) as error:
        read_published(tmp_path / "learnable_params.pt", parts)
    assert [problem.code for problem in error.value.problems] == codes


def test_a_list_of_another_length_is_refused(llama: Any, tmp_path: Path) -> None:
    torch.save(Policy(llama).state_dict(), tmp_path / "policy_params.pt")
    with pytest.raises(adaptrix.RefusedError, match="a list of 9 without names; expected 6, one for each"):
        read_published(tmp_path / "policy_params.pt", decomposed(llama, layers=[0, 1]))


def test_every_problem_of_a_decomposition_is_told(llama: Any, parts: Decomposition, tmp_path: Path) -> None:
    torch.save(Policy(llama).state_dict(), tmp_path / "p.pt")
    state = decomposed_params(llama)
    gate = "model.layers.1.mlp.gate_proj.weight"
    state |= {f"{gate}.S": torch.full((24,), torch.inf), f"{gate}.U": torch.zeros(3, 3)}
    del state["model.layers.0.mlp.up_proj.weight.V"]
    torch.save(state, tmp_path / "d.pt")
    with pytest.raises(adaptrix.RefusedError) as error:
        read_published(tmp_path / "p.pt", parts, tmp_path / "d.pt")
    assert sorted(problem.code for problem in error.value.problems) == ["nonfinite", "shape", "tensor-missing"]


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_pickle_is_not_run(parts: Decomposition, tmp_path: Path) -> None:
    torch.save({"model.layers.0.mlp.gate_proj.weight": _Evil(tmp_path / "ran")}, tmp_path / "p.pt")
    with pytest.raises(adaptrix.RefusedError):
        read_published(tmp_path / "p.pt", parts)
    assert not (tmp_path / "ran").exists()


def test_a_bf16_base_is_bound_as_it_is_stored(llama: Any, tmp_path: Path) -> None:
    llama.bfloat16().save_pretrained(tmp_path / "base")
    policy = Policy(llama)
    torch.save(policy.state_dict(), tmp_path / "policy_params.pt")
    parts = decomposed_base(str(tmp_path / "base"), Pipeline())
    found = read_published(tmp_path / "policy_params.pt", parts)
    agree(found, llama, published_weights(llama, policy))
    assert {delta.basis.dtype for delta in found.deltas.values()} == {"BF16"}


def test_from_the_command_line_to_an_injection_file(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llama.save_pretrained(tmp_path / "base")
    torch.save(Policy(llama).state_dict(), tmp_path / "policy_params.pt")
    monkeypatch.chdir(tmp_path)
    line = ["transformer2", "import", "policy_params.pt", "--base", "base", "--name", "maths"]
    assert run(line) == 0, capsys.readouterr()
    assert "216 numbers for 9 matrices" in capsys.readouterr().out
    assert run([*line, "--force", "--json"]) == 0
    told = document(capsys.readouterr().out, 0)
    assert (told["numbers"], told["adapter"]["deltas"], told["adapter"]["dims"]) == (216, 9, "stated")
    loaded = adaptrix.load("maths.adaptrix.safetensors")
    made = read_published("policy_params.pt", decomposed(llama))
    for target, delta in made.deltas.items():
        assert loaded.deltas[target].z.tobytes() == delta.z.tobytes()
        assert loaded.deltas[target].basis == delta.basis
    assert run(line) == 2, "the output is there already"
    assert run([*line[:2], "nothing.pt", *line[3:], "--force"]) == 2
    (tmp_path / "text.pt").write_text("no pickle")
    shutil.rmtree(tmp_path / "cache")
    assert run([*line[:2], "text.pt", *line[3:], "--force"]) == 1
    assert not (tmp_path / "cache").exists(), "nothing is decomposed for a file that cannot be read"


def test_two_tensors_for_one_matrix_are_refused(llama: Any, parts: Decomposition, tmp_path: Path) -> None:
    params = Policy(llama).learnable_params
    first = next(iter(params))
    torch.save({**params, first.removeprefix("model."): params[first] * 2}, tmp_path / "p.pt")
    with pytest.raises(adaptrix.RefusedError, match="2 tensors are for it"):
        read_published(tmp_path / "p.pt", parts)
    torch.save(params, tmp_path / "learnable_params.pt")
    given = decomposed_params(llama)
    torch.save({**given, f"{first.removeprefix('model.')}.S": given[f"{first}.S"]}, tmp_path / "d.pt")
    with pytest.raises(adaptrix.RefusedError, match="2 tensors are for it"):
        read_published(tmp_path / "learnable_params.pt", parts, tmp_path / "d.pt")


def test_an_expert_takes_no_place_of_what_it_is_read_from(
    llama: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama.save_pretrained(tmp_path / "base")
    file = tmp_path / "learnable_params.pt"
    torch.save(Policy(llama).learnable_params, file)
    before = file.read_bytes()
    assert run(["transformer2", "import", str(file), "--base", str(tmp_path / "base"), "-o", str(file), "--force"]) == 2
    assert "this is the source itself" in capsys.readouterr().err
    assert file.read_bytes() == before
