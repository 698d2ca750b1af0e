"""Binding of adapters: from deltas by module path to deltas by site, each checked against a model's dims."""
