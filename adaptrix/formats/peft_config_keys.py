"""The keys that the config of each PEFT type has had, and under which of them its rank and its alpha are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from adaptrix.errors import Problem


@dataclass(frozen=True, slots=True)
class TypeKeys:
    """The keys of one type. ``rank``, ``alpha``: which they are; ``usual``, ``usual_alpha``: the rank and alpha
    where the config has none.

    ``masks``: the values of rank_pattern are lists of which ranks are kept, and not ranks.
    """

    known: frozenset[str]
    rank: str = "r"
    usual: int = 8
    alpha: str = "lora_alpha"
    usual_alpha: float = 8.0
    masks: bool = False


#: from peft 0.0.1 to 0.21
_LORA = """alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path bias corda_config
    enable_lora ensure_weight_tying eva_config exclude_modules fan_in_fan_out inference_mode init_lora_weights
    kasa_config layer_replication layers_pattern layers_to_transform loftq_config lora_alpha lora_bias lora_dropout
    lora_ga_config megatron_config megatron_core merge_weights modules_to_save monteclora_config peft_type peft_version
    qalora_group_size r rank_pattern revision runtime_config target_modules target_parameters task_type
    trainable_token_indices use_bdlora use_dora use_qalora use_rslora velora_config"""
_ADALORA = f"{_LORA} beta1 beta2 deltaT init_r orth_reg_weight target_r tfinal tinit total_step"
_COMMON = """auto_mapping base_model_name_or_path exclude_modules inference_mode layers_pattern layers_to_transform
    modules_to_save peft_type peft_version revision target_modules task_type"""
_LYCORIS = f"{_COMMON} alpha alpha_pattern init_weights module_dropout r rank_dropout rank_pattern use_effective_conv2d"
_LOKR = f"{_LYCORIS} decompose_both decompose_factor rank_dropout_scale"
_IA3 = """auto_mapping base_model_name_or_path exclude_modules fan_in_fan_out feedforward_modules inference_mode
    init_ia3_weights modules_to_save peft_type peft_version revision target_modules task_type"""
_VERA = f"{_COMMON} bias d_initial fan_in_fan_out init_weights projection_prng_key r save_projection vera_dropout"
_GRALORA = f"{_COMMON} alpha bias fan_in_fan_out gralora_dropout gralora_k hybrid_r init_weights r"
_VBLORA = f"""{_COMMON} bias fan_in_fan_out init_logits_std init_vector_bank_bound num_vectors r
    save_only_topk_weights topk vblora_dropout vector_length"""
_FOURIERFT = f"""{_COMMON} bias fan_in_fan_out init_weights n_frequency n_frequency_pattern random_loc_seed
    scaling"""


def _keys(names: str, **more: Any) -> TypeKeys:
    return TypeKeys(frozenset(names.split()), **more)


#: the types that are read
TYPES: Mapping[str, TypeKeys] = MappingProxyType(
    {
        "LORA": _keys(_LORA),
        "ADALORA": _keys(_ADALORA, rank="init_r", usual=12, masks=True),
        "LOHA": _keys(_LYCORIS, alpha="alpha"),
        "IA3": _keys(_IA3),
        "VERA": _keys(_VERA, usual=256),
        "MISS": _keys(f"{_COMMON} bias init_weights mini_r miss_dropout r", usual=64),
        "GRALORA": _keys(_GRALORA, usual=32, alpha="alpha", usual_alpha=64.0),
        "DELORA": _keys(f"{_COMMON} bias delora_lambda init_weights lambda_pattern module_dropout r rank_pattern"),
        "VBLORA": _keys(_VBLORA, usual=4),
        "FOURIERFT": _keys(_FOURIERFT),
        "SHIRA": _keys(f"{_COMMON} fan_in_fan_out init_weights mask_type r random_seed"),
        "C3A": _keys(f"{_COMMON} bias block_size block_size_pattern init_weights"),
        "LOKR": _keys(_LOKR, alpha="alpha"),
    }
)


def keys_of(raw: Mapping[str, Any]) -> TypeKeys:
    """The keys of a config's type; those of LoRA where it is none that is read."""
    kind = raw.get("peft_type")
    return TYPES.get(kind if isinstance(kind, str) else "", TYPES["LORA"])


def unknown_keys(raw: Mapping[str, Any], name: str) -> Iterator[Problem]:
    """A note for every key that no version of peft has for the type; ``name``: of the config's file."""
    for key in sorted(raw.keys() - keys_of(raw).known):
        found = "no version of peft up to 0.21 has this key; kept"
        yield Problem("config-unknown", f"{name} {key}", found, severity="note")
