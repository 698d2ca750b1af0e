"""Settings of a hypernetwork in ``args.yaml`` and ``adapter_config.json``, beside its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adaptrix import Problem, RefusedError
from adaptrix.extend import json_file, yaml_file

_EXPECTED = "the arguments of a training run"
_KEPT = ("hypernet_latent_size", "head_in_size", "shared_AB_head", "autoreg_gen")
#: what would make an adapter something else than rank, alpha and modules say
_PLAIN = ("use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform", "lora_bias", "modules_to_save")


@dataclass(frozen=True)
class Settings:
    """Settings that cannot be read off the weights.

    ``encoder``: the embedding model, None for the base's own states; ``task``: ``sft`` or ``recon``;
    ``targets``: the modules, None where the config does not list them; ``stated``: args that the weights must bear out.
    """

    rank: int
    alpha: float
    rslora: bool
    targets: frozenset[str] | None
    base: str | None
    encoder: str | None
    task: str
    z_scored: bool
    stated: Mapping[str, Any]


def read_settings(args_file: Path, config_file: Path) -> Settings:
    """The settings in two files. Raises :class:`RefusedError` with every problem in both."""
    args = yaml_file.read_mapping(args_file, _EXPECTED, "config-value")
    config = json_file.read_object(config_file, str(config_file))
    if problems := [*_args_problems(args, str(args_file)), *_config_problems(config, str(config_file))]:
        raise RefusedError(problems)
    targets, base = config.get("target_modules"), config.get("base_model_name_or_path") or args.get("model_dir")
    return Settings(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        rslora=config.get("use_rslora") is True,
        targets=frozenset(targets) if isinstance(targets, list) else None,
        base=base.rstrip("/") if isinstance(base, str) and base else None,
        encoder=args.get("emb_model") or None,
        task=args.get("training_task", "sft"),
        z_scored=args.get("pred_z_score") is True,
        stated=MappingProxyType({key: args[key] for key in _KEPT if args.get(key) is not None}),
    )


def _args_problems(args: Mapping[str, Any], where: str) -> Iterator[Problem]:
    allowed: dict[str, tuple[Any, ...]] = {
        "training_task": ("sft", "recon"),
        "encoder_type": ("linear", None),
        "use_one_hot_task_emb": (False, None),
    }
    for key, values in allowed.items():
        if args.get(key, values[0]) not in values:
            expected = " or ".join(str(value) for value in values if value is not None)
            yield Problem("config-value", f"{where} {key}", repr(args[key])[:80], expected, "No other kind is read.")
    encoder = args.get("emb_model")
    if encoder is not None and not isinstance(encoder, str):
        yield Problem("config-value", f"{where} emb_model", repr(encoder)[:80], "the name of a model, or nothing")


def _config_problems(config: Mapping[str, Any], where: str) -> Iterator[Problem]:
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        yield Problem("config-value", f"{where} peft_type", repr(config["peft_type"])[:80], "LORA")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 0 < rank <= 1 << 16:
        yield Problem("config-value", f"{where} r", repr(rank)[:80], "a rank")
    if type(alpha) not in (int, float) or not 0 < alpha < 1e9:
        yield Problem("config-value", f"{where} lora_alpha", repr(alpha)[:80], "a positive number")
    targets = config.get("target_modules")
    if isinstance(targets, list) and not all(isinstance(name, str) for name in targets):
        yield Problem("config-value", f"{where} target_modules", "a list of more than names", "module names")
    for key in _PLAIN:
        if config.get(key):
            yield Problem(
                "config-value", f"{where} {key}", repr(config[key])[:80], "nothing: the published LoRA is plain"
            )
