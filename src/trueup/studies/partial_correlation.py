"""Test whether partial correlations of compositional data are independent of the reference and of closure.

Ordinary ones are not. Erb 2020, arXiv 1904.09480. All claims are exact: real tables, no seeds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trueup import data
from trueup.estimators import CompositionalPartialCorrelation
from trueup.lab import ExactClaim, Study

Matrix = NDArray[np.float64]


def parts(table: str) -> Matrix:
    """Load the parts of a table, without parts that are mostly zero and rows that then hold a zero."""
    X = np.asarray(data.load(table).X, dtype=np.float64)
    X = X[:, (X > 0).mean(axis=0) > 0.5]
    return X[(X > 0).all(axis=1)]


def compositional(X: Matrix) -> Matrix:
    """Compute the partial correlations under test."""
    return np.asarray(CompositionalPartialCorrelation().fit(X).partial_correlation_)


def ordinary(X: Matrix) -> Matrix:
    """Compute partial correlations of the raw parts; those of a constant part are NaN."""
    C = np.cov(X, rowvar=False)
    varies = np.diag(C) > 1e-12 * np.diag(C).max()
    P = np.linalg.pinv(C[np.ix_(varies, varies)])
    r = np.full(C.shape, np.nan)
    r[np.ix_(varies, varies)] = -P / np.sqrt(np.outer(np.diag(P), np.diag(P)))
    np.fill_diagonal(r, 1.0)
    return r


def over_references(method: str, table: str) -> float:
    """Compute the largest range of any pair's value when the rows are divided by each part in turn."""
    X = parts(table)
    estimate = compositional if method == "compositional" else ordinary
    values = np.stack([estimate(X / X[:, [r]]) for r in range(X.shape[1])])
    return float(np.max(np.nanmax(values, axis=0) - np.nanmin(values, axis=0)))


def over_totals(method: str, table: str) -> float:
    """Compute the largest change when each row is multiplied by its own factor, as by an unknown total."""
    X = parts(table)
    estimate = compositional if method == "compositional" else ordinary
    factors = np.exp(np.random.default_rng(0).normal(size=(len(X), 1)))
    return float(np.nanmax(np.abs(estimate(X * factors) - estimate(X))))


def against_regression(method: str, table: str) -> float:
    """Compute the largest difference from the definition: correlated residuals of log-ratio regressions."""
    X = parts(table)
    L, D = np.log(X), X.shape[1]
    r = compositional(X) if method == "compositional" else ordinary(X)
    worst = 0.0
    for i in range(D):
        for j in range(i):
            reference, *rest = [k for k in range(D) if k not in (i, j)]
            A = np.column_stack([np.ones(len(X)), L[:, rest] - L[:, [reference]]])
            Y = L[:, [i, j]] - L[:, [reference]]
            residuals = Y - A @ np.linalg.lstsq(A, Y, rcond=None)[0]
            worst = max(worst, abs(np.corrcoef(residuals.T)[0, 1] - r[i, j]))
    return float(worst)


def subcomposition(statistic: str, table: str) -> float:
    """Return 0.1 minus the largest change of any pair's statistic when a part is left out; at least 0."""
    X = parts(table)

    def values(Z: Matrix) -> Matrix:
        if statistic == "partial correlation":
            return compositional(Z)
        L = np.log(Z)  # log-ratio variances do not depend on the other parts
        return np.asarray(np.var(L[:, :, None] - L[:, None, :], axis=0))

    whole = values(X)
    changes = []
    for k in range(X.shape[1]):
        keep = [i for i in range(X.shape[1]) if i != k]
        changes.append(np.abs(values(X[:, keep]) - whole[np.ix_(keep, keep)]).max())
    return max(0.0, 0.1 - float(max(changes)))


TABLES = {name: {"table": name} for name in ("roman-cups", "pottery", "forensic-glass")}

study = Study(
    slug="partial-correlation",
    question="Are partial correlations of a composition free of the reference and of unknown totals?",
    scales={"smoke": {}, "desk": {}, "paper": {}},
    claims=(
        ExactClaim(
            "reference-free",
            "The partial correlation of two parts is the same whichever part is the reference.",
            deviation=lambda table: over_references("compositional", table),
            negative_control=lambda table: over_references("ordinary", table),
            control_label="ordinary partial correlations of the raw parts over the reference",
            instances=TABLES,
            tolerance=1e-8,
            primary=True,
        ),
        ExactClaim(
            "scale-free",
            "It does not change when each sample's unknown total does.",
            deviation=lambda table: over_totals("compositional", table),
            negative_control=lambda table: over_totals("ordinary", table),
            control_label="ordinary partial correlations of the raw parts",
            instances=TABLES,
            tolerance=1e-8,
            primary=True,
        ),
        ExactClaim(
            "residual-definition",
            "It is the correlation of the residuals of log-ratio regressions on all other parts.",
            deviation=lambda table: against_regression("compositional", table),
            negative_control=lambda table: against_regression("ordinary", table),
            control_label="ordinary partial correlations of the raw parts",
            instances=TABLES,
            tolerance=1e-8,
        ),
        ExactClaim(
            "depends-on-the-parts",
            "It is not subcompositionally coherent: leaving out one part changes some pair by over 0.1.",
            deviation=lambda table: subcomposition("partial correlation", table),
            negative_control=lambda table: subcomposition("log-ratio variance", table),
            control_label="log-ratio variances, which are coherent",
            instances=TABLES,
            tolerance=0.0,
        ),
    ),
    data={"smoke": ["roman-cups"], "desk": list(TABLES), "paper": list(TABLES)},
    tested_on="Roman glass cups (47 x 11 oxides), Romano-British pottery, forensic glass",
    paper_setup="Roman glass cups and one further table",
)
