"""Public names: listed once in a stub, imported when they are first used, and found by their names of before."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import adaptrix
import adaptrix.extend
from adaptrix.exports import renamed_parameters

MODULES = ("adaptrix", "adaptrix.extend", "adaptrix_text_to_lora", "adaptrix_transformer2")


def run(code: str, *paths: Path) -> str:
    """What a fresh interpreter prints."""
    source = f"import sys; sys.path[:0] = {[str(path) for path in paths]}\n{code}"
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", MODULES)
def test_every_name_is_there_and_the_lists_are_one(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__) == dir(module)
    for each in module.__all__:
        assert getattr(module, each) is not None
    with pytest.raises(AttributeError, match="no attribute 'surely_not'"):
        module.surely_not  # noqa: B018  # the lookup is the test


@pytest.mark.parametrize("name", MODULES)
def test_importing_a_module_imports_nothing_heavy(name: str) -> None:
    heavy = ("torch", "transformers", "numpy", "click", "rich", "huggingface_hub")
    assert run(f"import {name}; print([each for each in {heavy!r} if each in sys.modules])") == "[]"


def test_a_name_is_imported_when_it_is_used() -> None:
    said = run("import adaptrix; a = 'adaptrix.adapter' in sys.modules; adaptrix.Adapter; print(a, adaptrix.Adapter)")
    assert said == "False <class 'adaptrix.adapter.Adapter'>"


def test_stubs_are_read_out_of_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("packed/__init__.py", "from adaptrix.exports import lazy_names\n"
                        "value = 3\n__getattr__, __dir__, __all__ = lazy_names(__name__)\n")  # fmt: skip
        packed.writestr("packed/__init__.pyi", '"""Names."""\nvalue: int\nfrom math import pi as pi  # 3.14\n')
    root = Path(adaptrix.__file__).parents[1]
    assert run("import packed; print(packed.__all__, packed.value, packed.pi > 3)", archive, root) == (
        "['pi', 'value'] 3 True"
    )


def test_an_extra_that_is_missing_is_named() -> None:
    code = (
        "sys.modules['torch'] = None\nimport adaptrix\ntry: adaptrix.attach\nexcept ImportError as error: print(error)"
    )
    assert run(code) == 'adaptrix.attach needs torch: pip install "adaptrix[torch]"'


@pytest.mark.parametrize(
    ("module", "before", "now"),
    [
        ("adaptrix", "Report", "CheckReport"),
        ("adaptrix_transformer2.train", "Course", "TrainingSettings"),
        ("adaptrix_transformer2.dispatch", "Found", "SearchResult"),
        ("adaptrix_text_to_lora.training", "Card", "CheckpointRecord"),
    ],
)
def test_a_name_of_before_still_works_and_says_what_it_is_called(module: str, before: str, now: str) -> None:
    home = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{before} is now called {now}") as caught:
        found = getattr(home, before)
    assert found is getattr(home, now)
    assert caught[0].filename == __file__
    assert before not in home.__all__


def test_a_parameter_of_before_still_works_and_says_what_it_is_called() -> None:
    @renamed_parameters(old="new")
    def double(new: int) -> int:
        """Twice a number."""
        return 2 * new

    assert (double(1), double(new=2), double.__doc__) == (2, 4, "Twice a number.")
    with pytest.warns(DeprecationWarning, match="parameter old of double is now called new") as caught:
        assert double(old=3) == 6  # type: ignore[call-arg]  # type checkers know the new name alone
    assert caught[0].filename == __file__
    with pytest.raises(TypeError), pytest.warns(DeprecationWarning, match="parameter old"):
        double(1, old=3)  # type: ignore[call-arg]  # likewise


def test_every_name_for_plugins_says_what_it_is() -> None:
    stub = Path(adaptrix.__file__).with_name("extend.pyi")
    lines = [line for line in stub.read_text("utf-8").splitlines() if line.startswith("from ")]
    assert len(lines) == len(adaptrix.extend.__all__)
    assert [line for line in lines if "  # " not in line] == []
    assert not set(adaptrix.extend.__all__) & set(adaptrix.__all__), "a name has one home"
