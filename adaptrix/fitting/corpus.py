"""The text that a plan is fitted on, cut into stretches of tokens.

The stretches follow one another, so that no sentence is in two of them: most of the text to train on, a tenth to
decide when to stop, and a tenth that decides nothing, on which the result is measured. Both tenths are limited to a
few windows, so that most of a long text is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaptrix.errors import refuse
from adaptrix.measuring.text import Text, Window, windows

LONGEST, SHORTEST = 512, 16  # tokens of a window; as long as those that fidelity is measured on
_TENTHS = 10
_HELD_OUT = 4096  # tokens in each of the last two stretches, at most
_CHOOSING = 4  # windows that layers are chosen by


@dataclass(frozen=True, eq=False)
class Corpus:
    """Windows to train on ``[windows, length]``, and others to choose layers, to stop, and to measure by.

    ``digest`` is the SHA-256 of the text's bytes, ``tokens`` how many there are.
    """

    training: Tensor
    choosing: tuple[Window, ...]
    stopping: tuple[Window, ...]
    held_out: tuple[Window, ...]
    digest: str
    tokens: int


def corpus(text: Text, tokens: Tensor, positions: int | None) -> Corpus:
    """The windows of a text, as long as its ``tokens`` ``[n]`` and a model of so many ``positions`` allow.

    Raises :class:`RefusedError` for a text of which no such windows can be made.
    """
    length = min(LONGEST, positions or LONGEST, len(tokens) // _TENTHS)
    if length < SHORTEST:
        found = f"{len(tokens):,} tokens" + (f", for a model of {positions} positions" if positions else "")
        expected = f"at least {_TENTHS * SHORTEST} tokens, and a model that reads {SHORTEST} at a time"
        remedy = "Give more text, of the kind that the adapter is for."
        raise refuse("text-too-short", text.name, found, expected, remedy)
    held = min(len(tokens) // _TENTHS, _HELD_OUT)
    learned = tokens[: -2 * held]
    training = learned[: len(learned) // length * length].view(-1, length)
    spread = training[:: max(1, len(training) // _CHOOSING)][:_CHOOSING]
    return Corpus(
        training,
        tuple(Window(row, length - 1) for row in spread),
        windows(tokens[-2 * held : -held], length, length - 1),
        windows(tokens[-held:], length, length - 1),
        text.sha256,
        len(tokens),
    )
