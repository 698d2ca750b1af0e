"""The reader of PEFT types that are a LoRA in another parametrisation: AdaLoRA, LoHa, LoKr.

Their tensors are kept as they are (:class:`~adaptrix.delta.Parametrised`); what the config adds is a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adaptrix.adapter import Target
from adaptrix.delta import PARAMETRISATIONS, Delta, Parametrised, part_problems
from adaptrix.errors import Problem, RefusedError
from adaptrix.formats import peft_promises
from adaptrix.formats.peft_config import CONFIG_NAME, PeftConfig
from adaptrix.formats.peft_keys import Key
from adaptrix.tensor import Tensor

Group = Mapping[str, Tensor]
#: tensors of convolutions alone, in Tucker's form
_TUCKER = ("hada_t1", "hada_t2", "lokr_t2")


@dataclass(frozen=True, slots=True)
class PeftForm:
    """One type: the kind of its deltas, and how a module's config and tensors give the scale.

    ``rank``: the number of ranks that the tensors have, or None where they do not say; the config has to agree.
    """

    kind: str
    scale: Callable[[PeftConfig, str, Group], float]
    rank: Callable[[Group], int | None]

    @property
    def names(self) -> tuple[str, ...]:
        """The ends of the names of its tensors."""
        return (*PARAMETRISATIONS[self.kind].names, *_TUCKER)


def _alpha_over_rank(config: PeftConfig, path: str, _group: Group) -> float:
    return config.alpha_of(path) / config.rank_of(path)


def _adalora_scale(config: PeftConfig, _path: str, group: Group) -> float:
    """As peft has it: over the rank before pruning and 1e-5; an alpha of 0 or less stands for the rank that is left."""
    alpha = config.alpha if config.alpha > 0 else float(group["lora_A"].shape[0])
    return alpha / (config.rank + 1e-5)


def _lokr_rank(group: Group) -> int | None:
    found = [group[name].shape[1] for name in ("lokr_w1_a", "lokr_w2_a") if name in group]
    return found[0] if found else None  # where both are whole, the rank is that of the scale alone


#: the types that are read here
FORMS: Mapping[str, PeftForm] = MappingProxyType(
    {
        "ADALORA": PeftForm("adalora", _adalora_scale, lambda group: group["lora_A"].shape[0]),
        "LOHA": PeftForm("loha", _alpha_over_rank, lambda group: group["hada_w1_a"].shape[1]),
        "LOKR": PeftForm("lokr", _alpha_over_rank, _lokr_rank),
    }
)


def parametrised(
    form: PeftForm, config: PeftConfig, tensors: Mapping[Key, Tensor], problems: list[Problem]
) -> dict[Target, Delta]:
    """One delta for every module with sound tensors; what is wrong is added to the problems."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.kind:
            modules.setdefault(key.path, {})[key.kind] = tensor
    found: dict[Target, Delta] = {}
    try:
        for path, group in modules.items():
            wrong = list(_problems(form, config, path, group))
            problems += wrong
            if not wrong:
                parts = MappingProxyType(dict(group))
                found[Target(path)] = Parametrised(form.kind, parts, form.scale(config, path, group))
        problems += peft_promises.target_problems(config, found)
    except RefusedError as error:  # a pattern of the config that cannot be matched: reported once
        problems += error.problems
    return found


def _problems(form: PeftForm, config: PeftConfig, path: str, group: Group) -> Iterator[Problem]:
    if any(name in group for name in _TUCKER) or any(len(tensor.shape) > 2 for tensor in group.values()):
        found, remedy = "the tensors of a convolution", "Merge it into its base with peft."
        yield Problem("variant-unsupported", path, found, f"{config.raw['peft_type']} of linear layers", remedy)
        return
    wrong = list(part_problems(form.kind, group, {}, path))
    yield from wrong
    if wrong:
        return
    expected = _pruned(config, path) if form.kind == "adalora" else config.rank_of(path)
    rank = form.rank(group)
    if rank is not None and rank != expected:
        remedy = f"Restore {CONFIG_NAME} of this training: the scale depends on it."
        yield Problem("rank", path, f"tensors of rank {rank}", f"{expected}, as {CONFIG_NAME} says", remedy)


def _pruned(config: PeftConfig, path: str) -> int:
    """The rank that AdaLoRA's rank_pattern leaves a module; the names in it end in lora_E, with or without an adapter's
    name."""
    masks = config.raw.get("rank_pattern")
    if isinstance(masks, dict):
        for name in (f"{path}.lora_E", f"{path}.lora_E.default"):
            if isinstance(mask := masks.get(name), list):
                return sum(mask)
    return config.rank
