"""StableSPAM and SPAM steps on CPU, against torch's fused AdamW and against the official form.

The official classes cannot be installed beside us, so their form is written out again here: a loop over
parameters with whole-tensor operations, and Python branches on their maxima and norms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.adamp import fused, resnet50, row, transformer
from benchmarks.harness import Row
from trueup.optim import SPAM, StableSPAM

OFFICIAL = "official form, re-implemented"


class OfficialStableSPAM(torch.optim.Optimizer):
    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.0})

    @torch.no_grad()
    def step(self) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            state, grad = self.state[p], p.grad
            if not state:
                state.update(
                    step=0,
                    m=torch.zeros_like(p),
                    v=torch.zeros_like(p),
                    **{name: torch.zeros(()) for name in ("max", "norm", "norm_sq")},
                )
            state["step"] += 1
            t = state["step"]
            largest = torch.max(grad.abs())
            state["max"] = 0.999 * state["max"] + 0.001 * largest
            limit = state["max"] / (1 - 0.999**t)
            mask = grad.abs() > limit
            if mask.sum() > 0:
                grad[mask] = grad[mask] / largest * limit
            norm = torch.norm(grad)
            state["norm"] = 0.7 * state["norm"] + 0.3 * norm
            state["norm_sq"] = 0.9 * state["norm_sq"] + 0.1 * norm**2
            ratio = state["norm"] / (1 - 0.7**t) / (torch.sqrt(state["norm_sq"] / (1 - 0.9**t)) + 1e-8)
            if norm > 0:
                grad = grad / norm * ratio
            state["m"].mul_(0.9).add_(grad, alpha=0.1)
            state["v"].mul_(0.999).addcmul_(grad, grad, value=0.001)
            denominator = (state["v"].sqrt() / math.sqrt(1 - 0.999**t)).add_(1e-8)
            p.add_(state["m"] / denominator, alpha=-0.0)


class OfficialSPAM(torch.optim.Optimizer):
    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.0})

    @torch.no_grad()
    def step(self) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            state, grad = self.state[p], p.grad
            if not state:
                state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
            state["step"] += 1
            t, m, v = state["step"], state["m"], state["v"]
            if t >= 20:
                mask = grad**2 > 5000 * v
                grad[mask] = grad[mask].sign() * torch.sqrt(v[mask] * 5000)
            m.mul_(0.9).add_(grad, alpha=0.1)
            v.mul_(0.999).addcmul_(grad, grad, value=0.001)
            size = math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            p.add_(m / v.sqrt().add_(1e-6) * size, alpha=-0.0)


def stable_spam(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return StableSPAM(params, 0.0)


def spam(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return SPAM(params, 0.0)


def rows() -> Iterator[Row]:
    resnet, large = resnet50(), transformer()
    yield row("StableSPAM step, ResNet-50", "AdamW(fused)", 3.2, resnet, stable_spam, fused)
    yield row("StableSPAM step, ResNet-50", OFFICIAL, 0.5, resnet, stable_spam, OfficialStableSPAM)
    yield row("StableSPAM step, 12 x 768 transformer", "AdamW(fused)", 3.2, large, stable_spam, fused)
    yield row("StableSPAM step, 12 x 768 transformer", OFFICIAL, 0.5, large, stable_spam, OfficialStableSPAM)
    yield row("SPAM step, ResNet-50", OFFICIAL, 0.6, resnet, spam, OfficialSPAM)
