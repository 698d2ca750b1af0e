"""Public names that are listed once, in the stub beside their module, and imported when they are first used.

Type checkers and editors read a stub in the place of its module, so it is the one list that all readers can share; a
dict of names or a written ``__all__`` would be a second one. Reading it at run time takes a tenth of a millisecond:
every name has a line of its own, ``from home import name as name``.
"""

from __future__ import annotations

import os
import sys
import warnings

TYPE_CHECKING = False  # importing typing takes longer than all the rest of `import adaptrix`
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

_OPTIONAL = ("torch", "transformers")  # what the extra adaptrix[torch] installs


def lazy_names(
    module: str, renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a module that has a stub beside it.

    ``renamed``: names of the version before, and what each is called now; they give a DeprecationWarning.
    """
    homes, before = _homes(module), renamed or {}
    names = sorted(homes)

    def find(name: str) -> Any:
        if not homes.get(name):
            return _renamed(module, before, name)
        value = _imported(module, homes[name], name)
        setattr(sys.modules[module], name, value)
        return value

    return find, lambda: names, names


def renamed_names(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """``__getattr__`` of a module that still gives the names of the version before, with a DeprecationWarning.

    ``renamed``: those names, and what each is called now.
    """
    return lambda name: _renamed(module, renamed, name)


def renamed_parameters(**renamed: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a function that still takes parameters by their names of the version before, with a
    DeprecationWarning. ``renamed``: those names, and what each is called now."""
    from functools import wraps  # here, since most who import this module rename no parameter

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapper(*args: P.args, **options: P.kwargs) -> R:
            for name in renamed.keys() & options.keys():
                said = f"the parameter {name} of {function.__name__} is now called {renamed[name]}"
                warnings.warn(said, DeprecationWarning, stacklevel=2)
                options[renamed[name]] = options.pop(name)
            return function(*args, **options)

        return wrapper

    return decorate


def _homes(module: str) -> dict[str, str]:
    """The module that each name of a stub comes from; "" for a name that is defined in the stub's own module."""
    spec: Any = sys.modules[module].__spec__
    data: bytes = spec.loader.get_data(os.path.splitext(spec.origin)[0] + ".pyi")  # out of an archive, too
    homes = {}
    for line in data.decode().splitlines():
        match line.split():
            case ["from", home, "import", name, "as", again, *_] if name == again:
                homes[name] = home
            case ["from", _, "import", *_, "("] | ["from", _, "import", "("]:  # wrapped by a formatter
                raise SyntaxError(f"{spec.origin}i: a name has no line of its own: {line}")
            case ["def", signature, *_]:
                homes[signature.partition("(")[0]] = ""
            case [name, _] if name.endswith(":") and line.startswith(name):
                homes[name[:-1]] = ""
    return homes


def _imported(module: str, home: str, name: str) -> Any:
    """A name of another module, or a module of a package, as ``from home import name`` finds it."""
    try:
        return getattr(__import__(home, fromlist=[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in _OPTIONAL:
            raise
        from adaptrix.optional import install_command  # here: nothing else of this module needs it

        raise ImportError(f"{module}.{name} needs {error.name}: {install_command('torch')}") from None


def _renamed(module: str, renamed: Mapping[str, str], name: str) -> Any:
    if name not in renamed:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    said = f"{module}.{name} is now called {renamed[name]}; the old name goes with the next version"
    warnings.warn(said, DeprecationWarning, stacklevel=3)
    return getattr(sys.modules[module], renamed[name])
