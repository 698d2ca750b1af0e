"""Embeddings out of a transformers model: the base's own last states, or a sentence-embedding model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import AutoModel

from adaptrix import Problem, UsageError
from adaptrix.extend import json_file, load_tokenizer, load_whole, model_folder, refuse
from adaptrix_text_to_lora.encoders import Pooling
from adaptrix_text_to_lora.prompts import named

_POOLING = "1_Pooling/config.json"  # where sentence-transformers keeps it
_MODES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


class ModelStates:
    """A model and its tokenizer, one text at a time: what a text becomes does not depend on its neighbours.

    Weights are read from safetensors alone and in their own dtype; code that comes with a model is never run.
    """

    def __init__(self, uri: str, pooling: Pooling | None = None) -> None:
        folder, self.name = model_folder(uri, "encoder"), uri
        self._pooling = pooling or _stated(folder, uri)
        if self._pooling not in get_args(Pooling):
            raise UsageError(Problem("encoder", uri, repr(self._pooling)[:80], " or ".join(get_args(Pooling))))
        self._tokenizer = load_tokenizer(folder, uri)
        model = load_whole(AutoModel, folder, uri, "encoder", unused="pooler")
        inner = model.get_encoder() if model.config.is_encoder_decoder else model
        self._model = inner.requires_grad_(False)
        self._limit = _limit(self._tokenizer, model.config)

    @property
    def width(self) -> int:
        """E: the width of a state."""
        return int(self._model.config.get_text_config().hidden_size)

    @torch.inference_mode()
    def __call__(self, text: str, /) -> Tensor:
        """``[E]``. Raises :class:`RefusedError` for a text of more tokens than the model has positions for."""
        ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
        count, rows = ids.shape[1], self._model.get_input_embeddings().weight.shape[0]
        if not 0 < count <= self._limit:
            found, expected = f"it has {count} tokens", f"1 to {self._limit}, which is what {self.name} reads"
            raise refuse("prompt", named(text), found, expected)
        if int(ids.max()) >= rows:
            raise refuse("vocabulary", self.name, f"its tokenizer gives token {int(ids.max())}", f"at most {rows - 1}")
        mask = torch.ones_like(ids)
        states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state[0].float()
        return states.mean(0) if self._pooling == "mean" else states[-1 if self._pooling == "last" else 0]


def _stated(folder: Path, uri: str) -> Pooling:
    """The pooling that sentence-transformers' own file states. Raises :class:`UsageError` where there is none."""
    file = folder / _POOLING
    modes = (
        [mode for key, mode in _MODES.items() if json_file.read_object(file, str(file)).get(key)]
        if file.is_file()
        else []
    )
    if len(modes) != 1:
        found, remedy = f"no {_POOLING} says which states stand for a text", "Say --pooling cls, mean or last."
        raise UsageError(Problem("encoder", uri, found, remedy=remedy))
    return modes[0]


def _limit(tokenizer: Any, config: Any) -> int:
    """The number of tokens that the model has positions for; 65,536 where neither model nor tokenizer has a limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    known = [limit for limit in (positions, tokenizer.model_max_length) if isinstance(limit, int) and limit > 0]
    return min([*known, 1 << 16])
