"""Fake quantisation of a 4096 x 4096 weight against plain forms of the official code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.harness import Row
from trueup.quantization import fake_quantize_fp4, fake_quantize_int4

OFFICIAL = "official form, re-implemented"
GROUP = 256


def official_fp4(x: Tensor, keep_top: int = 2) -> Tensor:
    """Use whole-tensor operations, a mask of the largest magnitudes, and each value's exponent."""
    groups = x.reshape(-1, GROUP)
    top = groups.abs().topk(keep_top, dim=1).indices
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, top, True)
    rest = torch.where(kept, torch.zeros_like(groups), groups)
    alpha = rest.abs().amax(1, keepdim=True).clamp(min=1e-6)
    normalised = rest / alpha
    exponent = torch.floor(torch.log2(normalised.abs().clamp(min=1e-12)) + 1).clamp(min=1)
    spacing = 2.0 ** (exponent - 1 - 2)
    rounded = torch.round(normalised / spacing) * spacing * alpha
    return torch.where(kept, groups, rounded).view_as(x)


def official_int4(x: Tensor) -> Tensor:
    groups = x.reshape(-1, GROUP)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / 15
    zero = (-torch.round(low / scale)).clamp(0, 15)
    codes = torch.clamp(torch.round(groups / scale) + zero, 0, 15)
    return ((codes - zero) * scale).view_as(x)


def rows() -> Iterator[Row]:
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    for name, ours, theirs in (
        ("FP4", lambda: fake_quantize_fp4(weight), lambda: official_fp4(weight)),
        ("INT4", lambda: fake_quantize_int4(weight), lambda: official_int4(weight)),
    ):
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-3)
        yield Row(f"{name} fake quantisation, 4096 x 4096", OFFICIAL, 0.5, ours, theirs)
