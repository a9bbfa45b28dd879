"""Correctness-aware calibration against its equation, which stores the probabilities of all views."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Row
from trueup.calibration import CorrectnessAwareCalibrator, view_features
from trueup.calibration._correctness_aware import new_network, objective

UPDATES = 20


def rows() -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1000, 1000, generator=generator)
    views = logits + torch.randn(3, 1000, 1000, generator=generator)
    target = (logits + 3 * torch.randn(1000, 1000, generator=generator)).argmax(1)
    yield Row(
        "view_features, 3 views of 1000x1000",
        "softmax, then gather",
        1.6,  # slower than one softmax: this bounds the price of not storing the probabilities
        partial(view_features, logits, views),
        partial(softmax_then_gather, logits, views),
    )
    calibrator = CorrectnessAwareCalibrator(max_iter=UPDATES, random_state=0)
    yield Row(
        f"CorrectnessAwareCalibrator, {UPDATES} updates on 1000x1000",
        "its equation, step by step",
        0.6,
        lambda: calibrator.fit(logits, target, view_logits=views),
        partial(fit_equation, logits, views, target),
    )


def softmax_then_gather(logits: Tensor, views: Tensor) -> Tensor:
    answers = logits.topk(4).indices
    return views.softmax(2).gather(2, answers.expand(len(views), -1, -1)).transpose(0, 1).flatten(1)


def fit_equation(logits: Tensor, views: Tensor, target: Tensor) -> None:
    """Minimize the equation by Adam, computing the features at every update as the official code does."""
    network = new_network(view_features(logits, views), 5, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        objective(network, logits, views, target, 4, (0.1, 10.0)).backward()
        optimizer.step()
