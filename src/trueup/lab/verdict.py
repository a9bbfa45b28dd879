"""The verdict rule, and nothing else: numbers in, a judgement out.

Contrasts ``d`` (one a seed, positive in the claimed direction), a margin ``m`` and a one-sided ``alpha``.
"Above" needs both a t-test and a sign-flip permutation test to agree, so that neither a heavy tail nor a
handful of seeds decides alone. Under strong skew the one-sided error can still reach about 9 %.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import stats

from trueup.lab.contrasts import Test

Outcome: TypeAlias = Literal["reproduced", "inconclusive", "contradicted", "incomplete", "invalid"]
Survival: TypeAlias = Literal["survives", "explained", "undecided"]
PaperOutcome: TypeAlias = Literal[
    "reproduced", "partly", "inconclusive", "contradicted", "incomplete", "none"
]

ALPHA = 0.025  # of a single look


@dataclass(frozen=True)
class Judgement:
    """What the rule says of one contrast.

    ``level`` is the confidence level of the interval ``low`` to ``high``, 1 - 2 alpha.
    ``pvalue`` is the larger of the two tests' p-values for the claimed direction.
    """

    outcome: Outcome
    note: str = ""
    test: Test = "superiority"
    margin: float = 0.0
    alpha: float = ALPHA
    d: tuple[float, ...] = ()
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    pvalue: float | None = None

    @property
    def n(self) -> int:
        return len(self.d)

    @property
    def level(self) -> float:
        return 1 - 2 * self.alpha

    def to_dict(self, seeds: Sequence[Hashable]) -> dict[str, Any]:
        """Plain JSON, each contrast beside its seed, as the outcome document has it."""
        return {
            "outcome": self.outcome,
            "note": self.note,
            "test": self.test,
            "margin": self.margin,
            "alpha": self.alpha,
            "level": self.level,
            "n": self.n,
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "pvalue": self.pvalue,
            "d": [{"seed": seed, "d": d} for seed, d in zip(seeds, self.d, strict=False)],
            "wins": sum(d > 0 for d in self.d),
            "losses": sum(d < 0 for d in self.d),
            "ties": sum(d == 0 for d in self.d),
        }


def fewest_seeds(alpha: float) -> int:
    """Below this many seeds no sign-flip test can reach ``alpha``: 6 at .025, 8 at .005.

    >>> fewest_seeds(0.025), fewest_seeds(0.02), fewest_seeds(0.005)
    (6, 6, 8)
    """
    return math.ceil(math.log2(1 / alpha))


def pvalues(d: np.ndarray, m: float) -> tuple[float, float]:
    """p-values of "the mean of d is above m": t-test and sign-flip permutation test."""
    x = np.asarray(d, dtype=float) - m
    t = stats.ttest_1samp(x, 0, alternative="greater").pvalue
    flips = stats.permutation_test(
        (x,),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        n_resamples=9999,
        rng=0,
        batch=None if len(x) <= 1000 else max(1, 1_000_000 // len(x)),  # else all at once: gigabytes
    ).pvalue
    return float(t), float(flips)


def above(d: np.ndarray, m: float, alpha: float) -> bool:
    """Is the mean of d above m, by both tests?"""
    return max(pvalues(d, m)) <= alpha


def judge(d: Sequence[float], margin: float, alpha: float = ALPHA, test: Test = "superiority") -> Judgement:
    """Judge one contrast.

    Args:
        d: one number a seed, all finite.
        margin: the minimum effect, > 0 (for a log ratio, log(1 + gain)).
        alpha: one-sided level of this look.
        test: ``superiority``, ``equivalence`` or ``non-inferiority``.

    >>> judge([0.9, 1.1, 1.0, 1.2, 0.8, 1.05, 0.95, 1.0], 0.5).outcome
    'reproduced'
    >>> judge([0.1, -0.1, 0.05, -0.02, 0.0, 0.08, -0.06, 0.01], 0.5).note
    'any gain is smaller than the minimum effect'
    """
    x = np.asarray(d, dtype=float)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError(f"contrasts must be finite numbers, one a seed; got {list(d)!r}")
    if margin < 0 or not 0 < alpha < 0.5:
        raise ValueError(f"margin must be >= 0 and alpha in (0, 0.5); got {margin}, {alpha}")
    judgement = Judgement("inconclusive", test=test, margin=margin, alpha=alpha, d=tuple(x.tolist()))
    if len(x) == 0:
        return replace(judgement, outcome="incomplete", note="no seeds")
    judgement = replace(judgement, mean=float(x.mean()))
    if len(x) < fewest_seeds(alpha):
        return replace(judgement, note="too few seeds")
    if np.ptp(x) <= 1e-12 * max(1.0, float(np.abs(x).max())):
        return replace(judgement, outcome="invalid", note="seeds change nothing here: make it an exact claim")
    interval = stats.ttest_1samp(x, 0).confidence_interval(1 - 2 * alpha)
    judgement = replace(judgement, low=float(interval.low), high=float(interval.high))
    if test == "equivalence":
        return _equivalence(judgement, x, margin, alpha)
    m = -margin if test == "non-inferiority" else margin
    t, flips = pvalues(x, m)
    judgement = replace(judgement, pvalue=max(t, flips))
    if max(t, flips) <= alpha:
        return replace(judgement, outcome="reproduced")
    t_below, flips_below = pvalues(-x, -m)
    if max(t_below, flips_below) <= alpha:
        return replace(judgement, outcome="contradicted", note=_why_contradicted(x, alpha))
    return replace(judgement, note="uneven seeds" if min(t, t_below) <= alpha else "")


def _why_contradicted(x: np.ndarray, alpha: float) -> str:
    if above(x, 0, alpha):
        return "right sign but smaller than the minimum effect"
    if above(-x, 0, alpha):
        return "opposite"
    return "any gain is smaller than the minimum effect"


def _equivalence(judgement: Judgement, x: np.ndarray, m: float, alpha: float) -> Judgement:
    inside = [pvalues(x, -m), pvalues(-x, -m)]
    judgement = replace(judgement, pvalue=max(map(max, inside)))
    if max(map(max, inside)) <= alpha:
        return replace(judgement, outcome="reproduced")
    outside = [pvalues(x, m), pvalues(-x, m)]
    if min(map(max, outside)) <= alpha:
        return replace(judgement, outcome="contradicted", note="the difference is larger than the margin")
    uneven = max(t for t, _ in inside) <= alpha or min(t for t, _ in outside) <= alpha
    return replace(judgement, note="uneven seeds" if uneven else "")


def of_links(links: Sequence[Judgement], whole: Judgement) -> Judgement:
    """An ordering: every link reproduced; or any contradicted; else inconclusive.

    ``whole`` is the judgement of last against first, whose numbers are shown.
    """
    outcomes = [link.outcome for link in links]
    pvalue = max((link.pvalue for link in links if link.pvalue is not None), default=None)
    broken = [i for i, outcome in enumerate(outcomes, start=1) if outcome == "contradicted"]
    if "invalid" in outcomes or "incomplete" in outcomes:
        worst: Outcome = "invalid" if "invalid" in outcomes else "incomplete"
        return replace(
            whole, outcome=worst, note=next(k.note for k in links if k.outcome == worst), pvalue=pvalue
        )
    if broken:
        return replace(
            whole, outcome="contradicted", note=_steps(broken, "does not hold", "do not hold"), pvalue=pvalue
        )
    if all(outcome == "reproduced" for outcome in outcomes):
        return replace(whole, outcome="reproduced", note="", pvalue=pvalue)
    undecided = [i for i, outcome in enumerate(outcomes, start=1) if outcome == "inconclusive"]
    return replace(
        whole, outcome="inconclusive", note=_steps(undecided, "is undecided", "are undecided"), pvalue=pvalue
    )


def _steps(numbers: Sequence[int], one: str, several: str) -> str:
    """ "step 2 is undecided", "steps 1 and 2 are undecided"."""
    *first, last = map(str, numbers)
    return f"steps {', '.join(first)} and {last} {several}" if first else f"step {last} {one}"


def with_requirements(judgement: Judgement, required: Mapping[str, Outcome]) -> Judgement:
    """Without the illness there is nothing to cure: every required claim must be reproduced."""
    missing = [name for name, outcome in required.items() if outcome != "reproduced"]
    if not missing or judgement.outcome in ("incomplete", "invalid"):
        return judgement
    return replace(
        judgement, outcome="inconclusive", note=f"the problem did not arise here ({', '.join(missing)})"
    )


def with_edges(judgement: Judgement, edge_roles: Iterable[str]) -> Judgement:
    """An arm whose best setting is still at the edge of the widened grid may be better than it looks."""
    roles = set(edge_roles)
    if judgement.outcome == "reproduced" and roles & {"baseline", "control"}:
        return replace(
            judgement, outcome="inconclusive", note="the best setting of a rival is at its grid's edge"
        )
    if judgement.outcome == "contradicted" and roles & {"method", "ablation"}:
        return replace(
            judgement, outcome="inconclusive", note="the best setting of the method is at its grid's edge"
        )
    return judgement


def survival(controls: Sequence[Judgement]) -> Survival | None:
    """Does a reproduced gain survive its controls? ``None`` if none was asked."""
    outcomes = [control.outcome for control in controls]
    if not outcomes:
        return None
    if all(outcome == "reproduced" for outcome in outcomes):
        return "survives"
    return "explained" if "contradicted" in outcomes else "undecided"


def with_controls(judgement: Judgement, controls: Mapping[str, Judgement]) -> Judgement:
    """A control whose runs failed leaves the claim incomplete: more seeds do not mend that."""
    for arm, control in controls.items():
        if control.outcome == "incomplete":
            return replace(judgement, outcome="incomplete", note=f"control {arm}: {control.note}")
    return judgement


def exact(
    deviations: Mapping[str, float | None], control: Mapping[str, float | None], tolerance: float
) -> tuple[Outcome, str]:
    """An exact claim: every instance within the tolerance, and the negative control not.

    ``None`` is a deviation that was not finite: it fails.
    """

    def holds(value: float | None) -> bool:
        return value is not None and value <= tolerance

    if all(holds(value) for value in control.values()):
        return "invalid", "the negative control does not break the claim, so the claim shows nothing"
    failing = [name for name, value in deviations.items() if not holds(value)]
    if failing:
        return "contradicted", f"does not hold for {', '.join(failing)}"
    return "reproduced", ""


def of_paper(primary: Sequence[Outcome]) -> PaperOutcome:
    """The verdict of a paper from those of its primary claims.

    >>> of_paper(["reproduced", "inconclusive"])
    'partly'
    """
    outcomes = set(primary)
    if not outcomes:
        return "none"
    if outcomes & {"incomplete", "invalid"}:
        return "incomplete"
    if outcomes == {"reproduced"}:
        return "reproduced"
    if outcomes == {"contradicted"}:
        return "contradicted"
    return "partly" if "reproduced" in outcomes else "inconclusive"
