"""Training and evaluation data in JSONL files: an example a line, or an adapter a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptrix import Problem, RefusedError, UsageError
from adaptrix_text_to_lora.prompts import formatted, problem_of

_MAX_FILE = 1 << 30
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Texts:
    """A task: what describes it, and its examples as (prompt, response)."""

    name: str
    descriptions: tuple[str, ...]
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Described:
    """An adapter of a library, and what describes it."""

    adapter: str
    descriptions: tuple[str, ...]


def read_tasks(path: Path) -> list[Texts]:
    """Tasks of lines ``{"description": text or texts, "prompt": text, "response": text, "task": name}``.

    Lines of one ``task`` belong together, of one description where no task is named; a task has all descriptions of
    its lines. Raises :class:`AdaptrixError` with every line that is wrong.
    """
    lines = list(_lines(path))
    wanted = {"prompt": True, "response": True, "task": False}
    _require(path, [problem for number, line in lines for problem in _faults(path, number, line, wanted)], lines)
    tasks = dict[str, tuple[dict[str, None], list[tuple[str, str]]]]()
    for _, line in lines:
        found = _descriptions(line)
        descriptions, examples = tasks.setdefault(line.get("task", "\n".join(found)), ({}, []))
        descriptions.update(dict.fromkeys(found))
        examples.append((line["prompt"], line["response"]))
    return [Texts(name, tuple(texts), tuple(examples)) for name, (texts, examples) in tasks.items()]


def read_library(path: Path) -> list[Described]:
    """Adapters of lines ``{"adapter": path or name, "description": text or texts}``.

    Paths are taken from the file's folder. Raises :class:`AdaptrixError` with every line that is wrong.
    """
    lines = list(_lines(path))
    _require(path, [p for number, line in lines for p in _faults(path, number, line, {"adapter": True})], lines)
    return [Described(_uri(path.parent, line["adapter"]), tuple(_descriptions(line))) for _, line in lines]


def _uri(folder: Path, name: str) -> str:
    return str(folder / name) if (folder / name).exists() else name


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of lines that are not blank, by number. Raises :class:`AdaptrixError`."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_FILE:
            found = "it is too large" if path.is_file() else "there is no such file"
            raise UsageError(Problem("training-data", str(path), found, f"a JSONL file of at most {_MAX_FILE} bytes"))
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(Problem("training-data", str(path), f"it cannot be read: {error.strerror or error}")) from None
    except UnicodeDecodeError as error:
        raise RefusedError(
            Problem("training-data", str(path), f"it is not UTF-8: {error.reason}", "JSON by line")
        ) from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _value(line)


def _value(line: str) -> Any:
    """The value of a line; the error itself where it has none, which is reported with all others."""
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()  # no tokenizer reads half a character
        return value
    except (ValueError, RecursionError) as error:
        return error


def _faults(path: Path, number: int, line: Any, wanted: Mapping[str, bool]) -> Iterator[Problem]:
    """Problems of a line. ``wanted``: by key, true where it must be there, beside the descriptions."""
    where = f"{path}:{number}"
    if not isinstance(line, dict):
        found = f"it is no JSON: {line}" if isinstance(line, Exception) else f"it holds a {type(line).__name__}"
        yield Problem("training-data", where, found, "a JSON object")
        return
    for key, needed in wanted.items():
        if (needed or key in line) and not (isinstance(line.get(key), str) and line[key]):
            yield Problem("training-data", f"{where} {key}", repr(line.get(key))[:_SHOWN], "a text")
    if strange := sorted(set(map(str, line)) - {*wanted, "description"}):
        yield Problem(
            "training-data", where, f"it has {', '.join(strange)}"[:_SHOWN], f"description, {', '.join(wanted)}"
        )
    given = line.get("description")
    texts = given if isinstance(given, list) and given else [given]
    for text in texts:
        if (problem := problem_of(text)) is not None:
            yield Problem(problem.code, f"{where} {problem.where}", problem.found, problem.expected)


def _require(path: Path, problems: list[Problem], lines: list[tuple[int, Any]]) -> None:
    if not lines:
        problems.append(Problem("training-data", str(path), "there is no line in it", "a JSON object a line"))
    if problems:
        raise RefusedError(problems)


def _descriptions(line: Mapping[str, Any]) -> list[str]:
    given = line["description"]
    return [formatted(text) for text in (given if isinstance(given, list) else [given])]
