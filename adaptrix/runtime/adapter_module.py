"""An adapter in training as a module of its own: what Trainer, accelerate and TRL take for the model.

They know a model by its parameters: these they step, clip, save and load. So the parameters of the module are the
leaves of the adapter and nothing else, and all that is not about parameters is asked of the base. Adapters they know
by the class of peft's, whose ways to save and to load the module has; where peft can hold the adapter, the module says
that it is of this class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from typing import Any

from torch import Tensor, nn

from adaptrix.architecture import Site
from adaptrix.delta import LowRank
from adaptrix.errors import Problem, RefusedError, UsageError, refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.builder import Builder
from adaptrix.runtime.hooks import Hooks
from adaptrix.runtime.leaf_tree import leaf_tree, places, require_scales, take
from adaptrix.runtime.selection import Selection
from adaptrix.runtime.training import learned, named_leaves, plan_now

#: of the base's methods those that would act on the base, or put adapters on it past the session
_NOT_ITS_OWN = frozenset(
    (
        "push_to_hub",
        "add_adapter",
        "set_adapter",
        "delete_adapter",
        "enable_adapters",
        "disable_adapters",
        "enable_peft_hotswap",
        "get_adapter_state_dict",
    )
)
_UNCALLED = "the pass takes its weight and never calls it, so that the adapter has no effect there and is not trained"
_WITHOUT_HEAD = "Train an adapter without it, or with transformers' Trainer, which calls the output layer."


@dataclass(frozen=True)
class _Around:
    """The object between a model of peft's and the base in it."""

    model: nn.Module


class AdapterModule(nn.Module):
    """An adapter of a session in training, as a module; made by :meth:`Session.training`.

    ``parameters``, ``named_parameters``, ``state_dict`` and ``load_state_dict``: of its leaves alone. ``forward`` and
    ``generate``: the model's, under the adapter. ``train`` and ``eval`` reach the model too, casts the model alone, and
    every other attribute (``config``, ``device``, ``gradient_checkpointing_enable`` …) is the model's.
    """

    def __init__(self, hooks: Hooks, build: Builder, selection: Selection) -> None:
        super().__init__()
        (loaded,) = selection.adapters
        assert loaded.plan is not None  # it was put in training by it
        self._hooks, self._build, self._selection, self._open = hooks, build, selection, True
        self._name, self._plan, self._changes = loaded.name, loaded.plan, _in_order(hooks, loaded.kernels)
        self._seen_as = _peft_class() if _peft_holds(loaded.plan) else None
        self._is_accelerate_prepared = False  # the base may have been, for another training
        self.training = hooks.model.training
        self.adapter = leaf_tree(named_leaves(loaded.plan, self._changes))
        self._places = places(self.adapter)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _NOT_ITS_OWN or "_hooks" not in self.__dict__:
                raise
        return getattr(self._hooks.model, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Peft's class, for ``isinstance``, where a PEFT folder can hold the adapter; else its own."""
        return self.__dict__.get("_seen_as") or type(self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A pass of the model under the adapter. Raises :class:`RefusedError` where a trained head is not called."""
        with self._chosen():
            before = self._head_calls
            output = self._hooks.model(*args, **kwargs)
            self._require_called(before)
            return output

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's ``generate`` under the adapter."""
        model: Any = self._hooks.model
        with self._chosen():
            return model.generate(*args, **kwargs)

    def train(self, mode: bool = True) -> AdapterModule:
        """Sets the mode of the model, which dropout follows, and its own."""
        self._hooks.model.train(mode)
        super().train(mode)
        return self

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Writes the adapter, as it is now, as a PEFT checkpoint: a config and a safetensors file.

        - ``save_directory``: the folder, which may hold other files; it is made where it is missing.
        - ``is_main_process``: False writes nothing: another process does.
        - ``state_dict``: None, as the leaves are whole in every process.
        - ``safe_serialization``: True, there is no other format.

        Raises :class:`UsageError` for others and for an adapter that no PEFT checkpoint can hold, :class:`RefusedError`
        for what the system objects to; files that were there are then as they were.
        """
        if state_dict is not None or not safe_serialization:
            found = "safe_serialization=False" if state_dict is None else "a state_dict"
            remedy = "One process, or data parallelism, has the leaves whole."
            raise UsageError(Problem("option", "save_pretrained", found, "the leaves, in safetensors", remedy))
        if is_main_process:
            self._build.write(plan_now(self._plan, self._changes), save_directory)

    def load_adapter(self, model_id: str | PathLike[str], adapter_name: str, is_trainable: bool = False) -> None:
        """Gives the leaves, which stay in training, the numbers of a checkpoint of this adapter.

        - ``model_id``: the path of its folder, as :meth:`save_pretrained` writes one.
        - ``adapter_name``: the name of this adapter in the session.
        - ``is_trainable``: peft's own; leaves are always in training.

        Raises :class:`UsageError` for another name, and :class:`AdaptrixError` for a checkpoint that cannot be read or
        has other deltas; the leaves are then as they were.
        """
        if adapter_name != self._name:
            remedy = "session.load(name, folder) loads others."
            raise UsageError(Problem("option", "adapter_name", repr(adapter_name), repr(self._name), remedy))
        changes, plan = self._build(model_id)
        require_scales(self._plan, plan, str(model_id))
        theirs = named_leaves(plan, learned(plan, self._hooks.modules, changes))
        take(named_leaves(self._plan, self._changes), theirs, str(model_id))

    def get_base_model(self) -> nn.Module:
        """The model that the session is attached to."""
        return self._hooks.model

    @property
    def base_model(self) -> _Around:
        """The model as ``base_model.model``, where peft has it."""
        return _Around(self._hooks.model)

    @property
    def active_adapters(self) -> list[str]:
        """The name of the adapter."""
        return [self._name]

    def close(self) -> None:
        """Ends the use of the module for passes."""
        self._open = False

    def _chosen(self) -> AbstractContextManager[None]:
        if not self._open or not self._hooks.attached:
            found, remedy = "the block of session.training has ended", "Train and evaluate inside it."
            raise UsageError(Problem("session-state", self._name, found, "an open block", remedy))
        if any(owner._parameters.get(name) is not leaf for owner, name, leaf in self._places):
            found = "its parameters were replaced, as FSDP and load_state_dict(assign=True) do, and act no more"
            remedy = "Train in one process a device (torchrun), and load numbers without assign."
            raise refuse("model-changed", self._name, found, "the leaves of the adapter", remedy)
        return self._hooks.choosing(self._selection)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdapterModule:
        """Casts the model; leaves keep their dtype. Raises :class:`RefusedError` for another device."""
        for leaf in self.parameters():
            where = fn(leaf.detach()[:0]).device
            if where != leaf.device:
                found, remedy = f"it is moved to {where}", f"model.to({str(where)!r}) before adaptrix.attach."
                raise refuse("model-changed", self._name, found, f"{leaf.device}, where the model was", remedy)
        model: Any = self._hooks.model
        model._apply(fn, recurse)
        return self

    @property
    def _head_calls(self) -> dict[Site, int]:
        """The number of times that the output layer was injected so far, where the adapter changes it."""
        find = getattr(self._hooks.model, "get_output_embeddings", lambda: None)
        head, modules = find(), self._hooks.modules
        heads = [site for site in self._changes if modules[site].module is head]
        return {site: self._hooks.injections[site] for site in heads}

    def _require_called(self, before: Mapping[Site, int]) -> None:
        """Raises :class:`RefusedError` where a pass has left out the output layer, as TRL's fused heads do."""
        problems = [
            Problem("module-unsupported", f"{self._name} {site}", _UNCALLED, "a module that is called", _WITHOUT_HEAD)
            for site, count in self._head_calls.items()
            if count == before[site]
        ]
        if problems:
            raise RefusedError(problems)

    def _replicate_for_data_parallel(self) -> Any:
        found, remedy = "DataParallel copies the leaves to every device", "Launch a process for each by torchrun."
        raise refuse("model-unsupported", self._name, found, "one device a process", remedy)


def adapter_module(hooks: Hooks, build: Builder, selection: Selection) -> AdapterModule:
    """The module of the one adapter of a selection. Its class has the signature of the model's ``forward``."""
    base = type(hooks.model)

    def forward(self: AdapterModule, *args: Any, **kwargs: Any) -> Any:
        return AdapterModule.forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
    own: type[AdapterModule] = type(f"Adapted{base.__name__}", (AdapterModule,), {"forward": forward})
    return own(hooks, build, selection)


@contextmanager
def open_module(hooks: Hooks, build: Builder, selection: Selection) -> Iterator[AdapterModule]:
    """The module of the one adapter of a selection, which is active in the block; it takes passes in there alone."""
    with hooks.block(selection), closing(adapter_module(hooks, build, selection)) as module:
        yield module


def _in_order(hooks: Hooks, changes: Mapping[Site, object]) -> dict[Site, object]:
    """The changes in the order of the model's modules, as in peft: an optimiser's state goes by order, not by name."""
    order = {module: number for number, module in enumerate(hooks.model.modules())}
    return {site: changes[site] for site in sorted(changes, key=lambda site: order[hooks.modules[site].module])}


def _peft_holds(plan: Plan) -> bool:
    """True where what acts of a plan is whole LoRA factors, as in a PEFT checkpoint."""
    return all(isinstance(plan.delta(site), LowRank) and site.part is None for site in plan.sites)


def _peft_class() -> Any:
    """The class of peft's models, by which Trainer and TRL know adapters; None where peft is not installed."""
    try:
        return import_module("peft").PeftModel
    except ImportError:
        return None
