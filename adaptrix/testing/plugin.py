"""Laws that an installed plugin must keep: subclass :class:`PluginLaws` in your own tests.

class TestMyPlugin(PluginLaws):
    distribution = "adaptrix-mine"
    contributes = {"architectures": ["mine"]}
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from adaptrix.plugins import installed
from adaptrix.plugins.catalog import Catalog
from adaptrix.plugins.plugin import Plugin


class PluginLaws:
    """The laws as tests: the plugin is found, loaded and credited, among all else that is installed.

    ``distribution``: as in its pyproject.toml; ``contributes``: hook, less ``adaptrix_`` -> the names of
    all records that it yields, as ``adaptrix plugins --json`` has them.
    """

    distribution: ClassVar[str]
    contributes: ClassVar[Mapping[str, Collection[str]]]

    def test_it_is_found(self) -> None:
        assert self._plugins(), f"no entry point in the group {installed.GROUP!r} is of {self.distribution}"

    def test_it_loads(self) -> None:
        for plugin in self._plugins():
            assert plugin.state == "loaded", f"{plugin}: {plugin.error}\n{plugin.trace}"

    def test_it_contributes_what_it_says(self) -> None:
        found: dict[str, list[str]] = {}
        for plugin in self._plugins():
            for hook, names in plugin.as_dict()["contributes"].items():
                found.setdefault(hook, []).extend(names)
        assert {hook: sorted(found[hook]) for hook in found} == {
            hook: sorted(self.contributes[hook]) for hook in self.contributes
        }

    def test_its_families_are_credited_to_it(self) -> None:
        origins = {record.family: record.origin for record in self._catalog().architectures}
        for family in self.contributes.get("architectures", ()):
            assert origins.get(family) == self.distribution, f"{family} is of {origins.get(family, 'no plugin')}"

    def _catalog(self) -> Catalog:
        return Catalog(entry_points=installed.every_entry_point())  # whatever ADAPTRIX_PLUGINS says

    def _plugins(self) -> list[Plugin]:
        return [plugin for plugin in self._catalog().plugins if plugin.distribution == self.distribution]
