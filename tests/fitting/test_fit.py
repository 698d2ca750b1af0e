"""Fitted plans: what they reach, what is recorded of it, and that it comes out the same however often they stop."""

import json
import shutil
import sys
from hashlib import sha256

import peft
import pytest
import torch

import adaptrix
from adaptrix.errors import RefusedError, UsageError
from adaptrix.fitting.corpus import corpus
from adaptrix.fitting.layer_choice import choose, evaluations
from adaptrix.formats import safetensors_file
from adaptrix.measuring.text import Text, windows
from tests.helpers.attached import saved
from tests.helpers.families import tiny_model
from tests.helpers.fits import STEPS, fit, tokenizer


def manifest(path):
    return json.loads(safetensors_file.read(path)[1]["adaptrix"])


def changed(path):
    """The tensors that a plan puts in place of the adapter's own."""
    return {name: it for name, it in safetensors_file.read(path)[0].items() if name.startswith("plan.")}


def held_out(place):
    """The last tenth of the text, cut as a fit cuts it."""
    ids = torch.tensor(tokenizer()((place / "text.txt").read_text())["input_ids"])
    return ids[-400:]


def kl(place, path, layers=None):
    """KL a token of a plan, its full adapter run by peft, over windows of the held-out text."""
    model = tiny_model("llama", seed=3)
    whole = peft.PeftModel.from_pretrained(tiny_model("llama", seed=3), place / "lora").eval()
    total = tokens = 0
    with adaptrix.attach(model, {"plan": path}, layers=layers) as session, session.use("plan"), torch.no_grad():
        for window in windows(held_out(place), 64, 63):
            counted = slice(-window.counted - 1, -1)
            p = whole(input_ids=window.tokens[None]).logits[0, counted].double().log_softmax(-1)
            q = model(input_ids=window.tokens[None]).logits[0, counted].double().log_softmax(-1)
            total, tokens = total + float((p.exp() * (p - q)).sum()), tokens + window.counted
    return total / tokens


def test_a_fit_is_nearer_to_the_whole_adapter_and_says_how_near(place, fitted):
    plan = manifest(fitted)["plan"]
    kept = ",".join(map(str, plan["layers"]["layers"]))
    before, after = kl(place, place / "lora", layers=kept), kl(place, fitted)
    assert after < 0.7 * before
    assert plan["fit"]["before"] == pytest.approx(before, rel=1e-3)
    assert plan["fit"]["after"] == pytest.approx(after, rel=1e-3)


def test_the_manifest_says_what_was_done(place, fitted):
    found = manifest(fitted)
    digest = sha256((place / "text.txt").read_bytes()).hexdigest()
    told = {name: found["plan"]["fit"][name] for name in ("text", "tokens", "steps", "taken", "seed")}
    assert told == {"text": digest, "tokens": 4000, "steps": STEPS, "taken": STEPS, "seed": 0}
    assert found["plan"]["policy"] == "fit:2"
    assert len(found["plan"]["layers"]["layers"]) == 2
    assert "fitted in 16 of 16 steps" in found["plan"]["notes"][0]
    ranks = {site: entry["rank"] for site, entry in found["overrides"].items()}
    assert ranks == {site: found["deltas"][site]["rank"] for site in ranks}
    assert len(ranks) == 12


def test_the_file_still_holds_the_source(place, fitted, tmp_path):
    again = adaptrix.convert(fitted, tmp_path / "again", to="peft")
    source, back = (folder / "adapter_model.safetensors" for folder in (place / "lora", again))
    assert safetensors_file.read(source)[0].keys() == safetensors_file.read(back)[0].keys()
    for name, tensor in safetensors_file.read(source)[0].items():
        assert tensor.tobytes() == safetensors_file.read(back)[0][name].tobytes()


def test_what_is_written_again_remembers_its_fit(fitted, tmp_path):
    again = adaptrix.convert(fitted, tmp_path / "again.adaptrix.safetensors")
    assert again.read_bytes() == fitted.read_bytes()
    smaller = adaptrix.convert(fitted, tmp_path / "smaller.adaptrix.safetensors", rank=1)
    assert "fit" not in manifest(smaller)["plan"]
    rounded = adaptrix.convert(fitted, tmp_path / "rounded.adaptrix.safetensors", dtype="bf16")
    assert "fit" not in manifest(rounded)["plan"]


def test_the_fitted_deltas_alone_are_a_peft_adapter(place, fitted, tmp_path):
    pruned = adaptrix.convert(fitted, tmp_path / "pruned", to="peft", prune=True)
    model = peft.PeftModel.from_pretrained(tiny_model("llama", seed=3), pruned).eval()
    tokens = held_out(place)[None, :20]
    with adaptrix.attach(plain := tiny_model("llama", seed=3), {"fit": fitted}) as session, session.use("fit"):
        torch.testing.assert_close(plain(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_equal_input_gives_equal_bytes_and_a_seed_matters(place, fitted, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    assert fit(place, tmp_path / "elsewhere" / "b.adaptrix.safetensors").read_bytes() == fitted.read_bytes()
    other = fit(place, tmp_path / "c.adaptrix.safetensors", seed=1)
    assert any(tensor.tobytes() != changed(fitted)[name].tobytes() for name, tensor in changed(other).items())


def test_ranks_may_be_changed_and_dropped_layers_folded(place, tmp_path):
    options = {"layers": "fit:1", "rank": 3, "redistribute": "nearest", "dtype": "bf16", "steps": 6}
    path = fit(place, tmp_path / "x.adaptrix.safetensors", **options)
    found = manifest(path)
    assert {entry["rank"] for entry in found["overrides"].values()} == {3}
    assert {tensor.dtype for tensor in changed(path).values()} == {"BF16"}
    assert kl(place, path) == pytest.approx(found["plan"]["fit"]["after"], rel=1e-3)


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}])
def test_other_kinds_of_lora_are_fitted_as_well(place, tmp_path, kind):
    saved(tiny_model("llama", seed=3), tmp_path / "lora", target_modules=["q_proj", "down_proj"], **kind)
    shutil.copytree(place / "base", tmp_path / "base")
    shutil.copy(place / "text.txt", tmp_path / "text.txt")
    path = fit(tmp_path, tmp_path / "x.adaptrix.safetensors")
    plan = manifest(path)["plan"]
    assert plan["fit"]["after"] < plan["fit"]["before"]
    assert plan["fit"]["after"] == pytest.approx(kl(tmp_path, path), rel=1e-3)
    kept = ",".join(map(str, plan["layers"]["layers"]))
    assert plan["fit"]["before"] == pytest.approx(kl(tmp_path, tmp_path / "lora", layers=kept), rel=1e-3)


WRONG = {
    "no-base": ({"base": None}, "there is no base"),
    "no-text": ({"text": None}, "there is no text"),
    "too-many": ({"layers": "fit:4"}, "4 layers of 3"),
    "none": ({"layers": "fit:0"}, "'0' is no number of layers"),
    "no-number": ({"layers": "fit"}, "'' is no number of layers"),
    "no-steps": ({"steps": 0}, "a whole number of at least 1"),
    "no-file": ({"text": "absent.txt"}, "there is no such file"),
    "other-policy": ({"layers": "middle"}, "without a plan to be fitted"),
    "stray-steps": ({"layers": "all", "text": None, "steps": 5}, "5 without a plan to be fitted"),
    "peft": ({"to": "peft"}, "the format cannot hold"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_refused(place, tmp_path, case):
    options, said = WRONG[case]
    with pytest.raises(UsageError, match=said):
        fit(place, tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_too_short_is_refused(place, tmp_path):
    (tmp_path / "short.txt").write_text("abc " * 30)
    with pytest.raises(RefusedError, match="120 tokens, for a model of 64 positions; expected at least 160 tokens"):
        fit(place, tmp_path / "x.adaptrix.safetensors", text=tmp_path / "short.txt")


@pytest.mark.parametrize(
    ("family", "targets", "said"),
    [
        ("t5", ["q", "v"], "stacks of layers: .*; expected one"),
        ("distilbert", ["q_lin"], "transformers has no causal language model of type 'distilbert'"),
    ],
)
def test_a_base_that_writes_no_text_is_refused(place, tmp_path, family, targets, said):
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    saved(model, tmp_path / "lora", target_modules=targets)
    shutil.copy(place / "text.txt", tmp_path / "text.txt")
    with pytest.raises(RefusedError, match=said):
        fit(tmp_path, tmp_path / "x.adaptrix.safetensors")


def test_trained_heads_are_refused(place, tmp_path):
    saved(tiny_model("llama", seed=3), tmp_path / "lora", target_modules=["q_proj"], modules_to_save=["lm_head"])
    shutil.copytree(place / "base", tmp_path / "base")
    shutil.copy(place / "text.txt", tmp_path / "text.txt")
    with pytest.raises(RefusedError, match="a fit trains deltas only"):
        fit(tmp_path, tmp_path / "x.adaptrix.safetensors")


@pytest.mark.parametrize(("name", "value"), [("steps", -1), ("text", None), ("after", "low"), ("taken", True)])
def test_a_fit_that_a_manifest_tells_wrongly_is_refused(fitted, tmp_path, name, value):
    tensors, _ = safetensors_file.read(fitted)
    told = manifest(fitted)
    told["plan"]["fit"][name] = value
    path = tmp_path / "x.adaptrix.safetensors"
    safetensors_file.write(path, tensors, {"adaptrix": json.dumps(told)})
    with pytest.raises(RefusedError, match=f"fit {name} is"):
        adaptrix.load(path)


def test_attaching_does_not_fit(place):
    with pytest.raises(UsageError, match="a fitted plan needs training"):
        adaptrix.attach(tiny_model("llama", seed=3), {"a": place / "lora"}, layers="fit:2")


def test_torch_that_is_not_installed_is_named(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"torch is not installed.*pip install \"adaptrix\[torch\]\""):
        fit(place, tmp_path / "x.adaptrix.safetensors")


def test_the_layer_that_is_missed_least_goes_first():
    weights = {0: 3.0, 1: 1.0, 3: 2.0, 4: 1.0}
    asked = []

    def losses(sets):
        asked.extend(sets)
        return [sum(weights[layer] for layer in weights.keys() - set(kept)) for kept in sets]

    assert choose([0, 1, 3, 4], 6, 2, losses) == (0, 3)
    assert len(asked) == evaluations(4, 2) == 7
    assert asked[4:] == [(1, 3), (0, 3), (0, 1)]  # of 1 and 4, which are missed alike, the higher went
    assert choose([2, 4], 6, 4, losses) == (0, 1, 2, 4)


def test_no_token_is_both_learned_from_and_measured_on():
    found = corpus(Text("a text", "", "0" * 64), torch.arange(1000), 30)
    learned = set(found.training.flatten().tolist())
    stopped, measured = ({i for w in part for i in w.tokens.tolist()} for part in (found.stopping, found.held_out))
    assert found.training.shape == (26, 30)
    assert (len(stopped), len(measured)) == (100, 100)
    assert not learned & stopped
    assert not learned & measured
    assert not stopped & measured
    assert {i for w in found.choosing for i in w.tokens.tolist()} <= learned
