"""The exact claim of FedWon's study, and that its negative control breaks it."""

from trueup.studies.fedwon import study


def test_the_claim_holds_and_its_negative_control_breaks_it():
    claim = study.claim("power")
    arguments = next(iter(claim.instances.values()))
    assert claim.deviation(**arguments) <= claim.tolerance
    assert claim.negative_control(**arguments) > claim.tolerance
