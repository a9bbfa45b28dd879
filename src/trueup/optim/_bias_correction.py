"""Bias corrections of running means, 1 - beta^t, exact in float32.

Computed plainly, float32's 1 - 0.999^t keeps only four digits, and 1 - 0.99999^t two. Tensors go through
`expm1`, which keeps all of them.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

#: What the equations of AdaClip and AdaGN take: numbers, or tensors of one number per gradient.
Scalar = TypeVar("Scalar", float, Tensor)


def bias_correction(beta: Any, t: Any) -> Any:
    """Return 1 - beta^t; `beta` and `t` are numbers or tensors."""
    if isinstance(beta, Tensor):
        return -torch.expm1(t * beta.log())
    if isinstance(t, Tensor):
        return -torch.expm1(t * (math.log(beta) if beta else -math.inf))
    return 1 - beta**t


def bias_corrections(beta: float, steps: list[Tensor]) -> tuple[Tensor, ...]:
    """Return 1 - beta^t for each 0-d tensor t."""
    corrections = torch._foreach_mul(steps, math.log(beta) if beta else -math.inf)
    torch._foreach_expm1_(corrections)
    torch._foreach_neg_(corrections)
    return corrections
