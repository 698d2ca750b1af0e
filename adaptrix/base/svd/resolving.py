"""Resolution of spectral deltas: the U and V of the weight that each belongs to; every other weight is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adaptrix.base.svd.cache import Decomposition, SvdCache
from adaptrix.base.svd.lapack import BACKEND, BACKENDS, sensitivity, tensor_hash
from adaptrix.delta import Basis, Spectral
from adaptrix.errors import RefusedError, refuse
from adaptrix.tensor import FLOATS, Tensor

#: the largest difference of singular values of one weight, over the largest value
_AGREE = 1e-5
#: the share of ‖ΔW‖ that may depend on the rounding of the decomposition
_SHAKY = 1e-3
#: the largest relative error of given U, S and V as a decomposition of the weight
_WHOLE = 1e-3
_PROBES = 4
_OTHER_BASE = "It belongs to another base, or to another version of it: name the one that it was trained on."


def resolve(delta: Spectral, weight: Tensor, cache: SvdCache, *, turned: bool = False, where: str = "site") -> Spectral:
    """The delta with its U and V, once ``weight`` is checked to be the one that it belongs to.

    ``weight``: the base's tensor as the module stores it, ``[in, out]`` where ``turned`` (Conv1D); one that was loaded
    in a wider dtype than it was stored in still counts as itself. The delta's own U and V are checked
    against the weight; a delta without them gets those of ``cache``. ``where`` names the delta in messages. Raises
    :class:`RefusedError` for another weight, for another decomposition, and where singular values are so close that z
    does not determine ΔW.
    """
    if delta.resolved:
        _require_vectors(delta, require_weight(delta, weight, turned=turned, where=where), turned, where)
        return delta
    return within(delta, decomposed(delta, weight, cache, turned=turned, where=where), where)


def decomposed(delta: Spectral, weight: Tensor, cache: SvdCache, *, turned: bool, where: str) -> Decomposition:
    """The decomposition of the weight that a delta belongs to. Raises :class:`RefusedError` for another weight."""
    stored = require_weight(delta, weight, turned=turned, where=where)
    if delta.basis.backend not in BACKENDS:
        remedy = "Write it with its U and V where it was trained."
        found = f"z for a decomposition by {delta.basis.backend!r}"
        raise refuse("option", where, found, " or ".join(BACKENDS), remedy)
    return cache.svd(stored, turned=turned, where=where)


def within(delta: Spectral, own: Decomposition, where: str) -> Spectral:
    """The delta with the U and V of its weight's decomposition. Raises :class:`RefusedError` where z is of another."""
    _require_values(delta, own, where)
    return replace(delta, U=own.U, Vt=own.Vt)


def spectral_delta(
    z: NDArray[np.floating], weight: Tensor, cache: SvdCache, *, turned: bool = False, where: str = "weight"
) -> Spectral:
    """The spectral delta of ``z`` ``[k]`` on a weight as its module stores it, with its U and V."""
    own = cache.svd(weight, turned=turned, where=where)
    out, inp = weight.shape[::-1] if turned else weight.shape
    basis = Basis(tensor_hash(weight), weight.dtype, BACKEND)
    return Spectral(Tensor.of(np.asarray(z)), own.S.cast("F32"), basis, (out, inp), own.U, own.Vt)


def _as_stored(delta: Spectral, weight: Tensor, where: str) -> Tensor:
    """The weight in the dtype that the base's file has it in."""
    if weight.dtype not in FLOATS or delta.basis.dtype not in FLOATS:
        dtype = weight.dtype if weight.dtype not in FLOATS else delta.basis.dtype
        remedy = "Load the base without quantisation."
        raise refuse("quantised", where, f"a weight in {dtype}", "a weight in floats", remedy)
    return weight.cast(delta.basis.dtype)


def require_weight(delta: Spectral, weight: Tensor, *, turned: bool = False, where: str = "site") -> Tensor:
    """The weight as the base stores it; raises :class:`RefusedError` unless it is the one the delta belongs to."""
    stored = _as_stored(delta, weight, where)
    shape = delta.shape[::-1] if turned else delta.shape
    if stored.shape != shape:
        raise refuse("shape", where, f"a weight of shape {list(stored.shape)}", f"{list(shape)}", _OTHER_BASE)
    if (found := tensor_hash(stored)) != delta.basis.weight:
        said = f"the weight's SHA-256 is {found[:16]}… as {stored.dtype}"
        raise refuse("base-mismatch", where, said, f"{delta.basis.weight[:16]}…", _OTHER_BASE)
    return stored


def _require_values(delta: Spectral, own: Decomposition, where: str) -> None:
    """Raises where z belongs to other singular values, or where these are so close that it does not determine ΔW."""
    real, recorded = own.S.float64(), delta.S.float64()
    if real.shape != recorded.shape or not np.abs(real - recorded).max() <= _AGREE * real[0]:
        raise _other_values(where)
    spread = sensitivity(delta.d, real, delta.basis.backend)
    if not spread <= _SHAKY:
        found = f"singular values so close together that {spread:.1%} of ΔW depend on the rounding of the decomposition"
        raise refuse("svd-failed", where, found, "distinct ones", "Write it with its U and V where it was trained.")


def _other_values(where: str) -> RefusedError:
    found = "its singular values are not those of the weight"
    return refuse(
        "svd-mismatch", where, found, "S of the weight's decomposition", "The file is damaged: fetch it again."
    )


def _require_vectors(delta: Spectral, stored: Tensor, turned: bool, where: str) -> None:
    """Raises unless U·diag(S)·Vᵀ is the weight and both are orthonormal, by the products with a few random vectors.

    The error of a decomposition in fp32 is about 1e-6 of the largest singular value; that of bf16 vectors 1e-2.
    """
    U, Vt = delta.vectors()
    S = delta.S.float32()
    numbers = stored.float32().T if turned else stored.float32()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((delta.shape[1], _PROBES), dtype=np.float32)
    y = rng.standard_normal((delta.rank, _PROBES), dtype=np.float32)
    product, kept = numbers @ x, np.linalg.norm(y)
    gaps = (
        np.linalg.norm(product - U @ (S[:, None] * (Vt @ x))) / (np.linalg.norm(product) or 1.0),
        np.linalg.norm(U.T @ (U @ y) - y) / kept,
        np.linalg.norm(Vt @ (Vt.T @ y) - y) / kept,
    )
    if not max(gaps) <= _WHOLE:
        found = f"its U, S and V are off by {max(gaps):.1e} as a decomposition of the weight"
        raise refuse("svd-mismatch", where, found, f"at most {_WHOLE:g}", "The file is damaged: fetch it again.")
