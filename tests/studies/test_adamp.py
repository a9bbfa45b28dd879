"""The exact claims of AdamP's study, and that their negative control breaks them."""

import pytest

from trueup.studies.adamp import study


@pytest.mark.parametrize("name", ["norm-growth", "no-radial-step"])
def test_the_claim_holds_and_its_negative_control_breaks_it(name):
    claim = study.claim(name)
    arguments = next(iter(claim.instances.values()))
    assert claim.deviation(**arguments) <= claim.tolerance
    assert claim.negative_control(**arguments) > claim.tolerance
