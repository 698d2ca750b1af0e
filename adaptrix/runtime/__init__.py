"""Adapters on a live model: forward hooks and nothing else. Needs torch; the rest of Adaptrix does not."""
