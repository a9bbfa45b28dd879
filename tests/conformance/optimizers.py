"""One `Case` per public optimizer: what the conformance suite cannot find out by itself.

To add an optimizer, write its equations naively for one tensor and one step (`reference`), independently of
the plain function in its file (`equation`), and name the hyperparameters worth running (`variants`). The
suite finds the class in `trueup.optim` and does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trueup.optim import SGDP, SPAM, AdamP, NormalizedGD, StableSPAM, _adamp, _sgdp, _spam, _stable_spam


@dataclass(frozen=True)
class Case:
    """How to test one optimizer.

    Attributes:
        optimizer: the class.
        reference: `reference(param, grad, state, **hyper)` returns the weight after one step, from float64
            tensors, in the plainest code; `state` is a dict, empty at first, that it keeps; `hyper` holds
            every hyperparameter.
        equation: the plain function in the optimizer's file, `equation(param, grad, state, group)`; it
            returns the weight and the state after one step.
        variants: hyperparameters to run, by name; each is merged over the class's defaults.
        required: constructor arguments without a default.
        bad: hyperparameters that must raise ValueError, with a part of the message.
        two_routes: whether it has `foreach`, which chooses the single-tensor or the foreach route.
        skips_nonfinite: why a gradient with NaN or infinity does not change its parameter.
    """

    optimizer: type[Optimizer]
    reference: Callable[..., Tensor]
    equation: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    variants: Mapping[str, Mapping[str, Any]]
    required: Mapping[str, Any] = field(default_factory=dict)
    bad: tuple[tuple[Mapping[str, Any], str], ...] = ()
    two_routes: bool = True
    skips_nonfinite: str = ""

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
    if h["variant"] == "official" and not h["nesterov"]:
        state["b"] = d
    return p * (1 - h["lr"] * h["weight_decay"] * ratio / (1 - h["momentum"])) - h["lr"] * d


def stable_spam(p: Tensor, g: Tensor, state: dict[str, Any], **h: Any) -> Tensor:
    if not p.numel():
        return p
    g = -g if h["maximize"] else g
    (beta1, beta2), (gamma1, gamma2, gamma3), total = h["betas"], h["gammas"], h["total_steps"]
    now = state["now"] = state.get("now", 0) + 1
    k = state.get("k", 0) + 1
    if total is not None:
        c = h["eta_min"] + (1 - h["eta_min"]) * (1 + math.cos(math.pi * min(now / (total + 1), 1))) / 2
        beta1, gamma1 = beta1 * c, gamma1 * c
    t = now if h["variant"] == "paper" else k

    largest = g.abs().max()
    average = state["max"] = gamma3 * state.get("max", 0) + (1 - gamma3) * largest
    limit = average / (1 - gamma3**t)
    g = torch.where(g.abs() > limit, g / largest * limit, g)
    norm = g.norm()
    first = state["first"] = gamma1 * state.get("first", 0) + (1 - gamma1) * norm
    second = state["second"] = gamma2 * state.get("second", 0) + (1 - gamma2) * norm**2
    if norm > 0:
        g = g / norm * (first / (1 - gamma1**t)) / ((second / (1 - gamma2**t)).sqrt() + h["eps"])

    reset = h["reset_interval"] and now % h["reset_interval"] == 0
    m, v = state.get("m", 0), state.get("v", 0)
    if reset:
        k = 1
        m, v = (0, 0) if h["variant"] == "paper" else (m, v)
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    state |= {"k": k, "m": m, "v": v}
    if reset and h["variant"] == "official":
        state |= {"m": 0, "v": 0}
    if h["amsgrad"]:
        v = state["top"] = torch.maximum(v, state.get("top", torch.zeros_like(v)))
    u = m / (1 - beta1**k) / ((v / (1 - beta2**k)).sqrt() + h["eps"])
    return p * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * u


def spam(p: Tensor, g: Tensor, state: dict[str, Any], **h: Any) -> Tensor:
    beta1, beta2 = h["betas"]
    t = state["t"] = state.get("t", 0) + 1
    m, v = state.get("m", torch.zeros_like(p)), state.get("v", torch.zeros_like(p))
    interval, c = h["reset_interval"], h["spike_threshold"]
    since = t % interval if interval else t
    if c and t >= h["grad_accu_steps"] and since >= h["grad_accu_steps"]:
        g = torch.where(g**2 > c * v, g.sign() * (c * v).sqrt(), g)
    g = -g if h["maximize"] else g
    if interval and since == 0:
        m, v = 0 * m, 0 * v
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    state |= {"m": m, "v": v}
    size = h["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    if interval and t >= interval and since < h["warmup_steps"]:
        size *= 1 - 0.99 * (1 + math.cos(math.pi * since / (h["warmup_steps"] + 1))) / 2
    return (p - size * m / (v.sqrt() + h["eps"])) * (1 - h["lr"] * h["weight_decay"])


COMMON_BAD = (
    ({"lr": -1.0}, "lr"),
    ({"lr": math.nan}, "lr"),
    ({"lr": torch.ones(2)}, "lr"),
    ({"eps": -1e-8}, "eps"),
    ({"weight_decay": -0.1}, "weight_decay"),
)
BETAS_BAD = (
    ({"betas": 0.9}, r"betas must be two numbers; got 0\.9"),
    ({"betas": (0.9, 0.99, 0.999)}, "betas must be two numbers"),
    ({"betas": (1.0, 0.9)}, r"betas\[0\]"),
    ({"betas": (0.9, -0.1)}, r"betas\[1\]"),
    ({"betas": (0.9, 1.0)}, r"betas\[1\]"),
)
PROJECTION_BAD = (
    *COMMON_BAD,
    ({"delta": -0.1}, "delta"),
    ({"wd_ratio": -0.1}, "wd_ratio"),
    ({"wd_ratio": 1.1}, "wd_ratio"),
)

CASES = [
    Case(
        AdamP,
        adamp,
        _adamp.adamp,
        variants={
            "default": {},
            "decay": {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.9)},
            "nesterov": {"lr": 1e-2, "weight_decay": 0.1, "nesterov": True, "delta": 0.3, "wd_ratio": 0.5},
            "large eps": {"lr": 1e-2, "eps": 1e-2},
            "no momentum": {"lr": 1e-2, "betas": (0.0, 0.0)},
            "no projection": {"lr": 1e-2, "weight_decay": 0.1, "delta": 0.0},
        },
        bad=(*PROJECTION_BAD, *BETAS_BAD),
    ),
    Case(
        SGDP,
        sgdp,
        _sgdp.sgdp,
        required={"lr": 0.1},
        variants={
            "plain": {},
            "momentum": {"momentum": 0.9, "weight_decay": 0.01},
            "official": {"momentum": 0.9, "weight_decay": 0.01, "variant": "official"},
            "nesterov": {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True, "wd_ratio": 0.5},
            "dampened": {"momentum": 0.8, "dampening": 0.3, "nesterov": True, "eps": 1e-2},
            "no projection": {"momentum": 0.9, "weight_decay": 0.01, "delta": 0.0},
        },
        bad=(
            *PROJECTION_BAD,
            ({"momentum": 1.0}, "momentum"),
            ({"momentum": -0.1}, "momentum"),
            ({"variant": "both"}, "variant"),
        ),
    ),
    Case(
        StableSPAM,
        stable_spam,
        _stable_spam.stable_spam,
        variants={
            "default": {},
            "resets": {"lr": 1e-2, "weight_decay": 0.1, "reset_interval": 3, "gammas": (0.5, 0.6, 0.3)},
            "official": {
                "lr": 1e-2,
                "weight_decay": 0.1,
                "reset_interval": 2,
                "gammas": (0.5, 0.6, 0.3),
                "variant": "official",
            },
            "scheduled": {"lr": 1e-2, "total_steps": 2, "eta_min": 0.2, "gammas": (0.85, 0.99999, 0.0)},
            "amsgrad": {"lr": 1e-2, "amsgrad": True, "reset_interval": 2, "eps": 1e-3},
        },
        bad=(
            *COMMON_BAD,
            *BETAS_BAD,
            ({"gammas": (0.7, 0.9)}, "three numbers"),
            ({"gammas": 0.7}, "three numbers"),
            ({"gammas": (0.7, torch.nan, 0.9)}, r"gammas\[1\]"),
            ({"eps": math.nan}, "eps"),
            ({"gammas": (1.0, 0.9, 0.9)}, r"gammas\[0\]"),
            ({"gammas": (0.7, 0.9, -0.1)}, r"gammas\[2\]"),
            ({"reset_interval": -1}, "reset_interval"),
            ({"reset_interval": 2.5}, "reset_interval must be an integer"),
            ({"total_steps": 0}, "total_steps"),
            ({"total_steps": 10.0}, "total_steps must be an integer"),
            ({"eta_min": 1.5}, "eta_min"),
            ({"variant": "both"}, "variant"),
        ),
        skips_nonfinite="one spike to infinity would stay in the averages forever",
    ),
    Case(
        SPAM,
        spam,
        _spam.spam,
        variants={
            "default": {},
            "clips": {"lr": 1e-2, "weight_decay": 0.1, "spike_threshold": 3.0, "grad_accu_steps": 1},
            "resets": {
                "lr": 1e-2,
                "weight_decay": 0.1,
                "spike_threshold": 3.0,
                "grad_accu_steps": 1,
                "reset_interval": 2,
                "warmup_steps": 1,
            },
            "neither": {"lr": 1e-2, "spike_threshold": 0.0, "reset_interval": 0, "eps": 1e-2},
        },
        bad=(
            *COMMON_BAD,
            *BETAS_BAD,
            ({"spike_threshold": -1.0}, "spike_threshold"),
            ({"warmup_steps": -1}, "warmup_steps"),
            ({"warmup_steps": 0.5}, "warmup_steps must be an integer"),
            ({"reset_interval": -1}, "reset_interval"),
            ({"grad_accu_steps": -1}, "grad_accu_steps"),
        ),
        skips_nonfinite="one spike to infinity would stay in the second moment until the next reset",
    ),
]

# These step by the result of a closure instead of gradients set before, so the suite cannot drive them: class
# -> the file that tests the same contract.
STEPPED_BY_CLOSURE: Mapping[type[Optimizer], str] = {NormalizedGD: "tests/optim/test_normalized_gd.py"}
