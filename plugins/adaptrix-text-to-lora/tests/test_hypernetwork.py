"""The hypernetwork against the published formulas, sizes and start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from adaptrix_text_to_lora import Hypernetwork, Shape
from adaptrix_text_to_lora.shape import Module, Variant
from torch.nn import functional

# no two sizes alike: A wider than B, B wider than A
MODULES = (Module("v_proj", 12, 7), Module("q_proj", 12, 18), Module("o_proj", 18, 12))
MISTRAL = (Module("q_proj", 4096, 4096), Module("v_proj", 4096, 1024))
Trained = Callable[..., Hypernetwork]


def _shape(variant: Variant, **more: object) -> Shape:
    return Shape(variant, MODULES, layers=3, rank=5, embedding=9, latent=16, head_in=11, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("variant", "millions"), [("L", 55), ("M", 34), ("S", 5)])
def test_the_published_sizes_on_mistral(variant: Variant, millions: int) -> None:
    with torch.device("meta"):
        network = Hypernetwork(Shape(variant, MISTRAL, layers=32, rank=8, embedding=1024))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6) == millions, count


def _norm(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _linear(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _two(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.silu(_linear(state, f"{name}.4", functional.silu(_linear(state, f"{name}.1", x))))


def _reference(network: Hypernetwork, e: torch.Tensor, m: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A ``[r, in]``, B ``[out, r]`` of one text, module and layer, from the state dict and the formulas alone."""
    state, shape = dict(network.state_dict()), network.shape
    module, r = shape.modules[m], shape.rank
    task = _norm(state, "task_encoder.mlp.1", _linear(state, "task_encoder.mlp.0", e))
    depth = _norm(state, "layer_depth_encoder.1", state["layer_depth_encoder.0.weight"][layer])
    kind = _norm(state, "layer_type_encoder.1", state["layer_type_encoder.0.weight"][m])
    x = _two(state, "mixer", torch.cat([task, depth, kind]))

    def residual(name: str, x: torch.Tensor) -> torch.Tensor:
        return x + _two(state, f"{name}.mlp", _norm(state, f"{name}.mlp.0", x))

    def head(x: torch.Tensor) -> torch.Tensor:
        return _linear(state, f"heads.{module.name}", _two(state, "mlp3", _norm(state, "mlp3.0", x)))

    def side(name: str) -> torch.Tensor:
        h = residual("mlp2", x + _norm(state, "out_emb_norm", state[f"out_emb.{module.name}.{name}"]))
        if shape.variant == "M":
            return head(h).view(r, -1)
        ranks = [_norm(state, "pos_emb.1", state["pos_emb.0.weight"][i]) for i in range(r)]
        return torch.stack([head(h + residual("mlp2", p)) for p in ranks])

    x = residual("mlp1", x)
    if shape.variant == "L":
        flat = head(residual("mlp2", x))
        A, B = flat[: r * module.inp].view(r, -1), flat[r * module.inp :].view(r, -1)
    else:
        A, B = side("A")[:, : module.inp], side("B")[:, : module.out]
    offset = [state[f"AB_offset.{side}.{module.name}"][layer] for side in "AB"]
    return A + offset[0], B.T + offset[1]


@pytest.mark.parametrize("variant", ["L", "M", "S"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_published_formulas(variant: Variant, bias: bool, trained: Trained) -> None:
    network, texts = trained(_shape(variant, bias=bias)), torch.randn(4, 9)
    with torch.no_grad():
        found = network(texts)
        for row, m, layer in ((0, 0, 0), (3, 1, 2), (2, 2, 1)):
            A, B = (factor[row, layer] for factor in found[MODULES[m].name])
            expected = _reference(network, texts[row], m, layer)
            torch.testing.assert_close((A, B), expected, rtol=1e-4, atol=1e-5)
            assert A.shape == (5, MODULES[m].inp)
            assert B.shape == (MODULES[m].out, 5)


@pytest.mark.parametrize("variant", ["L", "M", "S"])
def test_a_text_gets_what_it_gets_alone(variant: Variant, trained: Trained) -> None:
    network, texts = trained(_shape(variant)), torch.randn(6, 9)
    with torch.no_grad():
        together, alone = network(texts), network(texts[4:5])
    for name, (A, B) in together.items():
        torch.testing.assert_close((A[4:5], B[4:5]), alone[name])
        assert not torch.allclose(A[3], A[4]), "texts differ"


@pytest.mark.parametrize("variant", ["L", "M", "S"])
def test_how_it_starts(variant: Variant) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        found = Hypernetwork(_shape(variant)).eval()(torch.randn(2, 9))
    for module in MODULES:
        A, B = found[module.name]
        assert torch.equal(A[0], A[1]), "heads of zero weight know no text"
        bound = module.inp**-0.5 / {"L": 1, "M": 2**0.5, "S": 10**0.5}[variant]
        assert 0.8 * bound < float(A.abs().max()) <= bound
        assert (not (B @ A).any()) == (variant == "L")


def test_reconstruction_undoes_z_scores(trained: Trained) -> None:
    added, plain, scored = (trained(_shape("M", output=output)) for output in ("added", "plain", "z-score"))
    text = torch.randn(1, 9)
    with torch.no_grad():
        for name, (A, B) in plain(text).items():
            mean, std, offset = scored.mean_recon_target, scored.std_recon_target, added.AB_offset
            torch.testing.assert_close(scored(text)[name][0], A * getattr(std.A, name) + getattr(mean.A, name))
            torch.testing.assert_close(scored(text)[name][1], B * getattr(std.B, name) + getattr(mean.B, name))
            torch.testing.assert_close(added(text)[name], (A + getattr(offset.A, name), B + getattr(offset.B, name)))
