"""The catalog with plugins that are really installed: distributions in a folder on the path."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptrix import cli
from adaptrix.catalog import OWN_COMMANDS, Catalog
from adaptrix.errors import RefusedError
from adaptrix.plugin import Plugin
from adaptrix.registry import builtin_folder
from tests.plugin_helpers import command, entry_points, family, install


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; what was imported from it is forgotten after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in sys.modules.keys() - before:
        if str(folder) in str(getattr(sys.modules[name], "__spec__", "")):
            del sys.modules[name]


def _plugins(site: Path) -> dict[str, Plugin]:
    return {plugin.distribution: plugin for plugin in Catalog(entry_points=entry_points(site)).plugins}


def _families(catalog: Catalog) -> set[str]:
    return {architecture.family for architecture in catalog.architectures}


BUILT_IN = {file.stem for file in builtin_folder().glob("*.toml")}


def test_adaptrix_is_a_plugin_of_its_own() -> None:
    catalog = Catalog()
    assert _families(catalog) == BUILT_IN
    assert {architecture.origin for architecture in catalog.architectures} == {"adaptrix"}
    assert [form.name for form in catalog.formats] == ["injection", "peft"]
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
    assert [form.name for form in catalog.formats] == ["aform", "injection", "peft"]
    assert [found.name for found in catalog.sources] == ["local", "hub", "asource"]
    assert [generator.name for generator in catalog.generators] == ["hyper", "t2l"]
    assert [found.name for found in catalog.commands] == ["dance"]


def test_plugins_are_in_the_order_of_their_distributions(site: Path) -> None:
    for distribution in ("b-plugin", "adaptrix-z", "c-plugin", "adaptrix-a"):
        install(site, distribution, family(f"of_{distribution[-1]}"))
    assert list(_plugins(site)) == ["adaptrix", "adaptrix-a", "adaptrix-z", "b-plugin", "c-plugin"]


IMPORTS = {
    "raises": ("raise RuntimeError('boom')", None, "import failed: RuntimeError: boom"),
    "missing module": ("import surely_not_there", None, "No module named 'surely_not_there'"),
    "syntax": ("def (", None, "import failed: SyntaxError"),
    "exits": ("raise SystemExit(0)", None, "import failed: SystemExit: 0"),
    "arguments": ("import argparse; argparse.ArgumentParser().parse_args(['--no'])", None, "SystemExit: 2"),
    "no such name": ("", "bad_plugin:nothing", "AttributeError"),
    "no such module": ("", "nowhere.at.all", "No module named 'nowhere'"),
    "malformed": ("", "bad plugin!", "import failed"),
}


@pytest.mark.parametrize("kind", IMPORTS)
def test_a_failing_import_is_told_and_the_rest_works(site: Path, kind: str) -> None:
    source, value, said = IMPORTS[kind]
    module = install(site, "bad-plugin", source, value=value)
    install(site, "adaptrix-good", family("goodfamily", "good"))
    catalog = Catalog(entry_points=entry_points(site))
    failed = next(plugin for plugin in catalog.plugins if plugin.distribution == "bad-plugin")
    assert failed.state == "failed"
    assert said in failed.error
    assert "Traceback" in failed.trace
    assert _families(catalog) == {*BUILT_IN, "goodfamily"}
    assert [(p.severity, p.where) for p in catalog.problems] == [("warning", "plugin bad-plugin (bad-plugin)")]
    assert module not in sys.modules


def test_an_interrupt_is_not_swallowed(site: Path) -> None:
    install(site, "slow-plugin", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Catalog(entry_points=entry_points(site))


def test_a_failed_import_takes_along_its_own_modules_alone(site: Path) -> None:
    (site / "a_dependency.py").write_text("")
    (site / "bad_package").mkdir()
    (site / "bad_package" / "__init__.py").write_text("")
    (site / "bad_package" / "part.py").write_text("import a_dependency")
    source = "import bad_package.part, bad_package_besides\nraise RuntimeError"
    (site / "bad_package_besides.py").write_text("")
    install(site, "bad-package", source, module="bad_package.plugin")
    assert _plugins(site)["bad-package"].state == "failed"
    assert {"a_dependency", "bad_package_besides"} <= sys.modules.keys()
    assert not {"bad_package", "bad_package.part", "bad_package.plugin"} & sys.modules.keys()


def test_a_namespace_is_nobody_s_own(site: Path) -> None:
    (site / "shared_space").mkdir()
    (site / "shared_space" / "tools.py").write_text("")
    source = "import shared_space.tools\nraise RuntimeError"
    install(site, "in-a-namespace", source, module="shared_space.plugin")
    assert _plugins(site)["in-a-namespace"].state == "failed"
    assert {"shared_space", "shared_space.tools"} <= sys.modules.keys()
    assert "shared_space.plugin" not in sys.modules


HOOKED = """from adaptrix import hookimpl, Architecture
from adaptrix.records import Command, Format, Generator, Source
@hookimpl
"""
HOOKS = {
    "misspelt": ("def adaptrix_architecture(): yield", "unknown hook 'adaptrix_architecture'"),
    "another type": ("def adaptrix_formats(): yield 'peft'", "adaptrix_formats: TypeError: it yielded 'peft'"),
    "another hook's": (
        "def adaptrix_sources(): yield Format('x', (), any, any)",
        "adaptrix_sources: TypeError: it yielded Format(",
    ),
    "none": ("def adaptrix_formats(): pass", "adaptrix_formats: TypeError: it returned None"),
    "not iterable": ("def adaptrix_formats(): return Format('x', (), any, any)", "adaptrix_formats: TypeError"),
    "midway": (
        "def adaptrix_formats():\n    yield Format('x', (), any, any)\n    raise ValueError('half')",
        "adaptrix_formats: ValueError: half",
    ),
    "exits": ("def adaptrix_formats(): raise SystemExit", "adaptrix_formats: SystemExit"),
    "stops": ("def adaptrix_formats(): raise StopIteration", "adaptrix_formats: StopIteration"),
    "unasked argument": ("def adaptrix_formats(config): yield", "{'config'} are declared"),
    "bad name": ("def adaptrix_formats(): yield Format('A b', (), any, any)", "a Format is called 'A b'"),
    "no name": ("def adaptrix_formats(): yield Format(None, (), any, any)", "a Format is called None"),
    "bad family": (
        "def adaptrix_architectures(): yield Architecture('../x', (), {}, {})",
        "Architecture is called '../x'",
    ),
    "one name for many": (
        "def adaptrix_formats(): yield Format('x', ('*.foo',), any, any)",
        "the patterns of x are ('*.foo',), not tuples of names",
    ),
    "no names": ("def adaptrix_formats(): yield Format('x', (), any, any)", "the patterns of x are ()"),
    "an empty choice": ("def adaptrix_formats(): yield Format('x', ((),), any, any)", "the patterns of x are ((),)"),
    "no function": ("def adaptrix_formats(): yield Format('x', (('a',),), True, any)", "the detect of x is True"),
    "no writer": ("def adaptrix_formats(): yield Format('x', (('a',),), any, any, 'w')", "the write of x is 'w'"),
    "no suffix": ("def adaptrix_formats(): yield Format('x', (('a',),), any, any, any, None)", "the suffix of x is"),
    "no fetch": ("def adaptrix_sources(): yield Source('x', any, None, any)", "the fetch of x is None"),
    "no claims": ("def adaptrix_sources(): yield Source('x', 'x:', any, any)", "the claims of x is 'x:'"),
    "no generator": (
        "def adaptrix_sources(): return ()\n@hookimpl(specname='adaptrix_generators')\n"
        "def one(): yield Generator('x', 'X.', 'x')",
        "the generate of x is 'x'",
    ),
    "no loader": ("def adaptrix_commands(): yield Command('x', 'X.', 'x')", "the load of x is 'x'"),
    "no summary": ("def adaptrix_commands(): yield Command('x', None, any)", "the summary of x is None"),
    "no roles": (
        "def adaptrix_architectures(): yield Architecture('x', ('y',), {}, {'q': 'path'})",
        "the roles of x are {'q': 'path'}, not a mapping of roles",
    ),
    "one model type": (
        "def adaptrix_architectures(): yield Architecture('x', 'llama', {}, {})",
        "the model_types of x are 'llama'",
    ),
}


TERMINATIONS = {
    "import": "raise Terminated",
    "hook": "from adaptrix import hookimpl\n@hookimpl\ndef adaptrix_formats(): raise Terminated",
    "command": command("greet", "raise Terminated"),
}


@pytest.mark.parametrize("kind", TERMINATIONS)
def test_a_request_to_end_is_not_swallowed(site: Path, kind: str) -> None:
    """As the command line's handler of SIGTERM raises it, whatever runs."""
    install(site, "slow-plugin", f"class Terminated(BaseException): pass\n{TERMINATIONS[kind]}")
    with pytest.raises(BaseException, match=r"^$") as caught:
        [found.load() for found in Catalog(entry_points=entry_points(site)).commands]
    assert type(caught.value).__name__ == "Terminated"


@pytest.mark.parametrize("kind", HOOKS)
def test_a_failing_hook_fails_its_plugin_whole(site: Path, kind: str) -> None:
    body, said = HOOKS[kind]
    install(site, "bad-hooks", f"{HOOKED}{body}\n@hookimpl\ndef adaptrix_generators(): return ()")
    install(site, "adaptrix-good", family("goodfamily", "good"))
    catalog = Catalog(entry_points=entry_points(site))
    failed = next(plugin for plugin in catalog.plugins if plugin.distribution == "bad-hooks")
    assert failed.state == "failed"
    assert said in failed.error
    assert failed.records == {}
    assert [form.name for form in catalog.formats] == ["injection", "peft"]
    assert _families(catalog) == {*BUILT_IN, "goodfamily"}


def test_a_forgotten_marker_is_told(site: Path) -> None:
    install(site, "unmarked", "def adaptrix_formats(): yield")
    assert _plugins(site)["unmarked"].error == "it implements no hook: mark its functions with adaptrix.hookimpl"


def test_what_adaptrix_has_is_not_for_taking(site: Path) -> None:
    install(site, "a-thief", family("mine", "llama", "contested"))
    install(site, "bystander", family("its_own", "contested"))
    found = _plugins(site)
    assert found["adaptrix"].state == "loaded"
    assert found["a-thief"].error == "model_type 'llama' is claimed by a-thief (a-thief) and adaptrix itself"
    assert found["bystander"].state == "loaded", "a plugin that has failed claims nothing any more"


def test_two_plugins_with_one_model_type_are_both_named(site: Path) -> None:
    install(site, "adaptrix-one", family("one", "contested"))
    install(site, "adaptrix-two", family("two", "contested"))
    install(site, "adaptrix-good", family("goodfamily", "good"))
    catalog = Catalog(entry_points=entry_points(site))
    assert _families(catalog) == {*BUILT_IN, "goodfamily"}
    errors = [plugin.error for plugin in catalog.plugins if plugin.state == "failed"]
    assert errors == [
        "model_type 'contested' is claimed by one (adaptrix-one) and two (adaptrix-two)",
        "model_type 'contested' is claimed by two (adaptrix-two) and one (adaptrix-one)",
    ]


def test_a_plugin_does_not_claim_one_thing_twice(site: Path) -> None:
    install(site, "twice", family("twofold", "same", "same"))
    assert _plugins(site)["twice"].error == "model_type 'same' is claimed by twice (twice) and itself"


@pytest.mark.parametrize("name", OWN_COMMANDS)
def test_adaptrix_commands_are_taken(site: Path, name: str) -> None:
    install(site, "a-thief", command(name, "return greet"))
    assert _plugins(site)["a-thief"].error == f"command {name!r} is claimed by a-thief (a-thief) and adaptrix itself"


def test_the_command_line_has_the_commands_that_are_kept_for_it() -> None:
    assert tuple(cli._COMMANDS) == OWN_COMMANDS


@pytest.mark.parametrize("allowed", ["good", "adaptrix-good", "Adaptrix_Good", " good ,"])
def test_only_what_is_allowed_loads(site: Path, allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "adaptrix-good", family("goodfamily", "good"))
    other = install(site, "adaptrix-other", family("otherfamily", "other"))
    monkeypatch.setenv("ADAPTRIX_PLUGINS", allowed)
    catalog = Catalog.from_environment()
    states = {plugin.distribution: plugin.state for plugin in catalog.plugins}
    assert (states["adaptrix-good"], states["adaptrix-other"]) == ("loaded", "blocked")
    assert _families(catalog) == {*BUILT_IN, "goodfamily"}
    assert other not in sys.modules
    assert catalog.problems == ()


@pytest.mark.parametrize("allowed", ["", " , "])
def test_an_empty_list_allows_none(site: Path, allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install(site, "adaptrix-good", family("goodfamily", "good"))
    monkeypatch.setenv("ADAPTRIX_PLUGINS", allowed)
    catalog = Catalog.from_environment()
    assert {plugin.state for plugin in catalog.plugins[1:]} == {"blocked"}
    assert _families(catalog) == BUILT_IN
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
    monkeypatch.setattr("adaptrix.builtins.builtin_folder", lambda: tmp_path)
    with pytest.raises(RefusedError, match=r"broken\.toml"):
        Catalog()


def test_what_a_plugin_prints_is_not_our_output(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "print('on import')\n" + HOOKED + "def adaptrix_formats():\n    print('in a hook')\n    return ()"
    install(site, "talkative", source)
    assert _plugins(site)["talkative"].state == "loaded"
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
    assert _families(Catalog.from_environment()) == {*BUILT_IN, "goodfamily"}


def test_a_distribution_without_metadata_stops_nothing(site: Path) -> None:
    install(site, "adaptrix-good", family("goodfamily", "good"))
    (site / "adaptrix_good-1.5.dist-info" / "METADATA").unlink()
    install(site, "adaptrix-other", family("otherfamily", "other"))
    assert {plugin.state for plugin in Catalog(entry_points=entry_points(site)).plugins} == {"loaded"}


def test_plugins_in_a_zip_archive_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "zipped", "adaptrix-packed", family("packedfamily", "packed"))
    monkeypatch.syspath_prepend(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "zipped"))
    monkeypatch.setenv("ADAPTRIX_PLUGINS", "packed")
    assert "packedfamily" in _families(Catalog.from_environment())


def test_plugins_load_on_first_need(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install(site, "adaptrix-good", family("goodfamily", "good"))
    script = f"""if True:
        import sys, adaptrix, adaptrix.workflow, adaptrix.cli
        assert {module!r} not in sys.modules and "importlib.metadata" not in sys.modules
        workshop = adaptrix.workflow.Workshop()
        assert {module!r} not in sys.modules
        workshop.catalog
        assert {module!r} in sys.modules
    """
    monkeypatch.setenv("PYTHONPATH", str(site))
    subprocess.run([sys.executable, "-c", script], check=True)
