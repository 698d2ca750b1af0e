"""The choice of an adapter's files among all that a folder or a repository holds.

Only names and sizes are looked at, so nothing has to be fetched before the choice is made.
Formats that share a file describe one checkpoint; files of a format that shares none are another adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain

from adaptrix.errors import RefusedError, refuse
from adaptrix.json_file import MAX_BYTES, too_large
from adaptrix.records import Format
from adaptrix.sources.full_model import model_weights
from adaptrix.sources.other_formats import Peek, other_format
from adaptrix.wording import amount, commands, shown, some

#: PEFT's name of its config; where it is missing, the message explains why it is needed
#: endings of files whose own names say that they are adapters
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Listing:
    """The contents of one folder or repository.

    - ``uri``: the folder or repository as it was typed.
    - ``files``: path inside it, with ``/`` -> bytes.
    - ``address``: turns a path inside it into an address that can be typed.
    - ``unreadable``: path -> a description, for what is there and is no readable file ("a broken link").
    - ``count``: the number of tensors in files at the top, None where that is not cheap.
    - ``peek``: reads the beginning and the tensor names of a file at the top; None where that is not cheap.
    - ``start``: reads the beginning of a file, for formats that tell by it; None where that cannot be.
    """

    uri: str
    files: Mapping[str, int]
    address: Callable[[str], str]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    count: Callable[[Sequence[str]], int | None] | None = None
    peek: Peek | None = None
    start: Callable[[str], bytes] | None = None

    @cached_property
    def folders(self) -> Mapping[str, list[str]]:
        """Every folder that has files ("" is the top) -> their names."""
        folders: dict[str, list[str]] = {}
        for path in sorted(self.files):
            folder, _, name = path.rpartition("/")
            folders.setdefault(folder, []).append(name)
        return folders

    def top(self) -> list[str]:
        """The names of the files that are in no subfolder."""
        return self.folders.get("", [])


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of one adapter: ``names`` in ``folder``; ``label``: the adapter's name, where its file gives one.

    ``candidates``: names that fit equally well where a format takes only one file.
    """

    folder: str
    names: tuple[str, ...]
    label: str | None = None
    candidates: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(_join(self.folder, name) for name in self.names)


def choose(listing: Listing, formats: Sequence[Format]) -> Choice:
    """The adapter in a folder or repository: the one at the top, else that of the only subfolder that has one.

    Raises ``RefusedError``: ``several-adapters`` lists each with the command to type, ``full-model``,
    ``adapter-config-missing``, ``adapter-weights-missing``, ``adapter-missing``.
    """
    folders = [""] if at_top(listing, formats) else listing.folders
    found = [adapters for folder in folders if (adapters := _adapters_in(listing, folder, formats))]
    if not found:
        raise _nothing(listing, formats)
    if [len(adapters) for adapters in found] == [1]:
        return _settled(listing, found[0][0])
    raise _several(listing, [path for adapters in found for path in _addresses(adapters)])


def at_top(listing: Listing, formats: Sequence[Format]) -> bool:
    """True where the top holds an adapter, so that no subfolder need be searched."""
    return bool(_adapters_in(listing, "", formats))


def choose_file(listing: Listing, name: str, formats: Sequence[Format]) -> Choice:
    """The adapter that the file ``name`` at the top belongs to, with the files beside it that it needs.

    Raises ``RefusedError`` as :func:`choose` does, and ``file-unknown``.
    """
    names = listing.top()
    able = [fmt for fmt in formats if _may_be(listing, fmt, name)]
    groups = [group for fmt in able if (group := _groups(fmt, names, name)) and [name] in group]
    if whole := _adapters("", [group for group in groups if all(group)], formats):
        return _settled(listing, whole[0])
    other = None if name.endswith(_ADAPTERS) else other_format([name], listing.peek)
    if other is not None:
        raise _other(listing, other)
    if groups:
        raise _incomplete(listing, names, formats)
    if model_weights([name]):
        raise _full_model(listing, [name])
    raise _unknown_file(listing, name, formats)


def _adapters_in(listing: Listing, folder: str, formats: Sequence[Format]) -> list[Choice]:
    found = []
    for fmt in formats:
        names = [name for name in listing.folders.get(folder, []) if _may_be(listing, fmt, _join(folder, name))]
        if (group := _groups(fmt, names)) and all(group):
            found.append(group)
    return _adapters(folder, found, formats)


def _may_be(listing: Listing, fmt: Format, path: str) -> bool:
    """False for a file whose first bytes show that it is not of a format, though its name is one of the format's."""
    name = path.rpartition("/")[2]
    named = any(_matches(name, pattern) for patterns in fmt.patterns for pattern in patterns)
    return fmt.sniff is None or listing.start is None or not named or fmt.sniff(listing.start(path))


def _adapters(folder: str, whole: Sequence[list[list[str]]], formats: Sequence[Format]) -> list[Choice]:
    """The adapters that the files found for each format make up."""
    found: list[Choice] = []
    # formats that need no choice come first, then those of more files: a pattern may fit a file of another format
    for group in sorted(whole, key=lambda group: (max(map(len, group)) > 1, -len(group))):
        choice = _choice(folder, group, _label(formats, group[0][0]) if len(group) == 1 else None)
        shares = (at for at, other in enumerate(found) if not set(other.names).isdisjoint(chain(*group)))
        if (same := next(shares, None)) is None:
            found.append(choice)
        else:  # one checkpoint in two formats' terms: the format is detected when it is read
            found[same] = replace(found[same], names=tuple(dict.fromkeys((*found[same].names, *choice.names))))
    return found


def _addresses(adapters: Sequence[Choice]) -> list[str]:
    """A path for each adapter in a folder, as it can be typed: the folder if it has only one, else a file of each."""
    if len(adapters) == 1:
        return [adapters[0].folder]
    return [_join(one.folder, name) for one in adapters for name in one.candidates or one.names[:1]]


def _groups(fmt: Format, names: Sequence[str], given: str | None = None) -> list[list[str]]:
    """For each file of a checkpoint in the format, the names that fit, best first. ``given``: a name to prefer."""
    return [_alternatives(patterns, names, given) for patterns in fmt.patterns]


def _alternatives(patterns: tuple[str, ...], names: Sequence[str], given: str | None) -> list[str]:
    if given is not None and any(fnmatchcase(given, pattern) for pattern in patterns):
        return [given]
    for pattern in patterns:
        if found := [name for name in sorted(names) if _matches(name, pattern)]:
            return found
    return []


def _matches(name: str, pattern: str) -> bool:
    """Matches a name as a shell does: ``*`` leaves out hidden files, such as the ``._name`` that macOS adds."""
    return fnmatchcase(name, pattern) and not (name.startswith(".") and not pattern.startswith("."))


def _choice(folder: str, groups: Sequence[Sequence[str]], label: str | None) -> Choice:
    names = tuple(dict.fromkeys(group[0] for group in groups))
    candidates = next((tuple(group) for group in groups if len(group) > 1), ())
    return Choice(folder, names, label, candidates)


def _label(formats: Sequence[Format], name: str) -> str | None:
    """The part of ``name`` that ``*`` stands for, in the longest pattern that fits: the adapter's name."""
    stars = [one for fmt in formats for patterns in fmt.patterns for one in patterns if one.startswith("*")]
    longest = max((pattern for pattern in stars if fnmatchcase(name, pattern)), key=len, default="")
    return name[: len(name) - len(longest) + 1] or None if longest else None


def _settled(listing: Listing, choice: Choice) -> Choice:
    if choice.candidates:
        raise _several(listing, [_join(choice.folder, name) for name in choice.candidates])
    for path in choice.paths:
        if path.endswith(".json") and listing.files.get(path, 0) > MAX_BYTES:
            raise too_large(listing.address(path), listing.files[path])
    return choice


def _several(listing: Listing, paths: Sequence[str]) -> RefusedError:
    return refuse(
        "several-adapters",
        shown(listing.uri),
        f"there are {len(paths)} adapters in it: {some(paths)}",
        "one",
        f"Say which:{commands(map(listing.address, paths))}",
    )


def _nothing(listing: Listing, formats: Sequence[Format]) -> RefusedError:
    names = listing.top()
    if other := other_format(names, listing.peek):
        return _other(listing, other)
    several = [fmt for fmt in formats if len(fmt.patterns) > 1]  # of one file there is no half
    if any(found for fmt in several for found in _groups(fmt, names)):
        return _incomplete(listing, names, several)
    if weights := model_weights(names):
        return _full_model(listing, weights)
    if not listing.files and not listing.unreadable:
        return refuse("adapter-missing", shown(listing.uri), "there are no files in it", _file_names(formats))
    there = [*sorted(listing.files), *(f"{path} ({what})" for path, what in listing.unreadable.items())]
    return refuse(
        "adapter-missing", shown(listing.uri), f"there is no adapter in it, only {some(there)}", _file_names(formats)
    )


def _other(listing: Listing, other: tuple[str, str]) -> RefusedError:
    """The refusal of an adapter of a format that is known and not read."""
    what, remedy = other
    return refuse("format-unknown", shown(listing.uri), f"this is {what}", "a format that is read here", remedy)


def _incomplete(listing: Listing, names: Sequence[str], formats: Sequence[Format]) -> RefusedError:
    """The refusal of half an adapter: a config without weights, or weights without their config."""
    # of several, the last: Adaptrix's own PEFT, which most folders with such a config are
    fmt = max(reversed(formats), key=lambda one: sum(map(bool, _groups(one, names))))
    groups = _groups(fmt, names)
    have = " and ".join(group[0] for group in groups if group)
    missing = next(patterns for patterns, group in zip(fmt.patterns, groups, strict=True) if not group)
    unreadable = "".join(f" ({name} is {listing.unreadable[name]})" for name in missing if name in listing.unreadable)
    config = missing[0] == _CONFIG
    return refuse(
        "adapter-config-missing" if config else "adapter-weights-missing",
        shown(listing.uri),
        f"there is {have}, but no {' or '.join(missing)}{unreadable}",
        remedy=_without_config() if config else _without_weights(names),
    )


def _without_config() -> str:
    return (
        "The weights alone do not say how strongly they apply (rank, alpha, variant). PEFT saves "
        f"{_CONFIG} beside them: copy or download it from where the weights are."
    )


def _without_weights(names: Sequence[str]) -> str:
    if weights := model_weights(names):
        return (
            f"{some(weights)} bears the name of a whole model's weights, not of an adapter's. "
            "Was the adapter merged, or the whole model saved?"
        )
    return (
        "Only half of the adapter was copied, or its training did not finish: get the weights from where it was saved."
    )


def _full_model(listing: Listing, weights: Sequence[str]) -> RefusedError:
    count = listing.count(weights) if listing.count else None
    size = amount(sum(listing.files.get(name, 0) for name in weights))
    what = "a GGUF model" if weights[0].endswith(".gguf") else "a full model"
    return refuse(
        "full-model",
        shown(listing.uri),
        f"this is {what}{f' of {count:,} tensors' if count is not None else ''} ({size}), not an adapter",
        remedy="Pass the adapter's folder or repository, or use this one as --base.",
    )


def _unknown_file(listing: Listing, name: str, formats: Sequence[Format]) -> RefusedError:
    if kind := listing.unreadable.get(name):
        return refuse("file-unreadable", shown(listing.uri), f"it is {kind}", "a file that can be read")
    return refuse(
        "format-unknown",
        shown(listing.uri),
        "no format has files of this name",
        _file_names(formats),
        "Give the file the name it was saved under, beside its config, or pass the folder.",
    )


def _file_names(formats: Sequence[Format]) -> str:
    """``adapter_config.json with adapter_model.safetensors (or adapter_model.bin), or *.adaptrix.safetensors``."""
    return ", or ".join(dict.fromkeys(" with ".join(map(_either, fmt.patterns)) for fmt in formats))


def _either(patterns: tuple[str, ...]) -> str:
    return patterns[0] + (f" (or {', '.join(patterns[1:])})" if patterns[1:] else "")


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
