"""Measures of calibration against torchmetrics, all pairs, and a loop over classes.

Each suite of ours starts from what its peer starts from, and checks its input. The bound against the top-1
confidence shows what 36 binned errors, KS and MMCE add to the pass that finds the confidence.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Row
from trueup.calibration import DEFAULT_BINS
from trueup.calibration._kernel_sums import mmce_all_pairs
from trueup.calibration._predictions import Predictions
from trueup.calibration._top_label import TopLabel


def rows() -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1_000_000, 10, generator=generator)
    target = torch.multinomial((logits / 2).softmax(1), 1, generator=generator).squeeze(1)
    what = "9 x (ECE, MCE, ACE, equal-mass ECE), KS, MMCE; 1e6 x 10 logits"
    yield Row(
        what, "top-1 confidence", 2.3, lambda: suite(logits, target, True), lambda: top_confidence(logits)
    )
    probs = logits.softmax(1)
    if importlib.util.find_spec("torchmetrics") is None:
        print(
            "torchmetrics is not installed, and its row left out: pip install torchmetrics", file=sys.stderr
        )
    else:
        ours = lambda: suite(probs, target, False)  # noqa: E731
        yield Row(
            what.replace("logits", "probabilities"),
            "torchmetrics' ECE, 9 times",
            0.05,
            ours,
            lambda: torchmetrics(probs, target),
        )

    rng = np.random.default_rng(0)
    confidence = rng.beta(4, 1, 10_000)
    correct = rng.random(10_000) < confidence
    yield Row(
        "MMCE, 1e4, float64",
        "all pairs",
        0.002,
        lambda: TopLabel.of(confidence, correct).mmce(),
        lambda: mmce_all_pairs(confidence, correct),
    )

    yield classwise(probs, target, 0.20)
    del logits, probs
    probs = (2 * torch.randn(50_000, 1000, generator=generator)).softmax(1)
    yield classwise(probs, torch.multinomial(probs, 1, generator=generator).squeeze(1), 0.10)


def suite(values: Tensor, target: Tensor, from_logits: bool) -> None:
    """Compute the suite from scratch, checks included."""
    top = Predictions(values, target, from_logits=from_logits).top
    for n_bins in DEFAULT_BINS:
        bins = top.bins(n_bins)
        bins.error("l1"), bins.error("max"), bins.error("mean")
        top.error(n_bins, binning="quantile")
    top.ks_error(), top.mmce()


def top_confidence(logits: Tensor) -> None:
    """Compute the largest probability of each row, a few rows at a time; check, sort and keep nothing."""
    for chunk in logits.split(2**17 // logits.shape[1]):
        (chunk - chunk.amax(1, keepdim=True)).exp_().sum(1).reciprocal_()


def torchmetrics(probs: Tensor, target: Tensor) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    for n_bins in DEFAULT_BINS:
        multiclass_calibration_error(probs, target, num_classes=probs.shape[1], n_bins=n_bins)


def classwise(probs: Tensor, target: Tensor, bound: float) -> Row:
    predictions = f"{len(probs):.0e} x {probs.shape[1]}".replace("e+0", "e")

    def ours() -> None:
        histogram = Predictions(probs, target).classwise
        for n_bins in DEFAULT_BINS:
            histogram.error(n_bins)

    return Row(
        f"classwise ECE, 9 numbers of bins, {predictions}",
        "a loop over classes, 15 bins",
        bound,
        ours,
        lambda: class_by_class(probs, target),
    )


def class_by_class(probs: Tensor, target: Tensor, n_bins: int = 15) -> float:
    """Compute classwise ECE as it is published elsewhere: a mask per class and bin."""
    edges = torch.linspace(0, 1, n_bins + 1)
    total = 0.0
    for k in range(probs.shape[1]):
        confidence, correct = probs[:, k], target == k
        for low, high in pairwise(edges):
            inside = (confidence > low) & (confidence <= high)
            share = inside.float().mean()
            if share > 0:
                gap = correct[inside].float().mean() - confidence[inside].mean()
                total += float(gap.abs() * share)
    return total / probs.shape[1]
