"""The options of the command line as arguments of the public functions: ``--layers all`` is ``layers="all"``.

Problems are worded for the command line. A Python exception or warning says the same as a call would have it. What
stands between backticks is a command, and stays one.
"""

from __future__ import annotations

import re

_FLAGS = ("allow-nonfinite", "force", "prune", "verify", "drop-extras", "each", "chat")
_LISTS = ("save", "ignore", "weights")  # they take a list in Python
_WITH_VALUE = (
    *("base", "checkpoint", "dtype", "encoder", "energy", "layers", "max-error", "method", "name", "out", "pooling"),
    *("prompts", "qlora-base", "rank", "redistribute", "seed", "steps", "text", "to", "vectors", "window", "stride"),
    *_LISTS,
)
_VALUE = (
    r"[A-Z]+\b|'[^']*'|\d[\w.,:+-]*\w|\d|[a-z]+:\w+"
    r"|(?:all|middle|own|peft|injection|svd|cat|nearest|cls|fp\d+|bf16)\b"
)
_OPTION = re.compile(
    rf"(?<![\w-])(?:--(?P<flag>{'|'.join(_FLAGS)})(?![\w-])"
    rf"|(?:--(?P<name>{'|'.join(_WITH_VALUE)})|(?P<out>-o))(?![\w-])(?:[ =](?P<value>{_VALUE}))?)"
)


def as_python(text: str) -> str:
    """A text with every option of the command line as an argument."""
    pieces = text.split("`")  # every second one is between backticks
    return "`".join(piece if i % 2 else _OPTION.sub(_argument, piece) for i, piece in enumerate(pieces))


def _argument(match: re.Match[str]) -> str:
    if match["flag"]:
        return f"{match['flag'].replace('-', '_')}=True"
    name = (match["name"] or "out").replace("-", "_")
    return f"{name}={_value(name, match['value'])}"


def _value(name: str, value: str | None) -> str:
    """A value as Python spells it; a placeholder such as R, and a number, as they are."""
    if value is None:
        return "…"
    if name in _LISTS:
        return f"[{value}]"
    return value if re.fullmatch(r"[\d.]+|[A-Z]|'.*'", value) and name != "layers" else f'"{value}"'
