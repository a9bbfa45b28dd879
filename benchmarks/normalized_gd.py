"""Large-step descent against the direct form by autograd, and against scikit-learn's linear classifiers.

The direct form is what one would write at first: a loss, backward, beta from a second look at the margins. It
makes the same steps until it divides 0 by 0 after separation.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Perceptron
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from benchmarks.harness import Row
from trueup.estimators import LargeStepLogisticRegression
from trueup.optim import large_step_descent

STEPS = 20


def direct(X: torch.Tensor, y: torch.Tensor, lr: float) -> torch.Tensor:
    theta = X.new_zeros(X.shape[1], requires_grad=True)
    for _ in range(STEPS):
        F.softplus(-y * (X @ theta)).mean().backward()
        with torch.no_grad():
            beta = 1 / torch.sigmoid(-y * (X @ theta)).mean()
            theta -= lr * beta * theta.grad
        theta.grad = None
    return theta.detach()


def rows() -> Iterator[Row]:
    digits, labels = load_digits(return_X_y=True)
    for samples, features in ((357, 65), (5000, 785)):
        generator = torch.Generator().manual_seed(0)
        X = torch.randn(samples, features, generator=generator, dtype=torch.float64) / features**0.5
        y = torch.sign(X @ torch.randn(features, generator=generator, dtype=torch.float64))
        Z = y[:, None] * X

        def ours(Z: torch.Tensor = Z) -> object:
            *_, last = islice(large_step_descent(Z, 100.0), STEPS + 1)
            return last

        def theirs(X: torch.Tensor = X, y: torch.Tensor = y) -> object:
            return direct(X, y, 100.0)

        bound = 0.5 if samples < 1000 else 0.75
        yield Row(
            f"{STEPS} steps, float64, {samples} x {features}", "direct form, autograd", bound, ours, theirs
        )

    chosen = (labels == 3) | (labels == 8)
    A, b = digits[chosen] / 16, labels[chosen]
    assert LargeStepLogisticRegression(lr=1000).fit(A, b).separated_

    def fit(model: object) -> object:
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(A, b)  # type: ignore[attr-defined]

    what = f"digits 3 and 8, {A.shape[0]} x {A.shape[1]}, to no training error"
    peers = {
        "LogisticRegression(C=1e8), lbfgs": (LogisticRegression(C=1e8, max_iter=10_000), 2.0),
        "Perceptron(tol=None, max_iter=200)": (Perceptron(tol=None, max_iter=200), 1.0),
    }
    for peer, (model, bound) in peers.items():
        assert np.mean(fit(model).predict(A) == b) == 1  # type: ignore[attr-defined]
        yield Row(
            what,
            peer,
            bound,
            lambda: fit(LargeStepLogisticRegression(lr=1000)),
            lambda model=model: fit(model),
        )
