"""Tuning: the same number of trials and the same grid for every arm, judged on validation rows.

A winner at the edge of a shared axis widens that axis once, for every arm. An arm with axes of its own gets
as many new trials as the others (`extra_trials`). If the winner is still at the edge, the arm may be better
than it appears, and the verdict says so (`with_edges`).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from trueup.lab._scoring import Metric
from trueup.lab._seeds import replicate_seeds
from trueup.lab._spec import Axis, Study, Value

Side: TypeAlias = Literal["low", "high"]
ArmAt: TypeAlias = tuple[str, tuple[tuple[str, Value], ...]]  # an arm and a condition


@dataclass(frozen=True)
class Trial:
    """One setting and its validation scores, one per tuning seed."""

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
    """Return the trial with the best mean score; of those equal to rounding, the first listed."""
    sign = 1 if metric.higher else -1
    top = max(sign * trial.mean for trial in trials)
    return next(trial for trial in trials if sign * trial.mean >= top - 1e-12 * max(1.0, abs(top)))


@dataclass(frozen=True)
class RunnerUp:
    """The second-best trial, and how far its mean is behind the winner's.

    `standard_error` is that of the mean difference, paired by seed; `None` with a single seed.
    """

    hyper: Mapping[str, Value]
    behind: float
    standard_error: float | None


def runner_up(tuned: Tuned, metric: Metric) -> RunnerUp | None:
    """Return the trial that would have won without the winner; `None` if there is no other.

    >>> trials = (Trial({"lr": 0.1}, (0.8, 0.9)), Trial({"lr": 1.0}, (0.7, 0.9)))
    >>> round(runner_up(Tuned(trials, {"lr": 0.1}), Metric("acc", higher=True, worst=0.0)).behind, 6)
    0.05
    """
    winners = [trial for trial in tuned.trials if dict(trial.hyper) == dict(tuned.winner)]
    others = [trial for trial in tuned.trials if dict(trial.hyper) != dict(tuned.winner)]
    if not winners or not others:
        return None
    second = choose(others, metric)
    behind = np.subtract(winners[0].scores, second.scores) * (1 if metric.higher else -1)
    error = float(np.std(behind, ddof=1) / math.sqrt(len(behind))) if len(behind) > 1 else None
    return RunnerUp(second.hyper, float(behind.mean()), error)


def edges(axes: Sequence[Axis], winner: Mapping[str, Value]) -> dict[str, Side]:
    """Return the ordered axes at whose end the winner is, and which end; natural limits are no edges."""
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
    """Extend the grid by one value per given side: geometrically if all values are positive, else linearly.

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


def widened_grids(
    study: Study, axes: Mapping[ArmAt, tuple[Axis, ...]], trials: Mapping[ArmAt, list[Trial] | None]
) -> tuple[dict[ArmAt, tuple[Axis, ...]], dict[ArmAt, list[dict[str, Value]]]]:
    """Widen the shared axes at whose edge a winner is, for every arm of its condition.

    Args:
        axes, trials: those of every arm and condition, from the first round.

    Returns:
        The axes and the grids of every arm and condition for the second round.
    """
    shared = {axis.name for axis in study.tune}
    hit: defaultdict[tuple[object, str], set[Side]] = defaultdict(set)
    for (arm, condition), own in trials.items():
        if own:
            winner = choose(own, study.metrics[0])
            for name, side in edges(axes[arm, condition], winner.hyper).items():
                if name in shared:
                    hit[condition, name].add(side)

    def grow(own: Sequence[Axis], condition: object) -> tuple[Axis, ...]:
        return tuple(widen(axis, hit[condition, axis.name]) if axis.ordered else axis for axis in own)

    wider = {(arm, condition): grow(own, condition) for (arm, condition), own in axes.items()}
    grids = {key: study.grid(study.arm(key[0]), own) for key, own in wider.items()}
    for condition in {condition for _, condition in axes}:
        if len({len(grids[arm.name, condition]) for arm in study.arms}) == 1:
            continue
        # the grid of an arm with axes of its own would hold another number of trials
        grown = grow(study.tune, condition)
        for own_arm in (arm for arm in study.arms if arm.tune is not None):
            key = own_arm.name, condition
            wider[key], extra = extra_trials(
                axes[key], trials[key] or (), study.tune, grown, study.metrics[0]
            )
            grids[key] = study.grid(own_arm) + extra
    return wider, grids


def extra_trials(
    axes: Sequence[Axis],
    trials: Sequence[Trial],
    shared: Sequence[Axis],
    wider: Sequence[Axis],
    metric: Metric,
) -> tuple[tuple[Axis, ...], list[dict[str, Value]]]:
    """Give an arm with axes of its own as many new trials as a wider grid gives to the others.

    The new values are those next to the arm's own ends of a widened axis: the new ones, where the arm tries
    the whole axis. They are tried with the best setting of the arm's own axes, then with the next best, until
    the number is reached; a setting ranks by the best mean score found with it. An arm that does not try a
    widened axis gets no new trials.

    Args:
        axes, trials: those of the arm, from the first round.
        shared, wider: the study's axes before and after they are widened.

    Returns:
        The arm's axes with the new values, and the new trials.
    """
    number = math.prod(len(a.values) for a in wider) - math.prod(len(a.values) for a in shared)
    growing = {before.name: (before, after) for before, after in zip(shared, wider, strict=True)}
    grown = tuple(_with_next(a, *growing[a.name]) if a.name in growing else a for a in axes)
    sign = 1 if metric.higher else -1
    own: dict[tuple[tuple[str, Value], ...], float] = {}
    for trial in trials:
        setting = tuple((a.name, trial.hyper[a.name]) for a in axes if a.name not in growing)
        own[setting] = max(own.get(setting, -math.inf), sign * trial.mean)
    old = set(itertools.product(*(a.values for a in axes if a.name in growing)))
    names = [a.name for a in axes if a.name in growing]
    new = [v for v in itertools.product(*(a.values for a in grown if a.name in growing)) if v not in old]
    extra = [
        dict(setting) | dict(zip(names, values, strict=True))
        for setting in sorted(own, key=own.__getitem__, reverse=True)
        for values in new
    ]
    return grown, [{a.name: hyper[a.name] for a in axes} for hyper in extra[:number]]


def _with_next(axis: Axis, before: Axis, after: Axis) -> Axis:
    """Add to the arm's values of an axis, at each widened side, as many as the shared axis got there."""
    values, old, new = list(axis.values), list(before.values), list(after.values)
    below, above = new.index(old[0]), len(new) - 1 - new.index(old[-1])
    first, last = new.index(values[0]), new.index(values[-1])
    return replace(
        axis,
        values=(*new[max(0, first - below) : first], *values, *new[last + 1 : last + 1 + above]),
    )


def replicate_tuning_seeds(slug: str, protocol: int, attempt: int, n: int) -> list[int]:
    """Return tuning seeds of the `attempt`-th replication of a published verdict: fresh, and outside 0-99."""
    return replicate_seeds(f"{slug}/tuning", protocol, attempt, 0, n)
