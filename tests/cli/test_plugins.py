"""Plugins on the command line, each run a process of its own as a user's is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import adaptrix
from tests.helpers.plugins import command, family, install

ROOT = Path(adaptrix.__file__).parent.parent


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def _run(site: Path, *args: str, allow: str = "good,bad,greet", **env: str) -> subprocess.CompletedProcess[str]:
    """``adaptrix`` with the plugins of a folder, and none that happen to be installed beside them."""
    own = {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "ADAPTRIX_PLUGINS": allow, "NO_COLOR": "1", "COLUMNS": "100"}
    script = "from adaptrix.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, env={**os.environ, **own, **env}
    )


def _stated(listing: str) -> dict[str, dict[str, object]]:
    return {plugin["distribution"]: plugin for plugin in json.loads(listing)["plugins"]}


def test_plugins_are_listed(site: Path) -> None:
    install(site, "adaptrix-good", family("goodfamily", "good"))
    install(site, "adaptrix-bad", "import surely_not_there")
    install(site, "adaptrix-other", "")
    done = _run(site, "plugins", allow="good,bad,gone")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert f"adaptrix  loaded  from adaptrix {adaptrix.__version__}" in lines
    at = lines.index("good  loaded  from adaptrix-good 1.5")
    assert lines[at + 1] == "  architectures: goodfamily"
    at = lines.index("bad  failed  from adaptrix-bad 1.5")
    assert lines[at + 1] == "  import failed: ModuleNotFoundError: No module named 'surely_not_there'"
    assert "other  blocked  from adaptrix-other 1.5" in lines
    at = lines.index("gone  missing")
    assert lines[at + 1] == "  ADAPTRIX_PLUGINS names it, and no plugin is called so"
    assert "Traceback" not in done.stdout


def test_verbose_says_where_it_failed(site: Path) -> None:
    install(site, "adaptrix-bad", "\n\nimport surely_not_there")
    done = _run(site, "plugins", "-v", allow="bad")
    assert 'adaptrix_bad.py", line 3, in <module>' in done.stdout


def test_json_is_json_whatever_plugins_print(site: Path) -> None:
    install(site, "adaptrix-good", "print('{')\n" + family("goodfamily", "good"))
    install(site, "adaptrix-bad", "print('}')\nraise SystemExit(3)")
    done = _run(site, "plugins", "--json", allow="good,bad")
    assert done.returncode == 0
    found = _stated(done.stdout)
    assert found["adaptrix-good"]["contributes"] == {"architectures": ["goodfamily"]}
    assert (found["adaptrix-bad"]["state"], found["adaptrix-bad"]["error"]) == (
        "failed",
        "import failed: SystemExit: 3",
    )
    assert done.stderr.split() == ["}", "{"]
    architectures = json.loads(_run(site, "architectures", "--json").stdout)["architectures"]
    (row,) = [row for row in architectures if row["family"] == "goodfamily"]
    assert row["origin"] == "adaptrix-good"


def test_a_plugin_s_output_cannot_steer_the_terminal(site: Path) -> None:
    install(site, "adaptrix-bad", r"raise RuntimeError('\x1b]0;title\x07')")
    assert "\x1b" not in _run(site, "plugins", allow="bad").stdout


def test_strict_turns_a_failure_into_an_error(site: Path) -> None:
    install(site, "adaptrix-bad", "raise RuntimeError('boom')")
    done = _run(site, "plugins", allow="bad", ADAPTRIX_STRICT="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: plugin bad (adaptrix-bad): import failed: RuntimeError: boom.")
    as_json = json.loads(_run(site, "plugins", "--json", allow="bad", ADAPTRIX_STRICT="1").stdout)
    assert [problem["code"] for problem in as_json["problems"]] == ["plugin"]


def test_a_failed_plugin_is_a_warning_elsewhere(site: Path) -> None:
    install(site, "adaptrix-bad", "raise RuntimeError('boom')")
    done = _run(site, "architectures", allow="bad")
    assert done.returncode == 0
    assert "llama" in done.stdout
    assert done.stderr.count("RuntimeError: boom") == 1
    assert done.stderr.startswith("warning: plugin bad (adaptrix-bad)")


def test_a_plugin_s_command_is_in_the_help_and_runs(site: Path) -> None:
    install(site, "adaptrix-greet", command("greet", "return greet"))
    listed = _run(site, "--help")
    assert ["greet", "Greet", "somebody."] in [line.split() for line in listed.stdout.splitlines()]
    done = _run(site, "greet", "Ada")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello Ada\n", "")
    usage = _run(site, "greet")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert "Missing argument 'NAME'" in usage.stderr


@pytest.mark.parametrize("body", ["raise ImportError('no torch')", "raise SystemExit(0)", "return print"])
def test_a_command_that_does_not_load_says_whose_it_is(site: Path, body: str) -> None:
    install(site, "adaptrix-greet", command("greet", body))
    assert _run(site, "--help").returncode == 0
    done = _run(site, "greet", "Ada")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: plugin greet (adaptrix-greet): command greet failed to load: ")
    assert "Traceback" not in done.stderr


def test_a_plugin_cannot_replace_a_command(site: Path) -> None:
    install(site, "adaptrix-bad", command("check", "return greet"))
    assert "Say everything that is wrong" in _run(site, "--help").stdout
    found = _stated(_run(site, "plugins", "--json").stdout)["adaptrix-bad"]
    assert found["error"] == "command 'check' is claimed by bad (adaptrix-bad) and adaptrix itself"


def _imported(path: Iterable[Path], *args: str, **env: str) -> set[str]:
    """The modules that a command line has imported by its end, by a Python that sees nothing but ``path``."""
    script = "import sys; from adaptrix.cli import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    own = {"PYTHONPATH": os.pathsep.join(map(str, path)), **env}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTRIX_")}
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, *args], capture_output=True, text=True, env={**kept, **own}, check=True
    )
    assert "Look:" in done.stdout or "version" in done.stdout
    return set(done.stderr.split())


DEAR = {"pluggy", "numpy", "importlib.metadata", "torch", "transformers", "peft", "rich", "safetensors"}


def _bare(folder: Path) -> Path:
    """A folder with what the command line needs and no plugin: Adaptrix and click."""
    spec = importlib.util.find_spec("click")
    assert spec is not None
    assert spec.origin is not None
    (folder / "click").symlink_to(Path(spec.origin).parent)
    (folder / "adaptrix").symlink_to(ROOT / "adaptrix")
    return folder


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_help_is_cheap_where_no_plugin_is_installed(site: Path, args: list[str]) -> None:
    imported = _imported([_bare(site)], *args)
    assert "adaptrix.cli" in imported
    assert not DEAR & imported


def test_help_is_cheap_where_none_may_load(site: Path) -> None:
    install(site, "adaptrix-greet", command("greet", "return greet"))
    assert not DEAR & _imported([_bare(site)], "--help", ADAPTRIX_PLUGINS="")


def test_the_watch_on_imports_sees_them(site: Path) -> None:
    install(site, "adaptrix-greet", command("greet", "return greet"))
    others = [Path(folder) for folder in sys.path if folder]
    seen = _imported([_bare(site), *others], "--help", ADAPTRIX_PLUGINS="greet")
    assert {"pluggy", "importlib.metadata", "adaptrix_greet"} <= seen
    assert not (DEAR - {"pluggy", "importlib.metadata"}) & seen
    assert not {"adaptrix.plugins.builtins", "adaptrix.sources", "hashlib"} & seen


def test_a_list_of_commands_asks_plugins_for_nothing_else(site: Path) -> None:
    source = command("greet", "return greet") + family("goodfamily", "good").replace("yield", "import numpy; yield")
    install(site, "adaptrix-greet", source)
    assert "greet  " in _run(site, "--help").stdout
    assert _run(site, "greet", "Ada").stdout == "hello Ada\n"
    broken = command("greet", "return greet") + family("goodfamily", "good").replace("yield", "1 / 0; yield")
    (site / "adaptrix_greet.py").write_text(broken)
    assert "greet  " in _run(site, "--help").stdout
    done = _run(site, "greet", "Ada")
    assert (done.returncode, done.stdout) == (2, "")
    assert "plugin greet (adaptrix-greet): adaptrix_architectures: ZeroDivisionError" in done.stderr


def test_a_signal_ends_the_loading_of_a_plugin(site: Path) -> None:
    install(site, "adaptrix-bad", "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)")
    done = _run(site, "plugins")
    assert (done.returncode, done.stdout) == (143, "")
    assert "terminated" in done.stderr
