"""Names of derived roles and dimensions: the field's own words for well-known modules and keys, else their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_ROLES = {
    "q": "q q_proj q_lin query",
    "k": "k k_proj k_lin key",
    "v": "v v_proj v_lin value",
    "o": "o o_proj out_proj out_lin",
    "qkv": "qkv qkv_proj query_key_value c_attn Wqkv",
    "gate": "gate_proj wi_0",
    "up": "up_proj fc1 fc_in c_fc dense_h_to_4h lin1 wi wi_1",
    "down": "down_proj fc2 fc_out dense_4h_to_h lin2 wo",
    "gate_up": "gate_up_proj",
    "embed": "embed_tokens word_embeddings wte embed_in shared embeddings",
    "embed_positions": "wpe embed_positions position_embeddings position_embedding",
    "embed_types": "token_type_embeddings",
    "head": "lm_head embed_out",
    "classifier": "score",
    "qa": "qa_outputs",
    "pooler": "pooler.dense",
}
_DIMS = {
    "hidden": "hidden_size d_model n_embd n_embed dim",
    "layers": "num_hidden_layers n_layer n_layers num_layers",
    "encoder_layers": "num_encoder_layers",
    "decoder_layers": "num_decoder_layers",
    "heads": "num_attention_heads n_head n_heads num_heads",
    "kv_heads": "num_key_value_heads num_kv_heads",
    "head_dim": "head_dim d_kv",
    "inner": "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size",
    "vocab": "vocab_size",
    "positions": "max_position_embeddings n_positions",
    "types": "type_vocab_size",
    "experts": "num_experts num_local_experts n_routed_experts",
    "expert_inner": "moe_intermediate_size",
}
_ROLE_OF = {module: role for role, modules in _ROLES.items() for module in modules.split()}
_DIM_OF = {key: dim for dim, keys in _DIMS.items() for key in keys.split()}


def role_names(patterns: Iterable[str]) -> dict[str, str]:
    """A role name for every path pattern: the module's, with as many of its parents' as make it unique."""
    return _distinct(list(patterns), _role_name)


def dim_names(keys: Iterable[str]) -> dict[str, str]:
    """A dimension name for every config key; ``vision_config.hidden_size`` is ``vision_hidden`` if need be."""
    return _distinct(list(keys), _dim_name)


def _distinct(things: list[str], name: Callable[[str, int], str]) -> dict[str, str]:
    """The shortest names that are all different; where no parent distinguishes two, they are numbered."""
    named: dict[str, str] = {}
    open_, parents = things, 0
    while open_ and parents < 12:
        proposed = {thing: name(thing, parents) for thing in open_}
        used = [*named.values(), *proposed.values()]
        named |= {thing: text for thing, text in proposed.items() if used.count(text) == 1}
        open_, parents = [thing for thing in open_ if thing not in named], parents + 1
    for thing in open_:
        own = _word(thing)
        named[thing] = own if own not in named.values() else f"{own}_{len(named)}"
    return {thing: named[thing] for thing in things}


def _role_name(pattern: str, parents: int) -> str:
    steps = [step for step in pattern.split(".") if step not in ("{layer}", "{expert}")]
    while len(steps) > 1 and steps[-1].isdigit():
        steps[-2:] = ["_".join(steps[-2:])]  # an index says nothing without the name of its list
    *above, leaf = steps or ["layer"]
    words = [*above[len(above) - parents :], _ROLE_OF.get(".".join(steps[-2:]), _ROLE_OF.get(leaf, leaf))]
    return _word("_".join(words))


def _dim_name(key: str, parents: int) -> str:
    *above, leaf = key.split(".")
    if parents > len(above):
        return _word(key)  # two keys of one meaning: each under its own name
    words = [step.removesuffix("_config") for step in above[len(above) - parents :]]
    return _word("_".join([*words, _DIM_OF.get(leaf, leaf)]))


def _word(text: str) -> str:
    word = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return word if word[:1].isalpha() else f"n_{word}"
