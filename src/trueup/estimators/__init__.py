"""Estimators with scikit-learn's interface, and the functions that carry their mathematics."""

from trueup.estimators.compositional_partial_correlation import CompositionalPartialCorrelation
from trueup.estimators.compositions import alr, clr, ilr, partial_correlation, variation_matrix

__all__ = [
    "CompositionalPartialCorrelation",
    "alr",
    "clr",
    "ilr",
    "partial_correlation",
    "variation_matrix",
]
