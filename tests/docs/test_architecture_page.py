"""docs/architecture.md is true: what it names exists, and its floors are those that import-linter checks."""

import importlib
import re
import tomllib

import pytest

from tests.docs.pages import ROOT, WRITE

PATH = ROOT / "docs" / "architecture.md"
PAGE = PATH.read_text("utf-8")
CODE = re.findall(r"`([^`\n]+)`", PAGE)
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]
_PATH = re.compile(r"(?:adaptrix|plugins|registry|tests|docs|examples|benchmarks|\.ci)/[\w./*-]*")


def paths(words):
    return [word for word in words if _PATH.fullmatch(word)]


def test_every_path_exists():
    named = paths(CODE)
    assert len(named) > 80
    missing = [path for path in named if not list(ROOT.glob(path.rstrip("/")))]
    assert not missing


def test_every_module_can_be_imported():
    named = [word for word in CODE if re.fullmatch(r"adaptrix(\.[a-z_]+)+", word)]
    assert named
    for name in named:
        importlib.import_module(name)


def test_every_name_is_in_a_file_of_its_row():
    """A function, class or table that a row names beside files is in one of these."""
    checked = 0
    for row in ROWS:
        words = re.findall(r"`([^`\n]+)`", row)
        files = [found for path in paths(words) for found in ROOT.glob(path.rstrip("/"))]
        sources = "".join(
            file.read_text("utf-8")
            for root in files
            for file in (root.glob("*.py") if root.is_dir() else [root])
            if file.suffix == ".py"
        )
        for word in words:
            if (
                re.fullmatch(r"_?[A-Za-z]\w+(\.\w+)?", word)
                and word not in PROSE
                and not word.endswith(".py")
                and sources
            ):
                name = word.rpartition(".")[2]
                assert re.search(rf"\b(def|class) {name}\b|^{name}\b.*=|\b{name} as {name}\b", sources, re.M), (
                    word,
                    row,
                )
                checked += 1
    assert checked > 30


#: words in code type that are options or of other files
PROSE = {"write", "detect", "combine", "convert", "merge", "fidelity", "swap", "pyproject", "command"}


def test_files_that_stand_beside_a_folder_are_in_it():
    for row in ROWS:
        words = re.findall(r"`([^`\n]+)`", row)
        folders = [path for path in paths(words) if path.endswith("/")]
        for word in words:
            if folders and re.fullmatch(r"\w+\.py", word):
                assert any((ROOT / folder / word).exists() for folder in folders), (word, row)


def test_there_is_a_way_for_many_changes():
    section = PAGE[PAGE.index("## To change X") : PAGE.index("## When something")]
    assert len(re.findall(r"^\| (?!---|to change)", section, re.M)) >= 12


def floors():
    """The contract of ``adaptrix`` as a list, the highest floor first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    whole = next(contract for contract in contracts if contract["containers"] == ["adaptrix"])
    return [", ".join(f"`{name}`" for name in re.findall(r"\w+", floor)) for floor in whole["layers"]]


def test_floors_are_those_of_the_contract():
    before, rest = PAGE.split("<!-- floors -->\n", 1)
    shown, after = rest.split("<!-- end of floors -->", 1)
    listed = "\n" + "".join(f"{number}. {floor}\n" for number, floor in enumerate(floors(), 1)) + "\n"
    if WRITE:
        PATH.write_text(f"{before}<!-- floors -->\n{listed}<!-- end of floors -->{after}", "utf-8")
    else:
        assert shown == listed


def test_every_folder_is_described():
    named = set(re.findall(r"^\| `adaptrix/(\w+)/` \|", PAGE, re.M))
    assert named == {path.parent.name for path in (ROOT / "adaptrix").glob("*/__init__.py")}


@pytest.mark.parametrize("kind", ["lora", "dora", "spectral"])
def test_kinds_have_the_rows_that_the_page_names(kind):
    for module in ("adaptrix.delta.kinds", "adaptrix.formats.injection_kinds", "adaptrix.merging.drafting"):
        assert kind in importlib.import_module(module).KINDS
