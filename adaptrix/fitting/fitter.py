"""The fitting of a plan to an adapter and a text.

K layers are chosen such that the others are missed least, then their deltas are trained beside the whole adapter on
the same model, whose own weights stay as they are. The result is a plan of these layers whose overrides are the
trained deltas, in the dtype of the adapter's own; an injection file holds both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from adaptrix.adapter import FitRecord
from adaptrix.architecture import Site
from adaptrix.attaching import attach
from adaptrix.binding.bind import BoundAdapter
from adaptrix.delta import Delta, LowRank, require_low_rank
from adaptrix.dtype_names import dtype_name
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.fitting.corpus import Corpus
from adaptrix.fitting.layer_choice import choose, evaluations
from adaptrix.fitting.refit import FULL, KEPT, Refit, State
from adaptrix.fitting.resume import FitState
from adaptrix.measuring.divergence import divergence
from adaptrix.measuring.policies import planned
from adaptrix.measuring.text import Window
from adaptrix.options import Options
from adaptrix.planning.plan import Plan, fitted_count, make_plan
from adaptrix.planning.redistribute import reshape_plan
from adaptrix.progress import Counted
from adaptrix.runtime.activation import invocation
from adaptrix.runtime.session import Choice, Session

_FITTED = "fitted"
_STEPS, _SEED = 300, 0  # where the options say nothing
_TOGETHER = 8  # sets of layers that are compared with one pass of the whole adapter


@dataclass(frozen=True)
class Aim:
    """The layers to keep: ``count`` of ``depth``. ``active``: those that have deltas."""

    count: int
    depth: int
    active: Sequence[int]


def aim(bound: BoundAdapter, options: Options) -> Aim:
    """The aim of the options' policy. Raises :class:`AdaptrixError` where the adapter cannot be fitted on any base."""
    count = fitted_count(bound, options.layers or "")
    if len(bound.depths) != 1:
        stacks = ", ".join(bound.depths) or "none that is known"
        raise refuse(
            "model-unsupported", bound.adapter.name, f"stacks of layers: {stacks}", "one, as a causal model has"
        )
    return Aim(count, next(iter(bound.depths.values())), _active(bound))


@dataclass(frozen=True, eq=False)
class Fitter:
    """Fits a plan of an adapter on a model, so that the plan answers as the whole adapter does on a text."""

    bound: BoundAdapter
    aim: Aim
    model: Any
    corpus: Corpus
    options: Options
    display: Counted

    def plan(self, out: Path) -> Plan:
        """The plan; its state is kept beside ``out``. Raises :class:`AdaptrixError`."""
        active = self.aim.active
        saved = FitState.beside(out, self._key())
        before = {layer: planned(make_plan(self.bound, str(layer))) for layer in active}
        whole = planned(make_plan(self.bound, "all"))
        with attach(self.model, {FULL: whole, **{_name(layer): one for layer, one in before.items()}}) as session:
            layers = saved.layers() or self._chosen(session, saved)
            plan = make_plan(self.bound, ",".join(map(str, layers)))
            start = reshape_plan(plan, self.options.redistribute, self.options.rank)
            overrides, steps = self._trained(session, replace(start, notes=()), layers, saved)
            fitted = replace(plan, policy=str(self.options.layers), overrides=MappingProxyType(overrides))
            return self._measured(session, fitted, _choice(set(active) & set(layers)), steps)

    @property
    def steps(self) -> int:
        return self.options.steps or _STEPS

    @property
    def seed(self) -> int:
        return self.options.seed or _SEED

    def _chosen(self, session: Session, saved: FitState) -> tuple[int, ...]:
        """The layers to keep. Sets that were measured before an interruption are not measured again."""
        known, total = saved.losses(), evaluations(len(self.aim.active), self.aim.count)

        def losses(sets: Sequence[tuple[int, ...]]) -> list[float]:
            new = [layers for layers in sets if layers not in known]
            advance(len(sets) - len(new))
            for start in range(0, len(new), _TOGETHER):
                group = new[start : start + _TOGETHER]
                found = self._kl(session, list(map(_choice, group)), self.corpus.choosing)
                known.update(zip(group, found, strict=True))
                saved.write_losses(known)
                advance(len(group))
            return [known[layers] for layers in sets]

        kept = saved.kept(lambda: f"{len(known)} of {total} sets of layers measured")
        with kept, self.display("choosing layers", total) as advance:
            return choose(self.aim.active, self.aim.depth, self.aim.count, losses)

    def _trained(
        self, session: Session, plan: Plan, layers: tuple[int, ...], saved: FitState
    ) -> tuple[dict[Site, LowRank], int]:
        """The trained deltas of a plan, in the dtype that they will be written in, and the number of steps taken."""
        session.load(KEPT, planned(plan))
        leaves = session.parameters(KEPT)

        def kl() -> float:
            return self._kl(session, [KEPT], self.corpus.stopping)[0]

        refit = Refit(self.model, session, leaves, layers, self.corpus.training, kl, self.steps, self.seed)
        with self.display("fitting", self.steps) as advance:
            state = saved.state(leaves) or State.before(leaves, kl())
            saved.write(layers, state)
            advance(state.step)
            with saved.kept(lambda: f"{state.step} of {refit.steps} steps"):
                refit.run(state, lambda now: saved.write(layers, now), advance)
        return self._deltas(session, plan), state.step

    def _deltas(self, session: Session, plan: Plan) -> dict[Site, LowRank]:
        now = session.adapter(KEPT)
        assert now.recorded is not None  # it was planned
        trained = {
            site: now.recorded.overrides.get(str(site)) or now.deltas[self.bound.targets[site]] for site in plan.sites
        }
        dtype = self.options.dtype and dtype_name(self.options.dtype)
        plain = require_low_rank(trained, self.bound.adapter.name, "a fit")
        return {site: delta.cast(dtype or _dtype(self.bound.deltas[site])) for site, delta in plain.items()}

    def _measured(self, session: Session, plan: Plan, own: Choice, steps: int) -> Plan:
        """The plan with a record of its fit, measured on the numbers that will be written; ``own``: before the fit."""
        session.load(_FITTED, planned(plan))
        before, after = self._kl(session, [own, _FITTED], self.corpus.held_out)
        fit = FitRecord(self.corpus.digest, self.corpus.tokens, self.steps, steps, self.seed, before, after)
        layers = next(iter(plan.layers.values()))
        named = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
        found = f"{named} fitted in {steps} of {fit.steps} steps on {fit.tokens:,} tokens"
        found += f"; KL to the whole adapter {before:.4g} before, {after:.4g} after, a token of what was held out"
        notes = [Problem("summary", "plan", found, severity="note")]
        if not after < before:
            remedy = "More steps, more text, or text that is nearer to what the adapter is for."
            notes.append(Problem("fit-no-gain", "plan", "fitting has made nothing better", "", remedy, "warning"))
        return replace(plan, notes=tuple(notes), fit=fit)

    def _kl(self, session: Session, choices: Sequence[Choice], windows: Sequence[Window]) -> list[float]:
        """KL(full ‖ choice) a token."""
        found = divergence(self.model, session, FULL, choices, windows)
        return [float(one.kl.sum() / one.tokens.sum()) for one in found]

    def _key(self) -> dict[str, Any]:
        """The settings and digests that a fit must share with an interrupted one to resume it."""
        asked = {name: getattr(self.options, name) for name in ("layers", "redistribute", "rank")}
        asked |= {"steps": self.steps, "seed": self.seed}
        return asked | {"text": self.corpus.digest, "adapter": _digest(self.bound), "base": _sums(self.model)}


def _active(bound: BoundAdapter) -> list[int]:
    """The layers that have deltas. Raises :class:`RefusedError` where there is nothing that could be fitted."""
    adapter = bound.adapter
    if others := [key for key, extra in adapter.extras.items() if extra.acts and extra.kind != "base_weight"]:
        found, remedy = "it is no delta, and a fit trains deltas only", "Choose layers by another policy."
        raise RefusedError(
            Problem("extra-unsupported", f"{adapter.name} {key}", found, "deltas", remedy) for key in others
        )
    if invocation(adapter):
        found, remedy = "an activated LoRA, which is not trained here", "Choose layers by another policy."
        raise refuse("conditional", adapter.name, found, "a LoRA for all tokens", remedy)
    require_low_rank(bound.deltas, adapter.name, "a fit")
    active = sorted({site.layer for site in bound.deltas if site.layer is not None})
    if not active:
        raise refuse("plan-empty", adapter.name, "no layer of it has a delta", "at least one")
    return active


def _name(layer: int) -> str:
    return f"layer {layer}"


def _choice(layers: Sequence[int] | set[int]) -> Choice:
    """The adapters of some layers, added up; None, the base alone, for no layer."""
    return {_name(layer): 1.0 for layer in sorted(layers)} or None


def _dtype(delta: Delta) -> str:
    return delta.energy_tensors()[0].dtype


def _digest(bound: BoundAdapter) -> str:
    """A digest of every number of the deltas."""
    digest = sha256()
    for site, delta in bound.deltas.items():
        digest.update(f"{site} {delta.scale!r}".encode())
        for name, tensor in delta.tensors().items():
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            digest.update(tensor.tobytes())
    return digest.hexdigest()


def _sums(model: Any) -> str:
    """A digest of the sums of a model's weights: enough to tell two bases apart, and quick."""
    sums = [float(weight.detach().sum(dtype=torch.float64)) for weight in model.parameters()]
    return sha256(json.dumps(sums).encode()).hexdigest()
