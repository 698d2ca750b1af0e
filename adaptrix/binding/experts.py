"""Which way round the factors of stacked experts lie.

PEFT's ``target_parameters`` on a parameter ``[experts, out, in]`` wrote factors of ΔWᵀ until 0.18 and
writes factors of ΔW from 0.19.1 on; the checkpoint does not say which, only sometimes who wrote it.
"""

from __future__ import annotations

import re
from dataclasses import replace

from adaptrix.adapter import Adapter
from adaptrix.architecture import Role
from adaptrix.architecture.dims import Dims
from adaptrix.delta import Delta, LowRank
from adaptrix.errors import refuse

_CHANGED = (0, 19, 1)
_VERSION = re.compile(r"(\d{1,4}\.\d{1,4}\.\d{1,4})(?!\d)")


def oriented(delta: Delta, role: Role, dims: Dims, adapter: Adapter) -> Delta:
    """The delta with ``transposed`` set by the shapes where they tell, else by the version of peft.

    A shape that fits neither way is left for the check of shapes to complain about. Raises
    :class:`RefusedError` where nothing tells.
    """
    if not isinstance(delta, LowRank) or delta.experts is None:  # no other kind is stacked
        return delta
    if delta.transposed or role.orientation == "experts_transposed":
        return delta
    wanted = tuple(dims.get(expression) if expression else None for expression in (role.out, role.inp))
    straight, turned = delta.shape, delta.shape[::-1]
    fits, fits_turned = _fits(straight, wanted), _fits(turned, wanted)
    if fits != fits_turned:
        return replace(delta, transposed=fits_turned)
    if not fits:
        return delta
    by_version = _transposed(str(adapter.provenance.config.get("peft_version") or ""))
    if by_version is None:
        raise refuse(
            "ambiguous",
            role.name,
            "factors of stacked experts that may describe ΔW or its transpose, by a peft whose version is not recorded",
            "peft_version in the config, or a base whose dims tell them apart",
            "Name the base with --base MODEL, or add peft_version to adapter_config.json.",
        )
    return replace(delta, transposed=by_version)


def _fits(shape: tuple[int, int], wanted: tuple[int | None, ...]) -> bool:
    """Whether no known dimension speaks against a shape."""
    return all(size in (None, real) for size, real in zip(wanted, shape, strict=True))


def _transposed(version: str) -> bool | None:
    """Whether a version of peft wrote transposes; None for one that may be on either side of the change.

    A dev version is named after the release before it, so those from 0.18.1.dev0 on have it or not.
    """
    found = _VERSION.match(version)
    if found is None:
        return None
    number = tuple(map(int, found[1].split(".")))
    uncertain = "dev" in version and number > (0, 18, 0)
    if number >= _CHANGED:
        return False
    return None if uncertain or number >= (0, 19, 0) else True
