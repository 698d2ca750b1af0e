"""Reads a trained hypernetwork in SakanaAI's format: ``hypermod.pt``, ``args.yaml`` and ``adapter_config.json``.

The state dict describes itself, so no base is needed. The file is a pickle, read by Adaptrix's own machine that
builds tensors and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from adaptrix import Bundle, Problem, RefusedError, Tensor, UsageError
from adaptrix.extend import FLOATS, some, torch_file
from adaptrix_text_to_lora.hypernetwork import Hypernetwork
from adaptrix_text_to_lora.layout import read_shape
from adaptrix_text_to_lora.settings import Settings, read_settings

#: the folder of a base that holds a hypernetwork trained for it
OWN = "text-to-lora"
NAME, ARGS, CONFIG = "hypermod.pt", "args.yaml", "adapter_config.json"
_AGAIN = "Download the checkpoint again."
#: statistics of a library of LoRAs, which only reconstruction uses; some files leave them out
_STATISTICS = ("mean_recon_target.", "std_recon_target.")


@dataclass(frozen=True)
class Checkpoint:
    """A hypernetwork in evaluation mode, and what its files say of the adapters it makes."""

    uri: str
    hypernetwork: Hypernetwork
    settings: Settings
    files: Mapping[str, str]


def read_checkpoint(uri: str) -> Checkpoint:
    """The hypernetwork in a folder, or of a ``hypermod.pt`` with its two files beside it or above ``checkpoints/``.

    Raises :class:`AdaptrixError` with every problem of the step that fails.
    """
    bundle = _files(uri)
    with bundle.held():
        settings = read_settings(bundle.one(ARGS), bundle.one(CONFIG))
        tensors = torch_file.read(bundle.one(NAME))
    where = str(bundle.files[NAME])
    if problems := list(_faults(tensors, where)):
        raise RefusedError(problems)
    shape = read_shape(tensors, settings, where)
    with torch.device("meta"):
        hypernetwork = Hypernetwork(shape)
    _require_same(hypernetwork, tensors, where)
    state = {
        name: torch.zeros(wanted.shape) for name, wanted in hypernetwork.state_dict().items() if name not in tensors
    }
    state |= {name: torch.from_numpy(tensor.float32().copy()) for name, tensor in tensors.items()}
    hypernetwork.load_state_dict(state, strict=True, assign=True)
    return Checkpoint(uri, hypernetwork.eval().requires_grad_(False), settings, MappingProxyType(dict(bundle.sha256)))


def source_files(uri: str) -> list[Path]:
    """The files of a checkpoint. Raises :class:`UsageError` where there is none."""
    return list(_files(uri).files.values())


def own_checkpoint(base: str | None) -> str:
    """The hypernetwork that lies in a base's own folder. Raises :class:`UsageError`, and says how to come by one."""
    folder = None if base is None else Path(os.path.expanduser(base)) / OWN
    if folder is not None and (folder / NAME).is_file():
        return str(folder)
    if folder is None:
        found = "no checkpoint was named, and no base"
    elif folder.parent.is_dir():
        found = f"no checkpoint was named, and it has no {OWN}/{NAME}"
    else:
        found = f"no checkpoint was named, and there is no folder {base} here that could have one"
    remedy = "Name one with --checkpoint, or train one: `adaptrix text-to-lora train CONFIG.yaml`."
    raise UsageError(
        Problem("hypernetwork-missing", base or "generate", found, "a hypernetwork trained for the base", remedy)
    )


def _files(uri: str) -> Bundle:
    path = Path(os.path.expanduser(uri))
    weights = path / NAME if path.is_dir() else path
    if not weights.is_file():
        found = f"there is no {NAME} in it" if path.is_dir() else "there is no such file or folder"
        raise UsageError(Problem("hypernetwork-invalid", uri, found, f"a {NAME}, or the folder that it is in"))
    homes = [weights.parent]
    if weights.parent.parent.name == "checkpoints":  # <run>/checkpoints/it_<step>/hypermod.pt
        homes.append(weights.parents[2])
    files = {NAME: weights}
    for name in (ARGS, CONFIG):
        files |= next(({name: home / name} for home in homes if (home / name).is_file()), {})
    return Bundle(uri, weights.parent.name, files)


def _faults(tensors: Mapping[str, Tensor], where: str) -> Iterator[Problem]:
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            yield Problem("dtype", f"{where} {name}", f"its dtype is {tensor.dtype}", "a floating-point dtype", _AGAIN)
        elif bad := tensor.nonfinite():
            yield Problem(
                "nonfinite", f"{where} {name}", f"{bad} of {tensor.size} numbers are NaN or Inf", remedy=_AGAIN
            )


def _require_same(hypernetwork: Hypernetwork, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises :class:`RefusedError` unless names and shapes are just those of the hypernetwork."""
    wanted: dict[str, Any] = dict(hypernetwork.state_dict())
    left_out = [name for name in wanted if name.startswith(_STATISTICS)]
    if hypernetwork.shape.output != "z-score" and not any(name in tensors for name in left_out):
        wanted = {name: tensor for name, tensor in wanted.items() if name not in left_out}
    kind = f"a {hypernetwork.shape.variant} hypernetwork"
    problems = []
    if missing := wanted.keys() - tensors.keys():
        problems.append(Problem("tensor-missing", where, f"it lacks {some(sorted(missing), 6)}", kind, _AGAIN))
    if strange := tensors.keys() - wanted.keys():
        problems.append(
            Problem("tensor-unexpected", where, f"it has {some(sorted(strange), 6)}", f"the tensors of {kind}")
        )
    for name in sorted(wanted.keys() & tensors.keys()):
        if tensors[name].shape != tuple(wanted[name].shape):
            found, expected = f"shape {list(tensors[name].shape)}", f"{list(wanted[name].shape)}"
            problems.append(Problem("shape", f"{where} {name}", found, expected, _AGAIN))
    if problems:
        raise RefusedError(problems)
