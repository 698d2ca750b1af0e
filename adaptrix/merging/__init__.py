"""Merging an adapter into its base: a tensor at a time, fp32 accumulation, one rounding."""
