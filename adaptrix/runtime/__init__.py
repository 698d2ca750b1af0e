"""Adapters on a live model, by hooks and forwards that all come off. Needs torch; the rest of Adaptrix does not."""
