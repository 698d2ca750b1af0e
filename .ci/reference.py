"""Makes the pages of reference/ from the code: a hook of mkdocs, which calls these functions by their names.

``<!-- python-api -->`` stands for everything in ``adaptrix.__all__``, functions first, ``<!-- commands -->`` for every
command, those of installed plugins included. (mkdocs-click takes a command's name from its function.)
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

import adaptrix
from adaptrix.cli import app

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts generated text where a page asks for it."""
    for marker, generate in GENERATORS.items():
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(generate()))
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Takes Sphinx's roles off the names in docstrings, which are shown as code without them."""
    return _ROLE.sub("", html)


def python_api() -> Iterator[str]:
    """Markdown for every public name, by where it is defined."""
    values = {name: getattr(adaptrix, name) for name in adaptrix.__all__ if not name.startswith("__")}
    groups: dict[str, list[str]] = {"Functions": [], "Errors and warnings": [], "Types": []}
    for name, value in values.items():
        groups[_group(value)].append(name)
    for title, names in groups.items():
        yield f"## {title}\n"
        for name in names:
            yield _definition(name, values[name])


def _group(value: object) -> str:
    if inspect.isfunction(value):
        return "Functions"
    return "Errors and warnings" if inspect.isclass(value) and issubclass(value, Exception) else "Types"


def _definition(name: str, value: Any) -> str:
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"::: {value.__module__}.{value.__qualname__}\n    options:\n      heading: adaptrix.{name}\n"
    return f"### adaptrix.{name}\n\nAn instance of `{type(value).__module__}.{type(value).__qualname__}`.\n"


def commands() -> Iterator[str]:
    """Markdown for every command and its subcommands."""
    context = click.Context(app, info_name="adaptrix")
    for name in app.list_commands(context):
        yield from _command(app, name, context)


def _command(group: click.Group, name: str, parent: click.Context) -> Iterator[str]:
    command = group.get_command(parent, name)
    if command is None:
        raise ValueError(f"{parent.command_path} lists {name} and does not have it")
    context = click.Context(command, info_name=name, parent=parent)
    depth = context.command_path.count(" ") + 1
    yield f"{'#' * depth} {context.command_path}\n"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield from map(_paragraph, inspect.cleandoc(command.help or "").split("\n\n"))
    yield from _options(command, context)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            yield from _command(command, inner, context)


def _paragraph(text: str) -> str:
    """A paragraph of a help text; what click keeps line by line is kept here as well."""
    kept = text.removeprefix("\b\n")
    return f"{text}\n" if kept == text else f"```text\n{inspect.cleandoc(kept)}\n```\n"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    rows = list(filter(None, (option.get_help_record(context) for option in command.get_params(context))))
    if rows:
        yield "| option | |\n| --- | --- |"
        yield from (f"| `{option}` | {_cell(text)} |" for option, text in rows)
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


GENERATORS: Mapping[str, Callable[[], Iterator[str]]] = {
    "<!-- python-api -->": python_api,
    "<!-- commands -->": commands,
}
