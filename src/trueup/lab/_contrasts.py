"""Contrasts: one number per seed, positive in the claimed direction.

The seed is the statistical unit, so a contrast first reduces all cells of a seed (arms, conditions, nets) to
one number; the verdict rule then judges these numbers. The constructors below cover what papers claim;
`custom` takes any function of a seed's cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import stats

Test: TypeAlias = Literal["superiority", "equivalence", "non-inferiority"]
At: TypeAlias = Mapping[str, Any]


class SeedCells:
    """Results of the report cells of one seed, looked up by arm and condition.

    Args:
        cells: `(arm, condition, numbers, series)` per cell; numbers are scored, conditions dictionaries.
        higher: metric name -> whether larger is better.
    """

    def __init__(
        self,
        cells: Sequence[tuple[str, At, Mapping[str, float], Mapping[str, Sequence[float]]]],
        higher: Mapping[str, bool],
    ) -> None:
        self._cells = list(cells)
        self._higher = dict(higher)

    def sign(self, metric: str) -> float:
        """Return +1 if larger is better, -1 if smaller is."""
        return 1.0 if self._higher[metric] else -1.0

    def select(
        self, arm: str, at: At | None = None
    ) -> list[tuple[At, Mapping[str, float], Mapping[str, Any]]]:
        """Select the cells of an arm at the conditions that `at` names, over all others."""
        found = [
            (condition, numbers, series)
            for name, condition, numbers, series in self._cells
            if name == arm and all(condition.get(k) == v for k, v in (at or {}).items())
        ]
        if not found:
            raise LookupError(f"no cell of arm {arm!r}" + (f" at {dict(at)}" if at else ""))
        return found

    def mean(self, arm: str, metric: str, at: At | None = None) -> float:
        """Average the metric over the conditions that `at` leaves open."""
        return float(np.mean([numbers[metric] for _, numbers, _ in self.select(arm, at)]))

    def sweep(self, arm: str, metric: str, over: str, at: At | None = None) -> tuple[list[Any], list[float]]:
        """Return the sorted values of a condition, and the metric at each, averaged over the others."""
        groups: dict[Any, list[float]] = {}
        for condition, numbers, _ in self.select(arm, at):
            groups.setdefault(condition[over], []).append(numbers[metric])
        keys = sorted(groups)
        return keys, [float(np.mean(groups[k])) for k in keys]

    def series(self, arm: str, name: str, at: At | None = None) -> list[float]:
        """Return a series of the one cell that `arm` and `at` name."""
        found = self.select(arm, at)
        if len(found) > 1:
            raise LookupError(
                f"{arm!r} has series {name!r} in {len(found)} cells; name every condition in `at`"
            )
        return list(found[0][2][name])


@dataclass(frozen=True)
class Contrast:
    """One number per seed and how it is judged.

    Attributes:
        value: `value(cells)` for the `SeedCells` of one seed; positive supports the claim.
        test: `superiority` (d > m), `equivalence` (-m < d < m) or `non-inferiority` (d > -m).
        scale: `difference`; `log` (d is a log ratio and m becomes log(1 + min_effect)); or `correlation`.
        arms, metrics, conditions: names of the arms, metrics and swept conditions that are read.
        at: conditions, each at one value; cells at other values are not read.
        series: names read beside `metrics`; if both are empty, `value` may read all that a cell returns.
        methods: arms that would strengthen the claim if they were better than they look.
        rivals: arms that would weaken the claim if they were better than they look; an arm that is compared
            with itself, or with its equal, is in both `methods` and `rivals`.
        links: contrasts that must all hold, in an ordering or beside a spread.
        against: builds the same contrast with a control in place of the baseline; `None` if the claim is not
            a gain over something.
        text: short name for tables, "AdamP - Adam, accuracy".
        metric: whose unit the effect has; "" if it has none.
    """

    value: Callable[[SeedCells], float]
    test: Test = "superiority"
    scale: Literal["difference", "log", "correlation"] = "difference"
    arms: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    at: At = field(default_factory=dict)
    series: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    links: tuple[Contrast, ...] = ()
    against: Callable[[str], Contrast] | None = field(default=None, compare=False)
    text: str = ""
    metric: str = ""


def difference(better: str, worse: str, metric: str, at: At | None = None) -> Contrast:
    """Compare two arms by difference, averaged over the conditions that `at` leaves open.

    >>> cells = SeedCells([("sgd", {}, {"loss": 0.5}, {}), ("adam", {}, {"loss": 0.3}, {})], {"loss": False})
    >>> round(difference("adam", "sgd", "loss").value(cells), 6)  # lower is better: 0.2 better
    0.2
    """
    return _two_arms(better, worse, metric, at, "superiority")


def equivalence(a: str, b: str, metric: str, at: At | None = None) -> Contrast:
    """Claim that two arms differ by less than the claim's `min_effect`, either way."""
    return _two_arms(a, b, metric, at, "equivalence")


def non_inferiority(arm: str, reference: str, metric: str, at: At | None = None) -> Contrast:
    """Claim that an arm is not worse than the reference by the claim's `min_effect` or more."""
    return _two_arms(arm, reference, metric, at, "non-inferiority")


def log_ratio(better: str, worse: str, metric: str, at: At | None = None) -> Contrast:
    """Compare two arms by log ratio; the metric must be > 0 and `min_effect` is a relative gain.

    >>> cells = SeedCells([("a", {}, {"norm": 1.0}, {}), ("b", {}, {"norm": 2.0}, {})], {"norm": False})
    >>> round(log_ratio("a", "b", "norm").value(cells), 4)  # half the norm: log 2
    0.6931
    """

    def value(cells: SeedCells) -> float:
        a, b = cells.mean(better, metric, at), cells.mean(worse, metric, at)
        if a <= 0 or b <= 0:
            raise ValueError(
                f"log_ratio of {metric!r} needs values > 0; got {better}={a:g}, {worse}={b:g}: use difference"
            )
        return cells.sign(metric) * math.log(a / b)

    return Contrast(
        value,
        scale="log",
        arms=(better, worse),
        metrics=(metric,),
        at=at or {},
        methods=(better,),
        rivals=(worse,),
        against=lambda control: log_ratio(better, control, metric, at),
        text=f"{better} / {worse}, {metric}",
        metric=metric,
    )


def ordering(chain: str, metric: str, at: At | None = None) -> Contrast:
    """Claim an order of merit of several arms, worst first: `"large < scaled <= ghost < adapted"`.

    `a < b` means that b is better by more than `min_effect`; `a <= b` that it is not worse by that much. The
    gain that a control has to explain is that of the last arm.
    """
    tokens = chain.split()
    names, signs = tokens[0::2], tokens[1::2]
    if len(names) < 2 or len(names) != len(signs) + 1 or not set(signs) <= {"<", "<="}:
        raise ValueError(
            f"ordering {chain!r}: write arm names with < or <= between them, spaces around the signs"
        )
    links = tuple(
        (difference if sign == "<" else non_inferiority)(b, a, metric, at)
        for a, sign, b in zip(names, signs, names[1:], strict=False)
    )
    return Contrast(
        lambda cells: (
            cells.sign(metric) * (cells.mean(names[-1], metric, at) - cells.mean(names[0], metric, at))
        ),
        arms=tuple(names),
        metrics=(metric,),
        at=at or {},
        methods=(names[-1],),
        rivals=tuple(names[:-1]),
        links=links,
        against=lambda control: difference(names[-1], control, metric, at),
        text=f"{chain}, {metric}",
        metric=metric,
    )


def monotone(arm: str, metric: str, over: str, *, improves: bool = True, at: At | None = None) -> Contrast:
    """Claim that the metric improves (`improves=False`: gets worse) at every step of a condition.

    The contrast is the smallest step.
    """

    def value(cells: SeedCells) -> float:
        _, y = cells.sweep(arm, metric, over, at)
        sign = cells.sign(metric) * (1 if improves else -1)
        return float(np.min(sign * np.diff(y))) if len(y) > 1 else 0.0

    return Contrast(
        value,
        arms=(arm,),
        metrics=(metric,),
        conditions=(over,),
        at=at or {},
        methods=(arm,),
        rivals=(arm,),  # elsewhere in the sweep
        text=f"smallest step of {arm} over {over}, {metric}",
        metric=metric,
    )


def rank_correlation(
    arm: str, x: str, y: str, *, method: Literal["kendall", "spearman"] = "kendall", at: At | None = None
) -> Contrast:
    """Correlate two series, or a condition and a metric, within the seed by Kendall's tau or Spearman's rho.

    `x` and `y` name series that the cell returns (one entry per net, say); or `x` is a condition and `y` a
    metric. A constant series has correlation 0. For a negative correlation, negate a series in the cell.
    """

    def value(cells: SeedCells) -> float:
        if any(x in condition for condition, _, _ in cells.select(arm, at)):
            xs, ys = cells.sweep(arm, y, x, at)
        else:
            xs, ys = cells.series(arm, x, at), cells.series(arm, y, at)
        if np.ptp(xs) == 0 or np.ptp(ys) == 0:
            return 0.0
        return float((stats.kendalltau if method == "kendall" else stats.spearmanr)(xs, ys).statistic)

    return Contrast(
        value,
        scale="correlation",
        arms=(arm,),
        at=at or {},
        series=(x, y),
        methods=(arm,),
        rivals=(arm,),
        text=f"{method} of {x} and {y}, {arm}",
    )


def spread(steadier: str, other: str, metric: str, over: str, *, best: Any, at: At | None = None) -> Contrast:
    """Compare how much two arms' metrics vary over a sweep (largest minus smallest value).

    Being evenly bad is not being robust, so two links must hold: the spread is smaller by more than
    `min_effect`, and at `best`, the value of `over` at which the arms are tuned, `steadier` is not worse by
    that much. A control has to explain the smaller spread alone.
    """
    steady = _spread(steadier, other, metric, over, at)
    no_worse = non_inferiority(steadier, other, metric, {**(at or {}), over: best})
    return replace(steady, links=(steady, no_worse))


def _spread(steadier: str, other: str, metric: str, over: str, at: At | None) -> Contrast:
    def value(cells: SeedCells) -> float:
        return float(
            np.ptp(cells.sweep(other, metric, over, at)[1])
            - np.ptp(cells.sweep(steadier, metric, over, at)[1])
        )

    return Contrast(
        value,
        arms=(steadier, other),
        metrics=(metric,),
        conditions=(over,),
        at=at or {},
        methods=(steadier,),
        rivals=(other,),
        against=lambda control: _spread(steadier, control, metric, over, at),
        text=f"spread over {over}: {other} - {steadier}, {metric}",
        metric=metric,
    )


def custom(
    value: Callable[[SeedCells], float],
    arms: Sequence[str],
    *,
    text: str,
    metrics: Sequence[str] = (),
    test: Test = "superiority",
    at: At | None = None,
    against: Callable[[str], Contrast] | None = None,
) -> Contrast:
    """Use any function of a seed's cells; name the arms that it reads, the method first.

    The other arms are its rivals; a single arm is compared with itself. `at` restricts the conditions whose
    cells are read.
    """
    both = test == "equivalence" or len(arms) == 1
    return Contrast(
        value,
        test=test,
        arms=tuple(arms),
        metrics=tuple(metrics),
        at=at or {},
        methods=tuple(arms) if both else tuple(arms[:1]),
        rivals=tuple(arms) if both else tuple(arms[1:]),
        against=against,
        text=text,
        metric=metrics[0] if len(metrics) == 1 else "",
    )


def _two_arms(a: str, b: str, metric: str, at: At | None, test: Test) -> Contrast:
    return Contrast(
        lambda cells: cells.sign(metric) * (cells.mean(a, metric, at) - cells.mean(b, metric, at)),
        test=test,
        arms=(a, b),
        metrics=(metric,),
        at=at or {},
        methods=(a, b) if test == "equivalence" else (a,),
        rivals=(a, b) if test == "equivalence" else (b,),
        against=(lambda control: _two_arms(a, control, metric, at, test)) if test == "superiority" else None,
        text=f"{a} - {b}, {metric}",
        metric=metric,
    )
