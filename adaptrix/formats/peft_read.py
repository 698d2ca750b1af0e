"""Reads a PEFT LoRA checkpoint, of any version, into an :class:`Adapter`.

Three passes over names, none over bytes: take the keys apart, gather the tensors of each module into
a delta, and sort what is left into extras. Each pass says everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from adaptrix.adapter import Adapter, Extra, ExtraKind, Provenance, Target
from adaptrix.delta import LowRank
from adaptrix.errors import Problem, refuse
from adaptrix.formats import peft_config, peft_keys, safetensors_file, torch_file
from adaptrix.formats.peft_config import CONFIG_NAME, PeftConfig
from adaptrix.formats.peft_keys import Key
from adaptrix.patterns import suffix_match
from adaptrix.records import Bundle
from adaptrix.tensor import FLOATS, Tensor

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "shared")
#: the order in which transformers defines the parameters of fused experts, hence of peft's wrappers
EXPERT_ORDER = ("gate_up_proj", "down_proj")


def detect(bundle: Bundle) -> bool:
    """A checkpoint of PEFT has its config; one that lacks it is known by the name of its weights."""
    return CONFIG_NAME in bundle.files or any(name in bundle.files for name in WEIGHTS)


def read(bundle: Bundle) -> Adapter:
    """The adapter in a bundle, with every problem found. Raises where a file cannot be read at all."""
    raw = peft_config.read_json(bundle.one(CONFIG_NAME))
    config, problems = peft_config.parse(raw)
    if any(problem.code == "peft-type" for problem in problems):
        return _adapter(bundle, config, {}, {}, problems)
    reading = _Reading(config, *_keyed(_tensors(bundle)))
    deltas, extras = reading.deltas(), reading.extras()
    found = (*problems, *reading.problems, *_target_problems(config, deltas))
    return _adapter(bundle, config, deltas, extras, found)


def _adapter(
    bundle: Bundle,
    config: PeftConfig,
    deltas: Mapping[Target, LowRank],
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
    raise refuse("no-weights", bundle.uri, "there are no weights", " or ".join(WEIGHTS))


def _keyed(tensors: Mapping[str, Tensor]) -> tuple[dict[Key, Tensor], list[Problem]]:
    """The tensors by parsed key, each key once."""
    found: dict[Key, Tensor] = {}
    problems: list[Problem] = []
    owners: dict[str, str] = {}
    for name, tensor in tensors.items():
        key = peft_keys.parse(name)
        if key is None:
            problems.append(Problem("bad-name", repr(name)[:200], "not a name of a tensor in a module"))
        elif other := owners.get(key.plain):
            problems.append(Problem("duplicate", name, f"the same place as {other!r}", "one tensor for one place"))
        else:
            owners[key.plain] = name
            found[key] = tensor
    return found, problems + list(_name_problems(found))


def _name_problems(keys: Mapping[Key, Tensor]) -> Iterator[Problem]:
    for prefix, count in peft_keys.odd_prefixes(keys).items():
        found = f"{count} names start with {prefix!r}" if prefix else f"{count} names lack the prefix of peft"
        yield Problem("prefix", "tensor names", f"{found}: read as if with {peft_keys.PREFIX!r}", severity="note")
    adapters = sorted({key.adapter for key in keys if key.adapter})
    if len(adapters) > 1:
        yield Problem("two-adapters", "tensor names", f"several adapters in one file: {', '.join(adapters)}", "one")
    if keys and not any(key.kind for key in keys):
        yield Problem(
            "no-lora", "tensor names", f"none of {len(keys)} tensors belongs to a LoRA", "lora_A and lora_B of modules",
            "This looks like a full model's weights under an adapter's name.",
        )  # fmt: skip
    elif not keys:
        yield Problem("empty", "tensor names", "the file holds no tensors", "at least one lora_A and lora_B")


@dataclass
class _Reading:
    """The state of one reading: the tensors by key, and the problems so far."""

    config: PeftConfig
    tensors: dict[Key, Tensor]
    problems: list[Problem]

    def deltas(self) -> dict[Target, LowRank]:
        """One delta for every module with a sound pair of factors."""
        modules: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            if key.kind:
                modules.setdefault(key.path, {})[f"{key.kind}.{key.leaf}" if key.leaf == "bias" else key.kind] = tensor
        found: dict[Target, LowRank] = {}
        for path, group in modules.items():
            if self._pair_is_sound(path, group):
                found |= self._module(path, group)
        return found

    def _module(self, path: str, group: dict[str, Tensor]) -> dict[Target, LowRank]:
        embedding = "lora_embedding_A" in group
        A, B = (group[f"lora_embedding_{x}" if embedding else f"lora_{x}"] for x in "AB")
        delta = LowRank(
            A, B, 1.0, self.config.rslora, group.get("lora_B.bias"), group.get("lora_magnitude_vector"), embedding
        )
        if self.config.get("enable_lora"):
            return self._merged_linear(path, delta)
        if self.config.get("target_parameters") and (parameter := self._parameter(path)):
            return self._stacked(parameter, delta)
        wanted = self.config.rank_of(path)
        if A.shape[0] != wanted or B.shape[1] != wanted:
            self._rank_problem(path, A, B, wanted)
            return {}
        return {Target(path): replace(delta, alpha=self.config.alpha_of(path))}

    def _merged_linear(self, path: str, delta: LowRank) -> dict[Target, LowRank]:
        """peft before 0.3: one A and one grouped B for the enabled parts of a fused weight.

        Group i of the convolution reads rows i·r.. of A and writes its own rows of B, so each enabled
        part is an ordinary LoRA made of whole rows, scale alpha/r.
        """
        enabled, rank = self.config.raw["enable_lora"], self.config.rank
        slots = [slot for slot, on in enumerate(enabled) if on]
        A, B = delta.A, delta.B
        if not slots or A.shape[0] != rank * len(slots) or B.shape[0] % len(slots) or B.shape[1:] not in ((rank, 1), (rank,)):
            self._add("merged-linear", path, f"A {A.shape}, B {B.shape}", f"A [{rank * len(slots)}, in], B [.., {rank}, 1]")
            return {}
        rows = B.shape[0] // len(slots)
        return {
            Target(path, slot, len(enabled)): LowRank(
                A.rows(i * rank, (i + 1) * rank), B.rows(i * rows, (i + 1) * rows).reshape(rows, rank), self.config.alpha
            )
            for i, slot in enumerate(slots)
        }

    def _stacked(self, path: str, delta: LowRank) -> dict[Target, LowRank]:
        """The factors of all experts of a 3-D parameter, kept as they are."""
        rank = self.config.rank_of(path)
        experts, rest = divmod(delta.A.shape[0], rank)
        if rest or delta.B.shape[1] != delta.A.shape[0]:
            self._rank_problem(path, delta.A, delta.B, rank)
            return {}
        return {Target(path): replace(delta, alpha=self.config.alpha_of(path), experts=experts if experts > 1 else None)}

    def _parameter(self, path: str) -> str | None:
        """The parameter behind a module path: peft nests one wrapper a parameter, the first innermost."""
        module = path.removesuffix(".base_layer")
        depth = 0 if module == path else 1
        named = [n.rpartition(".")[2] for n in self.config.raw["target_parameters"] if self._in_module(n, module)]
        known = [name for name in EXPERT_ORDER if name in named]
        order = known if sorted(known) == sorted(named) else sorted(named) if len(named) == 1 else []
        if named and len(order) <= depth:
            self._add(
                "undecidable", path, f"which of the parameters {sorted(named)} this is",
                "the known pair gate_up_proj and down_proj, or a single parameter",
            )  # fmt: skip
        return f"{module}.{order[-1 - depth]}" if len(order) > depth else None

    @staticmethod
    def _in_module(parameter: str, module: str) -> bool:
        owner = parameter.rpartition(".")[0]
        return suffix_match(owner, module) if owner else True

    def _pair_is_sound(self, path: str, group: Mapping[str, Tensor]) -> bool:
        """Whether a module has both factors, of a float dtype, of two dimensions, and none of them empty."""
        before = len(self.problems)
        stem = "lora_embedding_" if any(kind.startswith("lora_embedding") for kind in group) else "lora_"
        for kind in (f"{stem}A", f"{stem}B"):
            if kind not in group:
                self._add("pair", f"{path} {kind}", "missing", "both factors", "peft would leave it at its random start.")
        for kind, tensor in group.items():
            self._check_tensor(f"{path} {kind}", kind, tensor)
        if ("lora_magnitude_vector" in group) != bool(self.config.get("use_dora")) and not self.config.get("target_parameters"):
            found = "there is a magnitude" if "lora_magnitude_vector" in group else "there is no magnitude"
            self._add("dora", path, f"{found} while use_dora is {self.config.get('use_dora')}", "both or neither")
        return len(self.problems) == before

    def _check_tensor(self, where: str, kind: str, tensor: Tensor) -> None:
        vector = kind in ("lora_magnitude_vector", "lora_B.bias")
        dims = (1,) if vector else (2, 3) if self.config.get("enable_lora") else (2,)
        if tensor.dtype not in FLOATS:
            self._add("dtype", where, tensor.dtype, f"one of {', '.join(FLOATS)}", "An adapter is not made of whole numbers.")
        if len(tensor.shape) not in dims or 0 in tensor.shape:
            self._add("shape", where, f"shape {list(tensor.shape)}", "[out]" if vector else "two dimensions, none of them 0")

    def _rank_problem(self, path: str, A: Tensor, B: Tensor, wanted: int) -> None:
        swapped = (A.shape[1], B.shape[0]) == (wanted, wanted)
        self._add(
            "rank", path, f"A is {list(A.shape)}, B is {list(B.shape)}", f"A [{wanted}, in] and B [out, {wanted}]",
            "A and B are swapped." if swapped else f"Mend r or rank_pattern in {CONFIG_NAME}.",
        )  # fmt: skip

    def extras(self) -> dict[str, Extra]:
        """The tensors that are no part of a delta, each of a kind that the config explains."""
        found = {}
        for key, tensor in self.tensors.items():
            if key.kind is None:
                kind = self._extra_kind(key)
                if kind is None:
                    self._add("unexpected", key.plain, "neither part of a LoRA nor of a module saved whole",
                              "a name that the config explains", "peft would ignore it in silence.")  # fmt: skip
                else:
                    found[key.plain] = Extra(kind, tensor)
        return found

    def _extra_kind(self, key: Key) -> ExtraKind | None:
        module, _, leaf = key.path.rpartition(".")
        if key.path.endswith(".token_adapter.trainable_tokens_delta"):
            return "token_delta"
        if any(suffix_match(name, part) for name in self.config.saved_modules for part in _ancestors(key.path)):
            return "module"
        if leaf == "bias" and self.config.get("bias") in ("all", "lora_only"):
            return "bias"
        if leaf == "weight" and module.endswith(".base_layer"):
            return "base_weight"
        return "module" if leaf == "weight" and module.rpartition(".")[2] in _EMBEDDINGS else None

    def _add(self, code: str, where: str, found: str, expected: str = "", remedy: str = "") -> None:
        self.problems.append(Problem(code, where, found, expected, remedy))


def _ancestors(path: str) -> Iterator[str]:
    """Every module path above a tensor."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _target_problems(config: PeftConfig, deltas: Mapping[Target, LowRank]) -> Iterator[Problem]:
    """Where the config's targets and the tensors disagree: peft passes over both in silence."""
    if config.get("target_parameters") or config.get("enable_lora"):
        return
    for target in deltas:
        if not config.targets(target.path):
            yield Problem(
                "untargeted", str(target), f"the target_modules of {CONFIG_NAME} do not name this module",
                "a delta on a target", "peft would ignore it in silence: add it to target_modules.",
            )  # fmt: skip
    wanted = config.get("target_modules")
    for name in sorted(wanted) if isinstance(wanted, list) else ():
        if deltas and not any(suffix_match(name, target.path) for target in deltas):
            yield Problem("no-tensors", f"{CONFIG_NAME} target_modules", f"{name!r} is a target and has no tensors",
                          severity="warning")  # fmt: skip
