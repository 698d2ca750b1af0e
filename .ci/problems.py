"""Writes docs/problems.md: every problem code of Adaptrix and of its own plugins. `python .ci/problems.py`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from adaptrix.problem_codes import FILE, Explanation, own_codes, read_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "problems.md"
_HEAD = """# Problem codes

<!-- Made by `python .ci/problems.py` from adaptrix/problems.toml and those of the plugins: edit these. -->

Every problem that a command prints, a report holds or an exception carries has a `code`, which stays the same when
the words of a message change: scripts can act on it. `adaptrix check --json` and `AdaptrixError.problems` give it,
and `adaptrix explain CODE` prints what stands here. A problem is an error, a warning or a note: only errors stop the
work."""


def tables() -> list[Path]:
    """The tables of the plugins in this repository."""
    return sorted(ROOT.glob(f"plugins/*/src/*/{FILE}"))


def page() -> str:
    """The page, from the tables."""
    codes = [*own_codes().values(), *(code for table in tables() for code in read_table(table).values())]
    topics = [(topic, list(group)) for topic, group in groupby(codes, lambda code: code.topic)]
    index = [f"- {topic}: {', '.join(f'[`{code.code}`](#{code.code})' for code in group)}" for topic, group in topics]
    sections = [part for topic, group in topics for part in _section(topic, group)]
    return "\n\n".join([_HEAD, "\n".join(index), *sections]) + "\n"


def _section(topic: str, codes: list[Explanation]) -> Iterator[str]:
    yield f"## {topic}"
    for code in codes:
        yield f"### {code.code}"
        yield f"{code.means}"
        yield f"**Why.** {code.why}"
        yield f"**What to do.** {code.do}"
        yield f"```text\n{code.example}\n```"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), "utf-8")
