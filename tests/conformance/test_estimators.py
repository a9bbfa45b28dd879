"""One suite for all estimators: scikit-learn's own checks, on the strict defaults.

Every public estimator is found by itself; one without a case fails. Checks whose data an estimator refuses
are expected to fail, each for a stated reason, and are then run again on data of the right kind.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.exceptions import SkipTestWarning
from sklearn.utils import estimator_checks

import trueup.calibration
import trueup.estimators
from conformance.estimators import CASES

ESTIMATORS = [
    name
    for area in (trueup.calibration, trueup.estimators)
    for name in area.__all__
    if inspect.isclass(thing := getattr(area, name)) and issubclass(thing, BaseEstimator)
]


def failures(case):
    """Check -> status and exception, of everything that did not simply pass."""
    results = estimator_checks.check_estimator(
        case.make(), expected_failed_checks=dict(case.expected_failed_checks), on_fail=None, on_skip=None
    )
    assert len(results) > 30
    return [result for result in results if result["status"] != "passed"]


def test_every_public_estimator_has_a_case():
    assert set(ESTIMATORS) == set(CASES)
    assert ESTIMATORS


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.filterwarnings("ignore", category=SkipTestWarning)
def test_scikit_learn_checks_on_strict_defaults(name):
    case = CASES[name]
    left = failures(case)
    unexpected = {r["check_name"]: r["exception"] for r in left if r["status"] == "failed"}
    assert not unexpected
    assert {r["check_name"] for r in left if r["status"] == "xfail"} == set(case.expected_failed_checks)
    for result in left:
        if result["status"] == "xfail":
            assert isinstance(result["exception"], (ValueError, AssertionError)), result


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.expected_failed_checks])
def test_expected_failures_pass_on_suitable_data(name, monkeypatch):
    case = CASES[name]

    def suitable(estimator, X, kernel=None):
        return case.suitable(np.asarray(X))

    def suitable_target(estimator, y):
        return case.suitable_target(np.asarray(y))

    # Every check passes its data through these functions, to adapt them to what an estimator's tags ask for.
    monkeypatch.setattr(estimator_checks, "_enforce_estimator_tags_X", suitable)
    monkeypatch.setattr(estimator_checks, "_enforce_estimator_tags_y", suitable_target)
    again = [result for result in failures(case) if result["check_name"] in case.expected_failed_checks]
    assert {r["check_name"]: r["exception"] for r in again} == {}
