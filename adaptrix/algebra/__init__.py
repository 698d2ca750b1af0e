"""Adapters as terms of sums: combined, resized, compared, and extracted from a full fine-tune. No torch is needed."""
