"""Which sites act, how strongly, and what that leaves out."""
