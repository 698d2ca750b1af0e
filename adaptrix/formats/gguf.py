"""llama.cpp's LoRA adapters in GGUF.

``<module>.weight.lora_a`` is A ``[r, in]`` and ``.lora_b`` B ``[out, r]``, with ``[experts, …]`` before for stacked
experts; of the embedding, A lies transposed, ``[vocab, r]``. ΔW = alpha / r · B·A with one ``adapter.lora.alpha`` for
the file and each tensor's own r.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.delta import Delta, LowRank
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.formats import gguf_file
from adaptrix.formats.peft_config import condition_problems
from adaptrix.formats.spoken import Spoken, require_untied, spoken, vocabulary_of
from adaptrix.formats.untrusted import opened, read_exactly
from adaptrix.planning.features import CONDITIONS
from adaptrix.planning.plan import Plan
from adaptrix.records import Bundle
from adaptrix.tensor import Tensor

NAME, SUFFIX = "gguf", ".gguf"
CARRIES = frozenset({"condition", "mixed_rank", "mixed_scale", "embeddings", "head", "experts"})
_ALPHA = "adapter.lora.alpha"
_INVOCATION = "adapter.alora.invocation_tokens"
_HUB = "https://huggingface.co/"
_LEAVES = (".weight.lora_a", ".weight.lora_b")
_EMBEDDING = "token_embd"


def detect(bundle: Bundle) -> bool:
    """True for one file that begins as GGUF does."""
    if len(bundle.files) != 1:
        return False
    try:
        with opened(next(iter(bundle.files.values()))) as (file, size):
            return size >= 4 and read_exactly(file, 0, 4, Path(bundle.uri)) == gguf_file.MAGIC
    except RefusedError:
        return False


def sniff(start: bytes) -> bool:
    """True for the start of a GGUF file whose metadata gives ``general.type`` the value ``adapter``."""
    key, value = b"general.type", b"adapter"
    return start[:4] == gguf_file.MAGIC and key + struct.pack("<IQ", 8, len(value)) + value in start  # 8: a string


def read(bundle: Bundle) -> Adapter:
    """The adapter in a file, with every problem found. Raises where the file cannot be read at all."""
    path = next(iter(bundle.files.values()))
    tensors, metadata = gguf_file.read(path)
    if metadata.get("general.type") != "adapter":
        said = f"general.type is {metadata.get('general.type', 'not there')!r}: a whole model, not an adapter"
        raise refuse("full-model", path, said, "adapter", "Pass the adapter's file, or use this one as a base.")
    config = _config(metadata)
    problems = [*_metadata_problems(metadata), *_token_problems(metadata), *condition_problems(config)]
    alpha = metadata.get(_ALPHA)
    sound = isinstance(alpha, float) and isfinite(alpha)
    deltas, more = _deltas(tensors, float(alpha) if sound else 1.0)  # type: ignore[arg-type]  # a float if sound
    base = metadata.get("general.base_model.0.repo_url")
    return Adapter(
        name=bundle.name,
        deltas=MappingProxyType(deltas),
        extras=MappingProxyType({}),
        provenance=Provenance(bundle.uri, NAME, bundle.commit, bundle.sha256, config),
        base=_repository(base),
        problems=(*problems, *more),
        dialect=NAME,
        family=str(metadata.get("general.architecture", "")),
    )


def _repository(url: object) -> str | None:
    """The repository that the address of a base model names."""
    return url.removeprefix(_HUB).strip("/") or None if isinstance(url, str) and url.startswith(_HUB) else None


def _config(metadata: Mapping[str, gguf_file.Value]) -> dict[str, Any]:
    """The metadata; an activated LoRA under PEFT's key too, so that every step knows its condition."""
    tokens = metadata.get(_INVOCATION)
    return {**metadata} | ({"alora_invocation_tokens": tokens} if _are_tokens(tokens) else {})


def _are_tokens(tokens: object) -> bool:
    return isinstance(tokens, list) and bool(tokens) and all(type(one) is int and 0 <= one < 1 << 32 for one in tokens)


def _token_problems(metadata: Mapping[str, gguf_file.Value]) -> Iterator[Problem]:
    if _INVOCATION in metadata and not _are_tokens(tokens := metadata[_INVOCATION]):
        expected = "whole numbers of at least 0: the tokens from which on it acts"
        yield Problem("config-value", _INVOCATION, repr(tokens)[:80], expected, "Convert it from its source again.")


def _metadata_problems(metadata: Mapping[str, gguf_file.Value]) -> Iterator[Problem]:
    if (kind := metadata.get("adapter.type")) != "lora":
        yield Problem("variant-unsupported", "adapter.type", repr(kind)[:80], "lora")
    alpha = metadata.get(_ALPHA)
    if not isinstance(alpha, float) or not isfinite(alpha):
        yield Problem("config-value", _ALPHA, repr(alpha)[:80], "a number, as llama.cpp needs it")
    elif not alpha:
        found = "0: llama.cpp then takes the scale 1 for every delta"
        yield Problem("ambiguous", _ALPHA, found, "the alpha it was trained with", "Convert it from its source again.")


def _deltas(tensors: Mapping[str, Tensor], alpha: float) -> tuple[dict[Target, Delta], list[Problem]]:
    modules: dict[str, dict[str, Tensor]] = {}
    problems = []
    for name, tensor in tensors.items():
        leaf = next((leaf for leaf in _LEAVES if name.endswith(leaf)), None)
        if leaf is None:
            expected = f"a name that ends in {' or '.join(_LEAVES)}"
            problems.append(Problem("tensor-unexpected", name, "no factor of a LoRA", expected))
        else:
            modules.setdefault(name.removesuffix(leaf), {})[leaf] = tensor
    deltas: dict[Target, Delta] = {}
    for module, group in modules.items():
        found = [*_pair_problems(module, group)]
        problems += found
        if not found:
            deltas[Target(module)] = _delta(module, group[_LEAVES[0]], group[_LEAVES[1]], alpha)
    return deltas, problems


def _pair_problems(module: str, group: Mapping[str, Tensor]) -> Iterator[Problem]:
    missing = [leaf for leaf in _LEAVES if leaf not in group]
    for leaf in missing:
        yield Problem("adapter-incomplete", f"{module}{leaf}", "missing", "both factors")
    if missing:
        return
    a, b = (group[leaf].shape for leaf in _LEAVES)
    rank = 1 if module == _EMBEDDING else 0
    if len(a) != len(b) or len(a) not in (2, 3) or 0 in (*a, *b) or a[-2:][rank] != b[-1] or a[:-2] != b[:-2]:
        expected = "[vocab, r] and [out, r]" if rank else "[r, in] and [out, r], or the same of each expert"
        yield Problem("shape", module, f"lora_a {list(a)}, lora_b {list(b)}", expected)


def _delta(module: str, a: Tensor, b: Tensor, alpha: float) -> LowRank:
    if module == _EMBEDDING:
        return LowRank(Tensor.of(np.ascontiguousarray(a.numpy().T)), b, alpha, embedding=True)
    if len(a.shape) == 2:
        return LowRank(a, b, alpha)
    experts, rank, columns = a.shape
    B = Tensor.of(np.ascontiguousarray(b.numpy().transpose(1, 2, 0).reshape(b.shape[1], -1)))
    return LowRank(a.reshape(experts * rank, columns), B, alpha, experts=experts)


def write(plan: Plan, path: Path) -> None:
    """Writes every delta of a complete plan into the new file ``path``.

    Raises :class:`RefusedError` for sites that llama.cpp has no name for.
    """
    _require_servable(plan)
    found = spoken(plan, NAME)
    require_untied(plan, found, "ends llama.cpp")
    first = found[0].deltas[0]
    tensors = {name: tensor for each in found for name, tensor in _tensors(each)}
    metadata: dict[str, tuple[gguf_file.Kind, gguf_file.Value]] = {
        "general.architecture": ("string", vocabulary_of(plan, NAME).table.called),
        "general.type": ("string", "adapter"),
        "general.name": ("string", plan.bound.adapter.name),
        "adapter.type": ("string", "lora"),
        _ALPHA: ("float32", _alpha(plan, first)),
        **_base(plan.bound.adapter.base),
    }
    tokens = plan.bound.adapter.provenance.config.get("alora_invocation_tokens")
    if tokens:
        metadata[_INVOCATION] = ("uint32s", list(tokens))
    gguf_file.write(path, tensors, metadata)


def _alpha(plan: Plan, first: LowRank) -> float:
    """The alpha of the file. Raises :class:`RefusedError` for one that a number of 32 bits does not hold, or 0."""
    alpha = first.scale * first.rank
    with np.errstate(over="ignore", under="ignore"):
        held = float(np.float32(alpha))
    if not held or not isfinite(held):
        found = f"alpha is {alpha:g}, which is {held:g} in a GGUF file, and llama.cpp takes 0 for a scale of 1"
        remedy = "Scale the adapter first: adaptrix combine SRC --weights 1 -o OUT, or drop it."
        raise RefusedError(Problem("overflow", plan.bound.adapter.name, found, "a number of 32 bits, not 0", remedy))
    return alpha


def _base(name: str | None) -> dict[str, tuple[gguf_file.Kind, gguf_file.Value]]:
    """The entries that name the base, where it is a repository."""
    if name is None or name.count("/") != 1 or name.startswith((".", "/")):
        return {}
    owner, _, model = name.partition("/")
    return {
        "general.base_model.count": ("uint32", 1),
        "general.base_model.0.name": ("string", model),
        "general.base_model.0.organization": ("string", owner),
        "general.base_model.0.repo_url": ("string", f"{_HUB}{name}"),
    }


def _require_servable(plan: Plan) -> None:
    """Raises :class:`RefusedError` for a condition that is not that of an activated LoRA."""
    adapter = plan.bound.adapter
    tokens = adapter.provenance.config.get("alora_invocation_tokens")
    if tokens and not _are_tokens(tokens):
        found = f"its invocation tokens are {tokens!r:.80}"
        raise RefusedError(Problem("conditional", adapter.name, found, "tokens that 32 bits hold", "Run it with peft."))
    others = [key for key in CONDITIONS if key != "alora_invocation_tokens" and adapter.provenance.config.get(key)]
    if others:
        found = f"its config has {' and '.join(others)}, which llama.cpp does not know"
        raise RefusedError(Problem("conditional", adapter.name, found, "a LoRA for all tokens", "Run it with peft."))


def _tensors(each: Spoken) -> Iterator[tuple[str, Tensor]]:
    A, B = each.factors()
    yield f"{each.name}.weight.lora_a", Tensor.of(np.ascontiguousarray(A.numpy().T)) if each.embedding else A
    yield f"{each.name}.weight.lora_b", B
