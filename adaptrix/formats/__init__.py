"""File formats of adapters, and the safe readers of the containers that they use."""
