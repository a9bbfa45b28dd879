"""Test whether mixing source and test-batch statistics in batch norm is more accurate than either, on
shuffled and class-sorted streams of corrupted images. You, Li, Zhao 2021, arXiv 2110.04065."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.optim import Adam

from trueup.adaptation import convert_alpha_bn, convert_test_batch_norm, core, tent
from trueup.lab import Arm, Axis, Claim, Condition, Figure, Run, Study, difference
from trueup.studies._protocols.shifted_streams import (
    ACCURACY,
    NLL,
    SCALES,
    STAGES,
    beats_all,
    drop,
    follow_streams,
)


def adapt(net: nn.Module, run: Run) -> nn.Module:
    """Adapt the source net as the arm says."""
    match run["adapt"]:
        case "batch":
            return convert_test_batch_norm(net)
        case "mixed":
            return convert_alpha_bn(net, run["source_weight"])
        case "prior":
            return convert_alpha_bn(net, prior_strength=run["prior_strength"])
        case "core":
            return core(net, run["source_weight"], optimizer=partial(Adam, lr=run["lr"]))
        case "tent":
            return tent(net, optimizer=partial(Adam, lr=run["lr"]))
    return net


def cell(run: Run) -> dict[str, Any]:
    """Follow the streams of all corruptions with the adapted net; in a report at fixed weights too."""
    found = follow_streams(run, partial(adapt, run=run))
    if run["adapt"] == "mixed" and not run.tuning:
        fixed = (partial(convert_alpha_bn, source_weight=weight) for weight in WEIGHTS)
        found |= {"fixed": [follow_streams(run, to)["accuracy"] for to in fixed], "weight": WEIGHTS}
    return found


ENDS = ("source", "batch")
WEIGHTS = (0.0, 0.3, 0.5, 0.8, 1.0)
RATE = Axis("lr", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2))

study = Study(
    slug="alpha-bn",
    question="Do source and test-batch statistics mixed in batch norm beat both, on corrupted images?",
    cell=cell,
    metrics=(ACCURACY, NLL),
    arms=(
        Arm("source", "baseline", {"adapt": "nothing"}, label="source statistics"),
        Arm("batch", "baseline", {"adapt": "batch"}, label="test-batch statistics"),
        Arm("alpha", "method", {"adapt": "mixed"}, label="alpha-BN, its weight tuned on other corruptions"),
        Arm("core", "ablation", {"adapt": "core", "lr": 1e-3}, label="alpha-BN and steps on the Core loss"),
        Arm("tent", "baseline", {"adapt": "tent"}, (RATE,), label="TENT, its rate tuned alike"),
        Arm(
            "prior",
            "control",
            {"adapt": "prior", "prior_strength": 16},
            label="source weight 16 / (16 + batch size), never tuned",
        ),
    ),
    conditions=(Condition("stream", ("iid", "sorted")), Condition("batch", (16, 64))),
    # No use to arms without a weight: their trials are all equal.
    tune=(Axis("source_weight", WEIGHTS, low=0.0, high=1.0),),
    stages=STAGES,
    scales=SCALES,
    claims=(
        Claim(
            "mixing",
            "Over all streams and batch sizes, alpha-BN is more accurate than the better of the source's and "
            "the test batch's statistics.",
            beats_all("alpha", ENDS, {}),
            min_effect=0.005,
            why="half a point is 9 of the 1,792 images of a seed's four corruptions",
            primary=True,
        ),
        Claim(
            "sorted-hurts",
            "Test-batch statistics lose accuracy on class-sorted streams.",
            drop("batch", "sorted", {}),
            min_effect=0.05,
            why="the problem that the source statistics should solve",
            origin="interpretation",
            controls=(),
        ),
        Claim(
            "sorted",
            "On class-sorted streams alpha-BN is more accurate than both.",
            beats_all("alpha", ENDS, {"stream": "sorted"}),
            min_effect=0.015,
            why="a short trial saw 2 to 3 points; 1.5 are 27 of 1,792 images",
            origin="interpretation",
            primary=True,
            requires=("sorted-hurts",),
        ),
        Claim(
            "iid",
            "On shuffled streams alpha-BN is more accurate than both.",
            beats_all("alpha", ENDS, {"stream": "iid"}),
            min_effect=0.005,
            why="half a point is 9 of 1,792 images",
            primary=True,
        ),
        Claim(
            "core",
            "Steps on the Core loss make alpha-BN more accurate.",
            difference("core", "alpha", "accuracy"),
            min_effect=0.005,
            why="half a point is 9 of 1,792 images",
            controls=(),
        ),
    ),
    figures=(
        Figure("Accuracy of every seed", "accuracy", x="batch", log_x=True),
        Figure("NLL of every seed", "nll", x="batch", log_x=True),
        Figure("Accuracy at fixed weights of the source", "fixed", x="weight", arms=("alpha",)),
    ),
    data={"smoke": ("digits",), "desk": ("fashion-mnist",)},
    tested_on="Fashion-MNIST, 4 corruptions of severity 5, with a 15k-parameter convolutional net",
    paper_setup="CIFAR-10-C, CIFAR-100-C, ImageNet-C; domain generalisation; Cityscapes segmentation",
)
