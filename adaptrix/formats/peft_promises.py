"""What a PEFT config promises and a checkpoint must then hold: peft starts what is missing at random, in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

from adaptrix.adapter import Extra, Target
from adaptrix.architecture.patterns import suffix_match, tails
from adaptrix.delta import Delta, LowRank
from adaptrix.errors import Problem, RefusedError
from adaptrix.formats.peft_config import CONFIG_NAME, HEADS, TASK_HEADS, PeftConfig
from adaptrix.tensor import Tensor

BASE_LAYER = ".base_layer"
TOKENS = ".token_adapter.trainable_tokens_delta"
#: what a key of the config promises of every module: the tensor, in words, and the code of a broken promise
_PROMISES = (
    ("use_dora", "lora_magnitude_vector", "a magnitude", "config-mismatch"),
    ("lora_bias", "lora_B.bias", "a bias of B", "config-mismatch"),
)
_FETCH = "The checkpoint is incomplete: fetch it again."


def vector_problems(config: PeftConfig, modules: Mapping[str, Mapping[str, Tensor]]) -> Iterator[Problem]:
    """DoRA and lora_bias are all or nothing: one problem each, however many modules are concerned."""
    for key, kind, words, code in _PROMISES:
        wanted = config.get(key) is True
        odd = [path for path, group in modules.items() if (kind in group) != wanted]
        if odd:
            found = f"{len(odd)} of {len(modules)} modules {'lack' if wanted else 'have'} {words}"
            expected = f"{words} in each, as {key} is true" if wanted else f"none, as {key} is not true"
            remedy = "peft would start at one of its own." if wanted else "peft would ignore it in silence."
            yield Problem(code, odd[0], found, expected, f"{remedy} Mend {key} in {CONFIG_NAME}.")


def target_problems(
    config: PeftConfig, deltas: Mapping[Target, LowRank], tied: Collection[str] = ()
) -> Iterator[Problem]:
    """Where the config's targets and the tensors disagree: peft passes over both in silence.

    ``tied``: modules that follow an embedding, which the config does not list.
    """
    modules = [t for t, delta in deltas.items() if delta.experts is None and not _wraps_weight(config, t)]
    for target in modules:
        if target.path not in tied and not config.targets(target.path):
            remedy = "peft would ignore it in silence: add it to target_modules."
            found = f"{CONFIG_NAME} does not make this module a target"
            yield Problem("config-mismatch", str(target), found, "a delta on a target", remedy)
    wanted = config.get("target_modules")
    seen = {tail for target in modules for tail in tails(target.path)}
    for name in sorted(wanted) if isinstance(wanted, list) and modules else ():
        if name not in seen and not config.names("exclude_modules", name):
            yield _no_tensors("target_modules", f"{name!r} is a target and has no tensors")
    yield from _parameter_problems(config, deltas)


def _wraps_weight(config: PeftConfig, target: Target) -> bool:
    """Whether the config reaches a module's weight as a parameter."""
    return any(suffix_match(name, f"{target.path}.weight") for name in config.get("target_parameters") or ())


def _parameter_problems(config: PeftConfig, deltas: Mapping[Target, LowRank]) -> Iterator[Problem]:
    """Parameters are named one by one, and there is hardly a name that fits other models."""
    wanted = sorted(config.get("target_parameters") or ()) if deltas else []
    paths = (path for target in deltas for path in (target.path, f"{target.path}.weight"))
    held = {tail for path in paths for tail in tails(path)} if wanted else set()
    for name in wanted:
        if name not in held:
            found = f"{name!r} is a target and has no tensors"
            yield Problem("adapter-incomplete", f"{CONFIG_NAME} target_parameters", found, "a delta on it", _FETCH)


def extra_problems(config: PeftConfig, extras: Mapping[str, Extra], deltas: Collection[Target]) -> Iterator[Problem]:
    """What was to be saved beside the deltas and is not there, or is there and was not to be saved."""
    yield from _saved_problems(config, extras)
    yield from _head_problems(config, extras, deltas)
    yield from _token_problems(config, extras)
    yield from _bias_problems(config, extras, deltas)


def _saved_problems(config: PeftConfig, extras: Mapping[str, Extra]) -> Iterator[Problem]:
    """Modules that the config saves and the file lacks; heads are listed by peft, whatever they are called."""
    parts = {part for key in extras for part in ancestors(key)}
    for name in config.get("modules_to_save") or ():
        if name not in HEADS and not any(part.endswith(name) for part in parts):
            yield _no_tensors("modules_to_save", f"{name!r} was to be saved and has no tensors")


def _head_problems(config: PeftConfig, extras: Mapping[str, Extra], deltas: Collection[Target]) -> Iterator[Problem]:
    """A task's head is new, so it was trained and saved; encoder-decoders call theirs by names peft does not know."""
    heads = TASK_HEADS.get(str(config.get("task_type")), ())
    crossed = any("EncDecAttention" in t.path or "encoder_attn" in t.path or "decoder." in t.path for t in deltas)
    if heads and not crossed and not any(part.endswith(heads) for key in extras for part in ancestors(key)):
        found = f"the task {config.get('task_type')} has a head of its own, and there is none"
        expected = f"the tensors of {' or '.join(heads)}"
        remedy = f"peft would leave it at its random start. {_FETCH}"
        yield Problem("adapter-incomplete", f"{CONFIG_NAME} task_type", found, expected, remedy)


def _token_problems(config: PeftConfig, extras: Mapping[str, Extra]) -> Iterator[Problem]:
    """Each embedding with trained tokens has one row for each of them."""
    wanted = config.get("trainable_token_indices")
    rows = {key.removesuffix(TOKENS): extra.tensor.shape for key, extra in extras.items() if key.endswith(TOKENS)}
    where = f"{CONFIG_NAME} trainable_token_indices"
    if rows and not wanted:
        found, expected = f"{next(iter(rows))} has rows of trained tokens", "none, as the key is not set"
        if "trainable_token_indices" not in config.unusable:
            yield Problem(
                "config-mismatch", where, found, expected, "peft would ignore them in silence: say which they are."
            )
        return
    named = wanted if isinstance(wanted, dict) else {"": wanted} if wanted else {}
    for name, indices in named.items():
        held = {path: shape for path, shape in rows.items() if not name or suffix_match(name, path)}
        if not held and not _follows(name, indices, named, rows):
            found = f"{len(indices)} tokens {f'of {name} ' if name else ''}were trained and have no rows"
            yield Problem("adapter-incomplete", where, found, "a row for each", _FETCH)
        for path, shape in held.items():
            if shape[:1] != (len(indices),):
                found, expected = f"{(*shape, 0)[0]} rows of trained tokens", f"{len(indices)}: one for each index"
                yield Problem("config-mismatch", f"{path}{TOKENS}", found, expected, _FETCH)


def _follows(name: str, indices: list[int], named: Mapping[str, list[int]], rows: Collection[str]) -> bool:
    """Whether a tied head has the rows of its embedding: peft saves them once where both train the same tokens."""
    if rows and name.endswith("lm_head"):
        return True
    others = [other for other, same in named.items() if same == indices and other != name]
    return any(suffix_match(other, path) for other in others for path in rows)


def _bias_problems(config: PeftConfig, extras: Mapping[str, Extra], deltas: Collection[Target]) -> Iterator[Problem]:
    """Biases are those of a model's modules: all of one kind have one, or none has.

    A model need not have any, so that none at all is no proof of a loss.
    """
    if config.get("bias") not in ("all", "lora_only"):
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
    """The path with its numbers taken out."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "", path)


def _no_tensors(key: str, found: str) -> Problem:
    return Problem("config-mismatch", f"{CONFIG_NAME} {key}", found, severity="warning")


def ancestors(path: str) -> Iterator[str]:
    """Every module path above a tensor."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def promise(config: PeftConfig, deltas: Mapping[Target, Delta]) -> Callable[[str], bool]:
    """Whether the config promises a delta on a path that the model has.

    What ``all-linear`` or a regex matches only the model knows; it is taken to be modules called as those
    of the checkpoint are. A path beside stacked parameters is one of them, unless modules are called so.
    A pattern that cannot be matched promises nothing; reading has said what is wrong with it.
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
    """Whether a path is that of a targeted parameter, or of the module whose weight is one."""
    wanted = config.get("target_parameters")
    if not wanted or config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return False  # versions of peft differ on what the latter two mean for parameters
    return any(suffix_match(name, path) or suffix_match(name, f"{path}.weight") for name in wanted)
