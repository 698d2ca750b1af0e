"""What can be asked of a conversion, and what cannot."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adaptrix.errors import Problem, UsageError
from adaptrix.planning.redistribute import Redistribution
from adaptrix.tensor import FLOATS

_NAME = re.compile(r"[\w][\w.+@-]{0,200}")
_DTYPES = {"FP": "F", "FLOAT": "F", "BFLOAT": "BF", "FLOAT8_": "F8_", "FP8_": "F8_", "HALF": "F16", "DOUBLE": "F64"}


@dataclass(frozen=True)
class Options:
    """What can be asked of a conversion; the command line's options by the same names.

    ``layers``: a policy; None is ``middle`` for an injection file (or the plan of the injection file
    that is read) and ``all`` for a PEFT folder, which cannot hold inactive deltas; pruning an injection
    file means its own plan. ``dtype``: as safetensors, numpy or torch name it (``BF16``, ``bfloat16`` …).
    """

    to: str = "injection"
    base: str | None = None
    layers: str | None = None
    redistribute: Redistribution = "none"
    rank: int | None = None
    prune: bool = False
    dtype: str | None = None
    name: str | None = None
    force: bool = False
    allow_nonfinite: bool = False


def require_options(options: Options) -> None:
    """Raises :class:`UsageError` with every option that makes no sense."""
    problems = []
    if options.rank is not None and options.rank < 1:
        problems.append(Problem("option", "rank", f"{options.rank}", "a whole number of at least 1"))
    if options.dtype is not None and dtype_name(options.dtype) not in FLOATS:
        problems.append(Problem("option", "dtype", f"{options.dtype!r}", f"one of {', '.join(FLOATS)}"))
    if options.redistribute not in ("none", "nearest"):
        problems.append(Problem("option", "redistribute", f"{options.redistribute!r}", "none or nearest"))
    if options.name is not None and not _NAME.fullmatch(options.name):
        problems.append(Problem("option", "name", f"{options.name!r}", "letters, digits and . _ - + @, no path"))
    if problems:
        raise UsageError(problems)


def dtype_name(name: str) -> str:
    """A dtype as safetensors names it: ``bfloat16``, ``bf16`` and ``torch.bfloat16`` are ``BF16``."""
    upper = name.upper().removeprefix("TORCH.").removesuffix("FN")
    start = next((start for start in sorted(_DTYPES, key=len, reverse=True) if upper.startswith(start)), "")
    return _DTYPES.get(start, "") + upper[len(start) :]
