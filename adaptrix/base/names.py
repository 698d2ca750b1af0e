"""The weights of a model under the names that older versions of it, its files, and other trees give them.

transformers renames modules now and then, and has a mapping from the names in files to those of today, by which it
loads. A language model is a part of models that read pictures, too, and there its modules have another beginning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from adaptrix.adapter import Adapter
from adaptrix.errors import Problem, refuse

#: what the paths of a language model begin with, alone and as a part of others, the longest first
_TRUNKS = ("model.language_model.model.", "model.language_model.", "language_model.model.", "model.text_model.",
           "text_model.model.", "language_model.", "text_model.", "model.")  # fmt: skip
#: the ways of making a stack that leave every file's tensor a block of rows of one expert
_STACKS = ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])


@dataclass(frozen=True, slots=True)
class Place:
    """The place of the weight that an adapter names: a module's or a parameter's path, and for a stack of experts
    the ``expert`` and the ``rows`` (first, one past the last) of its ``[out]``."""

    path: str
    expert: int | None = None
    rows: tuple[int, int] | None = None


class ModelNames:
    """The names of one model's parameters; ``model`` may be on the meta device."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._shapes |= {name: () for name in model.state_dict() if name not in self._shapes}  # tied ones, and buffers
        mapping = get_model_conversion_mapping(model) if hasattr(model, "base_model_prefix") else []
        self._converters: list[Any] = [one for one in mapping if isinstance(one, WeightConverter)]
        self._renamings: list[Any] = [one for one in mapping if not isinstance(one, WeightConverter)]
        self._prefix = getattr(model, "base_model_prefix", None)
        self._trunk = _trunk(model)

    def has(self, path: str) -> bool:
        """True for the path of a module with a weight, or of a parameter."""
        return path in self._shapes or f"{path}.weight" in self._shapes

    def place(self, path: str) -> Place | None:
        """The place of a path that the model lacks; None where no name that is known for it is the model's."""
        return next((found for spelled in self._spelled(path) if (found := self._by_mapping(spelled))), None)

    def _spelled(self, path: str) -> Iterator[str]:
        """The path itself, and where its language model is a part of another model, or none, as it begins here."""
        yield path
        if self._trunk is not None:
            starts = (trunk for trunk in _TRUNKS if path.startswith(trunk))
            yield from (self._trunk + path.removeprefix(start) for start in starts)

    def _by_mapping(self, path: str) -> Place | None:
        from transformers.core_model_loading import rename_source_key

        if self.has(path):
            return Place(path)
        for name in (f"{path}.weight", path):
            renamings = self._renamings, self._converters, self._prefix, self._shapes
            target, pattern = rename_source_key(name, *renamings)
            if target in self._shapes:
                return Place(target.removesuffix(".weight")) if pattern is None else self._in_stack(name, target)
        return None

    def _in_stack(self, name: str, target: str) -> Place | None:
        """The place of one expert's weight in a stack; None for a stack that is made in another way."""
        for converter in self._converters:
            operations = [(type(one).__name__, getattr(one, "dim", None)) for one in converter.operations]
            numbers = [_number(pattern, name) for pattern in converter.source_patterns]
            part = next((index for index, number in enumerate(numbers) if number is not None), None)
            if part is not None and operations in _STACKS and len(converter.target_patterns) == 1:
                height = self._shapes[target][-2] // len(numbers)
                return Place(target, numbers[part], (part * height, (part + 1) * height))
        return None


def _number(pattern: str, name: str) -> int | None:
    """The number that a name has where a pattern of transformers has a star."""
    found = re.search(re.escape(pattern.removeprefix("^").removesuffix("$")).replace(r"\*", r"(\d{1,6})") + "$", name)
    return int(found[1]) if found is not None and found.lastindex == 1 else None


def _trunk(model: Any) -> str | None:
    """The beginning of the paths of a model's language model; None for a model of another kind."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", True) or not hasattr(model, "get_decoder"):
        return None
    decoder = model.get_decoder()
    return next((f"{name}." for name, module in model.named_modules() if module is decoder and name), None)


def renamed(adapter: Adapter, names: ModelNames, known: Callable[[str], object]) -> Adapter:
    """The adapter with the names of the model for the modules that the model has under others.

    ``known``: from a path to None where the family of the model has no such module. Weights of single experts that
    the model stacks keep their names, as no module has them. Raises :class:`RefusedError` for an injection file whose
    plan leaves something out, since it says so by the older names.
    """
    paths = {target.path for target in adapter.deltas} | {key.rpartition(".")[0] for key in adapter.extras}
    new: dict[str, str] = {}
    for path in paths:
        stem = path.removesuffix(".base_layer")
        place = None if names.has(stem) or known(stem) is not None else names.place(stem)
        if place is not None and place.expert is None:
            new[path] = place.path + path.removeprefix(stem)
    if not new:
        return adapter
    recorded = adapter.recorded
    if recorded is not None and (recorded.policy != "all" or recorded.overrides or recorded.gains):
        found = "its plan is by names of modules that the model has under others"
        raise refuse("module-missing", adapter.name, found, "the names of the model", _AGAIN)
    deltas = {replace(target, path=new.get(target.path, target.path)): one for target, one in adapter.deltas.items()}
    if len(deltas) < len(adapter.deltas):
        found = "it has one module of the model under several names"
        raise refuse("duplicate", adapter.name, found, "one delta for one module", "Remove one of the two.")
    extras = {_key(key, new): extra for key, extra in adapter.extras.items()}
    said = (*adapter.problems, _note(adapter, new))
    return replace(adapter, deltas=MappingProxyType(deltas), extras=MappingProxyType(extras), problems=said,
                   altered=True, recorded=None)  # fmt: skip


_AGAIN = "Convert the adapter that it was made of with --layers all, and choose layers where it is attached."


def _key(key: str, new: Mapping[str, str]) -> str:
    path, _, leaf = key.rpartition(".")
    return f"{new.get(path, path)}.{leaf}"


def _note(adapter: Adapter, new: Mapping[str, str]) -> Problem:
    first = min(new)
    found = f"the model has {len(new)} of its modules under other names: {first} is {new[first]}"
    return Problem("renamed", adapter.name, found, severity="note")
