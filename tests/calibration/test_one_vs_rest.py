"""Histogram, beta, isotonic and Platt calibration against their definitions, class by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.calibration import CalibratedClassifierCV
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from trueup.calibration import BetaCalibrator, HistogramCalibrator, IsotonicCalibrator, PlattCalibrator
from trueup.calibration._beta_calibration import beta_calibration
from trueup.calibration._one_vs_rest import log_odds


def data(n=400, classes=3):
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((n, classes))
    return logits, (logits / 2 + rng.gumbel(size=logits.shape)).argmax(1)


def normalized(columns):
    q = np.stack(columns, 1)
    return q / q.sum(1, keepdims=True)


def test_log_odds():
    logits = torch.tensor([[1.0, 0.0, -3.0], [50.0, 0.0, 1.0]], dtype=torch.float64)
    p = logits.softmax(1)
    torch.testing.assert_close(log_odds(logits)[0], p[0].logit())
    assert float(log_odds(logits)[1, 0]) == pytest.approx(50 - np.log(1 + np.e), rel=1e-12)  # p rounds to 1
    assert log_odds(torch.tensor([[0.0, -torch.inf, -torch.inf]])).tolist() == [[700, -700, -700]]
    torch.testing.assert_close(log_odds(logits[:, :2]), logits[:, 1:2] - logits[:, :1])
    torch.testing.assert_close(log_odds(logits + 9), log_odds(logits))


@pytest.mark.parametrize("binning", ["uniform", "quantile"])
def test_histogram_is_the_frequency_per_bin(binning):
    logits, target = data()
    calibrator = HistogramCalibrator(n_bins=6, binning=binning).fit(logits, target)
    p, new = special.softmax(logits, 1), special.softmax(logits[::-1] * 1.3, 1)
    columns = []
    for c in range(3):
        edges = np.linspace(0, 1, 7)
        if binning == "quantile":
            edges[1:-1] = np.sort(p[:, c])[np.ceil(edges[1:-1] * 400 - 1e-9).astype(int) - 1]
        q = []
        for value in new[:, c]:
            b = next(i for i in range(6) if value <= edges[i + 1])
            inside = (p[:, c] > edges[b]) & (p[:, c] <= edges[b + 1])
            q.append((target[inside] == c).mean() if inside.any() else (edges[b] + edges[b + 1]) / 2)
        columns.append(q)
    np.testing.assert_allclose(calibrator.predict_proba(logits[::-1] * 1.3), normalized(columns), rtol=1e-9)


def test_an_empty_bin_gives_its_midpoint():
    calibrator = HistogramCalibrator(n_bins=4).fit(np.array([3.0, 3.0, -3.0]), np.array([1, 0, 0]))
    np.testing.assert_allclose(
        calibrator.predict_proba(special.logit([0.01, 0.3, 0.7, 0.99])), [0, 0.375, 0.625, 0.5]
    )
    np.testing.assert_array_equal(calibrator.transform(np.array([-3.0])), [-np.inf])


def test_a_row_of_zeros_becomes_uniform():
    logits = np.log([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
    calibrator = HistogramCalibrator(n_bins=2).fit(logits, np.array([0, 1, 2]))
    np.testing.assert_allclose(calibrator.predict_proba(np.log([[0.4, 0.3, 0.3]])), np.full((1, 3), 1 / 3))


def test_isotonic_is_that_of_scikit_learn():
    logits, target = data()
    calibrator = IsotonicCalibrator().fit(logits, target)
    odds, new = log_odds(torch.from_numpy(logits)).numpy(), 1.5 * logits[::-1]  # also outside the range
    new_odds = log_odds(torch.from_numpy(new.copy())).numpy()
    columns = [
        IsotonicRegression(out_of_bounds="clip").fit(odds[:, c], target == c).predict(new_odds[:, c])
        for c in range(3)
    ]
    np.testing.assert_allclose(calibrator.predict_proba(new), normalized(columns), rtol=1e-9, atol=1e-12)


def test_isotonic_of_a_constant_score():
    calibrator = IsotonicCalibrator().fit(np.zeros(4), np.array([0, 1, 1, 1]))
    np.testing.assert_allclose(calibrator.predict_proba(np.array([-1.0, 0.0, 1.0])), 0.75)


def test_platt_is_the_sigmoid_calibration_of_scikit_learn():
    logits, target = data(classes=2)
    single = logits[:, 1] - logits[:, 0]

    class Scores(LogisticRegression):
        def decision_function(self, X):
            return X[:, 0]

    from sklearn.frozen import FrozenEstimator

    scores = FrozenEstimator(Scores().fit(single[:, None], target))
    theirs = CalibratedClassifierCV(scores, method="sigmoid", ensemble=False, cv=5).fit(
        single[:, None], target
    )
    ours = PlattCalibrator().fit(single, target).predict_proba(single)
    np.testing.assert_allclose(ours, theirs.predict_proba(single[:, None])[:, 1], atol=1e-5)


def test_platt_minimizes_the_loss_of_smoothed_targets():
    logits, target = data()
    calibrator = PlattCalibrator().fit(logits, target)
    odds = log_odds(torch.from_numpy(logits)).numpy()
    for c in range(3):
        n1 = (target == c).sum()
        smooth = np.where(target == c, (n1 + 1) / (n1 + 2), 1 / (400 - n1 + 2))
        slope, intercept = calibrator.coef_[c]
        residual = special.expit(slope * odds[:, c] + intercept) - smooth
        assert abs(residual.mean()) < 1e-6
        assert abs((residual * odds[:, c]).mean()) < 1e-6


def test_platt_stays_finite_on_separable_data():
    logits = np.array([-3.0, -2.0, 2.0, 3.0])
    probs = PlattCalibrator().fit(logits, np.array([0, 0, 1, 1])).predict_proba(logits)
    assert 0.1 < probs[0] < 0.5 < probs[-1] < 0.9  # the targets are 1/4 and 3/4


def test_beta_is_the_equation_at_the_optimum():
    logits, target = data()
    calibrator = BetaCalibrator().fit(logits, target)
    p = special.softmax(logits, 1)
    columns = [beta_calibration(p[:, c], *calibrator.coef_[c]) for c in range(3)]
    np.testing.assert_allclose(calibrator.predict_proba(logits), normalized(columns), rtol=1e-9)
    for c in range(3):
        residual = columns[c] - (target == c)
        assert (calibrator.coef_[c, :2] > 0).all()
        for feature in (np.log(p[:, c]), np.log(1 - p[:, c]), 1.0):
            assert abs((residual * feature).mean()) < 1e-7


def test_beta_increases_even_if_the_scores_are_reversed():
    logits, target = data(classes=2)
    single = logits[:, 0] - logits[:, 1]  # the wrong way round
    calibrator = BetaCalibrator().fit(single, target)
    np.testing.assert_array_equal(calibrator.coef_[0, :2], 0)
    np.testing.assert_allclose(calibrator.predict_proba(single), target.mean(), rtol=1e-6)


@pytest.mark.bad_input
def test_bad_parameters():
    logits, target = data()
    for n_bins in (0, 2.5, None):
        with pytest.raises(ValueError, match="n_bins must be an integer, 1 or more"):
            HistogramCalibrator(n_bins=n_bins).fit(logits, target)
    with pytest.raises(ValueError, match="binning must be one of"):
        HistogramCalibrator(binning="equal").fit(logits, target)
