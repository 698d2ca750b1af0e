"""Runs the code blocks of a page of documentation, in order, in a folder that holds what a checkout has.

- a block with ``title="PATH"`` is a file: it is written before what follows runs
- a ``console`` block is commands and what they print; a line ``...`` and ``...`` in a line stand for anything
- a ``python`` block runs in the namespace of the page's other python blocks
- ``<!-- not run: REASON -->`` before a block says why it cannot be run, ``<!-- exit: N -->`` what its commands end with

With ``ADAPTRIX_WRITE_DOCS=1`` what the commands print takes the place of what the page shows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WRITE = os.environ.get("ADAPTRIX_WRITE_DOCS") == "1"
#: pages that scripts in .ci make; tests of their own compare them with what the scripts make now
GENERATED = ("docs/problems.md", "docs/json.md")
#: what a page may use of a checkout
CHECKOUT = ("examples/tiny", "tests/data/demo", "registry")

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not run|exit): (?P<said>.+?) -->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
_COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.M)


@dataclass(frozen=True)
class Block:
    """One fenced block: ``start`` is where its text begins in the page, ``reason`` why it is not run."""

    language: str
    text: str
    start: int
    title: str | None
    reason: str | None
    code: int

    @property
    def kind(self) -> str:
        """How it is run; empty where nothing runs it."""
        if self.reason:
            return "not run"
        return "file" if self.title else {"console": "console", "python": "python"}.get(self.language, "")


def pages() -> list[Path]:
    """Every page that is written by hand."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if page.relative_to(ROOT).as_posix() not in GENERATED]


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for found in _BLOCK.finditer(page):
        mark, said = found["mark"], found["said"]
        reason = said if mark == "not run" else None
        code = int(said) if mark == "exit" else 0
        yield Block(found["language"], found["text"], found.start("text"), found["title"], reason, code)


def checkout(folder: Path) -> Path:
    """A folder with what a page may use of a checkout."""
    for part in CHECKOUT:
        shutil.copytree(ROOT / part, folder / part)
    return folder


@dataclass
class Run:
    """One page being run in ``folder``; ``page`` is its text, with outputs as they were."""

    page: str
    folder: Path
    env: Mapping[str, str]
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__page__"})

    def block(self, block: Block) -> None:
        """Runs one block. Raises ``AssertionError`` where it does not do what the page shows."""
        if block.kind == "file":
            assert block.title is not None
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
        elif block.kind == "console":
            self._commands(block)
        elif block.kind == "python":
            line = self.page.count("\n", 0, block.start)
            exec(compile("\n" * line + block.text, "page", "exec", dont_inherit=True), self.names)

    def _commands(self, block: Block) -> None:
        found = _COMMAND.findall(block.text)
        assert found, f"a console block without a command: {block.text!r}"
        for command, shown in found:
            last = (command, shown) == found[-1]
            printed = self._printed(command, block.code if last else 0)
            if shown and not fits(printed, shown):
                assert "..." not in shown or not WRITE, f"change by hand what stands for anything in: {shown}"
                assert WRITE, f"$ {command}\n{printed}\nThe page shows:\n{shown}"
                self.page = self.page.replace(f"$ {command}\n{shown}", f"$ {command}\n{printed}")

    def _printed(self, command: str, code: int) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, f"$ {command}\n{done.stdout}\nended with {done.returncode}, not {code}"
        return re.sub(r"[ \t]+$", "", done.stdout, flags=re.M)


def fits(printed: str, shown: str) -> bool:
    """True where a page shows what was printed; its ``...`` stand for anything."""
    return re.fullmatch(re.escape(shown).replace(r"\.\.\.", ".*"), printed, re.S) is not None


def environment(folder: Path) -> dict[str, str]:
    """What commands see: this interpreter's scripts first, nothing from the network, a cache of their own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"HF_HUB_OFFLINE": "1", "ADAPTRIX_CACHE": str(folder / "cache"), "COLUMNS": "100", "PYTHONUTF8": "1"}
    return {**os.environ, **own, "PATH": path}
