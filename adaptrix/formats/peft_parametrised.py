"""The reader of PEFT types whose ΔW is a formula of their own tensors: AdaLoRA, LoHa, LoKr, VeRA, MiSS and others.

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
from adaptrix.formats.peft_keys import SHARED, Key
from adaptrix.tensor import Tensor

Group = Mapping[str, Tensor]
#: tensors of convolutions alone, in Tucker's form
_TUCKER = ("hada_t1", "hada_t2", "lokr_t2")


@dataclass(frozen=True, slots=True)
class PeftForm:
    """One type: the kind of its deltas, and how a module's config and tensors give the scale.

    ``rank``: the number of ranks that the tensors have, or None where they do not say; the config has to agree.
    ``settings``: those of the formula that the checkpoint says; the rest follows from the sizes of the base.
    """

    kind: str
    scale: Callable[[PeftConfig, str, Group], float]
    rank: Callable[[Group], int | None]
    settings: Callable[[PeftConfig, Group], Mapping[str, int]] = lambda _config, _group: {}

    @property
    def names(self) -> tuple[str, ...]:
        """The ends of the names of its tensors."""
        return (*PARAMETRISATIONS[self.kind].names, *_TUCKER)


def _alpha_over_rank(config: PeftConfig, path: str, _group: Group) -> float:
    return config.alpha_of(path) / config.rank_of(path)


def _one(_config: PeftConfig, _path: str, _group: Group) -> float:
    return 1.0


def _adalora_scale(config: PeftConfig, _path: str, group: Group) -> float:
    """As peft has it: over the rank before pruning and 1e-5; an alpha of 0 or less stands for the rank that is left."""
    alpha = config.alpha if config.alpha > 0 else float(group["lora_A"].shape[0])
    return alpha / (config.rank + 1e-5)


def _lokr_rank(group: Group) -> int | None:
    found = [group[name].shape[1] for name in ("lokr_w1_a", "lokr_w2_a") if name in group]
    return found[0] if found else None  # where both are whole, the rank is that of the scale alone


def _gralora_scale(config: PeftConfig, _path: str, group: Group) -> float:
    """Over the rank of the blocks and that of the LoRA beside them."""
    beside = group.get("gralora_A_general.weight")
    return config.alpha / (config.rank + (beside.shape[0] if beside else 0))


def _c3a_scale(_config: PeftConfig, _path: str, group: Group) -> float:
    _, columns, size = group["c3a_kernel"].shape
    return 1.0 / (columns * size)


def _vera_settings(config: PeftConfig, group: Group) -> Mapping[str, int]:
    """The seed, and the sizes of what was drawn with it where that is saved."""
    found = {"seed": _seed(config.raw.get("projection_prng_key", 0))}
    A, B = group.get("vera_A"), group.get("vera_B")
    if A is None or B is None or len(A.shape) != 2 or len(B.shape) != 2:
        return found
    return found | {"widest": A.shape[1], "tallest": B.shape[0]}


def _miss_settings(config: PeftConfig, group: Group) -> Mapping[str, int]:
    """The rows of ΔW, where the block is not repeated along them."""
    repeated = config.raw.get("init_weights") == "mini"
    return {} if repeated or len(group["miss_block"].shape) != 2 else {"out": group["miss_block"].shape[1]}


def _fourier_scale(config: PeftConfig, _path: str, _group: Group) -> float:
    scaling = config.raw.get("scaling", 150.0)
    return float(scaling) if type(scaling) in (int, float) else 150.0


def _fourier_settings(config: PeftConfig, _group: Group) -> Mapping[str, int]:
    return {"seed": _seed(config.raw.get("random_loc_seed", 777))}


def _vblora_rank(group: Group) -> int | None:
    return next(tensor.shape[0] for name, tensor in group.items() if name.startswith("vblora_logits_A"))


def _vblora_settings(config: PeftConfig, _group: Group) -> Mapping[str, int]:
    topk = config.raw.get("topk", 2)
    return {"topk": topk if type(topk) is int and 0 < topk <= 1 << 16 else 2}


def _seed(value: object) -> int:
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


#: the types that are read here
FORMS: Mapping[str, PeftForm] = MappingProxyType(
    {
        "ADALORA": PeftForm("adalora", _adalora_scale, lambda group: group["lora_A"].shape[0]),
        "LOHA": PeftForm("loha", _alpha_over_rank, lambda group: group["hada_w1_a"].shape[1]),
        "LOKR": PeftForm("lokr", _alpha_over_rank, _lokr_rank),
        "VERA": PeftForm("vera", _one, lambda group: group["vera_lambda_d"].shape[0], _vera_settings),
        "MISS": PeftForm("miss", _one, lambda group: group["miss_block"].shape[0], _miss_settings),
        "GRALORA": PeftForm("gralora", _gralora_scale, lambda group: group["gralora_A"].shape[2]),
        "DELORA": PeftForm("delora", _one, lambda group: group["delora_A"].shape[0]),
        "VBLORA": PeftForm("vblora", _one, _vblora_rank, _vblora_settings),
        "FOURIERFT": PeftForm("fourierft", _fourier_scale, lambda _group: None, _fourier_settings),
        "SHIRA": PeftForm("shira", _one, lambda _group: None),
        "C3A": PeftForm("c3a", _c3a_scale, lambda _group: None),
    }
)


def split_shared(kind: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors that all deltas of a type share, by their own names, and the others by those of the file."""
    shared = PARAMETRISATIONS[FORMS[kind].kind].shared if kind in FORMS else ()
    names = {f"{SHARED}{name}{end}": name for name in shared for end in ("", ".default")}
    found = {names[key]: tensor for key, tensor in tensors.items() if key in names}
    return found, {key: tensor for key, tensor in tensors.items() if key not in names}


def parametrised(
    form: PeftForm, config: PeftConfig, tensors: Mapping[Key, Tensor], shared: Group, problems: list[Problem]
) -> dict[Target, Delta]:
    """One delta for every module with sound tensors, and the tensors that all share; what is wrong is added to the
    problems."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.kind:
            modules.setdefault(key.path, {})[key.kind] = tensor
    found: dict[Target, Delta] = {}
    try:
        for path, group in modules.items():
            wrong = list(_problems(form, config, path, {**group, **shared}))
            problems += wrong
            if not wrong:
                settings = MappingProxyType(dict(form.settings(config, {**group, **shared})))
                scale, parts = form.scale(config, path, group), MappingProxyType(group)
                found[Target(path)] = Parametrised(form.kind, parts, scale, settings, shared)
        problems += peft_promises.target_problems(config, found)
    except RefusedError as error:  # a pattern of the config that cannot be matched: reported once
        problems += error.problems
    return found


def _problems(form: PeftForm, config: PeftConfig, path: str, group: Group) -> Iterator[Problem]:
    if unread := _unread(form, config, group):
        remedy = "Merge it into its base with peft."
        yield Problem("variant-unsupported", path, unread, f"{config.raw['peft_type']} of linear layers", remedy)
        return
    wrong = list(part_problems(form.kind, group, form.settings(config, group), path))
    yield from wrong
    if wrong:
        return
    expected = _pruned(config, path) if form.kind == "adalora" else config.rank_of(path)
    rank = form.rank(group)
    if rank is not None and rank != expected:
        remedy = f"Restore {CONFIG_NAME} of this training: the scale depends on it."
        yield Problem("rank", path, f"tensors of rank {rank}", f"{expected}, as {CONFIG_NAME} says", remedy)


def _unread(form: PeftForm, config: PeftConfig, group: Group) -> str | None:
    """The variant of a module that is not read; None where it is none."""
    if form.kind == "miss" and config.raw.get("init_weights") == "bat":
        return 'init_weights is "bat": ΔW depends on the base'
    flat = [tensor for name, tensor in group.items() if not name.startswith(("gralora", "c3a", "vblora"))]
    deep = any(len(tensor.shape) > 2 for tensor in flat)
    return "the tensors of a convolution" if deep or any(name in group for name in _TUCKER) else None


def _pruned(config: PeftConfig, path: str) -> int:
    """The rank that AdaLoRA's rank_pattern leaves a module; the names in it end in lora_E, with or without an adapter's
    name."""
    masks = config.raw.get("rank_pattern")
    if isinstance(masks, dict):
        for name in (f"{path}.lora_E", f"{path}.lora_E.default"):
            if isinstance(mask := masks.get(name), list):
                return sum(mask)
    return config.rank
