"""Calibrators as scikit-learn's own tools use them: `clone`, `Pipeline` and `GridSearchCV`."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from trueup.calibration import HistogramCalibrator, MatrixScaler, TemperatureScaler


@pytest.fixture(scope="module")
def digits():
    """An over-confident classifier, and data that it has not seen."""
    X, y = load_digits(return_X_y=True)
    X, X_new, y, y_new = train_test_split(X / 16, y, train_size=200, random_state=0)
    return LogisticRegression(C=1e6, max_iter=5000).fit(X, y), X_new, y_new


def test_a_calibrator_ends_a_pipeline(digits):
    model, X, y = digits
    X_fit, X_new, y_fit, y_new = train_test_split(X, y, random_state=0)
    pipeline = make_pipeline(FunctionTransformer(model.decision_function), TemperatureScaler())
    probs = pipeline.fit(X_fit, y_fit).predict_proba(X_new)
    assert log_loss(y_new, probs) < log_loss(y_new, model.predict_proba(X_new))
    assert pipeline.score(X_new, y_new) == pytest.approx(-log_loss(y_new, probs))
    np.testing.assert_array_equal(probs.argmax(1), model.predict(X_new))
    copied = clone(pipeline)
    assert not hasattr(copied[-1], "temperature_")
    np.testing.assert_array_equal(copied.fit(X_fit, y_fit).predict_proba(X_new), probs)


def test_grid_search_chooses_a_penalty(digits):
    model, X, y = digits
    pipeline = make_pipeline(FunctionTransformer(model.decision_function), StandardScaler(), MatrixScaler())
    search = GridSearchCV(pipeline, {"matrixscaler__ridge": [1e-3, 1e-2, 1e3]}, cv=3).fit(X[:600], y[:600])
    assert search.best_params_ != {"matrixscaler__ridge": 1e3}
    # the default score is the mean log-likelihood
    assert search.score(X[600:], y[600:]) == pytest.approx(-log_loss(y[600:], search.predict_proba(X[600:])))


def test_grid_search_over_a_calibrator_itself(digits):
    model, X, y = digits
    logits = model.decision_function(X)
    search = GridSearchCV(HistogramCalibrator(), {"n_bins": [1, 10]}, cv=3).fit(logits, y)
    assert search.best_params_ == {"n_bins": 10}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
