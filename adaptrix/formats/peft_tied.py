"""Heads that share the factors of the embedding, as peft saves them under ``ensure_weight_tying``.

peft trains no separate factors for a head that is tied to its embedding: its A is the embedding's B transposed, its B
the embedding's A transposed. The checkpoint has both, and the config lists the embedding alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from math import sqrt

from adaptrix.architecture.patterns import fullmatch
from adaptrix.errors import Problem
from adaptrix.formats.peft_config import CONFIG_NAME, PeftConfig
from adaptrix.tensor import Tensor

#: the names of tied embeddings and heads that peft knows: it ties nothing for others
_NAMES = ("embed_tokens", "lm_head")
Modules = Mapping[str, Mapping[str, Tensor]]


def tied_heads(config: PeftConfig, modules: Modules) -> dict[str, str]:
    """The modules whose factors are an embedding's, transposed -> the embedding; none where peft ties none."""
    heads = _candidates(config, modules)
    owners = {_digest(_turned(modules[path])): path for path in _embeddings(modules)} if heads else {}
    digests = {head: _digest(_pair(modules[head])) for head in heads}
    return {head: owners[digest] for head, digest in digests.items() if digest in owners}


def tied_problems(config: PeftConfig, modules: Modules, tied: Collection[str]) -> Iterator[Problem]:
    """A problem for every head that should share the factors of an embedding and has others.

    peft would load both into the same factors, the head's last. A head that the config lists is a target by itself:
    the base that it was trained on ties nothing.
    """
    for head, embedding in _candidates(config, modules).items():
        if head not in tied and not config.targets(head):
            found = f"its factors are not those of {embedding}, and {CONFIG_NAME} ties the two (ensure_weight_tying)"
            remedy = f"peft would use the head's for both: set ensure_weight_tying to false and make {head} a target."
            yield Problem("tied", head, found, "the embedding's factors, transposed", remedy)


def tied_alpha(config: PeftConfig, head: str, rank: int) -> float:
    """The alpha that gives a tied head the scale it has under peft.

    peft takes the rank of the config for the scale, and the embedding's factors whatever their rank is.
    """
    ratio = rank / (config.rank_of(head) or rank)
    return config.alpha_of(head) * (sqrt(ratio) if config.rslora else ratio)


def _ties(config: PeftConfig) -> bool:
    """True where peft ties factors: the config asks for it, and targets an embedding or a head."""
    if config.get("ensure_weight_tying") is not True:
        return False
    targets = config.get("target_modules") or ()
    if isinstance(targets, str):
        where = f"{CONFIG_NAME} target_modules"
        return any(fullmatch(targets, name, where, config.budget) for name in _NAMES)
    names = {name.rpartition(".")[2] for name in targets}
    return not names.isdisjoint(_NAMES)


def _embeddings(modules: Modules) -> list[str]:
    return [path for path, group in modules.items() if "lora_embedding_A" in group]


def _candidates(config: PeftConfig, modules: Modules) -> dict[str, str]:
    """The linear modules whose factors have the shapes of an embedding's, transposed -> one such embedding."""
    if not _ties(config):
        return {}
    shapes = {tuple(x.shape[::-1] for x in reversed(_pair(modules[path]))): path for path in _embeddings(modules)}
    found = {path: shapes.get(tuple(x.shape for x in _pair(group))) for path, group in modules.items()}
    return {path: near for path, near in found.items() if near and "lora_A" in modules[path]}


def _pair(group: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    stem = "lora_embedding_" if "lora_embedding_A" in group else "lora_"
    return group[f"{stem}A"], group[f"{stem}B"]


def _turned(embedding: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The factors of a head that is tied to an embedding."""
    A, B = (Tensor.of(x.numpy().T) for x in _pair(embedding))
    return B, A


def _digest(pair: tuple[Tensor, Tensor]) -> tuple[object, ...]:
    """A value that two pairs share only where they are equal to the last bit."""
    return tuple((x.dtype, x.shape, sha256(x.tobytes()).digest()) for x in pair)
