"""Base models: their files and tensors, their weights by site, their singular vectors, and the model itself."""
