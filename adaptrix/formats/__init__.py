"""Ways adapters are written to files, and the safe readers of the containers they use."""
