"""The exact claim of StableSPAM's study, and what its arms are made of."""

import pytest
import torch

from trueup.studies import stable_spam
from trueup.studies.stable_spam import study


def test_the_claim_holds_and_its_negative_control_breaks_it():
    claim = study.claim("spikes-do-no-harm")
    arguments = next(iter(claim.instances.values()))
    assert claim.deviation(**arguments) <= claim.tolerance
    assert claim.negative_control(**arguments) > claim.tolerance


def test_without_spikes_there_is_no_harm():
    class SignSGD(torch.optim.SGD):
        """Sees only the sign of a gradient's entries, which a spike does not change."""

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.grad.sign_()
            return super().step(closure)

    assert stable_spam.spike_progress(SignSGD, seed=0) == 1


def test_each_arm_trains_with_its_own_optimizer():
    ends = {}
    for arm in study.arms:
        generator, weight = torch.Generator().manual_seed(0), torch.nn.Parameter(torch.ones(4, 8))
        optimizer = stable_spam.make_optimizer(arm.settings["optimizer"], [weight], 0.01, 250)
        for step in range(250):
            weight.grad = torch.randn(4, 8, generator=generator) * (100 if step % 40 == 39 else 1)
            optimizer.step()
        ends.setdefault(arm.settings["optimizer"], weight.detach())
    assert len(ends) == 7  # Adam serves three arms: in full precision, in four bits, and clipped
    names = list(ends)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert not torch.allclose(ends[one], ends[other], atol=1e-4), (one, other)


def test_dividing_by_the_norm_is_what_the_control_does():
    weights = [torch.nn.Parameter(torch.ones(4, 8)) for _ in range(2)]
    ours = stable_spam.make_optimizer("adam, unit", [weights[0]], 0.01, 1)
    theirs = torch.optim.Adam([weights[1]], 0.01, stable_spam.BETAS)
    for _ in range(5):
        gradient = torch.randn(4, 8)
        weights[0].grad, weights[1].grad = gradient.clone(), gradient / gradient.norm()
        ours.step()
        theirs.step()
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("arm", study.arms, ids=lambda arm: arm.name)
def test_only_full_precision_is_not_in_four_bits(arm):
    assert (arm.name == "adam") == (arm.settings.get("bits", 4) != 4)
    assert (arm.name == "adam") == ("FP4" not in arm.label)
