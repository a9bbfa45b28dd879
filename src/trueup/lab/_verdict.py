"""The verdict rule, and nothing else: numbers in, a judgement out.

It takes contrasts `d` (one per seed, positive in the claimed direction), a margin `m` and a one-sided
`alpha`. "Above" needs both a t-test and a sign-flip permutation test to agree, so that neither a heavy tail
nor a few seeds decide alone. Two looks together give 1.3 to 2.3 % false wins if the spread is symmetric or
both arms are skewed alike, but 9 % if one arm alone is exponential, 16 to 30 % if it is lognormal, and more
if the method diverges in a few runs out of a hundred: ten clean seeds do not show that.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import stats

from trueup.lab._contrasts import Test

Outcome: TypeAlias = Literal["reproduced", "smaller", "inconclusive", "contradicted", "incomplete", "invalid"]
Survival: TypeAlias = Literal["survives", "explained", "undecided"]
PaperOutcome: TypeAlias = Literal[
    "reproduced", "partly", "smaller", "inconclusive", "contradicted", "incomplete", "none"
]

ALPHA = 0.025  # of a single look
OPPOSITE = "opposite"
SIGN_OPEN = "no gain of the minimum effect or more; a smaller one is not excluded"


@dataclass(frozen=True)
class Judgement:
    """The rule's result for one contrast.

    `level` is the confidence level of the interval from `low` to `high`: 1 - 2 alpha.
    `pvalue` is the larger of the two tests' p-values for the claimed direction.
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
        """Return plain JSON as in the outcome document, each contrast with its seed."""
        names = ("outcome", "note", "test", "margin", "alpha", "level", "n", "mean", "low", "high", "pvalue")
        return {name: getattr(self, name) for name in names} | {
            "d": [{"seed": seed, "d": d} for seed, d in zip(seeds, self.d, strict=False)],
            "wins": sum(d > 0 for d in self.d),
            "losses": sum(d < 0 for d in self.d),
            "ties": sum(d == 0 for d in self.d),
        }


def fewest_seeds(alpha: float) -> int:
    """Return the fewest seeds with which a sign-flip test can reach `alpha`: 6 at .025, 8 at .005.

    >>> fewest_seeds(0.025), fewest_seeds(0.02), fewest_seeds(0.005)
    (6, 6, 8)
    """
    return math.ceil(math.log2(1 / alpha))


def constant(values: Sequence[float] | np.ndarray) -> bool:
    """Return whether all values are the same, to rounding."""
    x = np.asarray(values, dtype=float)
    return bool(np.ptp(x) <= _rounding(x))


def _rounding(x: np.ndarray) -> float:
    return 1e-12 * max(1.0, float(np.abs(x).max()))


def pvalues(d: np.ndarray, m: float) -> tuple[float, float]:
    """Compute the p-values of "the mean of d is above m" by t-test and by sign-flip permutation test.

    Constant contrasts have no variance for a t-test: the sign flips stand for both.
    """
    d = np.asarray(d, dtype=float)
    x = d - m
    if constant(d) and abs(x.mean()) <= _rounding(d):
        return 1.0, 1.0  # only rounding is left, and its signs mean nothing
    flips = stats.permutation_test(
        (x,),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        n_resamples=9999,
        rng=0,
        batch=None if len(x) <= 1000 else max(1, 1_000_000 // len(x)),  # all at once would take gigabytes
    ).pvalue
    t = flips if constant(d) else stats.ttest_1samp(x, 0, alternative="greater").pvalue
    return float(t), float(flips)


def above(d: np.ndarray, m: float, alpha: float) -> bool:
    """Return whether the mean of d is above m, by both tests."""
    return max(pvalues(d, m)) <= alpha


def judge(
    d: Sequence[float],
    margin: float,
    alpha: float = ALPHA,
    test: Test = "superiority",
    *,
    values_vary: bool = True,
) -> Judgement:
    """Judge one contrast.

    Args:
        d: one number per seed, all finite.
        margin: the minimum effect, > 0 (for a log ratio, log(1 + gain)); 0 tests the sign alone.
        alpha: one-sided level of this look.
        test: `superiority`, `equivalence` or `non-inferiority`.
        values_vary: whether the arms' own values vary over the seeds. If not, constant contrasts are refused;
            otherwise they are judged, because discrete metrics give constant differences by chance.

    >>> judge([0.9, 1.1, 1.0, 1.2, 0.8, 1.05, 0.95, 1.0], 0.5).outcome
    'reproduced'
    >>> judge([0.3, 0.1, 0.25, 0.2, 0.15, 0.2, 0.1, 0.3], 0.5).outcome
    'smaller'
    >>> judge([0.1, -0.1, 0.05, -0.02, 0.0, 0.08, -0.06, 0.01], 0.5).note
    'no gain of the minimum effect or more; a smaller one is not excluded'
    """
    x = np.asarray(d, dtype=float)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError(f"contrasts must be finite numbers, one per seed; got {list(d)!r}")
    if margin < 0 or not 0 < alpha < 0.5:
        raise ValueError(f"margin must be >= 0 and alpha in (0, 0.5); got {margin}, {alpha}")
    judgement = Judgement("inconclusive", test=test, margin=margin, alpha=alpha, d=tuple(x.tolist()))
    if len(x) == 0:
        return replace(judgement, outcome="incomplete", note="no seeds")
    judgement = replace(judgement, mean=float(x.mean()))
    if len(x) < fewest_seeds(alpha):
        return replace(judgement, note="too few seeds")
    if not constant(x):
        interval = stats.ttest_1samp(x, 0).confidence_interval(1 - 2 * alpha)
        judgement = replace(judgement, low=float(interval.low), high=float(interval.high))
    elif not values_vary:
        return replace(judgement, outcome="invalid", note="seeds change nothing here: make it an exact claim")
    if test == "equivalence":
        return _equivalence(judgement, x, margin, alpha)
    m = -margin if test == "non-inferiority" else margin
    t, flips = pvalues(x, m)
    judgement = replace(judgement, pvalue=max(t, flips))
    if max(t, flips) <= alpha:
        return replace(judgement, outcome="reproduced")
    t_below, flips_below = pvalues(-x, -m)
    if max(t_below, flips_below) <= alpha:
        return _with_sign(judgement)
    return replace(judgement, note="uneven seeds" if min(t, t_below) <= alpha else "")


def _with_sign(judgement: Judgement) -> Judgement:
    """Decide whether a gain below the minimum effect is still a gain, a loss, or neither."""
    x = np.asarray(judgement.d)
    if above(x, 0, judgement.alpha):
        return replace(judgement, outcome="smaller", note="")
    note = OPPOSITE if above(-x, 0, judgement.alpha) else SIGN_OPEN
    return replace(judgement, outcome="contradicted", note=note)


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
    """Judge an ordering, or a spread with its best setting, by its links, of which all must hold.

    `whole` is the judgement of the last arm against the first; its numbers are shown.
    """
    outcomes = [link.outcome for link in links]
    pvalue = max((link.pvalue for link in links if link.pvalue is not None), default=None)
    whole = replace(whole, note="", pvalue=pvalue)
    for unfit in ("invalid", "incomplete"):
        if unfit in outcomes:
            return replace(whole, outcome=unfit, note=links[outcomes.index(unfit)].note)
    if broken := _places(outcomes, "contradicted"):
        return replace(whole, outcome="contradicted", note=_steps(broken, "does not hold", "do not hold"))
    if undecided := _places(outcomes, "inconclusive"):
        return replace(whole, outcome="inconclusive", note=_steps(undecided, "is undecided", "are undecided"))
    return replace(whole, outcome="smaller" if "smaller" in outcomes else "reproduced")


def _places(outcomes: Sequence[Outcome], wanted: Outcome) -> list[int]:
    return [i for i, outcome in enumerate(outcomes, start=1) if outcome == wanted]


def _steps(places: Sequence[int], one: str, several: str) -> str:
    """Say "step 2 is undecided" or "steps 1 and 2 are undecided"."""
    *first, last = map(str, places)
    return f"steps {', '.join(first)} and {last} {several}" if first else f"step {last} {one}"


def sign_open(whole: Judgement, links: Sequence[Judgement] = ()) -> bool:
    """Return whether a contradicted claim may still become `smaller` or `opposite` at another look.

    An ordering has no sign of its own: its links that do not hold must all have an open sign, and none may be
    undecided.
    """
    if not links:
        return whole.outcome == "contradicted" and whole.note == SIGN_OPEN
    outcomes = [link.outcome for link in links]
    broken = [link for link in links if link.outcome == "contradicted"]
    held = {"reproduced", "smaller", "contradicted"}.issuperset(outcomes)
    return bool(broken) and held and all(map(sign_open, broken))


def wants_look(whole: Judgement, links: Sequence[Judgement] = ()) -> bool:
    """Return whether another look would help: to decide, or to settle the sign of a contradicted claim."""
    return whole.outcome == "inconclusive" or sign_open(whole, links)


def over_looks(
    looks: Iterable[tuple[Judgement, Sequence[Judgement]]],
) -> tuple[int, Judgement, tuple[Judgement, ...]]:
    """Combine several looks, each at all seeds so far, into `(look, judgement, links)`.

    Later looks do not change what an earlier one has decided, except that they settle an open sign. A look is
    only taken from the iterable if it is needed. Without any look the claim is incomplete.
    """
    look, whole, links = 0, Judgement("incomplete", note="not run"), tuple[Judgement, ...]()
    for look, (now, now_links) in enumerate(looks, start=1):
        if look == 1 or whole.outcome == "inconclusive" or now.outcome in ("incomplete", "invalid"):
            whole, links = now, tuple(now_links)
        else:
            links = tuple(_settled(a, b) for a, b in zip(links, now_links, strict=True))
            whole = of_links(links, now) if links else _settled(whole, now)
        if not wants_look(whole, links):
            break
    return look, whole, links


def _settled(before: Judgement, now: Judgement) -> Judgement:
    """Combine the numbers of now with the outcome of before; only an open sign may still change."""
    return _with_sign(now) if sign_open(before) else replace(now, outcome=before.outcome, note=before.note)


def with_requirements(judgement: Judgement, required: Mapping[str, Outcome]) -> Judgement:
    """Leave a claim open unless every claim that it requires is reproduced: no problem, nothing to solve."""
    if judgement.outcome in ("incomplete", "invalid"):
        return judgement
    for name, outcome in required.items():
        if outcome in ("incomplete", "invalid"):
            return replace(
                judgement, outcome="incomplete", note=f"the claim it requires, {name}, is {outcome}"
            )
    small = [name for name, outcome in required.items() if outcome == "smaller"]
    missing = [name for name, outcome in required.items() if outcome not in ("reproduced", "smaller")]
    if missing:
        note = f"the problem did not arise here ({', '.join(missing)})"
    elif small:
        note = f"the problem is too small here ({', '.join(small)})"
    else:
        return judgement
    return replace(judgement, outcome="inconclusive", note=note)


@dataclass(frozen=True)
class Edges:
    """Arms whose best setting is still at the edge of the widened grid: one clause per such arm."""

    methods: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()

    def doubts(self, outcome: Outcome) -> tuple[str, ...]:
        """Return the clauses that cast doubt on an outcome: an arm at an edge may be better than it looks."""
        rivals = self.rivals if outcome in ("reproduced", "smaller") else ()
        methods = self.methods if outcome in ("contradicted", "smaller") else ()
        return rivals + methods


def with_edges(judgement: Judgement, parts: Sequence[tuple[Outcome, Edges]]) -> Judgement:
    """Leave a claim open if an arm at its grid's edge may change it; `parts` are the links, or the claim.

    One doubtful part is enough against a gain. A contradiction stands as long as one part that does not hold
    is beyond doubt.
    """
    if judgement.outcome == "contradicted":
        doubts = [edges.doubts(outcome) for outcome, edges in parts if outcome == "contradicted"]
        if not all(doubts):
            return judgement
    elif judgement.outcome in ("reproduced", "smaller"):
        doubts = [edges.doubts(outcome) for outcome, edges in parts]
    else:
        return judgement
    clauses = dict.fromkeys(clause for doubt in doubts for clause in doubt)
    if not clauses:
        return judgement
    mend = "widen the grid and raise the protocol number"
    return replace(judgement, outcome="inconclusive", note="; ".join([*clauses, mend]))


def survival(controls: Sequence[Judgement]) -> Survival | None:
    """Decide whether a gain survives its controls; `None` without controls.

    Each is judged on method - control: with the claim's margin if the claim is reproduced, with margin 0 if
    the gain is smaller. A control that equals the method bit for bit explains the gain.
    """
    if not controls:
        return None
    if any(c.outcome in ("smaller", "contradicted") or _zero(c.d) for c in controls):
        return "explained"
    return "survives" if all(c.outcome == "reproduced" for c in controls) else "undecided"


def _zero(d: Sequence[float]) -> bool:
    return len(d) > 0 and max(map(abs, d)) <= 1e-12


def with_controls(judgement: Judgement, controls: Mapping[str, Judgement]) -> Judgement:
    """Leave the claim incomplete if a control failed or cannot be computed: more seeds do not help."""
    for arm, control in controls.items():
        if control.outcome in ("incomplete", "invalid"):
            return replace(judgement, outcome="incomplete", note=f"control {arm}: {control.note}")
    return judgement


def skewness(d: Sequence[float]) -> float | None:
    """Compute the sample skewness (third moment over sd cubed); `None` below 8 seeds or for constants."""
    return None if len(d) < 8 or constant(d) else float(stats.skew(d))


def missable_divergence(n: int) -> float | None:
    """Return the 95 % upper confidence limit of the divergence rate after `n` runs without a divergence.

    >>> round(missable_divergence(10), 2)
    0.26
    """
    return 1 - 0.05 ** (1 / n) if n else None


def exact(
    deviations: Mapping[str, float | None], control: Mapping[str, float | None], tolerance: float
) -> tuple[Outcome, str]:
    """Judge an exact claim: every instance must be within the tolerance, and the negative control must not.

    `None` stands for a deviation that was not finite: it fails.
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
    """Combine the outcomes of the primary claims into the verdict of the paper.

    >>> of_paper(["reproduced", "inconclusive"]), of_paper(["smaller", "contradicted"])
    ('partly', 'smaller')
    """
    outcomes = set(primary)
    if not outcomes:
        return "none"
    if outcomes & {"incomplete", "invalid"}:
        return "incomplete"
    if "reproduced" in outcomes:
        return "reproduced" if len(outcomes) == 1 else "partly"
    if "inconclusive" in outcomes:
        return "inconclusive"
    return "smaller" if "smaller" in outcomes else "contradicted"
