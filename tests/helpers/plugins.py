"""Installs plugins for tests as pip would: a module and a dist-info folder in a folder on the path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from textwrap import dedent

import pytest

from adaptrix.architecture.registry import builtin_folder
from adaptrix.plugins.catalog import Catalog
from adaptrix.plugins.plugin import Plugin

BUILT_IN = {file.stem for file in builtin_folder().glob("*.toml")}
#: the beginning of a plugin; the function that follows is a hook
HOOKED = """from adaptrix import hookimpl, Architecture
from adaptrix.records import Command, Format, Generator, Source
@hookimpl
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; what was imported from it is forgotten after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in sys.modules.keys() - before:
        if str(folder) in str(getattr(sys.modules[name], "__spec__", "")):
            del sys.modules[name]


def plugins_of(site: Path) -> dict[str, Plugin]:
    """Adaptrix and the plugins in a folder, by distribution."""
    return {plugin.distribution: plugin for plugin in Catalog(entry_points=entry_points(site)).plugins}


def families(catalog: Catalog) -> set[str]:
    """What a catalog has."""
    return {architecture.family for architecture in catalog.architectures}


def install(site: Path, distribution: str, source: str, *, module: str | None = None, value: str | None = None) -> str:
    """A distribution with one module of this source and an entry point to it; returns the module's name.

    ``module``: where it lies, dots for packages that have no ``__init__.py``; ``value``: what the entry
    point says where it is not just the module.
    """
    module = module or distribution.replace("-", "_")
    file = site / (module.replace(".", "/") + ".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dedent(source))
    info = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(
        f"[adaptrix]\n{distribution.removeprefix('adaptrix-')} = {value or module}\n"
    )
    return module


def entry_points(site: Path) -> tuple[EntryPoint, ...]:
    """The entry points of what is installed in a folder, and nowhere else."""
    return tuple(entry for found in distributions(path=[str(site)]) for entry in found.entry_points)


def family(name: str, *model_types: str) -> str:
    """The source of a plugin with one architecture."""
    return f"""
from adaptrix import Architecture, hookimpl

@hookimpl
def adaptrix_architectures():
    yield Architecture({name!r}, {model_types!r}, dict(), dict())
"""


def command(name: str, load: str) -> str:
    """The source of a plugin with one command; ``load`` is the body of its loader."""
    return f"""
import click
from adaptrix import hookimpl
from adaptrix.records import Command

@hookimpl
def adaptrix_commands():
    yield Command({name!r}, "Greet somebody.", load)

def load():
    {load}

@click.command()
@click.argument("name")
def greet(name):
    click.echo("hello " + name)
"""
