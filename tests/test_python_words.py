"""Errors of functions recommend arguments of functions."""

import inspect
import re
from pathlib import Path

import pytest

import adaptrix
from adaptrix.errors import Problem, refuse
from adaptrix.python_words import in_python

SAID = {
    "Choose others with --layers, or all.": "Choose others with layers, or all.",
    "Merge with --layers all to have it.": 'Merge with layers="all" to have it.',
    "Name the base with --base MODEL.": "Name the base with base=MODEL.",
    "--allow-nonfinite accepts them.": "allow_nonfinite=True accepts them.",
    "--rank 8 is enough; without --rank it is exact; --max-error allows more.": (
        "rank=8 is enough; without rank it is exact; max_error allows more."
    ),
    "adaptrix convert SRC --base MODEL --layers fit:K --text FILE makes it": (
        'adaptrix.convert(SRC, base=MODEL, layers="fit:K", text=FILE) makes it'
    ),
    "`adaptrix convert SRC --to peft` makes a LoRA of it.": 'adaptrix.convert(SRC, to="peft") makes a LoRA of it.',
    "As in --weights 0.7,0.3.": "As in weights=[0.7,0.3].",
    "--ignore 'head*' leaves them out": "ignore=['head*'] leaves them out",
    "a half--whole thing - and no option": "a half--whole thing - and no option",
    "Merge with --dtype bf16 or fp32.": 'Merge with dtype="bf16" or fp32.',
}


@pytest.mark.parametrize("text", SAID)
def test_options_are_said_as_arguments(text):
    assert in_python(text) == SAID[text]


def test_what_was_found_is_left_alone():
    problem = Problem("option", "--x", "a file '--rank 3'", "--rank 3", "Leave out --rank.")
    assert str(problem) == "--x: a file '--rank 3'; expected rank=3. Leave out rank."
    assert problem.in_words() == "--x: a file '--rank 3'; expected --rank 3. Leave out --rank."
    assert problem.as_dict()["remedy"] == "Leave out --rank."
    assert str(refuse("option", "x", "off", remedy="Leave out --rank.")) == "x: off. Leave out rank."


def test_every_flag_of_a_message_is_an_argument_of_some_function():
    """An option that no function has would be advice that cannot be followed."""
    public = [value for name in adaptrix.__all__ if callable(value := getattr(adaptrix, name))]
    functions = [one for one in public if inspect.isfunction(one)]
    arguments = {name for one in functions for name in inspect.signature(one).parameters}
    assert {"allow_nonfinite", "prune", "force", "verify", "drop_extras", "layers", "base", "rank"} <= arguments


def test_errors_of_functions_name_no_options(tmp_path):
    demo = Path(__file__).parents[1] / "examples" / "tiny" / "adapters" / "pirate"
    for call in (
        lambda: adaptrix.convert(demo, tmp_path / "x.adaptrix.safetensors", layers="fit:2"),
        lambda: adaptrix.convert(demo, tmp_path / "y.adaptrix.safetensors", max_error=0.1),
    ):
        with pytest.raises(adaptrix.AdaptrixError) as raised:
            call()
        assert not re.search(r"--[a-z]", str(raised.value)), str(raised.value)
