"""Seeded inputs for a model of any kind, and the answer that two models are compared by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from adaptrix.errors import RefusedError, refuse

_ROWS, _TOKENS, _SEED = 2, 48, 0
#: samples of a waveform: a fifth of a second at 16 kHz, more than the convolutions of any family shorten to nothing
_SAMPLES = 3200
#: the answers that are compared, the first that a model gives
_ANSWERS = ("logits", "start_logits", "logits_per_image", "prediction_logits", "last_hidden_state")


def seeded_inputs(model: Any) -> dict[str, Tensor]:
    """Random inputs under the names that the model's forward takes, of two rows, the same at each call.

    Tokens for models of text; pictures, log-mel features or waveforms, of the sizes that the config states, for models
    that take nothing else or take them beside their tokens. Raises :class:`RefusedError` for a model of other inputs.
    """
    taken = inspect.signature(model.forward).parameters
    random = Generator().manual_seed(_SEED)
    main = getattr(model, "main_input_name", "input_ids")
    wanted = [main, *(["input_ids"] if main == "pixel_values" and _is_dual(model) else [])]
    if main == "input_ids" and "pixel_values" in taken and _is_dual(model):
        wanted.append("pixel_values")
    if lacking := [name for name in wanted if name not in _MAKERS]:
        raise _no_inputs(model, f"it reads {lacking[0]}")
    inputs = {name: _MAKERS[name](model, random) for name in wanted}
    if model.config.is_encoder_decoder and "decoder_input_ids" in taken:
        inputs["decoder_input_ids"] = _tokens(model, random)
    return inputs


def _is_dual(model: Any) -> bool:
    """True for a model that compares pictures with texts, as CLIP does: it needs both as inputs."""
    config = model.config
    halves = hasattr(config, "vision_config") and hasattr(config, "text_config")
    return halves and hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def _tokens(model: Any, random: Generator) -> Tensor:
    config = model.config.get_text_config(decoder=True) if model.config.is_encoder_decoder else _text(model.config)
    limits = (getattr(config, key, None) for key in ("max_position_embeddings", "max_target_positions", "n_positions"))
    limit = next((found for found in limits if isinstance(found, int) and found > 0), _TOKENS)
    shape = (_ROWS, max(1, min(_TOKENS, limit - 4)))  # some families count positions from their padding on
    vocabulary = getattr(config, "vocab_size", None)
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise _no_inputs(model, "its config states no vocab_size")
    return torch.randint(vocabulary, shape, generator=random)


def _text(config: Any) -> Any:
    return config.get_text_config()


def _pictures(model: Any, random: Generator) -> Tensor:
    config = getattr(model.config, "vision_config", model.config)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if not isinstance(height, int) or not isinstance(width, int):
        raise _no_inputs(model, "its config states no image_size")
    return torch.randn(_ROWS, channels, height, width, generator=random)


def _features(model: Any, random: Generator) -> Tensor:
    config = model.config
    bins, frames = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    if not isinstance(bins, int) or not isinstance(frames, int):
        raise _no_inputs(model, "its config states no num_mel_bins and max_source_positions")
    return torch.randn(_ROWS, bins, 2 * frames, generator=random)  # the second convolution halves the frames


def _waveform(_model: Any, random: Generator) -> Tensor:
    return torch.randn(_ROWS, _SAMPLES, generator=random)


_MAKERS: Mapping[str, Callable[[Any, Generator], Tensor]] = {
    "input_ids": _tokens,
    "pixel_values": _pictures,
    "input_features": _features,
    "input_values": _waveform,
}


@torch.no_grad()
def answer(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model's answer ``[…, classes]`` in fp32, hidden states where it has no head.

    Raises :class:`RefusedError` for a model that does not run on these inputs, or that answers with something else.
    """
    try:
        given = model(**inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise _no_inputs(model, f"on seeded inputs it stops with: {said[:160]}") from None
    found = next((given[key] for key in _ANSWERS if key in given and isinstance(given[key], Tensor)), None)
    if found is None:
        raise _no_inputs(model, f"it answers with {', '.join(map(str, given))}")
    logits: Tensor = found.float()
    return logits


def _no_inputs(model: Any, found: str) -> RefusedError:
    expected = "a model of tokens, pictures, log-mel features or waveforms"
    remedy = "Nothing was written. Merge without --verify, and compare the models on inputs of your own."
    return refuse("verification-impossible", type(model).__name__, found, expected, remedy)
