"""The injection file: what is in it, that equal input gives equal bytes, and that no manifest gets past the reader."""

import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adaptrix
from adaptrix.errors import RefusedError
from adaptrix.formats import safetensors_file
from adaptrix.inspection import summarise
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.tensor import Tensor
from tests.helpers.odd_json import changed, put
from tests.helpers.peft_models import (
    assert_deltas,
    assert_same_deltas,
    deltas,
    load,
    logits,
    same_tensors,
    save,
    weights,
)
from tests.helpers.peft_types import save_of

QV = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    keys = {"modules_to_save": ["norm"], "rank_pattern": {"v_proj": 2}, "use_rslora": True}
    return save(tmp_path_factory.mktemp("saved"), target_modules=[*QV, "embed_tokens"], **keys)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    keys = {"target_parameters": ["experts.down_proj"], "target_modules": ["o_proj"]}
    return save(tmp_path_factory.mktemp("experts"), "mixtral", **keys)


def convert(source, folder, stem="a", **options):
    return adaptrix.convert(source, folder / f"{stem}.adaptrix.safetensors", **options)


def manifest(file):
    return json.loads(safetensors_file.read(file)[1]["adaptrix"])


def test_equal_input_gives_equal_bytes(saved, tmp_path):
    one, two = (convert(saved.folder, tmp_path, name, base=saved.base, name="same") for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    again = convert(one, tmp_path, "c")
    assert again.read_bytes() == one.read_bytes()


def test_everything_is_in_the_file_whatever_the_plan(saved, tmp_path):
    file = convert(saved.folder, tmp_path, base=saved.base, layers="1")
    tensors = safetensors_file.read(file)[0]
    held = sorted(tensor.tobytes() for tensor in tensors.values())
    assert held == sorted(tensor.tobytes() for tensor in saved.tensors.values())
    assert {"layers.0.q.lora_A", "layers.2.v.lora_B", "embed.lora_A", "extras.model.norm.weight"} <= tensors.keys()
    said = manifest(file)
    assert said["plan"]["layers"] == {"layers": [1]}
    assert said["deltas"]["layers.0.v"] == {
        "kind": "lora",
        "module": "model.layers.0.self_attn.v_proj",
        "rank": 2,
        "alpha": 7.0,
        "scale": 7 / 2**0.5,
        "rslora": True,
    }
    assert said["source"]["files"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert {d["from"] for d in said["base"]["dims"].values()} == {"config"}


@pytest.mark.parametrize("layers", ["all", "middle", "0,2", "energy:1"])
def test_a_file_keeps_its_plan(saved, layers, tmp_path):
    file = convert(saved.folder, tmp_path, base=saved.base, layers=layers)
    again = convert(file, tmp_path, "b")
    assert manifest(again)["plan"] == manifest(file)["plan"]
    other = convert(file, tmp_path, "c", layers="2")
    assert manifest(other)["plan"]["layers"] == {"layers": [2]}


@pytest.mark.parametrize("options", [{"redistribute": "nearest"}, {"rank": 1}, {"redistribute": "nearest", "rank": 2}])
def test_a_file_keeps_its_overrides(saved, options, tmp_path):
    file = convert(saved.folder, tmp_path, base=saved.base, layers="1", **options)
    again = convert(file, tmp_path, "b")
    assert manifest(file)["overrides"].keys() == {"layers.1.q", "layers.1.v"}
    assert again.read_bytes() == file.read_bytes()
    back = adaptrix.convert(again, tmp_path / "back", to="peft")
    same_tensors(saved.tensors, weights(back))
    assert torch.equal(logits(load(back, saved.build)), saved.logits)


def test_a_rank_recompresses_what_is_in_force(saved, tmp_path):
    folded = convert(saved.folder, tmp_path, base=saved.base, layers="1", redistribute="nearest")
    small = convert(folded, tmp_path, "b", rank=2)
    plan = Pipeline().convert(str(small), tmp_path / "c.adaptrix.safetensors", Options()).plan
    for role in "qv":
        whole = sum(saved.deltas[f"model.layers.{layer}.self_attn.{role}_proj"] for layer in range(3))
        U, s, V = np.linalg.svd(whole)
        best = (U[:, :2] * s[:2]) @ V[:2]
        (delta,) = (plan.delta(site) for site in plan.sites if site.role == role)
        np.testing.assert_allclose(delta.dense(), best, atol=1e-5)


def test_the_deltas_of_a_file_are_those_of_its_source(saved, experts, tmp_path):
    for number, source in enumerate((saved, experts)):
        report = adaptrix.check(convert(source.folder, tmp_path, str(number), base=source.base))
        assert report.problems == ()
        assert_deltas(report.bound, source.deltas)


def test_a_file_of_no_known_family(saved, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "unheard_of"}')
    file = convert(saved.folder, tmp_path, base=tmp_path / "base")
    assert "modules.model.layers.2.self_attn.q_proj" in manifest(file)["deltas"]
    assert manifest(convert(file, tmp_path, "b")) == manifest(file)
    same_tensors(saved.tensors, weights(adaptrix.convert(file, tmp_path / "back", to="peft")))


def test_pruning_a_file_means_its_own_plan(saved, tmp_path):
    file = convert(saved.folder, tmp_path, base=saved.base, layers="1")
    pruned = convert(file, tmp_path, "b", prune=True)
    assert adaptrix.check(pruned).problems == ()
    assert manifest(pruned)["deltas"].keys() == {"layers.1.q", "layers.1.v"}
    back = adaptrix.convert(file, tmp_path / "back", to="peft", prune=True)
    assert all("layers.1" in name for name in weights(back) if "lora_" in name)


def rewritten(file, folder, said, tensors=None):
    """A copy of a file with another manifest, and perhaps other tensors."""
    path = folder / "other.adaptrix.safetensors"
    safetensors_file.write(path, safetensors_file.read(file)[0] | (tensors or {}), {"adaptrix": json.dumps(said)})
    return path


def test_gains_are_kept_and_pruned_into_the_deltas(saved, tmp_path):
    file = convert(saved.folder, tmp_path, base=saved.base, layers="1-2")
    file = rewritten(file, tmp_path, put(manifest(file), ("plan", "gains"), {"1": 0.5}))
    assert manifest(convert(file, tmp_path, "b"))["plan"]["gains"] == {"1": 0.5}
    same_tensors(saved.tensors, weights(adaptrix.convert(file, tmp_path / "all", to="peft")))
    found = deltas(load(adaptrix.convert(file, tmp_path / "out", to="peft", prune=True), saved.build))
    gains = {f"model.layers.{layer}.self_attn.{m}": gain for layer, gain in ((1, 0.5), (2, 1.0)) for m in QV}
    assert_same_deltas(found, {path: gain * saved.deltas[path] for path, gain in gains.items()})


# -- files from strangers ------------------------------------------------------------------------------------------


OTHERS = {"VERA": {"r": 3}, "FOURIERFT": {}, "VBLORA": {"save_only_topk_weights": True}, "LOKR": {"r": 2}, "IA3": {}}


@pytest.fixture(scope="module")
def files(saved, experts, tmp_path_factory):
    """Files that between them use every part of the manifest."""
    folder = tmp_path_factory.mktemp("files")
    one = convert(saved.folder, folder, "a", base=saved.base, layers="1", redistribute="nearest", rank=2)
    two = convert(experts.folder, folder, "b", base=experts.base)
    three = [(kind, save_of(kind, folder / kind, **keys)) for kind, keys in OTHERS.items()]
    others = [convert(saved.folder, folder, kind, base=saved.base) for kind, saved in three]
    return [(manifest(file), safetensors_file.read(file)[0]) for file in (one, two, *others)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_manifest_is_refused_or_harmless(files, tmp_path, data):
    said, tensors = data.draw(st.sampled_from(files))
    for _ in range(data.draw(st.integers(1, 3))):
        said = changed(said, data.draw)
    file = tmp_path / "bad.adaptrix.safetensors"
    file.unlink(missing_ok=True)
    safetensors_file.write(file, tensors, {"adaptrix": json.dumps(said)})
    report = adaptrix.check(file)
    if report.bound is not None:
        summarise(report.bound)
        json.dumps(report.as_dict())
    if not report.ok:
        return
    for name, options in {
        "c.adaptrix.safetensors": {},
        "d": {"to": "peft"},
        "e": {"to": "peft", "prune": True},
    }.items():
        with suppress(adaptrix.AdaptrixError):  # nothing else
            adaptrix.convert(file, tmp_path / name, force=True, **options)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", "3", '{"version": 2}', '{"version": true}', "[" * 99_999, "\\ud800"]
)
def test_a_manifest_that_is_none(text, tmp_path):
    file = tmp_path / "bad.adaptrix.safetensors"
    safetensors_file.write(file, {}, {"adaptrix": text})
    with pytest.raises(RefusedError) as caught:
        adaptrix.load(file)
    assert {problem.code for problem in caught.value.problems} == {"injection-invalid"}


def test_what_replaces_a_delta_has_its_shape(saved, tmp_path):
    file = convert(saved.folder, tmp_path, base=saved.base, layers="1", rank=1)
    short = Tensor.of(np.ones((30, 1), np.float32))
    file = rewritten(file, tmp_path, manifest(file), {"plan.layers.1.q.lora_B": short})
    assert {problem.code for problem in adaptrix.check(file).problems} == {"injection-invalid"}


def test_tensors_and_manifest_must_agree(files, tmp_path):
    said, tensors = files[0]
    tensors = dict(tensors)
    del tensors["layers.0.q.lora_A"], tensors["extras.model.norm.weight"]
    tensors["layers.0.k.lora_A"] = tensors["layers.2.q.lora_A"]
    said = put(said, ("deltas", "layers.1.v", "scale"), 1.0)
    said = put(said, ("deltas", "layers.2.v", "rank"), 3)
    said = put(said, ("overrides", "layers.1.q", "module"), "model.layers.1.self_attn.v_proj")
    file = tmp_path / "bad.adaptrix.safetensors"
    safetensors_file.write(file, tensors, {"adaptrix": json.dumps(said)})
    codes = {problem.code for problem in adaptrix.check(file).problems if problem.severity == "error"}
    assert codes == {
        "adapter-incomplete",
        "tensor-unexpected",
        "injection-invalid",
        "rank",
    }


def test_a_module_belongs_to_its_site(files, tmp_path):
    said, tensors = files[0]
    modules = {site: said["deltas"][site]["module"] for site in ("layers.0.q", "layers.1.q")}
    for site, other in (("layers.0.q", "layers.1.q"), ("layers.1.q", "layers.0.q")):
        for table in ("deltas", "overrides"):
            if site in said[table]:
                said = put(said, (table, site, "module"), modules[other])
    file = tmp_path / "bad.adaptrix.safetensors"
    safetensors_file.write(file, tensors, {"adaptrix": json.dumps(said)})
    moved = [problem.where for problem in adaptrix.check(file).problems if problem.code == "injection-invalid"]
    assert sorted(moved) == ["layers.0.q", "layers.1.q"]
