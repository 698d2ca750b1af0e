"""Adaptrix takes a model adapter from anywhere, knows what is in it, fits it to a model, and proves the result.

Names are imported when they are first used, so that ``import adaptrix`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptrix.adapter import Adapter as Adapter
    from adaptrix.api import check as check
    from adaptrix.api import convert as convert
    from adaptrix.api import inspect as inspect
    from adaptrix.api import load as load
    from adaptrix.architecture import Architecture as Architecture
    from adaptrix.architecture import Site as Site
    from adaptrix.catalog import Catalog as Catalog
    from adaptrix.delta import LowRank as LowRank
    from adaptrix.errors import AdaptrixError as AdaptrixError
    from adaptrix.errors import Problem as Problem
    from adaptrix.hookspecs import hookimpl as hookimpl
    from adaptrix.workflow import Report as Report

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "adapter",
    "AdaptrixError": "errors",
    "Architecture": "architecture",
    "Catalog": "catalog",
    "LowRank": "delta",
    "Problem": "errors",
    "Report": "workflow",
    "Site": "architecture",
    "check": "api",
    "convert": "api",
    "hookimpl": "hookspecs",
    "inspect": "api",
    "load": "api",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
