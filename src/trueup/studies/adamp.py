"""Test whether momentum makes scale-invariant weights grow, and whether projecting each update onto the
tangent plane improves accuracy over a whole learning-rate sweep. Heo et al. 2021, arXiv 2006.08217."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.optim import SGD, AdamW

from trueup.lab import Arm, Claim, Condition, ExactClaim, Figure, Metric, Run, Study, difference, log_ratio
from trueup.models import convnet
from trueup.optim import SGDP, AdamP
from trueup.studies._protocols.digits import ACCURACY, load_images
from trueup.studies._protocols.synthetic import Make, iterates, toward

OPTIMIZERS: dict[str, Make] = {"sgd": SGD, "sgdp": SGDP, "adamw": AdamW, "adamp": AdamP}


def cell(run: Run) -> dict[str, Any]:
    """Train a small convolutional net with batch norm; measure accuracy and the growth of its filters."""
    digits = load_images(run, center=0.5)
    torch.manual_seed(run.torch_seed("init"))
    model = convnet(1, run["widths"], 10).to(run.device)
    filters = [p for p in model.parameters() if p.dim() == 4]
    others = [p for p in model.parameters() if p.dim() != 4]
    before = [p.detach().norm() for p in filters]
    lr, decay = run["base_lr"] * run["lr_factor"], run["decay"]
    groups = [{"params": filters, "weight_decay": decay * run.get("filter_decay", 1.0)}, {"params": others}]
    momentum = {"momentum": 0.9, "nesterov": True} if run["optimizer"].startswith("sgd") else {}
    optimizer = OPTIMIZERS[run["optimizer"]](groups, lr, weight_decay=decay, **momentum)
    losses = [update.loss for update in digits.train(model, optimizer, run["batch_size"], run["epochs"])]
    growth = torch.stack([p.detach().norm() / b for p, b in zip(filters, before, strict=True)]).mean()
    return digits.evaluate(model) | {"growth": growth, "loss": losses}


def norm_growth(make: Make, dim: int, beta: float, seed: int) -> float:
    """Compute by how much the growth of ||w||^2 breaks one of the paper's two inequalities.

    Momentum must let it grow at least 1 + 2 beta / (1 - beta) times as much as plain descent does, and the
    optimizer in question at most a fifth as much as momentum.
    """
    target = torch.randn(1, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = torch.randn(1, dim, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    makes = (SGD, partial(SGD, momentum=beta), partial(make, momentum=beta))
    ends = [list(iterates(m, start, 0.5, toward(target), 2000))[-1] for m in makes]
    plain, momentum, ours = (float(end.square().sum() - start.square().sum()) for end in ends)
    bound = 1 + 2 * beta / (1 - beta)
    return max(0.0, (bound - momentum / plain) / bound, ours / momentum - 0.2)


def pythagoras(make: Make, dim: int, beta: float, seed: int) -> float:
    """Compute the largest relative failure of ||w + dw||^2 = ||w||^2 + ||dw||^2 over 50 steps."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(1, dim, generator=generator, dtype=torch.float64)
    w, worst = torch.randn(1, dim, generator=generator, dtype=torch.float64), 0.0
    for after in iterates(partial(make, momentum=beta), w, 0.5, toward(target), 50):
        error = after.square().sum() - w.square().sum() - (after - w).square().sum()
        worst = max(worst, float(error.abs() / w.square().sum()))
        w = after
    return worst


INSTANCES = {
    f"dim {d}, beta {b}, seed {s}": {"dim": d, "beta": b, "seed": s}
    for d, b, s in ((50, 0.9, 0), (50, 0.9, 1), (10, 0.9, 2), (200, 0.9, 3), (50, 0.8, 4))
}
ADAM = {"optimizer": "adamw", "base_lr": 1e-3, "decay": 1e-2}
NESTEROV, LIGHT = {"optimizer": "sgd", "base_lr": 0.03, "decay": 1e-4}, {"filter_decay": 0.1}
DESK = {"n_train": 400, "n_test": 1397, "epochs": 12, "batch_size": 32, "widths": (16, 32)}

study = Study(
    slug="adamp",
    question="Does removing the radial part of each update stop weight growth, and help accuracy?",
    cell=cell,
    metrics=(ACCURACY, Metric("growth", higher=False, worst=1e6, label="growth of the filters' norms")),
    arms=(
        Arm("adamw", "baseline", ADAM, label="AdamW"),
        Arm("adamp", "method", ADAM | {"optimizer": "adamp"}, label="AdamP"),
        Arm("adamw-light", "control", ADAM | LIGHT, label="AdamW, a tenth of the decay on filters"),
        Arm("sgd", "baseline", NESTEROV, label="SGD, Nesterov"),
        Arm("sgdp", "method", NESTEROV | {"optimizer": "sgdp"}, label="SGDP, Nesterov"),
        Arm("sgd-light", "control", NESTEROV | LIGHT, label="SGD, a tenth of the decay on filters"),
    ),
    conditions=(Condition("lr_factor", (1, 3, 10, 30)),),
    scales={"smoke": DESK | {"n_train": 64, "n_test": 100, "epochs": 1}, "desk": DESK},
    claims=(
        ExactClaim(
            "norm-growth",
            "Momentum makes the norm of a scale-invariant weight grow at least 1 + 2b/(1-b) times as much as "
            "plain descent; the projection brings it below a fifth of that.",
            deviation=lambda **kw: norm_growth(partial(SGDP, variant="official"), **kw),
            negative_control=lambda **kw: norm_growth(SGD, **kw),
            control_label="momentum SGD in the place of SGDP",
            instances=INSTANCES,
            tolerance=0.0,
            primary=True,
        ),
        ExactClaim(
            "no-radial-step",
            "A projected step is orthogonal to the weight: the squared norms add.",
            deviation=lambda **kw: pythagoras(partial(SGDP, variant="official"), **kw),
            negative_control=lambda **kw: pythagoras(SGD, **kw),
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
