"""Packages that may be absent or broken, and what is said of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adaptrix.errors import UsageError
from adaptrix.optional import require


def test_what_is_installed_is_imported() -> None:
    assert require("json.decoder", "torch", "merge") is sys.modules["json.decoder"]


def test_what_is_absent_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError) as caught:
        require("bitsandbytes", "qlora", "merge")
    assert str(caught.value) == 'merge: bitsandbytes is not installed. Run: pip install "adaptrix[qlora]"'
    assert [problem.code for problem in caught.value.problems] == ["package-missing"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import a_package_that_nobody_wrote", "a_package_that_nobody_wrote is not installed"),
        ("raise ImportError('libcuda.so: cannot open')", "half_there cannot be imported: libcuda.so: cannot open"),
    ],
)
def test_a_package_that_lacks_something_is_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    (tmp_path / "half_there.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="merge: ") as caught:
        require("half_there", "torch", "merge")
    assert said in str(caught.value)
