"""Checks of predictions and labels that measures and calibrators share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trueup._numerics.upcasting import upcast

__all__ = [
    "ArrayLike",
    "as_rows",
    "check_label_shape",
    "check_logits",
    "check_probs",
    "check_target",
    "from_numpy",
    "sum_tolerance",
]

ArrayLike = Tensor | NDArray[np.floating] | NDArray[np.integer]


def sum_tolerance(dtype: torch.dtype) -> float:
    """Return how far from 1 a row of probabilities may sum.

    Float32 rows sum to 1 up to about 1e-6, rounded tables from files up to about 1e-3, bfloat16 up to 4e-3.
    """
    return max(1e-3, torch.finfo(dtype).eps)


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


def check_probs(values: Tensor, tolerance: float = 1e-3) -> Tensor:
    """Return probabilities `(N,)`, of class 1 in a binary problem, or `(N, C)`, as they are.

    Raises:
        ValueError: NaN, outside [0, 1], or a row does not sum to 1 within the tolerance.
    """
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
        if error > tolerance:
            raise ValueError(
                f"every row of probabilities must sum to 1; one is off by {error:.4g}: if these are logits, "
                "pass from_logits=True; independent labels are measured one by one, as (N,) each"
            )
    return values


def check_target(target: ArrayLike, predictions: tuple[int, ...], classes: int) -> Tensor:
    """Return class labels `(N, *positions)` as `(N * positions,)` in int64.

    Args:
        target: the labels; `(N, 1)` counts as `(N,)`.
        predictions: shape of the predictions that they belong to, `(N,)` or `(N, C, *positions)`.
        classes: C.

    Raises:
        TypeError: not integers.
        ValueError: another shape than the predictions', or a label outside `[0, classes)`.
    """
    labels = from_numpy(target)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"target must be class indices; got {labels.dtype}: convert them to integers")
    check_label_shape("target", labels, predictions)
    labels = labels.flatten().long()
    low, high = (int(v) for v in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise ValueError(
            f"target must be in [0, {classes}), since there are {classes} classes; got labels from {low} to "
            f"{high}: drop ignored rows, or renumber the classes from 0"
        )
    return labels


def check_label_shape(name: str, labels: Tensor | NDArray[Any], predictions: tuple[int, ...]) -> None:
    """Raise ValueError unless there is one value per prediction, in the same order of positions."""
    shape = predictions[:1] + predictions[2:]
    if tuple(labels.shape) not in (shape, (*shape, 1)):
        raise ValueError(
            f"{name} must have shape {shape}, one value per prediction of shape {predictions}; got "
            f"{tuple(labels.shape)}: bring rows and positions into the same order"
        )


def from_numpy(values: Any) -> Tensor:
    """Return an array as a tensor that shares its memory where torch can; a tensor as it is."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # torch warns about read-only memory, although nothing here writes to it, and has no negative strides.
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.as_tensor(array)


def as_rows(values: ArrayLike, name: str) -> Tensor:
    """Return `(N,)` as it is and `(N, C, *positions)` as `(N * positions, C)`, unchecked.

    In float32 or better.

    Raises:
        TypeError: not floating point.
        ValueError: empty.
    """
    tensor = from_numpy(values).detach()
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {tensor.dtype}: convert with .float()")
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise ValueError(
            f"{name} must be (N,), (N, C) or (N, C, *positions) with at least one row; "
            f"got shape {tuple(tensor.shape)}"
        )
    tensor = upcast(tensor)
    return tensor if tensor.dim() <= 2 else tensor.movedim(1, -1).flatten(0, -2)
