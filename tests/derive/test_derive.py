"""Families derived from a config alone: against the laws, and against what was written by hand."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adaptrix.architecture import Architecture, Role, Site
from adaptrix.architecture.dims import Alternative, Dims, evaluate, read_dims
from adaptrix.architecture.registry import builtin_folder, parse_architecture, read_architectures
from adaptrix.derive import derive, to_toml
from adaptrix.derive.expressions import ExpressionSearch
from adaptrix.derive.naming import dim_names, role_names
from adaptrix.errors import RefusedError, UsageError
from adaptrix.testing import ArchitectureLaws
from tests.helpers.families import FAMILIES, architecture, tiny_config

_LLAMA = FAMILIES["llama"][0]

#: families that the registry lacks, in small
UNKNOWN: dict[str, dict[str, Any]] = {
    "gptj": {"n_embd": 24, "n_head": 3, "n_layer": 5, "rotary_dim": 4, "vocab_size": 61, "n_positions": 37},
    "granite": {k: v for k, v in _LLAMA.items() if k not in ("model_type", "head_dim")},
    "mamba": {"hidden_size": 22, "state_size": 6, "num_hidden_layers": 3, "vocab_size": 61, "expand": 3},
    "olmo2": {k: v for k, v in _LLAMA.items() if k not in ("model_type", "head_dim")},
    "bart": {"d_model": 24, "encoder_layers": 3, "decoder_layers": 2, "vocab_size": 67, "max_position_embeddings": 41,
             "encoder_attention_heads": 3, "decoder_attention_heads": 4, "encoder_ffn_dim": 34, "decoder_ffn_dim": 46},
    "gpt_oss": {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
                "intermediate_size": 38, "num_local_experts": 5, "num_hidden_layers": 4, "vocab_size": 67},
    "deepseek_v3": {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 58,
                    "moe_intermediate_size": 22, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
                    "num_hidden_layers": 6, "first_k_dense_replace": 2, "vocab_size": 67, "q_lora_rank": 26,
                    "kv_lora_rank": 14, "qk_nope_head_dim": 10, "qk_rope_head_dim": 4, "v_head_dim": 18},
}  # fmt: skip


def _again(record: Architecture) -> Architecture:
    """The record as its printed TOML is read back."""
    return parse_architecture(tomllib.loads(to_toml(record)), where="derived.toml", origin="derived")


def _check_laws(config: dict[str, Any]) -> None:
    laws = type("Derived", (ArchitectureLaws,), {"architecture": _again(derive(config)), "configs": [config]})()
    for name in filter(lambda name: name.startswith("test_"), dir(laws)):
        getattr(laws, name)()


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_unknown_family_is_derived_lawfully(kind: str) -> None:
    assert all(kind not in record.model_types for record in read_architectures(builtin_folder()))
    _check_laws({"model_type": kind, **UNKNOWN[kind]})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_derived_agrees_with_what_was_written(family: str) -> None:
    """What is derived is all written down by hand too, with the same sizes wherever both know one."""
    written, config = architecture(family), FAMILIES[family][0]
    derived, full = derive(config), tiny_config(family).to_dict()
    ours, theirs = read_dims(derived.dims, full), read_dims(written.dims, full)
    for role in derived.roles.values():
        path = derived.path(Site(0 if role.layered else None, role.name))
        site = written.locate(path)
        assert site is not None, path
        hand = written.roles[site.role]
        sizes = list(zip(_sizes(role, ours), _sizes(hand, theirs), strict=True))
        assert all(one == other for one, other in sizes if one and other) or "bare parameter" in role.note, path
        assert role.note or not role.layered or all(one == other for one, other in sizes)
        assert not role.layered or ours.get(role.depth) == theirs.get(hand.depth)
        assert role.orientation == hand.orientation or "bare parameter" in role.note
        assert role.optional <= hand.optional


def _sizes(role: Role, dims: Dims) -> list[int | None]:
    return [None if size is None else dims.get(size) for size in (role.out, role.inp, role.experts)]


def test_expressions_hold_for_other_sizes() -> None:
    """What was read off one model describes another of its family: no coincidence of numbers is kept."""
    square = {**_LLAMA, "hidden_size": 24, "num_attention_heads": 6, "head_dim": 4, "num_key_value_heads": 6}
    square |= {"num_hidden_layers": 6, "intermediate_size": 24, "vocab_size": 24}  # every number is many things
    record = derive(square)
    laws = type("llama", (ArchitectureLaws,), {"architecture": record, "configs": [_LLAMA]})()
    laws.test_shapes_and_orientations()
    laws.test_depths()
    assert {role.out for role in record.roles.values()} >= {"heads * head_dim", "kv_heads * head_dim", "inner", "vocab"}
    assert [role.note for role in record.roles.values() if role.note] == []


def test_what_a_config_leaves_out_is_stated() -> None:
    config = {k: v for k, v in _LLAMA.items() if k not in ("head_dim", "num_key_value_heads", "intermediate_size")}
    record = derive(config)
    assert record.dims["head_dim"] == (Alternative("head_dim"), Alternative("hidden / heads"))
    assert record.dims["kv_heads"] == (Alternative("num_key_value_heads"), Alternative("heads"))
    assert record.dims["inner"] == (Alternative("intermediate_size"), Alternative(11008))
    assert read_dims(record.dims, config).values.keys() == record.dims.keys()


def test_other_spellings_of_a_key_are_kept() -> None:
    record = derive({"model_type": "gptj", **UNKNOWN["gptj"]})
    assert record.dims["hidden"] == (Alternative("n_embd"), Alternative("hidden_size"))


def test_doubt_is_printed() -> None:
    toml = to_toml(derive(FAMILIES["gpt_neox"][0]))
    assert "# unverified: if this is a fused weight, declare its parts and layout\n" in toml


def test_layers_of_different_sizes_are_left_open() -> None:
    text: dict[str, Any] = {
        "hidden_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "vocab_size": 61,
    }
    text |= {"num_hidden_layers": 4, "intermediate_size": [34, 34, 46, 46], "layer_types": ["full_attention"] * 4}
    text |= {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 4, "vocab_size_per_layer_input": 61}
    record = derive({"model_type": "gemma3n_text", **text})
    assert record.roles["up"].out is None
    assert "out: differs from layer to layer: [34, 46]" in record.roles["up"].note


@pytest.mark.parametrize("record", [architecture(family) for family in FAMILIES], ids=list(FAMILIES))
def test_printing_loses_nothing(record: Architecture) -> None:
    again = _again(record)
    assert (again.family, again.model_types, again.prefixes) == (record.family, record.model_types, record.prefixes)
    assert dict(again.dims) == dict(record.dims)
    assert dict(again.roles) == dict(record.roles)


def test_any_text_survives_printing() -> None:
    odd = 'a"b\\c\td\ne\x7f\u2028ä'
    record = Architecture("odd", (odd,), {}, {"x": Role("x", (odd,))}, (odd,))
    again = _again(record)
    assert (again.model_types, again.prefixes, again.roles["x"].paths) == ((odd,), (odd,), (odd,))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "no model_type"),
        ({"model_type": 7}, "no model_type"),
        ({"model_type": "nonesuch"}, "no such model_type"),
        ({**_LLAMA, "num_hidden_layers": 10**9}, "0 to 10000"),
        ({**_LLAMA, "num_hidden_layers": -3}, "0 to 10000"),
        ({**_LLAMA, "num_hidden_layers": 10_000}, "more than"),
        ({**_LLAMA, "hidden_size": 10**30}, "hidden_size"),
        ({**_LLAMA, "hidden_size": "wide"}, "hidden_size"),
        ({**_LLAMA, "num_attention_heads": 0}, "cannot build"),
        ({**_LLAMA, "num_attention_heads": 7}, "7"),
        ({**_LLAMA, "rope_scaling": [1]}, "cannot build"),
        ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**8}}, r"text_config\.num_hidden_layers"),
    ],
)
def test_strange_configs_are_refused(config: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptrix.derive.survey.MAX_MODULES", 1000)
    with pytest.raises(RefusedError, match=says) as caught:
        derive(config)
    assert caught.value.exit_code == 1


@example({"torch_dtype": []})  # transformers takes it and fails when it writes it out
@given(
    st.dictionaries(
        st.sampled_from([*sorted(_LLAMA), "rope_scaling", "layer_types", "torch_dtype", "quantization_config"]),
        st.none() | st.booleans() | st.integers(-5, 40) | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
        max_size=3,
    )
)
@settings(max_examples=25, deadline=None)
def test_a_config_is_derived_or_refused(changes: dict[str, Any]) -> None:
    try:
        record = derive({**_LLAMA, "num_hidden_layers": 2, **changes})
    except RefusedError:
        return
    _again(record)


def test_no_code_of_strangers_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_from_dynamic_module", fetched)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", fetched)
    strange = {
        "auto_map": {"AutoModelForCausalLM": "evil--model.Evil", "AutoConfig": "evil--model.Config"},
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }
    assert dict(derive({**_LLAMA, **strange}).roles) == dict(derive(_LLAMA).roles)


def test_a_path_or_a_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_LLAMA))
    assert dict(derive(tmp_path).roles) == dict(derive(tmp_path / "config.json").roles) == dict(derive(_LLAMA).roles)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b"{}"])
def test_what_is_no_config(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(RefusedError):
        derive(file)
    with pytest.raises(RefusedError):
        derive(tmp_path / "absent")


def test_missing_torch_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match=r'transformers is not installed.*pip install "adaptrix\[torch\]"'):
        derive(_LLAMA)


def test_names_are_the_fields_own_and_distinct() -> None:
    paths = [
        "h.{layer}.attn.c_proj",
        "h.{layer}.mlp.c_proj",
        "h.{layer}.attn.q_proj",
        "encoder.{layer}.k_proj",
        "decoder.{layer}.k_proj",
        "score",
        "classifier",
        "a.weights.0",
    ]
    names = role_names(paths)
    assert list(names.values()) == [
        "attn_c_proj", "mlp_c_proj", "q", "encoder_k", "decoder_k", "score", "classifier", "weights_0",
    ]  # fmt: skip
    keys = ["text_config.hidden_size", "vision_config.hidden_size", "vocab_size", "n_layer", "Odd Key"]
    assert list(dim_names(keys).values()) == ["text_hidden", "vision_hidden", "vocab", "layers", "odd_key"]


@given(
    st.lists(
        st.lists(st.sampled_from(["q_proj", "k_proj", "a", "b", "{layer}", "0", "ä"]), min_size=1).map(".".join),
        unique=True,
    )
)
def test_names_are_distinct(paths: list[str]) -> None:
    names = role_names(paths)
    assert len(set(names.values())) == len(paths)
    assert all(name.isidentifier() and name.isascii() for name in names.values())


_DIMS = {
    "hidden": (24, 48, 24, 24, 24),
    "heads": (6, 6, 12, 6, 6),
    "width": (4, 4, 4, 8, 4),
    "inner": (24, 24, 24, 24, 48),
}


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("hidden", "hidden"),
        ("inner", "inner"),
        ("heads * width", "heads * width"),
        ("3 * hidden", "3 * hidden"),
        ("hidden / 2", "hidden / 2"),
        ("hidden + 2", "hidden + 2"),
        ("hidden + heads * width", "hidden + heads * width"),
        ("2 * inner + 2 * heads * width + heads", "heads + 2 * inner + 2 * heads * width"),
        ("inner * heads / width", "heads * inner / width"),
    ],
)
def test_fits(expression: str, found: str) -> None:
    models = [dict(zip(_DIMS, values, strict=True)) for values in zip(*_DIMS.values(), strict=True)]
    target = tuple(evaluate(expression, model) for model in models)
    fit = ExpressionSearch(_DIMS).find(target)
    assert fit is not None
    assert (tuple(evaluate(fit.expression, model) for model in models), fit.doubt) == (target, "")
    assert fit.expression == found


def test_a_fit_says_what_it_cannot_know() -> None:
    def doubt(target: tuple[int, int], **dims: tuple[int, int]) -> str:
        fit = ExpressionSearch(dims).find(target)
        assert fit is not None
        return fit.doubt

    assert doubt((72, 144), hidden=(24, 48), twin=(24, 48)) == "hidden may be twin"
    assert doubt((72, 144), hidden=(24, 48), stuck=(3, 3)) == "a number here may be stuck"
    assert doubt((3, 3), hidden=(24, 48), stuck=(3, 3)) == "stuck could not be varied"
    assert ExpressionSearch({"hidden": (24, 48)}).find((1000, 7)) is None
