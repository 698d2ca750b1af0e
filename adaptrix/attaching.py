"""``adaptrix.attach``: from a model and adapters to a session."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptrix.adapter import Adapter
from adaptrix.architecture import Architecture, Site
from adaptrix.base.names import ModelNames, renamed
from adaptrix.base.svd import Known, SvdCache
from adaptrix.binding.bind import BoundAdapter, bind
from adaptrix.binding.identify import Identity, by_config, kept_paths
from adaptrix.binding.translate import in_own_names
from adaptrix.errors import AdaptrixError, Problem, RefusedError, UsageError, errors_in, warn_of
from adaptrix.pipeline import Pipeline
from adaptrix.planning.plan import Plan
from adaptrix.planning.recorded import inactive, plan_of
from adaptrix.runtime.activation import invocation, unactivatable, ungateable, ungated
from adaptrix.runtime.build import kernels, require_finite
from adaptrix.runtime.decompositions import Decompositions
from adaptrix.runtime.drift import Drift
from adaptrix.runtime.extras import places, with_extras
from adaptrix.runtime.gate import behind_gate
from adaptrix.runtime.hooks import Hooks
from adaptrix.runtime.loaded import require_name
from adaptrix.runtime.modules import Reached, inert, reached, require_plain, unreachable, whole_site
from adaptrix.runtime.parameter_forward import occupied
from adaptrix.runtime.refcounts import Users
from adaptrix.runtime.replaced import SiteKernel
from adaptrix.runtime.session import Session
from adaptrix.runtime.slots import Slots, largest_rank
from adaptrix.runtime.stored import as_products
from adaptrix.saving import save_into

AdapterLike = Adapter | str | PathLike[str]


def attach(
    model: nn.Module,
    adapters: Mapping[str, AdapterLike],
    *,
    layers: str | None = None,
    max_drift: float | None = None,
    measure: bool = False,
    slots: int | None = None,
    max_rank: int | None = None,
) -> Session:
    """Loads adapters by name onto a model, and returns the session that switches among them; none is active yet.

    Nothing is put on the model but forward hooks, and a forward of their own on modules whose parameters an adapter
    changes inside, as those of stacked experts and routers: all come off when the session ends. Adapters stay where the
    model is now and in its dtype: a model that is moved under a session is refused, one that is cast goes on.

    - ``model``: a transformers model with its weights, neither compiled nor wrapped by peft.
    - ``adapters``: a mapping from names to adapters, each a uri, a path or an :class:`Adapter`. It may be empty:
      :meth:`Session.load` brings more.
    - ``layers``: a policy for all of them, as for :func:`convert`. By default an injection file acts as its plan says,
      a PEFT checkpoint as peft would run it.
    - ``max_drift``: a finite number of at least 0, which bounds ‖d‖/‖y‖ for every token and module, d being what is
      added to the module's output y. By default nothing is bounded.
    - ``measure``: True has :meth:`Session.report` give the drift ‖d‖/‖y‖ without a bound; ``max_drift`` measures
      it too. By default False.
    - ``slots``: a whole number of at least 1. That many adapters at a time lie on the model's device, in buffers whose
      addresses never change, and the rest wait in memory; low-rank deltas alone. By default all lie on the device.
    - ``max_rank``: a whole number of at least 1, the largest rank that slots hold. By default that of ``adapters``;
      an error without ``slots``.

    Raises :class:`UsageError` for an argument that makes no sense, :class:`RefusedError` for a model or an adapter that
    cannot be served, and other kinds of :class:`AdaptrixError` for an adapter that cannot be read: with the problems
    of every adapter, and the model is as it was.

    ```python
    with adaptrix.attach(model, {"math": "./math-lora", "code": "./code-lora"}) as session:
        session.activate("math")
        model.generate(**inputs)
        with session.use({"math": 0.7, "code": 0.3}):
            model.generate(**inputs)
    ```
    """
    require_plain(model)
    _require_named(adapters)
    drift = Drift(_bound(max_drift)) if measure or max_drift is not None else None
    loader = _Loader(model, _policy(layers), measured=drift is not None)
    users = Users()
    built = _all(loader, adapters)
    room = None
    if slots is None and max_rank is not None:
        raise UsageError(Problem("option", "max_rank", f"{max_rank!r} without slots", "slots=…, or no max_rank"))
    if slots is not None:
        room = _room(slots, max_rank, {name: found for name, (found, _) in built.items()}, users)
    session = Session(Hooks(model, loader.modules, users, drift, room), users, loader, room)
    with ExitStack() as undone:
        undone.callback(session.detach)
        for name, (found, plan) in built.items():
            session.adopt(name, found, plan)
        undone.pop_all()
    return session


def _room(count: int, max_rank: int | None, adapters: Mapping[str, Mapping[Site, SiteKernel]], users: Users) -> Slots:
    """Slots for these adapters. Raises with every one that they cannot hold."""
    room = Slots(count, largest_rank(adapters.values()) if max_rank is None else max_rank, users)
    if problems := [problem for name, changes in adapters.items() for problem in room.problems(name, changes)]:
        raise RefusedError(problems)
    return room


def _bound(max_drift: object) -> float | None:
    if max_drift is None or (isinstance(max_drift, (int, float)) and 0 <= max_drift < float("inf")):
        return max_drift
    remedy = "None measures and bounds nothing; measure=True only measures."
    raise UsageError(Problem("option", "max_drift", repr(max_drift)[:60], "a finite number of at least 0", remedy))


def _policy(layers: object) -> str | None:
    if layers is None or isinstance(layers, str):
        return layers
    remedy = 'Layers 1 and 5 to 8 are layers="1,5-8".'
    raise UsageError(Problem("option", "layers", repr(layers)[:60], "a policy, which is a string", remedy))


def _require_named(adapters: object) -> None:
    """Raises :class:`UsageError` unless every adapter comes with a name of its own."""
    if not isinstance(adapters, Mapping):
        found, remedy = f"a {type(adapters).__name__}", 'adaptrix.attach(model, {"math": "./math-lora"})'
        raise UsageError(Problem("option", "adapters", found, "a mapping from names to adapters", remedy))
    for name in adapters:
        require_name(name)


def _all(loader: _Loader, adapters: Mapping[str, AdapterLike]) -> dict[str, tuple[Mapping[Site, SiteKernel], Plan]]:
    """The changes and the plan of every adapter. Raises with the problems of all, as the first error's class."""
    built: dict[str, tuple[Mapping[Site, SiteKernel], Plan]] = {}
    errors: list[AdaptrixError] = []
    for name, adapter in adapters.items():
        try:
            built[name] = loader(adapter)
        except AdaptrixError as error:
            errors.append(type(error)(_named(problem, name) for problem in error.problems))
    if errors:
        raise type(errors[0])(dict.fromkeys(problem for error in errors for problem in error.problems))
    return built


def _named(problem: Problem, name: str) -> Problem:
    """A problem of one among several adapters."""
    return replace(problem, where=f"{name}: {problem.where}")


class _Loader:
    """Turns adapters into changes of one model, and knows the modules it has found for them."""

    def __init__(self, model: nn.Module, layers: str | None, *, measured: bool) -> None:
        self._model, self._layers, self._measured = model, layers, measured
        self._pipeline = Pipeline()
        self._config = _config(model)
        self._decompositions = Decompositions(Known(SvdCache()))
        self._reached: dict[tuple[str, ...], dict[Site, Reached]] = {}
        self.modules: dict[Site, Reached] = {}

    def __call__(self, adapter: AdapterLike) -> tuple[Mapping[Site, SiteKernel], Plan]:
        """The changes and the plan of an adapter. Raises :class:`AdaptrixError` with the remedies of a session."""
        try:
            return self._built(adapter)
        except AdaptrixError as error:
            raise type(error)(map(_on_a_model, error.problems)).with_traceback(error.__traceback__) from error.__cause__

    @torch.inference_mode(False)
    def _built(self, adapter: AdapterLike) -> tuple[Mapping[Site, SiteKernel], Plan]:
        read = adapter if isinstance(adapter, Adapter) else self._pipeline.read(_uri(adapter))
        read = in_own_names(read, self._pipeline.catalog.architectures, self._config)
        bound = self._bound(read)
        if errors := [*errors_in(bound.problems), *_unservable(read)]:
            raise RefusedError(errors)
        if errors := list(unactivatable(read, self._model)):  # of a config that was read without errors
            raise RefusedError(errors)
        plan = plan_of(bound, self._layers)
        modules = dict(self._modules_of(bound.architecture))
        modules |= self._stacked(bound, modules)
        extras, problems = places(plan, self._model, modules)
        if problems := [*unreachable(plan, modules), *problems, *ungated(read, extras)]:
            raise RefusedError(problems)
        made = kernels(plan, modules, self._decompositions)
        if problems := [*occupied(made, modules, self.modules, measured=self._measured), *ungateable(read, made)]:
            raise RefusedError(problems)
        found = with_extras(behind_gate(made, invocation(read)), extras)
        require_finite(found, plan)
        modules |= {place.reached.site: place.reached for place in extras}
        self.modules |= {site: modules[site] for site in found}
        said = (*_unanswered(bound.problems), *inactive(plan, self._layers), *inert(plan, self._model, modules))
        warn_of(map(_on_a_model, said))
        return found, plan

    def write(self, plan: Plan, folder: str | PathLike[str]) -> None:
        """Puts what acts of a plan into a folder, which may hold other files, as a PEFT checkpoint."""
        save_into(self._pipeline, plan, Path(folder))

    def _bound(self, read: Adapter) -> BoundAdapter:
        """The adapter by the sites of the model's family, under the model's own names for its modules."""
        identity = self._identity(read)
        known = identity.architecture.locate if identity.known else lambda _: None
        adapter = as_products(renamed(read, self._names, known), dict(self._model.named_modules()))
        return bind(adapter, identity if adapter is read else self._identity(adapter))

    def _identity(self, adapter: Adapter) -> Identity:
        known = self._pipeline.catalog.architectures
        return by_config(self._config, known, adapter, type(self._model).__name__)

    @cached_property
    def _names(self) -> ModelNames:
        return ModelNames(self._model)

    def _stacked(self, bound: BoundAdapter, modules: Mapping[Site, Reached]) -> dict[Site, Reached]:
        """The stacks that hold the experts which an adapter names one by one, where its family has no site for them."""
        found: dict[Site, Reached] = {}
        for site, target in bound.targets.items():
            if whole_site(site) in modules or (place := self._names.place(target.path)) is None:
                continue
            name, _, leaf = place.path.rpartition(".")
            whole = kept_paths([place.path]).locate(place.path)
            if whole is not None:
                stack = Reached(name, whole, self._model.get_submodule(name), leaf)
                found[whole] = modules.get(whole, found.get(whole, stack))
                found[site] = replace(found[whole], expert=place.expert, rows=place.rows)
        return found

    def _modules_of(self, architecture: Architecture) -> Mapping[Site, Reached]:
        """The model's modules as first found: hooks stay on them. Unknown families have an adapter's roles."""
        key = (architecture.family, *architecture.roles)
        if key not in self._reached:
            self._reached[key] = reached(self._model, architecture)
        return self._reached[key]


def _on_a_model(problem: Problem) -> Problem:
    """A problem with a remedy for who attaches: the model is the base, and nothing lets NaN through."""
    if problem.code == "site-missing":
        return replace(problem, remedy="Attach it to a model of its own family.")
    if "--base" in problem.remedy and "adaptrix convert" not in problem.remedy:
        return replace(problem, remedy="The model is the base here: attach it to the one that it was trained on.")
    if "--allow-nonfinite" in problem.remedy:
        return replace(problem, remedy="It is damaged: fetch it again, or save it again where it was trained.")
    return problem


def _unanswered(problems: Iterable[Problem]) -> Iterator[Problem]:
    """The problems without those of unchecked shapes, which the live model has settled."""
    return (problem for problem in problems if problem.code not in ("unknown-family", "unverified"))


def _unservable(adapter: Adapter) -> Iterator[Problem]:
    """A problem for each thing that an adapter's config asks for and no session does."""
    config = adapter.provenance.config
    if config.get("arrow_config"):
        found = "an Arrow router, which chooses among adapters token by token"
        yield Problem(
            "conditional", adapter.name, found, "one adapter", "Run it with peft, or attach its experts by name."
        )
    if config.get("layer_replication"):
        found = "its config repeats layers (layer_replication), and the model has each of them once"
        remedy = "Expand the base with peft and this adapter, unload() and save it, and attach to that."
        yield Problem("variant-unsupported", adapter.name, found, "a model of as many layers", remedy)


def _uri(adapter: object) -> str:
    """A uri or a path as text. Raises :class:`UsageError` for what is neither."""
    if isinstance(adapter, (str, PathLike)):
        return os.fsdecode(adapter)
    remedy = "adaptrix.load(path) and generators return an Adapter."
    raise UsageError(Problem("option", "adapter", f"a {type(adapter).__name__}", "a uri, a path or an Adapter", remedy))


def _config(model: nn.Module) -> Mapping[str, Any]:
    """The model's config as config.json has it. Raises :class:`UsageError` for a model that has none."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        found, remedy = "the model has no config", "Of a wrapper, such as DataParallel, pass the model inside."
        raise UsageError(Problem("model-unsupported", type(model).__name__, found, "a transformers model", remedy))
    found_config: Mapping[str, Any] = config.to_dict()
    return found_config
