"""Plans of layers: the sites that are injected, with their gains, and the share of ΔW that this keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from types import MappingProxyType
from typing import TYPE_CHECKING

from adaptrix.adapter import FitRecord
from adaptrix.architecture import Site
from adaptrix.binding.bind import BoundAdapter, summed
from adaptrix.binding.stacks import ranges
from adaptrix.delta import Delta
from adaptrix.errors import Problem, UsageError
from adaptrix.schemas.values import number
from adaptrix.wording import either, nearest

if TYPE_CHECKING:
    from adaptrix.schemas.shared import FitJSON, PlanJSON

#: layers by stack; the stack is named by the dimension that counts it
Layers = Mapping[str, tuple[int, ...]]

FITTED = "fit"  # the policy of a fitted plan, before its ":K"
_MAKE_IT = "`adaptrix convert SRC --base MODEL --layers fit:K --text FILE` makes it, and its file needs no policy."
_LONGEST = 1000  # characters of a policy: it goes into the manifest
_EXPLICIT = re.compile(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*")


@dataclass(frozen=True, repr=False)
class Plan:
    """The layers of an adapter that act.

    - ``bound``: the adapter.
    - ``policy``: as it was asked for, such as ``middle`` or ``8-23,28``.
    - ``layers``: the active layers by stack. A site outside the layers (an embedding, a head) acts only under ``all``.
    - ``gains``: by layer, multiply ΔW; 1 where absent.
    - ``overrides``: replace the adapter's own deltas under this plan: the results of a redistribution, a
      recompression or a fit.
    - ``notes``: the measured cost of making the plan.
    - ``fit``: the record of a fit, None for other plans.
    - ``reduced``: the bound deltas themselves are approximations of the adapter's, as the notes say.
    """

    bound: BoundAdapter
    policy: str
    layers: Layers
    gains: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    overrides: Mapping[Site, Delta] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[Problem, ...] = ()
    fit: FitRecord | None = None
    reduced: bool = False

    def __repr__(self) -> str:
        return f"<Plan {self.policy}: {len(self.sites)} of {len(self.bound.deltas)} sites of {self.bound.adapter.name}>"

    def active(self, site: Site) -> bool:
        """True where a site is injected."""
        stack = self.bound.stack(site)
        return self.policy == "all" if stack is None else site.layer in self.layers.get(stack, ())

    def delta(self, site: Site) -> Delta:
        """The delta in force at an active site."""
        return self.overrides.get(site) or self.bound.deltas[site]

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The active sites, in order."""
        return tuple(site for site in self.bound.deltas if self.active(site))

    @property
    def retained(self) -> float | None:
        """The share of Σ‖ΔW‖²_F at the active sites.

        None where a share is meaningless: deltas were changed (the notes have the measured error), ΔW is zero
        everywhere, or its norm is not finite.
        """
        energies = self.bound.energies
        total = summed(energies.values())
        if self.overrides or self.reduced or not total or not isfinite(total):
            return None
        return summed(energies[site] for site in self.sites) / total

    @property
    def share(self) -> str:
        """The retained share of ‖ΔW‖², in words."""
        if self.retained is not None:
            return f"{self.retained:.1%} of ‖ΔW‖²"
        changed = len(self.bound.deltas) if self.reduced else len(self.overrides)
        return f"{changed} of them changed" if changed else "the share of ‖ΔW‖² is undefined"

    @property
    def idle(self) -> int:
        """The number of deltas that do not act."""
        return sum(not self.active(site) for site in self.bound.deltas)

    @property
    def complete(self) -> bool:
        """True where every delta acts, unchanged."""
        plain = not self.overrides and all(gain == 1.0 for gain in self.gains.values())
        return plain and all(map(self.active, self.bound.deltas))

    def describe(self) -> str:
        """One line: the policy, its layers, and the share of ‖ΔW‖² they keep."""
        several = len(self.bound.depths) > 1
        parts = [
            f"{stack + ' ' if several else ''}{ranges(list(self.layers.get(stack, ()))) or 'none'} of {depth}"
            for stack, depth in self.bound.depths.items()
        ]
        where = f"layers {', '.join(parts)}" if parts else "no layers"
        sites = f"{len(self.sites)} of {len(self.bound.deltas)} sites"
        return f"plan {self.policy}: {where}, {sites}, {self.share}"

    def as_dict(self) -> PlanJSON:
        return {
            "policy": self.policy,
            "layers": {stack: list(layers) for stack, layers in self.layers.items()},
            "sites": len(self.sites),
            "of": len(self.bound.deltas),
            "retained": self.retained,
            "fit": fit_as_dict(self.fit),
        }


def fit_as_dict(fit: FitRecord | None) -> FitJSON | None:
    """The record of a fit as every ``--json`` has it; None where there is none."""
    if fit is None:
        return None
    return {
        "text": fit.text,
        "tokens": fit.tokens,
        "steps": fit.steps,
        "taken": fit.taken,
        "seed": fit.seed,
        "before": number(fit.before),
        "after": number(fit.after),
    }


def powerless(plan: Plan) -> Iterator[Problem]:
    """A warning for a plan without effect: no layer of it has a delta, or all of ΔW is zero."""
    if plan.bound.deltas and not plan.sites:
        found, remedy = "none of its layers has a delta", "Choose others with --layers, or all."
    elif plan.bound.deltas and not summed(plan.bound.energies.values()):
        found, remedy = "ΔW is zero at every site", "The adapter is as it was before training: B is still zero."
    else:
        return
    yield Problem("plan-empty", "plan", found, remedy=remedy, severity="warning")


def make_plan(bound: BoundAdapter, policy: str) -> Plan:
    """The plan of a policy: ``all``, ``middle``, ``spread:K``, ``energy:K`` or a list as ``8-23,28``.

    Raises :class:`UsageError` for an unknown policy, a K outside 1..depth, or a layer that is not there.
    """
    require_policy(policy)
    name, _, argument = policy.partition(":")
    if name in COUNTED:
        count = int(argument)
        layers = {s: COUNTED[name](bound, s, min(count, d)) for s, d in _checked_depths(bound, policy, count).items()}
    elif policy in _NAMED:
        layers = {stack: _NAMED[policy](depth) for stack, depth in bound.depths.items()}
    else:
        layers = _explicit(bound, policy)
    return Plan(bound, policy, MappingProxyType(layers))


def require_policy(policy: str | None, *, fitting: bool = False) -> None:
    """Raises :class:`UsageError` for a policy that makes no sense for any adapter; None is no policy.

    ``fitting``: ``fit:K`` may be asked for.
    """
    name, _, argument = (policy or "").partition(":")
    if policy is None or policy in _NAMED or (len(policy) <= _LONGEST and _EXPLICIT.fullmatch(policy)):
        return
    if name in COUNTED or (name == FITTED and fitting):
        _count(policy, argument)
    elif name == FITTED:
        raise _usage(policy, "a fitted plan needs training", "another policy", _MAKE_IT)
    else:
        raise _unknown(policy)


def fitted_count(bound: BoundAdapter, policy: str) -> int:
    """The K of ``fit:K``. Raises :class:`UsageError` for one outside 1..depth."""
    count = _count(policy, policy.partition(":")[2])
    _checked_depths(bound, policy, count)
    return count


def _all(depth: int) -> tuple[int, ...]:
    return tuple(range(depth))


def _middle(depth: int) -> tuple[int, ...]:
    """The central half, or what is nearest to it around the centre: 8–23 of 32, 2–4 of 7, 1–4 of 6."""
    outside = (depth + 1) // 4
    return tuple(range(outside, depth - outside))


def _spread(bound: BoundAdapter, stack: str, count: int) -> tuple[int, ...]:
    """``count`` evenly spaced layers from the first to the last; the central one for 1."""
    depth = bound.depths[stack]
    if count == 1:
        return ((depth - 1) // 2,)
    return tuple(sorted({round(i * (depth - 1) / (count - 1)) for i in range(count)}))


def _energy(bound: BoundAdapter, stack: str, count: int) -> tuple[int, ...]:
    """The ``count`` layers of the largest Σ‖ΔW‖²_F; the lower layer where two are equal."""
    totals = dict.fromkeys(range(bound.depths[stack]), 0.0)
    for site, energy in bound.energies.items():
        if site.layer is not None and bound.stack(site) == stack:
            totals[site.layer] = totals.get(site.layer, 0.0) + energy
    return tuple(sorted(sorted(totals, key=lambda layer: (-totals[layer], layer))[:count]))


_NAMED: Mapping[str, Callable[[int], tuple[int, ...]]] = {"all": _all, "middle": _middle}
#: policies of so many layers a stack, by what stands before the colon
COUNTED: Mapping[str, Callable[[BoundAdapter, str, int], tuple[int, ...]]] = {"spread": _spread, "energy": _energy}
#: every policy that makes a plan of an adapter alone, as it is written; so is a list of layers, such as 8-23,28
POLICIES = (*_NAMED, *(f"{name}:K" for name in COUNTED))


def _count(policy: str, argument: str) -> int:
    if not argument.isascii() or not argument.isdecimal() or len(argument) > 6 or int(argument) < 1:
        raise _usage(policy, f"{argument!r} is no number of layers", "a whole number of at least 1, as in spread:4")
    return int(argument)


def _checked_depths(bound: BoundAdapter, policy: str, count: int) -> Mapping[str, int]:
    deepest = max(bound.depths.values(), default=0)
    if bound.depths and count > deepest:
        raise _usage(policy, f"{count} layers of {deepest}", f"at most {deepest}")
    return bound.depths


def _explicit(bound: BoundAdapter, policy: str) -> dict[str, tuple[int, ...]]:
    deepest = max(bound.depths.values(), default=0)
    named: set[int] = set()
    for span in policy.split(","):
        first, _, last = span.partition("-")
        low, high = int(first), int(last or first)
        if low > high or high >= deepest:
            raise _usage(policy, f"layers {span}", f"layers from 0 to {deepest - 1}, the smaller first")
        named |= set(range(low, high + 1))
    return {stack: tuple(sorted(layer for layer in named if layer < depth)) for stack, depth in bound.depths.items()}


def _unknown(policy: str) -> UsageError:
    known = either((*POLICIES, "layers such as 8-23,28"))
    number = policy.partition(":")[2][:10] or "K"
    meant = nearest(policy, (*_NAMED, *(f"{name}:{number}" for name in (*COUNTED, FITTED))))
    return _usage(policy[:80], f"{policy[:80]!r} is no policy", known, meant)


def _usage(policy: str, found: str, expected: str, remedy: str = "") -> UsageError:
    return UsageError(Problem("policy", f"layers {policy}", found, expected, remedy))
