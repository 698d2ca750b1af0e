"""Checkpoints as people really have them: named cases, each written from one good tiny adapter.

``BAD`` must be refused, with a message that holds every text in ``says``; ``GOOD`` must be read;
``UNTELLABLE`` are wrong, and nothing in the files shows it. ``benchmarks/bad_input.py`` shows them to peft
and to adaptrix, ``tests/test_bad_input.py`` holds adaptrix to them.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.draft import (
    BASES,
    BFLOAT16,
    BIN,
    CONFIG,
    HIDDEN,
    INNER,
    LAYERS,
    MODULES,
    PREFIX,
    RANK,
    VOCAB,
    WEIGHTS,
    Draft,
    factors,
    header_of,
    packed,
    pair,
    torch_bytes,
    with_header,
    zipped,
)

Make = Callable[[Draft], Any]

Q0 = "model.layers.0.self_attn.q_proj"
INJECTION = "adapter.adaptrix.safetensors"
_ON_BASE = ("--base", "{folder}/base")
#: a regular expression that takes years to find out that it does not match a module
_ENDLESS = r"((.)|(..)|(...)|(....))+[0-9]"


@dataclass(frozen=True)
class Case:
    """One checkpoint. ``source`` and ``args`` are the words of the command line below a folder.

    ``family`` is that of the good adapter, ``base`` that of the model it is put on. ``peft``: whether peft
    can be asked about it at all; it reads no base config and no injection file.
    """

    name: str
    make: Make
    says: tuple[str, ...] = ()
    code: int = 1
    source: str = "adapter"
    args: tuple[str, ...] = _ON_BASE
    family: str = "llama"
    base: str = "llama"
    peft: bool = True

    def write(self, folder: Path) -> None:
        """Writes the adapter and the config.json of its base below ``folder``."""
        draft = Draft(self.family)
        draft.base = dict(BASES[self.base])
        self.make(draft)
        draft.write(folder)

    def command(self, folder: Path) -> list[str]:
        """The words after ``adaptrix convert``."""
        return [str(folder / self.source), *(word.replace("{folder}", str(folder)) for word in self.args)]


BAD: dict[str, Case] = {}
GOOD: dict[str, Case] = {}
UNTELLABLE: dict[str, Case] = {}


def _add(table: dict[str, Case], case: Case) -> None:
    assert case.name not in (BAD | GOOD | UNTELLABLE)
    table[case.name] = case


def bad(name: str, *says: str, **about: Any) -> Callable[[Make], Make]:
    """Registers what makes a good draft bad."""

    def register(make: Make) -> Make:
        _add(BAD, Case(name, make, says, **about))
        return make

    return register


def good(name: str, **about: Any) -> Callable[[Make], Make]:
    """Registers another way in which an adapter may be good."""

    def register(make: Make) -> Make:
        _add(GOOD, Case(name, make, **about))
        return make

    return register


def bad_config(name: str, *says: str, **keys: Any) -> None:
    """A case of other values in the adapter's config."""
    bad(name, CONFIG, *says)(lambda draft: draft.config.update(keys))


def bad_file(name: str, *says: str, data: Callable[[bytes], bytes], file: str = WEIGHTS) -> None:
    """A case of other bytes in place of the weights; ``data`` is given the good ones."""
    bad(name, file, *says)(lambda draft: draft.instead(file, data(packed(draft.tensors))))


def bad_base(name: str, *says: str, **keys: Any) -> None:
    """A case of other values in the base's config.json."""
    bad(name, *says, peft=False)(lambda draft: draft.base.update(keys))


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


@bad("one module twice, with prefix and without", f"{Q0}.lora_A.weight", "same place")
def _(draft: Draft) -> None:
    name = f"{PREFIX}{Q0}.lora_A.weight"
    draft.tensors[name.removeprefix(PREFIX)] = draft.tensors[name] + 1


@bad("layer index of a thousand million", "model.layers.1000000000.self_attn.q_proj")
def _(draft: Draft) -> None:
    draft.add("model.layers.1000000000.self_attn.q_proj", HIDDEN, HIDDEN)


@bad("layer index of a million less one, no base", "no tensors for layers 2-999998", args=())
def _(draft: Draft) -> None:
    draft.add("model.layers.999999.self_attn.q_proj", HIDDEN, HIDDEN)


@bad("100,000 keys", "layers 2-49999")
def _(draft: Draft) -> None:
    draft.config["target_modules"] = ["q_proj"]
    draft.tensors = dict(factors({"model.layers.{}.self_attn.q_proj": (HIDDEN, HIDDEN)}, 50_000))


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


# -- files that are not what their name says --------------------------------------------------------------------------

bad_file("truncated", "cut off", data=lambda data: data[:-100])
bad_file("truncated in the header", "within its own header", data=lambda data: data[:200])
bad_file(
    "Git LFS pointer", "git lfs pull", data=lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
)
bad_file("empty file", "empty", data=lambda _: b"")
bad_file("web page", "web page", data=lambda _: b"<!doctype html><title>404</title>")
bad_file("header of 2^60 bytes", "safetensors", data=lambda data: (1 << 60).to_bytes(8, "little") + data[8:])
bad_file("deeply nested header", "header", data=lambda _: with_header(b'{"a":' * 100_000, b""))
bad_file("junk .bin", "not a torch file", data=lambda _: b"just some junk", file=BIN)
bad_file("bare pickle .bin", "pickle", data=lambda _: pickle.dumps({"a": 1}), file=BIN)


class _Evil:
    """What a malicious pickle looks like: loading it would call ``print``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("the pickle was run",)


bad_file(
    "malicious .bin",
    "__builtin__.print",
    data=lambda _: zipped({"data.pkl": pickle.dumps(_Evil(), 2), "version": b"3\n"}),
    file=BIN,
)
bad_file(
    "zip bomb .bin",
    "compressed",
    data=lambda _: zipped({"data.pkl": bytes(64 << 20), "version": b"3\n"}, zipfile.ZIP_DEFLATED),
    file=BIN,
)


def _described(name: str, *says: str, change: Callable[[dict[str, Any]], None]) -> None:
    """A case of a header that lies about the tensors."""

    def data(content: bytes) -> bytes:
        header, rest = header_of(content)
        change(header)
        return with_header(json.dumps(header).encode(), rest)

    bad_file(name, Q0, *says, data=data)


_A0, _B0 = (f"{PREFIX}{Q0}.lora_{x}.weight" for x in "AB")
_described("overlapping tensors", "begin at 0", change=lambda header: header[_B0].update(data_offsets=[0, 256]))
_described("negative offsets", "data_offsets", change=lambda header: header[_A0].update(data_offsets=[-256, 0]))
_described("shape larger than the bytes", "256 bytes", change=lambda header: header[_A0].update(shape=[4000, 16]))
_described("dtype nobody knows", "F4_SECRET", change=lambda header: header[_A0].update(dtype="F4_SECRET"))


@bad("one key twice in the header", WEIGHTS, Q0, "twice")
def _(draft: Draft) -> None:
    header, data = header_of(packed(draft.tensors))
    text = json.dumps(header)
    twice = json.dumps({_A0: header[_A0]})[1:-1]
    draft.instead(WEIGHTS, with_header(f"{text[:-1]},{twice}}}".encode(), data))


# -- folders ----------------------------------------------------------------------------------------------------------


@bad("no weights", CONFIG, WEIGHTS)
def _(draft: Draft) -> None:
    draft.files[f"adapter/{WEIGHTS}"] = None


@bad("no config", WEIGHTS, CONFIG, "rank, alpha")
def _(draft: Draft) -> None:
    draft.files[f"adapter/{CONFIG}"] = None


@bad("a full model's folder", "full model", "--base")
def _(draft: Draft) -> None:
    draft.instead("model.safetensors", packed({"lm_head.weight": np.ones((VOCAB, HIDDEN), np.float32)}))
    draft.files |= {f"adapter/{CONFIG}": None, "adapter/config.json": draft.made()["base/config.json"]}


@bad("empty folder", "no files", CONFIG)
def _(draft: Draft) -> None:
    draft.files |= {f"adapter/{CONFIG}": None, f"adapter/{WEIGHTS}": None}


@bad("a folder of two adapters", "adapter/one", "adapter/two", "adaptrix convert")
def _(draft: Draft) -> None:
    draft.move("adapter/one")
    draft.move("adapter/two")


@bad("a path that is not there", "nowhere", code=2, source="nowhere")
def _(draft: Draft) -> None: ...


# -- adapter_config.json ----------------------------------------------------------------------------------------------


@bad("peft_type missing", CONFIG, "peft_type", '"LORA"')
def _(draft: Draft) -> None:
    del draft.config["peft_type"]


bad_config("peft_type unknown", "peft_type", "MAGIC", peft_type="MAGIC")
bad_config("peft_type in lower case", "peft_type", "capitals", peft_type="lora")
for _kind, _says in {
    "IA3": "multiplies",
    "LOHA": "save_as_lora",
    "LOKR": "dense",
    "ADALORA": "save_as_lora",
    "PROMPT_TUNING": "through peft",
}.items():
    bad_config(f"{_kind} adapter", "peft_type", _says, peft_type=_kind)
bad_config("rank_pattern null", "rank_pattern", "null", "{}", rank_pattern=None)
bad_config('r = "4"', " r:", "'4'", "whole number", r="4")
bad_config("r = -4", " r:", "-4", r=-4)
bad_config("r = 10^30", " r:", "whole number", r=10**30)
bad_config("alpha NaN", "lora_alpha", "nan", "finite", lora_alpha=float("nan"))
bad_config("a target misspelt", Q0, "target_modules", target_modules=["q_prj", "v_proj", "down_proj"])
bad_config("target_modules a number", "target_modules", "5", target_modules=5)
bad_config("a pattern that never ends, in target_modules", "target_modules", target_modules=_ENDLESS)
bad_config("a pattern that never ends, in rank_pattern", "rank_pattern", rank_pattern={_ENDLESS: 4})
bad_config("a pattern that is none", "target_modules", "regular expression", target_modules="*q_proj(")
bad_config("PiSSA start", "init_lora_weights", "pissa", "path_initial_model", init_lora_weights="pissa_niter_4")
bad_config("OLoRA start", "init_lora_weights", "olora", init_lora_weights="olora")


def _config_bytes(name: str, *says: str, data: Callable[[], bytes]) -> None:
    bad(name, CONFIG, *says)(lambda draft: draft.files.update({f"adapter/{CONFIG}": data()}))


_config_bytes("alpha 1e400", "lora_alpha", "inf", data=lambda: b'{"peft_type": "LORA", "r": 4, "lora_alpha": 1e400}')
_config_bytes("config not JSON", "not JSON", data=lambda: b"r: 4\nlora_alpha: 8\n")
_config_bytes("config empty", "not JSON", data=lambda: b"")
_config_bytes("config a list", "list", "JSON object", data=lambda: b"[]")
_config_bytes("config deeply nested", "not JSON", data=lambda: b'{"a":' * 100_000)
_config_bytes("config of 20 MB", "20 MB", data=lambda: b'{"a": "' + b"x" * 20_000_000 + b'"}')


# -- config.json of the base ------------------------------------------------------------------------------------------

bad_base("base of another width", "hidden", "24", "layers.0.q", hidden_size=24)
bad_base("base with negative dims", "config.json", "hidden_size", "-16", hidden_size=-16)
bad_base("base with dims as text", "config.json", "hidden_size", "'16'", hidden_size="16")
bad_base("base with dims of 4,000 digits", "config.json", "head_dim", head_dim=10**4000, num_attention_heads=10**4000)
bad_base("base with layers that are no number", "config.json", "num_hidden_layers", num_hidden_layers=[2])
bad_base("base without a model_type", "config.json", "model_type", model_type=None)
bad_base("base with a model_type that is a list", "config.json", "model_type", model_type=["llama"])


@bad("base config a list", "base/config.json", "a list", peft=False)
def _(draft: Draft) -> None:
    draft.base = []


@bad("base config missing", "config.json", peft=False)
def _(draft: Draft) -> None:
    draft.files["base/config.json"] = None


# -- injection files --------------------------------------------------------------------------------------------------


def manifest(draft: Draft) -> dict[str, Any]:
    """The manifest of the good adapter as an injection file."""
    roles = {"q_proj": "q", "v_proj": "v", "down_proj": "down"}
    paths = [path.format(layer) for layer in range(LAYERS) for path in MODULES["llama"]]
    sites = {f"layers.{path.split('.')[2]}.{roles[path.rpartition('.')[2]]}": path for path in paths}
    entry = {"kind": "lora", "rank": RANK, "alpha": 2.0 * RANK, "scale": 2.0}
    return {
        "version": 1,
        "name": "adapter",
        "base": {"model": None, "architecture": "llama", "known": True, "dims": {}},
        "source": {"uri": "adapter", "format": "peft", "commit": None, "files": {}, "config": draft.config},
        "plan": {"policy": "middle", "layers": {"layers": [0]}, "gains": {}, "retained": 0.5, "notes": []},
        "deltas": {site: {**entry, "module": path} for site, path in sites.items()},
        "overrides": {},
        "extras": {},
    }


def injection(draft: Draft, text: str) -> None:
    """Writes the draft as an injection file with ``text`` for its manifest."""
    sites = {entry["module"]: site for site, entry in manifest(draft)["deltas"].items()}
    named = {}
    for name, tensor in draft.tensors.items():
        path, _, factor = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        named[f"{sites[path]}.{factor}"] = tensor
    draft.files |= {f"adapter/{CONFIG}": None, f"adapter/{WEIGHTS}": None}
    draft.files[INJECTION] = packed(named, {"adaptrix": text})


def bad_manifest(name: str, *says: str, change: Callable[[dict[str, Any]], Any], code: int = 1) -> None:
    """A case of an injection file whose manifest is not what it was."""

    def make(draft: Draft) -> None:
        described = manifest(draft)
        change(described)
        injection(draft, json.dumps(described))

    bad(name, *says, source=INJECTION, args=(), peft=False, code=code)(make)


@bad("manifest not JSON", INJECTION, "not JSON", source=INJECTION, args=(), peft=False)
def _(draft: Draft) -> None:
    injection(draft, "{")


@bad("plain safetensors called an injection file", INJECTION, "no manifest", source=INJECTION, args=(), peft=False)
def _(draft: Draft) -> None:
    draft.files[INJECTION] = packed(draft.tensors)


bad_manifest("manifest of version 7", INJECTION, "version 7", "Update", change=lambda m: m.update(version=7))
bad_manifest("manifest without deltas", INJECTION, "deltas", change=lambda m: m.pop("deltas"))
bad_manifest("manifest without a site", "layers.0.q.lora_A", "mention", change=lambda m: m["deltas"].pop("layers.0.q"))
bad_manifest("manifest with a NaN", "alpha", change=lambda m: m["deltas"]["layers.0.q"].update(alpha=float("nan")))
bad_manifest("manifest of another rank", "layers.0.q", change=lambda m: m["deltas"]["layers.0.q"].update(rank=3))
bad_manifest(
    "manifest of a family not installed",
    "martian",
    "--layers",
    code=2,
    change=lambda m: m["base"].update(architecture="martian"),
)


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
    draft.config["modules_to_save"] = ["lm_head", "norm"]
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


@good("in a subfolder of the adapter's name")
def _(draft: Draft) -> None:
    draft.move("adapter/french")


@good("config of the oldest peft")
def _(draft: Draft) -> None:
    keys = ("peft_type", "base_model_name_or_path", "r", "target_modules", "lora_alpha", "fan_in_fan_out", "bias")
    old = {"enable_lora": None, "merge_weights": False, "modules_to_save": None, "lora_dropout": 0.05}
    draft.config = {key: draft.config[key] for key in keys} | old


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


_add(UNTELLABLE, Case("A and B swapped and transposed, square modules alone", _transposed))
