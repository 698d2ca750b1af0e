"""The orientation of the factors of stacked experts.

PEFT's ``target_parameters`` on a parameter ``[experts, out, in]`` wrote factors of ΔWᵀ until 0.18 and
writes factors of ΔW from 0.19.1 on; the checkpoint does not say which, but it may name the version.
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
    """The delta with ``transposed`` set by the shapes where they determine it, else by the version of peft.

    A shape that is wrong both ways is left to the check of shapes. Raises :class:`RefusedError` where neither
    determines it.
    """
    if not isinstance(delta, LowRank) or delta.experts is None:  # no other kind is stacked
        return delta
    if delta.transposed or role.orientation == "experts_transposed":
        return delta
    expected = tuple(dims.get(expression) if expression else None for expression in (role.out, role.inp))
    straight, turned = delta.shape, delta.shape[::-1]
    matches, matches_turned = _matches(straight, expected), _matches(turned, expected)
    if matches != matches_turned:
        return replace(delta, transposed=matches_turned)
    if not matches:
        return delta
    by_version = _transposed(str(adapter.provenance.config.get("peft_version") or ""))
    if by_version is None:
        raise refuse(
            "ambiguous",
            role.name,
            "factors of stacked experts that may describe ΔW or its transpose, by a peft whose version is not recorded",
            "peft_version in the config, or a base whose dims distinguish them",
            "Name the base with --base MODEL, or add peft_version to adapter_config.json.",
        )
    return replace(delta, transposed=by_version)


def _matches(shape: tuple[int, int], expected: tuple[int | None, ...]) -> bool:
    """True where a shape has every size that is known."""
    return all(size in (None, real) for size, real in zip(expected, shape, strict=True))


def _transposed(version: str) -> bool | None:
    """True for a version of peft that wrote transposes; None for one that may or may not have the change.

    A dev version is named after the release before it, so those from 0.18.1.dev0 on may have it.
    """
    found = _VERSION.match(version)
    if found is None:
        return None
    number = tuple(map(int, found[1].split(".")))
    uncertain = "dev" in version and number > (0, 18, 0)
    if number >= _CHANGED:
        return False
    return None if uncertain or number >= (0, 19, 0) else True
