"""The weights of a base as its model class describes them: orientation, tying, and names in the files.

The class is built on torch's meta device, from the config alone. It is asked where the registry knows nothing of a
module: of families without a file of their own, and of the towers of models that read pictures or sound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any

from adaptrix.architecture import Orientation
from adaptrix.base.meta_model import build, config_of, model_classes, weights
from adaptrix.errors import AdaptrixError, Problem, RefusedError


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a file that is a part of one parameter: of one ``expert`` of a stack, and of some of its ``rows``.

    ``rows``: (first, one past the last) of ``[out]``; None is all.
    """

    name: str
    expert: int | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class ModelView:
    """``orientations``: how the weight of a module, or a bare parameter, is stored, by path; no entry is not known.

    ``tied``: the names of parameters that are one tensor. ``parameters``: a file's name for a tensor to the class's.
    ``pieces``: parameters that files keep in several tensors. ``unreadable``: parameters that transformers computes
    from those of files in a way that no single tensor stands for, with the name of that way.
    """

    orientations: Mapping[str, Orientation] = field(default_factory=lambda: MappingProxyType({}))
    tied: tuple[frozenset[str], ...] = ()
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    pieces: Mapping[str, tuple[Piece, ...]] = field(default_factory=lambda: MappingProxyType({}))
    unreadable: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def tied_with(self, name: str) -> frozenset[str]:
        """The names of a parameter and of all that are the same tensor."""
        return next((group for group in self.tied if name in group), frozenset([name]))


def view_of(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str) -> ModelView:
    """The view of a base. ``shapes``: those of the tensors in its files; ``name``: what messages call it.

    Raises :class:`RefusedError` as :func:`without_numbers`.
    """
    model = without_numbers(config, name)
    orientations = {weight.path: weight.orientation for weight in weights(model) if weight.orientation is not None}
    parameters, pieces, unreadable = _files(model, shapes)
    for path in [path for path in pieces if orientations.get(path) == "experts_transposed"]:
        del pieces[path]  # rows of a file's tensor are then columns of the stack
        unreadable[path] = "stacking what files keep apart, turned"
    return ModelView(
        MappingProxyType(orientations),
        _tied(model),
        MappingProxyType(parameters),
        MappingProxyType(pieces),
        MappingProxyType(unreadable),
    )


def without_numbers(config: Mapping[str, Any], name: str) -> Any:
    """The model of a base's config, on the meta device. ``name``: what messages call it.

    Raises :class:`RefusedError` where transformers cannot build it.
    """
    try:
        made = config_of(config)
        return build(_class_of(made, name), made)
    except AdaptrixError:
        raise
    except Exception as error:  # a malformed config can make transformers raise nearly anything
        said = " ".join(str(error).split())[:200]
        found = f"transformers cannot build a model of its config ({type(error).__name__}: {said})"
        raise RefusedError(
            Problem("base-unusable", name, found, "a config of a model that transformers knows")
        ) from None


def _class_of(config: Any, name: str) -> Any:
    """The class that the config names, if it is one of transformers' for this type, else the natural one."""
    from adaptrix.base.loading import model_class

    if config.architectures:
        return model_class(config, name)
    classes = model_classes(config)
    if not classes:
        found = f"transformers has no model class for {config.model_type!r}"
        raise RefusedError(Problem("base-unusable", name, found, "architectures in its config.json"))
    return classes[0]


def _tied(model: Any) -> tuple[frozenset[str], ...]:
    """The names of parameters that are one object, where there is more than one."""
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return tuple(frozenset(group) for group in groups.values() if len(group) > 1)


def _files(
    model: Any, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, str], dict[str, tuple[Piece, ...]], dict[str, str]]:
    """The tensors of files by transformers' own mapping: parameters, pieces of parameters, and unreadable ones."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    renamings: list[Any] = [one for one in mapping if not isinstance(one, WeightConverter)]
    state = model.state_dict()
    renamed: list[tuple[str, str | None, str]] = []
    for name in sorted(shapes, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        renamed.append((target, pattern, name))
    parameters = {name: target for target, pattern, name in renamed if pattern is None}
    pieces: dict[str, tuple[Piece, ...]] = {}
    unreadable: dict[str, str] = {}
    converted = sorted((row for row in renamed if row[1] is not None), key=lambda row: row[0])
    for target, rows in groupby(converted, key=lambda row: row[0]):
        sources = [(str(pattern), name) for _, pattern, name in rows]
        converter = next(one for one in converters if sources[0][0] in one.source_patterns)
        found = _pieces(converter, sources, shapes)
        if found is None:
            unreadable[target] = ", ".join(type(operation).__name__ for operation in converter.operations)
        else:
            pieces[target] = found
    return parameters, pieces, unreadable


def _pieces(converter: Any, sources: Iterable[tuple[str, str]], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The pieces of a stack of experts, whose parts lie below one another; None where it is made in another way."""
    operations = [(type(one).__name__, getattr(one, "dim", None)) for one in converter.operations]
    if len(converter.target_patterns) > 1 or operations not in (_STACKED, [*_STACKED, ("Concatenate", 1)]):
        return None
    by_pattern: dict[str, list[str]] = {pattern: [] for pattern in converter.source_patterns}
    for pattern, name in sources:
        by_pattern[pattern].append(name)
    found: list[Piece] = []
    start = 0
    for names in by_pattern.values():
        if not names or len({shapes[name] for name in names}) > 1 or len(shapes[names[0]]) != 2:
            return None
        stop = start + shapes[names[0]][0]
        found += [Piece(name, expert, (start, stop)) for expert, name in enumerate(names)]
        start = stop
    return tuple(found)


_STACKED = [("MergeModulelist", 0)]
