"""A base's weights: on this disk, or in the Hub's cache, fetched if they are not there yet."""

from __future__ import annotations

from pathlib import Path

from adaptrix.errors import Problem, UsageError, refuse
from adaptrix.merging.base import CARRIED, INDEX, SINGLE, Base, open_base
from adaptrix.sources import hub, local
from adaptrix.workflow import Workshop

_WEIGHTS = (SINGLE, INDEX, "model-*-of-*.safetensors")


def base_folder(uri: str) -> Path | None:
    """The folder of a base on this disk; None for one on the Hub. Raises :class:`UsageError` for a file."""
    if not local.claims(uri):
        return None
    path = Path(uri).expanduser()
    if path.is_file():
        found, remedy = "this is a file", "Name the folder that it is in."
        raise UsageError(Problem("base", uri, found, "a folder with a model's config and weights", remedy))
    return path


def fetch_base(uri: str, workshop: Workshop) -> Base:
    """A base with its weights; nothing but the model's own files is fetched. Raises :class:`AdaptrixError`."""
    config, folder = workshop.base_config(uri), base_folder(uri)
    if folder is not None:
        return open_base(folder, uri, config)
    snapshot, commit = hub.folder(uri, (*_WEIGHTS, *CARRIED))
    if not any((snapshot / name).is_file() for name in (SINGLE, INDEX)):
        remedy = "If its weights are pickles: load it with transformers and save_pretrained() it into a folder."
        raise refuse("no-weights", uri, f"there is no {SINGLE} and no {INDEX} in it", "a model's weights", remedy)
    return open_base(snapshot, uri, config, commit)
