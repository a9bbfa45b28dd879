"""Test whether a temperature that is aware of correctness calibrates better than a single one under shift.

Calibrators are fitted on the logits of clean images, and judged on those of clean and of shifted ones. Liu,
Wang, Zou, Zou, Zheng 2024, arXiv 2404.13016."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trueup.calibration import CorrectnessAwareCalibrator, TemperatureScaler
from trueup.lab import Arm, Claim, Condition, Figure, Run, Study, difference, non_inferiority
from trueup.studies._protocols.transformed_views import METRICS, SHIFTS, STAGES, harm, measure, under_shift


def calibrate(run: Run, fit: dict[str, Tensor], new: dict[str, Tensor]) -> Tensor:
    """Return the arm's calibrated logits of the new images."""
    z, y = fit["logits"], fit["target"]
    if run["calibrator"] == "none":
        return new["logits"]
    if run["calibrator"] == "temperature":
        correct = z.argmax(1) == y
        accuracy = correct.double().mean()
        weight = torch.where(correct, 1 - accuracy, accuracy) if run["balanced"] else None
        return TemperatureScaler().fit(z, y, weight).transform(new["logits"])
    learned = CorrectnessAwareCalibrator(
        loss=run["loss"],
        variant="official" if run["balanced"] else "paper",
        max_iter=run["updates"],
        random_state=run.torch_seed("calibrator") % 2**32,
    )
    if not run["views"]:
        return learned.fit(z, y).transform(new["logits"])
    learned.fit(z, y, view_logits=fit["view_logits"])
    return learned.transform(new["logits"], view_logits=new["view_logits"])


def cell(run: Run) -> dict[str, Any]:
    """Fit the arm's calibrator on clean images and measure it on the condition's images."""
    fit, new = (
        {name: torch.tensor(value) for name, value in run.inputs[stage].items()}
        for stage in ("calibration", "test")
    )
    return measure(calibrate(run, fit, new), new["target"])


NONE, ONE = {"calibrator": "none"}, {"calibrator": "temperature", "balanced": False}
AWARE = {"calibrator": "network", "loss": "mse", "balanced": False, "views": True}

study = Study(
    slug="correctness-aware-calibration",
    question="Does a temperature per sample, aware of correctness, calibrate better where the data shift?",
    cell=cell,
    metrics=METRICS,
    arms=(
        Arm("uncalibrated", "baseline", NONE),
        Arm("temperature", "baseline", ONE, label="one temperature, at the optimum"),
        Arm("aware", "method", AWARE, label="correctness-aware with views, the paper's loss"),
        Arm("balanced", "method", AWARE | {"balanced": True}, label="the same, the official balanced loss"),
        Arm("no-views", "ablation", AWARE | {"views": False}, label="correctness-aware without views"),
        Arm("cross-entropy", "control", AWARE | {"loss": "cross_entropy"}, label="cross entropy with views"),
        Arm(
            "prior",
            "control",
            ONE | {"balanced": True},
            label="one temperature fitted to an accuracy of one half, by the balanced weights alone",
        ),
    ),
    conditions=(Condition("shift", ("clean", *SHIFTS)),),
    stages=STAGES,
    scales={
        "smoke": {"data": "digits", "n_train": 200, "n_calibration": 400, "n_test": 400}
        | {"hidden": 32, "epochs": 2, "updates": 20},
        "desk": {"data": "fashion-mnist", "n_train": 3000, "n_calibration": 5000, "n_test": 2000}
        | {"hidden": 256, "epochs": 20, "updates": 600},
    },
    claims=(
        Claim(
            "shift-hurts",
            "A single temperature fitted on clean images is worse under shift.",
            harm("temperature", "ece"),
            min_effect=0.02,
            why="the problem to solve; 2 points are twice the smallest gain claimed below",
            origin="interpretation",
            controls=(),
        ),
        Claim(
            "under-shift",
            "Under shift the correctness-aware temperature has a lower ECE than a single temperature.",
            under_shift("aware", "temperature", "ece"),
            min_effect=0.01,
            why="1 point is the smallest difference in confidence worth three more passes of the net",
            primary=True,
            requires=("shift-hurts",),
        ),
        Claim(
            "auroc",
            "Under shift its confidence separates right from wrong answers better, by AUROC.",
            under_shift("aware", "temperature", "auroc"),
            min_effect=0.01,
            why="1 point of AUROC: one more pair in 100 of a right and a wrong answer in order",
            primary=True,
        ),
        Claim(
            "balanced-under-shift",
            "Under shift the official balanced loss has a lower ECE than a single temperature.",
            under_shift("balanced", "temperature", "ece"),
            min_effect=0.01,
            why="as above; this is the loss of the code behind the paper's tables",
            origin="interpretation",
            primary=True,
            requires=("shift-hurts",),
        ),
        Claim(
            "price",
            "The balanced loss pays for it on clean images: a single temperature has a lower ECE there.",
            difference("temperature", "balanced", "ece", {"shift": "clean"}),
            min_effect=0.02,
            why="2 points about double the ECE of a single temperature on clean images",
            origin="interpretation",
            controls=(),
        ),
        Claim(
            "clean",
            "On clean images the correctness-aware temperature is not worse than a single one.",
            non_inferiority("aware", "temperature", "ece", {"shift": "clean"}),
            min_effect=0.01,
            why="as above; the paper calls it competitive there",
            controls=(),
        ),
        Claim(
            "views",
            "The views matter: without them the ECE under shift is higher.",
            under_shift("aware", "no-views", "ece"),
            min_effect=0.01,
            why="as above",
            controls=("cross-entropy",),
        ),
    ),
    figures=(
        Figure("ECE on clean and shifted images", "ece", x="shift"),
        Figure("AUROC of confidence for correctness", "auroc", x="shift"),
    ),
    data={"smoke": ("digits",), "desk": ("fashion-mnist",)},
    tested_on="Fashion-MNIST (3,000 training images), a 200k-parameter perceptron, 5 shifts at severity 5; "
    "three of them resemble the views",
    paper_setup="ImageNet with about 10 networks, tested on ImageNet-A/-R/-S, ObjectNet; CIFAR-10; iWildCam",
)
