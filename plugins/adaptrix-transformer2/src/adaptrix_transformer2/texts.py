"""Examples in files, one JSON object a line with a ``prompt`` and a ``response``; and what rewards a text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adaptrix import Problem, RefusedError, UsageError
from adaptrix.extend import refuse
from adaptrix_transformer2.train.answers import Tokens
from adaptrix_transformer2.train.examples import Example
from adaptrix_transformer2.train.policy_gradient import Reward

_MAX_BYTES = 1 << 30
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def read_examples(path: Path, tokenizer: Any, *, chat: bool = False) -> list[Example]:
    """The examples of a file as tokens. Other keys than ``prompt`` and ``response`` are left alone.

    A prompt is tokenised as the tokenizer begins a text, or as a user's turn of its template where ``chat``; a
    response just as it stands: a blank before it is its own. Raises :class:`AdaptrixError` with every bad line.
    """
    if chat and not getattr(tokenizer, "chat_template", None):
        raise refuse("chat-template", "tokenizer", "it has no chat template", remedy="Leave chat out.")
    return [Example(_prompt(prompt, tokenizer, chat), _plain(response, tokenizer)) for prompt, response in _pairs(path)]


def _pairs(path: Path) -> list[tuple[str, str]]:
    pairs, problems = list[tuple[str, str]](), list[Problem]()
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        pair = _pair(line)
        if isinstance(pair, str):
            problems.append(
                Problem("examples", f"{path} line {number}", pair, 'such as {"prompt": "…", "response": "…"}')
            )
        else:
            pairs.append(pair)
    if problems:
        raise RefusedError(problems)
    return pairs


def _text(path: Path) -> str:
    """The text in a file. Raises :class:`AdaptrixError` where it cannot be read as text."""
    if not path.is_file():
        found = "this is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(Problem("examples", str(path), found, "a file of examples, one JSON object a line"))
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise refuse("examples", path, f"it has more than {_MAX_BYTES:,} bytes")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise refuse("file-unreadable", path, f"it cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise refuse("examples", path, f"it is not UTF-8, at byte {error.start}") from None


def _pair(line: str) -> tuple[str, str] | str:
    """Prompt and response of a line, or what is wrong with it."""
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()  # no tokenizer reads half a character
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"
    if not isinstance(value, dict):
        return f"it holds a {type(value).__name__}"
    odd = [key for key in ("prompt", "response") if not isinstance(value.get(key), str) or not value[key]]
    return f"its {' and '.join(odd)} is no text" if odd else (value["prompt"], value["response"])


def _prompt(text: str, tokenizer: Any, chat: bool) -> Tokens:
    if not chat:
        return tuple(tokenizer(text)["input_ids"])
    turn = [{"role": "user", "content": text}]
    return tuple(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"])


def _plain(text: str, tokenizer: Any) -> Tokens:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _exact(answer: str, wanted: str) -> bool:
    return answer.strip() == wanted.strip()


def _contains(answer: str, wanted: str) -> bool:
    return wanted.strip() in answer


def _number(answer: str, wanted: str) -> bool:
    """True where the last number in each is the same; thousands may be set apart by commas."""
    last = [[float(found.replace(",", "")) for found in _NUMBER.findall(text)][-1:] for text in (answer, wanted)]
    return bool(last[0]) and last[0] == last[1]


#: what makes an answer worth 1, by name: it is the response, it has the response in it, its last number is the
#: response's
REWARDS: Mapping[str, Callable[[str, str], bool]] = MappingProxyType(
    {"exact": _exact, "contains": _contains, "number": _number}
)


def reward_on_text(name: str, tokenizer: Any) -> Reward:
    """The reward of a name, 1 or 0, on the texts of an answer and of the example's response."""
    is_right = REWARDS[name]

    def reward(example: Example, answer: Tokens) -> float:
        texts = [tokenizer.decode(list(tokens), skip_special_tokens=True) for tokens in (answer, example.response)]
        return float(is_right(*texts))

    return reward
