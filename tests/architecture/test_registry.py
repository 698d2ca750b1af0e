"""The TOML of an architecture: what is read from it, and every mistake in it said at once."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from adaptrix.architecture import Layout, Orientation, Site, registry
from adaptrix.architecture.dims import read_dims
from adaptrix.architecture.registry import builtin_folder, parse_architecture, read_architecture, read_architectures
from adaptrix.errors import RefusedError

_GOOD = """
family = "sample"
model_types = ["sample"]
prefixes = ["model.", ""]

[dims]
hidden = "hidden_size"
layers = "num_hidden_layers"
groups = [{ value = 1, when = "one" }, { value = 2, unless = "one" }, 3]

[roles.qkv]
path = "model.layers.{layer}.qkv"
in = "hidden"
parts = { q = "hidden", k = "groups" }
layout = "grouped"
groups = "groups"

[roles.qkv.part_paths]
q = "model.layers.{layer}.q"

[roles.down]
path = ["model.layers.{layer}.down", "model.layers.{layer}.experts.{expert}.w2"]
orientation = "experts"
in = "hidden"
out = "hidden"
experts = "groups"
optional = true
"""


def _parse(**changes: Any) -> Any:
    """The sample with top-level keys replaced (None removes one)."""
    table = {**tomllib.loads(_GOOD), **changes}
    table = {key: value for key, value in table.items() if value is not None}
    return parse_architecture(table, where="sample.toml", origin="a test")


def _role(**changes: Any) -> dict[str, Any]:
    roles = copy.deepcopy(tomllib.loads(_GOOD)["roles"])
    roles["down"].update(changes)
    return {"roles": roles}


def _codes(**changes: Any) -> set[str]:
    with pytest.raises(RefusedError) as caught:
        _parse(**changes)
    return {problem.code for problem in caught.value.problems}


def test_what_is_read() -> None:
    record = _parse()
    qkv, down = record.roles["qkv"], record.roles["down"]
    assert (record.family, record.model_types, record.prefixes) == ("sample", ("sample",), ("model.", ""))
    assert qkv.shape(None) == ("hidden + groups", "hidden")
    assert qkv.shape("k") == ("groups", "hidden")
    assert (down.orientation, down.experts, down.optional, down.depth) == ("experts", "groups", True, "layers")
    assert [(a.value, a.when, a.unless) for a in record.dims["groups"]] == [
        (1, "one", None),
        (2, None, "one"),
        (3, None, None),
    ]


def test_paths_and_sites() -> None:
    record = _parse()
    assert record.locate("model.layers.13.qkv") == Site(13, "qkv")
    assert record.locate("layers.13.q") == Site(13, "qkv", "q")
    assert record.locate("layers.0.experts.11.w2") == Site(0, "down", None, 11)
    assert record.match("layers.0.experts.11.w2") == (
        Site(0, "down", None, 11),
        "model.layers.{layer}.experts.{expert}.w2",
    )
    assert record.path(Site(3, "qkv", "q")) == "model.layers.3.qkv"
    assert str(Site(3, "qkv", "q", 5)) == "layers.3.qkv.q.e5"


_NO_PATHS = (
    "model.layers.03.qkv",
    "model.layers.-1.qkv",
    "model.layers.٣.qkv",
    "model.layers.3.qkv.x",
    "xmodel.layers.3.qkv",
    "model.layers.1234567.qkv",
    "model.layers.3.qkv\n",
    "model.layers..qkv",
    "model_layers.3.qkv",
    "model.",
    "",
)


@pytest.mark.parametrize("path", _NO_PATHS)
def test_what_is_no_path_of_the_family(path: str) -> None:
    assert _parse().locate(path) is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"family": None}, "toml-invalid"),
        ({"family": "Sample!"}, "toml-invalid"),
        ({"model_types": []}, "toml-invalid"),
        ({"model_types": "sample"}, "toml-invalid"),
        ({"prefixes": [3]}, "toml-invalid"),
        ({"dims": {"hidden": 1.5}}, "toml-invalid"),
        ({"dims": {"hidden": []}}, "toml-invalid"),
        ({"dims": {"hidden": {"value": {"value": 1}}}}, "toml-invalid"),
        ({"dims": {"hidden": {"value": 1, "whenever": "x"}}}, "toml-invalid"),
        ({"dims": {"hidden": {"value": 1, "unless": 3}}}, "toml-invalid"),
        ({"dims": {"hidden": {"when": "x"}}}, "toml-invalid"),
        ({"roles": {}}, "toml-invalid"),
        ({"roles": {"q": 3}}, "toml-invalid"),
        ({"rolls": {}}, "toml-invalid"),
        (_role(shape="x"), "toml-invalid"),
        (_role(path=None), "toml-invalid"),
        (_role(path=[]), "toml-invalid"),
        (_role(orientation="sideways"), "toml-invalid"),
        (_role(layout="scattered"), "toml-invalid"),
        (_role(optional="yes"), "toml-invalid"),
        (_role(out=3), "toml-invalid"),
        (_role(out="hiden"), "toml-invalid"),
        (_role(depth="depths"), "toml-invalid"),
        (_role(out="hidden ** 2"), "toml-invalid"),
        (_role(experts="expert_count"), "toml-invalid"),
        (_role(layout="grouped"), "toml-invalid"),
        (_role(part_paths={"gate": "x"}), "toml-invalid"),
        (_role(path="model.layers.{layer}.qkv"), "toml-invalid"),
        (_role(path="model.layers.{layer}.q"), "toml-invalid"),
    ],
)
def test_mistakes(changes: dict[str, Any], code: str) -> None:
    assert code in _codes(**changes)


def test_every_mistake_is_reported_at_once() -> None:
    assert _codes(family=3, extra=1, **_role(layout="scattered")) == {"toml-invalid"}
    with pytest.raises(RefusedError, match=r"sample\.toml") as caught:
        _parse(family=3, extra=1, **_role(layout="scattered"))
    assert len(caught.value.problems) == 3


ODD = {
    "a huge number": b"family = " + b"9" * 5000,
    "deep": b"family = " + b"[" * 50_000,
    "deep and closed": b"family = " + b"[" * 3000 + b"]" * 3000,
    "a key of many dots": b".".join([b"a"] * 50_000) + b" = 1",
    "large": b"family = '" + b"a" * 300_000 + b"'",
}


@pytest.mark.parametrize("content", [b"family = ", b"\xff\xfe", b"[a]\n[a]", *ODD.values()], ids=lambda one: one[:12])
def test_what_is_no_toml(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(RefusedError, match=r"broken\.toml"):
        read_architecture(file)


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.toml").write_text(_GOOD.replace("sample", name))
    (tmp_path / "README.md").write_text("not read")
    assert [record.family for record in read_architectures(tmp_path)] == ["a", "b"]
    assert read_architecture(tmp_path / "a.toml").origin == str(tmp_path / "a.toml")


def test_what_ships_is_sound_and_unambiguous() -> None:
    records = list(read_architectures(builtin_folder()))
    claims = [kind for record in records for kind in record.model_types]
    assert len(claims) == len(set(claims))
    assert all(
        record.family == Path(file).stem
        for record, file in zip(records, sorted(builtin_folder().glob("*.toml")), strict=True)
    )


_PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    # what the configs of well-known models say, as far as sizes go
    "gpt2": (
        {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "n_ctx": 1024, "vocab_size": 50257},
        {"hidden": 768, "inner": 3072, "layers": 12, "positions": 1024},
    ),
    "gpt2 with null": ({"n_embd": 768, "n_inner": None}, {"inner": 3072}),
    "qwen3": (  # Qwen3 0.6B: 16 heads of 128 on a hidden size of 1024
        {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
        {"head_dim": 128, "heads * head_dim": 2048, "kv_heads * head_dim": 1024},
    ),
    "llama": (  # Llama 7B, before grouped queries: neither key is there
        {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008, "num_hidden_layers": 32},
        {"head_dim": 128, "kv_heads": 32},
    ),
    "falcon": ({"hidden_size": 4544, "num_attention_heads": 71, "multi_query": True}, {"kv_heads": 1, "head_dim": 64}),
    "falcon 40b": (
        {"hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True},
        {"kv_heads": 8, "head_dim": 64, "inner": 32768},
    ),
    "falcon rw": ({"hidden_size": 2048, "num_attention_heads": 32, "multi_query": False}, {"kv_heads": 32}),
    "falcon by default": ({"hidden_size": 4544, "num_attention_heads": 71}, {"kv_heads": 1}),
    "bloom": (
        {"n_embed": 14336, "num_attention_heads": 112, "n_layer": 70},
        {"hidden": 14336, "head_dim": 128, "layers": 70},
    ),
    "gemma3": (  # Gemma 3 4B leaves out what is a default
        {
            "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
            "vision_config": {"hidden_size": 1152, "image_size": 896, "patch_size": 14},
        },
        {"heads * head_dim": 2048, "kv_heads": 4, "vocab": 262208, "image / patch * image / patch": 4096},
    ),
    "t5": (
        {"d_model": 1024, "d_kv": 128, "num_heads": 128, "num_layers": 24},
        {"decoder_layers": 24, "heads * head_dim": 16384},
    ),
    "opt": (
        {"hidden_size": 1024, "word_embed_proj_dim": 512, "max_position_embeddings": 2048},
        {"embed": 512, "positions + 2": 2050},
    ),
    "qwen3_moe": (
        {"num_experts": 128, "moe_intermediate_size": 768, "intermediate_size": 6144},
        {"experts": 128, "expert_inner": 768},
    ),
}


@pytest.mark.parametrize("name", _PUBLISHED)
def test_dims_of_published_configs(name: str) -> None:
    config, expected = _PUBLISHED[name]
    dims = read_dims(read_architecture(builtin_folder() / f"{name.split()[0]}.toml").dims, config)
    assert {expression: dims.get(expression) for expression in expected} == expected


def test_the_readme_states_the_whole_schema() -> None:
    text = (builtin_folder() / "README.md").read_text("utf-8")
    keys = {*registry._TOP, *registry._ROLE, *get_args(Orientation), *get_args(Layout), "when", "unless", "value"}
    assert keys - set(re.findall(r"\w+", text)) == set()
