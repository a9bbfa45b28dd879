"""Computation in float32 or better: conversion of inputs, parameters and statistics of half types."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["upcast", "upcast_dtype", "upcast_parameters"]


def upcast_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in for values of a floating `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def upcast(t: Tensor) -> Tensor:
    """Return the tensor in float32 or better.

    Half types have too few bits for a mean of squares, and float16 overflows at 65504.
    """
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def upcast_parameters(input: Tensor, *parameters: Tensor | None) -> list[Any]:
    """Convert parameters and statistics to the dtype in which `input` is upcast; None stays None."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    return [None if p is None else p.to(dtype) for p in parameters]
