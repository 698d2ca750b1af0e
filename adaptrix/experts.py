"""Which way round the factors of stacked experts lie.

PEFT's ``target_parameters`` on a parameter ``[experts, out, in]`` wrote factors of ΔWᵀ until 0.18 and
writes factors of ΔW from 0.19.1 on; the checkpoint does not say which, only sometimes who wrote it.
"""

from __future__ import annotations

from dataclasses import replace

from adaptrix.adapter import Adapter
from adaptrix.architecture import Role
from adaptrix.delta import LowRank
from adaptrix.dims import Dims
from adaptrix.errors import refuse


def oriented(delta: LowRank, role: Role, dims: Dims, adapter: Adapter) -> LowRank:
    """The delta with ``transposed`` set by the shapes where they tell, else by the version of peft.

    Raises :class:`RefusedError` where neither tells.
    """
    if delta.experts is None or delta.transposed or role.orientation == "experts_transposed":
        return delta
    wanted = tuple(dims.get(expression) if expression else None for expression in (role.out, role.inp))
    straight, turned = delta.shape, delta.shape[::-1]
    if None not in wanted and straight != turned and wanted in (straight, turned):
        return replace(delta, transposed=wanted == turned)
    version = _version(adapter)
    if version is None or version == (0, 19, 0):
        raise refuse(
            "undecidable",
            role.name,
            "factors of stacked experts that may describe ΔW or its transpose, by a peft whose version is not recorded",
            "peft_version in the config, or a base whose dims tell them apart",
            "Name the base with --base MODEL, or add peft_version to adapter_config.json.",
        )
    return replace(delta, transposed=version < (0, 19, 0))


def _version(adapter: Adapter) -> tuple[int, ...] | None:
    parts = str(adapter.provenance.config.get("peft_version") or "").split("@")[0].split(".")[:3]
    numbers = [int(part) for part in parts if part.isdecimal()]
    return tuple(numbers) if len(numbers) == 3 else None
