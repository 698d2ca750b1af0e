"""Measurements of what a plan costs: the model under it beside the fully adapted one, on a user's own text."""
