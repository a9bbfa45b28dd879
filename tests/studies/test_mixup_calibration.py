"""The cell of Mixup's study on logits whose best temperature is known, and what its nets are trained on."""

import pytest
import torch

from trueup.lab import Run
from trueup.studies.mixup_calibration import LOSSES, cell, draw, logits, study

# In a plane clusters are near each other, so that the temperature matters for many points.
SETTINGS = dict(study.scales["desk"]) | {"overlap": 0.3, "num_classes": 4, "dim": {4: 2}}


def report(solver="", inputs=None, **changed):
    settings = SETTINGS | {"net": "erm", "solver": solver} | changed
    return Run("mixup-calibration", "desk", "report", "erm", settings, 3, inputs=inputs or {})


def scaled_truth(factor):
    """Return the logits of the true probabilities, times a factor."""
    return {
        "erm": {
            rows: (factor * draw(report(), rows)[2].log().clamp_min(-60)).numpy()
            for rows in ("calibration", "test")
        }
    }


def test_the_truth_is_at_distance_zero():
    found = cell(report(inputs=scaled_truth(1.0)))
    assert found["kl"] == pytest.approx(0, abs=1e-9)
    assert found["ece"] < 0.02
    assert found["temperature"] == 1


def test_the_converged_solver_recovers_the_truth_and_the_published_one_does_not():
    inputs = scaled_truth(5.0)
    plain, published, converged = (cell(report(solver, inputs)) for solver in ("", "official", "paper"))
    assert converged["temperature"] == pytest.approx(5, rel=0.1)
    assert 1 < published["temperature"] < 1.2
    for metric in ("kl", "nll", "ece"):
        assert converged[metric] < published[metric] < plain[metric]


def test_nll_differs_from_kl_by_the_entropy_of_the_truth():
    inputs = scaled_truth(0.5)
    one, other = (cell(report(solver, inputs)) for solver in ("", "paper"))
    assert one["nll"] - other["nll"] == pytest.approx(one["kl"] - other["kl"], abs=0.01)


def test_the_three_sets_are_different_draws_of_one_distribution():
    sets = [draw(report(), rows) for rows in ("train", "calibration", "test")]
    assert [len(y) for _, y, _ in sets] == [800, 4000, 4000]
    means = [torch.stack([x[y == k].mean(0) for k in range(4)]) for x, y, _ in sets]
    torch.testing.assert_close(means[1], means[2], rtol=0, atol=0.5)
    torch.testing.assert_close(means[0], means[2], rtol=0, atol=0.9)
    assert not torch.equal(sets[1][0], sets[2][0])


def test_every_net_learns_from_its_own_loss():
    run = report(epochs=3, width=8, held_out=50)
    outputs = [logits(run, LOSSES[net](run))["test"] for net in LOSSES]
    assert all(z.shape == (50, 4) for z in outputs)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(outputs[a], outputs[b])


def test_arms_share_nets_that_exist():
    assert {arm.settings["net"] for arm in study.arms} == {stage.name for stage in study.stages}
