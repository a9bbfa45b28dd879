"""The loss of d-Mixup with the official code's captured randomness, and the exact temperature."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from golden.adapters.temperature_scaling import temperature_scaling
from golden.reference import Case
from trueup.calibration import mixup


def mixup_loss(case: Case) -> dict[str, object]:
    """Mix a batch, and run a linear model on it."""
    x, y, weights, perms = (torch.tensor(case.inputs[name]) for name in ("x", "y", "weights", "perms"))
    weight, bias = (torch.tensor(case.params[name]).requires_grad_() for name in ("weight", "bias"))
    one_hot = F.one_hot(y, len(bias)).to(weights.dtype)
    mixed_x, soft_targets = mixup(x, one_hot, weights, perms)
    loss = F.cross_entropy(F.linear(mixed_x, weight, bias), soft_targets.to(x.dtype))
    loss.backward()
    return {
        "out.mixed_x": mixed_x,
        "out.soft_targets": soft_targets,
        "out.loss": loss,
        "grad.weight": weight.grad,
        "grad.bias": bias.grad,
    }


KINDS = {"mixup_loss": mixup_loss, "temperature_scaling": temperature_scaling}
