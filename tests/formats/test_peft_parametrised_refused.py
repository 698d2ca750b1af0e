"""Checkpoints and files of PEFT types other than LoRA that do not fit are refused, each for its reason."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors import safe_open

import adaptrix
from adaptrix.errors import RefusedError
from adaptrix.formats import safetensors_file
from adaptrix.tensor import Tensor
from tests.helpers.peft_models import rewrite
from tests.helpers.peft_types import save_of


def changed(**shapes):
    """Replaces tensors of the first module by zeros of other shapes; None removes one."""

    def change(tensors):
        name = next(name for name in tensors if "layers.0.self_attn.q_proj" in name).rpartition(".")[0]
        for leaf, shape in shapes.items():
            tensors.pop(f"{name}.{leaf}", None)
            if shape is not None:
                tensors[f"{name}.{leaf}"] = torch.zeros(shape)
        return tensors

    return change


def keys_of(keys):
    """Those that the adapter is made with, and not changed to later."""
    return {key: value for key, value in keys.items() if key == "save_only_topk_weights"}


def outside(tensors):
    return {name: t + 99 if name.endswith("indices") else t for name, t in tensors.items()}


BANK = "base_model.vblora_vector_bank"
HALF = "gralora_A_general.weight"
BAD = {
    "a LoHa without a part": ("LOHA", changed(hada_w2_b=None), {}, "adapter-incomplete"),
    "a LoHa of two shapes": ("LOHA", changed(hada_w2_b=(3, 20)), {}, "shape"),
    "a LoHa whose factors do not fit": ("LOHA", changed(hada_w1_b=(4, 24)), {}, "rank"),
    "another rank": ("LOHA", None, {"r": 5}, "rank"),
    "an alpha of text": ("LOHA", None, {"alpha": "7"}, "config-value"),
    "a convolution": ("LOHA", changed(hada_t1=(3, 3, 2, 2)), {}, "variant-unsupported"),
    "a LoKr with both": ("LOKR", changed(lokr_w1_a=(4, 2)), {}, "adapter-incomplete"),
    "a huge LoKr": (
        "LOKR",
        changed(lokr_w1=(999, 999), lokr_w2=(999, 999), lokr_w2_a=None, lokr_w2_b=None),
        {},
        "shape",
    ),
    "an AdaLoRA without E": ("ADALORA", changed(lora_E=None), {}, "adapter-incomplete"),
    "an AdaLoRA of another rank": ("ADALORA", None, {"init_r": 4}, "rank"),
    "masks that are ranks": ("ADALORA", None, {"rank_pattern": {"x.lora_E": 3}}, "config-value"),
    "a VeRA without b": ("VERA", changed(vera_lambda_b=None), {"r": 3}, "adapter-incomplete"),
    "a VeRA of another rank": ("VERA", None, {"r": 4}, "rank"),
    "projections that are too small": ("VERA", lambda t: t | {"base_model.vera_A": torch.zeros(3, 7)}, {}, "shape"),
    "projections of another rank": ("VERA", lambda t: t | {"base_model.vera_A": torch.zeros(4, 99)}, {}, "shape"),
    "a MiSS of another size": ("MISS", changed(miss_block=(3, 19)), {"r": 3}, "shape"),
    "a MiSS on the base": ("MISS", None, {"init_weights": "bat"}, "variant-unsupported"),
    "a GraLoRA of unequal blocks": ("GRALORA", changed(gralora_A=(3, 8, 4)), {"gralora_k": 2}, "shape"),
    "a GraLoRA with half a LoRA": (
        "GRALORA",
        changed(**{"gralora_A_general.weight": (1, 24)}),
        {},
        "adapter-incomplete",
    ),
    "a DeLoRA without the norms of the base": ("DELORA", changed(delora_w_norm=None), {}, "adapter-incomplete"),
    "a VB-LoRA of another rank": ("VBLORA", changed(vblora_logits_A=(3, 12, 20)), {}, "rank"),
    "a bank of other vectors": (
        "VBLORA",
        lambda t: t | {BANK: torch.zeros(7, 2)},
        {},
        "shape",
    ),
    "a spectrum of two dimensions": ("FOURIERFT", changed(fourierft_spectrum=(4, 5)), {}, "shape"),
    "places of another base": ("SHIRA", outside, {}, "shape"),
    "no bank": ("VBLORA", lambda t: {n: x for n, x in t.items() if "bank" not in n}, {}, "adapter-incomplete"),
    "vectors that the bank has not": ("VBLORA", outside, {"save_only_topk_weights": True}, "shape"),
    "a SHiRA without its places": ("SHIRA", changed(shira_indices=None), {}, "adapter-incomplete"),
    "a flat C3A": ("C3A", changed(c3a_kernel=(10, 12)), {}, "shape"),
    "a module that is no target": ("LOHA", None, {"target_modules": ["v_proj"]}, "config-mismatch"),
    "a target without tensors": (
        "LOKR",
        None,
        {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        "adapter-incomplete",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name, tmp_path):
    kind, change, keys, code = BAD[name]
    saved = save_of(kind, tmp_path, **({"r": 3} if kind in ("LOHA", "LOKR", "VERA", "MISS") else {}), **keys_of(keys))
    rewrite(saved.folder, change, **keys)
    report = adaptrix.check(saved.folder, saved.base)
    assert code in {problem.code for problem in report.problems if problem.severity == "error"}
    assert all(problem.found for problem in report.problems)


SETTINGS = (
    {},
    {"in": 24},
    {"in": "24", "widest": 24, "tallest": 24, "seed": 0},
    {"in": 0, "widest": 24, "tallest": 24, "seed": 0},
    {"in": -1, "widest": 24, "tallest": 24, "seed": 0},
    {"in": 24, "widest": 24, "tallest": 24, "seed": 1 << 64},
    {"in": 24, "widest": 1 << 31, "tallest": 1 << 31, "seed": 0},
    {"in": 24, "widest": 24, "tallest": 24, "seed": 0, "more": 1},
    {"in": 24, "widest": 7, "tallest": 24, "seed": 0},
    [24],
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_of_a_file_that_are_none_are_refused_at_once(settings, tmp_path):
    saved = save_of("VERA", tmp_path, r=3, save_projection=False)
    file = adaptrix.convert(saved.folder, tmp_path / "a.adaptrix.safetensors", base=saved.base)
    with safe_open(file, "np") as held:
        manifest = json.loads(held.metadata()["adaptrix"])
    manifest["deltas"]["layers.1.q"]["settings"] = settings
    safetensors_file.write(tmp_path / "b.adaptrix.safetensors", weights_of(file), {"adaptrix": json.dumps(manifest)})
    start = time.monotonic()
    with pytest.raises(RefusedError) as error:
        adaptrix.convert(tmp_path / "b.adaptrix.safetensors", tmp_path / "c.adaptrix.safetensors")
    assert error.value.problems[0].code in ("injection-invalid", "shape")
    assert time.monotonic() - start < 2


def weights_of(file):
    return {name: Tensor(t.dtype, t.shape, t.tobytes()) for name, t in safetensors_file.read(file)[0].items()}
