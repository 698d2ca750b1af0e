"""The options of a merge, and their checks before anything is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adaptrix import atomic
from adaptrix.destination import output_path
from adaptrix.dtype_names import dtype_problems
from adaptrix.errors import Problem, UsageError
from adaptrix.optional import require
from adaptrix.planning.plan import require_policy
from adaptrix.tensor import MODEL_FLOATS

QloraBase = Literal["bf16", "nf4"]
#: of the default output, after the adapter's name
ENDING = "-merged"


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
    if problems := dtype_problems(options.dtype, MODEL_FLOATS):
        raise UsageError(problems)
    require_policy(options.layers)
    path = output_path(out, None, ENDING)
    if path is not None:
        atomic.require_free(path, force=options.force)
    if options.qlora_base not in (None, "bf16", "nf4"):
        raise UsageError(Problem("option", "qlora_base", f"{options.qlora_base!r}", "bf16 or nf4"))
    require("torch", "torch", "merge")
    if options.verify:
        require("transformers", "torch", "merge --verify")
    if options.qlora_base == "nf4" or (options.qlora_base and options.verify):
        require("bitsandbytes", "qlora", "merge --qlora-base")
