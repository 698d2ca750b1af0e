"""``--json``: one envelope for all commands, the same in Python, and a page that says so."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from jsonschema import Draft202012Validator

import adaptrix
from adaptrix.cli import app
from adaptrix.schemas.json_schema import document_schema
from adaptrix.schemas.reports import REPORTS
from benchmarks.checkpoints import BAD
from benchmarks.draft import Draft
from tests.helpers.command_line import placed
from tests.helpers.json_documents import document, every_report

HEADER = ["version", "command", "ok", "problems"]


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    """In ``out/``, with a LoRA beside it at ``../adapter`` and its base."""
    Draft().write(tmp_path)
    return placed(tmp_path, capsys, monkeypatch)


def printed(place, *args):
    """The document of a command line, which the place has held to its schema."""
    return json.loads(place.run(*args, "--json")[1])


def with_json(command, context, words=()):
    """The words of every command that takes ``--json``."""
    if any("--json" in option.opts for option in command.params):
        yield " ".join(words)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from with_json(command.get_command(context, name), context, (*words, name))


def test_every_command_has_a_schema_and_no_other_has():
    with click.Context(app) as context:
        found = set(with_json(app, context))
    assert found >= REPORTS.keys()
    assert found <= every_report().keys()


@pytest.mark.parametrize(
    "args",
    [
        ["check", "../adapter"],
        ["check", "../adapter", "--base", "../base"],
        ["check", "../nowhere"],
        ["inspect", "../adapter"],
        ["inspect", "../nowhere"],
        ["convert", "../adapter"],
        ["convert", "../adapter", "../nowhere"],
        ["convert", "../adapter", "--layers", "most"],
        ["diff", "../adapter", "../adapter"],
        ["diff", "../adapter", "../nowhere"],
        ["combine", "../adapter", "../adapter"],
        ["resize", "../adapter", "--rank", "1"],
        ["resize", "../adapter"],
        ["architectures"],
        ["architectures", "show", "llama"],
        ["architectures", "show", "lama"],
        ["architectures", "shw"],
        ["plugins"],
        ["plugin"],
    ],
)
def test_the_envelope_comes_first_and_nothing_is_on_standard_error(args, place):
    _, out, err = place.run(*args, "--json")
    found = json.loads(out)
    assert (list(found)[:4], found["version"], err) == (HEADER, 1, "")
    assert found["command"] in (None, args[0], " ".join(args[:2]))


def test_a_check_says_what_it_was_held_to(place):
    found = printed(place, "check", "../adapter")
    assert (found["source"], found["ok"]) == ("../adapter", True)
    told = {"name": "adapter", "family": "llama", "deltas": 6, "kinds": ["lora"], "extras": 0}
    assert {**found["adapter"], **told} == found["adapter"]
    assert found["adapter"]["dims"] == "inferred"
    assert printed(place, "check", "../adapter", "--base", "../base")["adapter"]["dims"] == "stated"
    (place.folder / "base" / "config.json").write_text('{"model_type": "martian"}')
    found = printed(place, "check", "../adapter", "--base", "../base")
    assert (found["adapter"]["family"], found["adapter"]["dims"]) == (None, None)


def test_a_failing_check_says_what_was_read(place):
    BAD["a NaN"].write(place.folder / "bad")
    found = printed(place, "check", "../bad/adapter")
    assert (found["ok"], found["adapter"]["family"]) == (False, "llama")
    assert "nonfinite" in {problem["code"] for problem in found["problems"]}


def test_one_thing_has_one_shape(place):
    """The adapter and the plan of a file are told alike by the command that wrote it and by those that read it."""
    (written,) = printed(place, "convert", "../adapter", "--base", "../base", "--layers", "1")["results"]
    assert written["source"] == "../adapter"
    found = printed(place, "inspect", written["path"])
    assert (found["adapter"], found["plan"]) == (written["adapter"], written["plan"])
    assert found["plan"]["policy"] == "1"
    assert (found["plan"]["sites"], found["plan"]["of"]) == (3, 6)
    assert printed(place, "check", written["path"])["adapter"] == written["adapter"]
    assert (
        printed(place, "diff", written["path"], "../adapter")["adapters"][1]
        == (printed(place, "check", "../adapter")["adapter"])
    )


def test_python_has_the_same_objects(place):
    def same(report, *args):
        found = printed(place, *args)
        assert found.pop("version") == 1
        assert found.pop("command") == args[0]
        told = json.loads(json.dumps(report.as_dict(), allow_nan=False))
        assert {**told, "path": found.get("path")} == {**found, "path": found.get("path")}

    same(adaptrix.check("../adapter", "../base"), "check", "../adapter", "--base", "../base")
    same(adaptrix.inspect("../adapter", "../base"), "inspect", "../adapter", "--base", "../base")
    same(adaptrix.diff("../adapter", "../adapter"), "diff", "../adapter", "../adapter")
    same(adaptrix.resize("../adapter", 1, "a"), "resize", "../adapter", "--rank", "1", "-o", "b")
    pair = ["../adapter", "../adapter"]
    same(adaptrix.combine(pair, out="c", base="../base"), "combine", *pair, "-o", "d", "--base", "../base")


def test_what_is_not_finite_is_null_in_python_too(place):
    BAD["a NaN"].write(place.folder / "bad")
    found = printed(place, "inspect", "../bad/adapter")
    assert None in [role["energy"] for role in found["roles"]]
    assert None in [norm for row in found["norms"].values() for norm in row.values()]
    json.dumps(adaptrix.inspect("../bad/adapter").as_dict(), allow_nan=False)


NAMES = ["C1 \x9b", "DEL \x7f", "escape \x1b]0;title\x07", "bidi \u202e", "ΔW", "😀"]


@pytest.mark.parametrize("name", NAMES)
def test_what_strangers_wrote_comes_back_whole_and_steers_no_terminal(name, place):
    draft = Draft()
    draft.config["note"] = name
    draft.write(place.folder / "odd")
    assert printed(place, "inspect", "../odd/adapter")["provenance"]["config"]["note"] == name


@pytest.mark.parametrize("name", [*NAMES, "no UTF-8 \udcff"])
def test_so_do_names_of_files(name, place):
    (place.folder / "adapter").rename(place.folder / name)
    found = printed(place, "check", f"../{name}")
    assert found["problems"] or found["source"] == f"../{name}"


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")


@FULL
@pytest.mark.parametrize(
    "args",
    [
        ["check", "../adapter", "--json"],
        ["check", "../nowhere", "--json"],
        ["convert", "--json"],
        ["plugins", "--json"],
        ["check", "../adapter"],
    ],
)
def test_a_full_disk_is_told_in_a_line(args, place):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "adaptrix", *args]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


def test_a_schema_refuses_what_is_not_so(place):
    """The judge of all the other documents can fail."""
    found = printed(place, "check", "../adapter")
    judge = Draft202012Validator(document_schema("check", REPORTS["check"]))
    assert judge.is_valid(found)
    for spoil in (
        lambda it: it.pop("adapter"),
        lambda it: it.update(more=1),
        lambda it: it.update(version=2),
        lambda it: it.update(command="inspect"),
        lambda it: it["adapter"].update(deltas="6"),
        lambda it: it["adapter"].update(dims="guessed"),
        lambda it: it["problems"].append({"code": "x"}),
    ):
        other = copy.deepcopy(found)
        spoil(other)
        assert not judge.is_valid(other)
    with pytest.raises(AssertionError):
        document(json.dumps(found), 1)


def test_the_page_is_that_of_the_schemas():
    script = Path(__file__).parents[2] / ".ci" / "json_page.py"
    spec = importlib.util.spec_from_file_location("json_page", script)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run python .ci/json_page.py"


def test_every_field_has_a_meaning():
    for command, report in every_report().items():
        schema = document_schema(command, report)
        parts = [schema["anyOf"][0], *schema["$defs"].values()]
        for part in parts:
            bare = [name for name, field in part["properties"].items() if not field.keys() & {"description", "const"}]
            assert not bare, (command, bare)


def test_reports_are_short_to_look_at(place):
    (place.folder / "base" / "config.json").write_text(
        json.dumps({**json.loads((place.folder / "base" / "config.json").read_text()), "hidden_size": 16})
    )
    for report in (adaptrix.check("../adapter", "../base"), adaptrix.inspect("../adapter")):
        assert len(repr(report)) < 200
        assert "../adapter" in repr(report)


def test_the_name_of_the_version_before_still_works(place):
    report = adaptrix.check("../adapter")
    with pytest.warns(DeprecationWarning, match="source"):
        assert report.subject == report.source == "../adapter"
