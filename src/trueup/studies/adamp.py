"""Does momentum make scale-invariant weights grow, and does taking the radial part out of each update help
accuracy over a whole learning-rate sweep? Heo et al. 2021, arXiv 2006.08217."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from trueup import data
from trueup.lab import Arm, Claim, Condition, ExactClaim, Figure, Metric, Run, Study, difference, log_ratio
from trueup.models import convnet
from trueup.optim import SGDP, AdamP
from trueup.training import evaluate, minibatches, train

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params, lr, decay: torch.optim.SGD(params, lr, 0.9, weight_decay=decay, nesterov=True),
    "sgdp": lambda params, lr, decay: SGDP(params, lr, 0.9, weight_decay=decay, nesterov=True),
    "adamw": lambda params, lr, decay: torch.optim.AdamW(params, lr, weight_decay=decay),
    "adamp": lambda params, lr, decay: AdamP(params, lr, weight_decay=decay),
}


def cell(run: Run) -> dict[str, Any]:
    """Train a small convolutional net with batch norm; measure accuracy and how much its filters grew."""
    table = data.load("digits")
    fit, held_out = run.split(table.y, train=run["n_train"], test=run["n_test"])
    X = torch.tensor(table.X, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - 0.5
    y = torch.tensor(table.y)
    torch.manual_seed(run.torch_seed("init"))
    model = convnet(1, run["widths"], 10).to(run.device)
    filters = [p for p in model.parameters() if p.dim() == 4]
    others = [p for p in model.parameters() if p.dim() != 4]
    before = [p.detach().norm() for p in filters]
    optimizer = OPTIMIZERS[run["optimizer"]](
        [
            {"params": filters, "weight_decay": run["decay"] * run.get("filter_decay", 1.0)},
            {"params": others},
        ],
        run["base_lr"] * run["lr_factor"],
        run["decay"],
    )
    steps = run["epochs"] * (len(fit) // run["batch_size"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rows = minibatches(len(fit), run["batch_size"], run["epochs"], run.generator("order"))
    batches = ((X[fit[i]].to(run.device), y[fit[i]].to(run.device)) for i in rows)
    losses = [update.loss for update in train(model, batches, optimizer, scheduler=schedule)]
    growth = torch.stack([p.detach().norm() / b for p, b in zip(filters, before, strict=True)]).mean()
    result = evaluate(model, X[held_out].to(run.device), y[held_out].to(run.device))
    return {**result, "growth": growth, "loss": losses}


def norm_growth(optimizer: Callable[..., torch.optim.Optimizer], dim: int, beta: float, seed: int) -> float:
    """Growth of ||w||^2 on f(w) = -cos(w, w*): by how much do the paper's two inequalities fail?

    Momentum must let it grow at least 1 + 2 beta / (1 - beta) times as much as plain descent; ``optimizer``
    at most a fifth as much as momentum.
    """
    target = torch.randn(1, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = torch.randn(1, dim, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)

    def growth(make: Callable[..., torch.optim.Optimizer]) -> float:
        w = nn.Parameter(start.clone())
        opt = make([w])
        for _ in range(2000):
            opt.zero_grad()
            (-nn.functional.cosine_similarity(w, target)).sum().backward()
            opt.step()
        return float(w.detach().square().sum() - start.square().sum())

    plain = growth(lambda p: torch.optim.SGD(p, 0.5))
    momentum = growth(lambda p: torch.optim.SGD(p, 0.5, beta))
    ours = growth(lambda p: optimizer(p, 0.5, beta))
    bound = 1 + 2 * beta / (1 - beta)
    return max(0.0, (bound - momentum / plain) / bound, ours / momentum - 0.2)


def pythagoras(optimizer: Callable[..., torch.optim.Optimizer], dim: int, beta: float, seed: int) -> float:
    """Largest relative failure of ||w + dw||^2 = ||w||^2 + ||dw||^2 over 50 steps on f(w) = -cos(w, w*)."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(1, dim, generator=generator, dtype=torch.float64)
    w = nn.Parameter(torch.randn(1, dim, generator=generator, dtype=torch.float64))
    opt, worst = optimizer([w], 0.5, beta), 0.0
    for _ in range(50):
        opt.zero_grad()
        (-nn.functional.cosine_similarity(w, target)).sum().backward()
        before = w.detach().clone()
        opt.step()
        step = w.detach() - before
        error = w.detach().square().sum() - before.square().sum() - step.square().sum()
        worst = max(worst, float(error.abs() / before.square().sum()))
    return worst


INSTANCES = {
    f"dim {d}, beta {b}, seed {s}": {"dim": d, "beta": b, "seed": s}
    for d, b, s in ((50, 0.9, 0), (50, 0.9, 1), (10, 0.9, 2), (200, 0.9, 3), (50, 0.8, 4))
}
DESK = {"n_train": 400, "n_test": 1397, "epochs": 12, "batch_size": 32, "widths": (16, 32)}

study = Study(
    slug="adamp",
    question="Does removing the radial part of each update stop weight growth, and help accuracy?",
    cell=cell,
    metrics=(
        Metric("accuracy", higher=True, worst=0.1, unit="%", label="test accuracy"),
        Metric("growth", higher=False, worst=1e6, label="growth of the filters' norms"),
    ),
    arms=(
        Arm("adamw", "baseline", {"optimizer": "adamw", "base_lr": 1e-3, "decay": 1e-2}, label="AdamW"),
        Arm("adamp", "method", {"optimizer": "adamp", "base_lr": 1e-3, "decay": 1e-2}, label="AdamP"),
        Arm(
            "adamw-light",
            "control",
            {"optimizer": "adamw", "base_lr": 1e-3, "decay": 1e-2, "filter_decay": 0.1},
            label="AdamW, a tenth of the decay on filters, as AdamP has",
        ),
        Arm("sgd", "baseline", {"optimizer": "sgd", "base_lr": 0.03, "decay": 1e-4}, label="SGD, Nesterov"),
        Arm("sgdp", "method", {"optimizer": "sgdp", "base_lr": 0.03, "decay": 1e-4}, label="SGDP, Nesterov"),
        Arm(
            "sgd-light",
            "control",
            {"optimizer": "sgd", "base_lr": 0.03, "decay": 1e-4, "filter_decay": 0.1},
            label="SGD, a tenth of the decay on filters, as SGDP has",
        ),
    ),
    conditions=(Condition("lr_factor", (1, 3, 10, 30)),),
    scales={
        "smoke": DESK | {"n_train": 64, "n_test": 100, "epochs": 1},
        "desk": DESK,
    },
    claims=(
        ExactClaim(
            "norm-growth",
            "Momentum makes the norm of a scale-invariant weight grow at least 1 + 2b/(1-b) times as much as "
            "plain descent; the projection brings it below a fifth of that.",
            deviation=lambda **kw: norm_growth(partial(SGDP, variant="official"), **kw),
            negative_control=lambda **kw: norm_growth(torch.optim.SGD, **kw),
            control_label="momentum SGD in the place of SGDP",
            instances=INSTANCES,
            tolerance=0.0,
            primary=True,
        ),
        ExactClaim(
            "no-radial-step",
            "A projected step is orthogonal to the weight: the squared norms add.",
            deviation=lambda **kw: pythagoras(partial(SGDP, variant="official"), **kw),
            negative_control=lambda **kw: pythagoras(torch.optim.SGD, **kw),
            control_label="momentum SGD in the place of SGDP",
            instances=INSTANCES,
            tolerance=1e-6,
        ),
        Claim(
            "adamp-accuracy",
            "AdamP is more accurate than AdamW over the whole learning-rate sweep.",
            difference("adamp", "adamw", "accuracy"),
            min_effect=0.002,
            why="0.2 points are 3 of 1,397 test images",
            primary=True,
            controls=("adamw-light",),
        ),
        Claim(
            "sgdp-accuracy",
            "SGDP is more accurate than SGD over the whole learning-rate sweep.",
            difference("sgdp", "sgd", "accuracy"),
            min_effect=0.002,
            why="0.2 points are 3 of 1,397 test images",
            primary=True,
            controls=("sgd-light",),
        ),
        Claim(
            "adamp-growth",
            "Filters grow less under AdamP than under AdamW in a real net.",
            log_ratio("adamp", "adamw", "growth"),
            min_effect=0.1,
            why="a tenth of the norm is a fifth of the effective step size",
            controls=("adamw-light",),
        ),
    ),
    figures=(
        Figure("Accuracy over the sweep", "accuracy", x="lr_factor", log_x=True),
        Figure("Growth of the filters over the sweep", "growth", x="lr_factor", log_x=True, log_y=True),
        Figure("Training loss", "loss", x="step", arms=("adamw", "adamp")),
    ),
    data=("digits",),
    tested_on="digits (400 training images) with a 5k-parameter convolutional net",
    paper_setup="ImageNet, ResNet-18/50, 100 epochs",
)
