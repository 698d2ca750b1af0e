"""The reader of PEFT's (IA)³, and the config of one that was altered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adaptrix.adapter import Target
from adaptrix.architecture.patterns import fullmatch
from adaptrix.delta import Delta, Scale
from adaptrix.errors import Problem, RefusedError
from adaptrix.formats import peft_promises
from adaptrix.formats.injection_scale import NAMES as NAMES
from adaptrix.formats.injection_scale import vector_problems
from adaptrix.formats.peft_config import CONFIG_NAME, PeftConfig
from adaptrix.formats.peft_keys import Key
from adaptrix.tensor import Tensor

_KEY = "feedforward_modules"


def scales(config: PeftConfig, tensors: Mapping[Key, Tensor], problems: list[Problem]) -> dict[Target, Delta]:
    """One delta for every module with sound numbers; what is wrong is added to the problems."""
    found: dict[Target, Delta] = {}
    try:
        for key, vector in tensors.items():
            if key.kind:
                inputs = _on_input(config, key.path, vector)
                wrong = list(_problems(key.path, vector, inputs=inputs))
                problems += wrong
                if not wrong:
                    found[Target(key.path)] = Scale(vector, inputs)
        problems += peft_promises.target_problems(config, found)
    except RefusedError as error:  # a pattern of the config that cannot be matched: reported once
        problems += error.problems
    if found:
        said = "norms are those of l − 1: ΔW is its product with the base's weight, and only the base knows it"
        problems.append(Problem("summary", f"{CONFIG_NAME} peft_type", said, severity="note"))
    return found


def _on_input(config: PeftConfig, path: str, vector: Tensor) -> bool:
    """True where the config makes a module a feedforward one; where it does not say, the tensor does."""
    named = config.get(_KEY)
    if named is None:
        return vector.shape[:1] == (1,)
    if isinstance(named, str):
        return fullmatch(named, path, f"{CONFIG_NAME} {_KEY}", config.budget)
    return path.endswith(tuple(named))  # as peft does, without a dot


def _problems(path: str, vector: Tensor, *, inputs: bool) -> Iterator[Problem]:
    if len(vector.shape) > 2:
        found, remedy = "the numbers of a convolution", "Merge it into its base with peft."
        yield Problem("variant-unsupported", path, found, "(IA)³ of linear layers", remedy)
        return
    other = list(vector_problems(vector, path, inputs=not inputs))
    wrong = list(vector_problems(vector, path, inputs=inputs))
    if wrong and not other:
        said = f"{CONFIG_NAME} {'makes' if inputs else 'does not make'} it one of {_KEY}"
        remedy = "Restore the config of this training: it says whether inputs or outputs are multiplied."
        found, expected = f"ia3_l is {list(vector.shape)}, and {said}", "[1, in]" if inputs else "[out, 1]"
        yield Problem("config-mismatch", path, found, expected, remedy)
    else:
        yield from wrong


def described(raw: Mapping[str, Any], base: str | None, modules: Mapping[str, Scale]) -> dict[str, Any]:
    """A config that lists every module by its full path; ``raw``: the one of the source, or nothing."""
    derived = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", _KEY)
    kept = {key: value for key, value in raw.items() if key not in derived}
    return {"base_model_name_or_path": base} | kept | {
        "peft_type": "IA3",
        "target_modules": sorted(modules),
        _KEY: sorted(path for path, delta in modules.items() if delta.inputs),
    }  # fmt: skip
