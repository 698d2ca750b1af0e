"""Bases in torch's own files: read as the same base in safetensors is, and never unpickled."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

import adaptrix
from adaptrix.errors import RefusedError
from tests.helpers.finetunes import tuned
from tests.helpers.merge_models import merge, pair, tensors


def pickled(folder, save=torch.save):
    """Turns a folder's safetensors into what transformers wrote before: the same shards, and an index of them."""

    def older(name):
        return "pytorch_" + name.replace(".safetensors", ".bin")

    for file in folder.glob("*.safetensors"):
        save(load_file(file), folder / older(file.name))
        file.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        said = json.loads(index.read_text())
        places = {name: older(file) for name, file in said["weight_map"].items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(said | {"weight_map": places}))
        index.unlink()


@pytest.fixture
def unloaded(monkeypatch):
    """Nobody is to open a pickle."""

    def refuse(*_args, **_keys):
        raise AssertionError

    monkeypatch.setattr(torch, "load", refuse)


def held(folder):
    return {name: (tensor.dtype, tensor.shape, tensor.tobytes()) for name, tensor in tensors(folder).items()}


@pytest.mark.parametrize("shard", ["20KB", "2GB"])
def test_the_result_is_that_of_safetensors(shard, tmp_path, unloaded):
    made = pair(tmp_path, dtype=torch.bfloat16, shard=shard)
    made.merge(tmp_path / "one")
    pickled(made.base)
    done = made.merge(tmp_path / "two", verify=True)
    assert done.agreement.effect > 0
    assert held(tmp_path / "one") == held(tmp_path / "two")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}
    if shard == "20KB":
        indexes = [json.loads((tmp_path / f / "model.safetensors.index.json").read_text()) for f in ("one", "two")]
        assert indexes[0] == indexes[1]
    assert not list((tmp_path / "two").glob("*.bin*"))


def test_a_state_dict_with_tied_and_turned_tensors(tmp_path, unloaded):
    """As a model's own state is saved: a head that shares the embedding's bytes, a weight stored by columns."""
    made = pair(tmp_path, "gpt2", targets=["c_attn", "c_proj"])
    made.merge(tmp_path / "one")
    state = made.model.get_base_model().state_dict()
    own = {name: state[name] for name in state if "lora" not in name and "base_layer" not in name}
    own |= load_file(made.base / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    own[name] = own[name].T.contiguous().T
    own["lm_head.weight"] = own["transformer.wte.weight"]
    (made.base / "model.safetensors").unlink()
    torch.save(own, made.base / "pytorch_model.bin")
    made.merge(tmp_path / "two", verify=True)
    one, two = held(tmp_path / "one"), held(tmp_path / "two")
    assert two.pop("lm_head.weight") == one["transformer.wte.weight"]
    assert one == two


def test_safetensors_come_first(tmp_path, unloaded):
    made = pair(tmp_path)
    made.merge(tmp_path / "one")
    torch.save({"model.norm.weight": torch.zeros(1)}, made.base / "pytorch_model.bin")
    made.merge(tmp_path / "two")
    assert held(tmp_path / "one") == held(tmp_path / "two")


def test_fidelity_and_extraction_read_them(tmp_path, unloaded):
    made = pair(tmp_path / "pair")
    case = tuned(tmp_path / "tuned")
    before = adaptrix.fidelity(made.adapter, made.base, list(range(3, 20)))
    plain = adaptrix.extract(case.folder, case.base, 3, tmp_path / "plain", "peft")
    for folder in (made.base, case.folder, case.base):
        pickled(folder)
    after = adaptrix.fidelity(made.adapter, made.base, list(range(3, 20)))
    assert [row.kl for row in before.rows] == [row.kl for row in after.rows]
    assert max(row.kl.value for row in after.rows) > 0
    done = adaptrix.extract(case.folder, case.base, 3, tmp_path / "out", "peft")
    assert held(plain.path) == held(done.path)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_that_does_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = pair(tmp_path)
    pickled(made.base, lambda _state, path: torch.save({"a": torch.ones(2), "b": Harmful()}, path))
    for call in (
        lambda: merge(made.adapter, made.base, tmp_path / "out", verify=True),
        lambda: adaptrix.fidelity(made.adapter, made.base, list(range(3, 20))),
        lambda: adaptrix.extract(made.base, made.base, 3, tmp_path / "out"),
    ):
        with pytest.raises(RefusedError, match="mkdir"):
            call()
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def test_what_is_missing_and_what_is_damaged(tmp_path):
    made = pair(tmp_path, shard="20KB")
    pickled(made.base)
    index = made.base / "pytorch_model.bin.index.json"
    said = index.read_text()
    shards = sorted(made.base.glob("*.bin"))

    def codes():
        with pytest.raises(RefusedError) as caught:
            merge(made.adapter, made.base, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return {problem.code for problem in caught.value.problems}

    index.write_text(json.dumps(json.loads(said) | {"weight_map": {"a": shards[0].name}}))
    assert codes() == {"base-incomplete"}
    index.unlink()
    assert codes() == {"base-incomplete"}
    index.write_text(said)
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:-100])
    shards[1].unlink()
    assert len(codes()) == 2
    shards[0].write_bytes(pickle.dumps({"a": 1}))
    assert codes() == {"file-unsupported", "base-incomplete"}
