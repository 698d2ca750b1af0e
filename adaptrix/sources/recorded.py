"""Names of bases as checkpoints record them: whatever the trainer was given, on a machine that is not this one."""

from __future__ import annotations

import os
import re

from adaptrix.errors import AdaptrixError, Problem, UnreachableError, refuse

#: a repository, as transformers takes it: a name or owner/name
_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))\w[\w.-]{0,95}(?:/\w[\w.-]{0,95})?", re.ASCII)
#: a folder that trainers write
_CHECKPOINT = re.compile(r"(?:.*/)?(?:checkpoint|epoch|step)[-_]\d+")


def require_repository_or_path(base: str) -> None:
    """Raises :class:`RefusedError` for a recorded name that is neither a path of this disk nor a repository's.

    The Hub is asked for repositories alone: ``out/llama/final`` is a folder of the machine where the adapter was
    trained, and somebody else may own a repository ``out/llama``.
    """
    if os.path.lexists(os.path.expanduser(base)):
        return
    if not _REPOSITORY.fullmatch(base) or _CHECKPOINT.fullmatch(base):
        found = "this is a path on the machine where the adapter was trained, and nothing is there on this one"
        raise refuse("base-unusable", base, found)


def unusable(base: str, error: AdaptrixError) -> Problem:
    """A note that the base that an adapter names is done without, and why."""
    first = error.problems[0]
    why = first.found if first.where == base else f"{first.where}: {first.found}"
    kind = "cannot be reached" if isinstance(error, UnreachableError) else "cannot be used"
    return Problem(
        "base-unusable",
        base,
        f"the base {kind} ({why})",
        severity="note",
        remedy="Dims are inferred from the tensors; name another with --base MODEL.",
    )
