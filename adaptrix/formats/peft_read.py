"""The reader of PEFT LoRA checkpoints of any version.

Three passes over names, none over bytes: parse the keys, gather the tensors of each module into a delta,
and sort the rest into extras. Each pass reports everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from adaptrix.adapter import Adapter, Extra, ExtraKind, Provenance, Target
from adaptrix.architecture.patterns import tails
from adaptrix.delta import Delta, LowRank
from adaptrix.errors import Problem, RefusedError, errors_in, few, refuse
from adaptrix.formats import peft_config, peft_ia3, peft_keys, peft_promises, peft_tied, safetensors_file, torch_file
from adaptrix.formats.peft_causes import shared_causes
from adaptrix.formats.peft_config import ALL_LINEAR, CONFIG_NAME, PeftConfig
from adaptrix.formats.peft_keys import Key
from adaptrix.formats.peft_parametrised import FORMS, parametrised, split_shared
from adaptrix.formats.peft_promises import BASE_LAYER, TOKENS, ancestors
from adaptrix.formats.peft_training import is_of_training
from adaptrix.json_file import read_object
from adaptrix.records import Bundle
from adaptrix.tensor import FLOATS, Tensor

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_VECTORS = ("lora_magnitude_vector", "lora_B.bias")
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "shared")
#: the order in which transformers defines the parameters of fused experts, hence of peft's wrappers
EXPERT_ORDER = ("gate_up_proj", "down_proj")


def detect(bundle: Bundle) -> bool:
    """True for a bundle with PEFT's config, or with weights of PEFT's name where the config is missing."""
    return CONFIG_NAME in bundle.files or any(name in bundle.files for name in WEIGHTS)


def read(bundle: Bundle) -> Adapter:
    """The adapter in a bundle, with every problem found. Raises where a file cannot be read at all."""
    file = bundle.one(CONFIG_NAME)
    raw = read_object(file, str(file))
    config, problems = peft_config.parse(raw)
    if any(problem.code == "peft-type" for problem in problems):
        return _adapter(bundle, config, {}, {}, problems)
    try:
        tensors = _tensors(bundle)
    except RefusedError as error:  # a damaged file must not hide what is wrong beside it
        raise RefusedError((*error.problems, *errors_in(problems))) from None
    kind = str(raw.get("peft_type"))
    names = peft_ia3.NAMES if kind == "IA3" else FORMS[kind].names if kind in FORMS else None
    shared, tensors = split_shared(kind, tensors)
    reading = _Reading(config, *peft_keys.keyed(tensors, names))
    deltas = reading.deltas_of(kind, shared) if names else reading.deltas()
    extras = reading.extras(deltas) | {name: Extra("shared", tensor) for name, tensor in shared.items()}
    adapter = _adapter(bundle, config, deltas, extras, (*problems, *reading.problems))
    return replace(adapter, targeted=peft_promises.promise(config, deltas))


def _adapter(
    bundle: Bundle,
    config: PeftConfig,
    deltas: Mapping[Target, Delta],
    extras: Mapping[str, Extra],
    problems: tuple[Problem, ...],
) -> Adapter:
    base = config.get("base_model_name_or_path")
    return Adapter(
        name=bundle.name,
        deltas=MappingProxyType(dict(deltas)),
        extras=MappingProxyType(dict(extras)),
        provenance=Provenance(bundle.uri, "peft", bundle.commit, bundle.sha256, config.raw),
        base=base if isinstance(base, str) and base else None,
        problems=problems,
    )


def _tensors(bundle: Bundle) -> dict[str, Tensor]:
    for name in WEIGHTS:
        if name in bundle.files:
            path = bundle.files[name]
            return safetensors_file.read(path)[0] if name.endswith(".safetensors") else torch_file.read(path)
    raise refuse("adapter-weights-missing", bundle.uri, "there are no weights", " or ".join(WEIGHTS))


@dataclass
class _Reading:
    """The state of one reading: the tensors by key, and the problems so far."""

    config: PeftConfig
    tensors: dict[Key, Tensor]
    problems: list[Problem]

    def deltas(self) -> dict[Target, Delta]:
        """One delta for every module with a valid pair of factors."""
        modules: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            if key.kind:
                modules.setdefault(key.path, {})[f"{key.kind}.{key.leaf}" if key.leaf == "bias" else key.kind] = tensor
        for problem, explained in shared_causes(self.config, modules):
            self.problems.append(problem)
            modules = {path: group for path, group in modules.items() if path not in explained}
        sound = {path: group for path, group in modules.items() if self._pair_is_sound(path, group)}
        self.problems += peft_promises.vector_problems(self.config, modules)
        found: dict[Target, Delta] = {}
        try:
            tied = peft_tied.tied_heads(self.config, sound)
            for path, group in sound.items():
                found |= self._tied(path, group) if path in tied else self._module(path, group)
            unequal = list(peft_tied.tied_problems(self.config, sound, tied))
            self.problems += unequal
            follow = tied.keys() | {problem.where for problem in unequal}
            self.problems += few(peft_promises.target_problems(self.config, found, follow), CONFIG_NAME)
        except RefusedError as error:  # a pattern of the config that cannot be matched: reported once
            self.problems += error.problems
        return found

    def deltas_of(self, kind: str, shared: Mapping[str, Tensor]) -> dict[Target, Delta]:
        """The same of another type than LoRA."""
        if kind == "IA3":
            return peft_ia3.scales(self.config, self.tensors, self.problems)
        return parametrised(FORMS[kind], self.config, self.tensors, shared, self.problems)

    def _tied(self, path: str, group: Mapping[str, Tensor]) -> dict[Target, LowRank]:
        A, B = group["lora_A"], group["lora_B"]
        alpha = peft_tied.tied_alpha(self.config, path, A.shape[0])
        bias, magnitude = group.get("lora_B.bias"), group.get("lora_magnitude_vector")
        return {Target(path): LowRank(A, B, alpha, self.config.rslora, bias, magnitude)}

    def _module(self, path: str, group: Mapping[str, Tensor]) -> dict[Target, LowRank]:
        embedding = "lora_embedding_A" in group
        A, B = (group[f"lora_embedding_{x}" if embedding else f"lora_{x}"] for x in "AB")
        alpha, bias, magnitude = (
            self.config.alpha_of(path),
            group.get("lora_B.bias"),
            group.get("lora_magnitude_vector"),
        )
        delta = LowRank(A, B, alpha, self.config.rslora, bias, magnitude, embedding)
        if self.config.enabled:
            return self._merged_linear(path, delta)
        if self.config.get("target_parameters") and self._is_wrapper(path, A):
            return self._parameter(path, delta)
        rank = self.config.rank_of(path) or A.shape[0]
        if A.shape[0] != rank or B.shape[1] != rank:
            self._rank_problem(path, A, B, rank)
            return {}
        return {Target(path): delta}

    def _merged_linear(self, path: str, delta: LowRank) -> dict[Target, LowRank]:
        """The deltas of a MergedLinear (peft before 0.3): one A, one grouped B for the enabled parts of a fused weight.

        Group i of the convolution reads rows i·r.. of A and writes its own rows of B, so each enabled
        part is an ordinary LoRA made of whole rows, scale alpha/r.
        """
        if delta.bias is not None or delta.magnitude is not None:
            found = f"a {'bias of B' if delta.magnitude is None else 'magnitude'} beside the parts of enable_lora"
            self._add("tensor-unexpected", path, found, "A and B alone", "No version of peft had both.")
            return {}
        enabled = self.config.enabled
        slots = [slot for slot, on in enumerate(enabled) if on]
        A, B = delta.A, delta.B
        rank = self.config.rank or A.shape[0] // max(len(slots), 1)
        if (
            not slots
            or A.shape[0] != rank * len(slots)
            or B.shape[0] % len(slots)
            or B.shape[1:] not in ((rank, 1), (rank,))
        ):
            self._add("shape", path, f"A {A.shape}, B {B.shape}", f"A [{rank * len(slots)}, in], B [.., {rank}, 1]")
            return {}
        rows = B.shape[0] // len(slots)
        return {
            Target(path, slot, len(enabled)): LowRank(
                A.rows(i * rank, (i + 1) * rank),
                B.rows(i * rows, (i + 1) * rows).reshape(rows, rank),
                self.config.alpha,
            )
            for i, slot in enumerate(slots)
        }

    def _is_wrapper(self, path: str, A: Tensor) -> bool:
        """True where a delta is on a parameter of its module, not on the module.

        A parameter may be given by its bare name, without the module. peft does not wrap what it adapts as a
        module, so the target modules decide, or the rank where they are not listed.
        """
        module = path.removesuffix(BASE_LAYER)
        if module != path:
            return True
        if not self._parameters_of(module):
            return False
        if self.config.get("target_modules") == ALL_LINEAR:
            return A.shape[0] != self.config.rank_of(path)
        return not self.config.names("target_modules", path)

    def _parameter(self, path: str, delta: LowRank) -> dict[Target, LowRank]:
        """The delta on a parameter: its factors hold those of all experts, and are kept so.

        peft nests one wrapper around the module for each parameter, the first that the model defines innermost.
        """
        module = path.removesuffix(BASE_LAYER)
        depth = 0 if module == path else 1
        names = self._parameters_of(module)
        order = [name for name in EXPERT_ORDER if name in names] if len(names) > 1 else names
        if len(order) != len(names) or len(order) <= depth:
            known = "the known pair gate_up_proj and down_proj, or a single parameter"
            self._add("ambiguous", path, f"which of the parameters {names} of its module this is", known)
            return {}
        parameter = f"{module}.{order[-1 - depth]}"
        rank = self.config.rank_of(parameter) or delta.A.shape[0]
        experts, rest = divmod(delta.A.shape[0], rank)
        if rest or delta.B.shape[1] != delta.A.shape[0]:
            self._rank_problem(path, delta.A, delta.B, rank)
            return {}
        delta = replace(delta, alpha=self.config.alpha_of(parameter))
        if parameter.endswith(".weight"):  # of two dimensions: as on the module itself
            return {Target(module): delta}
        return {Target(parameter): replace(delta, experts=experts)}

    def _parameters_of(self, module: str) -> list[str]:
        """The targeted parameters that this module may have; a module with a targeted weight has no others."""
        targets = self.config.parameters_by_owner
        owned = {name for tail in tails(module) if tail for name in targets.get(tail, ())}
        return ["weight"] if "weight" in owned else sorted(owned | set(targets.get("", ())))

    def _pair_is_sound(self, path: str, group: Mapping[str, Tensor]) -> bool:
        """True where a module has both factors, of a float dtype, of two dimensions, and neither is empty."""
        before = len(self.problems)
        stem = "lora_embedding_" if any(kind.startswith("lora_embedding") for kind in group) else "lora_"
        for kind in (f"{stem}A", f"{stem}B"):
            if kind not in group:
                self._add(
                    "adapter-incomplete",
                    f"{path} {kind}",
                    "missing",
                    "both factors",
                    "peft would leave it at its random start.",
                )
        for kind, tensor in group.items():
            if kind in (f"{stem}A", f"{stem}B", *_VECTORS):
                self._check_tensor(f"{path} {kind}", kind, tensor)
            else:
                self._add("tensor-unexpected", f"{path} {kind}", f"beside {stem}A", f"{stem}A and {stem}B")
        return len(self.problems) == before

    def _check_tensor(self, where: str, kind: str, tensor: Tensor) -> None:
        vector = kind in _VECTORS
        dims = (1,) if vector else (2, 3) if self.config.enabled else (2,)
        if tensor.dtype not in FLOATS:
            self._add(
                "dtype", where, tensor.dtype, f"one of {', '.join(FLOATS)}", "An adapter is not made of whole numbers."
            )
        if len(tensor.shape) not in dims or 0 in tensor.shape:
            self._add(
                "shape", where, f"shape {list(tensor.shape)}", "[out]" if vector else "two dimensions, none of them 0"
            )

    def _rank_problem(self, path: str, A: Tensor, B: Tensor, rank: int) -> None:
        swapped = (A.shape[1], B.shape[0]) == (rank, rank)
        self._add(
            "rank", path, f"A is {list(A.shape)}, B is {list(B.shape)}", f"A [{rank}, in] and B [out, {rank}]",
            "A and B are swapped." if swapped else f"Correct r or rank_pattern in {CONFIG_NAME}.",
        )  # fmt: skip

    def extras(self, deltas: Mapping[Target, Delta]) -> dict[str, Extra]:
        """The tensors that are no part of a delta, each of a kind that the config explains."""
        found = {}
        any_lora = any(key.kind for key in self.tensors)
        for key, tensor in self.tensors.items():
            if key.kind is not None:
                continue
            if kind := self._extra_kind(key):
                found[key.plain] = Extra(kind, tensor)
            elif any_lora:  # else all of them are, and one problem says so
                what = "neither part of a LoRA nor of a module saved whole"
                remedy = "peft would ignore it in silence."
                self._add("tensor-unexpected", key.plain, what, "a name that the config explains", remedy)
        if deltas:
            self.problems += few(peft_promises.extra_problems(self.config, found, deltas.keys()), CONFIG_NAME)
        return found

    def _extra_kind(self, key: Key) -> ExtraKind | None:
        module, _, leaf = key.path.rpartition(".")
        if key.path.endswith(TOKENS):
            return "token_delta"
        if is_of_training(key.path, self.config.raw):
            return "training"
        saved = self.config.saved_modules
        if any(name for part in ancestors(key.path) for name in saved.endings(part)):  # peft: "norm" is any …norm
            return "module"
        if leaf == "bias" and self.config.saves_biases:
            return "bias"
        if leaf == "weight" and module.endswith(".base_layer"):
            return "base_weight"
        return "module" if leaf == "weight" and module.rpartition(".")[2] in _EMBEDDINGS else None

    def _add(self, code: str, where: str, found: str, expected: str = "", remedy: str = "") -> None:
        self.problems.append(Problem(code, where, found, expected, remedy))
