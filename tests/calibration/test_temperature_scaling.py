"""Temperature scaling against a root finder on the slope, and what it does where there is no optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from trueup.calibration import MatrixScaler, TemperatureScaler, VectorScaler, optimal_temperature
from trueup.calibration import _temperature_scaling as ts


def data(n, classes, temperature, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((n, classes))
    target = (logits / temperature + rng.gumbel(size=logits.shape)).argmax(1)
    return scale * logits, target


def oracle(logits, target, weight=None):
    """The root of the slope of the loss in b = 1 / T, sample by sample."""

    def slope(log_b):
        b = np.exp(log_b)
        each = [special.softmax(b * z) @ z - z[y] for z, y in zip(logits, target, strict=True)]
        return np.average(each, weights=weight)

    return np.exp(-optimize.brentq(slope, np.log(1e-5), np.log(1e5), xtol=1e-15, rtol=1e-14))


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 5.0])
@pytest.mark.parametrize("classes", [2, 3, 30])
def test_the_optimum_is_that_of_a_root_finder(temperature, classes):
    logits, target = data(200, classes, temperature)
    assert float(optimal_temperature(logits, target)) == pytest.approx(oracle(logits, target), rel=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.floats(-2, 2))
def test_the_optimum_at_any_scale(seed, classes, exponent):
    logits, target = data(30, classes, 1.5, seed, scale=10**exponent)
    below = logits.max(1) - logits[np.arange(30), target]
    above = logits[np.arange(30), target] - logits.mean(1)
    if below.sum() == 0 or above.sum() <= 0.1:
        return
    expected = oracle(logits, target)
    assert float(optimal_temperature(logits, target, t_bounds=(1e-5, 1e5))) == pytest.approx(
        expected, rel=1e-8
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [100, 20_000])
def test_lower_precision_logits_have_the_optimum_of_their_values(dtype, n):
    """20,000 rows take all three stages: some rows, all rows in float32, all rows in float64."""
    logits, target = data(n, 5, 2.0)
    logits = torch.from_numpy(logits + 50).to(dtype)  # an offset costs digits where it is not subtracted
    exact = optimal_temperature(logits.double(), target)
    assert float(optimal_temperature(logits, target)) == pytest.approx(float(exact), rel=1e-9)
    z = logits.double().numpy()
    slope = (special.softmax(z / float(exact), 1) * z).sum(1) - z[np.arange(n), target]
    assert slope.mean() == pytest.approx(0, abs=1e-9)


def test_the_loss_is_lowest_at_the_optimum():
    logits, target = (torch.from_numpy(a) for a in data(300, 4, 2.0))
    best = float(optimal_temperature(logits, target))
    loss = [float(ts.temperature_nll(logits, target, best * factor)) for factor in (0.999, 1.0, 1.001)]
    assert loss[1] < min(loss[0], loss[2])
    expected = torch.nn.functional.cross_entropy(logits / best, target)
    assert loss[1] == pytest.approx(float(expected), rel=1e-12)


def test_weights_count_samples():
    logits, target = data(100, 3, 2.0)
    weight = np.random.default_rng(1).integers(0, 4, 100)
    weighted = optimal_temperature(logits, target, sample_weight=weight)
    repeated = optimal_temperature(np.repeat(logits, weight, 0), np.repeat(target, weight))
    assert float(weighted) == pytest.approx(float(repeated), rel=1e-10)
    assert float(weighted) == pytest.approx(oracle(logits, target, weight), rel=1e-10)


def test_shift_and_scale_of_logits():
    logits, target = data(200, 4, 2.0)
    rng = np.random.default_rng(1)
    best = float(optimal_temperature(logits, target))
    shifted = logits + 100 * rng.standard_normal((200, 1))
    assert float(optimal_temperature(shifted, target)) == pytest.approx(best, rel=1e-10)
    assert float(optimal_temperature(7 * logits, target)) == pytest.approx(7 * best, rel=1e-10)


def test_separable_logits_reach_the_lower_bound():
    logits, target = 5 * torch.eye(4), torch.arange(4)
    with pytest.warns(UserWarning, match=r"T = 0.001 is a bound, .* every label has the largest logit"):
        assert optimal_temperature(logits, target) == 1e-3
    with pytest.warns(UserWarning, match=r"T = 0.2 is a bound"):
        assert TemperatureScaler(t_bounds=(0.2, 3)).fit(logits, target).temperature_ == 0.2


@pytest.mark.bad_input  # the lines of a shape check would stand between
@pytest.mark.parametrize(
    "fit", [optimal_temperature, TemperatureScaler().fit, VectorScaler().fit, MatrixScaler().fit]
)
def test_warnings_point_at_the_line_that_asked(fit):
    with pytest.warns(UserWarning, match="every label|separates") as caught:
        fit(5 * torch.eye(4), torch.arange(4))
    assert {warning.filename for warning in caught} == {__file__}


def test_anti_separable_logits_reach_the_upper_bound():
    with pytest.warns(UserWarning, match="T = 1000 is a bound, .* upper bound"):
        assert optimal_temperature(-5 * torch.eye(4), torch.arange(4)) == 1e3


@pytest.mark.parametrize(("bounds", "bound"), [((1e-3, 1.5), 1.5), ((3.0, 10.0), 3.0)])
def test_an_optimum_outside_the_bounds_is_clipped_to_them(bounds, bound):
    logits, target = data(200, 4, 2.0)
    with pytest.warns(UserWarning, match="loss still falls"):
        assert float(optimal_temperature(logits, target, t_bounds=bounds)) == pytest.approx(bound, rel=1e-15)


@pytest.mark.parametrize(("bounds", "expected"), [((1e-3, 1e3), 1.0), ((2.0, 3.0), 2.0)])
def test_equal_logits_have_no_best_temperature(bounds, expected):
    logits = torch.tensor([[3.0, 3.0], [-1.0, -1.0]])
    with pytest.warns(UserWarning, match="all equal"):
        assert optimal_temperature(logits, torch.tensor([0, 1]), t_bounds=bounds) == expected


def test_one_sample_is_separable_or_not():
    with pytest.warns(UserWarning, match="bound"):
        assert optimal_temperature(torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == 1e-3
    with pytest.warns(UserWarning, match="bound"):
        assert optimal_temperature(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) == 1e3


def test_a_subset_that_is_separable_does_not_mislead():
    """Every row of the subset, which is regular, is right; a third of the others is wrong."""
    n = 16 * ts._SUBSET
    target = torch.zeros(n, dtype=torch.int64)
    wrong = (torch.arange(n) % 16 != 0) & (torch.arange(n) % 3 == 0)
    target[wrong] = 1
    logits = torch.tensor([4.0, 0.0]).expand(n, 2)
    share = float(wrong.double().mean())
    expected = 4 / np.log((1 - share) / share)
    assert float(optimal_temperature(logits, target)) == pytest.approx(expected, rel=1e-10)


def test_excluded_classes():
    """A logit of -inf beside finite ones is a class of probability zero."""
    logits, target = data(100, 3, 2.0)
    masked = np.concatenate([logits, np.full((100, 1), -np.inf)], 1)
    best = float(optimal_temperature(logits, target))
    assert float(optimal_temperature(masked, target)) == pytest.approx(best, rel=1e-12)
    with pytest.raises(ValueError, match="logit of a label is -inf"):
        optimal_temperature(masked, np.full(100, 3))


def test_the_official_variant_does_not_converge():
    """As published: an optimum of 7.5 is fitted as 1.1."""
    logits, target = data(300, 5, 1.0, scale=7.5)
    official = TemperatureScaler(variant="official").fit(logits, target)
    assert official.temperature_ == pytest.approx(1.1, abs=0.02)
    assert TemperatureScaler().fit(logits, target).temperature_ > 6
    twice = TemperatureScaler(variant="official").fit(logits, target, np.full(300, 2.0))
    assert twice.temperature_ == pytest.approx(official.temperature_, rel=1e-12)


def test_the_official_variant_gives_the_published_values():
    """Recorded from the official code for these golden logits, which are compared with the optimum only."""
    from pathlib import Path

    from golden.reference import read

    recorded = {
        "ts_over": 1.1059846785663527,
        "ts_under": 0.9437103230987497,
        "ts_binary": 1.0901958711762896,
    }
    cases = {r.name: r.case for r in read(Path(__file__).parents[1] / "golden" / "mixup-calibration.npz")}
    for name, expected in recorded.items():
        case = cases[name]
        scaler = TemperatureScaler(variant="official").fit(case.inputs["logits"], case.inputs["labels"])
        assert scaler.temperature_ == pytest.approx(expected, rel=1e-9)


@pytest.mark.bad_input
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (1.0, np.inf), (np.nan, 1.0), (1.0,)])
def test_bounds_out_of_order(bounds):
    logits, target = data(10, 3, 1.0)
    with pytest.raises(ValueError, match="t_bounds must be"):
        optimal_temperature(logits, target, t_bounds=bounds)
    with pytest.raises(ValueError, match="t_bounds must be"):
        TemperatureScaler(t_bounds=bounds).fit(logits, target)


@pytest.mark.bad_input
def test_bad_input():
    logits, target = data(10, 3, 1.0)
    with pytest.raises(ValueError, match="variant must be one of"):
        TemperatureScaler(variant="legacy").fit(logits, target)
    with pytest.raises(ValueError, match="two classes or more"):
        optimal_temperature(logits[:, :1], np.zeros(10, int))
    with pytest.raises(ValueError, match="NaN"):
        optimal_temperature(logits * np.nan, target)
    with pytest.raises(TypeError, match="floating point"):
        optimal_temperature(torch.zeros(10, 3, dtype=torch.int64), target)
    with pytest.raises(ValueError, match="at least one row"):
        optimal_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
