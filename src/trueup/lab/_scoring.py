"""Score what a cell function returned: numbers, series and small arrays, and its declared metrics.

This module decides what a cell's result means, so it counts in every study's fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueup.lab._errors import StudyError

MAX_RESULT_BYTES = 256 * 1024


@dataclass(frozen=True)
class Metric:
    """A number that every cell returns, its direction, and the finite value a diverged run scores.

    Args:
        name: key in the dictionary that the cell function returns.
        higher: True if larger is better.
        worst: the score of NaN, an infinity or anything worse: chance accuracy, log of the vocabulary, ...
        unit: shown after the number; `"%"` shows fractions as percentage points.
        label: name in reports; by default `name`.
    """

    name: str
    higher: bool
    worst: float
    unit: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.worst):
            raise StudyError(
                f"metric {self.name!r}: worst must be finite, got {self.worst}: chance level is usual"
            )

    def score(self, value: float) -> tuple[float, bool]:
        """Return `(score, diverged)`: the value itself, or `worst` where it is not finite or worse than that.

        >>> Metric("accuracy", higher=True, worst=0.1).score(float("nan"))
        (0.1, True)
        """
        value = float(value)
        worse = value < self.worst if self.higher else value > self.worst
        return (self.worst, True) if not math.isfinite(value) or worse else (value, False)


@dataclass(frozen=True)
class Scored:
    """The sorted result of a cell; metrics are scored, and every number is finite."""

    diverged: bool
    numbers: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def score(metrics: Sequence[Metric], returned: Mapping[str, Any]) -> Scored:
    """Sort what a cell function returned into numbers, series and arrays, and score its metrics.

    A series keeps its gaps: values that are not finite become NaN.

    Raises:
        StudyError: if a metric is missing, a value is no number, series or array, or the result is too large.

    >>> scored = score([Metric("loss", higher=False, worst=2.3)], {"loss": float("inf"), "steps": 7})
    >>> scored.diverged, scored.numbers
    (True, {'loss': 2.3, 'steps': 7.0})
    """
    numbers: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in returned.items():
        if not isinstance(name, str):
            raise StudyError(
                f"the cell function returned the key {name!r} of {type(name).__name__}; name results by text"
            )
        number = as_number(value)
        if number is not None:
            numbers[name] = number
            continue
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise StudyError(
                f"cell returned {name!r} of {type(value).__name__}; return numbers, series or arrays"
            )
        if array.ndim == 1:
            series[name] = [v if math.isfinite(v) else math.nan for v in array.astype(float).tolist()]
        else:
            arrays[name] = array
    missing = [m.name for m in metrics if m.name not in numbers]
    if missing:
        raise StudyError(f"the cell function returned no number {missing[0]!r}; got {sorted(returned)}")
    size = 8 * (len(numbers) + sum(map(len, series.values()))) + sum(a.nbytes for a in arrays.values())
    if size > MAX_RESULT_BYTES:
        raise StudyError(
            f"the cell returned {size / 1024:.0f} KB; at most {MAX_RESULT_BYTES // 1024} KB: "
            "thin the series, or make the large part a Stage"
        )
    diverged = False
    for metric in metrics:
        numbers[metric.name], bad = metric.score(numbers[metric.name])
        diverged = diverged or bad
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return Scored(diverged, finite, series, arrays)


def plain(value: Any) -> Any:
    """Return a NumPy scalar, or a 0-d array or tensor, as a Python number, for JSON."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def as_number(value: object) -> float | None:
    """Return a Python float for numbers, 0-d arrays and tensors; `None` for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return float(value)
    if isinstance(value, (int, float, np.integer, np.floating)):
        return float(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return float(value.item())
    return None
