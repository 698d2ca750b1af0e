"""The catalog with plugins that are really installed: distributions in a folder on the path."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from adaptrix import cli
from adaptrix.errors import RefusedError
from adaptrix.plugins.catalog import OWN_COMMANDS, Catalog
from tests.helpers import plugins
from tests.helpers.plugins import BUILT_IN, HOOKED, command, entry_points, families, family, install, plugins_of

site = plugins.site


def test_adaptrix_is_a_plugin_of_its_own() -> None:
    catalog = Catalog()
    assert families(catalog) == BUILT_IN
    assert {architecture.origin for architecture in catalog.architectures} == {"adaptrix"}
    assert [form.name for form in catalog.formats] == ["injection", "mlx", "gguf", "peft"]
    assert [source.name for source in catalog.sources] == ["local", "hub"]
    assert [(p.name, p.state) for p in catalog.plugins] == [("adaptrix", "loaded")]
    assert catalog.problems == ()


def test_a_plugin_is_credited(site: Path) -> None:
    install(site, "adaptrix-good", family("goodfamily", "good", "good2"))
    catalog = Catalog(entry_points=entry_points(site))
    assert catalog.plugins[1].as_dict() == {
        "name": "good",
        "distribution": "adaptrix-good",
        "version": "1.5",
        "state": "loaded",
        "error": "",
        "contributes": {"architectures": ["goodfamily"]},
    }
    origins = {architecture.family: architecture.origin for architecture in catalog.architectures}
    assert origins.pop("goodfamily") == "adaptrix-good"
    assert set(origins.values()) == {"adaptrix"}
    assert list(catalog.architectures) == sorted(catalog.architectures, key=lambda a: a.family)


def test_records_of_every_kind_are_collected(site: Path) -> None:
    source = """
        from adaptrix import hookimpl
        from adaptrix.records import Command, Format, Generator, Source

        @hookimpl
        def adaptrix_formats():
            return [Format("aform", [("*.x",)], any, any)]

        @hookimpl
        def adaptrix_sources():
            yield Source("asource", any, any, any)

        @hookimpl(specname="adaptrix_generators")
        def one():
            yield Generator("hyper", "Text in, adapter out.", any)

        @hookimpl(specname="adaptrix_generators")
        def another():
            yield Generator("t2l", "Also.", any)

        @hookimpl
        def adaptrix_commands():
            yield Command("dance", "Dance.", any)
    """
    install(site, "all-kinds", source)
    catalog = Catalog(entry_points=entry_points(site))
    assert [form.name for form in catalog.formats] == ["aform", "injection", "mlx", "gguf", "peft"]
    assert [found.name for found in catalog.sources] == ["local", "hub", "asource"]
    assert [generator.name for generator in catalog.generators] == ["hyper", "t2l"]
    assert [found.name for found in catalog.commands] == ["dance"]


def test_plugins_are_in_the_order_of_their_distributions(site: Path) -> None:
    for distribution in ("b-plugin", "adaptrix-z", "c-plugin", "adaptrix-a"):
        install(site, distribution, family(f"of_{distribution[-1]}"))
    assert list(plugins_of(site)) == ["adaptrix", "adaptrix-a", "adaptrix-z", "b-plugin", "c-plugin"]


def test_what_adaptrix_has_is_not_for_taking(site: Path) -> None:
    install(site, "a-thief", family("mine", "llama", "contested"))
    install(site, "bystander", family("its_own", "contested"))
    found = plugins_of(site)
    assert found["adaptrix"].state == "loaded"
    assert found["a-thief"].error == "model_type 'llama' is claimed by a-thief (a-thief) and adaptrix itself"
    assert found["bystander"].state == "loaded", "a plugin that has failed claims nothing any more"


def test_two_plugins_with_one_model_type_are_both_named(site: Path) -> None:
    install(site, "adaptrix-one", family("one", "contested"))
    install(site, "adaptrix-two", family("two", "contested"))
    install(site, "adaptrix-good", family("goodfamily", "good"))
    catalog = Catalog(entry_points=entry_points(site))
    assert families(catalog) == {*BUILT_IN, "goodfamily"}
    errors = [plugin.error for plugin in catalog.plugins if plugin.state == "failed"]
    assert errors == [
        "model_type 'contested' is claimed by one (adaptrix-one) and two (adaptrix-two)",
        "model_type 'contested' is claimed by two (adaptrix-two) and one (adaptrix-one)",
    ]


def test_a_plugin_does_not_claim_one_thing_twice(site: Path) -> None:
    install(site, "twice", family("twofold", "same", "same"))
    assert plugins_of(site)["twice"].error == "model_type 'same' is claimed by twice (twice) and itself"


@pytest.mark.parametrize("name", OWN_COMMANDS)
def test_adaptrix_commands_are_taken(site: Path, name: str) -> None:
    install(site, "a-thief", command(name, "return greet"))
    assert plugins_of(site)["a-thief"].error == f"command {name!r} is claimed by a-thief (a-thief) and adaptrix itself"


def test_the_command_line_has_the_commands_that_are_kept_for_it() -> None:
    assert set(cli._COMMANDS) == set(OWN_COMMANDS)


@pytest.mark.parametrize("allowed", ["good", "adaptrix-good", "Adaptrix_Good", " good ,"])
def test_only_what_is_allowed_loads(site: Path, allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "adaptrix-good", family("goodfamily", "good"))
    other = install(site, "adaptrix-other", family("otherfamily", "other"))
    monkeypatch.setenv("ADAPTRIX_PLUGINS", allowed)
    catalog = Catalog.from_environment()
    states = {plugin.distribution: plugin.state for plugin in catalog.plugins}
    assert (states["adaptrix-good"], states["adaptrix-other"]) == ("loaded", "blocked")
    assert families(catalog) == {*BUILT_IN, "goodfamily"}
    assert other not in sys.modules
    assert catalog.problems == ()


@pytest.mark.parametrize("allowed", ["", " , "])
def test_an_empty_list_allows_none(site: Path, allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install(site, "adaptrix-good", family("goodfamily", "good"))
    monkeypatch.setenv("ADAPTRIX_PLUGINS", allowed)
    catalog = Catalog.from_environment()
    assert {plugin.state for plugin in catalog.plugins[1:]} == {"blocked"}
    assert families(catalog) == BUILT_IN
    assert module not in sys.modules


def test_an_allowed_plugin_that_is_not_there_is_missed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "adaptrix-good", family("goodfamily", "good"))
    monkeypatch.setenv("ADAPTRIX_PLUGINS", "good,Gone_One,adaptrix")
    catalog = Catalog.from_environment()
    assert [(p.name, p.state) for p in catalog.plugins if p.state == "missing"] == [("Gone_One", "missing")]
    assert [problem.where for problem in catalog.problems] == ["plugin Gone_One"]


def test_strict_is_an_error_with_every_failure(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "bad-one", "raise RuntimeError('first')")
    install(site, "bad-two", "raise RuntimeError('second')")
    monkeypatch.setenv("ADAPTRIX_PLUGINS", "bad-one,bad-two")
    monkeypatch.setenv("ADAPTRIX_STRICT", "1")
    with pytest.raises(RefusedError, match="first") as caught:
        Catalog.from_environment()
    assert [(p.severity, "second" in p.found) for p in caught.value.problems] == [("error", False), ("error", True)]
    monkeypatch.setenv("ADAPTRIX_STRICT", "0")
    assert len(Catalog.from_environment().problems) == 2


def test_what_adaptrix_itself_gets_wrong_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("family = 3")
    monkeypatch.setattr("adaptrix.plugins.builtins.builtin_folder", lambda: tmp_path)
    with pytest.raises(RefusedError, match=r"broken\.toml"):
        Catalog()


def test_what_a_plugin_prints_is_not_our_output(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "print('on import')\n" + HOOKED + "def adaptrix_formats():\n    print('in a hook')\n    return ()"
    install(site, "talkative", source)
    assert plugins_of(site)["talkative"].state == "loaded"
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "on import\nin a hook\n")


LOADERS = {
    "raise ImportError('no torch')": "command greet failed to load: ImportError: no torch",
    "raise SystemExit(4)": "command greet failed to load: SystemExit: 4",
    "return print": "TypeError: it returned <built-in function print>, not a Command",
}


@pytest.mark.parametrize("body", LOADERS)
def test_a_command_that_does_not_load_is_its_plugin_s_fault(site: Path, body: str) -> None:
    install(site, "adaptrix-greet", command("greet", body))
    (found,) = Catalog(entry_points=entry_points(site)).commands
    with pytest.raises(RefusedError) as caught:
        found.load()
    (problem,) = caught.value.problems
    assert problem.where == "plugin greet (adaptrix-greet)"
    assert LOADERS[body] in problem.found
    assert problem.severity == "error"


def test_a_command_is_loaded_when_it_is_called_for(site: Path) -> None:
    install(site, "adaptrix-greet", command("greet", "return greet"))
    (found,) = Catalog(entry_points=entry_points(site)).commands
    assert (found.name, found.summary, found.load().name) == ("greet", "Greet somebody.", "greet")


def test_a_catalog_is_made_again_only_for_other_plugins(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTRIX_PLUGINS", "good")
    first = Catalog.from_environment()
    assert Catalog.from_environment() is first
    install(site, "adaptrix-good", family("goodfamily", "good"))
    assert families(Catalog.from_environment()) == {*BUILT_IN, "goodfamily"}


def test_a_distribution_without_metadata_stops_nothing(site: Path) -> None:
    install(site, "adaptrix-good", family("goodfamily", "good"))
    (site / "adaptrix_good-1.5.dist-info" / "METADATA").unlink()
    install(site, "adaptrix-other", family("otherfamily", "other"))
    assert {plugin.state for plugin in Catalog(entry_points=entry_points(site)).plugins} == {"loaded"}


def test_plugins_in_a_zip_archive_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "zipped", "adaptrix-packed", family("packedfamily", "packed"))
    monkeypatch.syspath_prepend(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "zipped"))
    monkeypatch.setenv("ADAPTRIX_PLUGINS", "packed")
    assert "packedfamily" in families(Catalog.from_environment())


def test_plugins_load_on_first_need(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install(site, "adaptrix-good", family("goodfamily", "good"))
    script = f"""if True:
        import sys, adaptrix, adaptrix.pipeline, adaptrix.cli
        assert {module!r} not in sys.modules and "importlib.metadata" not in sys.modules
        pipeline = adaptrix.pipeline.Pipeline()
        assert {module!r} not in sys.modules
        pipeline.catalog
        assert {module!r} in sys.modules
    """
    monkeypatch.setenv("PYTHONPATH", str(site))
    subprocess.run([sys.executable, "-c", script], check=True)


def test_dialects_that_an_architecture_brings_are_kept(monkeypatch):
    one, two = next(each for each in Catalog().architectures if each.dialects), "other-format"
    (name, dialect), *_ = one.dialects.items()
    brought = replace(one, dialects={two: replace(dialect, format=two)})
    records = {"adaptrix_architectures": (brought,), "adaptrix_dialects": (dialect,)}
    monkeypatch.setattr(Catalog, "_records", lambda _, hook: records[hook])
    assert set(Catalog().architectures[0].dialects) == {name, two}
