"""From an adapter as a checkpoint names it to one whose every delta has a checked place in a model."""
