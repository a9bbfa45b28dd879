"""The check of predictions that the losses share: one row per prediction, in float32 or better."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from trueup._numerics.upcasting import upcast

__all__ = ["prediction_rows"]


def prediction_rows(loss: str, logits: Tensor) -> Float[Tensor, "rows classes"]:
    """Return predictions `(N, C, *positions)` as `(N * positions, C)`, or raise."""
    if not logits.is_floating_point():
        raise TypeError(f"{loss} needs floating point logits; got {logits.dtype}: convert with .float()")
    if logits.dim() < 2 or logits.shape[1] < 2 or logits.numel() == 0:
        raise ValueError(
            f"{loss} needs logits (N, C) or (N, C, *positions) with at least one sample and two classes; got "
            f"shape {tuple(logits.shape)}: for a single logit z per sample pass stack((zeros_like(z), z), 1)"
        )
    return upcast(logits).movedim(1, -1).flatten(0, -2)
