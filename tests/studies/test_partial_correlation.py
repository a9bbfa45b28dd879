"""The exact claims on the table that ships with the package, and that each can fail."""

import numpy as np
import pytest

from trueup.studies import partial_correlation as study_file

CLAIMS = [c.name for c in study_file.study.claims]


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds_and_its_negative_control_breaks_it(name):
    claim = study_file.study.claim(name)
    assert claim.deviation(table="roman-cups") <= claim.tolerance
    assert claim.negative_control(table="roman-cups") > claim.tolerance


def test_parts_keeps_no_zero(monkeypatch):
    X = np.array([[1.0, 2, 0, 3], [1, 0, 0, 3], [4, 5, 0, 6]])
    monkeypatch.setattr(study_file.data, "load", lambda name: type("Table", (), {"X": X}))
    np.testing.assert_array_equal(study_file.parts("any"), [[1, 2, 3], [4, 5, 6]])
