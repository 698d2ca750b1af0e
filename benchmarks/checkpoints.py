"""Checkpoints as people really have them: named cases, each written from one good tiny adapter.

``BAD`` must be refused, with a message that holds every text in ``says``; ``GOOD`` must be read;
``UNTELLABLE`` are wrong, and nothing in the files shows it. ``benchmarks/bad_input.py`` shows them to peft
and to adaptrix, ``tests/cli/test_bad_input.py`` holds adaptrix to them. Here are those whose tensors matter; what
is wrong with files, folders and configs is in ``benchmarks/damaged.py``, and what other tools leave in
``benchmarks/foreign.py``.
"""

# ruff: noqa: E402  # the cases of damaged.py come after those of this file

from __future__ import annotations

import json

import numpy as np

from benchmarks.cases import BAD, GOOD, UNTELLABLE, Case, add, bad, good
from benchmarks.draft import (
    BASES,
    BFLOAT16,
    BIN,
    CONFIG,
    HIDDEN,
    INJECTION,
    INNER,
    LAYERS,
    MODULES,
    PREFIX,
    Q0,
    RANK,
    VOCAB,
    WEIGHTS,
    Draft,
    factors,
    injection,
    manifest,
    pair,
    torch_bytes,
)

__all__ = ["BAD", "GOOD", "UNTELLABLE", "Case", "damaged", "foreign"]


# -- what peft loads without a word, or nearly ------------------------------------------------------------------------


@bad("Llama adapter on OPT of the same width", Q0, "opt", base="opt")
def _(draft: Draft) -> None: ...


@bad("full model's weights renamed adapter_model", "full model")
def _(draft: Draft) -> None:
    shapes = {f"{path.format(0)}.weight": shape for path, shape in MODULES["llama"].items()}
    draft.tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@bad("a module's tensors missing in one layer", "v", "no tensors for layers 1")
def _(draft: Draft) -> None:
    draft.drop("layers.1.self_attn.v_proj")


@bad("4-layer adapter on a 2-layer model", "layers 2-3", "deeper")
def _(draft: Draft) -> None:
    draft.tensors = dict(factors(MODULES["llama"], 4))


@bad("unexpected keys", f"{Q0}.lora_C.weight", f"{Q0}.bias")
def _(draft: Draft) -> None:
    draft.tensors[f"{PREFIX}{Q0}.lora_C.weight"] = np.ones((2, 2), np.float32)
    draft.tensors[f"{PREFIX}{Q0}.bias"] = np.ones(HIDDEN, np.float32)


@bad("a NaN", f"{Q0} lora_A", "1 of 64", "--allow-nonfinite")
def _(draft: Draft) -> None:
    draft.tensors[f"{PREFIX}{Q0}.lora_A.weight"][0, 3] = np.nan


@bad("an Inf", f"{Q0} lora_B", "1 of 64", "--allow-nonfinite")
def _(draft: Draft) -> None:
    draft.tensors[f"{PREFIX}{Q0}.lora_B.weight"][5, 1] = np.inf


@bad("int8 tensors", f"{Q0} lora_A", "I8")
def _(draft: Draft) -> None:
    draft.cast(np.int8)


@bad("the config names a base of another family", Q0, "opt", args=())
def _(draft: Draft) -> None:
    draft.config["base_model_name_or_path"] = "{folder}/other"
    draft.files["other/config.json"] = json.dumps(dict(BASES["opt"])).encode()


@bad("a magnitude with use_dora false", Q0, "use_dora")
def _(draft: Draft) -> None:
    draft.config["use_dora"] = False
    draft.tensors[f"{PREFIX}{Q0}.lora_magnitude_vector"] = np.full(HIDDEN, 9, np.float32)


@bad("use_dora without magnitudes", Q0, "use_dora", "6 of 6")
def _(draft: Draft) -> None:
    draft.config["use_dora"] = True


@bad("A and B swapped", Q0, "swapped")
def _(draft: Draft) -> None:
    swap = {"lora_A": "lora_B", "lora_B": "lora_A"}
    draft.drop("v_proj")
    draft.drop("down_proj")
    draft.config["target_modules"] = ["q_proj"]
    draft.rename(lambda name: name.replace(word := "lora_A" if "lora_A" in name else "lora_B", swap[word]))


# -- what does not fit ------------------------------------------------------------------------------------------------


@bad("lora_B missing", f"{Q0} lora_B", "missing")
def _(draft: Draft) -> None:
    draft.drop(f"{Q0}.lora_B")


@bad("wrong dims", f"layers.0.q ({Q0})", "12", "hidden = 16")
def _(draft: Draft) -> None:
    draft.add(Q0, HIDDEN, 12)


@bad("r is not that of the tensors", Q0, "[4, 16]", "[8, in]", CONFIG)
def _(draft: Draft) -> None:
    draft.config["r"] = 8


@bad("rank of zero", f"{Q0} lora_A", "[0, 16]")
def _(draft: Draft) -> None:
    draft.add(Q0, HIDDEN, HIDDEN, rank=0)


@bad("one module twice, with prefix and without", f"{Q0}.lora_A.weight", "same tensor")
def _(draft: Draft) -> None:
    name = f"{PREFIX}{Q0}.lora_A.weight"
    draft.tensors[name.removeprefix(PREFIX)] = draft.tensors[name] + 1


@bad("layer index of a thousand million", "model.layers.1000000000.self_attn.q_proj")
def _(draft: Draft) -> None:
    draft.add("model.layers.1000000000.self_attn.q_proj", HIDDEN, HIDDEN)


@bad("layer index of a million less one, no base", "no tensors for layers 2-999998", args=())
def _(draft: Draft) -> None:
    draft.add("model.layers.999999.self_attn.q_proj", HIDDEN, HIDDEN)


@bad("20,000 keys", "layers 2-9999")
def _(draft: Draft) -> None:
    draft.config["target_modules"] = ["q_proj"]
    draft.tensors = dict(factors({"model.layers.{}.self_attn.q_proj": (HIDDEN, HIDDEN)}, 10_000))


@bad("two adapters in one file", "one, two", "selected_adapters")
def _(draft: Draft) -> None:
    draft.rename(lambda name: name.replace(".weight", ".one.weight" if "layers.0" in name else ".two.weight"))


@bad("path-like tensor name", WEIGHTS, "../../etc/passwd", "file path")
def _(draft: Draft) -> None:
    draft.tensors["../../etc/passwd.lora_A.weight"] = np.ones((RANK, HIDDEN), np.float32)


@bad("path-like adapter name in the keys", "lora_A.a/b", "not a name")
def _(draft: Draft) -> None:
    draft.rename(lambda name: name.replace("lora_A.weight", "lora_A.a/b.weight"))


@bad("control characters in a tensor's name", WEIGHTS, "control", r"\x1b[31m")
def _(draft: Draft) -> None:
    draft.tensors["\x1b[31m\r\n.lora_A.weight"] = np.ones((RANK, HIDDEN), np.float32)


# -- good -------------------------------------------------------------------------------------------------------------


@good("plain")
def _(draft: Draft) -> None: ...


@good("plain, no base", args=())
def _(draft: Draft) -> None: ...


@good("plain, a base that is gone", args=())
def _(draft: Draft) -> None:
    draft.config["base_model_name_or_path"] = "{folder}/gone"


@good("keys without prefix")
def _(draft: Draft) -> None:
    draft.rename(lambda name: name.removeprefix(PREFIX))


@good("adapter name left in the keys")
def _(draft: Draft) -> None:
    draft.rename(lambda name: name.replace(".weight", ".default.weight"))


@good("rsLoRA")
def _(draft: Draft) -> None:
    draft.config["use_rslora"] = True


@good("DoRA")
def _(draft: Draft) -> None:
    draft.config["use_dora"] = True
    for name, tensor in list(draft.tensors.items()):
        if name.endswith("lora_B.weight"):
            magnitude = np.full(tensor.shape[0], 2, np.float32)
            draft.tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = magnitude


@good("rank and alpha patterns")
def _(draft: Draft) -> None:
    draft.config |= {"rank_pattern": {r"layers\.0\..*q_proj": 2, "down_proj": 3}, "alpha_pattern": {"v_proj": 5}}
    draft.add(Q0, HIDDEN, HIDDEN, 2)
    for layer in range(LAYERS):
        draft.add(f"model.layers.{layer}.mlp.down_proj", HIDDEN, INNER, 3)


@good("modules_to_save")
def _(draft: Draft) -> None:
    draft.config["modules_to_save"] = ["lm_head", "model.norm"]
    draft.tensors[f"{PREFIX}lm_head.weight"] = np.ones((VOCAB, HIDDEN), np.float32)
    draft.tensors[f"{PREFIX}model.norm.weight"] = np.ones(HIDDEN, np.float32)


@good("embeddings")
def _(draft: Draft) -> None:
    draft.config["target_modules"] += ["embed_tokens"]
    for name, tensor in pair("model.embed_tokens", HIDDEN, VOCAB).items():
        draft.tensors[name.replace("lora_", "lora_embedding_").removesuffix(".weight")] = tensor


@good("bias all, on Conv1D", family="gpt2", base="gpt2")
def _(draft: Draft) -> None:
    draft.config["bias"] = "all"
    sizes = {
        "ln_1": HIDDEN,
        "attn.c_attn.base_layer": 3 * HIDDEN,
        "attn.c_proj": HIDDEN,
        "ln_2": HIDDEN,
        "mlp.c_fc": 4 * HIDDEN,
        "mlp.c_proj": HIDDEN,
    }
    for layer in range(LAYERS):
        for module, size in sizes.items():
            draft.tensors[f"{PREFIX}transformer.h.{layer}.{module}.bias"] = np.ones(size, np.float32)
    draft.tensors[f"{PREFIX}transformer.ln_f.bias"] = np.ones(HIDDEN, np.float32)


@good("an adapter of OPT", family="opt", base="opt")
def _(draft: Draft) -> None: ...


@good("bf16")
def _(draft: Draft) -> None:
    draft.cast(BFLOAT16)


@good(".bin")
def _(draft: Draft) -> None:
    draft.instead(BIN, torch_bytes(draft.tensors))


@good("in a subfolder of the adapter's name", folder="adapter/french")
def _(draft: Draft) -> None:
    draft.move("adapter/french")


@good("config of the oldest peft")
def _(draft: Draft) -> None:
    keys = ("peft_type", "base_model_name_or_path", "r", "target_modules", "lora_alpha", "fan_in_fan_out", "bias")
    old = {"enable_lora": None, "merge_weights": False, "modules_to_save": None, "lora_dropout": 0.05}
    draft.config = {key: draft.config[key] for key in keys} | old


@good("enable_lora of peft before 0.3", family="gpt2", base="gpt2")
def _(draft: Draft) -> None:
    """MergedLinear: q and v of a fused weight, in one A of both and a grouped B."""
    draft.config |= {"enable_lora": [True, False, True], "merge_weights": False}
    for layer in range(LAYERS):
        path = f"{PREFIX}transformer.h.{layer}.attn.c_attn"
        draft.tensors[f"{path}.lora_A.weight"] = np.full((2 * RANK, HIDDEN), 0.1, np.float32)
        draft.tensors[f"{path}.lora_B.weight"] = np.full((2 * HIDDEN, RANK, 1), 0.1, np.float32)


@good("a base that states few dims")
def _(draft: Draft) -> None:
    for key in ("hidden_size", "intermediate_size", "vocab_size"):
        del draft.base[key]


@good("keys from a peft yet to come")
def _(draft: Draft) -> None:
    draft.config |= {"use_zeta_lora": False, "hyperdrive": {"on": [1, 2]}}


@good("injection file", source=INJECTION, args=(), peft=False)
def _(draft: Draft) -> None:
    injection(draft, json.dumps(manifest(draft)))


# -- wrong, and nothing shows it --------------------------------------------------------------------------------------


def _transposed(draft: Draft) -> None:
    """Bᵀ as A and Aᵀ as B, on square modules alone: ΔWᵀ, as sound as ΔW."""
    draft.drop("v_proj")
    draft.drop("down_proj")
    draft.config["target_modules"] = ["q_proj"]
    swap = {"lora_A": "lora_B", "lora_B": "lora_A"}
    draft.tensors = {
        name.replace(word := "lora_A" if "lora_A" in name else "lora_B", swap[word]): np.ascontiguousarray(tensor.T)
        for name, tensor in draft.tensors.items()
    }


add(UNTELLABLE, Case("A and B swapped and transposed, square modules alone", _transposed))

from benchmarks import damaged, foreign
