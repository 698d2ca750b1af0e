"""VB-LoRA (arXiv 2405.15179): factors put together of pieces, each a mean of a few vectors of a bank that all share.

``logits_A`` ``[r, in / v, n]`` and ``logits_B`` ``[out / v, r, n]`` choose for each piece among the n vectors
``[n, v]``: the ``topk`` largest, weighted by their softmax. A checkpoint may hold these weights but the last, and
their vectors, in place of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptrix.delta.parametrisation import Arrays, Parametrisation, Settings, Shapes, missing
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_SIDES = ("vblora_logits_A", "vblora_logits_B")
_ENDS = ("_topk_indices", "_topk_weights")
_NAMES = (*_SIDES, *(f"{side}{end}" for side in _SIDES for end in _ENDS))
_INDICES = tuple(f"{side}_topk_indices" for side in _SIDES)
_BANK = "vblora_vector_bank"
_MOST = 1 << 16


def _forms(shapes: Shapes) -> tuple[str, str]:
    """The names of the tensors that stand for each side: logits, or weights."""
    A, B = (side if side in shapes else f"{side}_topk_weights" for side in _SIDES)
    return A, B


def _faults(shapes: Shapes, settings: Settings, where: str) -> Iterator[Problem]:
    chosen = [f"{side}{end}" for side in _SIDES for end in _ENDS]
    wanted = chosen if any(name in shapes for name in chosen) else list(_SIDES)
    problems = list(missing(shapes, wanted, where))
    held = [name for name in _NAMES if name in shapes]
    problems += [
        Problem("shape", f"{where} {name}", f"shape {list(shapes[name])}", "three dimensions, none of them 0")
        for name in held
        if len(shapes[name]) != 3 or 0 in shapes[name][:2]
    ]
    if not problems and len(held) != len(wanted):
        problems.append(Problem("tensor-unexpected", where, "logits beside the weights made of them", "one of the two"))
    yield from problems
    if not problems:
        yield from _misfits(shapes, settings, where, topk=wanted == chosen)


def _misfits(shapes: Shapes, settings: Settings, where: str, *, topk: bool) -> Iterator[Problem]:
    """The problems of tensors that are all there and do not go together."""
    A, B = (shapes[name] for name in _forms(shapes))
    count = settings.get("topk", 1)
    if A[0] != B[1]:
        found = f"the tensors of A are {list(A)}, those of B {list(B)}"
        yield Problem("rank", where, found, "[r, in / v, …] and [out / v, r, …]")
    wanted = {f"{side}{end}": count - (end == _ENDS[1]) for side in _SIDES for end in _ENDS} if topk else {}
    for name, size in wanted.items():
        if shapes[name][2] != size or shapes[name][:2] != (A if "_A_" in name else B)[:2]:
            found = f"shape {list(shapes[name])}, with topk {count}"
            yield Problem("shape", f"{where} {name}", found, f"{size} numbers for each piece")
    bank = shapes.get(_BANK)
    fits = bank is None or (len(bank) == 2 and 0 not in bank and bank[0] >= count)
    if not fits or (bank is not None and not topk and not A[2] == B[2] == bank[0]):
        found = f"{_BANK} is {list(bank or ())}"
        yield Problem("shape", where, found, "[n, v], a vector for every number of the logits, and at least topk")


def _shape(shapes: Shapes, _settings: Settings) -> tuple[int, int]:
    A, B = (shapes[name] for name in _forms(shapes))
    length = shapes.get(_BANK, (0, 0))[1]
    return B[0] * length, A[1] * length


def _rank(shapes: Shapes, _settings: Settings) -> int:
    return shapes[_forms(shapes)[0]][0]


def _factors(arrays: Arrays, settings: Settings) -> tuple[Matrix, Matrix]:
    A, B = (_pieces(arrays, side, settings["topk"]) for side in _SIDES)
    return A.reshape(len(A), -1), B.transpose(0, 2, 1).reshape(-1, B.shape[1])


def _misplaced(arrays: Arrays, _settings: Settings) -> bool:
    chosen = [arrays[name] for name in _INDICES if name in arrays]
    return any(((one < 0) | (one >= len(arrays[_BANK]))).any() for one in chosen)


def _pieces(arrays: Arrays, side: str, topk: int) -> Matrix:
    """The pieces of a factor, ``[rows, columns, v]``."""
    if side in arrays:
        logits = arrays[side]
        chosen = np.argsort(-logits, axis=-1, kind="stable")[..., :topk]
        largest = np.take_along_axis(logits, chosen, axis=-1)
        weights = np.exp(largest - largest[..., :1])
        weights /= weights.sum(axis=-1, keepdims=True)
    else:
        chosen, most = arrays[f"{side}_topk_indices"].astype(np.int64), arrays[f"{side}_topk_weights"]
        weights = np.concatenate([most, 1 - most.sum(axis=-1, keepdims=True)], axis=-1)
    return np.asarray(np.einsum("abk,abkv->abv", weights, arrays[_BANK][chosen]))


VBLORA = Parametrisation(
    _NAMES, _faults, _shape, _rank, _factors, settings={"topk": _MOST}, shared=(_BANK,),
    integers=_INDICES, misplaced=_misplaced,
)  # fmt: skip
