"""Fused forms of the layers; each is tested against the equation in the file of its method."""
