"""Every family of the registry against the models of transformers, by the laws of ``adaptrix.testing``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptrix.architecture.registry import builtin_folder, parse_architecture
from adaptrix.testing import ArchitectureLaws
from tests.helpers.families import FAMILIES, architecture, tiny_config

#: what a family's laws need beyond its configs
EXTRAS: dict[str, dict[str, Any]] = {
    "gpt2": {"extra_classes": ["GPT2DoubleHeadsModel"]},
    "gemma3": {"unchecked_parts": ["vision_pool_qkv"]},
}


def _laws(family: str) -> type[ArchitectureLaws]:
    configs = [tiny_config(family, variant) for variant in range(len(FAMILIES[family]))]
    return type(
        family,
        (ArchitectureLaws,),
        {"architecture": architecture(family), "configs": configs, **EXTRAS.get(family, {})},
    )


for _family in FAMILIES:
    globals()[f"Test_{_family}"] = _laws(_family)


def test_every_family_is_tested() -> None:
    assert {file.stem for file in builtin_folder().glob("*.toml")} == set(FAMILIES)


def test_the_readmes_example_keeps_the_laws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (builtin_folder() / "README.md").read_text("utf-8")
    example, laws = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)[0] for kind in ("toml", "python"))
    monkeypatch.chdir(tmp_path)
    Path("stablelm.toml").write_text(example)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(laws, names)
    assert _broken_laws(names["TestStableLM"]()) == set()


Change = Callable[[dict[str, Any]], None]


def _mutant(family: str, change: Change) -> ArchitectureLaws:
    """The laws of a family whose TOML was tampered with."""
    table = tomllib.loads((builtin_folder() / f"{family}.toml").read_text())
    change(table)
    record = parse_architecture(table, where=family, origin="a test")
    laws: ArchitectureLaws = type(family, (_laws(family),), {"architecture": record})()
    return laws


def _broken_laws(laws: ArchitectureLaws) -> set[str]:
    broken = set()
    for name in filter(lambda name: name.startswith("test_"), dir(laws)):
        try:
            getattr(laws, name)()
        except (AssertionError, ValueError):
            broken.add(name.removeprefix("test_"))
    return broken


def _swap(role: str, one: str, other: str) -> Change:
    def change(table: dict[str, Any]) -> None:
        table["roles"][role][one], table["roles"][role][other] = table["roles"][role][other], table["roles"][role][one]

    return change


def _set(role: str, **values: Any) -> Change:
    return lambda table: table["roles"][role].update(values)


def _swap_parts(role: str, one: str, other: str) -> Change:
    def change(table: dict[str, Any]) -> None:
        swapped = {one: other, other: one}
        parts = table["roles"][role]["parts"]
        table["roles"][role]["parts"] = {swapped.get(part, part): size for part, size in parts.items()}

    return change


@pytest.mark.parametrize(
    ("family", "change", "law"),
    [
        ("llama", _swap("down", "in", "out"), "shapes_and_orientations"),
        ("llama", _set("k", out="kv_heads * hidden / heads"), "shapes_and_orientations"),
        ("llama", _set("q", path="model.layers.{layer}.self_attn.q"), "every_role_is_real"),
        ("llama", lambda table: table["roles"].pop("up"), "every_weight_has_a_role"),
        ("llama", lambda table: table.update(prefixes=["model."]), "every_weight_has_a_role"),
        ("llama", lambda table: table.update(model_types=["llama", "mistral", "granite"]), "every_model_type_is_shown"),
        ("llama", _set("gate", depth="heads"), "depths"),
        ("gpt2", _set("down", orientation="linear"), "shapes_and_orientations"),
        ("gpt2", _set("qkv", layout="grouped", groups="heads"), "parts_do_what_they_are_called"),
        ("gpt2", _swap_parts("cross_kv", "k", "v"), "parts_do_what_they_are_called"),
        ("gpt_neox", _set("qkv", layout="contiguous"), "parts_do_what_they_are_called"),
        ("bloom", _swap_parts("qkv", "k", "v"), "parts_do_what_they_are_called"),
        ("bloom", _swap_parts("qkv", "q", "k"), "parts_do_what_they_are_called"),
        ("falcon", _set("qkv", layout="contiguous"), "parts_do_what_they_are_called"),
        ("falcon", lambda table: table["dims"].update(kv_heads="num_attention_heads"), "shapes_and_orientations"),
        ("phi3", _swap_parts("gate_up", "gate", "up"), "parts_do_what_they_are_called"),
        ("phi3", _swap_parts("qkv", "q", "v"), "parts_do_what_they_are_called"),
        ("mixtral", _swap_parts("expert_gate_up", "gate", "up"), "parts_do_what_they_are_called"),
        ("mixtral", _set("expert_down", orientation="experts_transposed"), "shapes_and_orientations"),
        ("t5", _set("decoder_q", depth="encoder_layers"), "depths"),
        ("t5", _set("decoder_q", path="{layer}.q"), "every_weight_has_a_role"),
    ],
)
def test_a_mistake_breaks_a_law(family: str, change: Change, law: str) -> None:
    assert law in _broken_laws(_mutant(family, change))


def test_two_roles_that_claim_one_path_break_a_law() -> None:
    change = _set("o", path=["model.layers.{layer}.self_attn.o_proj", "model.layers.1{layer}.self_attn.q_proj"])
    assert "paths_lead_back" in _broken_laws(_mutant("llama", change))


def test_an_untampered_family_breaks_none() -> None:
    assert _broken_laws(_mutant("llama", lambda table: None)) == set()
