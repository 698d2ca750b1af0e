"""The rows of a pass: what is known of its batch from the inputs of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from adaptrix.errors import Problem, UsageError

#: inputs whose last dimension is the tokens', and those that hold a vector a token
_IDS, _VECTORS = ("decoder_input_ids", "input_ids"), ("decoder_inputs_embeds", "inputs_embeds")
#: what a model without text is given, one a row
_WHOLE = ("input_features", "input_values", "pixel_values")
#: model types whose images all become as many tokens, so that their number can be counted in each row
_FIXED_IMAGES = frozenset({"gemma3", "paligemma"})
#: model types whose own `generate` joins a second batch, without the prompt, to the first for guidance
GUIDED = frozenset({"dia", "janus", "musicgen", "musicgen_melody", "qwen2_5_omni", "vibevoice"})


@dataclass(frozen=True, slots=True)
class Batch:
    """Sizes of a pass: its ``rows``, the ``lengths`` of rows in tokens, and the images, all in the rows' order.

    ``images``: of the whole pass, 0 where rows have different numbers of them, or it is not known.
    """

    rows: int
    lengths: frozenset[int]
    images: int


def batch_of(config: Any, given: Mapping[str, Any], count: int) -> Batch | None:
    """The batch of a pass that is divided among ``count`` adapters; None where its inputs do not tell.

    Raises :class:`UsageError` for a batch that was joined from several.
    """
    sizes = list(_sizes(given))
    rows = {size for size, _ in sizes} or {len(given[key]) for key in _WHOLE if isinstance(given.get(key), Tensor)}
    if len(rows) != 1:
        return None
    found = Batch(rows.pop(), frozenset(length for _, length in sizes), _images(config, given))
    _require_beams(config, given, found, count)
    return found


def _sizes(given: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Rows and length of each text that a pass is given. Choices of one question are rows that lie together."""
    for keys, inner in ((_IDS, 1), (_VECTORS, 2)):
        for tensor in (given.get(key) for key in keys):
            if isinstance(tensor, Tensor) and tensor.dim() > inner:
                shape = tensor.shape[: tensor.dim() - inner + 1]
                yield prod(shape[:-1]), shape[-1]


def _images(config: Any, given: Mapping[str, Any]) -> int:
    """The number of images where each row has as many, by the tokens that stand for them."""
    pixels, ids = given.get("pixel_values"), given.get("input_ids")
    token = getattr(config, "image_token_id", None)
    if getattr(config, "model_type", "") not in _FIXED_IMAGES or token is None:
        return 0
    if not isinstance(pixels, Tensor) or not isinstance(ids, Tensor) or ids.dim() != 2:
        return 0
    counts = (ids == token).sum(1)
    return len(pixels) if bool((counts == counts[0]).all()) and len(pixels) % len(ids) == 0 else 0


def _require_beams(config: Any, given: Mapping[str, Any], batch: Batch, count: int) -> None:
    """Raises :class:`UsageError` where a batch holds its rows several times and they do not lie together."""
    if batch.rows == count or batch.rows % count:  # which is refused where it is divided
        return
    if getattr(config, "model_type", "") in GUIDED or _joined(given.get("input_ids"), count):
        found = f"a batch of {batch.rows} that repeats its rows as a whole, as guidance does, for {count} adapters"
        remedy = "Name an adapter for each row of the joined batch."
        raise UsageError(Problem("route", "route", found, "the copies of a row side by side", remedy))


def _joined(ids: object, count: int) -> bool:
    """True for prompts that are repeated as a whole; beams of a prompt start as copies side by side."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] < 2:
        return False
    copies, beams = ids.view(-1, count, ids.shape[1]), ids.view(count, -1, ids.shape[1])
    return torch.equal(copies, copies[:1].expand_as(copies)) and not torch.equal(beams, beams[:, :1].expand_as(beams))
