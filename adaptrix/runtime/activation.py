"""Adapters whose config asks for activation: their invocation tokens, and what of them cannot be served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from adaptrix.adapter import Adapter
from adaptrix.architecture import Site
from adaptrix.delta import LowRank
from adaptrix.errors import Problem, refuse
from adaptrix.runtime.extras import ExtraTarget
from adaptrix.runtime.parameter_kernel import ParameterKernel


def invocation(adapter: Adapter) -> tuple[int, ...]:
    """The invocation tokens of an activated LoRA; none for an adapter that acts on every token.

    Raises :class:`RefusedError` for tokens that are none, which would let it act on every token.
    """
    found = adapter.provenance.config.get("alora_invocation_tokens")
    if not found:
        return ()
    if not (isinstance(found, list | tuple) and all(type(token) is int and token >= 0 for token in found)):
        said = f"its invocation tokens are {found!r:.80}"
        raise refuse("config-value", adapter.name, said, "a list of whole numbers of at least 0")
    return tuple(found)


def unactivatable(adapter: Adapter, model: nn.Module) -> Iterator[Problem]:
    """A problem for each thing about an activated LoRA on this model that neither peft nor a session can run."""
    if not invocation(adapter):
        return
    can: Any = getattr(model, "can_generate", None)
    if can is None or not can() or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        found = f"an activated LoRA on a {type(model).__name__}, which does not continue the text that it reads"
        yield Problem("conditional", adapter.name, found, "a causal language model", "Attach it to one of its base.")
    count = getattr(_embedding(model), "num_embeddings", None)
    if count is not None and (strange := [token for token in invocation(adapter) if token >= count]):
        found = f"its invocation tokens {strange} are none of the model's {count}, so that it would never act"
        remedy = "model.resize_token_embeddings(…), as its tokenizer says, before it is attached."
        yield Problem("conditional", adapter.name, found, "tokens of the model", remedy)
    for target, delta in adapter.deltas.items():
        if not isinstance(delta, LowRank) or delta.magnitude is not None or delta.embedding:
            found = "an activated delta that is no plain LoRA of a linear layer, which peft does not run either"
            yield Problem("conditional", f"{adapter.name} {target}", found, "A and B of a linear layer")


def _embedding(model: nn.Module) -> nn.Module | None:
    """The model's embedding of tokens, where it says which that is."""
    get: Any = getattr(model, "get_input_embeddings", None)
    try:
        found = None if get is None else get()
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None


def ungated(adapter: Adapter, extras: Iterable[ExtraTarget]) -> Iterator[Problem]:
    """A problem for each extra of an activated LoRA that acts: it would do so before the invocation, too."""
    for place in extras if invocation(adapter) else ():
        found = "a tensor that replaces the base's, beside an activated LoRA: it would act before the invocation"
        remedy = "Attach one without it; `adaptrix convert` keeps it."
        yield Problem("conditional", f"{adapter.name} {place.reached.name}.{place.leaf}", found, "deltas alone", remedy)


def ungateable(adapter: Adapter, kernels: Mapping[Site, object]) -> Iterator[Problem]:
    """A problem for each change of a parameter that its module reads itself: it acts on all tokens or on none."""
    for site, kernel in kernels.items() if invocation(adapter) else ():
        if isinstance(kernel, ParameterKernel):
            found, remedy = f"an activated LoRA on {ParameterKernel.described}", "Run it with peft."
            yield Problem("conditional", f"{adapter.name} {site}", found, "deltas on linear layers", remedy)
