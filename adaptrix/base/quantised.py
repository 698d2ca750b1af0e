"""Quantised bases, recognised by their config and by what their files hold: ΔW cannot be added to codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from adaptrix.base.checkpoint import BaseCheckpoint
from adaptrix.errors import Problem
from adaptrix.tensor import Tensor
from adaptrix.wording import some

_REMEDY = "Merge into the base before it was quantised."
#: the last part of a name that a quantiser writes instead of a weight, or beside it -> what writes it
_LEAVES = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors",
    "weight_scale": "FP8 or compressed-tensors",
    "weight_scale_inv": "FP8",
    "weight_scale_2": "NVFP4",
    "weight.absmax": "bitsandbytes",
    "weight.quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "W_q": "HQQ",
    "gate_up_proj_blocks": "MXFP4",
    "gate_up_proj_scales": "MXFP4",
    "gate_up_proj_scale_inv": "FP8",
    "down_proj_blocks": "MXFP4",
    "down_proj_scales": "MXFP4",
    "down_proj_scale_inv": "FP8",
}


def quantised(base: BaseCheckpoint) -> Iterator[Problem]:
    """One problem for a base whose weights are codes: with what its config says of it, or else what its files show."""
    stated = base.config.get("quantization_config")
    if stated:
        kind = stated.get("quant_method") if isinstance(stated, dict) else None
        found = f"the base is quantised ({str(kind)[:40]})" if kind else "the base is quantised"
        yield Problem("quantised", base.name, found, "weights in floats", _REMEDY)
        return
    names, kinds = _codes(base.tensors())
    if names:
        found = f"its files hold codes of {' and '.join(kinds)} ({some(names, 2)}), though its config does not say so"
        yield Problem("quantised", base.name, found, "weights in floats", _REMEDY)


def _codes(tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """The tensors that are codes or belong to codes, and the kinds of quantisation that write such."""
    found = {name: kind for name, tensor in tensors.items() if (kind := _kind(name, tensor)) is not None}
    return sorted(found), sorted(set(found.values()))


def _kind(name: str, tensor: Tensor) -> str | None:
    if tensor.dtype.startswith("F8"):
        return "FP8"
    path, _, leaf = name.rpartition(".")
    return _LEAVES.get(leaf) or _LEAVES.get(f"{path.rpartition('.')[2]}.{leaf}")
