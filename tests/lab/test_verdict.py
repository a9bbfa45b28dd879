"""The verdict rule: every numbered line of the protocol, and the error rates it promises."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from trueup.lab import verdict
from trueup.lab.verdict import Judgement, above, fewest_seeds, judge

TIGHT = [0.9, 1.1, 1.0, 1.2, 0.8, 1.05, 0.95, 1.0, 1.1, 0.9]  # mean 1, sd 0.12


def shifted(mean: float, n: int = 10) -> list[float]:
    """Well-behaved contrasts around a mean."""
    return [mean + x - 1 for x in TIGHT[:n]]


# -- line 3: too few seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "fewest"), [(0.025, 6), (0.02, 6), (0.005, 8)])
def test_below_the_fewest_seeds_nothing_is_decided(alpha: float, fewest: int) -> None:
    assert fewest_seeds(alpha) == fewest
    few = judge(shifted(100.0, fewest - 1), 0.5, alpha)
    assert (few.outcome, few.note, few.low) == ("inconclusive", "too few seeds", None)
    assert judge(shifted(100.0, fewest), 0.5, alpha).outcome == "reproduced"


def test_no_seeds_is_incomplete() -> None:
    assert judge([], 0.5).outcome == "incomplete"


# -- line 4: contrasts that seeds do not change --------------------------------------------------------------


@pytest.mark.parametrize("d", [[0.3] * 10, [1e6] * 9 + [1e6 + 1e-7], [0.0] * 10, [0.0] * 9 + [5e-13]])
def test_contrasts_that_seeds_do_not_change_are_refused(d: list[float]) -> None:
    refused = judge(d, 0.1)
    assert refused.outcome == "invalid"
    assert "exact claim" in refused.note


def test_a_small_true_spread_is_not_refused() -> None:
    assert judge([1e-6 * x for x in TIGHT], 1e-7).outcome == "reproduced"
    assert judge([1e6 + 1e-3 * x for x in TIGHT], 1.0).outcome == "reproduced"
    assert judge([1 + 2e-11 * x for x in TIGHT], 0.5).outcome == "reproduced"


# -- lines 5 and 6: both tests must agree --------------------------------------------------------------------


def test_above_needs_the_t_test() -> None:
    # one seed against: few sign flips beat it, yet its size inflates the t-test's spread
    d = np.array([0.2, 0.3, 0.25, 0.2, 0.3, 0.35, 0.3, 0.25, 0.3, 8.0])
    t, flips = verdict.pvalues(d, 0.0)
    assert flips <= 0.025 < t
    assert not above(d, 0.0, 0.025)
    assert judge(d.tolist(), 0.0).outcome == "inconclusive"
    assert judge((-d).tolist(), 0.0).outcome == "inconclusive"


def test_above_needs_the_permutation_test() -> None:
    # uneven seeds: the t-test is satisfied, the signs of five seeds are not rare enough
    d = np.array([1.0, 1.1, 0.9, 1.0, 1.0, 1.05])
    assert verdict.pvalues(d, 0.0)[0] < 0.005
    assert verdict.pvalues(d, 0.0)[1] == pytest.approx(1 / 64)
    assert above(d, 0.0, 1 / 64)
    assert not above(d, 0.0, 1 / 65)


def test_pvalues_are_those_of_the_two_named_tests() -> None:
    d, m = np.random.default_rng(3).normal(0.3, 1.0, 9), 0.1
    t, flips = verdict.pvalues(d, m)
    x = d - m
    assert t == pytest.approx(stats.t.sf(x.mean() / (x.std(ddof=1) / 3), 8))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1).T
    assert flips == pytest.approx(np.mean((signs * x).mean(axis=1) >= x.mean() - 1e-12))


def test_a_verdict_does_not_change_from_call_to_call() -> None:
    d = np.random.default_rng(5).normal(0.2, 1.0, 20)  # 20 seeds: flips are drawn, not listed
    assert 0.05 < verdict.pvalues(d, 0.0)[1] < 0.5
    assert verdict.pvalues(d, 0.0) == verdict.pvalues(d, 0.0)


# -- line 7: superiority -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "outcome", "note"),
    [
        (1.0, "reproduced", ""),
        (0.52, "inconclusive", ""),
        (0.3, "contradicted", "right sign but smaller than the minimum effect"),
        (0.15, "contradicted", "right sign but smaller than the minimum effect"),
        (0.0, "contradicted", "any gain is smaller than the minimum effect"),
        (-0.3, "contradicted", "opposite"),
    ],
)
def test_superiority(mean: float, outcome: str, note: str) -> None:
    judged = judge(shifted(mean), 0.5)
    assert (judged.outcome, judged.note) == (outcome, note)


@pytest.mark.parametrize("mean", [1.0, 0.52, 0.3, -0.3])
def test_a_judgement_keeps_the_larger_p_value_whatever_the_outcome(mean: float) -> None:
    assert judge(shifted(mean), 0.5).pvalue == max(verdict.pvalues(np.array(shifted(mean)), 0.5))
    behind = judge(shifted(mean), 0.5, test="non-inferiority")
    assert behind.pvalue == max(verdict.pvalues(np.array(shifted(mean)), -0.5))


# the t-test says above 0, and the sign flips do not: the weight of the evidence is uneven
UNEVEN = np.array([1.6, 1.7, 0.4, 1.1, -0.4, 0.4, 2.3])


def test_uneven_seeds_are_named_where_only_the_t_test_would_decide() -> None:
    t, flips = verdict.pvalues(UNEVEN, 0.0)
    assert t <= 0.025 < flips
    for d in (UNEVEN, -UNEVEN):
        judged = judge(d.tolist(), 0.0)
        assert (judged.outcome, judged.note) == ("inconclusive", "uneven seeds")


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("line", [-20.0, 20.0])  # only the t-test says "inside", or "outside"
def test_uneven_seeds_of_an_equivalence(line: float, sign: int) -> None:
    judged = judge((sign * (UNEVEN + line)).tolist(), 20.0, test="equivalence")
    assert (judged.outcome, judged.note) == ("inconclusive", "uneven seeds")


# -- lines 8 and 9: equivalence, non-inferiority -------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "outcome"),
    [
        (0.0, "reproduced"),
        (0.35, "reproduced"),
        (-0.35, "reproduced"),
        (0.5, "inconclusive"),
        (-0.48, "inconclusive"),
        (0.8, "contradicted"),
        (-0.8, "contradicted"),
    ],
)
def test_equivalence(mean: float, outcome: str) -> None:
    assert judge(shifted(mean), 0.5, test="equivalence").outcome == outcome


def test_equality_is_not_inferred_from_a_large_p() -> None:
    noisy = judge([5.0, -5.0, 4.0, -4.0, 3.0, -3.0, 2.0, -2.2], 0.5, test="equivalence")
    assert noisy.outcome == "inconclusive"
    assert noisy.pvalue is not None
    assert noisy.pvalue > 0.3


@pytest.mark.parametrize(
    ("mean", "outcome"),
    [(0.3, "reproduced"), (-0.3, "reproduced"), (-0.5, "inconclusive"), (-0.8, "contradicted")],
)
def test_non_inferiority(mean: float, outcome: str) -> None:
    assert judge(shifted(mean), 0.5, test="non-inferiority").outcome == outcome


# -- line 10: orderings --------------------------------------------------------------------------------------


def link(outcome: str, pvalue: float | None = 0.01) -> Judgement:
    return Judgement(outcome, note=outcome, pvalue=pvalue)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("links", "outcome", "note"),
    [
        (["reproduced", "reproduced"], "reproduced", ""),
        (["reproduced", "inconclusive"], "inconclusive", "step 2 is undecided"),
        (["contradicted", "inconclusive"], "contradicted", "step 1 does not hold"),
        (["reproduced", "contradicted"], "contradicted", "step 2 does not hold"),
        (["inconclusive", "reproduced", "inconclusive"], "inconclusive", "steps 1 and 3 are undecided"),
        (["contradicted"] * 3, "contradicted", "steps 1, 2 and 3 do not hold"),
        (["contradicted", "incomplete"], "incomplete", "incomplete"),
        (["contradicted", "invalid"], "invalid", "invalid"),
    ],
)
def test_an_ordering_needs_all_its_links(links: list[str], outcome: str, note: str) -> None:
    whole = judge(TIGHT, 0.5)
    judged = verdict.of_links([link(k) for k in links], whole)
    assert (judged.outcome, judged.note, judged.mean) == (outcome, note, whole.mean)


def test_an_ordering_is_as_sure_as_its_weakest_link() -> None:
    whole = judge(TIGHT, 0.5)
    for outcome in ("reproduced", "inconclusive", "contradicted", "invalid"):
        assert verdict.of_links([link("reproduced", 0.01), link(outcome, 0.02)], whole).pvalue == 0.02


# -- line 11: requirements, edges ----------------------------------------------------------------------------


def test_without_the_illness_there_is_no_verdict() -> None:
    for outcome in ("reproduced", "contradicted", "inconclusive"):
        judged = verdict.with_requirements(link(outcome), {"ill": "inconclusive", "worse": "reproduced"})
        assert (judged.outcome, judged.note) == ("inconclusive", "the problem did not arise here (ill)")
    assert verdict.with_requirements(link("reproduced"), {"ill": "reproduced"}).outcome == "reproduced"
    assert verdict.with_requirements(link("incomplete"), {"ill": "contradicted"}).outcome == "incomplete"


@pytest.mark.parametrize(
    ("outcome", "role", "expected"),
    [
        ("reproduced", "baseline", "inconclusive"),
        ("reproduced", "control", "inconclusive"),
        ("reproduced", "method", "reproduced"),
        ("contradicted", "method", "inconclusive"),
        ("contradicted", "baseline", "contradicted"),
        ("contradicted", "control", "contradicted"),
        ("inconclusive", "baseline", "inconclusive"),
    ],
)
def test_an_edge_spares_the_arm_that_may_be_better(outcome: str, role: str, expected: str) -> None:
    judged = verdict.with_edges(link(outcome), [role])
    assert judged.outcome == expected
    if expected != outcome:
        whose = "a rival" if outcome == "reproduced" else "the method"
        assert judged.note == f"the best setting of {whose} is at its grid's edge"


# -- line 13: what is displayed ------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "level"), [(0.025, 0.95), (0.02, 0.96), (0.005, 0.99)])
def test_the_interval_has_the_level_of_its_look(alpha: float, level: float) -> None:
    judged = judge(TIGHT, 0.5, alpha)
    half = stats.t.ppf(1 - alpha, 9) * np.std(TIGHT, ddof=1) / math.sqrt(10)
    assert judged.level == pytest.approx(level)
    assert (judged.low, judged.high) == pytest.approx((1 - half, 1 + half))
    assert (judged.n, judged.mean) == (10, pytest.approx(1.0))


def test_a_judgement_as_json_sets_each_contrast_beside_its_seed() -> None:
    told = judge([0.9, -1.1, 1.0, 0.0, 0.8, 1.05], 0.5).to_dict([11, 12, 13, 14, 15, 16])
    assert told["d"][1] == {"seed": 12, "d": -1.1}
    assert (told["wins"], told["losses"], told["ties"], told["n"]) == (4, 1, 1, 6)


# -- lines 14 and 15: controls, papers, exact claims ---------------------------------------------------------


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        ([], None),
        (["reproduced", "reproduced"], "survives"),
        (["reproduced", "contradicted"], "explained"),
        (["inconclusive", "contradicted"], "explained"),
        (["reproduced", "inconclusive"], "undecided"),
        (["incomplete"], "undecided"),
    ],
)
def test_a_gain_survives_only_all_its_controls(controls: list[str], expected: str | None) -> None:
    assert verdict.survival([link(c) for c in controls]) == expected


@pytest.mark.parametrize(
    ("primary", "expected"),
    [
        ([], "none"),
        (["reproduced", "reproduced"], "reproduced"),
        (["contradicted", "contradicted"], "contradicted"),
        (["reproduced", "contradicted"], "partly"),
        (["reproduced", "inconclusive"], "partly"),
        (["contradicted", "inconclusive"], "inconclusive"),
        (["inconclusive"], "inconclusive"),
        (["reproduced", "incomplete"], "incomplete"),
        (["reproduced", "invalid"], "incomplete"),
    ],
)
def test_the_verdict_of_a_paper(primary: list[str], expected: str) -> None:
    assert verdict.of_paper(primary) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("deviations", "control", "expected"),
    [
        ({"a": 0.0, "b": 1e-8}, {"a": 1.0}, "reproduced"),
        ({"a": 0.0, "b": 1.1e-8}, {"a": 1.0}, "contradicted"),
        ({"a": None}, {"a": 1.0}, "contradicted"),
        ({"a": 0.0}, {"a": 0.0}, "invalid"),
        ({"a": 1.0}, {"a": 1e-8}, "invalid"),
        ({"a": 0.0}, {"a": None}, "reproduced"),
        ({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, "reproduced"),
    ],
)
def test_exact_claims(deviations: dict[str, float], control: dict[str, float], expected: str) -> None:
    outcome, note = verdict.exact(deviations, control, 1e-8)
    assert outcome == expected
    assert bool(note) == (outcome != "reproduced")


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [[1.0, math.nan] * 5, [math.inf] * 10, [[1.0, 2.0]]])
def test_contrasts_must_be_finite_numbers(d: list[float]) -> None:
    with pytest.raises(ValueError, match="contrasts must be finite numbers, one a seed"):
        judge(d, 0.1)


@pytest.mark.parametrize(("margin", "alpha"), [(-0.1, 0.025), (0.1, 0.0), (0.1, 0.5)])
def test_margin_and_alpha_have_ranges(margin: float, alpha: float) -> None:
    with pytest.raises(ValueError, match="margin must be >= 0 and alpha in"):
        judge(TIGHT, margin, alpha)


# -- the promised error rates, on simulated studies ----------------------------------------------------------

STUDIES = 2000


def outcomes(d: np.ndarray, m: float, alpha: float, test: str = "superiority") -> list[str]:
    """The verdict on every row. Rows that no t-test would decide are undecided by lines 5 and 7 alone, so the
    slow rule is asked about the others, and about a few of them to see that this is so."""

    def p(line: float) -> np.ndarray:
        return stats.ttest_1samp(d, line, axis=1, alternative="greater").pvalue

    if test == "equivalence":
        decidable = (p(-m) <= alpha) & (1 - p(m) <= alpha) | (p(m) <= alpha) | (1 - p(-m) <= alpha)
    else:
        decidable = np.minimum(p(m), 1 - p(m)) <= alpha
    for row in d[~decidable][:10]:
        assert judge(row, m, alpha, test).outcome == "inconclusive"  # type: ignore[arg-type]
    return [
        judge(row, m, alpha, test).outcome if ask else "inconclusive"  # type: ignore[arg-type]
        for row, ask in zip(d, decidable, strict=True)
    ]


@pytest.mark.parametrize("n", [6, 10])
def test_an_effect_of_just_the_margin_is_rarely_decided(n: int) -> None:
    m, sd = 0.4, 0.7
    found = outcomes(np.random.default_rng(10 + n).normal(m, sd, (STUDIES, n)), m, 0.025)
    for outcome in ("reproduced", "contradicted"):
        assert found.count(outcome) <= 0.03 * STUDIES
        assert found.count(outcome) >= (0.008 if n == 6 else 0.015) * STUDIES  # and not for want of power


@pytest.mark.slow
def test_an_effect_well_above_the_margin_is_found() -> None:
    m, sd = 0.4, 0.7
    found = outcomes(np.random.default_rng(2).normal(m + 1.16 * sd, sd, (STUDIES, 10)), m, 0.025)
    assert found.count("reproduced") >= 0.8 * STUDIES
    assert found.count("contradicted") == 0


def test_two_looks_together_keep_the_error_of_one() -> None:
    m, sd = 0.4, 0.7
    d = np.random.default_rng(3).normal(m, sd, (STUDIES, 20))
    first = outcomes(d[:, :10], m, 0.005)
    undecided = [i for i, outcome in enumerate(first) if outcome == "inconclusive"]
    second = outcomes(d[undecided], m, 0.02)
    for outcome in ("reproduced", "contradicted"):
        total = (first.count(outcome) + second.count(outcome)) / STUDIES
        assert 0.015 <= total <= 0.03  # 0.023 in theory


def test_arms_that_differ_by_the_margin_are_rarely_called_equivalent() -> None:
    m, sd = 1.0, 0.5
    found = outcomes(np.random.default_rng(4).normal(m, sd, (STUDIES, 10)), m, 0.025, "equivalence")
    assert found.count("reproduced") <= 0.03 * STUDIES
    assert found.count("contradicted") <= 0.03 * STUDIES
    assert found.count("reproduced") >= 0.015 * STUDIES


def test_thousands_of_seeds_are_judged_within_memory() -> None:
    d = np.random.default_rng(0).standard_normal(3000)
    tracemalloc.start()
    t, flips = verdict.pvalues(d, 0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert flips == pytest.approx(t, abs=0.02)
    assert peak < 500e6  # all the sign flips at once are 2 GB
