"""The options of a measurement, and what can be refused of them before torch is imported, which takes seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from adaptrix.dtype_names import dtype_problems
from adaptrix.errors import Problem, RefusedError, UsageError, errors_in
from adaptrix.measuring.policies import plans
from adaptrix.pipeline import Pipeline
from adaptrix.sources.near import meant
from adaptrix.tensor import MODEL_FLOATS


@dataclass(frozen=True, slots=True)
class FidelityOptions:
    """The options of a measurement; the command line's by the same names.

    - ``layers``: policies, by default a few of each.
    - ``window``: tokens; by default 512, or the positions of the base if these are fewer.
    - ``stride``: tokens; by default half a window.
    - ``seed``: draws the intervals.
    - ``dtype``, ``device``: of a base that is loaded, by default fp32 and the accelerator if there is one.
    """

    layers: tuple[str, ...] = ()
    window: int | None = None
    stride: int | None = None
    seed: int = 0
    dtype: str | None = None
    device: str | None = None


def require_options(options: FidelityOptions) -> None:
    """Raises :class:`UsageError` with every option that makes no sense, whatever the base and the text."""
    problems = dtype_problems(options.dtype, MODEL_FLOATS)
    if isinstance(options.seed, bool) or not isinstance(options.seed, int) or options.seed < 0:
        problems.append(Problem("option", "seed", repr(options.seed)[:60], "a whole number of at least 0"))
    if options.window is not None:
        stride = options.window // 2 if options.stride is None else options.stride
        problems += step_problems(options.window, stride)
    if problems:
        raise UsageError(problems)


def step_problems(length: int, stride: int) -> list[Problem]:
    """A problem unless 0 < stride < length, in tokens."""
    if length < 2:
        return [Problem("option", "window", f"{length} tokens", "at least 2")]
    if not 0 < stride < length:
        found = f"{stride} tokens with windows of {length}"
        remedy = "The first token of a window is not predicted in it."
        return [Problem("option", "stride", found, f"from 1 to {length - 1}", remedy)]
    return []


def require_measurable(pipeline: Pipeline, source: str, base: str, text: str, options: FidelityOptions) -> None:
    """Raises :class:`AdaptrixError` for options, a text and policies that make no sense for an adapter on a base.

    Reads the adapter and the base's config alone.
    """
    require_options(options)
    require_file(Path(os.path.expanduser(text)))
    if options.layers:
        bound = pipeline.bind(pipeline.read(source), base)
        if errors := errors_in(bound.problems):
            raise RefusedError(errors)
        plans(bound, options.layers)


def require_file(path: Path) -> None:
    """Raises :class:`UsageError` where there is no such file to read a text from."""
    if not path.is_file():
        found = "this is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(Problem("file-missing", str(path), found, "a text file", meant(str(path))))
