"""Power: against published tables and simulation, and the advice on more seeds."""

from __future__ import annotations

import numpy as np
import pytest

from trueup.lab._power import detectable, more_seeds, power, seeds_needed
from trueup.lab._verdict import Judgement, judge, of_links


def test_power_agrees_with_simulation() -> None:
    from scipy import stats

    d = np.random.default_rng(0).normal(0.8, 1.0, (20_000, 10))
    found = np.mean(stats.ttest_1samp(d, 0, axis=1, alternative="greater").pvalue <= 0.025)
    assert power(0.8, 10, 0.025) == pytest.approx(found, abs=0.01)


def test_power_without_an_effect_is_alpha() -> None:
    assert power(0.0, 10, 0.025) == pytest.approx(0.025)


@pytest.mark.parametrize(("fewest", "alpha"), [(6, 0.025), (8, 0.005)])
def test_too_few_seeds_have_no_power_whatever_the_effect(fewest: int, alpha: float) -> None:
    assert power(5.0, fewest, alpha) > 0.9
    assert power(5.0, fewest - 1, alpha) == 0.0
    assert seeds_needed(100.0, alpha) == fewest
    with pytest.raises(ValueError, match=f"cannot decide anything at alpha = {alpha}: give .* {fewest}$"):
        detectable(fewest - 1, alpha)


@pytest.mark.parametrize(
    ("n", "alpha", "effect"),
    [(8, 0.025, 1.16), (10, 0.025, 1.0), (20, 0.025, 0.66), (10, 0.005, 1.33), (20, 0.02, 0.69)],
)
def test_the_effects_that_the_protocol_promises(n: int, alpha: float, effect: float) -> None:
    assert detectable(n, alpha) == pytest.approx(effect, abs=0.006)
    assert power(detectable(n, alpha), n, alpha) == pytest.approx(0.8)


@pytest.mark.parametrize("effect", [0.3, 0.66, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.025, 0.005])
def test_seeds_needed_is_the_smallest_number_that_suffices(effect: float, alpha: float) -> None:
    n = seeds_needed(effect, alpha)
    assert n is not None
    assert power(effect, n, alpha) >= 0.8 > power(effect, n - 1, alpha)
    assert seeds_needed(-effect, alpha) == n


def test_an_effect_beyond_measure_is_found() -> None:
    assert power(1e16, 10, 0.025) == 1.0
    assert power(-1e16, 10, 0.025) == power(float("nan"), 10, 0.025) == 0.0
    assert seeds_needed(1e16, 0.025) == 6


def test_effects_that_no_number_of_seeds_finds() -> None:
    assert seeds_needed(0.0, 0.025) is None
    assert seeds_needed(0.01, 0.025) is None
    assert seeds_needed(0.5, 0.025, most=20) is None


D = [1.0, -0.4, 0.9, -0.1, 0.8, -0.2]  # mean 1/3, sd 0.628


@pytest.mark.parametrize(
    ("test", "margin", "distance"),
    [("superiority", 0.1, 0.2333), ("non-inferiority", 0.02, 0.3533), ("equivalence", 0.6, 0.2667)],
)
def test_more_seeds_count_from_the_nearest_line_of_decision(
    test: str, margin: float, distance: float
) -> None:
    undecided = judge(D, margin, test=test)  # type: ignore[arg-type]
    needed = seeds_needed(distance / np.std(D, ddof=1), 0.025)
    assert undecided.outcome == "inconclusive"
    assert needed is not None
    assert more_seeds(undecided) == needed - len(D)


def test_more_seeds_bring_at_least_the_fewest_that_can_decide() -> None:
    assert more_seeds(judge([5.0, 5.1, 4.9], 0.1)) == 3
    assert more_seeds(judge([5.0, 5.1, 4.9], 0.1, alpha=0.005)) == 5
    assert more_seeds(judge([5.0], 0.1)) is None  # one seed says nothing of the spread
    assert more_seeds(judge([5.0, 5.0], 0.1)) == 4  # no spread yet: enough to see one


def test_at_least_one_seed_more_is_asked_of_the_undecided() -> None:
    # an effect that 10 seeds usually find, and these did not
    unlucky = Judgement("inconclusive", margin=0.0, d=(3.0, 1.0, 2.0, 2.5, 1.5, 2.0), mean=2.0)
    assert more_seeds(unlucky) == 1


@pytest.mark.parametrize(
    "judged",
    [
        judge([5.0, 5.1, 4.9, 5.2, 4.8, 5.0], 0.1),
        judge([], 0.1),
        judge([1.0, -1.0, 2.0, -2.0, 3.0, -3.0], 0.0),
        Judgement("inconclusive", note="the problem did not arise here (x)", d=tuple(D), mean=0.3),
        Judgement("inconclusive", d=(1.0,) * 6, mean=1.0),
    ],
    ids=["decided", "no seeds", "on the line", "no illness", "no spread"],
)
def test_where_seeds_do_not_help(judged: Judgement) -> None:
    assert more_seeds(judged) is None


def test_an_ordering_needs_what_its_most_demanding_link_needs() -> None:
    near, far = judge(D, 0.1), judge(D, 0.02)
    decided = judge([5.0, 5.1, 4.9, 5.2, 4.8, 5.0], 0.1)
    whole = of_links([decided, near, far], decided)
    assert (
        more_seeds(whole, [decided, near, far]) == more_seeds(near) == max(more_seeds(near), more_seeds(far))
    )  # type: ignore[type-var]
    never = judge([1.0, -1.0, 2.0, -2.0, 3.0, -3.0], 0.0)
    assert more_seeds(of_links([near, never], decided), [near, never]) is None
