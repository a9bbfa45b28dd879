"""Checks of the inputs and settings of layers for `(N, C, ...)`, and their result for an empty input."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import torch.distributed as dist
from torch import Tensor

__all__ = [
    "check_choice",
    "check_eps",
    "check_input",
    "check_int",
    "check_momentum",
    "check_rank",
    "check_unit_interval",
    "empty_result",
    "has_single_value_per_channel",
]


def check_input(layer: str, input: Tensor, per_channel: Mapping[str, Tensor | None]) -> None:
    """Check that the input is floating point and that each vector has one value per channel.

    Args:
        layer: its name, for the errors.
        input: `(N, C, ...)`, of at least 16 bits per value.
        per_channel: named parameters and statistics, each `(C,)` or None.

    Raises:
        TypeError: the input or a vector is not floating point.
        ValueError: a shape does not fit, or only one of two running statistics is given.
    """
    if not input.is_floating_point() or input.dtype.itemsize < 2:
        raise TypeError(f"{layer} needs a floating point input; got {input.dtype}: convert with .float()")
    if input.dim() < 2:
        raise ValueError(
            f"{layer} needs input (N, C, ...); got shape {tuple(input.shape)}: unsqueeze a batch dimension"
        )
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
        raise ValueError(
            "running_mean and running_var go together; got only one of them: pass both or neither"
        )


def check_rank(layer: str, input: Tensor, ranks: tuple[int, ...], shape: str) -> None:
    """Check that the input has as many dimensions as the layer is for."""
    if input.dim() not in ranks:
        raise ValueError(
            f"{layer} needs input {shape}; got shape {tuple(input.shape)}: "
            "use the layer for that number of dimensions"
        )


def check_int(name: str, value: int, minimum: int | None = None) -> None:
    """Check that a setting is an int (no bool), and at least `minimum` if given."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")


def check_unit_interval(name: str, value: float, otherwise: str = "") -> None:
    """Check that a setting is a number in [0, 1]; `otherwise` ends the error with what else is allowed."""
    _check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1]{otherwise}; got {value}")


def check_momentum(momentum: float | None) -> None:
    """Check that a momentum is a number in [0, 1] or None."""
    if momentum is not None:
        check_unit_interval("momentum", momentum, ", or None for the plain average")


def check_eps(eps: float, name: str = "eps", *, zero: bool = True) -> None:
    """Check that an eps is a number and not negative, nor 0 unless `zero` allows it."""
    _check_number(name, eps)
    if not (eps >= 0 if zero else eps > 0):
        must = (
            "must not be negative"
            if zero
            else "must be positive, it keeps constant inputs from dividing by 0"
        )
        raise ValueError(f"{name} {must}; got {eps}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that a setting is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {value!r}")


def has_single_value_per_channel(input: Tensor, process_group: dist.ProcessGroup | None) -> bool:
    """Return whether the batch has one value per channel; False where other processes may hold more."""
    alone = process_group is None or dist.get_world_size(process_group) == 1
    return alone and input.numel() == input.shape[1]


def empty_result(input: Tensor, *parameters: Tensor | None) -> Tensor:
    """Return an empty result that gives every parameter a gradient of zero rather than none."""
    nothing = sum(p.sum() for p in parameters if p is not None)
    return (input + 0 * nothing).to(input.dtype)
