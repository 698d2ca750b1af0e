"""Makes the kernels of parameters that modules read themselves: of stacks, by expert and by rows.

A delta may be of all experts, as PEFT's ``target_parameters`` writes it, or of one of them, as where older versions of
a model had each expert as a module; then the others have zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adaptrix.architecture import Site
from adaptrix.architecture.patterns import suffix_match
from adaptrix.delta import LowRank, straightened
from adaptrix.errors import refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.factors import device_of, factors, gain_of
from adaptrix.runtime.modules import Reached, whole_site
from adaptrix.runtime.parameter_kernel import ParameterKernel
from adaptrix.torch_tensor import as_torch

_MERGE = "Merge the adapter into its base instead, or attach with layers=… that leave it out."


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """The change of one delta to a parameter as it is stored: ``left`` ``[…, rows, r]``, ``right`` ``[…, r, columns]``.

    ``expert``: the one that it is of; None for all of them, and for a parameter of two axes.
    """

    left: Tensor
    right: Tensor
    expert: int | None = None


def parameter_kernel(plan: Plan, sites: Sequence[Site], modules: Mapping[Site, Reached]) -> ParameterKernel:
    """The kernel of the deltas on one parameter, which ``modules`` has in its module.

    Raises :class:`RefusedError` for DoRA, a bias and other kinds than low-rank deltas, for a quantised parameter, and
    for deltas that do not have its shape.
    """
    reached = modules[modules[whole_site(sites[0])].site]
    own = _own(reached)
    wide = torch.promote_types(own.dtype, torch.float32)
    blocks = [_block(plan, site, modules[whole_site(site)], own, wide) for site in sites]
    for block, site in zip(blocks, sites, strict=True):
        _require_fit(block, own, f"{plan.bound.adapter.name} {site}")
    whole = blocks if own.dim() == 2 else [_stacked(blocks, len(own))]
    left = torch.cat([block.left for block in whole], -1)
    return ParameterKernel(left.to(own.dtype), torch.cat([block.right for block in whole], -2).to(own.dtype))


def _own(reached: Reached) -> Tensor:
    """The parameter. Raises :class:`RefusedError` for one that is not in floats, or not whole on this device."""
    own = reached.module.get_parameter(reached.parameter or "weight")
    if not own.is_floating_point() or own.itemsize == 1 or type(own) not in (Tensor, torch.nn.Parameter):
        remedy = "Load the base without quantisation, or merge the adapter into it."
        found = f"{reached.parameter} is a {type(own).__name__} of {own.dtype}"
        raise refuse("quantised", reached.name, found, "a parameter in floats", remedy)
    return own


def _block(plan: Plan, site: Site, reached: Reached, own: Tensor, dtype: torch.dtype) -> _Block:
    delta = plan.delta(site)
    if not isinstance(delta, LowRank) or delta.magnitude is not None or delta.bias is not None:
        what = "a bias" if isinstance(delta, LowRank) and delta.magnitude is None else f"a {delta.kind} delta"
        found = f"{what} on {reached.parameter}, which a {type(reached.module).__name__} reads itself"
        raise refuse("module-unsupported", f"{plan.bound.adapter.name} {site}", found, "a plain LoRA", _MERGE)
    device = device_of(reached.module)
    if delta.experts is not None:
        return _of_all(delta, gain_of(plan, site), reached, own, (device, dtype))
    expert = site.expert if reached.expert is None else reached.expert
    part = factors(plan, site, device, dtype)
    if reached.rows is not None:
        start, stop = reached.rows
        part = replace(part, rows=torch.arange(start, stop, device=device), height=own.shape[-2])
    if _is_turned(plan, site, reached, own, part.whole, part.A):
        return _Block(part.A.T, part.whole.T, expert)
    return _Block(part.whole, part.A, expert)


def _of_all(delta: LowRank, gain: float, reached: Reached, own: Tensor, to: tuple[torch.device, torch.dtype]) -> _Block:
    """The factors of a delta on the parameter itself, as peft stores them: of ``[in, out]`` by each version alike."""
    turned = own.dim() == 3 and bool(getattr(reached.module, "is_transposed", False))
    plain = replace(delta, transposed=False) if turned or own.dim() == 2 else straightened(delta)
    experts = plain.experts or 1
    A = as_torch(plain.A, *to).reshape(experts, plain.rank, -1)
    B = as_torch(plain.B, *to).reshape(plain.B.shape[0], plain.rank, experts).permute(2, 0, 1) * (plain.scale * gain)
    left, right = (A.mT, B.mT) if turned else (B, A)
    return _Block(left[0], right[0]) if own.dim() == 2 and experts == 1 else _Block(left, right)


def _is_turned(plan: Plan, site: Site, reached: Reached, own: Tensor, B: Tensor, A: Tensor) -> bool:
    """True where the parameter is stored ``[in, out]``: by the module, else the family, else its shape.

    Raises :class:`RefusedError` where it is square and neither of them says so.
    """
    if own.dim() == 3 and hasattr(reached.module, "is_transposed"):
        return bool(reached.module.is_transposed)
    target = plan.bound.targets[site].path
    names = plan.bound.adapter.provenance.config.get("target_parameters") or ()
    if any(suffix_match(name, f"{target}.{reached.parameter}") for name in names):
        return False  # peft writes the factors of such a parameter as it is stored
    role = plan.bound.architecture.roles[site.role]
    if not role.name.startswith("modules."):
        return role.orientation in ("conv1d", "embedding", "experts_transposed")
    shape, wanted = tuple(own.shape[-2:]), (len(B), A.shape[1])
    if shape[0] != shape[1] or shape != wanted:
        return shape != wanted
    found = f"its parameter is square, {list(shape)}, and nothing says which axis is out"
    raise refuse("ambiguous", f"{plan.bound.adapter.name} {site}", found, "a parameter whose axes are known", _MERGE)


def _require_fit(block: _Block, own: Tensor, where: str) -> None:
    """Raises :class:`RefusedError` for a change that is not of the parameter's shape."""
    stacked = own.dim() == 3 and block.expert is None
    shape = (*(block.left.shape[:-1] if stacked else block.left.shape[-2:-1]), block.right.shape[-1])
    expected = tuple(own.shape if stacked else own.shape[-2:])
    beyond = block.expert is not None and (own.dim() != 3 or block.expert >= len(own))
    if shape != expected or block.left.dim() != len(expected) or beyond:
        found = f"expert {block.expert} of a parameter {list(own.shape)}" if beyond else f"ΔW is {list(shape)}"
        remedy = "The adapter belongs to a model of another size."
        raise refuse("shape", where, found, f"{list(expected)}, as the model has it", remedy)


def _stacked(blocks: Sequence[_Block], experts: int) -> _Block:
    """One block of all experts: ranks side by side, zeros where an expert has fewer."""
    ranks = [0] * experts
    places = []
    for block in blocks:
        of = range(experts) if block.expert is None else [block.expert]
        places.append([(expert, ranks[expert]) for expert in of])
        for expert in of:
            ranks[expert] += block.left.shape[-1]
    first = blocks[0]
    left = first.left.new_zeros(experts, first.left.shape[-2], max(ranks))
    right = first.right.new_zeros(experts, max(ranks), first.right.shape[-1])
    for block, put in zip(blocks, places, strict=True):
        for expert, start in put:
            stop = start + block.left.shape[-1]
            left[expert, :, start:stop] = block.left if block.expert is not None else block.left[expert]
            right[expert, start:stop] = block.right if block.expert is not None else block.right[expert]
    return _Block(left, right)
