"""Tuning: the same number of trials and the same grid for every arm, judged on validation rows.

A winner at the edge of a shared axis widens that axis once, for every arm. If the winner is still at the
edge, the arm may be better than it looks, and the verdict says so (``verdict.with_edges``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from trueup.lab.scoring import Metric
from trueup.lab.spec import Axis, Value

Side: TypeAlias = Literal["low", "high"]


@dataclass(frozen=True)
class Trial:
    """One setting and its validation scores, one a tuning seed."""

    hyper: Mapping[str, Value]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))


@dataclass(frozen=True)
class Tuned:
    """The outcome of tuning one arm at one condition."""

    trials: tuple[Trial, ...]
    winner: Mapping[str, Value]
    edge: tuple[str, ...] = ()
    widened: bool = False


def choose(trials: Sequence[Trial], metric: Metric) -> Trial:
    """The trial with the best mean score; of those equal to rounding the first listed."""
    sign = 1 if metric.higher else -1
    top = max(sign * trial.mean for trial in trials)
    return next(trial for trial in trials if sign * trial.mean >= top - 1e-12 * max(1.0, abs(top)))


def edges(axes: Sequence[Axis], winner: Mapping[str, Value]) -> dict[str, Side]:
    """The ordered axes at whose end the winner sits, and which end; natural limits are no edges."""
    found: dict[str, Side] = {}
    for axis in axes:
        if not axis.ordered:
            continue
        value = winner[axis.name]
        if value == axis.values[0] and axis.values[0] > axis.low:  # type: ignore[operator]
            found[axis.name] = "low"
        elif value == axis.values[-1] and axis.values[-1] < axis.high:  # type: ignore[operator]
            found[axis.name] = "high"
    return found


def widen(axis: Axis, sides: set[Side]) -> Axis:
    """One more value at each side: by the grid's own ratio if all values are > 0, else by its step.

    >>> widen(Axis("lr", (0.1, 0.3)), {"high"}).values
    (0.1, 0.3, 0.9)
    """
    values = list(axis.values)
    for side in sorted(sides):
        end, inner = (values[0], values[1]) if side == "low" else (values[-1], values[-2])
        assert isinstance(end, (int, float))
        assert isinstance(inner, (int, float))
        positive = all(v > 0 for v in values)  # type: ignore[operator]
        number = end * end / inner if positive else end + (end - inner)
        number = min(max(number, axis.low), axis.high)
        value = round(number) if all(isinstance(v, int) for v in values) else float(f"{number:.6g}")
        if value not in values:
            values = [value, *values] if side == "low" else [*values, value]
    return replace(axis, values=tuple(values))
