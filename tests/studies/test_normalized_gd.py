"""The exact claims on an instance each, that the negative control breaks them, and the contrasts."""

import math

import pytest

from trueup.lab._contrasts import SeedCells
from trueup.studies._protocols.separation import misled, steadier
from trueup.studies.normalized_gd import SWEEPS, study


@pytest.mark.parametrize(
    ("name", "instance"),
    [("table-1", "normalized, step 1"), ("guarantee", "200, step 10"), ("perceptron-limit", "4 and 9")],
)
def test_the_claim_holds_and_its_negative_control_breaks_it(name, instance):
    claim = study.claim(name)
    arguments = claim.instances[instance]
    assert claim.deviation(**arguments) <= claim.tolerance
    assert claim.negative_control(**arguments) > claim.tolerance


def cells(**steps):
    """Steps at 0.1, 1 and 100 for each arm, twice as many with a rare class; peaks equal to the step size."""
    return SeedCells(
        [
            (arm, {"lr": lr, "minority": m}, {"steps": k * f, "peak_loss": lr}, {})
            for arm, of in steps.items()
            for lr, k in zip((0.1, 1, 100), of, strict=True)
            for m, f in ((10, 2), (150, 1))
        ],
        {"steps": False, "peak_loss": False},
    )


def test_steadier_compares_factors_over_the_sweep():
    seed = cells(normalized=(40, 20, 10), lrgd=(800, 100, 10))
    assert steadier("normalized", "lrgd", "steps", "lr", SWEEPS).value(seed) == pytest.approx(
        math.log(80 / 4)
    )


def test_misled_is_the_smaller_of_two_changes():
    contrast = misled("lrgd", 1, 100, at={"minority": 10})
    assert contrast.value(cells(lrgd=(800, 100, 20))) == pytest.approx(math.log(5))
    assert contrast.value(cells(lrgd=(800, 100, 0.1))) == pytest.approx(math.log(100))
