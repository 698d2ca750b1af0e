"""``TextToLoRA``: a trained hypernetwork and a text encoder, and the adapters that they make of sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from os import PathLike, fspath

import torch

from adaptrix import Adapter, Problem
from adaptrix.extend import Pipeline
from adaptrix_text_to_lora.adapters import Origin
from adaptrix_text_to_lora.checkpoint import Checkpoint, own_checkpoint, read_checkpoint
from adaptrix_text_to_lora.encoders import Encoder, Pooling, require_width, scaled
from adaptrix_text_to_lora.encoding import embedded, named_encoder
from adaptrix_text_to_lora.hypernetwork import Hypernetwork
from adaptrix_text_to_lora.prompts import require_prompts
from adaptrix_text_to_lora.shape import Shape
from adaptrix_text_to_lora.targets import Base, TargetModule, require_fit, without_base

_AT_ONCE = 8  # texts in a pass: eight adapters of a 7B base are 110 MB
_REMEMBERED = 1024  # embeddings


class TextToLoRA:
    """Makes adapters out of sentences.

    ``checkpoint``: a folder with SakanaAI's three files, or its ``hypermod.pt``; by default that in the folder
    ``text-to-lora`` of the base's own. ``base``: the model that the adapters are for, a folder or ``owner/name``; its
    config.json is read, and its weights where its own states are the encoder. ``encoder``: any :class:`Encoder`,
    ``"base"``, ``"hashed"``, or the folder or Hub name of an embedding model; by default what the checkpoint was
    trained with. ``pooling``: of an embedding model that does not say.

    Embeddings are remembered in memory, up to 1,024. Raises :class:`AdaptrixError` with every problem.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str] | None = None,
        base: str | PathLike[str] | None = None,
        encoder: Encoder | str | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        wanted = None if base is None else fspath(base)
        self._checkpoint = read_checkpoint(own_checkpoint(wanted) if checkpoint is None else fspath(checkpoint))
        self.target_modules, note = _placed(self._checkpoint, wanted)
        self.encoder = _encoder(encoder, self._checkpoint, wanted, pooling)
        require_width(self.encoder.width, self.shape.embedding, self.encoder.name)
        settings = self._checkpoint.settings
        self._origin = Origin(
            uri=self._checkpoint.uri,
            files=self._checkpoint.files,
            base=wanted or settings.base,
            alpha=settings.alpha,
            rslora=settings.rslora,
            encoder=self.encoder.name,
            problems=note,
        )
        self._embedding = lru_cache(_REMEMBERED)(lambda text: scaled(self.encoder(text), self.encoder))

    @property
    def hypernetwork(self) -> Hypernetwork:
        """The network itself, in evaluation mode."""
        return self._checkpoint.hypernetwork

    @property
    def shape(self) -> Shape:
        """The hypernetwork's sizes."""
        return self._checkpoint.hypernetwork.shape

    @property
    def alpha(self) -> float:
        """Alpha of every adapter: ΔW is scaled by it over the rank or, for rsLoRA, over the root of the rank."""
        return self._origin.alpha

    def generate(self, text: str) -> Adapter:
        """The adapter of one sentence."""
        return next(self.generate_many([text]))

    def generate_many(self, texts: Iterable[str]) -> Iterator[Adapter]:
        """An adapter for every sentence, in their order, one for those that are the same; made as they are asked for.

        Raises before the first one with every prompt that cannot be one, or that the encoder cannot read.
        """
        prompts = require_prompts(texts)
        vectors = embedded(prompts, self._embedding)
        starts = range(0, len(prompts), _AT_ONCE)
        pieces = (slice(start, start + _AT_ONCE) for start in starts)
        return chain.from_iterable(self._batch(prompts[piece], vectors[piece]) for piece in pieces)

    @torch.no_grad()
    def _batch(self, texts: list[str], vectors: torch.Tensor) -> list[Adapter]:
        factors = self._checkpoint.hypernetwork(vectors)
        return [
            self._origin.adapter(
                text, {name: (A[row], B[row]) for name, (A, B) in factors.items()}, self.target_modules
            )
            for row, text in enumerate(texts)
        ]


def _placed(checkpoint: Checkpoint, base: str | None) -> tuple[tuple[TargetModule, ...], tuple[Problem, ...]]:
    """The modules of the base; without one those of Llama, and a note that says so."""
    shape, pipeline = checkpoint.hypernetwork.shape, Pipeline()
    names = [module.name for module in shape.modules]
    if base is None:
        found = "no base was named: module paths are those of Llama, and sizes are not checked"
        note = Problem("unverified", checkpoint.uri, found, remedy="Name it with --base MODEL.", severity="note")
        return without_base(names, pipeline.catalog.architectures), (note,)
    known = Base.read(base, pipeline)
    target_modules = known.find_modules(names)
    require_fit(shape, known, target_modules)
    return target_modules, known.borrowed(names)


def _encoder(given: Encoder | str | None, checkpoint: Checkpoint, base: str | None, pooling: Pooling | None) -> Encoder:
    name = given if given is not None else checkpoint.settings.encoder or "base"
    if not isinstance(name, str):
        return name
    return named_encoder(name, checkpoint.hypernetwork.shape.embedding, base, pooling, checkpoint.uri)
