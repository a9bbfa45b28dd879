"""Protocols that several studies share, so that each trains and judges its arms by the same lines."""
