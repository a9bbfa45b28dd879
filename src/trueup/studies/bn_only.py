"""Test how far a net of random features comes if only normalisation's scale and shift are trained, against as
many weights drawn at random, and over depth. Frankle, Schwab, Morcos 2021, arXiv 2003.00152."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from trueup.lab import Arm, Axis, Claim, Condition, Figure, Metric, Run, Study, custom, difference
from trueup.models import CifarResNet
from trueup.nn import (
    freeze_all_but_norm_affine,
    norm_affine_report,
    random_parameter_mask,
    reinit_norm_affine,
    train_masked,
    train_only,
)
from trueup.studies._protocols.digits import ACCURACY, load_images, nll


def in_quarters(optimizer: torch.optim.Optimizer, updates: int) -> LRScheduler:
    """Divide the learning rate by 10 after half and after three quarters of the updates."""
    return MultiStepLR(optimizer, [updates // 2, updates * 3 // 4])


def cell(run: Run) -> dict[str, Any]:
    """Train the parts of a residual net that the arm leaves free; measure accuracy and its gammas."""
    digits = load_images(run)
    # Every arm starts from the same random net, gamma uniform on [0, 1).
    torch.manual_seed(run.torch_seed("init"))
    model = CifarResNet(1, run["depth"], run["width"], 10)
    reinit_norm_affine(model)
    if run["train"] == "norm":
        freeze_all_but_norm_affine(model, train_output=run.get("train_output", False))
    elif run["train"] == "random":
        masks = random_parameter_mask(model, generator=run.generator("mask"))
        train_masked(model, masks, train_output=run.get("train_output", False))
    elif run["train"] == "output":
        train_only(model, "output")
    model.to(run.device)
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(free, run["lr"], 0.9, weight_decay=1e-4)
    trained = digits.train(model, optimizer, run["batch_size"], run["epochs"], schedule=in_quarters)
    losses = [update.loss for update in trained]
    gammas = norm_affine_report(model)[-1]
    return digits.evaluate(model) | {
        "disabled": gammas.disabled,
        "median_gamma": gammas.median,
        "trained": sum(p.numel() for p in free),
        "loss": losses,
    }


DESK = {"n_train": 600, "n_test": 1197, "width": 8, "batch_size": 50, "epochs": 12}

study = Study(
    slug="bn-only",
    question="What can a net of random features learn by its normalisation layers' scale and shift alone?",
    cell=cell,
    metrics=(
        ACCURACY,
        nll(worst=2.3026),
        Metric("disabled", higher=True, worst=0.0, unit="%", label="features with |gamma| < 0.01"),
    ),
    arms=(
        Arm("all", "baseline", {"train": "all"}, label="everything"),
        Arm("output", "baseline", {"train": "output"}, label="output layer only"),
        Arm("bn", "method", {"train": "norm"}, label="batch norm only"),
        Arm(
            "random",
            "control",
            {"train": "random"},
            label="2 random weights per filter: as many, batch norm frozen",
        ),
    ),
    conditions=(Condition("depth", (8, 14, 20)),),
    # A few trained parameters need rates ten times those of a whole net. The best falls with depth, 3 to 1:
    # in a pilot on development seeds, neighbouring rates a factor of 10 apart could not separate the depths.
    tune=(Axis("lr", (0.3, 1.0, 3.0, 10.0, 30.0)),),
    scales={
        "smoke": DESK | {"n_train": 100, "n_test": 50, "width": 2, "epochs": 1},
        "desk": DESK,
    },
    claims=(
        Claim(
            "beats-random",
            "Training only batch norm is far more accurate than training as many random weights.",
            difference("bn", "random", "accuracy"),
            min_effect=0.15,
            why="about 15 to 25 points on the paper's deep CIFAR ResNets",
            primary=True,
            controls=(),
        ),
        Claim(
            "beats-output",
            "Training only batch norm is more accurate than training only the output layer.",
            difference("bn", "output", "accuracy"),
            min_effect=0.05,
            why="the simplest use of random features must be beaten clearly: 5 points are 60 of 1,197 digits",
            origin="interpretation",
            primary=True,
        ),
        Claim(
            "depth",
            "With only batch norm trained, the deepest net is more accurate than the shallowest.",
            custom(
                lambda cells: (
                    cells.mean("bn", "accuracy", {"depth": 20}) - cells.mean("bn", "accuracy", {"depth": 8})
                ),
                arms=("bn",),
                metrics=("accuracy",),
                text="bn at depth 20 - bn at depth 8, accuracy",
            ),
            min_effect=0.02,
            why="the paper gains 5 to 10 points each time that the depth doubles; 2 points are 24 digits",
            controls=(),
        ),
        Claim(
            "disabled",
            "Training only batch norm switches off more of the features than training everything does.",
            difference("bn", "all", "disabled"),
            min_effect=0.2,
            why="the paper: about a third against few; 1 % of the gammas are that small at the start",
            controls=(),
        ),
    ),
    figures=(
        Figure("Accuracy over depth", "accuracy", x="depth", caption="Learning rate tuned at each depth."),
        Figure("Trained parameters", "trained", x="depth", log_y=True),
        Figure("Features switched off", "disabled", x="depth", caption="Share with |gamma| below 0.01."),
        Figure("Training loss", "loss", x="step", arms=("bn", "random", "output")),
    ),
    data=("digits",),
    tested_on="digits (600 images) with ResNet-8, 14 and 20 of width 8",
    paper_setup="CIFAR-10, ResNet-14 to 866 of width 16, 160 epochs; ImageNet, ResNet-18 to 200",
)
