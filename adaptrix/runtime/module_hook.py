"""The hooks on modules: each finds the kernel that the active selection has for its module, and applies it.

One function serves all modules, and a pass looks up the kernels of its selection once: whatever each module would
touch separately has to come from memory, which costs more than the arithmetic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling  # half the price of is_compiling, and no other compiler runs hooks
from torch.utils.hooks import RemovableHandle

from adaptrix.architecture import Site
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.runtime.batch import Batch
from adaptrix.runtime.calls import Calls
from adaptrix.runtime.compiling import SlotIndex, apart
from adaptrix.runtime.drift import Drift
from adaptrix.runtime.factors import device_of
from adaptrix.runtime.kernel import ActiveKernel
from adaptrix.runtime.modules import Links, Reached, links
from adaptrix.runtime.never_called import Watched
from adaptrix.runtime.parameter_forward import Placed, place_forward
from adaptrix.runtime.parameter_kernel import ParameterKernel
from adaptrix.runtime.places import Place, Places
from adaptrix.runtime.row_guard import Guarded, in_graph, require_none
from adaptrix.runtime.selection import Selection
from adaptrix.runtime.slots import Bank, Slots

#: the kernel that acts on a module, or on a parameter inside of one, and the counter of how often it did
Table = Mapping[nn.Module | Reached, tuple[ActiveKernel, Iterator[int]]]


class Pass(threading.local):
    """The pass of a model that a thread is running; a thread runs one at a time.

    A hook after the pass does not run when Ctrl-C ends it; what it left behind is ended before the next one.
    """

    #: the selection that the pass runs under, and its kernels by module; None between passes
    selection: Selection | None = None
    table: Table | None = None
    #: what is known of its rows, where they have adapters of their own
    batch: Batch | None = None
    #: the sites that it decides on, whether they are ever called
    watched: Watched | None = None
    #: what is done with the output of the pass, where anything is
    after: Callable[[Any], None] | None = None
    _block: ExitStack | None = None

    def begin(self) -> ExitStack:
        """A block that :meth:`end` closes."""
        self.end()
        self._block = ExitStack()
        return self._block

    def set(self, selection: Selection | None, table: Table | None) -> None:
        """Makes the pass run under this selection from here on."""
        self.selection, self.table = selection, table

    @contextmanager
    def under(self, selection: Selection, find: Callable[[Selection], Table]) -> Iterator[None]:
        """Makes the pass, if one is running, go on under this selection while the block runs."""
        block, outer = self._block, (self.selection, self.table)
        if block is not None:
            self.set(selection, find(selection))
        try:
            yield
        finally:
            if self._block is not block:  # a pass that began in here was interrupted
                self.end()
            elif block is not None:
                self.set(*outer)

    def end(self) -> None:
        """Ends the pass, or what is left of one; does nothing between passes."""
        block, self._block = self._block, None
        self.after = None
        self.set(None, None)
        self.batch = self.watched = None
        if block is not None:
            block.close()


Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]


class ModuleHooks:
    """The hooks on the modules of one session. ``current``: the active selection outside a pass of the whole model.

    An example: "math" changes ``q_proj`` of layers 0 and 1, "code" that of layer 1 alone, and "code" is active. Both
    modules are hooked, since :meth:`cover` has seen both adapters, and the table of "code" is
    ``{layers.1 q_proj: (kernel, counter)}``. In a pass of the model

    - the hook of layer 0 finds no entry in the table, and leaves the output as it is;
    - the hook of layer 1 takes the next number of the counter and returns ``kernel.add(x, y)``, y + x·Aᵀ·Bᵀ for LoRA.

    A module that is called by itself, outside a pass, has its hook look up the table of ``current()``. In a graph that
    the session compiles there is no look-up: the hook takes the factors of each row's slot from the module's bank.
    """

    def __init__(
        self,
        model: nn.Module,
        running: Pass,
        current: Callable[[], Selection],
        drift: Drift | None = None,
        slots: Slots | None = None,
    ) -> None:
        self.drift, self._slots, self._model = drift, slots, model
        self.lanes: SlotIndex | None = None
        self._pass, self._current = running, current
        self._hooked: dict[Site, Reached] = {}
        self._calls: dict[Site, Calls] = {}
        self._parameters: dict[nn.Module, list[Reached]] = {}
        self._homes: dict[nn.Module, torch.device] = {}
        self._places = Places(model)
        self._tables: WeakKeyDictionary[Selection, Table] = WeakKeyDictionary()
        self._links: WeakKeyDictionary[Selection, Links] = WeakKeyDictionary()
        self._shared: Hook = self._inject

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise uncopied("module")

    def cover(self, reached: Reached) -> RemovableHandle | Placed | Both | None:
        """Hooks a module that has adapters where it now is; None if it has a hook already."""
        self._homes[reached.module] = device_of(reached.module)
        if reached.site in self._hooked:
            return None
        self._hooked[reached.site], self._calls[reached.site] = reached, Calls()
        placed = None if reached.parameter is None else self._inside(reached)
        if reached.parameter not in (None, "weight"):
            return placed
        # partials and methods, no closures: a copied or pickled module comes to this object, which refuses
        hook = self._shared
        if self._slots is not None:
            hook = partial(self._in_slot, self._slots.banks[reached.site], self._places.of(reached.name))
        if "_hf_hook" in vars(reached.module):
            hook = partial(_aligned, hook)
        handle = reached.module.register_forward_hook(hook)
        return handle if placed is None else Both(handle, placed)

    def _inside(self, reached: Reached) -> Placed | None:
        """A forward on a module whose parameter is changed, unless it has one already."""
        known = self._parameters.setdefault(reached.module, [])
        known.append(reached)
        return place_forward(reached.module, partial(self._changes, reached.module)) if len(known) == 1 else None

    def _changes(self, module: nn.Module) -> dict[str, ParameterKernel]:
        """The changes that act now at the parameters of a module, each counted."""
        table = self._pass.table
        if table is None:
            table = self.table(self._current())
        found = {}
        for reached in self._parameters[module]:
            kernel, calls = table.get(reached, (None, None))
            if isinstance(kernel, ParameterKernel) and calls is not None and reached.parameter is not None:
                next(calls)
                found[reached.parameter] = kernel
                self._require_at_home(module, module.get_parameter(reached.parameter))
        return found

    def table(self, selection: Selection) -> Table:
        """The kernels of a selection by module, each with the counter of its injections."""
        found = self._tables.get(selection)
        if found is None:
            sites: Iterable[tuple[Site, ActiveKernel]] = selection.kernels.items()
            if selection.rows > 1:
                sites = {site: self._guarded(site, kernel, selection.rows) for site, kernel in sites}.items()
            found = {_key(self._hooked[site], kernel): (kernel, self._calls[site].numbers) for site, kernel in sites}
            self._tables[selection] = found
        return found

    def _guarded(self, site: Site, kernel: ActiveKernel, rows: int) -> ActiveKernel:
        return Guarded(kernel, self._places.of(self._hooked[site].name), rows, lambda: self._pass.batch)

    def require_in_place(self, selection: Selection) -> None:
        """Raises :class:`RefusedError` if the model has other modules now where a selection acts, without hooks."""
        found = self._links.get(selection)
        if found is None:
            found = links(self._model, (self._hooked[site] for site in selection.kernels))
            self._links[selection] = found
        if not found.intact:
            hooked = [self._hooked[site] for site in selection.kernels]
            gone = [each.name for each in hooked if not links(self._model, [each]).intact]
            raise RefusedError(map(_replaced, gone))

    @property
    def injections(self) -> dict[Site, int]:
        """The number of times that each hooked module was injected so far."""
        return {site: calls.taken for site, calls in list(self._calls.items())}  # another thread may load meanwhile

    def _inject(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if is_dynamo_compiling():
            outside: Tensor | None = apart(self._inject, module, args, output)
            return outside
        table = self._pass.table
        if table is None:  # a module called by itself, or run again in a backward pass
            table = self.table(self._current())
        if not table or (found := table.get(module)) is None:
            return None
        kernel, calls = found
        next(calls)  # atomic, unlike an addition
        try:
            return kernel.add(args[0], output) if self.drift is None else self.drift.add(kernel, args[0], output)
        except RuntimeError:
            self._require_at_home(module, output)
            raise

    def _in_slot(
        self, bank: Bank, place: Place, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        """A hook that a compiler may look into: it knows its bank, and reads the numbers of the slots."""
        if is_dynamo_compiling() and self.lanes is not None:
            if self.lanes.slots.shape[0] > 1:
                require_none(place, in_graph(place, args[0], bank.embedding))
            return bank.add(args[0], output, self.lanes.slots)
        answer = self._inject(module, args, output)
        if answer is not None and answer.requires_grad and len(self._current().seats) == 1:  # rows have copies
            bank.guard(answer)
        return answer

    def _require_at_home(self, module: nn.Module, output: Tensor) -> None:
        """Raises :class:`RefusedError` if a module has moved to another device since its adapters were loaded."""
        if output.device != (home := self._homes[module]):
            name = next(reached.name for reached in list(self._hooked.values()) if reached.module is module)
            found = f"the module is on {output.device} now, and its adapters are on {home}"
            raise refuse("model-changed", name, found, "one device", "Attach again after the model was moved.")


def uncopied(where: str) -> RefusedError:
    """A refusal to pickle or copy what belongs to a session: a copy would have hooks and no adapters."""
    found = "a session is attached, which can neither be copied nor pickled"
    remedy = "Detach first, or save model.state_dict(), which needs no detaching. In another process attach there."
    return refuse("session-state", where, found, "a model without a session", remedy)


@dataclass(frozen=True, slots=True)
class Both:
    """The two on a module whose weight an adapter changes inside, and whose output another one replaces."""

    hook: RemovableHandle
    placed: Placed

    def remove(self) -> None:
        """Takes both off."""
        self.hook.remove()
        self.placed.remove()


def _key(reached: Reached, kernel: ActiveKernel) -> nn.Module | Reached:
    """The key of a kernel in a table: the module whose output it changes, or the parameter inside of one."""
    return reached if isinstance(kernel, ParameterKernel) else reached.module


def _aligned(hook: Hook, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """A hook that is given the input where the output is: accelerate moves it inside of the module only."""
    first = output if isinstance(output, Tensor) else output[0]  # routers answer with several
    return hook(module, (args[0].to(first.device), *args[1:]), output)


def _replaced(name: str) -> Problem:
    found = "the model has another module here than when it was attached, as after resize_token_embeddings"
    return Problem(
        "model-changed", name, found, "the module that has the hook", "Attach again after the model was changed."
    )
