"""Steps until a linear classifier separates two classes: problems, exact deviations and a contrast."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from trueup import data
from trueup.lab import Contrast, SeedCells, custom
from trueup.optim import large_step_descent, worst_case_problem

Mode: TypeAlias = Literal[
    "lrgd", "normalized", "batch_perceptron", "normalized_batch_perceptron", "unit_gradient", "inverse_loss"
]


def steps_to_separate(mode: Mode, lr: float, n: int, most: int = 20_000) -> int:
    """Count the steps from zero, `most` at most, until the worst-case problem of n samples is separated."""
    X, y = worst_case_problem(n)
    descent = large_step_descent(y[:, None] * X, lr, mode)
    return next((t for t, (_, m) in enumerate(descent) if m.min() > 0 or t == most), most)


def from_limit(limits: Iterable[tuple[Mode, Mode]], first: int, second: int) -> float:
    """Compute the largest |theta_t / lr - limit_t| at lr = 1e8, until the limit separates two digits.

    Args:
        limits: modes, each with the mode whose iterates at a step size of 1 it should approach.
    """
    digits = data.load("digits")
    X, y = digits.X / 16, np.asarray(digits.y)
    rows = np.flatnonzero((y == first) | (y == second))
    features = np.column_stack([X[rows], np.ones(len(rows))])
    Z = torch.from_numpy(np.where(y[rows] == second, 1.0, -1.0)[:, None] * features)
    worst = 0.0
    for mode, limit in limits:
        for now, of_limit in zip(large_step_descent(Z, 1e8, mode), large_step_descent(Z, 1.0, limit)):
            worst = max(worst, float((now.theta / 1e8 - of_limit.theta).abs().max()))
            if of_limit.margins.min() > 0:
                break
    return worst


def steadier(method: str, other: str, metric: str, over: str, groups: Sequence[dict[str, Any]]) -> Contrast:
    """Compare by which factor a metric varies over a sweep; the log of the ratio, averaged over `groups`.

    Args:
        over: the condition that is swept.
        groups: values of the other conditions, one sweep for each.
    """

    def factor(cells: SeedCells, arm: str) -> float:
        sweeps = [cells.sweep(arm, metric, over, at)[1] for at in groups]
        return float(np.mean([math.log(max(values) / min(values)) for values in sweeps]))

    return custom(
        lambda cells: factor(cells, other) - factor(cells, method),
        (method, other),
        text=f"log of (most / fewest {metric} over the sweep): {other} - {method}",
        metrics=(metric,),
        against=lambda control: steadier(method, control, metric, over, groups),
    )


def misled(arm: str, low: float, high: float, at: dict[str, Any]) -> Contrast:
    """Contrast two step sizes of one arm: at the high one its loss peaks higher, yet it needs fewer steps.

    The value is the log of the smaller of the two factors.
    """

    def value(cells: SeedCells) -> float:
        (_, slow, _), (_, fast, _) = (cells.select(arm, {"lr": lr} | at)[0] for lr in (low, high))
        return math.log(min(fast["peak_loss"] / slow["peak_loss"], slow["steps"] / fast["steps"]))

    text = "the smaller of two logs: peak loss up, steps down"
    return custom(value, (arm,), metrics=("steps",), text=text)
