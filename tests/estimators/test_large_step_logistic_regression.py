"""The estimator: what fit finds, curves, weights, warm start, data without a hyperplane, bad input."""

from __future__ import annotations

import pickle
import warnings
from itertools import islice
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch.nn import functional as F

from trueup.estimators import LargeStepLogisticRegression
from trueup.optim import large_step_descent, worst_case_problem
from trueup.optim._large_step_descent import Mode


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    rows = (y == 3) | (y == 8)
    return X[rows] / 16, y[rows]


def clouds(n=40, shift=3.0, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return rng.standard_normal((n, 2)) + shift * np.outer(2 * y - 1, [1, -1]), y


def never_separable():
    X, y = clouds(shift=0.5)
    return np.concatenate([X, X[:6]]), np.concatenate([y, 1 - y[:6]])


@pytest.mark.parametrize("mode", ["normalized", "lrgd", "batch_perceptron", "normalized_batch_perceptron"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_is_the_first_iterate_that_separates(digits, mode, fit_intercept):
    X, y = digits
    model = LargeStepLogisticRegression(lr=10, mode=mode, fit_intercept=fit_intercept).fit(X, y)
    features = np.column_stack([X, np.ones(len(X))]) if fit_intercept else X
    Z = torch.from_numpy(np.where(y == 8, 1.0, -1.0)[:, None] * features)
    iterates = list(islice(large_step_descent(Z, 10, mode), model.n_iter_ + 1))
    assert [bool(i.margins.min() > 0) for i in iterates] == [False] * model.n_iter_ + [True]
    assert model.separated_
    kept = np.append(model.coef_[0], model.intercept_) if fit_intercept else model.coef_[0]
    np.testing.assert_allclose(kept, iterates[-1].theta, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.loss_curve_, [F.softplus(-i.margins).mean() for i in iterates[1:]])
    wrong = [(i.margins <= 0).double().mean() for i in iterates[1:]]
    np.testing.assert_allclose(model.error_curve_, wrong, atol=1e-12)
    assert model.coef_.shape == (1, 64)
    assert model.intercept_.shape == (1,)
    assert (model.intercept_ != 0) == fit_intercept
    assert model.score(X, y) == 1


def test_the_briefs_counts(digits):
    """Iterations that an independent program needed on threes against eights, with a constant feature."""
    X, y = digits
    for mode, counts in (("normalized", [179, 75, 52, 67, 40]), ("lrgd", [None, 278, 92, 69, 72])):
        for lr, count in zip((0.1, 1, 10, 100, 1000), counts, strict=True):
            if count is not None:
                assert LargeStepLogisticRegression(lr=lr, mode=mode).fit(X, y).n_iter_ == count


def test_the_papers_worst_case():
    X, y = worst_case_problem(1000)
    model = LargeStepLogisticRegression(lr=100, fit_intercept=False)
    assert model.fit(X.numpy(), y.numpy()).n_iter_ == 2
    assert model.set_params(mode="lrgd").fit(X.numpy(), y.numpy()).n_iter_ == 308


def test_labels_may_be_anything_and_predictions_follow_the_score():
    X, y = clouds()
    model = LargeStepLogisticRegression().fit(X, np.array(["cat", "dog"])[y])
    assert model.classes_.tolist() == ["cat", "dog"]
    np.testing.assert_array_equal(model.decision_function(X) > 0, model.predict(X) == "dog")
    np.testing.assert_array_equal(model.predict(X) == "dog", y == 1)
    np.testing.assert_allclose(model.decision_function(X), X @ model.coef_[0] + model.intercept_[0])


def test_weights_count_samples():
    X, y = clouds(shift=0.9, seed=3)
    weight = np.random.default_rng(1).integers(0, 3, len(X))
    for mode in get_args(Mode):
        model = LargeStepLogisticRegression(lr=2.0, mode=mode, max_iter=8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            weighted = clone(model).fit(X, y, sample_weight=7.0 * weight)
            repeated = clone(model).fit(X.repeat(weight, 0), y.repeat(weight))
        np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-7)
        np.testing.assert_allclose(weighted.error_curve_, repeated.error_curve_, rtol=1e-12)
        np.testing.assert_allclose(weighted.loss_curve_, repeated.loss_curve_)


def test_without_a_hyperplane_the_best_iterate_is_kept_and_a_warning_says_so():
    X, y = never_separable()
    model = LargeStepLogisticRegression(lr=10, max_iter=50)
    with pytest.warns(ConvergenceWarning, match=r"50 steps did not separate .*LogisticRegression$"):
        model.fit(X, y)
    assert not model.separated_
    assert model.n_iter_ == len(model.loss_curve_) == len(model.error_curve_) == 50
    assert 1 - model.score(X, y) == pytest.approx(min(model.error_curve_))
    assert model.error_curve_[-1] > min(model.error_curve_)


def test_too_few_steps_warn(digits):
    with pytest.warns(ConvergenceWarning):
        assert not LargeStepLogisticRegression(max_iter=3).fit(*digits).separated_
    exactly = LargeStepLogisticRegression().fit(*digits).n_iter_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LargeStepLogisticRegression(max_iter=exactly).fit(*digits).separated_


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_warm_start_goes_on(digits, fit_intercept):
    straight = LargeStepLogisticRegression(lr=1, fit_intercept=fit_intercept).fit(*digits)
    model = LargeStepLogisticRegression(lr=1, fit_intercept=fit_intercept, warm_start=True).fit(*digits)
    again = model.coef_.copy()
    model.fit(*digits)
    assert model.n_iter_ == 0
    assert model.loss_curve_ == []
    np.testing.assert_array_equal(model.coef_, again)
    model.set_params(warm_start=False).fit(*digits)
    assert model.n_iter_ == straight.n_iter_
    elsewhere = model.set_params(warm_start=True).fit(digits[0] + 0.05, digits[1])
    assert (
        elsewhere.n_iter_
        < LargeStepLogisticRegression(lr=1, fit_intercept=fit_intercept)
        .fit(digits[0] + 0.05, digits[1])
        .n_iter_
    )


def test_input_is_left_alone_and_models_are_picklable(digits):
    X, y = digits[0].copy(), digits[1]
    X.flags.writeable = False
    model = pickle.loads(pickle.dumps(LargeStepLogisticRegression().fit(X, y)))
    np.testing.assert_array_equal(X, digits[0])
    assert model.score(X, y) == 1


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lr": 0}, "lr must be a finite number above 0"),
        ({"lr": -1.0}, "lr must be"),
        ({"lr": np.inf}, "lr must be"),
        ({"lr": np.nan}, "lr must be"),
        ({"lr": "large"}, "lr must be"),
        ({"max_iter": 0}, "max_iter must be an integer, 1 or more"),
        ({"max_iter": 2.5}, "max_iter must be"),
        ({"mode": "perceptron"}, "mode must be one of .*batch_perceptron"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(ValueError, match=message):
        LargeStepLogisticRegression(**parameters).fit(*clouds())


def test_bad_data():
    X, y = clouds()
    model = LargeStepLogisticRegression()
    with pytest.raises(ValueError, match=r"Only binary classification.*3 classes: wrap"):
        model.fit(X, np.arange(40) % 3)
    with pytest.raises(ValueError, match="got one class"):
        model.fit(X, np.zeros(40))
    with pytest.raises(ValueError, match="positive weight; got one class"):
        model.fit(X, y, sample_weight=y)
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        model.fit(X, y, sample_weight=np.where(y == 1, 1.0, -1.0))
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.where(X > 4, np.nan, X), y)
    with pytest.raises(ValueError, match="continuous"):
        model.fit(X, X[:, 0])
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_what_is_beyond_float64_raises():
    X, y = clouds()
    for lr, scale in ((1.7e308, 10.0), (100.0, 1e308)):
        with pytest.raises(ValueError, match=r"beyond float64 after 1 steps of lr=.*scale the features"):
            LargeStepLogisticRegression(lr=lr).fit(np.clip(X, -1, 1) * scale, y)


def test_weights_whose_sum_is_beyond_float64():
    X, y = clouds(shift=0.9, seed=3)
    huge = LargeStepLogisticRegression(max_iter=8, lr=2.0)
    plain = clone(huge)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        huge.fit(X, y, sample_weight=np.full(len(X), 1e308))
        plain.fit(X, y)
    assert huge.n_iter_ == 8
    np.testing.assert_allclose(huge.coef_, plain.coef_)


def test_constant_columns_and_no_information():
    X, y = clouds()
    assert LargeStepLogisticRegression().fit(np.column_stack([X, np.full(len(X), 7.0)]), y).separated_
    with pytest.warns(ConvergenceWarning):
        model = LargeStepLogisticRegression(max_iter=5).fit(np.ones_like(X), y)
    assert not model.separated_
    assert np.isfinite(model.coef_).all()


def test_warm_start_with_other_features():
    X, y = clouds()
    model = LargeStepLogisticRegression(warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="continues from 2 coefficients, but X has 4 features"):
        model.fit(np.column_stack([X, X]), y)
