"""The base model in memory: loaded from a folder or the Hub's cache, or given, and checked to be a causal one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from adaptrix.base.checkpoint import BaseCheckpoint
from adaptrix.base.fetch import fetch_base
from adaptrix.base.loading import UNLOADABLE, load_config, load_model, load_tokenizer, require_whole, unloadable
from adaptrix.dtype_names import dtype_name, dtype_problems
from adaptrix.errors import Problem, UsageError, refuse
from adaptrix.pipeline import Pipeline
from adaptrix.runtime.modules import require_plain
from adaptrix.tensor import MODEL_FLOATS
from adaptrix.torch_tensor import TORCH, as_torch

_DTYPES = {name: TORCH[name] for name in MODEL_FLOATS}


@dataclass(frozen=True, slots=True)
class Placement:
    """The device and the dtype of a base."""

    device: torch.device
    dtype: torch.dtype


def placement(device: str | None, dtype: str | None) -> Placement:
    """A device and a dtype by name: by default the accelerator, if there is one, and fp32.

    fp32, so that measurements show the cost of a plan and not of rounding. Raises :class:`UsageError` with all that is
    wrong.
    """
    problems = dtype_problems(dtype, MODEL_FLOATS)
    try:
        found = torch.device(device or _accelerator())
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the errors of torch for a missing device
        said = str(error).partition("\n")[0]
        problems.append(Problem("option", "device", f"{device!r}: {said}", "cpu, or a device that torch has here"))
    if problems:
        raise UsageError(problems)
    return Placement(found, _DTYPES[dtype_name(dtype or "F32")])


def _accelerator() -> torch.device | str:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or "cpu"


@dataclass(frozen=True)
class BaseModel:
    """A base: its name and config, and functions that load its tokenizer and its weights."""

    name: str
    config: Mapping[str, Any]
    tokenizer: Callable[[], Any]
    model: Callable[[], AbstractContextManager[Any]]


def base_model_at(uri: str, pipeline: Pipeline, where: Placement, tokenizer: Any = None) -> BaseModel:
    """A base on this disk or on the Hub. Raises :class:`AdaptrixError` where it has no config."""
    fetched = cache(lambda: fetch_base(uri, pipeline))
    return BaseModel(
        uri,
        pipeline.base_config(uri),
        lambda: tokenizer or load_tokenizer(fetched().folder, uri),
        lambda: _loaded(fetched(), where),
    )


def base_model_of(model: nn.Module, tokenizer: Any = None) -> BaseModel:
    """A model that is already in memory. Raises :class:`RefusedError` for one that another library has changed,
    :class:`UsageError` for one without a config."""
    require_plain(model)
    config = getattr(model, "config", None)
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    if config is None or not hasattr(config, "to_dict"):
        raise UsageError(Problem("model-unsupported", name, "the model has no config", "a transformers model"))

    def its() -> Any:
        if tokenizer is None:
            found, remedy = "a model needs its tokenizer to read a file", "tokenizer=…, or tokens as the text"
            raise UsageError(Problem("tokenizer-missing", "tokenizer", found, remedy=remedy))
        return tokenizer

    return BaseModel(name, config.to_dict(), its, lambda: _at_rest(model))


@contextmanager
def _loaded(base: BaseCheckpoint, placed: Placement) -> Iterator[Any]:
    """The model of a base, for the duration of the block.

    Raises :class:`RefusedError` where it is no causal language model, or would have weights that are in no file.
    """
    config = _require_causal_class(base)
    try:
        model, info = _load(base, config, dtype=placed.dtype, output_loading_info=True)
    except UNLOADABLE as error:
        raise unloadable("base-unusable", base.name, "it", error) from None
    require_whole(info, base.name)
    yield model.eval().to(placed.device)


def _load(base: BaseCheckpoint, config: Any, **options: Any) -> Any:
    """The model that transformers loads from a base's files; tensors of pickles are read here and passed to it."""
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not base.pickled:
        return load_model(AutoModelForCausalLM if causal else AutoModelForImageTextToText, base.folder, **options)
    kind: Any = (MODEL_FOR_CAUSAL_LM_MAPPING if causal else MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)[type(config)]
    state = {name: as_torch(tensor) for name, tensor in base.tensors().items()}
    return kind.from_pretrained(None, config=config, state_dict=state, **options)


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode; afterwards its mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True


def context_of(model: Any) -> int | None:
    """The number of positions of a model; None where it has no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 1 else None


def require_in_vocabulary(model: Any, ids: Tensor, name: str) -> None:
    """Raises :class:`RefusedError` for tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        found = f"tokens from {int(ids.min())} to {int(ids.max())}, and the model knows {rows}"
        raise refuse("vocabulary", name, found, "the tokenizer of this model")


@torch.no_grad()
def require_causal(model: Any, ids: Tensor, name: str) -> None:
    """Raises :class:`RefusedError` for a model without logits for each token, and for one whose logits depend on later
    tokens: it would read what it has to predict. ``ids``: a text
    ``[n]``, of which the beginning is read."""
    ids = ids[:16].to(model.device)
    other = torch.cat([ids[:-1], (ids[-1:] + 1) % model.get_input_embeddings().weight.shape[0]])
    first, second = (_logits(model, text, name)[:-1] for text in (ids, other))
    allowed = max(1e-3, 8 * torch.finfo(model.dtype).eps) * float(first.std(correction=0))
    if float((first - second).abs().max()) > allowed:
        raise _not_causal(name, f"{type(model).__name__} looks at the tokens that come after")


def _logits(model: Any, ids: Tensor, name: str) -> Tensor:
    """The logits ``[n, vocabulary]`` of tokens ``[n]``."""
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise _not_causal(name, f"{kind} has an encoder")
    try:
        answer = model(input_ids=ids[None])
    except UNLOADABLE as error:  # such as one that needs a picture
        raise _not_causal(name, f"{kind} does not read tokens alone: {' '.join(str(error).split())[:160]}") from None
    logits = answer.get("logits")
    if logits is None or logits.dim() != 3:
        raise _not_causal(name, f"{kind} does not answer with a token's probabilities")
    found: Tensor = logits[0].float()
    return found


def _require_causal_class(base: BaseCheckpoint) -> Any:
    """The base's config. Raises :class:`RefusedError` where it is not that of a causal language model."""
    kind = base.config.get("model_type")
    config = load_config(base.folder, base.name)
    writes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if not any(config.model_type in names for names in writes) or getattr(config, "is_encoder_decoder", False):
        raise _not_causal(base.name, f"transformers has no causal language model of type {kind!r}")
    return config


def _not_causal(name: str, found: str) -> Exception:
    remedy = "Perplexity and KL a token are for models that write text from left to right."
    return refuse("model-unsupported", name, found, "a causal language model", remedy)
