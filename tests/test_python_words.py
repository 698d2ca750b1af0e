"""Errors in Python name arguments, the command line its options."""

import inspect

import pytest

import adaptrix
from adaptrix.errors import Problem, refuse
from adaptrix.python_words import as_python


@pytest.mark.parametrize(
    ("said", "python"),
    [
        ("Choose --layers all to have it.", 'Choose layers="all" to have it.'),
        ("Name it with --base MODEL.", 'Name it with base="MODEL".'),
        ("pass --force to replace it", "pass force=True to replace it"),
        ("--rank 8 is enough; without --rank it is exact; --max-error allows more.",
         "rank=8 is enough; without rank=… it is exact; max_error=… allows more."),
        ("--allow-nonfinite accepts them.", "allow_nonfinite=True accepts them."),
        ("Choose a wider --dtype, such as F32.", "Choose a wider dtype=…, such as F32."),
        ("--dtype fp32 or fp64", 'dtype="fp32" or fp64'),
        ("As in --weights 0.7,0.3.", "As in weights=[0.7,0.3]."),
        ("--ignore '*.bias' leaves them out", "ignore=['*.bias'] leaves them out"),
        ("with --layers 8-23", 'with layers="8-23"'),
        ("Choose another place with -o.", "Choose another place with out=…."),
        ("`adaptrix convert SRC --layers fit:8` makes it", "`adaptrix convert SRC --layers fit:8` makes it"),
        ("llama-cli --lora FILE", "llama-cli --lora FILE"),
        ("a-o, --layers-of-it, x--base", "a-o, --layers-of-it, x--base"),
    ],
)  # fmt: skip
def test_options_are_arguments(said, python):
    assert as_python(said) == python


def test_a_problem_speaks_both():
    problem = Problem("shape", "x", "off", remedy="Name it with --base MODEL.")
    assert problem.in_words() == "x: off. Name it with --base MODEL."
    assert str(problem) == 'x: off. Name it with base="MODEL".'
    assert problem.as_dict()["remedy"] == "Name it with --base MODEL."
    assert str(refuse("shape", "x", "off", remedy=problem.remedy)) == str(problem)


@pytest.mark.parametrize("name", ["convert", "combine", "resize", "extract", "merge"])
def test_every_argument_of_a_public_function_is_known_by_its_option(name):
    own = {"uri", "adapter", "adapters", "finetuned", "out", "svd", "density"}  # positions, and what no message names
    for argument in inspect.signature(getattr(adaptrix, name)).parameters.keys() - own:
        assert as_python(f"--{argument.replace('_', '-')}").startswith(f"{argument}=")
