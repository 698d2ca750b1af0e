"""The place of a module in its model: what dimension 0 of its input can be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

#: inputs of forward that are no text
_OTHER_INPUTS = re.compile(r"pixel|image|video|vision|audio|speech|feature|input_values")
#: model types that put the tokens before the rows somewhere inside
_TOKENS_FIRST = frozenset({"fsmt", "led", "longformer", "wavlm", "xlnet"})
_EXPERTS = re.compile(r"(^|\.)experts?(_\d+)?(\.|$)")


@dataclass(frozen=True, slots=True)
class Place:
    """``tower``: outside of the part that reads text, so that it is fed images or sound, whose number is no row's.
    ``chosen``: one of several modules among which tokens are divided. ``tokens``: the embedding of the tokens.
    ``tokens_first``: the model may put its tokens in dimension 0. ``model_type``: the config's.
    """

    name: str
    tower: bool
    chosen: bool
    tokens: bool
    tokens_first: bool
    model_type: str


class Places:
    """The places of a model's modules."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def of(self, name: str) -> Place:
        """The place of the module of this name."""
        owners = list(self._down(name))
        kind = str(getattr(self._config, "model_type", ""))
        containers = sum(isinstance(owner, nn.ModuleList | nn.ModuleDict) for owner in owners)
        chosen = containers > 1 or _EXPERTS.search(name) is not None
        tokens = owners[-1] in self.embeddings
        return Place(name, self._is_tower(owners), chosen, tokens, kind in _TOKENS_FIRST, kind)

    def above_text(self, module: nn.Module) -> bool:
        """True for a module that has the whole stack of layers that read text in it."""
        return any(self._decoder is part for part in module.modules())

    @cached_property
    def embeddings(self) -> tuple[nn.Module, ...]:
        """The embeddings of the tokens, as far as the model tells."""
        return tuple(self._asked("get_input_embeddings"))

    @cached_property
    def heads(self) -> tuple[nn.Module, ...]:
        """The output embeddings, as far as the model tells."""
        return tuple(self._asked("get_output_embeddings"))

    def _is_tower(self, owners: list[nn.Module]) -> bool:
        if not self._foreign:
            return False
        inside = any(owner is self._decoder for owner in owners)
        known = inside or owners[-1] in (*self.embeddings, *self.heads)
        return not known or any(isinstance(getattr(owner, "config", None), self._foreign) for owner in owners[1:])

    @cached_property
    def _foreign(self) -> tuple[type, ...]:
        """The configs of parts that read no text; none of a model that is given text alone, or none."""
        inputs = signature(self._model.forward).parameters
        if "input_ids" not in inputs or not any(map(_OTHER_INPUTS.search, inputs)):
            return ()
        own = vars(self._config).items()
        parts = [(key, part) for key, part in own if isinstance(part, PreTrainedConfig) and not key.startswith("_")]
        return tuple(type(part) for key, part in parts if key not in ("text_config", "decoder", "text_encoder"))

    @cached_property
    def _decoder(self) -> nn.Module:
        return next(self._asked("get_decoder"), self._model)

    @property
    def _config(self) -> Any:
        return getattr(self._model, "config", None)

    def _asked(self, question: str) -> Iterator[nn.Module]:
        """The model's answer, if it has one."""
        try:
            answer = getattr(self._model, question, lambda: None)()
        except (AttributeError, NotImplementedError):
            return
        if isinstance(answer, nn.Module):
            yield answer

    def _down(self, name: str) -> Iterator[nn.Module]:
        """The modules from the model down to this one."""
        owner = self._model
        yield owner
        for step in name.split("."):
            owner = owner._modules.get(step) or nn.Identity()
            yield owner
