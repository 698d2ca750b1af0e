"""An architecture that the registry lacks, in a few lines of TOML.

A plugin would yield it from the hook ``adaptrix_architectures``; here it is read and asked directly.
"""

import tomllib

from adaptrix.extend import parse_architecture

TOML = """
family = "toy"
model_types = ["toy"]

[dims]
hidden = "d_model"
layers = "n_layers"
heads = "n_heads"
kv_heads = ["n_kv_heads", "n_heads"]
head_dim = "hidden / heads"

[roles.qkv]
path = "decoder.blocks.{layer}.attn.qkv"
in = "hidden"
layout = "grouped"
groups = "kv_heads"
parts = { q = "heads * head_dim", k = "kv_heads * head_dim", v = "kv_heads * head_dim" }
"""

toy = parse_architecture(tomllib.loads(TOML), where="toy.toml", origin="an example")
site = toy.locate("decoder.blocks.13.attn.qkv")
print(f"decoder.blocks.13.attn.qkv is {site}")
assert toy.path(site) == "decoder.blocks.13.attn.qkv"
assert toy.locate("decoder.blocks.13.attn.out") is None
