"""Test whether UnMix-TNS keeps its accuracy on class-correlated streams of corrupted images, on which
test-batch statistics fail. Tomar, Vray, Thiran, Bozorgtabar 2024, arXiv 2401.08328."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from trueup.adaptation import convert_alpha_bn, convert_test_batch_norm, convert_unmix_tns
from trueup.lab import Arm, Claim, Condition, Figure, Run, Study, difference
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
    """Replace the source net's normalization as the arm says."""
    match run["adapt"]:
        case "batch":
            return convert_test_batch_norm(net)
        case "mixed":
            return convert_alpha_bn(net, 0.5)
        case "unmix":
            return convert_unmix_tns(
                net,
                run["components"],
                batch_size=run["batch"],
                max_batch_size=64,
                generator=run.generator("components"),
            )
    return net


def cell(run: Run) -> dict[str, Any]:
    """Follow the streams of all corruptions; every stream meets the components as they were at first."""
    return follow_streams(run, partial(adapt, run=run))


CORRELATED = {"stream": "correlated"}
# A stream of single images takes long; one in batches of 64 needs more of a class than fill a batch.
LENGTHS: dict[str, dict[str, Any]] = {
    "smoke": {"images": {1: 32}},
    "desk": {"images": {1: 128}, "n_test": 1024},
}

study = Study(
    slug="unmix-tns",
    question="Does unmixing the statistics of a stream keep batch norm accurate when classes come in runs?",
    cell=cell,
    metrics=(ACCURACY, NLL),
    arms=(
        Arm("source", "baseline", {"adapt": "nothing"}, label="source statistics"),
        Arm("batch", "baseline", {"adapt": "batch"}, label="test-batch statistics"),
        Arm("alpha", "baseline", {"adapt": "mixed"}, label="alpha-BN, half and half"),
        Arm("unmix", "method", {"adapt": "unmix", "components": 16}, label="UnMix-TNS, 16 components"),
        Arm("instance", "control", {"adapt": "unmix", "components": 1}, label="instance normalization"),
    ),
    conditions=(Condition("stream", ("iid", "correlated")), Condition("batch", (1, 16, 64))),
    stages=STAGES,
    scales={scale: {**settings, **LENGTHS[scale]} for scale, settings in SCALES.items()},
    claims=(
        Claim(
            "batch-drops",
            "In batches of 64 test-batch statistics lose accuracy when the stream's labels are correlated.",
            drop("batch", "correlated", {"batch": 64}),
            min_effect=0.1,
            why="the problem that unmixing should solve; smaller losses would need no remedy",
            controls=(),
        ),
        Claim(
            "correlated",
            "On correlated streams UnMix-TNS is more accurate than test-batch statistics.",
            difference("unmix", "batch", "accuracy", CORRELATED),
            min_effect=0.02,
            why="2 points are 82 of 4,096 images",
            primary=True,
            requires=("batch-drops",),
        ),
        Claim(
            "order",
            "In batches of 64 the accuracy of UnMix-TNS hardly depends on the order of the stream.",
            drop("unmix", "correlated", {"batch": 64}, "equivalence"),
            min_effect=0.03,
            why="a third of what test-batch statistics must lose at least",
            primary=True,
            requires=("batch-drops",),
        ),
        Claim(
            "best",
            "On correlated streams it is more accurate than no adaptation and every other normalization.",
            beats_all("unmix", ("source", "batch", "alpha"), CORRELATED),
            min_effect=0.01,
            why="1 point is 41 of 4,096 images",
            primary=True,
            requires=("batch-drops",),
        ),
    ),
    figures=(
        Figure("Accuracy of every seed", "accuracy", x="batch", log_x=True),
        Figure("NLL of every seed", "nll", x="batch", log_x=True),
    ),
    data={"smoke": ("digits",), "desk": ("fashion-mnist",)},
    protocol=2,
    protocols={1: "448 images hold 45 of a class, too few to fill the batches of 64 with one class"},
    tested_on="Fashion-MNIST, 4 corruptions of severity 5, with a 15k-parameter convolutional net; in "
    "batches of 1 test-batch statistics are those of instance normalization",
    paper_setup="CIFAR-10-C, CIFAR-100-C, ImageNet-C, DomainNet-126; Dirichlet-correlated streams",
)
