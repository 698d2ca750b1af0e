"""Plugins that fail, on import or in their hooks: each is told and left out, and the rest works."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from adaptrix.plugins.catalog import Catalog
from adaptrix.plugins.contribution import RULES
from adaptrix.plugins.plugin import HOOKS as HOOK_TYPES
from tests.helpers import plugins
from tests.helpers.plugins import BUILT_IN, HOOKED, command, entry_points, families, family, install, plugins_of

site = plugins.site

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
    assert families(catalog) == {*BUILT_IN, "goodfamily"}
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
    assert plugins_of(site)["bad-package"].state == "failed"
    assert {"a_dependency", "bad_package_besides"} <= sys.modules.keys()
    assert not {"bad_package", "bad_package.part", "bad_package.plugin"} & sys.modules.keys()


def test_a_namespace_is_nobody_s_own(site: Path) -> None:
    (site / "shared_space").mkdir()
    (site / "shared_space" / "tools.py").write_text("")
    source = "import shared_space.tools\nraise RuntimeError"
    install(site, "in-a-namespace", source, module="shared_space.plugin")
    assert plugins_of(site)["in-a-namespace"].state == "failed"
    assert {"shared_space", "shared_space.tools"} <= sys.modules.keys()
    assert "shared_space.plugin" not in sys.modules


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
    "no features": (
        "def adaptrix_formats(): yield Format('x', (('a',),), any, any, any, carries='no')",
        "the carries of x is 'no', not a set of some of dora, ",
    ),
    "an unknown feature": (
        "def adaptrix_formats(): yield Format('x', (('a',),), any, any, any, carries=frozenset({'colour'}))",
        "the carries of x is frozenset({'colour'}), not",
    ),
    "a word of old": (
        "def adaptrix_formats(): yield Format('x', (('a',),), any, any, any, keeps_spectral='no')",
        "the keeps_spectral of x is 'no', not True or False",
    ),
    "no dims": (
        "def adaptrix_architectures(): yield Architecture('x', ('y',), {'hidden': 'hidden_size'}, {})",
        "the dims of x are {'hidden': 'hidden_size'}, not a mapping",
    ),
    "no origin": (
        "def adaptrix_architectures(): yield Architecture('x', ('y',), {}, {}, origin=3)",
        "the origin of x is 3, not text",
    ),
    "no fetch": ("def adaptrix_sources(): yield Source('x', any, None, any)", "the fetch of x is None"),
    "no claims": ("def adaptrix_sources(): yield Source('x', 'x:', any, any)", "the claims of x is 'x:'"),
    "no generator": (
        "def adaptrix_sources(): return ()\n@hookimpl(specname='adaptrix_generators')\n"
        "def one(): yield Generator('x', 'X.', 'x')",
        "the generate of x is 'x'",
    ),
    "no loader": ("def adaptrix_commands(): yield Command('x', 'X.', 'x')", "the load of x is 'x'"),
    "no summary": ("def adaptrix_commands(): yield Command('x', None, any)", "the summary of x is None"),
    "one prefix": (
        "def adaptrix_architectures(): yield Architecture('x', ('y',), {}, {}, 'model.')",
        "the prefixes of x are 'model.', not a tuple of prefixes",
    ),
    "no roles": (
        "def adaptrix_architectures(): yield Architecture('x', ('y',), {}, {'q': 'path'})",
        "the roles of x are {'q': 'path'}, not a mapping of roles",
    ),
    "one model type": (
        "def adaptrix_architectures(): yield Architecture('x', 'llama', {}, {})",
        "the model_types of x are 'llama'",
    ),
}


def test_every_field_of_every_record_has_a_rule() -> None:
    assert {field.name for record in HOOK_TYPES.values() for field in fields(record)} == RULES.keys()


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
    assert [form.name for form in catalog.formats] == ["injection", "mlx", "gguf", "peft"]
    assert families(catalog) == {*BUILT_IN, "goodfamily"}


def test_a_forgotten_marker_is_told(site: Path) -> None:
    install(site, "unmarked", "def adaptrix_formats(): yield")
    assert plugins_of(site)["unmarked"].error == "it implements no hook: mark its functions with adaptrix.hookimpl"
