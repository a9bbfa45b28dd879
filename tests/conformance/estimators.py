"""The cases of the estimator suite: how to make each estimator, and what of scikit-learn's data it "
"refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from trueup.calibration import (
    BetaCalibrator,
    CorrectnessAwareCalibrator,
    HistogramCalibrator,
    IsotonicCalibrator,
    MatrixScaler,
    PlattCalibrator,
    TemperatureScaler,
    VectorScaler,
)
from trueup.estimators import CompositionalPartialCorrelation, LargeStepLogisticRegression


@dataclass(frozen=True)
class Case:
    """One estimator with its defaults.

    Attributes:
        make: makes the estimator.
        expected_failed_checks: check of scikit-learn -> why it cannot pass on scikit-learn's own data. A
            check named here that passes fails the suite; all of them are run again on ``suitable`` data and
            pass.
        suitable: turns the numbers that a check would use into data on which the estimator works.
        suitable_target: does the same for the labels.
    """

    make: Callable[[], BaseEstimator]
    expected_failed_checks: Mapping[str, str] = field(default_factory=dict)
    suitable: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda X: X
    suitable_target: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda y: y


def compositions(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """As many samples, of three parts at least; whole numbers from 1, because a check casts them to "
    "integers."""
    shape = (X.shape[0], max(3, X.shape[1]))
    return 1 + np.round(100 * np.exp(np.random.default_rng(0).standard_normal(shape)))


def logits(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Append columns, so that there is a logit for each label."""
    more = max(0, 5 - X.shape[1])
    return np.concatenate([X, np.zeros((len(X), more), X.dtype)], axis=1)


def from_zero(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return y - y.min()


def calibrator(make: Callable[[], BaseEstimator]) -> Case:
    checks = (
        "check_estimators_overwrite_params",
        "check_estimators_fit_returns_self",
        "check_readonly_memmap_input",
        "check_sample_weights_pandas_series",
        "check_sample_weights_not_an_array",
        "check_sample_weights_shape",
        "check_sample_weights_not_overwritten",
    )
    return Case(make, dict.fromkeys(checks, _NO_LOGITS), suitable=logits, suitable_target=from_zero)


_NO_LOGITS = "has a label for which there is no column, and columns are the logits of the labels"
_ZERO = "shifts its data so that the smallest value is zero, and zeros are an error by default"
_TWO_PARTS = "uses two features, and the partial correlation of two parts is +1 by construction"

CASES: dict[str, Case] = {
    "BetaCalibrator": calibrator(BetaCalibrator),
    "CompositionalPartialCorrelation": Case(
        make=CompositionalPartialCorrelation,
        suitable=compositions,
        expected_failed_checks={
            "check_fit_score_takes_y": _ZERO,
            "check_estimators_overwrite_params": _TWO_PARTS,
            "check_dont_overwrite_parameters": _ZERO,
            "check_estimators_fit_returns_self": _TWO_PARTS,
            "check_readonly_memmap_input": _TWO_PARTS,
            "check_n_features_in_after_fitting": _ZERO,
            "check_estimators_dtypes": _ZERO,
            "check_dtype_object": _ZERO,
            "check_pipeline_consistency": _ZERO,
            "check_estimators_nan_inf": _ZERO,
            "check_estimators_pickle": _ZERO,
            "check_f_contiguous_array_estimator": _ZERO,
            "check_methods_sample_order_invariance": _ZERO,
            "check_methods_subset_invariance": _ZERO,
            "check_dict_unchanged": _ZERO,
            "check_fit_idempotent": _TWO_PARTS,
            "check_fit_check_is_fitted": _TWO_PARTS,
            "check_n_features_in": _TWO_PARTS,
            "check_fit2d_predict1d": _ZERO,
        },
    ),
    # Without views. The default topk of 4 needs as many classes.
    "CorrectnessAwareCalibrator": calibrator(lambda: CorrectnessAwareCalibrator(topk=2, max_iter=20)),
    "HistogramCalibrator": calibrator(HistogramCalibrator),
    "IsotonicCalibrator": calibrator(IsotonicCalibrator),
    # Few samples of many columns are separable, and without a penalty the loss then has no minimum.
    "MatrixScaler": calibrator(lambda: MatrixScaler(ridge=1.0)),
    "PlattCalibrator": calibrator(PlattCalibrator),
    "TemperatureScaler": calibrator(TemperatureScaler),
    "VectorScaler": calibrator(lambda: VectorScaler(ridge=1.0)),
    # Few steps: most of scikit-learn's data are not separable, so that each of many fits would take them all.
    "LargeStepLogisticRegression": Case(make=lambda: LargeStepLogisticRegression(max_iter=200)),
}
