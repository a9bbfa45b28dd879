"""Test whether dividing the gradient by the mean misclassification weight finds a separating hyperplane in
fewer steps, whatever the step size. Tyurin 2025, arXiv 2412.08424. Steps are full-batch and start from
zero."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from trueup import data
from trueup.estimators import LargeStepLogisticRegression
from trueup.lab import Arm, Claim, Condition, ExactClaim, Figure, Metric, Run, Study, log_ratio
from trueup.studies._protocols.separation import Mode, from_limit, misled, steadier, steps_to_separate

MOST = 20_000


def cell(run: Run) -> dict[str, Any]:
    """Separate pairs of digits drawn by the seed, the second one common or rare."""
    digits, rng = data.load("digits"), run.rng("samples")
    X, y = digits.X / 16, np.asarray(digits.y)
    steps, peaks = [], []
    for _ in range(run["pairs"]):
        first, second = rng.choice(10, size=2, replace=False)
        common = rng.permutation(np.flatnonzero(y == first))[: run["majority"]]
        other = rng.permutation(np.flatnonzero(y == second))[: run["minority"]]
        rows = np.concatenate([common, other])
        model = LargeStepLogisticRegression(run["lr"], max_iter=MOST, mode=run["mode"])
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            model.fit(X[rows], y[rows])
        steps.append(model.n_iter_ if model.separated_ else MOST)
        peaks.append(max(model.loss_curve_))
    return {"steps": np.exp(np.mean(np.log(steps))), "peak_loss": np.exp(np.mean(np.log(peaks)))}


def beyond_guarantee(mode: Mode, lr: float, n: int) -> float:
    """Count the steps beyond R^2 / mu^2 + 2 log(2n - 1) / (lr mu^2), where R^2 = 1.25 and mu = 0.5."""
    return max(0.0, steps_to_separate(mode, lr, n) - 5 - 8 * math.log(2 * n - 1) / lr)


RARE, COMMON = 10, 150
SWEEPS = [{"minority": RARE}, {"minority": COMMON}]
METHODS: tuple[Mode, Mode] = ("lrgd", "normalized")
PERCEPTRONS: tuple[Mode, Mode] = ("batch_perceptron", "normalized_batch_perceptron")
OF_NORMALIZED = {100: 2, 10: 2, 1: 16, 0.1: 157}
TABLE = {("lrgd", 100): 308} | {("normalized", lr): steps for lr, steps in OF_NORMALIZED.items()}

study = Study(
    slug="normalized-gd",
    question="Does normalised logistic regression separate classes in fewer steps, whatever the step size?",
    cell=cell,
    metrics=(
        Metric("steps", higher=False, worst=MOST, label="steps until no training error, geometric mean"),
        Metric("peak_loss", higher=False, worst=1e9, label="largest loss on the way"),
    ),
    arms=(
        Arm("lrgd", "baseline", {"mode": "lrgd"}, label="gradient descent"),
        Arm("normalized", "method", {"mode": "normalized"}, label="divided by the misclassification weight"),
        Arm("unit", "control", {"mode": "unit_gradient"}, label="gradient divided by its norm"),
        Arm("by-loss", "control", {"mode": "inverse_loss"}, label="gradient divided by the loss"),
    ),
    conditions=(Condition("lr", (0.1, 1, 10, 100)), Condition("minority", (RARE, COMMON))),
    scales={"smoke": {"majority": 30, "pairs": 1}, "desk": {"majority": 150, "pairs": 4}},
    claims=(
        ExactClaim(
            "table-1",
            "On 1000 worst-case samples the steps to separate are those of the paper's table 1.",
            deviation=lambda mode, lr: abs(steps_to_separate(mode, lr, 1000) - TABLE[mode, lr]),
            negative_control=lambda mode, lr: abs(
                steps_to_separate("unit_gradient", lr, 1000) - TABLE[mode, lr]
            ),
            control_label="the gradient divided by its norm",
            instances={f"{m}, step {lr:g}": {"mode": m, "lr": lr} for m, lr in TABLE},
            tolerance=0.0,
            primary=True,
        ),
        Claim(
            "fewer-steps-rare-class",
            "With a rare class it needs fewer steps than gradient descent, both at step size 100.",
            log_ratio("normalized", "lrgd", "steps", {"lr": 100, "minority": RARE}),
            min_effect=0.1,
            why="the paper's table 1: 311 steps against 538 on imbalanced data, both at step size 100",
            primary=True,
            controls=("unit", "by-loss"),
        ),
        Claim(
            "steadier-over-step-sizes",
            "Over step sizes from 0.1 to 100 the number of steps varies by a smaller factor, at most half.",
            steadier("normalized", "lrgd", "steps", "lr", SWEEPS),
            min_effect=math.log(2),
            why="half the factor: gradient descent varies by a factor of about 30 in a first look",
            primary=True,
            controls=("unit", "by-loss"),
        ),
        ExactClaim(
            "guarantee",
            "Worst-case data are separated within R^2/mu^2 + 2 log(2n-1)/(lr mu^2) steps.",
            deviation=lambda lr, n: beyond_guarantee("normalized", lr, n),
            negative_control=lambda lr, n: beyond_guarantee("lrgd", lr, n),
            control_label="gradient descent without the factor",
            instances={f"{n}, step {r:g}": {"lr": r, "n": n} for n in (50, 200, 1000) for r in (1, 10, 100)},
            tolerance=0.0,
        ),
        ExactClaim(
            "perceptron-limit",
            "At a step size of 1e8 the iterates, divided by it, are those of the batch perceptrons.",
            deviation=lambda first, second: from_limit(zip(METHODS, PERCEPTRONS), first, second),
            negative_control=lambda first, second: from_limit(zip(METHODS, PERCEPTRONS[::-1]), first, second),
            control_label="each method against the other one's perceptron",
            instances={f"{a} and {b}": {"first": a, "second": b} for a, b in ((3, 8), (1, 8), (4, 9))},
            tolerance=1e-9,
        ),
        Claim(
            "slower-when-balanced",
            "On balanced data gradient descent needs fewer steps, both at step size 100.",
            log_ratio("lrgd", "normalized", "steps", {"lr": 100, "minority": COMMON}),
            min_effect=0.05,
            why="the paper's table 1: 2928 steps against 3160 on balanced data",
        ),
        Claim(
            "loss-misleads",
            "At step size 100 gradient descent passes a higher loss than at 1, and needs fewer steps.",
            misled("lrgd", 1, 100, at={"minority": RARE}),
            min_effect=math.log(2),
            why="twice: a difference that nobody would overlook in a plot",
        ),
    ),
    figures=(
        Figure("Steps to separate over step sizes", "steps", x="lr", log_x=True, log_y=True),
        Figure("Largest loss on the way", "peak_loss", x="lr", log_x=True, log_y=True),
    ),
    data=("digits",),
    tested_on="digits: four pairs of classes a seed, 150 samples against 10 or 150, 65 features",
    paper_setup="two classes of CIFAR-10, FashionMNIST, EuroSAT and MNIST, 5,000 samples",
)
