"""The table of problem codes against the code that makes problems, the page made of it, and `adaptrix explain`."""

import ast
import re
import runpy
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from adaptrix import cli, problem_codes
from adaptrix.errors import RefusedError
from adaptrix.problem_codes import Explanation, known_codes, own_codes, read_table
from tests.helpers.json_documents import document
from tests.helpers.problem_codes import Use, codes_used

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(ROOT.glob("plugins/*/src"))
USED = codes_used([ROOT / "adaptrix", *PLUGINS])
PAGE = runpy.run_path(str(ROOT / ".ci" / "problems.py"))
TABLES = {ROOT / "adaptrix": own_codes(), **{table.parents[1]: read_table(table) for table in PAGE["tables"]()}}
EVERY = [(root, explanation) for root, table in TABLES.items() for explanation in table.values()]


def named(pair: tuple[Path, Explanation]) -> str:
    return pair[1].code


def test_no_code_is_computed():
    assert USED.computed == set()


def test_the_table_has_every_code_and_no_other():
    assert USED.under(ROOT / "adaptrix") == set(own_codes())


@pytest.mark.parametrize("source", PLUGINS, ids=lambda source: source.parent.name)
def test_a_plugin_explains_the_codes_that_are_not_adaptrix_own(source):
    assert USED.under(source) - set(own_codes()) == set(TABLES.get(source, {}))
    assert not set(TABLES.get(source, {})) & set(own_codes())


def test_codes_are_of_one_form_and_no_plugin_has_that_of_another():
    codes = [explanation.code for _, explanation in EVERY]
    assert len(codes) == len(set(codes))
    assert [code for code in codes if not re.fullmatch(r"[a-z]+(-[a-z]+)*", code)] == []


@pytest.mark.parametrize("each", EVERY, ids=named)
def test_every_field_is_a_sentence(each):
    _, explanation = each
    for text in (explanation.means, explanation.why, explanation.do):
        assert re.match(r"[A-Z0-9`]|session\.", text), text
        assert text.endswith((".", ")")), text


@pytest.mark.parametrize("each", EVERY, ids=named)
def test_the_example_is_in_the_words_of_the_code(each):
    root, explanation = each
    uses = [use for use in USED.uses if use.code == explanation.code and use.path.is_relative_to(root)]
    assert any(words in explanation.example for use in uses for words in words_near(use)), explanation.example


def words_near(use: Use) -> set[str]:
    """The pieces of messages in the module that uses a code, without what is filled in."""
    nodes = ast.walk(ast.parse(use.path.read_text("utf-8")))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    pieces = (piece.strip() for text in texts for piece in re.split(r"\{[^}]*\}", text))
    return {piece for piece in pieces if len(piece) >= 7 and piece != use.code}


def test_a_code_that_escapes_the_table_is_found(tmp_path):
    source = """
from functools import partial
from adaptrix.errors import Problem, refuse
ROWS = (("head", "in-a-row", "found"),)
def passed(code, where): raise refuse(code, where, "found")
def fault(): return "in-a-tuple", "found"
def main(broken, name):
    passed("passed-on", name)
    for head, code, found in ROWS:
        yield Problem(code, name, found)
    code, found = fault()
    yield Problem("yes" if broken else "no", name, found)
    yield Problem(code, name, found)
    yield Problem(f"computed-{name}", name, found)
    yield Problem(**broken)
    yield partial(Problem, "kept-back")(name, found)
"""
    (tmp_path / "sample.py").write_text(source)
    found = codes_used([tmp_path])
    assert {use.code for use in found.uses} == {"passed-on", "in-a-row", "in-a-tuple", "yes", "no"}
    assert len(found.computed) == 3


def test_the_page_is_that_of_the_tables():
    assert (ROOT / "docs" / "problems.md").read_text("utf-8") == PAGE["page"](), "run python .ci/problems.py"


def test_explains_a_code(capsys):
    assert cli.run(["explain", "lfs-pointer"]) == 0
    out = capsys.readouterr().out
    assert own_codes()["lfs-pointer"].means in out
    assert own_codes()["lfs-pointer"].example in out


def test_explains_as_json(capsys):
    assert cli.run(["explain", "shape", "--json"]) == 0
    assert document(capsys.readouterr().out, 0)["codes"] == [own_codes()["shape"].as_dict()]


def test_lists_them_all_with_those_of_plugins(capsys):
    assert cli.run(["explain", "--json"]) == 0
    assert [each["code"] for each in document(capsys.readouterr().out, 0)["codes"]] == list(known_codes())
    assert set(own_codes()) <= set(known_codes())


@pytest.mark.parametrize(
    "text",
    [
        "not TOML",
        "topic = 1",
        "[topic.code]",
        '[topic]\ntitle = "T"\n[topic.code]\nmeans = "M"',
        '[topic]\ntitle = "T"\nx = 1',
    ],
)
def test_a_malformed_table_is_refused_by_name(text, tmp_path):
    (tmp_path / "problems.toml").write_text(text)
    with pytest.raises(RefusedError, match=r"problems\.toml"):
        read_table(tmp_path / "problems.toml")


def test_a_plugin_adds_codes_and_changes_none(tmp_path, monkeypatch):
    entries = "".join(
        f'[mine.{code}]\nmeans = "M."\nwhy = "W."\ndo = "D."\nexample = "E"\n' for code in ("shape", "of-mine")
    )
    (tmp_path / "mine_package").mkdir()
    (tmp_path / "mine_package" / "problems.toml").write_text(f'[mine]\ntitle = "Mine"\n{entries}')
    (tmp_path / "mine_package" / "__init__.py").write_text("raise RuntimeError('this must not run')")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("mine", "mine_package", "adaptrix")
    monkeypatch.setattr(problem_codes, "entry_points", lambda: (entry,))
    known = known_codes()
    assert (known["of-mine"].topic, known["shape"]) == ("Mine", own_codes()["shape"])
    assert list(known) == [*own_codes(), "of-mine"]


@pytest.mark.parametrize("verbose", [[], ["-v"]])
def test_a_message_names_its_code_where_everything_is_said(verbose, tmp_path, capsys):
    cli.run(["check", str(tmp_path / "none"), *verbose])
    assert ("[file-missing]" in capsys.readouterr().err) == bool(verbose)


def test_an_unknown_code_names_the_nearest(capsys):
    assert cli.run(["explain", "config-mismatches"]) == 2
    assert "config-mismatch" in capsys.readouterr().err
