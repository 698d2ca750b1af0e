"""Matches module paths the way PEFT does, in bounded time.

PEFT treats the keys of ``rank_pattern`` and a string ``target_modules`` as regular expressions. They
come from strangers, and Python's own ``re`` can be made to run for years; so anything that is more
than a plain dotted name goes to the ``regex`` package, which takes a time limit; all the matches of
one config share one :class:`Budget`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from adaptrix.errors import refuse

_PLAIN = re.compile(r"[\w.-]+")
_SECONDS = 1.0
_LONGEST = 10_000


@dataclass
class Budget:
    """The seconds left for the patterns of one config; honest ones need a few thousandths."""

    seconds: float = 5.0


def suffix_match(key: str, path: str) -> bool:
    """Whether ``path`` is ``key`` or ends with ``.key``, as for a list of target modules."""
    return path == key or path.endswith(f".{key}")


def fullmatch(pattern: str, path: str, where: str, budget: Budget) -> bool:
    """Whether a regular expression matches the whole path. Raises :class:`RefusedError`.

    ``where`` names the config key that the pattern comes from; the time it takes is taken off ``budget``.
    """
    if len(pattern) > _LONGEST:
        raise refuse("pattern-slow", where, f"a pattern of {len(pattern)} characters", f"at most {_LONGEST}")
    import regex

    start, limit = time.monotonic(), max(0.001, min(_SECONDS, budget.seconds))
    try:
        return regex.fullmatch(pattern, path, timeout=limit) is not None
    except TimeoutError:
        found = f"matching {pattern[:200]!r} takes seconds"
        raise refuse("pattern-slow", where, found, "a pattern that is done at once", "List the modules.") from None
    except (regex.error, RecursionError, OverflowError) as error:
        raise refuse("pattern-invalid", where, f"{pattern!r} is not a regular expression ({error})") from None
    finally:
        budget.seconds -= time.monotonic() - start


def first_match(keys: Iterable[str], path: str, where: str, budget: Budget) -> str | None:
    """The first key that matches ``(.*\\.)?(key)$``, PEFT's rule for rank_pattern and alpha_pattern."""
    for key in keys:
        # In a plain name a dot still means "any character" to PEFT; same length, so check it cheaply.
        if _PLAIN.fullmatch(key):
            tail = path[len(path) - len(key) :]
            whole = len(path) == len(key) or (len(path) > len(key) and path[-len(key) - 1] == ".")
            if whole and all(a in (b, ".") for a, b in zip(key, tail, strict=True)):
                return key
        elif fullmatch(rf"(.*\.)?({key})", path, where, budget):
            return key
    return None
