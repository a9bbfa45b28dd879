"""Checks of predictions and labels that measures and calibrators share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trueup._numerics.upcasting import upcast

__all__ = ["ArrayLike", "as_rows", "check_logits", "check_probs", "check_target"]

ArrayLike = Tensor | NDArray[np.floating] | NDArray[np.integer]

# Rows of float32 probabilities sum to 1 up to about 1e-6; rounded tables from files up to about 1e-3.
SUM_TOLERANCE = 1e-3


def check_logits(logits: ArrayLike) -> Tensor:
    """Return logits `(N,)` or `(N, C, *positions)` as `(N,)` or `(N * positions, C)`, in float32 or better.

    Raises:
        TypeError: not floating point.
        ValueError: empty, or a value is NaN or infinite (-inf is allowed beside a finite logit).
    """
    values = as_rows(logits, "logits")
    if values.isnan().any():
        raise ValueError("logits contain NaN: remove these rows, or find out where the model diverged")
    largest = values if values.dim() == 1 else values.amax(1)
    if not largest.isfinite().all():
        raise ValueError(
            "logits contain +inf, or rows of -inf only, which have no softmax: clamp them to finite values"
        )
    return values


def check_probs(probs: ArrayLike) -> Tensor:
    """Return probabilities `(N,)` or `(N, C, *positions)` as `(N,)` or `(N * positions, C)`.

    `(N,)` is the probability of class 1 in a binary problem. The result is in float32 or better.

    Raises:
        TypeError: not floating point.
        ValueError: empty, NaN, outside [0, 1], or a row does not sum to 1 within 1e-3.
    """
    values = as_rows(probs, "probabilities")
    low, high = (float(v) for v in torch.aminmax(values))
    if not (low >= 0 and high <= 1):  # NaN fails here too
        if values.isnan().any():
            raise ValueError("probabilities contain NaN: remove these rows, or find out where they come from")
        raise ValueError(
            f"probabilities must be in [0, 1]; got values from {low:.4g} to {high:.4g}: "
            "if these are logits, pass from_logits=True"
        )
    if values.dim() == 2:
        ones = values.new_ones(values.shape[1])
        error = float((values @ ones - 1).abs().max())  # faster than sum(1)
        if error > SUM_TOLERANCE:
            raise ValueError(
                f"every row of probabilities must sum to 1; one is off by {error:.4g}: if these are logits, "
                "pass from_logits=True; independent labels are measured one by one, as (N,) each"
            )
    return values


def check_target(target: ArrayLike, rows: int, classes: int) -> Tensor:
    """Return class labels `(N, *positions)` as `(rows,)` in int64.

    Raises:
        TypeError: not integers.
        ValueError: another number of labels than rows, or a label outside `[0, classes)`.
    """
    labels = torch.as_tensor(target)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"target must be class indices; got {labels.dtype}: convert with .long()")
    labels = labels.flatten().long()
    if len(labels) != rows:
        raise ValueError(
            f"predictions and target must have the same number of rows; got {rows} and {len(labels)}"
        )
    low, high = (int(v) for v in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise ValueError(
            f"target must be in [0, {classes}), since there are {classes} classes; got labels from {low} to "
            f"{high}: drop ignored rows, or renumber the classes from 0"
        )
    return labels


def as_rows(values: ArrayLike, name: str) -> Tensor:
    """Return `(N,)` as it is and `(N, C, *positions)` as `(N * positions, C)`, unchecked.

    In float32 or better.

    Raises:
        TypeError: not floating point.
        ValueError: empty.
    """
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # torch warns about read-only memory, although nothing here writes to it
    tensor = torch.as_tensor(values).detach()
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {tensor.dtype}: convert with .float()")
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise ValueError(
            f"{name} must be (N,), (N, C) or (N, C, *positions) with at least one row; "
            f"got shape {tuple(tensor.shape)}"
        )
    tensor = upcast(tensor)
    return tensor if tensor.dim() <= 2 else tensor.movedim(1, -1).flatten(0, -2)
