"""Models of a family, built on the meta device, each with one value of the config changed.

The sizes that change with a value are made of it. A config may come from anywhere, so its sizes are bounded and
any error of transformers becomes one refusal.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

from adaptrix.base.meta_model import Weight, build, config_of, model_classes, need, weights
from adaptrix.errors import AdaptrixError, refuse

MAX_LAYERS = 10_000
MAX_MODULES = 200_000
MAX_NUMBER = 2**31

_MOST_STUCK = 6

_T = TypeVar("_T")
_COUNTS = re.compile(r"layer|block|depth|stage")
_NOT_A_SIZE = re.compile(r"(_id|_ids|_index|_token|_std|version|_theta|dropout|scalar)$")


@dataclass(frozen=True)
class Model:
    """One config as transformers completes it (flat, whole numbers only) and the weights of its models."""

    numbers: Mapping[str, int]
    weights: Mapping[str, Weight]


@dataclass(frozen=True)
class Family:
    """The model classes of a family, and what brings their paths to one form.

    - ``model_type``: as in config.json.
    - ``classes``: transformers' model classes for it, language models first.
    - ``home``: the prefix of current paths, such as ``model.``; ``prefixes``: all that checkpoints may have, it first.
    - ``natural``: the paths of the first class.
    - ``aliases``: config key -> other spellings of it.
    """

    model_type: str
    classes: tuple[Any, ...]
    home: str
    prefixes: tuple[str, ...]
    natural: frozenset[str]
    aliases: Mapping[str, tuple[str, ...]]

    def build(self, config: Mapping[str, Any]) -> Model:
        """All weights of all the family's models, under the prefix of the first."""
        completed = guarded(lambda: config_of(config))
        found: dict[str, Weight] = {}
        for model_class in self.classes:
            for path, weight in class_weights(model_class, completed).items():
                found.setdefault(self.home_path(model_class, path), weight)
        return Model(numbers_in(guarded(completed.to_dict)), found)

    def home_path(self, model_class: Any, path: str) -> str:
        own = f"{model_class.base_model_prefix}."
        if path.startswith(own):
            return self.home + path.removeprefix(own)
        return self.home + path if is_bare(model_class) else path


def family_of(config: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """The family of a config, and the config as transformers completes it.

    Raises :class:`RefusedError` where transformers has no model for it.
    """
    bounded(config)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise refuse("base-config", "config", "no model_type", "the config.json of a model")
    if kind not in need("transformers").CONFIG_MAPPING:
        raise refuse("derive-failed", kind, "this transformers has no such model_type", remedy="Upgrade transformers.")
    parsed = guarded(lambda: config_of(config))
    completed: dict[str, Any] = guarded(parsed.to_dict)
    bounded(completed)
    built = {c: found for c in guarded(lambda: model_classes(parsed)) if (found := _weights_if_any(c, parsed))}
    if not built:
        raise refuse("derive-failed", kind, "transformers builds no language model of this config")
    classes = tuple(built)
    natural = built[classes[0]]
    home = f"{classes[0].base_model_prefix}."
    home = home if any(path.startswith(home) for path in natural) else ""
    headed = [(f"{c.base_model_prefix}.", paths) for c, paths in built.items() if not is_bare(c)]
    used = [prefix for prefix, paths in headed if any(path.startswith(prefix) for path in paths)]
    prefixes = tuple(dict.fromkeys([home, "", *used]))
    aliases: dict[str, tuple[str, ...]] = {}
    for spelling, key in parsed.attribute_map.items():
        aliases[key] = (*aliases.get(key, ()), spelling)
    family = Family(parsed.model_type, classes, home, prefixes, frozenset(natural), aliases)
    return family, completed


def is_bare(model_class: Any) -> bool:
    """True for the model class of a family that has no head."""
    bare = need("transformers.models.auto.modeling_auto").MODEL_MAPPING.get(model_class.config_class, None)
    return model_class is bare or (isinstance(bare, tuple) and model_class in bare)


def class_weights(model_class: Any, config: Any) -> dict[str, Weight]:
    """The weights of one model by path. Raises :class:`RefusedError`, also past MAX_MODULES modules."""

    def read() -> dict[str, Weight]:
        with _counted():
            return {weight.path: weight for weight in weights(build(model_class, copy.deepcopy(config)))}

    return guarded(read)


def guarded(action: Callable[[], _T]) -> _T:
    """The action's result; whatever transformers raises, as a :class:`RefusedError` that says so."""
    try:
        return action()
    except AdaptrixError:
        raise
    except Exception as error:  # an arbitrary config can make transformers raise nearly anything
        text = " ".join(str(error).split())[:300]
        found = f"transformers cannot build it: {type(error).__name__}: {text}"
        raise refuse(
            "derive-failed", "config", found, remedy="Check the config.json, or upgrade transformers."
        ) from None


def _weights_if_any(model_class: Any, config: Any) -> dict[str, Weight]:
    """The weights of a model; none where transformers has the class but cannot build it of this config."""
    try:
        return class_weights(model_class, config)
    except AdaptrixError as error:
        if error.problems[0].code == "model-too-large":
            raise
        return {}


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers, which has remarks on every trial config."""
    logging = need("transformers").logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _counted() -> Iterator[None]:
    """Refuses the module that is one too many, while the model is still being built."""
    count = 0

    def counting(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODULES:
            raise refuse("model-too-large", "config", f"a model of more than {MAX_MODULES} modules")

    handle = need("torch.nn.modules.module").register_module_module_registration_hook(counting)
    try:
        yield
    finally:
        handle.remove()


def bounded(config: Mapping[str, Any], where: str = "") -> None:
    """Raises :class:`RefusedError` for a number that no model has."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            bounded(value, f"{where}{key}.")
        elif isinstance(value, int):
            most = MAX_LAYERS if _COUNTS.search(str(key)) else MAX_NUMBER
            least = 0 if str(key).startswith(("n_", "num_")) else -most
            if not least <= value <= most:
                raise refuse("base-config", f"config {where}{key}", str(value), f"{least} to {most}")


def numbers_in(config: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    """The whole numbers of a config that may be sizes, by dotted key."""
    found: dict[str, int] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= {} if key == "label2id" else numbers_in(value, f"{prefix}{key}.")
        elif type(value) is int and value > 0 and not _NOT_A_SIZE.search(key):
            found[prefix + key] = value
    return found


def changed(config: Mapping[str, Any], numbers: Mapping[str, int], *, lists: bool = False) -> dict[str, Any]:
    """A copy with other numbers; with ``lists``, lists as long as a number (a type for each layer) follow it."""
    copied: dict[str, Any] = copy.deepcopy(dict(config))
    for key, value in numbers.items():
        *parents, last = key.split(".")
        table = copied
        for parent in parents:
            table = table[parent]
        before, table[last] = table[last], value
        for name, entry in table.items() if lists else ():
            if isinstance(entry, list) and entry and len(entry) == before:
                table[name] = (entry * (value // before + 1))[:value]
    return copied


def variations(family: Family, config: Mapping[str, Any], base: Model) -> Iterator[Model]:
    """Models with one number changed; where that cannot be (heads that no longer divide the hidden size), with
    two. All of them have the weights of the base; any others are left out."""
    stuck: list[str] = []
    for key in base.numbers:
        single = ({key: _scaled(base.numbers[key], by)} for by in ((2, 1), (3, 1), (1, 2)))
        if model := _first(family, config, base, single):
            yield model
        else:
            stuck.append(key)
    for one, other in combinations(stuck[:_MOST_STUCK], 2):
        scales = (((2, 1), (2, 1)), ((2, 1), (1, 2)), ((1, 2), (2, 1)))
        pair = ({one: _scaled(base.numbers[one], a), other: _scaled(base.numbers[other], b)} for a, b in scales)
        if model := _first(family, config, base, pair):
            yield model


def _first(family: Family, config: Mapping[str, Any], base: Model, trials: Iterable[Mapping[str, int]]) -> Model | None:
    """The first of several changes that transformers accepts and that leaves every weight in place."""
    for numbers in trials:
        try:
            model = family.build(changed(config, numbers))
        except AdaptrixError:
            continue
        effective = all(model.numbers.get(key) != base.numbers[key] for key in numbers)
        if effective and model.weights.keys() >= base.weights.keys():
            return Model(model.numbers, {path: model.weights[path] for path in base.weights})
    return None


def _scaled(number: int, by: tuple[int, int]) -> int:
    return max(number * by[0] // by[1], 1)
