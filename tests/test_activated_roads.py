"""Activated LoRAs on every road: the condition goes along, what cannot keep it refuses, and warnings are said."""

import json
import warnings

import pytest
import torch

import adaptrix
from adaptrix.errors import AdaptrixWarning, RefusedError
from tests.helpers.alora import INVOCATION, adapter, close, logits, prompt, tiny


@pytest.fixture(scope="module")
def base():
    return tiny()


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """Adapters "a" and "same" of one invocation, "other" of another, "plain" for all tokens, the base; peft's "a"."""
    folder = tmp_path_factory.mktemp("roads")
    judge = adapter(base, folder / "a")
    for seed, (name, tokens) in enumerate({"same": INVOCATION, "other": [9, 10], "plain": None}.items(), 2):
        adapter(base, folder / name, seed=seed, tokens=tokens)
    base.save_pretrained(folder / "base")
    return folder, judge


def said(act):
    """The warnings of an act about the condition."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    found = [str(one.message) for one in caught if issubclass(one.category, AdaptrixWarning)]
    return [text for text in found if "activated LoRA" in text]


def attached(base, source, given):
    with adaptrix.attach(base, {"x": source}) as session, session.use("x"):
        return logits(base, **given)


@pytest.mark.filterwarnings("ignore:.*activated LoRA:adaptrix.AdaptrixWarning")
def test_there_and_back_it_acts_as_in_peft(base, saved, tmp_path):
    (folder, judge), given = saved, prompt()
    file = adaptrix.convert(folder / "a", tmp_path / "a.safetensors")
    back = adaptrix.convert(file, tmp_path / "back", to="peft")
    larger = adaptrix.resize(folder / "a", rank=4, out=tmp_path / "larger", to="peft").path
    for source in (file, back, larger, adaptrix.load(file)):
        close(given, attached(base, source, given), logits(judge, **given))
    for path in (back, larger):
        assert json.loads((path / "adapter_config.json").read_text())["alora_invocation_tokens"] == INVOCATION


@pytest.mark.filterwarnings("ignore:.*activated LoRA:adaptrix.AdaptrixWarning")
def test_a_sum_keeps_the_condition_that_both_have(base, saved, tmp_path):
    (folder, _), given = saved, prompt()
    out = adaptrix.combine([folder / "a", folder / "same"], [0.5, 2.0], out=tmp_path / "sum").path
    both = adaptrix.attach(base, {"a": folder / "a", "same": folder / "same"})
    with both as session, session.use({"a": 0.5, "same": 2.0}):
        wanted = logits(base, **given)
    close(given, attached(base, out, given), wanted)
    for other in ("plain", "other"):
        with pytest.raises(RefusedError, match="one condition for all"):
            adaptrix.combine([folder / "a", folder / other], out=tmp_path / other)


def test_the_warning_of_reading_is_said_on_every_road(base, saved, tmp_path):
    folder, _ = saved
    text = torch.tensor(INVOCATION * 30)
    assert said(lambda: adaptrix.attach(base, {"x": folder / "a"}).detach())
    assert said(lambda: adaptrix.convert(folder / "a", tmp_path / "a.safetensors"))
    assert said(lambda: adaptrix.attach(base, {"x": tmp_path / "a.safetensors"}).detach())
    assert said(lambda: adaptrix.convert(tmp_path / "a.safetensors", tmp_path / "back", to="peft"))
    assert said(lambda: adaptrix.convert(adaptrix.load(folder / "a"), tmp_path / "b.safetensors"))
    with adaptrix.attach(base, {}) as session:
        assert said(lambda: session.load("x", folder / "a"))
    for act in (
        adaptrix.check,
        adaptrix.inspect,
        lambda path: adaptrix.fidelity(path, base, text, ["middle"], window=32),
    ):
        assert "activated LoRA" in str([problem.found for problem in act(folder / "a").problems])


def test_a_warning_of_reading_is_said_where_it_is_merged_and_measured(base, saved, tmp_path):
    folder, _ = saved
    adapter(base, tmp_path / "x", tokens=None)
    file = tmp_path / "x" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "modules_to_save": ["a_module_of_no_tensors"]}))
    with pytest.warns(AdaptrixWarning, match="a_module_of_no_tensors"):
        adaptrix.merge(tmp_path / "x", folder / "base", tmp_path / "merged")
    report = adaptrix.fidelity(tmp_path / "x", base, torch.arange(8, 40), ["middle"], window=16)
    assert "a_module_of_no_tensors" in str(report.problems)


def test_what_cannot_keep_the_condition_is_refused(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(RefusedError, match=r"no merged weight can do.*adaptrix\.attach runs it"):
        adaptrix.merge(folder / "a", folder / "base", tmp_path / "merged")
    text = tmp_path / "text"
    text.write_text("a text " * 100)
    with pytest.raises(RefusedError, match="activated LoRA, which is not trained here"):
        adaptrix.convert(folder / "a", tmp_path / "x.safetensors", layers="fit:1", base=folder / "base", text=text)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.filterwarnings("ignore:.*:adaptrix.AdaptrixWarning")
def test_fidelity_measures_where_it_is_invoked(base, saved):
    folder, _ = saved
    text = torch.randint(8, 40, (120,), generator=torch.Generator().manual_seed(3))
    with pytest.raises(RefusedError, match="none of 7 windows holds the invocation tokens"):
        adaptrix.fidelity(folder / "a", base, text, ["middle"], window=32)
    text[40:43] = torch.tensor(INVOCATION)
    report = adaptrix.fidelity(folder / "a", base, text, ["middle"], window=32)
    assert "it acts in 2 of 7 windows" in str(report.problems)
    kl = {row.policy: row.kl.value for row in report.rows}
    assert kl["all"] == 0
    assert kl["middle"] > 0.01
    assert kl["base"] > 0.01
