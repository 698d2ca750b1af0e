"""Finds active modules that a pass never calls, so that what is attached to them has no effect.

Not to be called is no fault in itself: an expert that no token was sent to, a tower without images. A module counts as
never called where the module around it ran, in a pass that started with no cache, and left it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from adaptrix.architecture import Site
from adaptrix.errors import Problem, warn_of
from adaptrix.runtime.modules import MERGE, Reached, compiled, never_called
from adaptrix.runtime.places import Places
from adaptrix.runtime.selection import Selection
from adaptrix.wording import some

#: modules that a class calls for some inputs only: attention of tokens that are marked as global
_FOR_SOME_INPUTS = ("_global",)
#: passes of a selection that are watched for sites whose parents have not run yet
_PASSES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """The sites that were not called before a pass, and the modules around them that ran in it."""

    sites: tuple[Site, ...]
    ran: set[nn.Module]


class NeverCalled:
    """Compares calls before and after the first passes of a selection, until each of its sites is decided.

    ``calls``: how often each site was called so far.
    """

    def __init__(
        self, model: nn.Module, modules: Mapping[Site, Reached], calls: Callable[[], Mapping[Site, int]]
    ) -> None:
        self._model, self._modules, self._calls = model, modules, calls
        self._places = Places(model)
        self._lock = Lock()
        self._passes: WeakKeyDictionary[Selection, int] = WeakKeyDictionary()
        self._left_out: dict[Site, None] = {}

    def begins(self, selection: Selection, given: Mapping[str, Any], block: ExitStack) -> Watched | None:
        """Watches the parents of undecided sites until ``block`` is closed; None where there is nothing to decide."""
        passes = self._passes.get(selection, 0)
        if passes >= _PASSES or not selection.kernels or _filled(given.get("past_key_values")):
            return None
        calls = self._calls()
        due = {site: calls[site] for site in selection.kernels if not calls[site] and site not in self._left_out}
        self._passes[selection] = passes + 1 if due else _PASSES
        if not due or any(True for _ in compiled(self._model)):  # its graphs would keep the hooks for ever
            return None
        watched = Watched(tuple(due), set())
        for parent in {parent for parent in map(self._parent, due) if parent is not None}:
            block.callback(parent.register_forward_pre_hook(_noting(watched.ran)).remove)
        return watched

    def ends(self, watched: Watched) -> None:
        """Warns of the sites that the pass has left out, each once a session."""
        calls = self._calls()
        with self._lock:
            sites = [site for site in watched.sites if not calls[site] and self._parent(site) in watched.ran]
            found = [self._modules[site] for site in sites if site not in self._left_out]
            self._left_out |= dict.fromkeys(sites)
        warn_of(_said([one.name for one in found if not never_called(self._model, one)]))  # they were at attach

    @property
    def sites(self) -> list[Site]:
        """The sites that were left out, and were not called since."""
        calls = self._calls()
        return [site for site in list(self._left_out) if not calls[site]]

    def _parent(self, site: Site) -> nn.Module | None:
        """The module around a site's; None where its running would not tell that the site should be called."""
        found = self._modules[site]
        parent = self._model.get_submodule(found.name.rpartition(".")[0])
        if found.module in self._places.embeddings or found.name.endswith(_FOR_SOME_INPUTS):
            return None
        if self._places.above_text(parent) and found.module not in self._places.heads:
            return None
        return parent


def _noting(ran: set[nn.Module]) -> Callable[[nn.Module, Any], None]:
    """A hook that notes its module, where it is this thread that runs it."""
    thread = get_ident()

    def note(module: nn.Module, _: Any) -> None:
        if get_ident() == thread:
            ran.add(module)

    return note


def _filled(cache: object) -> bool:
    """True for a cache with tokens in it, which spares a model some of its modules."""
    size = getattr(cache, "get_seq_length", None)
    return cache is not None and (size is None or bool(size()))


def _said(names: Sequence[str]) -> Iterator[Problem]:
    if names:
        found = f"not called in a whole pass, though the module around it ran: {some(names, 5)}"
        where = f"{len(names)} active module{'s' if len(names) > 1 else ''}"
        expected = "modules that are called: what is attached to others does nothing"
        yield Problem("module-unsupported", where, found, expected, MERGE, "warning")
