"""Checks of hyperparameters, parameters and gradients that several optimizers share.

They read no value from a device.
"""

from __future__ import annotations

import math
import operator
from typing import SupportsIndex

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


def check_range(
    name: str, value: object, low: float, high: float = math.inf, *, open_end: bool = False
) -> None:
    """Raise ValueError unless low <= value <= high (< high with `open_end`).

    One-element tensors pass, since reading one could synchronise.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name} must be a number or a tensor of one element; got shape {tuple(value.shape)}"
            )
        return
    if not (low <= value < high if open_end else low <= value <= high):  # type: ignore[operator]
        interval = f"[{low:g}, {high:g}{')' if open_end else ']'}" if high < math.inf else f"at least {low:g}"
        raise ValueError(f"{name} must be {'in ' if high < math.inf else ''}{interval}; got {value}")


def check_step_size(lr: float | Tensor) -> None:
    """Raise ValueError unless lr is finite and above 0; the value of a tensor is not read."""
    check_range("lr", lr, 0)
    if not isinstance(lr, Tensor) and not 0 < lr < math.inf:
        raise ValueError(
            f"lr must be finite and above 0; got {lr}. 100 is a good choice for features of norm 1"
        )


def check_count(name: str, value: object, low: int) -> None:
    """Raise ValueError unless the value is an integer of at least `low`."""
    if not isinstance(value, SupportsIndex) or operator.index(value) < low:
        raise ValueError(f"{name} must be an integer, at least {low}; got {value!r}")


def check_decays(name: str, values: object, count: int) -> None:
    """Raise ValueError unless `values` are `count` numbers in [0, 1)."""
    if not isinstance(values, tuple | list) or len(values) != count:
        raise ValueError(f"{name} must be {('two', 'three')[count - 2]} numbers; got {values!r}")
    for index, value in enumerate(values):
        check_range(f"{name}[{index}]", value, 0, 1, open_end=True)


def check_variant(value: object) -> None:
    """Raise ValueError unless the value names one of the two variants."""
    if value not in ("paper", "official"):
        raise ValueError(f"variant must be 'paper' or 'official'; got {value!r}")


def check_last_group_is_real(optimizer: Optimizer) -> None:
    """Raise RuntimeError, and drop the group added last, if that group has a complex parameter."""
    for param in optimizer.param_groups[-1]["params"]:
        if param.is_complex():
            del optimizer.param_groups[-1]
            raise RuntimeError(
                f"{type(optimizer).__name__} needs real parameters; got one of dtype {param.dtype} and shape "
                f"{tuple(param.shape)}. Store real and imaginary parts (torch.view_as_real)"
            )


def checked_gradient(name: str, grad: Tensor) -> Tensor:
    """Return a gradient, or raise RuntimeError if it is sparse or complex; `name` is the optimizer's."""
    if grad.layout != torch.strided or grad.is_complex():
        raise RuntimeError(
            f"{name} needs dense real gradients; got layout {grad.layout} and dtype {grad.dtype}. Build the "
            "embedding with sparse=False or give it an optimizer of its own (torch.optim.SparseAdam), and "
            "store a complex parameter as real and imaginary parts (torch.view_as_real)"
        )
    return grad
