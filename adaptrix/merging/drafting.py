"""The changes of each tensor of a base by a plan, or every reason why there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import Any

from adaptrix.adapter import Extra
from adaptrix.architecture import Site
from adaptrix.architecture.patterns import suffix_match
from adaptrix.base.sites import BaseSites, Term
from adaptrix.delta import PARAMETRISATIONS, LowRank, Parametrised, Scale, Spectral
from adaptrix.delta.kinds import row
from adaptrix.errors import Problem, RefusedError
from adaptrix.merging.scale import scale_changes
from adaptrix.merging.spectral import spectral_changes
from adaptrix.merging.tensor_change import ScaleTerm, TensorChange
from adaptrix.merging.tied import HEAD, UNTIE, equal
from adaptrix.planning.plan import Plan
from adaptrix.progress import Counted, uncounted
from adaptrix.tensor import FLOATS, Tensor

_TOKENS = ".token_adapter.trainable_tokens_delta"
_OTHER_BASE = "The base is not the one that the adapter was trained on, or another version of it."


class MergePlanner:
    """Gathers the changes of tensors by name, and the problems.

    ``sites``: of the base; ``tied``: its head and embedding are one tensor.
    """

    def __init__(self, plan: Plan, sites: BaseSites, *, tied: bool, display: Counted = uncounted) -> None:
        self.plan, self.sites, self.tied, self._display = plan, sites, tied, display
        self.changes: dict[str, TensorChange] = {}
        self.problems: list[Problem] = []

    def run(self) -> None:
        """Gathers everything: replaced tensors first, since deltas are added to these."""
        self.problems += _unmergeable(self.plan)
        for key, extra in self.plan.bound.adapter.extras.items():
            if extra.acts:
                self._extra(key, extra)
        for gather, deltas in self._by_kind().items():
            gather(self, deltas)
        for name, change in self.changes.items():
            self.problems += _misfits(name, change, self.sites.tensors[name])

    def _by_kind(self) -> dict[Gather, dict[Site, Any]]:
        """The deltas that act by what gathers their changes, in the order of the kinds; a problem for unknown kinds."""
        found: dict[Gather, dict[Site, Any]] = {gather: {} for gather in KINDS.values()}
        for site in self.plan.sites:
            delta = self.plan.delta(site)
            try:
                found[row(KINDS, delta, site, "merging")][site] = delta
            except RefusedError as error:
                self.problems += error.problems
        return {gather: deltas for gather, deltas in found.items() if deltas}

    def low_rank(self, deltas: Mapping[Site, LowRank | Parametrised]) -> None:
        """Gathers what LoRAs, in whatever parametrisation, add to the tensors of their weights, each by itself."""
        for site, delta in deltas.items():
            self._delta(site, delta)

    def spectral(self, deltas: Mapping[Site, Spectral]) -> None:
        """Gathers the changes of spectral deltas, each of the whole weight that it is of."""
        for site in deltas:
            if not self.sites.whole(site):
                self._nowhere(site)
        changes, problems = spectral_changes(self.plan, deltas, self.sites, self._display)
        self.problems += problems
        for name, change in changes.items():
            self._change(name, spectral=change.spectral, turned=change.turned)

    def scale(self, deltas: Mapping[Site, Scale]) -> None:
        """Gathers the changes of (IA)³ deltas: each multiplies its weight, and on outputs the bias too."""
        for site, delta in deltas.items():
            gain = 1.0 if site.layer is None else self.plan.gains.get(site.layer, 1.0)
            found = list(scale_changes(site, delta, gain, self.sites, self.plan.bound.targets[site].path))
            if not found:
                self._nowhere(site)
            for name, change in found:
                if isinstance(change, Problem):
                    self.problems.append(change)
                else:
                    self._change(name, scaled=change.scaled, turned=change.turned, bias=change.bias)

    def _extra(self, key: str, extra: Extra) -> None:
        path = key.removesuffix(_TOKENS) if key.endswith(_TOKENS) else key.rpartition(".")[0]
        site = self.plan.bound.architecture.locate(path.removesuffix(".base_layer"))
        plain = f"{path}.weight" if extra.kind == "token_delta" else key.replace(".base_layer.", ".")
        names = self.sites.named(plain)
        twins = [] if names or self.tied else self.sites.tied_files(plain)
        if any(equal(extra.tensor, self.sites.tensors[name]) for name in (*names, *twins)):
            return  # the base's own, saved along
        if site is not None and not self.plan.active(site):
            found = f"it is outside the plan {self.plan.policy} and is left out"
            self._note("left-out", key, found, "Merge with --layers all to have it.", "warning")
            return
        if twins:
            self._note("tied", key, f"the base's files have it as {twins[0]}: merged, it would replace both", UNTIE)
        elif extra.kind == "token_delta":
            self._tokens(plain, names, key, extra.tensor)
        else:
            self._replace(plain, names, key, extra.tensor)

    def _replace(self, plain: str, names: list[str], key: str, tensor: Tensor) -> None:
        if not names and not self._is_tied_head(plain) and not self._is_twin(plain, tensor):
            remedy = (
                "Load the base with the class the adapter was trained with, save_pretrained() it, and merge into that."
            )
            self._note("module-missing", key, "the base has no tensor for it to replace", remedy)
        for name in names:
            self._change(name, instead=tensor)

    def _tokens(self, plain: str, names: list[str], key: str, tensor: Tensor) -> None:
        indices = _indices(self.plan.bound.adapter.provenance.config.get("trainable_token_indices"), plain)
        if indices is None or len(indices) != tensor.shape[0]:
            self._note(
                "config-mismatch",
                key,
                "which tokens these rows are for is not known",
                "Restore trainable_token_indices.",
            )
        elif not names:
            self._note("module-missing", key, "the base has no such embedding", _OTHER_BASE)
        else:
            for name in names:
                self._change(name, tokens=indices, rows=tensor)

    def _delta(self, site: Site, delta: LowRank | Parametrised) -> None:
        gain = 1.0 if site.layer is None else self.plan.gains.get(site.layer, 1.0)
        found = list(self.sites.terms(site, self.plan.bound.targets[site].path, delta, gain))
        if not found:
            self._nowhere(site)
        for name, term in found:
            self._add(name, term, bias=False)
        if isinstance(delta, LowRank) and delta.bias is not None:
            biases = list(self.sites.biases(site, delta, gain))
            if not biases:
                remedy = "peft merges no such adapter either: keep it attached, or save the base with biases of zero."
                where = f"{site} ({self.plan.bound.targets[site]})"
                self._note("module-missing", where, "it brings a bias and the base's module has none", remedy)
            for name, term in biases:
                self._add(name, term, bias=True)

    def _nowhere(self, site: Site) -> None:
        target = self.plan.bound.targets[site]
        if self._is_tied_head(f"{target}.weight"):
            return
        where, view = f"{site} ({target})", self.sites.view
        if view is not None and target.path in view.unreadable:
            found = f"transformers makes its weight from the base's files by {view.unreadable[target.path]}"
            self._note(
                "module-missing", where, found, "Keep the adapter attached: no tensor of the files is this weight."
            )
        elif view is None or len(view.tied_with(f"{target}.weight")) == 1:  # else a tie, which is told as such
            self._note("module-missing", where, "the base's files have no weight for it", _OTHER_BASE)

    def _add(self, name: str, term: Term, *, bias: bool) -> None:
        turned = False if bias else self.sites.turned(name, term, self.plan.bound.targets[term.site].path)
        if isinstance(turned, Problem):
            self.problems.append(turned)
            return
        before = self.changes.get(name, TensorChange())
        self._change(name, terms=(*before.terms, term), turned=turned, bias=bias)

    def _change(self, name: str, **what: object) -> None:
        self.changes[name] = replace(self.changes.get(name, TensorChange()), **what)  # type: ignore[arg-type]  # its own fields

    def _is_tied_head(self, plain: str) -> bool:
        """True for the key of a tied head that the base's files leave out; :mod:`adaptrix.merging.tied` handles it."""
        path, _, leaf = plain.rpartition(".")
        site = self.plan.bound.architecture.locate(path)
        return leaf == "weight" and self.tied and site == HEAD and not self.sites.weights("head")

    def _is_twin(self, plain: str, tensor: Tensor) -> bool:
        """True for the key of a bias that the adapter also has under the name of the base's files.

        The heads of BERT and RoBERTa name theirs twice, as their own and as the decoder's. It is one parameter, and
        peft saves it under both names.
        """
        path, _, leaf = plain.rpartition(".")
        other = f"{path.rpartition('.')[0]}.{leaf}"
        twin = self.plan.bound.adapter.extras.get(other)
        return leaf == "bias" and twin is not None and bool(self.sites.named(other)) and equal(tensor, twin.tensor)

    def _note(self, code: str, where: str, found: str, remedy: str, severity: str = "error") -> None:
        self.problems.append(
            Problem(code, where, found, remedy=remedy, severity="warning" if severity == "warning" else "error")
        )


#: gathers the changes of the deltas of one kind
Gather = Callable[[MergePlanner, Any], None]

#: a row for every kind of delta that can be merged
KINDS: Mapping[str, Gather] = MappingProxyType(
    {
        "lora": MergePlanner.low_rank,
        "dora": MergePlanner.low_rank,
        "spectral": MergePlanner.spectral,
        **dict.fromkeys(PARAMETRISATIONS, MergePlanner.low_rank),
        "scale": MergePlanner.scale,
    }
)


def _indices(expected: object, plain: str) -> tuple[int, ...] | None:
    """The tokens that were trained of an embedding: a list for the model's only one, or a table by name."""
    if isinstance(expected, dict):
        expected = next((rows for name, rows in expected.items() if suffix_match(name, plain.rpartition(".")[0])), None)
    return tuple(expected) if isinstance(expected, list) else None


def _unmergeable(plan: Plan) -> Iterator[Problem]:
    """A problem for everything in a config that cannot be merged into weights."""
    config: Mapping[str, object] = plan.bound.adapter.provenance.config
    name = plan.bound.adapter.name
    if config.get("alora_invocation_tokens"):
        found = "an aLoRA acts only after certain tokens, which no merged weight can do"
        yield Problem("conditional", name, found, remedy="Keep it apart: adaptrix.attach runs it on the base.")
    if config.get("arrow_config"):
        found = "a router of adapters chooses token by token, which no merged weight can do"
        yield Problem("conditional", name, found, remedy="Run it with peft, or merge one of its experts by name.")
    if config.get("layer_replication"):
        remedy = "Expand the base first: load it with peft and this adapter, unload(), and save it."
        yield Problem(
            "variant-unsupported", name, "its config repeats layers, and the base's files hold each once", remedy=remedy
        )


def _misfits(name: str, change: TensorChange, own: Tensor) -> Iterator[Problem]:
    """The reasons against a change: shapes, dtypes, and DoRA where its norm has no meaning."""
    stored = change.instead or own
    if own.dtype not in FLOATS or stored.dtype not in FLOATS:
        remedy = "Merge into the base before it was quantised."
        yield Problem("quantised", name, f"its numbers are {own.dtype}", "floats", remedy)
        return
    if change.instead is not None and stored.shape[1:] != own.shape[1:]:
        yield Problem("shape", name, f"shape {list(stored.shape)} in the adapter", f"{list(own.shape)}", _OTHER_BASE)
    if change.rows is not None and (len(stored.shape) != 2 or change.rows.shape[1:] != stored.shape[1:]):
        yield Problem(
            "shape", name, f"trained tokens of shape {list(change.rows.shape)}", f"rows of {list(stored.shape)}"
        )
    if change.tokens and not all(0 <= token < stored.shape[0] for token in change.tokens):
        found = f"token {max(change.tokens)} was trained and the base has {stored.shape[0]}"
        yield Problem("vocabulary", name, found, remedy="Resize the base's embeddings first, as was done for training.")
    flat = stored.shape if len(stored.shape) < 4 else (stored.shape[0], prod(stored.shape[1:]))  # a kernel's axes
    yield from (problem for term in change.terms for problem in _misfit(name, change, term, flat))
    alone = change.spectral or change.scaled
    if alone is not None and (change.instead is not None or change.terms or change.rows is not None):
        found = f"a {alone.delta.kind} delta and another change of the same weight"
        yield Problem("part", name, found, "one of them", "Leave one out with --layers.")
    if change.scaled is not None:
        yield from _misscaled(name, change.scaled, stored.shape, turned=change.turned, bias=change.bias)
    if change.dora and (
        len(change.terms) > 1 or any(term.put is not None or term.delta.experts for term in change.terms)
    ):
        yield Problem(
            "part", name, "DoRA on parts of a fused weight, whose norm is that of the whole", "DoRA on all of it"
        )


def _misscaled(name: str, term: ScaleTerm, shape: tuple[int, ...], *, turned: bool, bias: bool) -> Iterator[Problem]:
    """A problem where (IA)³ numbers are not as many as the weight, or its bias, has rows or columns."""
    axis = 0 if bias or term.delta.inputs is turned else 1
    if len(shape) != (1 if bias else 2) or shape[axis] != term.delta.rank:
        found = f"shape {list(shape)} in the base"
        yield Problem("shape", name, found, f"{term.delta.rank} along axis {axis}, as {term.site} has", _OTHER_BASE)


def _misfit(name: str, change: TensorChange, term: Term, shape: tuple[int, ...]) -> Iterator[Problem]:
    """A problem where a term does not have the shape of its weight."""
    if change.bias:
        fits, expected = len(shape) == 1 and (term.put is not None or shape[0] == term.out), f"[{term.out}]"
    else:
        out, inp = (shape[-1:-3:-1] if change.turned else shape[-2:]) if len(shape) > 1 else (0, 0)
        stacked = term.delta.experts is not None and term.source is None
        depth = len(shape) == (3 if stacked or term.expert is not None else 2)
        depth = depth and (not stacked or shape[0] == term.delta.experts)
        fits = depth and inp == term.delta.shape[1] and (term.put is not None or out == term.out)
        expected = f"{term.out} × {term.delta.shape[1]}"
    rows = shape[-1] if change.turned or change.bias else shape[-2] if len(shape) > 1 else 0
    if not fits or (term.put is not None and int(term.put.max()) >= rows):
        yield Problem(
            "shape", name, f"shape {list(shape)} in the base", f"{expected}, as ΔW of {term.site} has", _OTHER_BASE
        )
