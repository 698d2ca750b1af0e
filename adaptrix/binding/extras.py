"""Checks on tensors that are no deltas: trained heads, biases, resized embeddings, trained tokens."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

from adaptrix.adapter import Adapter, Extra
from adaptrix.architecture import Architecture, Role
from adaptrix.architecture.dims import Dims
from adaptrix.errors import Problem

_TOKENS = ".token_adapter.trainable_tokens_delta"


def resized_vocabulary(adapter: Adapter, architecture: Architecture, dims: Dims) -> tuple[Dims, tuple[Problem, ...]]:
    """The dims with the adapter's number of tokens, where it saved a resized embedding, and a note."""
    stated = dims.values.get("vocab")
    for key, extra in adapter.extras.items():
        role = _role(key, architecture) if extra.kind in ("module", "base_weight") else None
        axis = None if role is None or len(extra.tensor.shape) != 2 else _vocab_axis(role)
        if stated is None or axis is None or extra.tensor.shape[axis] == stated:
            continue
        size = extra.tensor.shape[axis]
        note = Problem("vocabulary", key, f"the vocabulary was resized from {stated} to {size}", severity="note",
                       remedy="Resize the base's embeddings to match before this adapter is attached.")  # fmt: skip
        values = MappingProxyType({**dims.values, "vocab": size})
        return Dims(values, MappingProxyType({**dims.origins, "vocab": "tensors"})), (note,)
    return dims, ()


def extra_problems(adapter: Adapter, architecture: Architecture, dims: Dims) -> Iterator[Problem]:
    """A problem for every extra whose shape is not that of the tensor it replaces."""
    for key, extra in adapter.extras.items():
        role = _role(key, architecture)
        expected = None if role is None else _expected(key, extra, role, dims)
        if expected is not None and extra.tensor.shape != expected:
            yield Problem("shape", key, f"shape {list(extra.tensor.shape)}", f"{list(expected)}",
                          "The adapter belongs to a model of another size.")  # fmt: skip


def _role(key: str, architecture: Architecture) -> Role | None:
    """The role of the module that an extra belongs to."""
    path = key.removesuffix(_TOKENS) if key.endswith(_TOKENS) else key.rpartition(".")[0].removesuffix(".base_layer")
    site = architecture.locate(path)
    return None if site is None else architecture.roles[site.role]


def _vocab_axis(role: Role) -> int | None:
    """The axis of the stored weight that counts tokens."""
    if role.orientation == "embedding":
        return 0 if role.inp == "vocab" else None
    return 0 if role.out == "vocab" else None


def _expected(key: str, extra: Extra, role: Role, dims: Dims) -> tuple[int, ...] | None:
    out, inp = (dims.get(expression) if expression else None for expression in (role.out, role.inp))
    if out is None or role.orientation.startswith("experts"):
        return None
    if extra.kind == "token_delta":  # rows of the stored weight: a head's are as long as its input
        row = inp if role.orientation == "linear" else out
        return None if row is None else (*extra.tensor.shape[:1], row)
    if key.endswith(".bias"):
        return (out,)
    if not key.endswith(".weight") or inp is None:
        return None
    return (out, inp) if role.orientation == "linear" else (inp, out)
