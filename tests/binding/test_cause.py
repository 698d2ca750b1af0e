"""A base of another family or size is told in one sentence before all that follows from it."""

import json
import shutil
from pathlib import Path

import pytest

import adaptrix
from tests.helpers.command_line import placed

DEMO = Path(__file__).parents[1] / "data" / "demo"


def base(folder, **changes):
    """The demo's base with some of its config changed."""
    folder.mkdir()
    config = json.loads((DEMO / "base/config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


GPT2 = {"model_type": "gpt2", "n_embd": 72, "n_layer": 12, "n_head": 6, "n_inner": None}
WRONG = {
    "hidden": ({"hidden_size": 144}, "hidden 72, the base has 144: another size of llama", 2),
    "several": (
        {"hidden_size": 144, "intermediate_size": 300, "num_hidden_layers": 2},
        "hidden 72, the base has 144; inner 200, the base has 300; layers 12, the base has 2: another size of llama",
        4,
    ),
    "kv heads": (
        {"num_key_value_heads": 1},
        "kv_heads * head_dim 32, the base has 16: a llama with other attention",
        1,
    ),
    "heads": ({"num_attention_heads": 12}, "heads * head_dim 96, the base has 192: a llama with other attention", 2),
    "too few layers": ({"num_hidden_layers": 2}, "layers 12, the base has 2: another size of llama", 1),
    "too many layers": ({"num_hidden_layers": 24}, "layers 12, the base has 24: another size of llama, or an", 1),
    "family": (GPT2, "all 60 modules of the adapter are those of llama", 1),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_cause_comes_first_and_the_rest_in_groups(name, tmp_path, capsys, monkeypatch):
    changes, says, groups = WRONG[name]
    wrong = base(tmp_path / "base", **changes)
    place = placed(tmp_path, capsys, monkeypatch)
    code, out, err = place.run("check", DEMO / "adapter", "--base", wrong)
    first, *rest = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (1, "")
    assert says in first
    assert "--base MODEL" in first
    assert len(rest) == groups
    assert "(60, the first" in err or name != "family"


@pytest.mark.parametrize("command", ["convert", "merge"])
def test_the_other_commands_say_it_too(command, tmp_path, capsys, monkeypatch):
    wrong = base(tmp_path / "base", hidden_size=144)
    place = placed(tmp_path, capsys, monkeypatch)
    code, _, err = place.run(command, DEMO / "adapter", "--base", wrong)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (1, 3)
    assert "hidden 72, the base has 144" in errors[0]


def test_every_problem_is_in_json_and_in_python(tmp_path, capsys, monkeypatch):
    wrong = base(tmp_path / "base", hidden_size=144)
    out = placed(tmp_path, capsys, monkeypatch).run("check", DEMO / "adapter", "--base", wrong, "--json")[1]
    assert len(json.loads(out)["problems"]) == 61
    with pytest.raises(adaptrix.RefusedError, match="hidden 72, the base has 144") as caught:
        adaptrix.convert(DEMO / "adapter", tmp_path / "x", base=wrong)
    assert len(caught.value.problems) == 61
    assert len(str(caught.value).splitlines()) == 3
    assert "base=MODEL" in str(caught.value)


def test_verbose_lists_each(tmp_path, capsys, monkeypatch):
    wrong = base(tmp_path / "base", hidden_size=144)
    err = placed(tmp_path, capsys, monkeypatch).run("check", DEMO / "adapter", "--base", wrong, "-v")[2]
    assert err.count("error: ") == 61


def test_a_single_odd_tensor_is_no_other_base(tmp_path):
    """Its own line says it; a base is not blamed for one."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(DEMO / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.3.self_attn.q_proj.lora_A" in name)
    tensors[name] = np.ones((tensors[name].shape[0], 71), tensors[name].dtype)
    save_file(tensors, file)
    report = adaptrix.check(tmp_path / "adapter", DEMO / "base")
    assert [problem.where.partition(" ")[0] for problem in report.problems if problem.severity == "error"] == [
        "layers.3.q"
    ]
