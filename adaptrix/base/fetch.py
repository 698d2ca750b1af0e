"""A base's weights: on this disk, or in the Hub's cache, fetched if they are not there yet."""

from __future__ import annotations

import os
from pathlib import Path

from adaptrix.base.checkpoint import CARRIED, BaseCheckpoint, open_base
from adaptrix.base.file_kinds import KINDS, SAFETENSORS
from adaptrix.errors import Problem, UsageError
from adaptrix.pipeline import Pipeline
from adaptrix.sources import hub, local
from adaptrix.sources.near import meant


def base_folder(uri: str) -> Path | None:
    """The folder of a base on this disk; None for one on the Hub. Raises :class:`UsageError` for a file."""
    if not local.claims(uri):
        return None
    path = Path(os.path.expanduser(uri))
    if path.is_file():
        found, remedy = "this is a file", "Name the folder that it is in."
        raise UsageError(Problem("base-unusable", uri, found, "a folder with a model's config and weights", remedy))
    return path


def fetch_base(uri: str, pipeline: Pipeline) -> BaseCheckpoint:
    """A base with its weights; nothing but the model's own files is fetched. Raises :class:`AdaptrixError`."""
    config, folder = pipeline.base_config(uri), base_folder(uri)
    if folder is not None:
        return open_base(folder, uri, config)
    for kind in KINDS:  # no second copy of the weights: the next kind is for repositories without the first
        snapshot, commit = hub.folder(uri, (*kind.patterns, *CARRIED))
        if kind.is_in(snapshot):
            break
    return open_base(snapshot, uri, config, commit)


def model_folder(uri: str, code: str = "base-unusable") -> Path:
    """The folder of a model's safetensors, config and tokenizer: on this disk, or in the Hub's cache.

    It is for transformers to load from, whatever the kind of the model. ``code``: of problems. Raises
    :class:`AdaptrixError` for what is no folder, and for what is out of reach.
    """
    if not local.claims(uri):
        return hub.folder(uri, (*SAFETENSORS.patterns, *CARRIED))[0]
    path = Path(os.path.expanduser(uri))
    if not path.is_dir():
        found = "this is a file" if path.exists() else "there is no such folder"
        expected = "a folder with a model, its weights and its tokenizer"
        raise UsageError(Problem(code, uri, found, expected, meant(str(path))))
    return path
