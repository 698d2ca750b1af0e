"""Checkpoints whose tensors share one cause: told once by it, and not tensor by tensor by what follows.

Trainers that shard a model save what one process holds unless they are told to gather; some trainers use peft's names
for factors of other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from adaptrix.errors import Problem
from adaptrix.formats.peft_config import CONFIG_NAME, PeftConfig
from adaptrix.tensor import Tensor
from adaptrix.wording import some

Group = Mapping[str, Tensor]


def shared_causes(config: PeftConfig, modules: Mapping[str, Group]) -> Iterator[tuple[Problem, frozenset[str]]]:
    """A problem for each cause, with the modules that it explains; ``modules``: tensors by path and kind."""
    left = dict(modules)
    for explains, problem, whole in _CAUSES:
        found = [path for path, group in left.items() if explains(config, path, group)]
        if found and (not whole or len(found) == len(modules)):
            yield problem(found, left), frozenset(found)
            left = {path: group for path, group in left.items() if path not in found}


def _pair(group: Group) -> tuple[Tensor, Tensor] | None:
    A, B = (group.get(f"lora_{side}") for side in "AB")
    return None if A is None or B is None else (A, B)


def _is_empty(_config: PeftConfig, _path: str, group: Group) -> bool:
    return any(0 in tensor.shape for kind, tensor in group.items() if kind.startswith("lora_"))


def _is_slice(config: PeftConfig, path: str, group: Group) -> bool:
    """True where A has a whole fraction of the rank's rows, and B all of its columns: tensors are cut along axis 0."""
    pair, rank = _pair(group), config.rank_of(path)
    if pair is None or not rank or config.enabled or config.get("target_parameters"):
        return False
    (A, B) = pair
    flat = len(A.shape) == len(B.shape) == 2 and 0 not in A.shape
    return flat and A.shape[0] < rank and rank % A.shape[0] == 0 and B.shape[1] == rank


def _is_stack(config: PeftConfig, _path: str, group: Group) -> bool:
    """True for factors ``[experts, r, in]`` and ``[experts, out, r]``, of which one may be shared by all experts."""
    pair = _pair(group)
    if pair is None or config.enabled or not all(len(tensor.shape) == 3 for tensor in pair):
        return False
    (A, B) = pair
    return A.shape[1] == B.shape[2] and (A.shape[0] == B.shape[0] or 1 in (A.shape[0], B.shape[0]))


def _is_convolution(config: PeftConfig, _path: str, group: Group) -> bool:
    """True for factors with the axes of a kernel: A ``[r, in, …]``, and B ``[out, r, 1, …]``."""
    pair = _pair(group)
    if pair is None or config.enabled or len(pair[0].shape) not in (3, 4, 5):
        return False
    (A, B) = pair
    return len(A.shape) == len(B.shape) and B.shape[1] == A.shape[0] and set(B.shape[2:]) == {1}


def _empty(paths: list[str], _modules: Mapping[str, Group]) -> Problem:
    found = f"the factors of all {len(paths)} modules are empty, as DeepSpeed ZeRO-3 saves what is sharded"
    remedy = (
        "Save it again where the weights are gathered (stage3_gather_16bit_weights_on_model_save, or "
        "deepspeed.zero.GatheredParameters around save_pretrained), or make a whole state with zero_to_fp32.py."
    )
    return Problem("adapter-incomplete", paths[0], found, "whole factors", remedy)


def _slice(paths: list[str], modules: Mapping[str, Group]) -> Problem:
    A, B = modules[paths[0]]["lora_A"], modules[paths[0]]["lora_B"]
    shapes = f"A is {list(A.shape)} and B {list(B.shape)} where {CONFIG_NAME} says r = {B.shape[1]}"
    found = f"{shapes}, and so at all {len(paths)} modules: slices of one process, as FSDP saves what is sharded"
    remedy = (
        "Save it again from a gathered state: get_model_state_dict with full_state_dict=True, or "
        "FULL_STATE_DICT for FSDP1. What the other processes held is not in these files."
    )
    return Problem("adapter-incomplete", paths[0], found, "whole factors", remedy)


def _stack(paths: list[str], _modules: Mapping[str, Group]) -> Problem:
    found = f"{len(paths)} modules ({some(paths, 2)}) have stacked factors [experts, r, in], as Tinker saves them"
    remedy = "Save it as a PEFT checkpoint with factors for each expert, with the tools that it was trained with."
    return Problem("variant-unsupported", paths[0], found, "factors of two dimensions", remedy)


def _convolution(paths: list[str], _modules: Mapping[str, Group]) -> Problem:
    found = f"{len(paths)} modules ({some(paths, 2)}) are convolutions: their factors have the axes of a kernel"
    remedy = "LoRA of convolutions is not read yet: merge it with peft, or train without these modules."
    return Problem("variant-unsupported", paths[0], found, "LoRA of linear layers and embeddings", remedy)


_Explains = Callable[[PeftConfig, str, Group], bool]
#: a sign of the cause at a module, the problem, and whether the sign is one only where all modules show it
_CAUSES: Iterable[tuple[_Explains, Callable[[list[str], Mapping[str, Group]], Problem], bool]] = (
    (_is_empty, _empty, True),
    (_is_slice, _slice, True),
    (_is_convolution, _convolution, False),
    (_is_stack, _stack, False),
)
