"""The names of tensors in a PEFT checkpoint, past and present, parsed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adaptrix.errors import Problem
from adaptrix.tensor import Tensor

PREFIX = "base_model.model."
#: the prefix of tensors that belong to no module
SHARED = "base_model."
_STRAY = (PREFIX, "module.")
#: steps that torch.compile, FSDP and activation checkpointing add to paths, wherever a module was wrapped
_WRAPPERS = re.compile(r"_(?<![^.]_)(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_LORA = re.compile(
    r"(?P<path>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
_SAVED = re.compile(r"(?P<path>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<leaf>.+)")
_DELTA = ".token_adapter.trainable_tokens_delta"
_TOKENS = re.compile(r"(?P<path>.+\.token_adapter\.trainable_tokens_delta)(?:\.(?P<adapter>[^.]+))?")
#: peft's wrapper of a module's parameter stands between the module and those inside it
_WRAPPED = re.compile(r"\.base_layer(?:\.base_layer)*(?=\.(?!base_layer\b|token_adapter\.|lora_)[^.]+\.)")
_STATED = "the type that adapter_config.json states"
_NAME = re.compile(r"[^\s/\\{}\x00-\x1f\x7f]{1,1024}")


@dataclass(frozen=True, slots=True)
class Key:
    """A parsed tensor name.

    ``path``: of the module; ``kind``: such as ``lora_A``, None for a tensor that is no part of a LoRA; ``leaf``:
    ``weight`` or ``bias``; ``adapter``: its name, where the key has one; ``prefix``: removed from the beginning, with
    an ellipsis where wrappers were removed from the rest.
    """

    path: str
    kind: str | None = None
    leaf: str | None = None
    adapter: str | None = None
    prefix: str = ""

    @property
    def plain(self) -> str:
        """The key as peft writes it, without the prefix."""
        return ".".join(filter(None, (self.path, self.kind, self.leaf)))


def named(kinds: Iterable[str]) -> re.Pattern[str]:
    """A pattern of the names of a module's own tensors of these kinds, which have no ``.weight`` at their ends."""
    either = "|".join(map(re.escape, kinds))
    return re.compile(rf"(?P<path>.+)\.(?P<kind>{either})(?:\.(?P<adapter>[^.]+))?(?P<leaf>(?!))?")


def parse(name: str, kinds: re.Pattern[str] = _LORA) -> Key | None:
    """The parts of a tensor's name; None where it cannot be a path of modules.

    ``kinds``: the pattern of a module's own tensors, those of a LoRA or of another type.
    """
    rest = _without_prefix(name)
    prefix = name.removesuffix(rest) if name.endswith(rest) else _WRAPPERS.sub("", name).removesuffix(rest) + "…"
    if not _NAME.fullmatch(name) or not all(rest.split(".")):
        return None
    rest = _WRAPPED.sub("", rest)
    if hit := kinds.fullmatch(rest):
        return Key(hit["path"], hit["kind"], hit["leaf"], hit["adapter"], prefix)
    if hit := _SAVED.fullmatch(rest):
        return Key(f"{hit['path']}.{hit['leaf']}", adapter=hit["adapter"], prefix=prefix)
    if hit := _TOKENS.fullmatch(rest):
        return Key(hit["path"], adapter=hit["adapter"], prefix=prefix)
    return Key(rest, prefix=prefix)


def _without_prefix(name: str) -> str:
    """A tensor's name without the prefixes of the module's path, and without wrappers."""
    rest = _WRAPPERS.sub("", name)
    while rest.startswith(_STRAY):
        rest = rest.removeprefix(PREFIX).removeprefix("module.")
    return rest


def _other_prefixes(keys: Iterable[Key]) -> dict[str, int]:
    """Prefixes other than peft's own, with how many keys carry each."""
    return dict(Counter(key.prefix for key in keys if key.prefix != PREFIX))


def keyed(tensors: Mapping[str, Tensor], kinds: Iterable[str] | None = None) -> tuple[dict[Key, Tensor], list[Problem]]:
    """The tensors by parsed key, each key once, and the problems of their names.

    ``kinds``: the ends of the names of a module's own tensors, None for those of a LoRA.
    """
    owner, expected = ("a LoRA", "lora_A and lora_B") if kinds is None else (_STATED, ", ".join(kinds))
    pattern = _LORA if kinds is None else named(kinds)
    keys = {name: parse(name, pattern) for name in tensors}
    problems = [
        Problem(
            "tensor-name",
            repr(name)[:200],
            "not a name of a tensor in a module",
            f"a name such as {PREFIX}layers.0.q.lora_A.weight",
        )
        for name, key in keys.items()
        if key is None
    ]
    known = {name: key for name, key in keys.items() if key is not None}
    problems += _name_problems(list(known.values()), owner, expected)
    copies = _copies(known)
    problems += _copy_problems(copies, tensors)
    known |= {copy: replace(known[copy], path=_without_prefix(copy), adapter=None) for copy in copies}
    found: dict[Key, Tensor] = {}
    owners: dict[str, str] = {}
    for name, key in known.items():
        other = owners.setdefault(key.plain, name)
        if other == name:
            found[key] = tensors[name]
        elif None in (key.adapter, known[other].adapter) or key.adapter == known[other].adapter:
            problems.append(Problem("duplicate", name, f"the same tensor as {other!r}", "one tensor for one name"))
    return found, problems


def _copies(keys: Mapping[str, Key]) -> dict[str, str]:
    """The second names of tensors of modules saved whole -> the first names of the same tensors.

    Under ``bias="all"`` peft saves every bias of the model under its own name, and those of a head a second time:
    ``classifier.modules_to_save.default.dense.bias`` beside ``classifier.dense.bias``.
    """
    plain = {key.path: name for name, key in keys.items() if key.kind is None and key.adapter is None}
    return {name: plain[key.path] for name, key in keys.items() if _is_whole(key) and key.path in plain}


def _is_whole(key: Key) -> bool:
    return key.kind is None and key.adapter is not None and not key.path.endswith(_DELTA)


def _copy_problems(copies: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    """A problem for tensors under two names: a warning where they differ, since peft reads the plain name alone."""
    if not copies:
        return
    other = [name for name, first in copies.items() if not _same(tensors[name], tensors[first])]
    first = copies[(other or list(copies))[0]]
    read = f"read are those without modules_to_save, such as {first!r}, as peft does"
    if other:
        found = f"{len(other)} tensors are there under two names and differ: {read}"
        yield Problem("duplicate", other[0], found, "one tensor for one place", severity="warning")
    else:
        yield Problem(
            "duplicate", next(iter(copies)), f"{len(copies)} tensors are there twice: {read}", severity="note"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()


def _name_problems(keys: Sequence[Key], owner: str, expected: str) -> Iterator[Problem]:
    for prefix, count in _other_prefixes(keys).items():
        found = f"{count} names start with {prefix!r}" if prefix else f"{count} names lack the prefix of peft"
        yield Problem("tensor-name", "tensor names", f"{found}: read as if with {PREFIX!r}", severity="note")
    adapters = sorted({key.adapter for key in keys if key.adapter})
    if len(adapters) > 1:
        yield Problem(
            "several-adapters",
            "tensor names",
            f"several adapters in one file: {', '.join(adapters)}",
            "one",
            "Load it with peft and save each adapter with save_pretrained(folder, selected_adapters=[name]).",
        )
    if keys and not any(key.kind for key in keys):
        yield Problem(
            "adapter-empty",
            "tensor names",
            f"none of {len(keys)} tensors belongs to {owner}",
            f"{expected} of modules",
            "Restore the config of this training."
            if owner == _STATED
            else "This looks like a full model's weights under an adapter's name.",
        )
    elif not keys:
        yield Problem("adapter-empty", "tensor names", "the file holds no tensors", f"at least one {expected}")
