"""Estimators with scikit-learn's interface, and the functions that compute them."""

from trueup.estimators._compositional_partial_correlation import CompositionalPartialCorrelation
from trueup.estimators._compositions import alr, clr, ilr, partial_correlation, variation_matrix
from trueup.estimators._large_step_logistic_regression import LargeStepLogisticRegression

__all__ = [
    "CompositionalPartialCorrelation",
    "LargeStepLogisticRegression",
    "alr",
    "clr",
    "ilr",
    "partial_correlation",
    "variation_matrix",
]
