"""Test whether a large batch generalises worse at equal epochs, and whether sqrt scaling, ghost statistics
and as many updates as the small batch close the gap. Hoffer, Hubara, Soudry 2017, arXiv 1705.08741."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from trueup.lab import Arm, Axis, Claim, Figure, Run, Study, custom, difference, equivalence, ordering
from trueup.models import mlp
from trueup.nn import convert_ghost_batchnorm
from trueup.optim import DistanceFromInit, adapt_regime, scale_lr
from trueup.studies._protocols.digits import ACCURACY, load_images, nll
from trueup.training import evaluate


def cell(run: Run) -> dict[str, Any]:
    """Train one net and evaluate it on held-out rows; follow its distance from the start."""
    images = load_images(run, shape=(-1,))
    torch.manual_seed(run.torch_seed("init"))
    model: nn.Module = mlp(images.X.shape[1], run["hidden"], 10)
    if run["ghost"]:
        model = convert_ghost_batchnorm(model, run["small_batch"])
    model.to(run.device)
    # A tuning run fits on fewer rows: the large batch is then all of them, the same share of the set.
    small = run["small_batch"]
    batch = round(len(images.X) * run["large_share"]) if run["large"] else small
    lr = scale_lr(run["lr"], batch, small, rule="sqrt") if run["scaled"] else run["lr"]
    milestones, epochs = [run["epochs"] // 2, run["epochs"] * 3 // 4], run["epochs"]
    if run["adapted"]:
        milestones, epochs = adapt_regime(milestones, epochs, batch, small)
    steps = [m * (len(images.X) // batch) for m in milestones]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    distance, path, clipped = DistanceFromInit(model), [], []
    trained = images.train(
        model,
        optimizer,
        batch,
        epochs,
        schedule=lambda optimizer, _: MultiStepLR(optimizer, steps),
        max_norm=run["max_norm"],
    )
    for update in trained:
        clipped.append(update.grad_norm > run["max_norm"])
        # At the initial, high rate only. The handful of updates of a large batch would fit any curve.
        if not run["large"] and update.step <= steps[0]:
            path.append(distance.update())
    out: dict[str, Any] = images.evaluate(model)
    out["train_loss"] = evaluate(model, images.X, images.y)["nll"]
    out |= {"updates": len(clipped), "epochs": epochs, "clipped": np.mean(clipped)}
    if path:
        out |= {f"r2_{law}": value for law, value in distance.fit().items()} | {"distance": path}
    return out


# As many epochs as two cores train in three minutes, all arms, trials and seeds together. The choice matters:
# a pilot with 16 epochs (3 development seeds) saw a gap of 1.5 points, below the 2 that the claim needs.
BATCHES = {"small_batch": 32, "large_share": 1.0, "max_norm": 5.0}
DESK = {"data": "digits", "hidden": (128,) * 3, "n_train": 1024, "n_test": 773, "epochs": 12} | BATCHES
# F1 on MNIST, the first row of the paper's table.
MNIST = {"data": "mnist", "hidden": (512,) * 5, "n_train": 60_000, "n_test": 10_000, "epochs": 50}
LARGE = {"large": True, "scaled": False, "ghost": False, "adapted": False}
RECIPE = LARGE | {"scaled": True, "ghost": True, "adapted": True}

study = Study(
    slug="ghost-batch-norm",
    question="Do large batches generalise worse at equal epochs, and does the paper's recipe close the gap?",
    cell=cell,
    metrics=(ACCURACY, nll(worst=float(np.log(10)))),
    arms=(
        Arm("small", "baseline", LARGE | {"large": False}, label="batch 32"),
        Arm("large", "baseline", LARGE, label="large batch, equal epochs"),
        Arm("scaled", "ablation", LARGE | {"scaled": True}, label="+ sqrt learning rate"),
        Arm("ghost", "ablation", LARGE | {"scaled": True, "ghost": True}, label="+ ghost batch norm"),
        Arm("adapted", "method", RECIPE, label="+ regime adaptation (equal updates)"),
        Arm(
            "longer",
            "control",
            RECIPE | {"ghost": False},
            label="large batch, equal updates, no ghost statistics",
        ),
    ),
    tune=(Axis("lr", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),),
    scales={
        # 26 epochs hold 104 updates at the initial rate: enough to fit the distance
        "smoke": DESK | {"n_train": 256, "n_test": 200, "epochs": 26},
        "desk": DESK,
        "paper": MNIST | {"small_batch": 128, "large_share": 4096 / 60_000, "max_norm": 5.0},
    },
    claims=(
        Claim(
            "gap",
            "At equal epochs the large batch generalises worse than the small one.",
            difference("small", "large", "accuracy"),
            min_effect=0.02,
            why="the paper's gaps are 1 to 10 points; 2 points are 15 of 773 test digits",
            primary=True,
            controls=(),
        ),
        Claim(
            "ordering",
            "Each part of the recipe helps: large < + sqrt rate <= + ghost statistics < + regime adaptation.",
            ordering("large < scaled <= ghost < adapted", "accuracy"),
            min_effect=0.005,
            why="half a point, 4 of 773 test digits; two would be 0.26 points",
            primary=True,
            requires=("gap",),
        ),
        Claim(
            "closes",
            "With as many updates as the small batch, the large batch generalises as well.",
            equivalence("adapted", "small", "accuracy"),
            min_effect=0.007,
            why="the paper's remaining differences are up to 0.7 points",
            primary=True,
            requires=("gap",),
        ),
        Claim(
            "log-distance",
            "At the initial learning rate the distance from the start grows like log t, not like sqrt t.",
            custom(
                lambda cells: cells.mean("small", "r2_log") - cells.mean("small", "r2_sqrt"),
                arms=("small",),
                text="R2 of log t - R2 of sqrt t, batch 32",
            ),
            min_effect=0.05,
            why="R2 differs by less between refits of the same path",
            controls=(),
        ),
    ),
    figures=(
        Figure("Accuracy of every seed", "accuracy", caption="Learning rate tuned for each arm alike."),
        Figure("Updates", "updates", caption="Equal epochs are not equal updates.", log_y=True),
        Figure("Final loss on the training rows", "train_loss", caption="Is the large batch under-trained?"),
        Figure("Distance from the start", "distance", x="step", arms=("small",), log_x=True),
    ),
    data={"smoke": ["digits"], "desk": ["digits"], "paper": ["mnist"]},
    tested_on="digits (1,024 images) with a 42k-parameter perceptron, batch 1,024 against 32",
    paper_setup="MNIST, CIFAR, ImageNet; batch 2,048 to 4,096 against 128",
)
