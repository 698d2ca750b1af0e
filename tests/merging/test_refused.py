"""What cannot be merged: each said clearly, and nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from adaptrix.errors import AdaptrixError, RefusedError, UsageError
from adaptrix.formats import safetensors_file
from adaptrix.merging import shards
from adaptrix.tensor import Tensor
from tests.helpers.command_line import placed
from tests.helpers.families import tiny_model
from tests.helpers.merge_models import merge, pair, tensors
from tests.helpers.peft_models import weights

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("kept"), shard="20KB", targets=["q_proj", "down_proj"])


@pytest.fixture
def made(kept, tmp_path):
    """A base and an adapter of one's own, to damage."""
    for name in ("base", "adapter"):
        shutil.copytree(getattr(kept, name), tmp_path / name)
    return type(kept)(tmp_path / "base", tmp_path / "adapter", kept.model)


def refused(made, out=None, **options):
    """The codes of the problems; nothing is left, and nothing that was there is other than before."""
    home = made.base.parent
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    with pytest.raises(AdaptrixError) as caught:
        made.merge(out or home / "out", **options)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    return [problem.code for problem in caught.value.problems], str(caught.value)


def edit(file, **changes):
    value = json.loads(file.read_text())
    file.write_text(json.dumps(value | changes))


def rewrite(file, change):
    """A safetensors file with its tensors changed."""
    held = {n: Tensor(t.dtype, t.shape, t.tobytes()) for n, t in safetensors_file.read(file)[0].items()}
    file.unlink()
    safetensors_file.write(file, change(held), {"format": "pt"})


def test_a_base_of_another_width(made):
    edit(made.base / "config.json", hidden_size=30)
    codes, text = refused(made)
    assert set(codes) == {"shape"}
    assert "hidden = 30" in text


def test_a_base_whose_files_are_not_what_its_config_says(made):
    wide = tiny_model("llama", variant=1)
    config = (made.base / "config.json").read_text()
    shutil.rmtree(made.base)
    wide.save_pretrained(made.base)
    (made.base / "config.json").write_text(config)
    codes, text = refused(made)
    assert set(codes) == {"shape"}
    assert "another version of it" in text


def test_a_base_of_another_family(made):
    shutil.rmtree(made.base)
    tiny_model("gpt2").save_pretrained(made.base)
    codes, text = refused(made)
    assert "site-missing" in codes
    assert "no gpt2 model has such a module" in text


def test_a_base_with_fewer_layers_in_its_files(made):
    for file in made.base.glob("*.safetensors"):
        rewrite(file, lambda held: {name: t for name, t in held.items() if "layers.2." not in name})
    index = json.loads((made.base / INDEX).read_text())
    kept = {name: file for name, file in index["weight_map"].items() if "layers.2." not in name}
    edit(made.base / INDEX, weight_map=kept)
    codes, text = refused(made)
    assert codes == ["module-missing"] * 2
    assert "layers.2.q" in text


def test_a_missing_shard(made):
    lost = sorted(made.base.glob("*.safetensors"))[1]
    lost.unlink()
    codes, text = refused(made)
    assert codes == ["base-incomplete"]
    assert lost.name in text


def test_an_index_that_names_absent_tensors(made):
    index = json.loads((made.base / INDEX).read_text())
    edit(made.base / INDEX, weight_map=index["weight_map"] | {"model.ghost": index["weight_map"]["lm_head.weight"]})
    codes, text = refused(made)
    assert codes == ["base-incomplete"]
    assert "model.ghost" in text


@pytest.mark.parametrize("places", [[], {"a": 1}, {"a": "../x.safetensors"}, {"a": "pytorch_model.bin"}])
def test_an_index_that_is_none(places, made):
    edit(made.base / INDEX, weight_map=places)
    assert refused(made)[0] == ["base-incomplete"]


def test_a_truncated_shard(made):
    file = sorted(made.base.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])
    assert refused(made)[0] == ["file-truncated"]


@pytest.mark.parametrize(
    ("name", "code"), [("a.gguf", "base-incomplete"), ("model-00001-of-00002.safetensors", "base-incomplete")]
)
def test_weights_in_other_files_alone(name, code, made):
    for file in [*made.base.glob("*.safetensors"), made.base / INDEX]:
        file.unlink()
    (made.base / name).write_bytes(b"x")
    codes, text = refused(made)
    assert codes == [code]
    assert name in text


def test_a_quantised_base(made):
    edit(made.base / "config.json", quantization_config={"quant_method": "gptq"})
    assert "quantised" in refused(made)[0]


def test_a_weight_of_whole_numbers(made):
    def change(held):
        return {n: Tensor("I8", t.shape, bytes(t.size)) if "down_proj" in n else t for n, t in held.items()}

    for file in made.base.glob("*.safetensors"):
        rewrite(file, change)
    assert set(refused(made)[0]) == {"quantised"}


def test_an_adapter_with_nan(made):
    def change(held):
        name = next(iter(held))
        spoilt = held[name].float32().copy()
        spoilt[0, 1] = np.nan
        return held | {name: Tensor.of(spoilt)}

    rewrite(made.adapter / "adapter_model.safetensors", change)
    codes, text = refused(made)
    assert codes == ["nonfinite"]
    assert "allow_nonfinite=True" in text
    made.merge(made.base.parent / "out", allow_nonfinite=True)


def test_a_number_that_the_dtype_does_not_hold(made):
    def change(held):
        return {n: Tensor.of(t.float32() * np.float32(1e4)) for n, t in held.items()}

    rewrite(made.adapter / "adapter_model.safetensors", change)
    codes, text = refused(made, dtype="fp16")
    assert codes == ["overflow"]
    assert 'dtype="bf16"' in text


@pytest.mark.parametrize("dtype", [None, "fp32", "bf16", "fp16"])
def test_a_sum_that_no_dtype_holds(made, dtype):
    """Finite factors and a finite scale whose product is none."""
    rewrite(
        made.adapter / "adapter_model.safetensors",
        lambda held: {n: Tensor.of(t.float32() * np.float32(1e15)) for n, t in held.items()},
    )
    edit(made.adapter / "adapter_config.json", lora_alpha=9e29)
    codes, text = refused(made, dtype=dtype)
    assert codes == ["overflow"]
    assert "the adapter's scale is 3e+29" in text or 'dtype="bf16"' in text


def test_inf_in_the_base_is_said_to_be_of_the_base(made):
    def change(held):
        wanted = {n: t.float32().copy() for n, t in held.items() if "q_proj" in n}
        for spoilt in wanted.values():
            spoilt[0, 0] = np.inf
        return held | {name: Tensor.of(spoilt) for name, spoilt in wanted.items()}

    for file in made.base.glob("*.safetensors"):
        rewrite(file, change)
    codes, text = refused(made)
    assert codes == ["nonfinite"]
    assert "the base's own tensor" in text
    made.merge(made.base.parent / "out", allow_nonfinite=True)


def test_an_alora_acts_on_some_tokens_alone(made):
    edit(made.adapter / "adapter_config.json", alora_invocation_tokens=[1, 2])
    assert refused(made)[0] == ["conditional"]


def test_repeated_layers(made):
    edit(made.adapter / "adapter_config.json", layer_replication=[[0, 2], [1, 2]])
    codes, text = refused(made)
    assert codes == ["variant-unsupported"]
    assert "Expand the base first" in text


def test_a_bias_for_a_module_without_one(tmp_path):
    made = pair(tmp_path, targets=["q_proj"], lora_bias=True)
    codes, text = refused(made)
    assert set(codes) == {"module-missing"}
    assert "peft merges no such adapter either" in text


def test_a_head_that_the_base_does_not_have(tmp_path):
    from adaptrix.base.meta_model import model_classes
    from tests.helpers.families import tiny_config

    heads = [kind.__name__ for kind in model_classes(tiny_config("llama"))]
    head = heads.index("LlamaForSequenceClassification")
    made = pair(tmp_path, build=lambda: tiny_model("llama", head=head), targets=["q_proj"], task_type="SEQ_CLS")
    shutil.rmtree(made.base)
    tiny_model("llama").save_pretrained(made.base)
    codes, text = refused(made)
    assert codes == ["module-missing"]
    assert "score" in text


def test_trained_tokens_beyond_the_base(tmp_path):
    made = pair(tmp_path, targets=["q_proj"], trainable_token_indices=[1, 4])
    edit(made.adapter / "adapter_config.json", trainable_token_indices=[1, 400])
    codes, text = refused(made)
    assert codes == ["vocabulary"]
    assert "token 400" in text


def test_a_vocabulary_that_grew_on_one_side(made):
    config = {"modules_to_save": ["lm_head"]}
    edit(made.adapter / "adapter_config.json", **config)
    head = {"base_model.model.lm_head.weight": Tensor.of(np.zeros((71, 24), np.float32))}
    rewrite(made.adapter / "adapter_model.safetensors", lambda held: held | head)
    codes, text = refused(made)
    assert codes == ["vocabulary"]
    assert "save_embedding_layers" in text


@pytest.mark.parametrize("out", ["base", "adapter", "base/out", "adapter/deep/out", "."])
def test_an_output_that_is_a_source(out, made, monkeypatch):
    monkeypatch.chdir(made.base.parent)
    if "deep" in out:
        Path("adapter/deep").mkdir()
    refused(made, out=out)
    refused(made, out=out, force=True)


def test_an_output_that_exists(made):
    out = made.base.parent / "out"
    made.merge(out)
    codes, text = refused(made)
    assert codes == ["output-exists"]
    assert "force=True" in text
    first = tensors(out)["model.layers.0.self_attn.q_proj.weight"].tobytes()
    made.merge(out, force=True, layers="1")
    assert tensors(out)["model.layers.0.self_attn.q_proj.weight"].tobytes() != first
    (out / "notes.txt").write_text("mine")
    assert refused(made, force=True)[0] == ["output-exists"]


def test_options_that_make_no_sense(made):
    assert refused(made, dtype="int8")[0] == ["option"]
    assert refused(made, layers="most")[0] == ["policy"]
    assert refused(made, out="no/such/folder/out")[0] == ["output-invalid"]


def test_a_failure_in_one_thread_ends_the_others(made, monkeypatch):
    real = shards.pieces

    def broken(stored, change, dtype, where, **options):
        if "layers.1" in where:
            raise OSError(28, "No space left on device")
        yield from real(stored, change, dtype, where, **options)

    monkeypatch.setattr(shards, "pieces", broken)
    codes, text = refused(made)
    assert codes == ["disk-full"]
    assert "the disk is full" in text


def test_without_torch(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r'pip install "adaptrix\[torch\]"'):
        merge(made.adapter, made.base, made.base.parent / "out")


RUN = "import sys; from adaptrix.cli import run; {before}; sys.exit(run(sys.argv[1:]))"


def process(before, made, *args, **options):
    command = ["merge", str(made.adapter), "--base", str(made.base), "-o", str(made.base.parent / "out"), *args]
    run = [sys.executable, "-c", RUN.format(before=before), *command]
    return subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_file_larger_than_the_system_allows(made):
    before = "import torch, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))"
    done = process(before, made)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 1
    assert "does not allow a file this large" in err
    assert sorted(os.listdir(made.base.parent)) == ["adapter", "base"]


def test_a_full_disk(made):
    full = made.base.parent / "full"
    full.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", full], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(RefusedError, match="the disk is full"):
            made.merge(full / "out")
        assert os.listdir(full) == []
    finally:
        subprocess.run(["umount", full], check=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_in_the_middle(number, code, made):
    """The first product waits for ever; the signal comes while it does."""
    slow = (
        "import time, signal; from adaptrix.cli import _terminate; signal.signal(signal.SIGTERM, _terminate);"
        " from adaptrix.merging import shards; real = shards._put;"
        " shards._put = lambda out, piece, at: (time.sleep(0.2), real(out, piece, at))"
    )
    running = process(slow, made)
    home = made.base.parent
    for _ in range(1200):
        if any(path.name.startswith(".adaptrix-") for path in home.iterdir()):
            break
        time.sleep(0.05)
    time.sleep(0.3)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert "nothing was left half-written" in err
    assert sorted(os.listdir(home)) == ["adapter", "base"]


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    return placed(tmp_path, capsys, monkeypatch)


def test_the_command(place, kept):
    code, out, err = place.run("merge", kept.adapter, "--base", kept.base, "-o", "merged")
    assert code == 0, err
    assert "6 of 30 tensors changed" in out
    assert "plan all" in out
    code, out, err = place.run("merge", kept.adapter, "--base", kept.base, "-o", "merged", "--json")
    assert code == 2
    assert json.loads(out)["problems"][0]["code"] == "output-exists"
    code, out, _ = place.run("merge", kept.adapter, "--base", kept.base, "-o", "merged", "--json", "--force")
    told = json.loads(out)
    assert (code, told["ok"], told["changed"], told["tensors"]) == (0, True, 6, 30)
    code, out, err = place.run("merge", kept.adapter, "--base", kept.base, "-q")
    assert (code, out, err) == (0, "", "")
    assert Path("adapter-merged").is_dir()
    assert place.run("merge", kept.adapter)[0] == 2
    code, _, err = place.run("merge", kept.adapter, "--base", kept.base / "config.json")
    assert code == 2
    assert "Name the folder that it is in" in err
    assert place.run("merge", kept.adapter, "--base", "./absent")[0] == 2


def test_equal_numbers_on_two_threads_and_one(made, monkeypatch):
    made.merge(made.base.parent / "two")
    monkeypatch.setattr(shards, "_cores", lambda: 1)
    before = torch.get_num_threads()
    made.merge(made.base.parent / "one")
    assert torch.get_num_threads() == before
    for file in (made.base.parent / "one").glob("*.safetensors"):
        assert file.read_bytes() == (made.base.parent / "two" / file.name).read_bytes()


def test_where_the_system_cannot_copy(made, monkeypatch):
    def cannot(*_):
        raise OSError(18, "Invalid cross-device link")

    made.merge(made.base.parent / "copied")
    monkeypatch.setattr(os, "copy_file_range", cannot)
    made.merge(made.base.parent / "read")
    for file in (made.base.parent / "read").glob("*.safetensors"):
        assert file.read_bytes() == (made.base.parent / "copied" / file.name).read_bytes()


def test_a_base_that_shrinks_meanwhile(made, monkeypatch):
    real = shards.write_shard

    def shrinking(path, entries, metadata, progress):
        for file in made.base.glob("*.safetensors"):
            os.truncate(file, 300)
        real(path, entries, metadata, progress)

    monkeypatch.setattr(shards, "write_shard", shrinking)
    with pytest.raises(RefusedError, match="the file changed while it was read: it had"):
        made.merge(made.base.parent / "out")
    assert not (made.base.parent / "out").exists()


def test_an_adapter_whose_weights_are_not_read(made):
    """Its tensors are in memory only where the checkpoint is a pickle; the merge is the same."""
    torch.save({n: torch.from_numpy(t.float32().copy()) for n, t in weights(made.adapter).items()},
               made.adapter / "adapter_model.bin")  # fmt: skip
    made.merge(made.base.parent / "one")
    (made.adapter / "adapter_model.safetensors").unlink()
    made.merge(made.base.parent / "two")
    for file in (made.base.parent / "one").glob("*.safetensors"):
        assert file.read_bytes() == (made.base.parent / "two" / file.name).read_bytes()
