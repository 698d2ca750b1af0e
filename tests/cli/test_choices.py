"""The values that options offer: those that this installation takes, in help and in a shell, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from adaptrix.cli import app
from adaptrix.dtype_names import dtype_name, spelled
from adaptrix.planning.plan import POLICIES, make_plan
from adaptrix.tensor import FLOATS, MODEL_FLOATS
from tests.helpers import plugins
from tests.helpers.make import bound
from tests.helpers.plugins import install

site = plugins.site

FORMAT = """
from adaptrix import Format, hookimpl

def detect(bundle):
    return False

@hookimpl
def adaptrix_formats():
    yield Format("kohya", (("*.kohya",),), detect, detect{write})
"""


def offered(*args: str) -> list[str]:
    """What a shell offers for the last of the arguments."""
    *before, typed = args
    shell = ShellComplete(app, {}, "adaptrix", "_ADAPTRIX_COMPLETE")
    return [item.value for item in shell.get_completions(before, typed)]


def shown(command: str) -> str:
    """The help of a command."""
    context = click.Context(app)
    found = app.get_command(context, command)
    assert found is not None
    return found.get_help(click.Context(found, parent=context, info_name=command))


@pytest.mark.parametrize(("write", "more"), [("", []), (", detect, carries=frozenset()", ["kohya"])])
@pytest.mark.parametrize("command", ["convert", "combine", "resize", "extract"])
def test_formats_are_those_that_can_be_written(site: Path, command: str, write: str, more: list[str]) -> None:
    install(
        site, f"adaptrix-{command}{len(more)}", FORMAT.format(write=write)
    )  # a catalog is kept by its plugins' names
    assert sorted(offered(command, "--to", "")) == sorted(["injection", "mlx", "gguf", *more, "peft"])
    assert offered(command, "--to", "pe") == ["peft"]
    assert ("kohya" in shown(command)) is bool(more)


@pytest.mark.parametrize(("command", "more"), [("convert", {"fit:"}), ("merge", set()), ("fidelity", {"fit:", "own"})])
def test_policies_are_those_that_plans_are_made_of(command: str, more: set[str]) -> None:
    words = set(offered(command, "--layers", ""))
    assert words == {policy.removesuffix("K") for policy in POLICIES} | more
    assert offered(command, "--layers", "mid") == ["middle"]
    for word in words - more:
        assert make_plan(bound(4), f"{word}2" if word.endswith(":") else word).sites


@pytest.mark.parametrize(
    ("command", "dtypes"),
    [("convert", FLOATS), ("combine", FLOATS), ("merge", MODEL_FLOATS), ("fidelity", MODEL_FLOATS)],
)
def test_dtypes_are_those_that_are_understood(command: str, dtypes: tuple[str, ...]) -> None:
    assert [dtype_name(word) for word in offered(command, "--dtype", "")] == list(dtypes)
    assert offered(command, "--dtype", "bf") == ["bf16"]


def test_short_names_of_dtypes_are_distinct() -> None:
    assert len({spelled(dtype) for dtype in FLOATS}) == len(FLOATS)


def test_families_and_model_types_are_those_of_the_catalog() -> None:
    assert {"llama", "mistral", "gpt2"} <= set(offered("architectures", "show", ""))
    assert all(name.startswith("qw") for name in offered("architectures", "show", "qw"))


def test_a_shell_waits_for_no_torch() -> None:
    code = """
import sys
from click.shell_completion import ShellComplete
from adaptrix.cli import app
shell = ShellComplete(app, {}, "adaptrix", "_ADAPTRIX_COMPLETE")
for command in ("convert", "merge", "fidelity"):
    assert shell.get_completions([command, "--layers"], "")
    assert shell.get_completions([command, "--dtype"], "")
assert shell.get_completions(["convert", "--to"], "")
assert shell.get_completions(["architectures", "show"], "")
print(*sorted({"torch", "transformers", "peft"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", "\n")


@pytest.mark.parametrize(
    ("words", "offer"),
    [
        ("convert x --layers mid", "middle"),
        ("convert x --to inj", "injection"),
        ("merge x y --dtype bf", "bf16"),
        ("fidelity x --layers ener", "energy:"),
        ("combine x --method sv", "svd"),
        ("architectures show gpt_neo", "gpt_neox"),
        ("explain hub-acc", "hub-access"),
        ("conv", "convert"),
        ("convert --redis", "--redistribute"),
    ],
)
def test_a_shell_asks_the_program_itself(words: str, offer: str) -> None:
    """By click's protocol: the words typed so far are in the environment."""
    line = f"adaptrix {words}"
    asked = {"_ADAPTRIX_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "adaptrix"], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert f"plain,{offer}" in done.stdout.splitlines()
