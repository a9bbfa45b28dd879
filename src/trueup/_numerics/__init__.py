"""Numerics that methods share: upcasting, chunking, moments, per-channel views, custom functions."""
