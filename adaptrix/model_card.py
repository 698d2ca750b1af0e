"""Model cards: the README.md of a PEFT folder, which goes along to the PEFT folder that is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from adaptrix.errors import Problem
from adaptrix.records import Bundle
from adaptrix.wording import amount

NAME = "README.md"
_CONFIG = "adapter_config.json"
_LARGEST = 1 << 20  # bytes; a longer text is no card


def carry(sources: Sequence[Bundle], work: Path) -> Iterator[Problem]:
    """Copies the card of the source, where there is only one, into the folder ``work``, byte for byte.

    A card of more than 1 MiB stays behind, and a warning says so.
    """
    card = _card(sources[0]) if len(sources) == 1 else None
    if card is None or not work.is_dir() or (work / NAME).exists():
        return
    size = card.stat().st_size
    if size > _LARGEST:
        found = f"it has {amount(size)} and does not go along"
        remedy = "Copy it yourself."
        yield Problem("file-ignored", str(card), found, "a card of at most 1 MiB", remedy, severity="warning")
        return
    with card.open("rb") as file:
        (work / NAME).write_bytes(file.read(_LARGEST))


def _card(bundle: Bundle) -> Path | None:
    """The card beside a PEFT config. A link out of the folder is none: it may lead to any file of this disk."""
    config = bundle.files.get(_CONFIG)
    if config is None:
        return None
    card, home = config.parent / NAME, config.parent.resolve()
    if not card.is_file():
        return None
    blobs = home.parent.parent / "blobs"  # where the Hub's client keeps the files of its snapshots
    return card if card.resolve().parent in (home, blobs) else None
