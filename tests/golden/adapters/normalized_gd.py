"""Golden trajectories of the linear solver; in mode `normalized` the loss and the optimizer must agree."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice, pairwise
from typing import Any

import torch
from torch.nn import functional as F

from trueup.optim import NormalizedGD, large_step_descent
from trueup.optim._normalized_gd import log_beta


def trajectory(case: Any) -> Mapping[str, object]:
    X, y, start = (torch.tensor(a) for a in (case.inputs["X"], case.inputs["y"], case.params["theta0"]))
    Z, gamma, mode = y[:, None] * X, float(case.hyper["gamma"]), case.hyper["mode"]
    iterates = list(islice(large_step_descent(Z, gamma, mode, start=start), case.hyper["steps"] + 1))
    wrong = torch.stack([(margins <= 0).sum() for _, margins in iterates[1:]])
    separating = (wrong == 0).nonzero()
    if mode == "normalized":
        for now, then in pairwise(iterates):
            theta = now.theta.clone().requires_grad_()
            NormalizedGD([theta], gamma).step(lambda theta=theta: Z @ theta)
            # what cancels in a large step leaves the rounding of that step
            torch.testing.assert_close(theta.detach(), then.theta, rtol=1e-10, atol=1e-10 * max(1.0, gamma))
    return {
        "out.theta": torch.stack([theta for theta, _ in iterates[1:]]),
        "out.loss": torch.stack([F.softplus(-margins).mean() for _, margins in iterates[1:]]),
        "out.misclassified": wrong,
        "out.first_separating_iter": int(separating[0]) + 1 if len(separating) else -1,
        "out.log_beta": torch.stack([log_beta(margins) for _, margins in iterates[:-1]]),
    }


KINDS = {"trajectory": trajectory}
