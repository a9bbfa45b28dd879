"""Speed of the exact temperature against torch's L-BFGS, run until it converges.

Both sides take float32 logits. Ours makes a few passes over the logits, the last of them in float64, so that
its result is the optimum to 1e-8; the peer stops at about 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row
from trueup.calibration import optimal_temperature


def rows() -> Iterator[Row]:
    for n, classes, bound in ((1_000_000, 10, 0.7), (10_000, 1000, 0.06)):
        generator = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(n, classes, generator=generator)
        target = (logits / 1.4).softmax(1).multinomial(1, generator=generator)[:, 0]
        what = f"optimal_temperature, {n:,} x {classes}"
        yield Row(
            what,
            "torch.optim.LBFGS(lr=1) at convergence",
            bound,
            lambda logits=logits, target=target: optimal_temperature(logits, target),
            lambda logits=logits, target=target: by_lbfgs(logits, target),
        )


def by_lbfgs(logits: Tensor, target: Tensor) -> Tensor:
    temperature = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([temperature], lr=1, max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / temperature, target)
        loss.backward()
        return loss

    optimizer.step(closure)
    return temperature.detach()
