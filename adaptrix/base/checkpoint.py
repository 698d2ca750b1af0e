"""A base model's weights on this disk: shards, their index, and the files that belong to them.

They are checked against one another before anything is written: an index that names a tensor or a shard which is not
there is refused, since loading such a model would put random numbers in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adaptrix.base.file_kinds import KINDS, TORCH, FileKind, Held
from adaptrix.errors import Problem, RefusedError, few, refuse
from adaptrix.json_file import read_object
from adaptrix.tensor import Tensor
from adaptrix.wording import some

#: files that are copied with the weights; all others are not, such as a second copy of them or an optimiser's state
CARRIED = (
    *("config.json", "generation_config.json", "*tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "chat_template.*"),
    *("*processor_config.json", "configuration_*.py", "modeling_*.py", "tokenization_*.py", "processing_*.py"),
    *("LICENSE*", "NOTICE*", "USE_POLICY*"),
)
#: of these, the tokenizer's, which an adapter that was trained with more tokens has too
TOKENIZER = ("*tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
_MAX_INDEX = 100_000_000
_OTHER_KINDS = ("*.gguf", "*.pth", "*.pt", "consolidated*", "tf_model.h5", "*.msgpack")


@dataclass(frozen=True, eq=False)
class BaseCheckpoint:
    """A model's weights: tensors by shard, in the order of their bytes, each shard's metadata, and the index.

    - ``name``: as the user gave it; ``folder``: of the files; ``config``: the content of config.json.
    - ``shards``: file name -> tensors by name; ``metadata``: file name -> the file's own. Shards are named as
      safetensors files, in the index as well.
    - ``sources``: the names of the files that the shards were read from.
    - ``index``: None where all is in one file.
    - ``commit``: on the Hub, None for a folder of this disk.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    shards: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, Mapping[str, str]]
    sources: tuple[str, ...]
    index: Mapping[str, Any] | None = None
    commit: str | None = None

    @property
    def pickled(self) -> bool:
        """True where its files are pickles, which other libraries may execute and so must not open."""
        return any(file.endswith(TORCH.suffix) for file in self.sources)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name."""
        return {name: tensor for shard in self.shards.values() for name, tensor in shard.items()}

    def carried(self) -> dict[str, Path]:
        """The files that are copied as they are, by name."""
        return matching(self.folder, CARRIED)

    def files(self) -> list[Path]:
        """The files that no output may replace."""
        return [self.folder / "config.json", *(self.folder / file for file in self.sources)]


def matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """The regular files of a folder whose names match one of the patterns."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {file.name: file for file in files if any(fnmatchcase(file.name, pattern) for pattern in patterns)}


def open_base(folder: Path, name: str, config: Mapping[str, Any], commit: str | None = None) -> BaseCheckpoint:
    """The weights in a folder. Raises :class:`RefusedError` with everything that is missing or contradicts itself."""
    kind = next((kind for kind in KINDS if kind.is_in(folder)), None)
    if kind is None:
        raise _no_weights(folder, name)
    index = None if (folder / kind.single).is_file() else _index(folder / kind.index, kind)
    files = [kind.single] if index is None else sorted(set(index["weight_map"].values()))
    problems = [_no_shard(folder, file) for file in files if not (folder / file).is_file()]
    found: dict[str, Held] = {}
    for file in files:
        if (folder / file).is_file():
            try:
                found[file] = kind.read(folder / file)
            except RefusedError as error:
                problems += error.problems
    if index is not None and not problems:
        tensors = {file: held for file, (held, _) in found.items()}
        problems += _contradictions(tensors, index["weight_map"], folder / kind.index)
    if problems:
        raise RefusedError(few(problems, str(folder)))
    return BaseCheckpoint(
        name,
        folder,
        config,
        MappingProxyType({kind.written(file): MappingProxyType(tensors) for file, (tensors, _) in found.items()}),
        MappingProxyType({kind.written(file): metadata for file, (_, metadata) in found.items()}),
        tuple(files),
        None if index is None else _as_written(index, kind),
        commit,
    )


def _index(path: Path, kind: FileKind) -> dict[str, Any]:
    """The object of the index, its map from tensors to file names checked."""
    index = read_object(path, str(path), _MAX_INDEX)
    files_of = index.get("weight_map")
    if not isinstance(files_of, dict) or not files_of or not all(isinstance(file, str) for file in files_of.values()):
        raise refuse("base-incomplete", path, "its weight_map is no map from tensors to files", remedy=_AGAIN)
    files = set(files_of.values())
    wrong = sorted(file for file in files if Path(file).name != file or not file.endswith(kind.suffix))
    if wrong:
        raise refuse("base-incomplete", path, f"it names {some(wrong, 3)}", f"{kind.suffix} files beside it", _AGAIN)
    if len({kind.written(file) for file in files}) < len(files):
        raise refuse("base-incomplete", path, "two of its files would have one name as safetensors", remedy=_AGAIN)
    return index


def _as_written(index: Mapping[str, Any], kind: FileKind) -> dict[str, Any]:
    """The index with the names that the shards are written under."""
    return {**index, "weight_map": {name: kind.written(file) for name, file in index["weight_map"].items()}}


_AGAIN = "Fetch the base again."


def _no_weights(folder: Path, name: str) -> RefusedError:
    parts = matching(folder, tuple(kind.shards for kind in KINDS))
    if parts:
        expected = " or ".join(kind.index for kind in KINDS)
        return refuse("base-incomplete", name, f"it holds {some(parts, 3)} and no index of them", expected, _AGAIN)
    others = matching(folder, _OTHER_KINDS)
    if not others:
        found = "there is neither " + " nor ".join(f"{kind.single} or {kind.index}" for kind in KINDS) + " in it"
        return refuse("base-incomplete", name, found, "a model's weights", "Name a folder that holds the whole base.")
    expected = " or ".join(kind.single for kind in KINDS)
    remedy = "Load it with transformers and save_pretrained() it into a folder: that writes safetensors."
    return refuse("base-incomplete", name, f"its weights are in {some(others, 3)} alone", expected, remedy)


def _no_shard(folder: Path, file: str) -> Problem:
    return Problem("base-incomplete", str(folder / file), "the index names it and it is not there", remedy=_AGAIN)


def _contradictions(
    shards: Mapping[str, Mapping[str, Tensor]], files_of: Mapping[str, str], where: Path
) -> Iterator[Problem]:
    """A problem for every tensor that is not in the file that the index names, and for every one in two files."""
    for name, file in files_of.items():
        if name not in shards[file]:
            yield Problem("base-incomplete", f"{where} {name}", f"{file} has no such tensor", remedy=_AGAIN)
    seen: dict[str, str] = {}
    for file, tensors in shards.items():
        for name in tensors:
            if name in seen:
                yield Problem("duplicate", f"{where} {name}", f"both {seen[name]} and {file} have it", remedy=_AGAIN)
            seen[name] = file
