"""What becomes of a plugin's functions once they are called: they take part, and their faults bear its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptrix.adapter import Adapter
from adaptrix.errors import RefusedError, UsageError
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.plugins.catalog import Catalog
from adaptrix.records import Bundle
from benchmarks import alpaca
from tests.helpers import plugins
from tests.helpers.command_line import offline
from tests.helpers.plugins import entry_points, install

site = plugins.site

OFT = """
import json
from dataclasses import replace
from adaptrix import hookimpl
from adaptrix.formats import peft_read
from adaptrix.records import Format

def detect(bundle):
    config = bundle.files.get("adapter_config.json")
    return config is not None and json.loads(config.read_text())["peft_type"] == "OFT"

def read(bundle):
    config = bundle.one("adapter_config.json")
    lora = config.with_name("as_lora.json")
    lora.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "LORA"}))
    adapter = peft_read.read(replace(bundle, files={**bundle.files, "adapter_config.json": lora}))
    return replace(adapter, name="by-the-plugin")

@hookimpl
def adaptrix_formats():
    files = (("adapter_config.json",), ("adapter_model.safetensors", "adapter_model.bin"))
    yield Format("oft", files, detect, read)
"""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)


def _pipeline(site: Path) -> Pipeline:
    catalog = Catalog(entry_points=entry_points(site))
    assert not catalog.problems
    return Pipeline(catalog)


def test_a_plugin_teaches_a_kind_of_peft_checkpoint(site: Path, tmp_path: Path) -> None:
    lora, oft = alpaca.write(tmp_path / "lora", 2, 16, 2), alpaca.write(tmp_path / "oft", 2, 16, 2)
    config = json.loads((oft / "adapter_config.json").read_text())
    (oft / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "OFT"}))
    refused = Pipeline(Catalog()).check(str(oft))
    assert [problem.code for problem in refused.problems if problem.severity == "error"] == ["peft-type"]

    install(site, "adaptrix-oft", OFT)
    pipeline = _pipeline(site)
    assert [form.name for form in pipeline.catalog.formats] == ["oft", "injection", "mlx", "gguf", "peft"]
    assert pipeline.read(str(oft)).name == "by-the-plugin"
    assert pipeline.read(str(lora)).name == "lora"
    done = pipeline.convert(str(oft), tmp_path / "x", Options())
    assert pipeline.check(str(done.path)).ok


FAULTY = """
from adaptrix import hookimpl
from adaptrix.errors import UsageError, Problem
from adaptrix.records import Format, Generator, Source

def wrong(*_, **__):
    print("on its way")
    {body}

def right(*_, **__):
    return True

@hookimpl
def adaptrix_formats():
    yield Format("aform", (("*.aform",),), {detect}, wrong, wrong, carries=frozenset())

@hookimpl
def adaptrix_sources():
    yield Source("asource", {claims}, wrong, wrong)

@hookimpl
def adaptrix_generators():
    yield Generator("agenerator", "Text in.", wrong)
"""
CALLS: dict[str, tuple[str, Callable[[Pipeline, Path], object]]] = {
    "detect": ("format aform failed to detect", lambda it, path: it.read(str(path / "x.aform"))),
    "read": ("format aform failed to read", lambda it, path: it.read(str(path / "x.aform"))),
    "claims": ("source asource failed to claim", lambda it, path: it.read("s3://x")),
    "fetch": ("source asource failed to fetch", lambda it, path: it.read("s3://x")),
    "config": ("source asource failed to fetch a config", lambda it, path: it.base_config("s3://x")),
    "generate": ("generator agenerator failed to generate", lambda it, path: it.catalog.generators[0].generate("")),
    "write": ("format aform failed to write", lambda it, path: it.convert(str(path / "a"), None, Options(to="aform"))),
}


def _faulty(site: Path, call: str, body: str) -> Pipeline:
    wrong = {"detect": "right", "claims": "right"} | {call: "wrong"}
    install(site, "adaptrix-faulty", FAULTY.format(body=body, detect=wrong["detect"], claims=wrong["claims"]))
    return _pipeline(site)


@pytest.mark.parametrize("body", ["return 1 / 0", "raise SystemExit(3)", "raise KeyError('x')"])
@pytest.mark.parametrize("call", CALLS)
def test_what_goes_wrong_in_a_plugin_bears_its_name(
    site: Path, tmp_path: Path, call: str, body: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, act = CALLS[call]
    pipeline = _faulty(site, call, body)
    (tmp_path / "x.aform").write_text("")
    if call == "write":  # what is converted is not for the plugin to read
        alpaca.write(tmp_path / "a", 2, 16, 2)
        form = replace(pipeline.catalog.formats[0], detect=lambda bundle: False)
        monkeypatch.setattr(Catalog, "formats", (form, *pipeline.catalog.formats[1:]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedError) as caught:
        act(pipeline, tmp_path)
    (problem,) = caught.value.problems
    assert (problem.where, problem.severity) == ("plugin faulty (adaptrix-faulty)", "error")
    assert problem.found.startswith(f"{said}: ")
    assert problem.found.endswith("(adaptrix_faulty.py, line 8)")
    assert "on its way" not in capsys.readouterr().out


@pytest.mark.parametrize(("call", "kind"), [("read", Adapter), ("fetch", Bundle), ("config", dict)])
def test_an_answer_of_another_type_is_a_fault(site: Path, tmp_path: Path, call: str, kind: type) -> None:
    (tmp_path / "x.aform").write_text("")
    wanted = "Mapping" if kind is dict else kind.__name__
    with pytest.raises(RefusedError, match=f"returned None, not a {wanted}"):
        CALLS[call][1](_faulty(site, call, "return None"), tmp_path)


def test_what_a_plugin_refuses_is_its_refusal(site: Path, tmp_path: Path) -> None:
    pipeline = _faulty(site, "fetch", "raise UsageError(Problem('s3', 's3://x', 'no such bucket'))")
    with pytest.raises(UsageError, match="s3://x: no such bucket"):
        pipeline.read("s3://x")


def test_the_disk_s_no_is_no_fault_of_the_plugin_that_writes(site: Path, tmp_path: Path) -> None:
    pipeline = _faulty(site, "write", "raise OSError(28, 'No space left on device')")
    with pytest.raises(OSError, match="No space"):
        pipeline.catalog.formats[0].write(None, tmp_path)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize("call", ["read", "fetch"])
def test_a_request_to_end_goes_through(site: Path, tmp_path: Path, call: str) -> None:
    (tmp_path / "x.aform").write_text("")
    with pytest.raises(KeyboardInterrupt):
        CALLS[call][1](_faulty(site, call, "raise KeyboardInterrupt"), tmp_path)
