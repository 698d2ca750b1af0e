"""The two steps of a session that lead out of it, to files: reading an adapter for its model, and writing one."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, Protocol

from adaptrix.architecture import Site
from adaptrix.planning.plan import Plan
from adaptrix.runtime.replaced import SiteKernel


class Builder(Protocol):
    """Reads and writes adapters of one model. Both raise :class:`AdaptrixError`."""

    def __call__(self, adapter: Any) -> tuple[Mapping[Site, SiteKernel], Plan]:
        """The changes that an adapter (a uri, a path, an Adapter) makes to the model, by site, and its plan."""

    def write(self, plan: Plan, folder: str | PathLike[str]) -> None:
        """Puts what acts of a plan into a folder, which may hold other files, as a PEFT checkpoint."""
