"""Files, folders, configs and manifests that are not what they should be."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import bad, bad_base, bad_config, bad_file
from benchmarks.draft import (
    BIN,
    CONFIG,
    HIDDEN,
    INJECTION,
    PREFIX,
    Q0,
    VOCAB,
    WEIGHTS,
    Draft,
    header_of,
    injection,
    manifest,
    packed,
    spectral,
    with_header,
    with_spectral,
    zipped,
)

#: a regular expression that takes years to find out that it does not match a module
_ENDLESS = r"((.)|(..)|(...)|(....))+[0-9]"


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
    "OFT": "multiplies",
    "UNILORA": "save_as_lora",
    "RANDLORA": "dense",
    "PVERA": "merge_and_unload",
    "PROMPT_TUNING": "through peft",
}.items():
    bad_config(f"{_kind} adapter", "peft_type", _says, peft_type=_kind)
bad_config("a LoRA that is said to be a LoHa", "hada_w1_a", "the type that", peft_type="LOHA")
bad_config("a LoRA that is said to be an (IA)³", "ia3_l", "the type that", peft_type="IA3")
bad_config("rank_pattern null", "rank_pattern", "null", "{}", rank_pattern=None)
bad_config('r = "4"', " r:", "'4'", "whole number", r="4")
bad_config("r = -4", " r:", "-4", r=-4)
bad_config("r = 10^30", " r:", "whole number", r=10**30)
bad_config("a NaN where nobody looks", "lora_dropout", "nan", lora_dropout=float("nan"))
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
_config_bytes("config empty", "empty", data=lambda: b"")
_config_bytes("config a list", "list", "JSON object", data=lambda: b"[]")
_config_bytes("config deeply nested", "64 deep", data=lambda: b'{"a":' * 100_000)
_config_bytes("config of 20 MB", "20 MB", data=lambda: b'{"a": "' + b"x" * 20_000_000 + b'"}')


# -- config.json of the base ------------------------------------------------------------------------------------------

bad_base("base of another width", "hidden", "24", "layers.0.q", hidden_size=24)
bad_base("base with negative dims", "config.json", "hidden_size", "-16", hidden_size=-16)
bad_base("base with dims as text", "config.json", "hidden_size", "'16'", hidden_size="16")
bad_base("base with dims of 4,000 digits", "config.json", "head_dim", head_dim=10**4000, num_attention_heads=10**4000)
bad_base("base with layers that are no number", "config.json", "num_hidden_layers", num_hidden_layers=[2])
bad_base("base of a thousand million layers", "config.json", "1000000000 layers", num_hidden_layers=10**9)
bad_base("base without a model_type", "config.json", "model_type", model_type=None)
bad_base("base with a model_type that is a list", "config.json", "model_type", model_type=["llama"])


@bad("base config a list", "base/config.json", "a list", peft=False)
def _(draft: Draft) -> None:
    draft.base = []


@bad("base config missing", "config.json", peft=False)
def _(draft: Draft) -> None:
    draft.files["base/config.json"] = None


# -- injection files --------------------------------------------------------------------------------------------------


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
bad_manifest(
    "manifest with a NaN", INJECTION, "not JSON", change=lambda m: m["deltas"]["layers.0.q"].update(alpha=float("nan"))
)
bad_manifest("manifest of another rank", "layers.0.q", change=lambda m: m["deltas"]["layers.0.q"].update(rank=3))
bad_manifest(
    "manifest of a family not installed",
    "martian",
    "--layers",
    code=2,
    change=lambda m: m["base"].update(architecture="martian"),
)


# -- injection files with changes of singular values ------------------------------------------------------------------


def bad_spectral(name: str, *says: str, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """A case of a spectral delta whose entry of the manifest, or tensors, are not what they were."""

    def make(draft: Draft) -> None:
        entry, tensors = spectral(draft)
        change(entry, tensors)
        with_spectral(draft, entry, tensors)

    bad(name, *says, source=INJECTION, args=(), peft=False)(make)


bad_spectral(
    "spectral z too short", "layers.0.q.spectral_z", "[9]", change=lambda _, held: held.update(z=held["z"][:9])
)
bad_spectral("spectral z with a NaN", Q0, "1 of 16", change=lambda _, held: held["z"].put(3, np.nan))
bad_spectral("spectral S in no order", "layers.0.q.spectral_S", change=lambda _, held: held.update(S=held["S"][::-1]))
bad_spectral("spectral U without V", "layers.0.q", "U", change=lambda _, held: held.update(U=np.eye(HIDDEN, dtype="f")))
bad_spectral("spectral delta of no weight", "SHA-256", change=lambda entry, _: entry["basis"].update(weight="llama"))
bad_spectral(
    "spectral delta on a huge weight", "1099511627776", change=lambda entry, _: entry.update(shape=[1 << 40, 16])
)
