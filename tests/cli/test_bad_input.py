"""Every bad checkpoint is refused in words that help, every good one is read: through the real command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import adaptrix
from benchmarks.checkpoints import BAD, GOOD, UNTELLABLE
from benchmarks.draft import (
    CONFIG,
    HIDDEN,
    INJECTION,
    INNER,
    PREFIX,
    Q0,
    RANK,
    WEIGHTS,
    Draft,
    injection,
    manifest,
    packed,
)
from tests.helpers.command_line import placed

LARGE = "20,000 keys"
#: those that a limit of time ends, or that are just short of one: as JSON only in the slow run
LONG = {name for name in BAD if "never ends" in name or "million less one" in name}


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    return placed(tmp_path, capsys, monkeypatch)


# -- bad --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_bad_is_refused_in_words(name, place):
    case = BAD[name]
    case.write(place.folder)
    before = place.files()
    code, out, err = place.convert(case)
    assert (code, out) == (case.code, "")
    assert [text for text in (str(place.folder / case.source), *case.says) if text not in err] == []
    assert err.isprintable() or set(filter(lambda char: not char.isprintable(), err)) == {"\n"}
    assert len(err.splitlines()) < 30
    assert place.files() == before


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in BAD if name != LARGE]
)
def test_bad_is_told_as_json(name, place):
    case = BAD[name]
    case.write(place.folder)
    before = place.files()
    code, out, err = place.convert(case, "--json")
    assert (code, err) == (case.code, "")
    (result,) = json.loads(out)["results"]
    assert result["ok"] is False
    assert result["source"] == str(place.folder / case.source)
    for problem in result["problems"]:
        assert problem.keys() == {"code", "where", "found", "expected", "remedy", "severity"}
        assert re.fullmatch(r"[a-z][a-z0-9-]+", problem["code"])
        assert problem["where"]
        assert problem["found"]
        assert problem["expected"] or problem["remedy"], problem
    assert place.files() == before


@pytest.mark.parametrize("name", ["a NaN", "malicious .bin", "empty folder", 'r = "4"', "manifest not JSON"])
def test_bad_is_refused_by_the_process_too(name, place):
    case = BAD[name]
    case.write(place.folder)
    before = place.files()
    done = subprocess.run(
        [sys.executable, "-m", "adaptrix", "convert", *case.command(place.folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (case.code, "")
    assert [text for text in case.says if text not in done.stderr] == []
    assert "Traceback" not in done.stderr
    assert place.files() == before


@pytest.mark.parametrize("name", ["a NaN", "wrong dims", "truncated", "int8 tensors", 'r = "4"', "empty folder"])
def test_check_says_the_same(name, place):
    case = BAD[name]
    case.write(place.folder)
    code, out, err = place.run("check", *case.command(place.folder))
    assert (code, out) == (1, "")
    assert [text for text in case.says if text not in err] == []


def test_a_pickle_is_never_run(place):
    BAD["malicious .bin"].write(place.folder)
    code, _, err = place.convert(BAD["malicious .bin"])
    assert code == 1
    assert "the pickle was run" not in err


@pytest.mark.parametrize("to", ["injection", "peft"])
@pytest.mark.parametrize("name", ["a NaN", "wrong dims", "lora_B missing", "truncated"])
def test_an_output_that_is_there_stays_as_it_was(name, to, place):
    """Not even with --force does a refusal touch it."""
    case = BAD[name]
    case.write(place.folder)
    Draft().write(place.folder / "good")
    out = place.folder / "out" / ("x" if to == "peft" else INJECTION)
    assert place.run("convert", place.folder / "good/adapter", "-o", out, "--to", to)[0] == 0
    before = place.files()
    assert place.convert(case, "-o", out, "--to", to, "--force")[0] == 1
    assert place.files() == before


# -- good -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_good_is_converted_there_and_back(name, place):
    case = GOOD[name]
    case.write(place.folder)
    code, out, err = place.convert(case, "-o", "x.adaptrix.safetensors")
    assert (code, re.findall("error|warning", err)) == (0, [])
    assert "x.adaptrix.safetensors" in out
    read = adaptrix.load("x.adaptrix.safetensors")
    assert len(read.deltas) >= 2
    assert place.run("convert", "x.adaptrix.safetensors", "--to", "peft", "-o", "back")[0] == 0
    assert {target.path for target in adaptrix.load("back").deltas} == {target.path for target in read.deltas}
    assert sorted(os.listdir()) == ["back", "x.adaptrix.safetensors"]


def test_keys_without_prefix_are_said_to_be(place):
    """peft loads them as a no-op."""
    GOOD["keys without prefix"].write(place.folder)
    assert "12 names lack the prefix of peft" in place.convert(GOOD["keys without prefix"])[2]


def test_a_base_of_a_family_nobody_knows_is_warned_of(place):
    GOOD["plain"].write(place.folder)
    (place.folder / "base/config.json").write_text('{"model_type": "martian", "hidden_size": -3}')
    code, _, err = place.convert(GOOD["plain"])
    assert code == 0
    assert "warning: adapter: no architecture claims model_type 'martian'" in err


def test_a_base_that_nobody_named_may_be_useless(place):
    """The adapter's config names it; what is wrong with it is said, and the tensors have their say."""
    draft = Draft()
    draft.config["base_model_name_or_path"] = str(place.folder / "base")
    draft.base["hidden_size"] = "16"
    draft.write(place.folder)
    code, _, err = place.run("convert", place.folder / "adapter")
    assert code == 0
    assert "base/config.json hidden_size: '16'). Dims are inferred" in err


def test_a_module_to_save_that_is_not_there_is_warned_of(place):
    draft = Draft()
    draft.config["modules_to_save"] = ["lm_head"]
    draft.write(place.folder)
    code, _, err = place.run("convert", place.folder / "adapter", "--base", place.folder / "base")
    assert (code, err.count("warning")) == (0, 1)
    assert f"{CONFIG} modules_to_save: 'lm_head' was to be saved and has no tensors" in err


def test_layers_without_deltas_are_warned_of(place):
    draft = Draft()
    draft.config["layers_to_transform"] = [0]
    draft.drop("layers.1")
    draft.write(place.folder)
    code, out, err = place.run("convert", place.folder / "adapter", "--base", place.folder / "base", "--layers", "1")
    assert (code, "0 of 3 sites" in out, "none of its layers has a delta" in err) == (0, True, True)


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a\\..\\evil", "..", ".evil"])
def test_a_name_from_a_stranger_is_no_path(name, place):
    draft = Draft()
    injection(draft, json.dumps(manifest(draft) | {"name": name}))
    draft.write(place.folder)
    before = place.files()
    assert place.run("convert", place.folder / INJECTION)[0] == 0
    (written,) = place.files().keys() - before.keys()
    assert os.path.dirname(written) == os.getcwd()
    assert re.fullmatch(r"[\w-][\w.-]*\.adaptrix\.safetensors", os.path.basename(written))


@pytest.mark.parametrize("name", UNTELLABLE)
def test_what_nothing_shows_is_read(name, place):
    """Here so that nobody believes it to be caught."""
    UNTELLABLE[name].write(place.folder)
    assert place.convert(UNTELLABLE[name])[0] == 0


@pytest.mark.parametrize("name", ["a NaN", "an Inf"])
@pytest.mark.parametrize("to", ["injection", "peft"])
def test_what_is_not_finite_goes_through_on_demand(name, to, place):
    case = BAD[name]
    case.write(place.folder)
    code, out, err = place.convert(case, "--allow-nonfinite", "--to", to, "-o", "x", "--json")
    (result,) = json.loads(out)["results"]
    assert (code, err, result["ok"], result["plan"]["retained"]) == (0, "", True, None)
    if to == "injection":
        manifest = json.loads(
            adaptrix.formats.safetensors_file.read(Path("x"))[1]["adaptrix"], parse_constant=pytest.fail
        )
        assert manifest["plan"]["retained"] is None


def test_numbers_too_large_to_square_are_no_fault(place):
    draft = Draft()
    draft.tensors = {name: tensor.astype(np.float64) * 1e90 for name, tensor in draft.tensors.items()}
    draft.write(place.folder)
    code, out, _ = place.run("convert", place.folder / "adapter")
    assert (code, "the share of ‖ΔW‖² is undefined" in out) == (0, True)


# -- several at once --------------------------------------------------------------------------------------------------


def test_several_faults_are_told_at_once(place):
    draft = Draft()
    draft.tensors[f"{PREFIX}{Q0}.lora_A.weight"][0, 0] = np.nan
    draft.add("model.layers.1.mlp.down_proj", HIDDEN, INNER + 1)
    draft.add("model.layers.1.self_attn.q_proj", HIDDEN, HIDDEN, RANK + 1)
    draft.drop("layers.0.self_attn.v_proj.lora_B")
    draft.drop("layers.0.mlp")
    draft.add("model.layers.2.self_attn.q_proj", HIDDEN, HIDDEN)
    draft.tensors[f"{PREFIX}model.norm.weight"] = np.ones(HIDDEN, np.float32)
    draft.config |= {"lora_alpha": "8", "use_dora": True, "bias": "some"}
    draft.base["vocab_size"] = "32"
    draft.write(place.folder)
    code, out, _ = place.run("convert", place.folder / "adapter", "--base", place.folder / "base", "--json")
    problems = json.loads(out)["results"][0]["problems"]
    told = {(problem["code"], problem["where"].partition(" (")[0]) for problem in problems}
    assert code == 1
    assert told >= {
        ("nonfinite", f"{Q0} lora_A"),
        ("shape", "layers.1.down"),
        ("rank", "model.layers.1.self_attn.q_proj"),
        ("adapter-incomplete", "model.layers.0.self_attn.v_proj lora_B"),
        ("shape", "q"),
        ("adapter-incomplete", "down"),
        ("tensor-unexpected", "model.norm.weight"),
        ("config-value", f"{CONFIG} lora_alpha"),
        ("config-value", f"{CONFIG} bias"),
        ("base-config", f"{place.folder}/base/config.json vocab_size"),
    }


def test_a_damaged_file_does_not_hide_what_the_config_says(place):
    draft = Draft()
    draft.config |= {"r": "4"}
    draft.instead(WEIGHTS, packed(draft.tensors)[:-9])
    draft.write(place.folder)
    code, _, err = place.run("convert", place.folder / "adapter")
    assert code == 1
    assert "cut off" in err
    assert "'4'" in err


def test_a_batch_converts_what_is_good(place):
    for number, case in enumerate((BAD["a NaN"], GOOD["DoRA"], BAD["empty file"], GOOD["bf16"], BAD["no config"])):
        case.write(place.folder / f"{number}")
        (place.folder / f"{number}/adapter").rename(place.folder / f"{number}/adapter{number}")
    sources = [place.folder / f"{number}/adapter{number}" for number in range(5)]
    code, out, err = place.run("convert", *sources)
    assert code == 1
    assert sorted(os.listdir()) == ["adapter1.adaptrix.safetensors", "adapter3.adaptrix.safetensors"]
    assert [str(source) for source in sources if str(source) in err] == [str(sources[i]) for i in (0, 2, 4)]
    assert [name for name in os.listdir() if name not in out] == []


def test_a_batch_is_told_as_json(place):
    BAD["a NaN"].write(place.folder / "bad")
    GOOD["plain"].write(place.folder / "good")
    code, out, err = place.run("convert", place.folder / "bad/adapter", place.folder / "good/adapter", "--json")
    assert (code, err) == (1, "")
    assert [result["ok"] for result in json.loads(out)["results"]] == [False, True]
