"""Features of adapters that not every file format can hold: a format states those that it can in ``Format.carries``.

What a format does not carry is folded (:mod:`adaptrix.planning.folding`) where that changes no ΔW, or rounds it no more
than fp32 does, and refused otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: a feature's name -> what it is, as messages say it
FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "dora": "magnitudes of DoRA",
        "bias": "biases of lora_B (lora_bias)",
        "mixed_rank": "deltas of different ranks",
        "mixed_expert_rank": "experts of different ranks, side by side",
        "mixed_scale": "deltas of different scales",
        "mixed_alpha": "deltas whose alpha, which is scale times rank, differs",
        "mixed_dora": "magnitudes of DoRA on some deltas and not on others",
        "rslora": "scales that are alpha/√r (rsLoRA)",
        "embeddings": "deltas on embeddings",
        "head": "deltas outside the layers that are on no embedding: heads, classifiers, projections",
        "experts": "stacked experts, one pair of factors for all of them",
        "extras": "tensors that are no deltas: trained heads, biases, tokens",
        "condition": "a condition of the config under which deltas act: invocation tokens, a router, repeated layers",
        "spectral": "spectral deltas",
        "parametrised": "LoRAs in another parametrisation, such as LoHa or LoKr, as a PEFT checkpoint has them",
        "reparametrised": "such LoRAs beside others, or changed, so that no PEFT config describes them",
        "scales": "(IA)³ deltas, which multiply rows or columns",
        "plan": "deltas that do not act, or act changed by a plan",
    }
)
#: all that PEFT's LoRA checkpoints hold, which is also what a format that states nothing was taken to hold
LORA = frozenset(FEATURES) - {"plan", "spectral", "mixed_dora", "parametrised", "reparametrised", "scales"}
