"""The options of a conversion, and their checks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from adaptrix.dtype_names import dtype_problems
from adaptrix.errors import Problem, UsageError
from adaptrix.planning.plan import FITTED, require_policy
from adaptrix.planning.redistribute import Redistribution
from adaptrix.tensor import FLOATS

Vectors = Literal["include", "omit"]

_MOST = 1 << 40  # steps, and the largest seed
_NAME = re.compile(r"[\w][\w.+@-]{0,200}")


@dataclass(frozen=True)
class Options:
    """The options of a conversion; the command line's by the same names.

    - ``to``: the format to write.
    - ``base``: the model that shapes are checked against; by default the adapter's own.
    - ``layers``: a policy; None is the plan of the injection file that is read, and ``all`` otherwise, and for a PEFT
      folder, which cannot hold inactive deltas; pruning an injection file means its own plan.
    - ``redistribute``: ``nearest`` folds the deltas of dropped layers into the nearest kept layer.
    - ``rank``: the largest rank of a delta that acts; one above it is recompressed, and other kinds become LoRAs.
    - ``prune``: drop what the plan leaves out or replaces.
    - ``max_error``: the share that a rank may leave out of ‖ΔW‖ of a delta that becomes a LoRA; None is
      :data:`TOLERANCE`.
    - ``vectors``: ``include`` or ``omit`` the base's U and V of spectral deltas; by default they stay as read.
    - ``dtype``: as safetensors, numpy or torch name it (``BF16``, ``bfloat16`` …); by default each tensor's own.
    - ``name``: of the adapter; by default the source's.
    - ``force``: replace an existing output.
    - ``allow_nonfinite``: write NaN and Inf.
    - ``text``, ``steps``, ``seed``: of ``fit:K`` alone: the file that it is fitted on, the most steps, the seed.
    """

    to: str = "injection"
    base: str | None = None
    layers: str | None = None
    redistribute: Redistribution = "none"
    rank: int | None = None
    prune: bool = False
    max_error: float | None = None
    vectors: Vectors | None = None
    dtype: str | None = None
    name: str | None = None
    force: bool = False
    allow_nonfinite: bool = False
    text: str | None = None
    steps: int | None = None
    seed: int | None = None

    @property
    def wants_fit(self) -> bool:
        """True where the plan is to be fitted."""
        return self.layers is not None and self.layers.partition(":")[0] == FITTED


def require_options(options: Options) -> None:
    """Raises :class:`UsageError` with every option that makes no sense."""
    problems: list[Problem] = []
    if options.rank is not None and options.rank < 1:
        problems.append(Problem("option", "rank", f"{options.rank}", "a whole number of at least 1"))
    problems += dtype_problems(options.dtype, FLOATS)
    if options.redistribute not in ("none", "nearest"):
        problems.append(Problem("option", "redistribute", f"{options.redistribute!r}", "none or nearest"))
    if options.name is not None and not _NAME.fullmatch(options.name):
        problems.append(Problem("option", "name", f"{options.name!r}", "letters, digits and . _ - + @, no path"))
    if options.max_error is not None and not 0 <= options.max_error <= 1:
        problems.append(Problem("option", "max_error", f"{options.max_error}", "a share from 0 to 1, such as 0.05"))
    if options.max_error is not None and options.rank is None:
        problems.append(Problem("option", "max_error", f"{options.max_error} without a rank", "--rank R beside it"))
    if options.vectors is not None and options.vectors not in get_args(Vectors):
        problems.append(Problem("option", "vectors", f"{options.vectors!r}", "include or omit"))
    problems += [*_policy_problems(options), *_fit_problems(options)]
    if problems:
        raise UsageError(problems)


def _policy_problems(options: Options) -> tuple[Problem, ...]:
    try:
        require_policy(options.layers, fitting=True)
    except UsageError as error:
        return error.problems
    return ()


def _fit_problems(options: Options) -> Iterator[Problem]:
    given = {name: getattr(options, name) for name in ("text", "steps", "seed") if getattr(options, name) is not None}
    if not options.wants_fit:
        for name, value in given.items():
            remedy = "It is for --layers fit:K; leave it out."
            yield Problem("option", name, f"{value!r} without a plan to be fitted", remedy=remedy)
        return
    if options.base is None or options.text is None:
        lacks = " and ".join(f"--{name}" for name in ("base", "text") if getattr(options, name) is None)
        remedy = "--base MODEL is the model to fit on, --text FILE a text of the kind that the adapter is for."
        yield Problem("option", f"layers {options.layers}", f"there is no {lacks}", remedy=remedy)
    for name, least in (("steps", 1), ("seed", 0)):
        value = given.get(name, least)
        if type(value) is not int or not least <= value < _MOST:
            yield Problem("option", name, f"{value!r}", f"a whole number of at least {least}")
