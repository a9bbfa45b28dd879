"""Calibration under shift: one net per seed, and its logits of images and of three views of each image."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from trueup import data
from trueup.adaptation import corrupt
from trueup.calibration import (
    brier_score,
    correctness_auroc,
    expected_calibration_error,
    ks_error,
    negative_log_likelihood,
)
from trueup.lab import Contrast, Metric, Run, SeedCells, Stage, custom
from trueup.models import mlp
from trueup.training import minibatches, train

# One corruption of each of ImageNet-C's families, and one that moves the object as real photographs do.
SHIFTS = ("rotation", "gaussian_noise", "motion_blur", "fog", "contrast")


def images(run: Run, part: str) -> tuple[Float[Tensor, "rows 1 28 28"], Int[Tensor, " rows"]]:
    """Load the seed's images for training, calibration or testing, in [0, 1]."""
    table, n = data.load(run["data"]), run["n_train"]
    target = np.asarray(table.y)
    fit, test = run.split(target, train=n + run["n_calibration"], test=run["n_test"])
    rows = {"train": fit[:n], "calibration": fit[n:], "test": test}[part]
    X = torch.tensor(table.X[rows] / table.X.max(), dtype=torch.float32)
    side = math.isqrt(table.X[0].size)
    return functional.interpolate(X.view(-1, 1, side, side), 28), torch.tensor(target[rows]).long()


def rotate(x: Tensor, degrees: float) -> Tensor:
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]).expand(len(x), 2, 3)
    grid = functional.affine_grid(turn, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def network(run: Run) -> dict[str, Tensor]:
    """Train the net until it is sure of its training images."""
    X, y = images(run, "train")
    torch.manual_seed(run.torch_seed("init"))
    net = mlp(28 * 28, (run["hidden"],), 10)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    rows = minibatches(len(X), 100, run["epochs"], run.generator("order"))
    for _ in train(net, ((X[i], y[i]) for i in rows), optimizer):
        pass
    return net.state_dict()


@torch.no_grad()
def logits(run: Run, X: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Compute the net's logits of images and of three views: rotated, with less contrast, with noise."""
    net = mlp(28 * 28, (run["hidden"],), 10).eval()
    net.load_state_dict({name: torch.tensor(value) for name, value in run.inputs["network"].items()})
    noise = torch.randn(X.shape, generator=run.generator("view"))
    mean = X.mean((2, 3), keepdim=True)
    views = (rotate(X, 15), mean + 0.6 * (X - mean), (X + 0.25 * noise).clamp(0, 1))
    return {"logits": net(X), "view_logits": torch.stack([net(view) for view in views]), "target": y}


def calibration(run: Run) -> dict[str, Tensor]:
    """Compute the logits of clean images that calibrators are fitted on."""
    return logits(run, *images(run, "calibration"))


def test(run: Run) -> dict[str, Tensor]:
    """Compute the logits of clean or shifted images that calibrators are judged on."""
    X, y = images(run, "test")
    if run["shift"] == "rotation":
        X = rotate(X, 30)
    elif run["shift"] != "clean":
        X = corrupt(X, run["shift"], 5, generator=run.generator("shift"))
    return logits(run, X, y)


STAGES = (
    Stage("network", network),
    Stage("calibration", calibration, ("network",)),
    Stage("test", test, ("network",), conditions=("shift",)),
)

METRICS = (
    Metric("ece", higher=False, worst=1.0, label="ECE, 25 bins"),
    Metric("auroc", higher=True, worst=0.0, label="AUROC of confidence for correctness"),
    Metric("nll", higher=False, worst=100.0, label="test NLL"),
    Metric("brier", higher=False, worst=2.0, label="Brier score"),
    Metric("ks", higher=False, worst=1.0, label="KS error"),
    Metric("accuracy", higher=True, worst=0.0, unit="%", label="test accuracy"),
)


def measure(z: Float[Tensor, "rows classes"], y: Int[Tensor, " rows"]) -> dict[str, float]:
    """Measure how well logits are calibrated."""
    return {
        "ece": float(expected_calibration_error(z, y, n_bins=25, from_logits=True)),
        "auroc": float(correctness_auroc(z, y, from_logits=True)),
        "nll": float(negative_log_likelihood(z, y, from_logits=True)),
        "brier": float(brier_score(z, y, from_logits=True)),
        "ks": float(ks_error(z, y, from_logits=True)),
        "accuracy": float((z.argmax(1) == y).double().mean()),
    }


def under_shift(better: str, worse: str, metric: str) -> Contrast:
    """Compare two arms by difference, averaged over the shifts: all conditions but the clean one."""

    def value(cells: SeedCells) -> float:
        means = [[cells.mean(arm, metric, {"shift": shift}) for shift in SHIFTS] for arm in (better, worse)]
        return cells.sign(metric) * float(np.mean(np.subtract(means[0], means[1])))

    return custom(
        value,
        (better, worse),
        text=f"{better} - {worse} under shift, {metric}",
        metrics=(metric,),
        against=lambda control: under_shift(better, control, metric),
    )


def harm(arm: str, metric: str) -> Contrast:
    """Claim that an arm is worse under shift than on clean images."""

    def value(cells: SeedCells) -> float:
        shifted = np.mean([cells.mean(arm, metric, {"shift": shift}) for shift in SHIFTS])
        return cells.sign(metric) * (cells.mean(arm, metric, {"shift": "clean"}) - float(shifted))

    return custom(value, (arm,), text=f"{arm}, clean - shifted, {metric}", metrics=(metric,))
