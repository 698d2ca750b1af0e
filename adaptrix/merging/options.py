"""The options of a merge, and their checks before anything is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from adaptrix import atomic
from adaptrix.destination import require_folder
from adaptrix.errors import Problem, UsageError
from adaptrix.options import dtype_name

QloraBase = Literal["bf16", "nf4"]
_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class MergeOptions:
    """The options of a merge; the command line's by the same names.

    - ``layers``: a policy; None is all of a PEFT checkpoint and an injection file's own plan, as when attaching.
    - ``dtype``: of the result; by default each tensor's own.
    - ``force``: replace an earlier output.
    - ``allow_nonfinite``: merge NaN and Inf.
    - ``verify``: compare the merged model with the base with the adapter attached, and refuse it where they differ.
    - ``qlora_base``: for an adapter that was trained on the base in NF4: merge it into the dequantised base (``nf4``)
      or into its full precision (``bf16``).
    """

    layers: str | None = None
    dtype: str | None = None
    force: bool = False
    allow_nonfinite: bool = False
    verify: bool = False
    qlora_base: QloraBase | None = None


def prepare(out: str | None, options: MergeOptions) -> None:
    """Raises :class:`UsageError` for options that can be refused before anything is fetched."""
    if options.dtype is not None and dtype_name(options.dtype) not in _DTYPES:
        raise UsageError(Problem("option", "dtype", f"{options.dtype!r}", f"one of {', '.join(_DTYPES)}"))
    if out is not None and out.endswith("/"):
        require_folder(out)
    elif out is not None:
        atomic.require_free(Path(out), force=options.force)
    if options.qlora_base not in (None, "bf16", "nf4"):
        raise UsageError(Problem("option", "qlora_base", f"{options.qlora_base!r}", "bf16 or nf4"))
    require("torch", "torch")
    if options.verify:
        require("transformers", "torch")
    if options.qlora_base == "nf4" or (options.qlora_base and options.verify):
        require("bitsandbytes", "qlora")


def require(module: str, extra: str) -> None:
    """Raises :class:`UsageError` where a module is not installed, with the extra that brings it."""
    try:
        import_module(module)
    except ImportError:
        remedy = f'Run: pip install "adaptrix[{extra}]"'
        raise UsageError(Problem("package-missing", "merge", f"{module} is not installed", remedy=remedy)) from None
