"""One `Case` for every public optimizer: what the conformance suite cannot know by itself.

To add an optimizer, write its equations naively for one tensor and one step (`reference`), and name the
hyperparameters worth running (`variants`). The suite finds the class in `trueup.optim` and does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trueup.optim import SGDP, AdamP


@dataclass(frozen=True)
class Case:
    """How to test one optimizer.

    Attributes:
        optimizer: the class.
        reference: `reference(param, grad, state, **hyper)`: the weight after one step, from float64
            tensors, in the plainest code; `state` is a dict, empty at first, that it keeps; `hyper` holds
            every hyperparameter.
        variants: hyperparameters to run, by name; each is merged over the class's defaults.
        required: constructor arguments without a default.
        bad: hyperparameters that must raise ValueError, with a word of the message.
        two_routes: has `foreach`, which chooses between the blocked and the branchless route.
    """

    optimizer: type[Optimizer]
    reference: Callable[..., Tensor]
    variants: Mapping[str, Mapping[str, Any]]
    required: Mapping[str, Any] = field(default_factory=dict)
    bad: tuple[tuple[Mapping[str, Any], str], ...] = ()
    two_routes: bool = True

    def build(self, params: Any, **hyper: Any) -> Optimizer:
        return self.optimizer(params, **{**self.required, **hyper})


def project(
    p: Tensor, g: Tensor, u: Tensor, delta: float, wd_ratio: float, eps: float
) -> tuple[Tensor, float]:
    """Remove from u its part along p, by channels or as a whole, where g is orthogonal enough to p."""
    if p.dim() < 2 or p.numel() == 0:
        return u, 1.0
    for rows in (p.size(0), 1):
        pr, gr, ur = (x.reshape(rows, -1) for x in (p, g, u))
        passes = all(
            abs(torch.dot(a, b)) / (max(a.norm(), eps) * max(b.norm(), eps)) < delta / math.sqrt(len(a))
            for a, b in zip(pr, gr)
        )
        if passes:
            n = torch.stack([a / (a.norm() + eps) for a in pr])
            return (ur - n * (n * ur).sum(1, keepdim=True)).reshape(p.shape), wd_ratio
    return u, 1.0


def adamp(p: Tensor, g: Tensor, state: dict[str, Any], **h: Any) -> Tensor:
    beta1, beta2 = h["betas"]
    g = -g if h["maximize"] else g
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    u = (beta1 * m + (1 - beta1) * g if h["nesterov"] else m) / (
        v.sqrt() / math.sqrt(1 - beta2**t) + h["eps"]
    )
    u, ratio = project(p, g, u, h["delta"], h["wd_ratio"], h["eps"])
    return p * (1 - h["lr"] * h["weight_decay"] * ratio) - h["lr"] / (1 - beta1**t) * u


def sgdp(p: Tensor, g: Tensor, state: dict[str, Any], **h: Any) -> Tensor:
    g = -g if h["maximize"] else g
    b = state["b"] = h["momentum"] * state.get("b", torch.zeros_like(p)) + (1 - h["dampening"]) * g
    d, ratio = project(
        p, g, g + h["momentum"] * b if h["nesterov"] else b, h["delta"], h["wd_ratio"], h["eps"]
    )
    if h["project_buffer"] and not h["nesterov"]:
        state["b"] = d
    return p * (1 - h["lr"] * h["weight_decay"] * ratio / (1 - h["momentum"])) - h["lr"] * d


PROJECTION_BAD = (
    ({"lr": -1.0}, "lr"),
    ({"lr": math.nan}, "lr"),
    ({"lr": torch.ones(2)}, "lr"),
    ({"eps": -1e-8}, "eps"),
    ({"weight_decay": -0.1}, "weight_decay"),
    ({"delta": -0.1}, "delta"),
    ({"wd_ratio": -0.1}, "wd_ratio"),
    ({"wd_ratio": 1.1}, "wd_ratio"),
)

CASES = [
    Case(
        AdamP,
        adamp,
        variants={
            "default": {},
            "decay": {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.9)},
            "nesterov": {"lr": 1e-2, "weight_decay": 0.1, "nesterov": True, "delta": 0.3, "wd_ratio": 0.5},
            "large eps": {"lr": 1e-2, "eps": 1e-2},
            "no momentum": {"lr": 1e-2, "betas": (0.0, 0.0)},
            "no projection": {"lr": 1e-2, "weight_decay": 0.1, "delta": 0.0},
        },
        bad=(
            *PROJECTION_BAD,
            ({"betas": (1.0, 0.9)}, r"betas\[0\]"),
            ({"betas": (0.9, -0.1)}, r"betas\[1\]"),
            ({"betas": (0.9, 1.0)}, r"betas\[1\]"),
        ),
    ),
    Case(
        SGDP,
        sgdp,
        required={"lr": 0.1},
        variants={
            "plain": {},
            "momentum": {"momentum": 0.9, "weight_decay": 0.01},
            "the paper's": {"momentum": 0.9, "weight_decay": 0.01, "project_buffer": False},
            "nesterov": {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True, "wd_ratio": 0.5},
            "dampened": {"momentum": 0.8, "dampening": 0.3, "nesterov": True, "eps": 1e-2},
            "no projection": {"momentum": 0.9, "weight_decay": 0.01, "delta": 0.0},
        },
        bad=(*PROJECTION_BAD, ({"momentum": 1.0}, "momentum"), ({"momentum": -0.1}, "momentum")),
    ),
]
