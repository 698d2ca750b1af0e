"""A model with adapters attached: what users switch, mix and route.

Hooks are registered once and never toggled. They look up the active selection, a value: the one that
the current context chose (``use``, ``route``), else the session's default (``activate``). A forward pass
of the whole model takes the default once, at its start, so that a switch by another thread never falls
into the middle of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import Any, NoReturn, Self

from torch import nn

from adaptrix.adapter import Adapter
from adaptrix.architecture import Site
from adaptrix.planning.plan import Plan
from adaptrix.runtime import guards
from adaptrix.runtime.adapter_module import AdapterModule, open_module
from adaptrix.runtime.builder import Builder
from adaptrix.runtime.cache import AdapterCache
from adaptrix.runtime.hooks import Hooks
from adaptrix.runtime.loaded import Choice as Choice
from adaptrix.runtime.loaded import LoadedAdapters, RowChoice, require_name
from adaptrix.runtime.logs import LOG
from adaptrix.runtime.module_hook import uncopied
from adaptrix.runtime.put_in_training import in_training, put_in_training
from adaptrix.runtime.refcounts import Users
from adaptrix.runtime.replaced import SiteKernel
from adaptrix.runtime.report import SessionReport, report_of
from adaptrix.runtime.row_factors import GivenFactors, RowFactors, given_selection
from adaptrix.runtime.selection import BASE, Loaded
from adaptrix.runtime.sharing import Prefill, prefill
from adaptrix.runtime.slots import Slots
from adaptrix.runtime.swapping import Swap, refill
from adaptrix.runtime.threads import thread_under
from adaptrix.runtime.training import adapter_now, named_leaves
from adaptrix.wording import some


class Session:
    """A model with adapters attached, made by :func:`adaptrix.attach`; a context manager that detaches at its end.

    Thread- and asyncio-safe: ``use`` and ``route`` hold for the context that entered them, ``activate``
    for every context that chose nothing. Every load has a version of its own; unloading waits for its users.
    """

    def __init__(self, hooks: Hooks, users: Users, build: Builder, slots: Slots | None = None) -> None:
        self._hooks, self._users, self._build, self._slots = hooks, users, build, slots
        self._adapters = LoadedAdapters(users, slots)
        self._places = GivenFactors(build)
        self._swaps = self._kept = 0

    def __repr__(self) -> str:
        named, state = some(self.adapters, 5) or "none", "" if self._hooks.attached else ", detached"
        return f"<Session on {type(self._hooks.model).__name__}: adapters {named}{state}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise uncopied("session")

    def activate(self, choice: Choice) -> None:
        """Makes a choice the default of every context that has none of its own. One write.

        It stays active, in the version of that moment, until the next ``activate``.
        """
        with self._users.changed:
            self._hooks.make_default(self._open.summed(choice))
        LOG.info("activate %.200r", choice)

    @contextmanager
    def use(self, choice: Choice) -> Iterator[None]:
        """A choice for this context: an adapter, a weighted sum of several, or None for the base. Nests.

        A new thread starts with the default, and warns once if it runs the model so while a block is open elsewhere:
        :meth:`thread` makes one that takes the choice along.
        """
        with self._users.using(lambda: self._open.summed(choice)) as selection, self._hooks.block(selection):
            LOG.debug("use %.200r", choice)
            yield

    @contextmanager
    def route(self, rows: Sequence[str | None]) -> Iterator[None]:
        """One adapter, or None for the base, for each row of the batch; beams count with their row."""
        with self._users.using(lambda: self._open.routed(rows)) as selection, self._hooks.block(selection):
            LOG.debug("route %.200r", rows)
            yield

    def thread(self, target: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Thread:
        """A :class:`threading.Thread`, to be started by the caller, that runs ``target`` under what is active here now.

        - ``target``: such as ``model.generate``; called in a copy of this context.
        - ``args``, ``kwargs``: the arguments that it is called with.

        What is active now, the default included, stays so in the thread, and is in use from this call until it ends.
        One that is started after ``detach`` raises :class:`UsageError` in the thread.
        """
        guards.require_attached(self._hooks)

        def call() -> None:
            guards.require_attached(self._hooks)
            target(*args, **kwargs)

        return thread_under(self._users, lambda: self._hooks.current, self._hooks.block, call)

    def generate(self, choice: Choice | RowChoice, /, *args: Any, **kwargs: Any) -> Any:
        """Returns what ``model.generate(*args, **kwargs)`` returns under a choice, in whatever thread it is called.

        - ``choice``: an adapter, weights by name, None for the base, or a list: one adapter, or None, a row.
        - ``args``, ``kwargs``: those of ``model.generate``, a ``streamer`` among them.

        Raises :class:`UsageError` for an unknown adapter, and for a model that does not generate.
        """
        model = guards.generating(self._hooks.model)
        with self._users.using(lambda: self._open.chosen(choice)) as selection, self._hooks.block(selection):
            LOG.debug("generate under %.200r", choice)
            return model.generate(*args, **kwargs)

    @contextmanager
    def given(self, factors: RowFactors, scale: float = 1.0) -> Iterator[None]:
        """Applies factors that the caller has made, a pair for each row of the batch, in this context.

        By module path A ``[rows, r, in]`` and B ``[rows, out, r]``; ΔW = scale · B·A. They are used as they are, so
        that gradients reach what they were made of; where they do, the base is frozen until ``detach``. Where the batch
        has more rows, those that lie together share a pair. Raises :class:`RefusedError` for what does not fit.
        """
        guards.require_attached(self._hooks)
        guards.require_no_slots("factors", self._slots)
        with self._hooks.block(given_selection(self._hooks, self._places, factors, scale, self._users.version())):
            yield

    def new_cache(self, *names: str) -> AdapterCache:
        """A cache to pass as ``past_key_values``: it knows the adapters it is filled under, so that using it
        under others is an error, and :meth:`swap` can make it fit others without reading the prompt again.

        ``names``: those it will be swapped among, by default all that are loaded. Layers under the first one that
        any of them changes survive a swap.
        """
        return self._hooks.new_cache(self._open.first_layer(names))

    def swap(self, choice: Choice | RowChoice, cache: AdapterCache) -> Swap:
        """Activates a choice and makes the cache what it would have been under it; returns the layers kept, and why.

        Layers under the first injected one are kept, the rest computed from the hidden states that entered
        it, for the families in :data:`adaptrix.runtime.swapping.FAMILIES`; others read the tokens again, as after
        loading an adapter that starts at a lower layer than those known to ``new_cache``. A list of adapters,
        one a row as for :meth:`route`, is for a batch. What was filled in a way that cannot be repeated, and another
        cache than one of this session, is refused by name; then, and after an interrupt, cache and default are as they
        were.
        """
        with self._users.using(lambda: self._open.chosen(choice)) as selection:
            with self._hooks.choosing(selection):
                done = refill(self._hooks.model, self._hooks.own(cache), selection, self.new_cache)
            self._hooks.make_default(selection)
        self._swaps, self._kept = self._swaps + 1, self._kept + done.kept
        LOG.info("swap to %.200r: %d layers kept, %d recomputed: %s", choice, done.kept, done.recomputed, done.reason)
        return done

    def prefill_shared(self, inputs: Mapping[str, Any], choices: Sequence[Choice | RowChoice]) -> list[Prefill]:
        """A prompt read under several choices at once: for each, in order, its cache and the next token's logits.

        ``inputs``: what a tokenizer gives, padded on the left if at all. Layers under the lowest one that any of the
        choices changes are run once, for the families that :meth:`swap` knows; others run whole for each choice, and
        each result says so. The caches are independent, and go on under their choice::

            for name, done in zip(names, session.prefill_shared(inputs, names)):
                tokens = torch.cat([inputs["input_ids"], done.logits.argmax(-1, keepdim=True)], dim=1)
                with session.use(name):
                    model.generate(tokens, past_key_values=done.cache)
        """
        guards.require_choices(choices)
        with self._users.using_each(partial(self._open.chosen, choice) for choice in choices) as selections:
            done = prefill(self._hooks, inputs, selections)
        self._kept += sum(one.kept for one in done)
        return done

    def load(self, name: str, adapter: Any) -> None:
        """Loads an adapter under a new name, or a new version of it under an old one.

        Those in the middle of using the old version finish with it; the default is one of them until the next
        ``activate``. A failed load changes nothing.
        Raises :class:`AdaptrixError`.
        """
        guards.require_attached(self._hooks)
        require_name(name)
        self.adopt(name, *self._build(adapter))

    def adopt(self, name: str, kernels: Mapping[Site, SiteKernel], plan: Plan | None = None) -> None:
        """Names kernels that were built for this model; without a ``plan`` they cannot be trained or read back."""
        if self._slots is not None:
            kernels = self._slots.admit(name, kernels)
        self._hooks.cover(kernels)
        loaded = Loaded(name, self._users.version(), kernels, plan)
        if loaded.gate is not None:
            self._hooks.activated = True
        self._adapters.put(loaded)
        LOG.info("load %r, version %d: %d modules", name, loaded.version, len(kernels))

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The numbers of an adapter, to be learned: for each delta A, B, and bias and magnitude where it has them; of a
        spectral one z.

        The same ones at every call. From the first call on the adapter acts as they say, in fp32, and gradients
        reach them, in mixes and in rows of their own as well; the base is frozen until ``detach``. The config's
        ``lora_dropout`` holds for modules in training mode, and for no adapter but those in training. A cache does
        not know that they have changed. Raises :class:`RefusedError` for adapters with more than deltas,
        :class:`UsageError` while the adapter is in use: ask for them before ``activate`` and ``use``.
        """
        return list(self.named_parameters(name).values())

    def named_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The same as :meth:`parameters`, by the path of the module and the name that each has in an injection file:
        ``model.layers.0.mlp.up_proj.spectral_z``."""
        loaded = self._open.one(name)
        if not in_training(loaded):
            loaded = put_in_training(loaded, self._hooks, self._slots, self._users)
            self._adapters.put(loaded)
        return named_leaves(guards.planned(loaded), loaded.kernels)

    @contextmanager
    def training(self, name: str) -> Iterator[AdapterModule]:
        """An adapter as the model that Trainer, accelerate or TRL trains; within the block the adapter is in use::

            with session.training("math") as module:
                Trainer(model=module, args=arguments, train_dataset=rows).train()
                module.save_pretrained("math-lora")

        The module's parameters, ``state_dict`` and ``save_pretrained`` are those of the adapter alone, and its passes
        are the model's under the adapter. Rules and errors are those of :meth:`parameters`.
        """
        self.named_parameters(name)
        using = self._users.using(lambda: self._open.summed(name))
        with using as selection, open_module(self._hooks, self._build, selection) as module:
            yield module

    def adapter(self, name: str) -> Adapter:
        """An adapter as it is now, its leaves' numbers in it: for ``adaptrix.convert``, or to be loaded again."""
        loaded = self._open.one(name)
        return adapter_now(guards.planned(loaded), loaded.kernels)

    def report(self) -> SessionReport:
        """Counts since the session began: injections by site, swaps, drift and paging,
        and the active sites that were never called."""
        hooks = self._hooks
        return report_of(hooks.injections, hooks.never_called, hooks.drift, self._slots, self._swaps, self._kept)

    def compile(self, **options: Any) -> None:
        """Compiles the model's forward pass (``torch.compile(…, **options)``) until the session is detached.

        One graph serves every selection: it reads the active slots from a tensor, so the session needs slots. Passes
        wait for one another, whatever thread or task they are of, and are not counted in :meth:`report`. An adapter
        that is loaded later and changes other modules than those before it makes torch compile everything again.
        A session without slots works in a model that was compiled after it was attached, with a break in the graph at
        every module that it changes. Raises :class:`UsageError`, :class:`RefusedError` for a model compiled already.
        """
        guards.require_attached(self._hooks)
        guards.require_graph(self._hooks.model, self._slots, self._hooks.drift)
        self._hooks.compile(**options)

    def unload(self, name: str) -> None:
        """Forgets an adapter once it is no longer in use; new users are refused from now on.

        Raises :class:`UsageError` while this thread uses it, its asyncio tasks included: it would wait for itself.
        """
        guards.require_attached(self._hooks)
        with self._users.changed:
            loaded = self._adapters.one(name)
            guards.require_unused(loaded, self._hooks, self._users)
            self._adapters.drop(loaded)
        self._adapters.forget_after_use(loaded)
        LOG.info("unload %r, version %d", name, loaded.version)

    def detach(self) -> None:
        """Takes every hook off the model; calling it again does nothing.

        Let the passes of other threads end first: one that is running goes on without adapters from here.
        """
        if self._hooks.attached:
            self._hooks.make_default(BASE)
            LOG.info("detach from %s", type(self._hooks.model).__name__)
        self._hooks.remove()
        self._adapters.clear()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters loaded."""
        return self._adapters.names

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @property
    def _open(self) -> LoadedAdapters:
        """The adapters of a session that is not over. Raises :class:`UsageError`."""
        guards.require_attached(self._hooks)
        return self._adapters
