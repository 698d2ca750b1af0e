"""Words of Python for those of the command line (``--rank 8`` is ``rank=8``): messages are written once.

Functions of :mod:`adaptrix` and the options of the commands have the same names.
"""

from __future__ import annotations

import re

#: options without a value
_FLAGS = frozenset(["allow-nonfinite", "prune", "force", "verify", "drop-extras"])
#: options that are lists in Python
_LISTS = frozenset(["save", "ignore", "weights"])
#: the values that messages show: placeholders, numbers, quoted text, and the words of some options
_VALUE = (
    r"(?:[A-Z][A-Z_]*|\d+(?:[.,-]\d+)*%?|'[^']*'"
    r"|all|middle|fit:K|peft|injection|mlx|gguf|svd|cat|cls|nearest|bf16|fp16|fp32|fp64)(?![\w:])"
)
_OPTION = rf"--[a-z]+(?:-[a-z]+)*(?: {_VALUE})?"
_FUNCTIONS = "check|combine|convert|diff|extract|inspect|merge|resize"
_CALL = re.compile(rf"`?adaptrix ({_FUNCTIONS})((?: (?:[A-Z][A-Z_]*|{_OPTION}))+)`?")
_WORD = re.compile(rf"{_OPTION}|[A-Z][A-Z_]*")
_ALONE = re.compile(rf"(?<![\w-]){_OPTION}")


def in_python(text: str) -> str:
    """A message with its commands as calls and its options as arguments."""
    return _ALONE.sub(lambda found: _argument(found[0]), _CALL.sub(_call, text))


def _call(found: re.Match[str]) -> str:
    words = _WORD.findall(found[2])
    return f"adaptrix.{found[1]}({', '.join(_argument(word) for word in words)})"


def _argument(word: str) -> str:
    """``--layers all`` as ``layers="all"``; a word alone stays."""
    name, _, value = word.removeprefix("--").partition(" ")
    if not word.startswith("--"):
        return word
    argument = name.replace("-", "_")
    if not value:
        return f"{argument}=True" if name in _FLAGS else argument
    bare = value[0] in "'0123456789" or value.isupper()
    if name in _LISTS:
        return f"{argument}=[{value}]"
    return f"{argument}={value}" if bare else f'{argument}="{value}"'
