"""Adapters on a live model, by forward hooks and forwards that all come off. Needs torch; the rest of Adaptrix does not."""
