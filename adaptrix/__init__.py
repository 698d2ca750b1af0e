"""Adaptrix takes a model adapter from anywhere, knows what is in it, fits it to a model, and proves the result.

Names are imported when they are first used, so that ``import adaptrix`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptrix.adapter import Adapter as Adapter
    from adaptrix.api import check as check
    from adaptrix.api import combine as combine
    from adaptrix.api import convert as convert
    from adaptrix.api import diff as diff
    from adaptrix.api import extract as extract
    from adaptrix.api import inspect as inspect
    from adaptrix.api import load as load
    from adaptrix.api import merge as merge
    from adaptrix.api import resize as resize
    from adaptrix.architecture import Architecture as Architecture
    from adaptrix.architecture import Site as Site
    from adaptrix.attaching import attach as attach
    from adaptrix.delta import LowRank as LowRank
    from adaptrix.delta import Spectral as Spectral
    from adaptrix.errors import AdaptrixError as AdaptrixError
    from adaptrix.errors import AdaptrixWarning as AdaptrixWarning
    from adaptrix.errors import Problem as Problem
    from adaptrix.errors import RefusedError as RefusedError
    from adaptrix.errors import UnreachableError as UnreachableError
    from adaptrix.errors import UsageError as UsageError
    from adaptrix.inspection import Inspection as Inspection
    from adaptrix.measuring.measure import fidelity as fidelity
    from adaptrix.measuring.report import FidelityReport as FidelityReport
    from adaptrix.plugins.catalog import Catalog as Catalog
    from adaptrix.plugins.hookspecs import hookimpl as hookimpl
    from adaptrix.records import Bundle as Bundle
    from adaptrix.records import Command as Command
    from adaptrix.records import Format as Format
    from adaptrix.records import Generator as Generator
    from adaptrix.records import Source as Source
    from adaptrix.results import CheckReport as CheckReport

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "adapter",
    "AdaptrixError": "errors",
    "AdaptrixWarning": "errors",
    "Architecture": "architecture",
    "Bundle": "records",
    "Catalog": "plugins.catalog",
    "CheckReport": "results",
    "Command": "records",
    "FidelityReport": "measuring.report",
    "Format": "records",
    "Generator": "records",
    "Inspection": "inspection",
    "LowRank": "delta",
    "Problem": "errors",
    "RefusedError": "errors",
    "Site": "architecture",
    "Source": "records",
    "Spectral": "delta",
    "UnreachableError": "errors",
    "UsageError": "errors",
    "attach": "attaching",
    "check": "api",
    "combine": "api",
    "convert": "api",
    "diff": "api",
    "extract": "api",
    "fidelity": "measuring.measure",
    "hookimpl": "plugins.hookspecs",
    "inspect": "api",
    "load": "api",
    "resize": "api",
    "merge": "api",
}
__all__ = [
    "Adapter",
    "AdaptrixError",
    "AdaptrixWarning",
    "Architecture",
    "Bundle",
    "Catalog",
    "CheckReport",
    "Command",
    "FidelityReport",
    "Format",
    "Generator",
    "Inspection",
    "LowRank",
    "Problem",
    "RefusedError",
    "Site",
    "Source",
    "Spectral",
    "UnreachableError",
    "UsageError",
    "__version__",
    "attach",
    "check",
    "combine",
    "convert",
    "diff",
    "extract",
    "fidelity",
    "hookimpl",
    "inspect",
    "load",
    "merge",
    "resize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise ImportError(f'adaptrix.{name} needs {error.name}: pip install "adaptrix[torch]"') from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
