"""The hooks on a model, and the active selection that they look up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import signature
from itertools import count
from threading import Lock
from typing import Any, NoReturn

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling  # half the price of is_compiling, and nothing else looks into hooks

from adaptrix.architecture import Site
from adaptrix.errors import refuse
from adaptrix.runtime import recompute
from adaptrix.runtime.batch import batch_of
from adaptrix.runtime.blocks import OpenBlocks
from adaptrix.runtime.cache import AdapterCache
from adaptrix.runtime.compiling import SlotIndex, apart, compile_forward
from adaptrix.runtime.drift import Drift
from adaptrix.runtime.invocation import read
from adaptrix.runtime.module_hook import ModuleHooks, Pass, uncopied
from adaptrix.runtime.modules import Reached
from adaptrix.runtime.never_called import NeverCalled
from adaptrix.runtime.refcounts import DEFAULT, Users
from adaptrix.runtime.selection import BASE, CHOSEN, Selection
from adaptrix.runtime.slots import Slots
from adaptrix.runtime.steps import Steps
from adaptrix.runtime.swapping import depth_of, layers_of, require_own

_SESSIONS = count(1)


class Hooks:
    """One hook a module, one pair on the model; ``default`` is active where a context chose nothing.

    The pair on the model makes the default of the moment the choice of the whole forward pass. ``activated``: there is
    an activated LoRA, so that it is noted what caches are filled with.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[Site, Reached],
        users: Users,
        drift: Drift | None = None,
        slots: Slots | None = None,
    ) -> None:
        self.drift, self._slots = drift, slots
        self.default: Selection = BASE
        self.attached, self.activated = True, False
        self._session = next(_SESSIONS)
        self._modules, self._users = modules, users
        self._handles = ExitStack()
        self._pass = Pass()
        self._blocks = OpenBlocks()
        self._injector = ModuleHooks(model, self._pass, lambda: self.current, drift, slots)
        self._uncalled = NeverCalled(model, modules, lambda: self.injections)
        self._lock = Lock()
        self._watched: set[int] = set()
        self.model = model
        self._inputs = tuple(signature(model.forward).parameters)
        self._recomputable = recompute.recomputable(model)
        self._steps = Steps(model, lambda: bool(self.injections))
        self._keep(self._steps)
        self._keep(model.register_forward_pre_hook(self._before, with_kwargs=True))
        self._keep(model.register_forward_hook(self._pass_ends, always_call=True))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise uncopied("model")

    def cover(self, sites: Iterable[Site]) -> None:
        """Hooks the modules of these sites that have none yet."""
        with self._lock:
            found = [self._injector.cover(self._modules[site]) for site in sites]
            handles = [handle for handle in found if handle is not None]
            for handle in handles:
                self._keep(handle)
            if handles and self._injector.lanes is not None:
                torch.compiler.reset()  # a graph has no guard on hooks, and would go on without the new ones

    def new_cache(self, first_layer: float) -> AdapterCache:
        """An empty cache for adapters that change no layer under ``first_layer``."""
        config: Any = self.model.config
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
            found = "a model with cross-attention, whose keys and values come from elsewhere"
            raise refuse(
                "cache-mismatch", type(self.model).__name__, found, "a decoder alone", "Use transformers' own caches."
            )
        depth = depth_of(self.model, first_layer)
        cache = AdapterCache(config, depth, self._session)
        if not cache.counts:
            found = "a model whose cache holds states, and no keys by which its tokens are counted"
            remedy = "Use transformers' own caches, and give the model the prompt again after a change of adapters."
            raise refuse("cache-mismatch", type(self.model).__name__, found, "a model with attention", remedy)
        self._watch(depth)
        return cache

    def own(self, cache: object) -> AdapterCache:
        """The cache, if it is one of these. Raises :class:`UsageError`."""
        return require_own(cache, self._session)

    def _watch(self, depth: int) -> None:
        """Records what enters the layer at this depth, from now on, in caches of this depth."""
        found = layers_of(self.model)
        layers = list(getattr(*found)) if found else []
        if depth in self._watched or not 0 < depth < len(layers):
            return
        self._watched.add(depth)
        self._keep(layers[depth].register_forward_pre_hook(_watcher(depth), with_kwargs=True))

    def remove(self) -> None:
        """Takes all of them off; calling it again does nothing."""
        self.attached = False
        self.default = BASE
        self._handles.close()
        self._injector.lanes = None
        self.settle()

    def freeze(self) -> None:
        """Gives no parameter of the base a gradient until the session ends."""
        self._steps.training = True
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                self._handles.callback(parameter.requires_grad_(False).requires_grad_, True)

    @property
    def modules(self) -> Mapping[Site, Reached]:
        """The modules of the sites known so far."""
        return self._modules

    @contextmanager
    def block(self, selection: Selection) -> Iterator[None]:
        """The same as :meth:`choosing` for a block of the user's, which may have been meant for threads as well."""
        block = self._blocks.open(self.default)
        try:
            with self.choosing(selection):
                yield
        finally:
            self._blocks.close(block)

    @contextmanager
    def choosing(self, selection: Selection) -> Iterator[None]:
        """Makes a selection, which is counted as in use, active in this context while the block runs."""
        token = CHOSEN.set({**CHOSEN.get(), self._session: selection})
        try:
            with self._pass.under(selection, self._injector.table):
                yield
        finally:
            CHOSEN.reset(token)

    def make_default(self, selection: Selection) -> None:
        """Makes a selection active where a context chose nothing, and counts it as in use."""
        with self._users.changed:
            self._users.add(selection, DEFAULT)
            self._users.remove(self.default, DEFAULT)
            self.default = selection

    def compile(self, **options: Any) -> None:
        """Compiles the model's forward pass until the hooks come off."""
        lanes = SlotIndex(next(self.model.parameters()).device)
        self._handles.callback(compile_forward(self.model, lanes, lambda: self.current, **options))
        self._injector.lanes = lanes

    def settle(self) -> None:
        """Ends what an interrupted forward pass of this thread has left behind."""
        self._pass.end()

    @property
    def current(self) -> Selection:
        """The active selection of this context, or, of what is recomputed here, that of its forward pass."""
        if recompute.in_backward():
            then: Mapping[int, Selection] = recompute.recomputed()
            return then.get(self._session, BASE)
        return CHOSEN.get().get(self._session) or self._pass.selection or self._blocks.unchosen(self.default)

    @property
    def injections(self) -> dict[Site, int]:
        """The number of times that each hooked module was injected so far."""
        return self._injector.injections

    def _require_recomputable(self, current: Selection) -> None:
        if current.activated:
            found = "layers are recomputed in the backward pass, when it is not known any more where the adapter acts"
            remedy = "model.gradient_checkpointing_disable()"
            raise refuse("conditional", "gradient checkpointing", found, "no activated LoRA", remedy)
        if self._slots is not None:
            found = "layers are recomputed in the backward pass, when another adapter may lie in the slot"
            raise refuse("slots", "gradient checkpointing", found, "no slots", "Attach without slots.")

    @property
    def never_called(self) -> list[Site]:
        """The active sites that whole passes have left out so far."""
        return self._uncalled.sites

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], graph: bool = False) -> None:
        if is_dynamo_compiling():
            apart(self._before, model, args, kwargs, True)  # a graph ends before a pass that is compiled as a whole
            return
        block = self._pass.begin()
        current = self._taken(block)
        self._injector.require_in_place(current)
        self._pass.set(current, self._injector.table(current))
        if torch.is_grad_enabled() and recompute.checkpointing(self._recomputable):
            self._require_recomputable(current)
            chosen = {**CHOSEN.get(), self._session: current}
            block.enter_context(recompute.noting(chosen, lambda: self.attached))
        given = {**dict(zip(self._inputs, args, strict=False)), **kwargs}
        if current.rows > 1:
            self._pass.batch = batch_of(model.config, given, current.rows)
        if not graph and self._injector.lanes is None:  # what hooks a graph has seen stay in it
            self._pass.watched = self._uncalled.begins(current, given, block)
        cache = given.get("past_key_values")
        if isinstance(cache, AdapterCache):
            cache.require_fit(self._session, current, cache.get_seq_length())
        if self.activated:
            self._open_gates(block, current, given)
        if isinstance(cache, AdapterCache):
            cache.note(self._session, current, given)

    def _open_gates(self, block: ExitStack, current: Selection, given: Mapping[str, Any]) -> None:
        """Lets the activated LoRAs of a pass act where they are invoked."""
        reading = read(self._session, current, given)
        for term, columns in reading.columns:
            block.callback(term.gate.close)
            term.gate.open(columns)
        self._pass.after = reading.ends

    def _taken(self, block: ExitStack) -> Selection:
        """The selection that a pass runs under from start to end, whatever becomes the default meanwhile."""
        if self._session in CHOSEN.get() or recompute.in_backward():
            return self.current
        if self._blocks.unchosen(self.default) is BASE:  # it uses nothing that could be unloaded
            return BASE
        return block.enter_context(self._users.using(lambda: self.default))

    def _pass_ends(self, *given: Any) -> None:
        if is_dynamo_compiling():
            apart(self._pass_ends, *given)
            return
        watched, after, output = self._pass.watched, self._pass.after, given[-1]
        self._pass.end()
        if output is None:  # the pass was cut short
            return
        if watched is not None:
            self._uncalled.ends(watched)
        if after is not None:
            after(output)

    def _keep(self, handle: Any) -> None:
        self._handles.callback(handle.remove)


def _watcher(depth: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values", args[1] if len(args) > 1 else None)
        if isinstance(cache, AdapterCache) and cache.depth == depth:
            cache.enter(args[0])

    return keep
