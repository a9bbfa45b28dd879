"""What the layers of `(N, C, ...)` ask of an input and of their settings, and their answer to no input."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import torch.distributed as dist
from torch import Tensor

__all__ = [
    "check_eps",
    "check_input",
    "check_int",
    "check_momentum",
    "check_rank",
    "check_unit_interval",
    "empty_result",
    "has_single_value_per_channel",
]


def check_input(what: str, input: Tensor, per_channel: Mapping[str, Tensor | None]) -> None:
    """Floating point of 16 bits or more, with channels, and each vector with an element for each of them.

    Raises:
        TypeError, ValueError: which of these does not hold, in the words of the layer ``what``.
    """
    if not input.is_floating_point() or input.dtype.itemsize < 2:
        raise TypeError(f"{what} needs a floating point input; got {input.dtype}: convert with .float()")
    if input.dim() < 2:
        raise ValueError(f"{what} needs input (N, C, ...); got shape {tuple(input.shape)}")
    for name, value in per_channel.items():
        if value is not None and tuple(value.shape) != (input.shape[1],):
            raise ValueError(
                f"input of shape {tuple(input.shape)} has {input.shape[1]} channels, but {name} has shape "
                f"{tuple(value.shape)}: build the layer with num_features={input.shape[1]}, or move the "
                "channels to dimension 1"
            )
    for name, value in per_channel.items():
        if value is not None and not value.is_floating_point():
            raise TypeError(f"{name} must be floating point; got {value.dtype}: convert with .float()")
    running = [value is None for name, value in per_channel.items() if name.startswith("running_")]
    if any(running) and not all(running):
        raise ValueError("running_mean and running_var go together; got only one of them")


def check_rank(what: str, input: Tensor, ranks: tuple[int, ...], shape: str) -> None:
    """As many dimensions as the layer ``what`` is for."""
    if input.dim() not in ranks:
        raise ValueError(
            f"{what} needs input {shape}; got shape {tuple(input.shape)}: "
            "use the layer for that number of dimensions"
        )


def check_int(name: str, value: int, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


def check_unit_interval(name: str, value: float, otherwise: str = "") -> None:
    """A number in [0, 1]."""
    _check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1]{otherwise}; got {value}")


def check_momentum(momentum: float | None) -> None:
    if momentum is not None:
        check_unit_interval("momentum", momentum, ", or None for the plain average")


def check_eps(eps: float, name: str = "eps", *, zero: bool = True) -> None:
    _check_number(name, eps)
    if not (eps >= 0 if zero else eps > 0):
        must = (
            "must not be negative"
            if zero
            else "must be positive, it keeps constant inputs from dividing by 0"
        )
        raise ValueError(f"{name} {must}; got {eps}")


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {value!r}")


def has_single_value_per_channel(input: Tensor, process_group: dist.ProcessGroup | None) -> bool:
    """Is there a single value per channel, as far as this process knows?"""
    alone = process_group is None or dist.get_world_size(process_group) == 1
    return alone and input.numel() == input.shape[1]


def empty_result(input: Tensor, *parameters: Tensor | None) -> Tensor:
    """An empty result that gives every parameter a gradient of zero rather than none."""
    nothing = sum(p.sum() for p in parameters if p is not None)
    return (input + 0 * nothing).to(input.dtype)
