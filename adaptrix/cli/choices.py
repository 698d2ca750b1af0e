"""Options whose values depend on the installation or on a list elsewhere: their help, and what a shell offers for them.

A shell only offers: any other value goes to the code that the option is for, which says by itself what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from adaptrix.dtype_names import spelled
from adaptrix.planning.plan import POLICIES
from adaptrix.plugins.catalog import Catalog
from adaptrix.tensor import FLOATS
from adaptrix.wording import either

F = TypeVar("F", bound=Callable[..., Any])
_LAYER_LIST = "layers such as 8-23,28"


def offering(*words: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """A completion of an option with the words that begin as what is typed."""
    return lambda _context, _parameter, typed: starting(words, typed)


def starting(words: Iterable[str], typed: str) -> list[str]:
    """The words that begin as what is typed."""
    return [word for word in words if word.startswith(typed)]


def layers_option(text: str, *more: str, **settings: Any) -> Callable[[F], F]:
    """The option ``--layers``.

    - ``text``: the help; ``{}`` in it becomes the policies.
    - ``more``: policies of this command alone, such as ``fit:K``.
    - ``settings``: as of ``click.option``.
    """
    policies = (*POLICIES, *more)
    words = [policy.removesuffix("K") for policy in policies]  # a number follows what ends in a colon
    said = text.format(either((*policies, _LAYER_LIST)))
    return click.option("--layers", metavar="POLICY", help=said, shell_complete=offering(*words), **settings)


def dtype_option(text: str, dtypes: Iterable[str] = FLOATS) -> Callable[[F], F]:
    """The option ``--dtype``; ``{}`` in its help ``text`` becomes the dtypes."""
    words = [spelled(dtype) for dtype in dtypes]
    return click.option("--dtype", metavar="DTYPE", help=text.format(either(words)), shell_complete=offering(*words))


class _WritableFormat(click.ParamType):  # type: ignore[type-arg]  # older clicks have no type arguments
    """A format to write: help and shells name those of this installation, plugins' among them."""

    name = "format"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(_writable())}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in starting(_writable(), incomplete)]


to_option = click.option("--to", default="injection", show_default=True, type=_WritableFormat(), help="What to write.")


def _writable() -> Iterable[str]:
    return Catalog.from_environment(hooks=("adaptrix_formats",)).writable


def families(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    """A completion with the families and model types of this installation."""
    known = Catalog.from_environment(hooks=("adaptrix_architectures",)).architectures
    return starting(sorted({name for a in known for name in (a.family, *a.model_types)}), typed)
