"""Shared numerics: upcasting, chunking, moments, per-channel views and custom functions."""
