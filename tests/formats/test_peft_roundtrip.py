"""peft → injection file → peft gives back what went in, for every family; peft is the judge."""

import re

import numpy as np
import pytest
import torch
from peft.tuners.lora.layer import LoraLayer

import adaptrix
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from tests.helpers.families import FAMILIES, tiny_model
from tests.helpers.peft_models import (
    assert_lossless,
    assert_same_deltas,
    deltas,
    everything,
    load,
    logits,
    rewrite,
    save,
    weights,
)

NATURAL = [(family, 0, 0) for family in FAMILIES]
#: other model types, cross attention, and heads other than the natural one
OTHERS = [
    ("bert", 1, 0),
    ("gpt2", 1, 0),
    ("falcon", 1, 0),
    ("llama", 1, 0),
    ("gemma2", 1, 0),
    ("t5", 2, 0),
    ("opt", 1, 0),
]


@pytest.mark.parametrize(("family", "variant", "head"), NATURAL + OTHERS)
def test_every_family(family, variant, head, tmp_path):
    def build():
        return tiny_model(family, variant=variant, head=head)

    assert_lossless(save(tmp_path, build=build, **everything(family, build())), tmp_path)


# -- what loses something on purpose -------------------------------------------------------------------------------

QV = ["q_proj", "v_proj"]
LOSSY = {
    "llama": (
        "llama",
        {"target_modules": [*QV, "embed_tokens"], "modules_to_save": ["norm"], "rank_pattern": {"v_proj": 2}},
    ),
    "rslora": ("llama", {"target_modules": QV, "use_rslora": True, "alpha_pattern": {"q_proj": 3}}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj", "wte"], "bias": "all"}),
    "biases of the adapted": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "bias": "lora_only"}),
    "DoRA": ("llama", {"target_modules": QV, "use_dora": True}),
    "lora_bias": ("qwen2", {"target_modules": QV, "lora_bias": True}),
    "experts": (
        "mixtral",
        {"target_parameters": ["gate_up_proj", "experts.down_proj", "gate.weight"], "target_modules": QV},
    ),
    "replication": ("llama", {"target_modules": QV, "layer_replication": [[0, 2], [0, 3]]}),
    "tokens": ("llama", {"target_modules": QV, "trainable_token_indices": [4, 5]}),
}


def silenced(saved, keep):
    """The adapted model with the LoRA of all layers but some turned off, by peft."""
    model = load(saved.folder, saved.build)
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and not any(f".{layer}." in path for layer in keep):
            module.scaling["default"] = 0.0
            if module.use_dora["default"]:
                module.enable_adapters(False)
    return model


@pytest.mark.parametrize("name", LOSSY)
def test_pruned(name, tmp_path):
    family, keys = LOSSY[name]
    saved = save(tmp_path, family, **keys)
    out = adaptrix.convert(saved.folder, tmp_path / "out", to="peft", base=saved.base, layers="1-2", prune=True)
    model = load(out, saved.build)
    wanted = {path: delta for path, delta in saved.deltas.items() if ".1." in path or ".2." in path}
    assert_same_deltas(deltas(model), wanted)
    assert 0 < len(wanted) < len(saved.deltas)
    torch.testing.assert_close(logits(model), logits(silenced(saved, (1, 2))), rtol=1e-5, atol=1e-6)
    assert adaptrix.check(out, saved.base).ok
    extras = {n: t.tobytes() for n, t in saved.tensors.items() if ".lora_" not in n}
    kept = {n: t.tobytes() for n, t in weights(out).items() if ".lora_" not in n}
    assert sorted(kept.values()) == sorted(extras.values())


def best(matrix, rank):
    U, s, V = torch.linalg.svd(torch.tensor(matrix))
    return ((U[:, :rank] * s[:rank]) @ V[:rank]).numpy()


def note(conversion, code):
    return next(problem.found for problem in conversion.problems if problem.code == code)


@pytest.mark.parametrize("name", ["llama", "rslora", "Conv1D", "biases of the adapted", "lora_bias"])
@pytest.mark.parametrize("rank", [None, 2, 9])
def test_redistributed(name, rank, tmp_path):
    family, keys = LOSSY[name]
    saved = save(tmp_path, family, **keys)
    options = Options(to="peft", base=str(saved.base), layers="1", redistribute="nearest", rank=rank, prune=True)
    done = Pipeline().convert(str(saved.folder), tmp_path / "out", options)
    found = deltas(load(done.path, saved.build))
    sums = {}
    for path, delta in saved.deltas.items():
        if any(f".{layer}." in path for layer in range(3)):
            home = re.sub(r"\.\d\.", ".1.", path)
            sums[home] = sums.get(home, 0) + delta
    wanted = {path: total if rank is None else best(total, rank) for path, total in sums.items()}
    assert_same_deltas(found, wanted)
    worst = max(np.linalg.norm(found[path] - sums[path]) / np.linalg.norm(sums[path]) for path in found)
    said = float(re.search(r"at most (\S+)", note(done, "approximation"))[1])
    assert said == pytest.approx(worst, rel=0.01, abs=2e-7)


def test_recompressed_beside_untouched_under_rslora(tmp_path):
    saved = save(tmp_path, target_modules=QV, use_rslora=True, rank_pattern={"v_proj": 5})
    out = adaptrix.convert(saved.folder, tmp_path / "out", "peft", saved.base, rank=4, prune=True)
    wanted = {path: best(delta, 4) for path, delta in saved.deltas.items()}  # q has rank 3, and stays as it is
    assert_same_deltas(deltas(load(out, saved.build)), wanted)


def test_folded_biases_are_summed_as_they_act(tmp_path):
    family, keys = LOSSY["lora_bias"]
    saved = save(tmp_path, family, **keys)
    out = adaptrix.convert(
        saved.folder, tmp_path / "out", "peft", saved.base, layers="1", redistribute="nearest", prune=True
    )
    module = load(out, saved.build).get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    old = [saved.tensors[f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_B.bias"].float64() for i in range(3)]
    bias = module.lora_B["default"].bias.detach().numpy() * module.scaling["default"]
    np.testing.assert_allclose(bias, 7 / 3 * sum(old), rtol=1e-5)


@pytest.mark.parametrize("name", ["DoRA", "experts"])
def test_what_has_no_sum_is_refused(name, tmp_path):
    family, keys = LOSSY[name]
    saved = save(tmp_path, family, **keys)
    with pytest.raises(adaptrix.AdaptrixError) as caught:
        adaptrix.convert(
            saved.folder, tmp_path / "out", "peft", saved.base, layers="1", redistribute="nearest", prune=True
        )
    assert {problem.code for problem in caught.value.problems} == {"kind-unsupported"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64", "F8_E4M3"])
def test_cast(dtype, tmp_path):
    family, keys = LOSSY["llama"]
    saved = save(tmp_path, family, **keys)
    done = Pipeline().convert(
        str(saved.folder), tmp_path / "out", Options(to="peft", base=str(saved.base), dtype=dtype)
    )
    before, after = saved.tensors, weights(done.path)
    assert before.keys() == after.keys()
    assert {after[name].dtype for name in after if "lora_" in name} == {dtype}
    errors = [
        np.linalg.norm(before[n].float64() - t.float64()) / np.linalg.norm(before[n].float64())
        for n, t in after.items()
    ]
    assert float(note(done, "approximation").rpartition(" ")[2]) == pytest.approx(max(errors), rel=0.01)
    theirs = {"BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn}[dtype]
    for name, tensor in after.items():
        if "lora_" in name:
            rounded = torch.tensor(before[name].numpy()).to(theirs).double().numpy()
            assert np.array_equal(tensor.float64(), rounded), name


@pytest.mark.parametrize("dtype", ["F16", "F8_E4M3", "F8_E5M2"])
def test_a_cast_that_would_lose_its_range_is_refused(dtype, tmp_path):
    saved = save(tmp_path, target_modules=QV)
    rewrite(saved.folder, lambda tensors: {name: 1e7 * tensor for name, tensor in tensors.items()})
    with pytest.raises(adaptrix.AdaptrixError, match="beyond the range"):
        adaptrix.convert(saved.folder, tmp_path / "out", "peft", saved.base, dtype=dtype)
    assert adaptrix.convert(saved.folder, tmp_path / "out", "peft", saved.base, dtype="BF16")


def test_a_folder_that_cannot_hold_the_plan_says_so(tmp_path):
    family, keys = LOSSY["llama"]
    saved = save(tmp_path, family, **keys)
    with pytest.raises(adaptrix.AdaptrixError) as caught:
        adaptrix.convert(saved.folder, tmp_path / "out", "peft", saved.base, layers="1")
    assert caught.value.problems[0].code == "format-loss"
