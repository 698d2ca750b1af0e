"""The hooks on a model, and how they know what is in force."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from inspect import signature
from itertools import count
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from adaptrix.architecture import Site
from adaptrix.errors import refuse
from adaptrix.runtime import recompute
from adaptrix.runtime.cache import AdapterCache
from adaptrix.runtime.context import depth_of, layers_of, require_own
from adaptrix.runtime.drift import Drift
from adaptrix.runtime.reach import Reached
from adaptrix.runtime.selection import BASE, Selection
from adaptrix.runtime.users import Users

_SESSIONS = count(1)
#: what this context has chosen, by session
_CHOSEN: ContextVar[Mapping[int, Selection]] = ContextVar("adaptrix_chosen", default=MappingProxyType({}))


class Hooks:
    """One hook a module, one pair on the model; ``default`` is in force where a context chose nothing.

    The pair on the model makes the default of the moment the choice of the whole forward pass.
    """

    def __init__(
        self, model: nn.Module, modules: Mapping[Site, Reached], users: Users, drift: Drift | None = None
    ) -> None:
        self.drift = drift
        self.default: Selection = BASE
        self.attached = True
        self._session = next(_SESSIONS)
        self._modules, self._users = modules, users
        self._calls: dict[Site, Iterator[int]] = {}
        self._handles = ExitStack()
        self._passes = threading.local()
        self._watched: set[int] = set()
        self.model = model
        self._inputs = tuple(signature(model.forward).parameters)
        self._recomputable = recompute.recomputable(model)
        self._keep(model.register_forward_pre_hook(self._before, with_kwargs=True))
        self._keep(model.register_forward_hook(self._after, always_call=True))

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise refuse("attached", "model", "it has a session attached, which cannot be copied", remedy="Detach first.")

    def cover(self, sites: Iterable[Site]) -> None:
        """Hooks the modules of these sites that have none yet."""
        for site in sites:
            if site not in self._calls:
                self._calls[site] = count()
                self._keep(self._modules[site].module.register_forward_hook(self._hook(site)))

    def new_cache(self, first_layer: float) -> AdapterCache:
        """An empty cache for adapters that change no layer under ``first_layer``."""
        config: Any = self.model.config
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
            found = "a model with cross-attention, whose keys and values come from elsewhere"
            raise refuse("cache", type(self.model).__name__, found, "a decoder alone", "Use transformers' own caches.")
        depth = depth_of(self.model, first_layer)
        self._watch(depth)
        return AdapterCache(config, depth, self._session)

    def own(self, cache: object) -> AdapterCache:
        """The cache, if it is one of these. Raises :class:`UsageError`."""
        return require_own(cache, self._session)

    def _watch(self, depth: int) -> None:
        """From now on caches of this depth learn what enters that layer."""
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

    def freeze(self) -> None:
        """Gives no parameter of the base a gradient until the session ends."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                self._handles.callback(parameter.requires_grad_(False).requires_grad_, True)

    @property
    def modules(self) -> Mapping[Site, Reached]:
        """The modules of the sites known so far."""
        return self._modules

    @contextmanager
    def choosing(self, selection: Selection) -> Iterator[None]:
        """A selection for this context while the block runs, and its users counted."""
        self.settle()
        with self._choosing(selection):
            yield

    def settle(self) -> None:
        """Ends the forward passes of this thread that were interrupted.

        Torch runs no hook after a KeyboardInterrupt: what they had chosen would stay chosen, and its users counted.
        """
        while self._stack():
            self._stack().pop().close()

    @contextmanager
    def _choosing(self, selection: Selection) -> Iterator[None]:
        with self._users.using(selection):
            before = _CHOSEN.get()
            chosen = {**before, self._session: selection}
            _CHOSEN.set(chosen)
            try:
                yield
            finally:
                if _CHOSEN.get() is chosen:  # not so where an interrupted pass is ended in another context
                    _CHOSEN.set(before)

    @property
    def current(self) -> Selection:
        """What is in force in this context, or was in the forward pass of what is recomputed here."""
        if recompute.in_backward():
            then: Mapping[int, Selection] = recompute.recomputed()
            return then.get(self._session, BASE)
        return _CHOSEN.get().get(self._session, self.default)

    @property
    def injections(self) -> dict[Site, int]:
        """How often each hooked module was injected so far."""
        return {site: _next_value(counter) for site, counter in self._calls.items()}

    def _hook(self, site: Site) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        session, calls, drift = self._session, self._calls[site], self.drift

        def inject(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            chosen = self.current if torch.is_grad_enabled() else _CHOSEN.get().get(session, self.default)
            kernel = chosen.kernels.get(site)
            if kernel is None:
                return None
            next(calls)  # atomic, unlike an addition
            return kernel.add(args[0], output) if drift is None else drift.add(kernel, args[0], output)

        return inject

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.settle()
        block = ExitStack()
        self._stack().append(block)
        if self._session not in _CHOSEN.get() or recompute.in_backward():
            block.enter_context(self._choosing(self.current))
        if recompute.checkpointing(self._recomputable):
            block.enter_context(recompute.noting(_CHOSEN.get, lambda: self.attached))
        given = {**dict(zip(self._inputs, args, strict=False)), **kwargs}
        cache = given.get("past_key_values")
        if isinstance(cache, AdapterCache):
            cache.note(self._session, self.current, given)

    def _after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.settle()

    def _stack(self) -> list[ExitStack]:
        if not hasattr(self._passes, "stack"):
            self._passes.stack = []
        return self._passes.stack  # type: ignore[no-any-return]  # a thread's own attribute has no type

    def _keep(self, handle: Any) -> None:
        self._handles.callback(handle.remove)


def _watcher(depth: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values", args[1] if len(args) > 1 else None)
        if isinstance(cache, AdapterCache) and cache.depth == depth:
            cache.enter(args[0])

    return keep


def _next_value(counter: Iterator[int]) -> int:
    """What a count would yield next, without taking it: its repr is ``count(7)``."""
    return int(repr(counter)[6:-1])
