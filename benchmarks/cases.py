"""What a named checkpoint is, and the tables that they are collected in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.draft import BASES, CONFIG, WEIGHTS, Draft, packed

Make = Callable[[Draft], Any]

_ON_BASE = ("--base", "{folder}/base")


@dataclass(frozen=True)
class Case:
    """One checkpoint. ``source`` and ``args`` are the words of the command line below a folder.

    ``family`` is that of the good adapter, ``base`` that of the model it is put on. ``peft``: whether peft
    can be asked about it at all; it reads no base config and no injection file. ``folder``: the adapter's own
    folder where ``source`` is one above, which peft does not look into.
    """

    name: str
    make: Make
    says: tuple[str, ...] = ()
    code: int = 1
    source: str = "adapter"
    args: tuple[str, ...] = _ON_BASE
    family: str = "llama"
    base: str = "llama"
    peft: bool = True
    folder: str = "adapter"

    def draft(self) -> Draft:
        """The checkpoint before it is written."""
        draft = Draft(self.family)
        draft.base = dict(BASES[self.base])
        self.make(draft)
        return draft

    def write(self, folder: Path) -> None:
        """Writes the adapter and the config.json of its base below ``folder``."""
        self.draft().write(folder)

    def command(self, folder: Path) -> list[str]:
        """The words after ``adaptrix convert``."""
        return [str(folder / self.source), *(word.replace("{folder}", str(folder)) for word in self.args)]


BAD: dict[str, Case] = {}
GOOD: dict[str, Case] = {}
UNTELLABLE: dict[str, Case] = {}


def add(table: dict[str, Case], case: Case) -> None:
    """Puts a case into a table; no two have one name."""
    assert case.name not in (BAD | GOOD | UNTELLABLE)
    table[case.name] = case


def bad(name: str, *says: str, **about: Any) -> Callable[[Make], Make]:
    """Registers what makes a good draft bad."""

    def register(make: Make) -> Make:
        add(BAD, Case(name, make, says, **about))
        return make

    return register


def good(name: str, **about: Any) -> Callable[[Make], Make]:
    """Registers another way in which an adapter may be good."""

    def register(make: Make) -> Make:
        add(GOOD, Case(name, make, **about))
        return make

    return register


def bad_config(name: str, *says: str, **keys: Any) -> None:
    """A case of other values in the adapter's config."""
    bad(name, CONFIG, *says)(lambda draft: draft.config.update(keys))


def bad_file(name: str, *says: str, data: Callable[[bytes], bytes], file: str = WEIGHTS) -> None:
    """A case of other bytes in place of the weights; ``data`` is given the good ones."""
    bad(name, file, *says)(lambda draft: draft.instead(file, data(packed(draft.tensors))))


def bad_base(name: str, *says: str, **keys: Any) -> None:
    """A case of other values in the base's config.json."""
    bad(name, *says, peft=False)(lambda draft: draft.base.update(keys))
