"""Both forms of the Core loss against their closed form. The cases are in `alpha-bn.npz`."""

from __future__ import annotations

import torch

from golden.reference import Case
from trueup.adaptation import core_loss as loss
from trueup.adaptation._core import class_correlation


def core_loss(case: Case) -> dict[str, object]:
    """Return matrices, losses and gradients of both normalizations."""
    logits = torch.tensor(case.inputs["logits"])
    returned: dict[str, object] = {}
    for normalization, name in (("sum", "sum"), ("row", "rownorm")):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, normalization=normalization)
        value.backward()
        returned |= {
            f"out.matrix_{name}": class_correlation(logits.softmax(1), normalization),
            f"out.core_{name}": value,
            f"grad.logits_core_{name}": leaf.grad,
        }
    return returned
