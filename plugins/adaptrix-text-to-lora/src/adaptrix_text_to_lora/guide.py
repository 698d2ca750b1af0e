"""The calls of the Sakana guide, whose snippets run with only the import line changed, on trained hypernetworks.

The guide's adapters were random numbers, and its ``q_proj`` does not exist in its own example's model. Here an adapter
comes from a hypernetwork that was trained for the model, or not at all, and targets are found by their role.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from adaptrix import Adapter, Problem, RefusedError, Target, UsageError
from adaptrix.extend import Pipeline
from adaptrix_text_to_lora.encoders import Encoder
from adaptrix_text_to_lora.generator import TextToLoRA
from adaptrix_text_to_lora.hypernetwork import Hypernetwork
from adaptrix_text_to_lora.shape import Shape, Variant
from adaptrix_text_to_lora.skills import SkillDetector
from adaptrix_text_to_lora.targets import Base


@dataclass(frozen=True)
class TextToLoRAConfig:
    """The guide's fields, with the values that it gives them.

    ``hyper_network_size``: H, what the heads read; ``skill_embeddings_dim``: ℓ, the width inside; ``adapter_rank``,
    ``adapter_alpha``: of every adapter; ``dropout``: in training; ``num_layers_to_adapt``: so many in the middle of the
    model get a delta; ``target_modules``: by role, by name, or by Llama's name for a role.

    Raises :class:`UsageError` with every field that cannot be.
    """

    hyper_network_size: int = 256
    skill_embeddings_dim: int = 128
    adapter_rank: int = 16
    adapter_alpha: float = 32
    dropout: float = 0.1
    num_layers_to_adapt: int = 8
    target_modules: tuple[str, ...] | list[str] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        if problems := list(_faults(self)):
            raise UsageError(problems)

    def hypernetwork(self, base: str | PathLike[str], embedding: int, variant: Variant = "L") -> Hypernetwork:
        """A hypernetwork of these sizes for a base, not trained yet. ``embedding``: E of the text encoder.

        Raises :class:`AdaptrixError` for targets that the base cannot serve.
        """
        found = Base.read(fspath(base), Pipeline())
        target_modules = found.find_modules(self.target_modules)
        sizes = (self.adapter_rank, embedding, self.skill_embeddings_dim, self.hyper_network_size)
        made = Hypernetwork(Shape(variant, found.modules(target_modules), found.layers(target_modules), *sizes))
        for module in made.modules():
            if isinstance(module, nn.Dropout):
                module.p = self.dropout
        return made


class SakanaAIIntegration:
    """Adapters and skills from prompts.

    ``checkpoint``: the hypernetwork, by default the one in a model's own folder ``text-to-lora``. ``config``: must
    agree with the hypernetwork, which is refused if it was made with other sizes; by default whatever the
    hypernetwork has, in every layer.
    """

    def __init__(
        self,
        config: TextToLoRAConfig | None = None,
        *,
        checkpoint: str | None = None,
        encoder: Encoder | str | None = None,
    ) -> None:
        self._config, self._checkpoint, self._encoder = config, checkpoint, encoder
        self._skills = SkillDetector()
        self._generators: dict[str, TextToLoRA] = {}

    def add_custom_skills(self, skills: Mapping[str, Any]) -> None:
        """Adds skills that are defined by keywords, examples or a description. Raises :class:`RefusedError`."""
        self._skills.add_custom_skills(skills)

    def generate_adapter_from_text(self, prompt: str, model_path: str | PathLike[str]) -> dict[str, Any]:
        """``{"adapter_info": {"prompt", "detected_skills", "skill_weights", "adapters"}, "adapter"}``.

        ``skill_weights`` are the probabilities of the detected skills, in their order; ``adapters`` the factors under
        peft's names, without their scale; ``adapter`` the same as an :class:`adaptrix.Adapter`, with its scale, its
        origin, and notes on targets that the model calls otherwise. Raises :class:`AdaptrixError`; where there is no
        hypernetwork for the model, with a word on how to train one.
        """
        skills = self._skills.detect(prompt)
        generator = self._generator(fspath(model_path))
        adapter = generator.generate(prompt)
        if self._config is not None:
            adapter = _central(adapter, generator, self._config.num_layers_to_adapt)
        info = {
            "prompt": prompt,
            "detected_skills": list(skills),
            "skill_weights": list(skills.values()),
            "adapters": dict(_tensors(adapter)),
        }
        return {"adapter_info": info, "adapter": adapter}

    def _generator(self, model_path: str) -> TextToLoRA:
        """One a model, so that a batch of prompts reads its files once."""
        if model_path not in self._generators:
            made = TextToLoRA(self._checkpoint, model_path, self._encoder)
            if self._config is not None:
                _require_same(self._config, made, model_path)
            self._generators[model_path] = made
        return self._generators[model_path]


def _faults(config: TextToLoRAConfig) -> Iterator[Problem]:
    sizes = ("hyper_network_size", "skill_embeddings_dim", "adapter_rank", "num_layers_to_adapt")
    for field in sizes:
        value, step = getattr(config, field), 4 if field == "skill_embeddings_dim" else 1
        if type(value) is not int or value < 1 or value % step:
            yield Problem(
                "config-value", field, f"{value!a:.80}", "a multiple of 4" if step > 1 else "a whole number from 1 on"
            )
    if type(config.adapter_alpha) not in (int, float) or not 0 < config.adapter_alpha < float("inf"):
        yield Problem("config-value", "adapter_alpha", f"{config.adapter_alpha!a:.80}", "a positive number")
    if type(config.dropout) not in (int, float) or not 0 <= config.dropout < 1:
        yield Problem("config-value", "dropout", f"{config.dropout!a:.80}", "a number from 0 to below 1")
    targets = config.target_modules
    if not isinstance(targets, (tuple, list)) or not targets or not all(isinstance(name, str) for name in targets):
        yield Problem("config-value", "target_modules", f"{targets!a:.80}", "names of modules")


def _require_same(config: TextToLoRAConfig, generator: TextToLoRA, model_path: str) -> None:
    """Raises :class:`RefusedError` with every field in which the hypernetwork was made otherwise."""
    shape = generator.shape
    wanted = Base.read(model_path, Pipeline()).find_modules(config.target_modules)
    targets = [
        sorted({(target.role.name, target.part or "") for target in each})
        for each in (wanted, generator.target_modules)
    ]
    fields = {
        "hyper_network_size": (config.hyper_network_size, shape.head_in),
        "skill_embeddings_dim": (config.skill_embeddings_dim, shape.latent),
        "adapter_rank": (config.adapter_rank, shape.rank),
        "adapter_alpha": (config.adapter_alpha, generator.alpha),
        "target_modules": tuple(" ".join(part or role for role, part in each) for each in targets),
    }
    remedy = "Leave the config out, or train a hypernetwork with it."
    if problems := [
        Problem("config-mismatch", field, f"{configured}", f"{made}, as the hypernetwork has", remedy)
        for field, (configured, made) in fields.items()
        if configured != made
    ]:
        raise RefusedError(problems)


def _central(adapter: Adapter, generator: TextToLoRA, count: int) -> Adapter:
    """The deltas of so many layers in the middle; of all where there are no more."""
    layers = generator.shape.layers
    first = max(layers - count, 0) // 2
    central = {
        Target(target.path(layer))
        for target in generator.target_modules
        for layer in range(layers)[first : first + count]
    }
    deltas = {target: delta for target, delta in adapter.deltas.items() if target in central}
    return replace(adapter, deltas=MappingProxyType(deltas))


def _tensors(adapter: Adapter) -> Iterator[tuple[str, torch.Tensor]]:
    """A ``[r, in]`` and B ``[out, r]`` of every delta."""
    for target, delta in adapter.deltas.items():
        for name, factor in (("lora_A", delta.A), ("lora_B", delta.B)):
            yield f"{target.path}.{name}.weight", torch.from_numpy(factor.float32().copy())
