"""Checks of a PEFT checkpoint against its config, which peft does not make: it starts missing tensors at random.

A config obliges the checkpoint to hold certain tensors. An example, for a model with two layers::

    {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": [1],
        "use_dora": true,
        "bias": "lora_only",
        "modules_to_save": ["norm"]
    }

Under ``…layers.1.self_attn.q_proj`` and ``…v_proj`` there must be ``lora_A``, ``lora_B`` (:func:`promise`, which the
completeness check of :mod:`adaptrix.binding` asks for each module of the family) and ``lora_magnitude_vector``
(:func:`vector_problems`); a ``lora_A`` of layer 0 or of ``k_proj`` is a problem as well, and so is a config in which
nothing is called ``q_proj`` (:func:`target_problems`). Beside the deltas (:func:`extra_problems`), there must be the
tensors of ``norm``, those of the head, ``classifier`` or ``score``, which the task adds, and a bias of each ``q_proj``
or of none, as the modules of one kind all have biases or none has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

from adaptrix.adapter import Extra, Target
from adaptrix.architecture.name_lists import NameList
from adaptrix.architecture.patterns import tails
from adaptrix.delta import Delta
from adaptrix.errors import Problem, RefusedError
from adaptrix.formats.peft_config import CONFIG_NAME, HEADS, TASK_HEADS, PeftConfig
from adaptrix.tensor import Tensor

BASE_LAYER = ".base_layer"
TOKENS = ".token_adapter.trainable_tokens_delta"
#: a key of the config -> the tensor that every module then has, its name in messages, and the code of the problem
_PROMISES = (
    ("use_dora", "lora_magnitude_vector", "a magnitude", "config-mismatch"),
    ("lora_bias", "lora_B.bias", "a bias of B", "config-mismatch"),
)
_FETCH = "The checkpoint is incomplete: fetch it again."


def vector_problems(config: PeftConfig, modules: Mapping[str, Mapping[str, Tensor]]) -> Iterator[Problem]:
    """A problem where some modules lack a magnitude or a bias of B, or have one: the config asks for all or none."""
    for key, kind, words, code in _PROMISES:
        asked = config.get(key) is True
        wrong = [path for path, group in modules.items() if (kind in group) != asked]
        if wrong:
            found = f"{len(wrong)} of {len(modules)} modules {'lack' if asked else 'have'} {words}"
            expected = f"{words} in each, as {key} is true" if asked else f"none, as {key} is not true"
            remedy = "peft would initialise one." if asked else "peft would ignore it in silence."
            yield Problem(code, wrong[0], found, expected, f"{remedy} Correct {key} in {CONFIG_NAME}.")


def target_problems(
    config: PeftConfig, deltas: Mapping[Target, Delta], tied: Collection[str] = ()
) -> Iterator[Problem]:
    """A problem for deltas that are no target, and for targets without tensors: peft ignores both in silence.

    ``tied``: modules that follow an embedding, which the config does not list.
    """
    modules = [t for t, delta in deltas.items() if delta.experts is None and not _wraps_weight(config, t)]
    for target in modules:
        if _of_attention(config, deltas, target.path):
            found = "peft's LoRA of a whole nn.MultiheadAttention, which is one of in_proj_weight and one of out_proj"
            remedy = "Merge it with peft: merge_and_unload()."
            yield Problem("variant-unsupported", target.path.rpartition(".")[0], found, "a LoRA of a module", remedy)
        elif target.path not in tied and not config.targets(target.path):
            remedy = "peft would ignore it in silence: add it to target_modules."
            found = f"{CONFIG_NAME} does not make this module a target"
            yield Problem("config-mismatch", str(target), found, "a delta on a target", remedy)
    names = config.get("target_modules")
    seen = {tail for target in modules for tail in tails(target.path)}
    for name in sorted(names) if isinstance(names, list) and modules else ():
        if name not in seen and not config.names("exclude_modules", name):
            yield _no_tensors("target_modules", f"{name!r:.200} is a target and has no tensors")
    yield from _parameter_problems(config, deltas)


def _of_attention(config: PeftConfig, deltas: Mapping[Target, Delta], path: str) -> bool:
    """True for the out_proj of an nn.MultiheadAttention that peft wraps whole: it is saved under its base_layer."""
    owner, _, leaf = path.rpartition(".")
    return leaf == "out_proj" and Target(owner) in deltas and config.targets(owner) and not config.targets(path)


def _wraps_weight(config: PeftConfig, target: Target) -> bool:
    """True where the config targets a module's weight as a parameter."""
    return any(config.parameters.suffixes(f"{target.path}.weight"))


def _parameter_problems(config: PeftConfig, deltas: Mapping[Target, Delta]) -> Iterator[Problem]:
    """A problem for every targeted parameter without tensors, a note where the model may have none of that name.

    peft passes over names that match nothing. Beside other parameters of the same module it is an error: how deep
    peft wraps each of them is told by the names alone.
    """
    names = sorted(config.get("target_parameters") or ()) if deltas else []
    paths = (path for target in deltas for path in (target.path, f"{target.path}.weight"))
    held = {tail for path in paths for tail in tails(path)} if names else set()
    wrapped = {target.path.rpartition(".")[0] for target, delta in deltas.items() if delta.experts is not None}
    beside = {tail for path in wrapped for tail in ("", *tails(path))}
    for name in names:
        where, found = f"{CONFIG_NAME} target_parameters", f"{name!r:.200} is a target and has no tensors"
        if name not in held and name.rpartition(".")[0] in beside:
            yield Problem("adapter-incomplete", where, found, "a delta on it", _FETCH)
        elif name not in held:
            found += ": read as a name that the model it was trained on has no parameter of"
            yield Problem("config-mismatch", where, found, severity="note")


def extra_problems(config: PeftConfig, extras: Mapping[str, Extra], deltas: Collection[Target]) -> Iterator[Problem]:
    """The problems of tensors beside the deltas: saved modules, heads, trained tokens and biases."""
    yield from _saved_problems(config, extras)
    yield from _head_problems(config, extras, deltas)
    yield from _token_problems(config, extras)
    yield from _bias_problems(config, extras, deltas)


def _saved_problems(config: PeftConfig, extras: Mapping[str, Extra]) -> Iterator[Problem]:
    """A warning for modules that the config saves and the file lacks; heads are left to :func:`_head_problems`, as
    peft lists them under every name that they may have."""
    parts = {part for key in extras for part in ancestors(key)}
    listed = NameList(config.get("modules_to_save") or ())
    seen = {name for part in parts for name in listed.endings(part)}
    for name in config.get("modules_to_save") or ():
        if name not in HEADS and name not in seen:
            yield _no_tensors("modules_to_save", f"{name!r:.200} was to be saved and has no tensors")


def _head_problems(config: PeftConfig, extras: Mapping[str, Extra], deltas: Collection[Target]) -> Iterator[Problem]:
    """A problem where a task's head is missing, which was trained and saved, as it is new to the base.

    Encoder-decoders are left out: peft does not know the names of their heads.
    """
    heads = TASK_HEADS.get(str(config.get("task_type")), ())
    crossed = any("EncDecAttention" in t.path or "encoder_attn" in t.path or "decoder." in t.path for t in deltas)
    if heads and not crossed and not any(part.endswith(heads) for key in extras for part in ancestors(key)):
        found = f"the task {config.get('task_type')} has a head of its own, and there is none"
        expected = f"the tensors of {' or '.join(heads)}"
        remedy = f"peft would leave it at its random start. {_FETCH}"
        yield Problem("adapter-incomplete", f"{CONFIG_NAME} task_type", found, expected, remedy)


def _token_problems(config: PeftConfig, extras: Mapping[str, Extra]) -> Iterator[Problem]:
    """A problem for every embedding that does not have one row for each trained token.

    A tied head shares the rows of its embedding, which peft saves once if both train the same tokens.
    """
    tokens = config.get("trainable_token_indices")
    rows = {key.removesuffix(TOKENS): extra.tensor.shape for key, extra in extras.items() if key.endswith(TOKENS)}
    where = f"{CONFIG_NAME} trainable_token_indices"
    if rows and not tokens:
        found, expected = f"{next(iter(rows))} has rows of trained tokens", "none, as the key is not set"
        if "trainable_token_indices" not in config.unusable:
            yield Problem(
                "config-mismatch", where, found, expected, "peft would ignore them in silence: say which they are."
            )
        return
    named = tokens if isinstance(tokens, dict) else {"": tokens} if tokens else {}
    listed, paths = NameList(named), dict[str, list[str]]({"": list(rows)})
    for path in rows:
        for name in listed.suffixes(path):
            paths.setdefault(name, []).append(path)
    shared = {tuple(indices) for name, indices in named.items() if paths.get(name)}
    for name, indices in named.items():
        held = {path: rows[path] for path in paths.get(name, ())}
        if not held and not (tuple(indices) in shared or (rows and name.endswith("lm_head"))):
            found = f"{len(indices)} tokens {f'of {name} ' if name else ''}were trained and have no rows"
            yield Problem("adapter-incomplete", where, found, "a row for each", _FETCH)
        for path, shape in held.items():
            if shape[:1] != (len(indices),):
                found, expected = f"{(*shape, 0)[0]} rows of trained tokens", f"{len(indices)}: one for each index"
                yield Problem("config-mismatch", f"{path}{TOKENS}", found, expected, _FETCH)


def _bias_problems(config: PeftConfig, extras: Mapping[str, Extra], deltas: Collection[Target]) -> Iterator[Problem]:
    """A problem where some modules of a kind have a saved bias and others have none.

    A model need not have any biases, so that their absence is only a warning.
    """
    if not config.saves_biases:
        return
    owners = {_owner(key) for key in extras if key.endswith(".bias")}
    kinds: dict[str, list[str]] = {}
    for path in sorted({target.path for target in deltas}):
        kinds.setdefault(_kind(path), []).append(path)
    if not owners and deltas:
        yield _no_tensors("bias", f"biases were trained ({config.get('bias')}) and there are none")
    for paths in kinds.values():
        bare = [path for path in paths if path not in owners]
        if bare and len(bare) < len(paths):
            found = f"{len(bare)} of {len(paths)} modules of its kind lack a bias"
            yield Problem(
                "adapter-incomplete", bare[0], found, f"a bias in each, as bias is {config.get('bias')}", _FETCH
            )


def _owner(key: str) -> str:
    return key.rpartition(".")[0].removesuffix(BASE_LAYER)


def _kind(path: str) -> str:
    """The path without its numbers."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "", path)


def _no_tensors(key: str, found: str) -> Problem:
    return Problem("config-mismatch", f"{CONFIG_NAME} {key}", found, severity="warning")


def ancestors(path: str) -> Iterator[str]:
    """Every module path above a tensor."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def promise(config: PeftConfig, deltas: Mapping[Target, Delta]) -> Callable[[str], bool]:
    """A function that returns True for a path of the model on which the config promises a delta.

    Only the model knows all that ``all-linear`` or a regex matches; here it is taken to be the modules with the last
    names of the checkpoint's own. A path beside stacked parameters is a parameter, unless modules have its name. A
    pattern that cannot be matched promises nothing; the reader has reported it.
    """
    listed = isinstance(config.get("target_modules"), list)
    stacked = {target for target, delta in deltas.items() if delta.experts is not None}
    names = {target.path.rpartition(".")[2] for target in deltas.keys() - stacked}
    wrapped = {_kind(target.path.rpartition(".")[0]) for target in stacked}
    broken = False

    def module(path: str) -> bool:
        owner, _, name = path.rpartition(".")
        if name not in names and (not listed or (wrapped and _kind(owner) in wrapped)):
            return False
        return config.get("target_modules") is not None and config.targets(path) and not config.saves(path)

    def targeted(path: str) -> bool:
        nonlocal broken
        try:
            return not broken and (module(path) or _parameter(config, path))
        except RefusedError:
            broken = True
            return False

    return targeted


def _parameter(config: PeftConfig, path: str) -> bool:
    """True for the path of a targeted parameter, or of a module whose weight is one."""
    if not config.parameters.names or config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return False  # versions of peft disagree on the meaning of these two for parameters
    return any(config.parameters.suffixes(path)) or any(config.parameters.suffixes(f"{path}.weight"))
