"""The laws for plugins: kept by one that works, broken by each fault they are there to find."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adaptrix.testing import PluginLaws
from tests.helpers import plugins
from tests.helpers.plugins import family, install

site = plugins.site


def _broken(contributes: Mapping[str, Any]) -> set[str]:
    """The laws that the installed plugin breaks."""
    laws = type("Laws", (PluginLaws,), {"distribution": "adaptrix-mine", "contributes": contributes})()
    broken = set()
    for name in vars(PluginLaws):
        try:
            getattr(laws, name)() if name.startswith("test_") else None
        except AssertionError:
            broken.add(name)
    return broken


MINE = {"architectures": ["mine"]}
LOADS, CONTRIBUTES = "test_it_loads", "test_it_contributes_what_it_says"
CREDITED = "test_its_families_are_credited_to_it"
CASES: dict[str, tuple[str, Mapping[str, Any], set[str]]] = {
    "works": (family("mine", "m"), MINE, set()),
    "fails": ("1 / 0", MINE, {LOADS, CONTRIBUTES, CREDITED}),
    "more than it says": (family("mine", "m"), {}, {CONTRIBUTES}),
    "less than it says": (family("other", "m"), MINE, {CONTRIBUTES, CREDITED}),
    "takes what is another's": (family("mine", "llama"), MINE, {LOADS, CONTRIBUTES, CREDITED}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_laws_find_what_is_wrong(site: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, contributes, broken = CASES[case]
    install(site, "adaptrix-mine", source)
    monkeypatch.setenv("ADAPTRIX_PLUGINS", "")  # which is for users, not for tests of a plugin
    assert _broken(contributes) == broken


def test_a_plugin_that_is_not_installed_is_not_found() -> None:
    assert "test_it_is_found" in _broken(MINE)
