"""A base model's weights on this disk: shards, their index, and the files that belong to them.

Held to one another before anything is written: an index that names a tensor or a shard which is not there is
refused, for whoever loads the model would get random numbers in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.formats import safetensors_file
from adaptrix.json_file import read_object
from adaptrix.tensor import Tensor
from adaptrix.text import some

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: what goes along with the weights; nothing else does: no second copy of them, no optimiser's state
CARRIED = (
    *("config.json", "generation_config.json", "*tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "chat_template.*"),
    *("*processor_config.json", "configuration_*.py", "modeling_*.py", "tokenization_*.py", "processing_*.py"),
    *("LICENSE*", "NOTICE*", "USE_POLICY*"),
)
#: of these, what an adapter that was trained with more tokens brings its own of
TOKENIZER = ("*tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
_MAX_INDEX = 100_000_000
_OTHER_KINDS = ("pytorch_model*.bin", "*.gguf", "*.pth", "*.pt", "consolidated*", "tf_model.h5", "*.msgpack")


@dataclass(frozen=True, eq=False)
class Base:
    """A model's weights: tensors by shard, in the order of their bytes, each shard's metadata, and the index.

    ``name`` is what the user called it; ``index`` is None where all is in one file.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    shards: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, Mapping[str, str]]
    index: Mapping[str, Any] | None = None
    commit: str | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name."""
        return {name: tensor for shard in self.shards.values() for name, tensor in shard.items()}

    def carried(self) -> dict[str, Path]:
        """The files that are copied as they are, by name."""
        return matching(self.folder, CARRIED)

    def files(self) -> list[Path]:
        """Everything that no output may take the place of."""
        return [self.folder / "config.json", *(self.folder / shard for shard in self.shards)]


def matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """The regular files of a folder whose names match one of the patterns."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {file.name: file for file in files if any(fnmatchcase(file.name, pattern) for pattern in patterns)}


def open_base(folder: Path, name: str, config: Mapping[str, Any], commit: str | None = None) -> Base:
    """The weights in a folder. Raises :class:`RefusedError` with everything that is missing or contradicts itself."""
    index = None if (folder / SINGLE).is_file() else _index(folder, name)
    files = [SINGLE] if index is None else sorted(set(index["weight_map"].values()))
    problems = [_no_shard(folder, file) for file in files if not (folder / file).is_file()]
    found: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {}
    for file in files:
        if (folder / file).is_file():
            try:
                found[file] = safetensors_file.read(folder / file)
            except RefusedError as error:
                problems += error.problems
    if index is not None and not problems:
        problems += _contradictions({file: tensors for file, (tensors, _) in found.items()}, index, folder / INDEX)
    if problems:
        raise RefusedError(problems)
    return Base(
        name,
        folder,
        config,
        MappingProxyType({file: MappingProxyType(tensors) for file, (tensors, _) in found.items()}),
        MappingProxyType({file: metadata for file, (_, metadata) in found.items()}),
        index,
        commit,
    )


def _index(folder: Path, name: str) -> dict[str, Any]:
    """The object of the index, its map from tensors to file names checked."""
    if not (folder / INDEX).is_file():
        raise _no_weights(folder, name)
    index = read_object(folder / INDEX, str(folder / INDEX), _MAX_INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise refuse("bad-index", folder / INDEX, "its weight_map is no map from tensors to files", remedy=_AGAIN)
    odd = sorted({file for file in places.values() if Path(file).name != file or not file.endswith(".safetensors")})
    if odd:
        raise refuse("bad-index", folder / INDEX, f"it names {some(odd, 3)}", "safetensors files beside it", _AGAIN)
    return index


_AGAIN = "Fetch the base again."


def _no_weights(folder: Path, name: str) -> RefusedError:
    others = matching(folder, _OTHER_KINDS)
    if not others:
        found = f"there is no {SINGLE} and no {INDEX} in it"
        return refuse("no-weights", name, found, "a model's weights", "Name a folder that holds the whole base.")
    remedy = "Load it with transformers and save_pretrained() it into a folder: that writes safetensors."
    return refuse("no-weights", name, f"its weights are in {some(others, 3)} alone", "safetensors", remedy)


def _no_shard(folder: Path, file: str) -> Problem:
    return Problem("shard-missing", str(folder / file), "the index names it and it is not there", remedy=_AGAIN)


def _contradictions(
    shards: Mapping[str, Mapping[str, Tensor]], index: Mapping[str, Any], where: Path
) -> Iterator[Problem]:
    """Tensors that the index puts where they are not, and tensors in two places."""
    for name, file in index["weight_map"].items():
        if name not in shards[file]:
            yield Problem("tensor-missing", f"{where} {name}", f"{file} has no such tensor", remedy=_AGAIN)
    seen: dict[str, str] = {}
    for file, tensors in shards.items():
        for name in tensors:
            if name in seen:
                yield Problem("duplicate", f"{where} {name}", f"both {seen[name]} and {file} have it", remedy=_AGAIN)
            seen[name] = file
