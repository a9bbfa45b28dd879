"""Fused forms of the layers, each tested against the equation in its method's file."""
