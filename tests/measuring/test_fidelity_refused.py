"""What fidelity refuses, and what it says."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import adaptrix
from adaptrix.errors import RefusedError, UsageError
from adaptrix.measuring import divergence as diverging
from tests.helpers import hub_server
from tests.helpers.command_line import placed
from tests.helpers.families import tiny_model
from tests.helpers.merge_models import pair

hub = hub_server.hub
TINY = Path(__file__).parents[2] / "examples" / "tiny"
PIRATE, BASE = TINY / "adapters" / "pirate", TINY / "base"
IDS = list(range(3, 20))


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    found = placed(tmp_path, capsys, monkeypatch)
    (tmp_path / "text.txt").write_text("The old sailor walked to the harbour with a lantern. " * 3)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("llama"))


def measure(place, *more, source=PIRATE, base=BASE, text=None):
    return place.run("fidelity", source, "--base", base, "--text", text or place.folder / "text.txt", *more)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\xff\xfe\x00a", "byte 0 is no UTF-8"),
        (b"abc\0def", "a zero byte at 3: a binary file"),
    ],
)
def test_what_is_no_text(place, content, said):
    (place.folder / "odd.txt").write_bytes(content)
    code, out, err = measure(place, text=place.folder / "odd.txt")
    assert (code, out) == (1, "")
    assert said in err


def test_no_file(place):
    assert measure(place, text=place.folder / "none.txt")[0] == 2
    code, _, err = measure(place, text=place.folder)
    assert (code, "this is a folder" in err) == (2, True)


@pytest.mark.parametrize("ids", [[], [5]])
def test_nothing_to_predict(made, ids):
    with pytest.raises(RefusedError, match="at least 2") as caught:
        adaptrix.fidelity(made.adapter, made.base, ids)
    assert caught.value.problems[0].code == "text-too-short"


def test_a_text_shorter_than_a_window_is_one_and_says_so(place):
    (place.folder / "short.txt").write_text("A map.")
    code, out, err = measure(place, "--layers", "middle", text=place.folder / "short.txt")
    assert code == 0
    assert "in one window" in out
    assert "N/A" in out
    assert "fewer than a window of 512: one shorter window, and no intervals" in err


def test_all_that_is_wrong_with_policies_at_once(place):
    wrong = ["midle", "spread:9", "energy:0", "fit:4", "own", "3-9"]
    code, out, err = measure(place, *(word for policy in wrong for word in ("--layers", policy)))
    assert (code, out) == (2, "")
    assert [line.partition(" layers ")[2].partition(": ")[0] for line in err.splitlines()] == wrong


@pytest.mark.parametrize(
    "options",
    [
        ("--window", "1"),
        ("--window", "8", "--stride", "8"),
        ("--window", "8", "--stride", "0"),
        ("--window", "513"),
        ("--stride", "512"),
        ("--seed", "-1"),
        ("--dtype", "int8"),
        ("--device", "nonsense"),
        ("--plot", "curve.gif"),
    ],
)
def test_options_that_make_no_sense(place, options):
    code, out, err = measure(place, "--layers", "1", *options)
    assert (code, out) == (2, "")
    assert options[-2].strip("-") in err or options[-1] in err


def test_a_base_without_its_tokenizer(place):
    bare = place.folder / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(BASE / name, bare)
    code, _, err = measure(place, base=bare)
    assert code == 1
    assert "there is no tokenizer in it" in err
    (bare / "tokenizer.json").write_text("{")
    code, _, err = measure(place, base=bare)
    assert code == 1
    assert "transformers cannot load its tokenizer" in err


def test_a_tokenizer_of_another_model(made):
    with pytest.raises(RefusedError, match="tokens from 3 to 67, and the model knows 67") as caught:
        adaptrix.fidelity(made.adapter, made.base, [3, 67])
    assert caught.value.problems[0].code == "vocabulary"


def test_a_base_of_another_family_or_width(made, place):
    other = pair(place.folder, "gpt2")
    for base in (other.base, AutoModelForCausalLM.from_pretrained(other.base)):
        with pytest.raises(RefusedError):
            adaptrix.fidelity(made.adapter, base, IDS)
    with pytest.raises(RefusedError, match="expected"):
        adaptrix.fidelity(made.adapter, BASE, IDS)
    code, out, err = measure(place, source=made.adapter)
    assert (code, out) == (1, "")
    assert err.count("error:") > 3


@pytest.mark.parametrize("family", ["t5", "bert", "distilbert", "roberta"])
def test_a_model_that_writes_no_text_from_left_to_right(family, tmp_path):
    made = pair(tmp_path, family, targets=["q", "v"] if family == "t5" else None)
    for base in (made.base, tiny_model(family)):
        with pytest.raises(RefusedError) as caught:
            adaptrix.fidelity(made.adapter, base, IDS)
        assert caught.value.problems[0].code in ("model-unsupported", "base-unusable")


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForSequenceClassification])
def test_a_model_of_another_head(made, kind):
    base = kind.from_pretrained(made.base)
    with pytest.raises(RefusedError, match="does not answer with a token's probabilities"):
        adaptrix.fidelity(made.adapter, base, IDS)


def test_weights_that_lack_a_tensor(made, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(made.base, base)
    state = load_file(base / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RefusedError, match=r"its weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        adaptrix.fidelity(made.adapter, base, IDS)


def test_an_adapter_with_nan(made, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(made.adapter, adapter)
    state = load_file(adapter / "adapter_model.safetensors")
    next(iter(state.values()))[0, 0] = np.nan
    save_file(state, adapter / "adapter_model.safetensors")
    with pytest.raises(RefusedError, match=r"1 of .* numbers are NaN or Inf") as caught:
        adaptrix.fidelity(adapter, made.base, IDS)
    assert "--allow-nonfinite" not in str(caught.value)


def test_a_model_that_answers_nan(made):
    base = AutoModelForCausalLM.from_pretrained(made.base)
    base.model.norm.weight.data[3] = torch.nan
    with pytest.raises(RefusedError, match="the model answers NaN"):
        adaptrix.fidelity(made.adapter, base, IDS)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"layers": "middle"}, "a list of policies"),
        ({"seed": 1.5}, "a whole number"),
        ({"dtype": "bf16", "device": "cpu"}, "the model as it is"),
        ({"text": [[3, 4], [5, 6]]}, "tokens"),
        ({"text": [0.5, 1.5]}, "tokens"),
        ({"text": "text.txt"}, "needs its tokenizer"),
        ({"base": object()}, "a folder"),
        ({"base": torch.nn.Linear(2, 3)}, "the model has no config"),
    ],
)
def test_calls_that_make_no_sense(made, place, keys, said):
    (place.folder / "out" / "text.txt").write_text("A text.")
    base = AutoModelForCausalLM.from_pretrained(made.base)
    with pytest.raises(UsageError, match=said):
        adaptrix.fidelity(**{"source": made.adapter, "base": base, "text": IDS, **keys})


def test_a_plan_of_no_delta_is_told(place):
    code, _, err = measure(place, "--layers", "0,7", "--layers", "middle")
    assert code == 0
    assert err.count("none of its layers has a delta") == 1


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_without_torch(place, monkeypatch, module):
    for name in [name for name in sys.modules if name.startswith(("adaptrix.measuring", "adaptrix.base"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("adaptrix.measuring.measure", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    code, out, err = measure(place)
    assert (code, out) == (2, "")
    assert f'{module} is not installed. Run: pip install "adaptrix[torch]"' in err


def test_an_interrupt_is_told_in_a_line(place, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(diverging, "compared", interrupted)
    code, out, err = measure(place, "--layers", "1", "--plot", "curve.svg")
    assert (code, out) == (130, "")
    assert err.strip() == "adaptrix: interrupted; nothing was left half-written"
    assert list((place.folder / "out").iterdir()) == []


def test_errors_as_json(place):
    code, out, err = measure(place, "--json", text=place.folder / "none.txt")
    assert (code, err) == (2, "")
    assert json.loads(out)["problems"][0]["code"] == "file-missing"


def test_a_base_on_the_hub(hub, tmp_path):
    hub.add_repo("someone/base", BASE)
    (tmp_path / "text.txt").write_text("The old sailor walked to the harbour.")
    command = [sys.executable, "-m", "adaptrix", "fidelity", PIRATE, "--text", tmp_path / "text.txt", "--layers", "4"]
    done = hub.run(hub.env(tmp_path), *map(str, command), "--base", "someone/base", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["base"], found["rows"][0]["kl"]["value"]) == ("someone/base", 0)
    done = hub.run(hub.env(tmp_path), *map(str, command), "--base", "someone/other")
    assert (done.returncode, done.stdout) == (3, "")
    assert "Traceback" not in done.stderr
