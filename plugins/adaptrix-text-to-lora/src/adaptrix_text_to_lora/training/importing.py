"""``adaptrix text-to-lora import``: a hypernetwork that was trained elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptrix.extend import require_apart
from adaptrix_text_to_lora.checkpoint import Checkpoint, read_checkpoint, source_files
from adaptrix_text_to_lora.training.published import CheckpointRecord, write_checkpoint

if TYPE_CHECKING:
    from adaptrix_text_to_lora.schemas import ImportJSON


@dataclass(frozen=True, slots=True)
class ImportedCheckpoint:
    """A checkpoint read from ``source``, and the folder that it was written to, if it was."""

    source: str
    path: Path | None
    checkpoint: Checkpoint

    def as_dict(self) -> ImportJSON:
        """Its contents; modules are in the order of their type embeddings."""
        shape, settings = self.checkpoint.hypernetwork.shape, self.checkpoint.settings
        return {
            "source": self.source,
            "ok": True,
            "problems": [],
            "path": None if self.path is None else str(self.path),
            "variant": shape.variant,
            "parameters": sum(parameter.numel() for parameter in self.checkpoint.hypernetwork.parameters()),
            "modules": [{"name": module.name, "shape": [module.out, module.inp]} for module in shape.modules],
            "layers": shape.layers,
            "rank": shape.rank,
            "alpha": settings.alpha,
            "rslora": settings.rslora,
            "scale": _record(self.checkpoint).scale(shape.rank),
            "embedding": shape.embedding,
            "base": settings.base,
            "encoder": settings.encoder,
            "task": "reconstruction" if settings.task == "recon" else "fine-tuning",
        }


def import_checkpoint(source: str, out: Path | None, *, force: bool) -> ImportedCheckpoint:
    """Reads a checkpoint, and writes it where a folder is named. Raises :class:`AdaptrixError`."""
    checkpoint = read_checkpoint(source)
    if out is not None:
        require_apart(out, source_files(source))
        write_checkpoint(out, checkpoint.hypernetwork, _record(checkpoint), force=force)
    return ImportedCheckpoint(source, out, checkpoint)


def _record(checkpoint: Checkpoint) -> CheckpointRecord:
    settings = checkpoint.settings
    return CheckpointRecord(settings.alpha, settings.rslora, settings.base, settings.encoder)
