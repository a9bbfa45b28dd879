"""The Core loss and the entropy against loops, their limits and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trueup.adaptation import core_loss, entropy_loss
from trueup.adaptation._core import core_equation

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "row": core_loss,
    "sum": lambda z: core_loss(z, normalization="sum"),
    "entropy": entropy_loss,
}


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_loops(logits: Tensor) -> dict[str, float]:
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    samples, classes = p.shape
    a = [[sum(p[b, i] * p[b, j] for b in range(samples)) for j in range(classes)] for i in range(classes)]
    pairs = [(i, j) for i in range(classes) for j in range(classes) if i != j]
    return {
        "row": sum(a[i][j] / sum(a[i]) for i, j in pairs) / classes,
        "sum": sum(a[i][j] for i, j in pairs) / samples,
        "entropy": -sum(v * math.log(v) for v in p.flatten()) / samples,
    }


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 7), classes=st.integers(2, 6), seed=st.integers(0, 1000))
def test_against_loops(samples: int, classes: int, seed: int) -> None:
    logits = random_logits(samples, classes, seed=seed)
    expected = by_loops(logits)
    for name, loss in LOSSES.items():
        assert float(loss(logits)) == pytest.approx(expected[name], rel=1e-9)
    for normalization in ("row", "sum"):
        assert float(core_equation(logits.softmax(1), normalization)) == pytest.approx(
            expected[normalization]
        )


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    logits = random_logits(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], logits)
    assert torch.autograd.gradgradcheck(LOSSES[name], logits)


@pytest.mark.parametrize("name", LOSSES)
def test_range(name: str) -> None:
    uniform, certain = torch.zeros(5, 4), torch.eye(4)[[0, 1, 2, 3, 0]] * 200
    largest = math.log(4) if name == "entropy" else 3 / 4
    assert float(LOSSES[name](uniform)) == pytest.approx(largest)
    assert float(LOSSES[name](certain)) == pytest.approx(0, abs=1e-6)
    logits = random_logits(6, 5)
    shuffled = logits[torch.tensor([3, 1, 0, 5, 4, 2])][:, torch.tensor([4, 2, 0, 1, 3])]
    torch.testing.assert_close(LOSSES[name](shuffled), LOSSES[name](logits))
    torch.testing.assert_close(LOSSES[name](logits + 7), LOSSES[name](logits))


def test_rows_weigh_classes_and_sums_weigh_samples() -> None:
    """One uncertain sample of a rare class among many certain ones of another."""
    logits = torch.tensor([[200.0, 0.0, 0.0]] * 98 + [[0.0, 200.0, 200.0]] * 2, dtype=torch.float64)
    assert float(core_loss(logits, normalization="sum")) == pytest.approx(0.02 * 0.5)
    assert float(core_loss(logits)) == pytest.approx(2 / 3 * 0.5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    logits = random_logits(6, 5).to(dtype)
    value = LOSSES[name](logits)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), LOSSES[name](logits.double()), rtol=1e-5, atol=1e-6)
    leaf = logits.clone().requires_grad_()
    LOSSES[name](leaf).backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_class_counts_for_nothing(name: str) -> None:
    logits = random_logits(6, 4)
    masked = torch.cat([logits, torch.full((6, 1), -math.inf, dtype=logits.dtype)], 1).requires_grad_()
    classes = 5 / 4 if name == "row" else 1  # the mean over classes has one more
    value = LOSSES[name](masked)
    torch.testing.assert_close(value * classes, LOSSES[name](logits))
    value.backward()
    assert masked.grad is not None
    assert masked.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_positions_are_samples(name: str) -> None:
    logits = random_logits(2, 3, 4, 5)
    rows = torch.stack([logits[n, :, i, j] for n in range(2) for i in range(4) for j in range(5)])
    torch.testing.assert_close(LOSSES[name](logits), LOSSES[name](rows))
    assert LOSSES[name](logits * math.nan).isnan()


@pytest.mark.parametrize("normalization", ["row", "sum"])
def test_from_probs(normalization: str) -> None:
    logits = random_logits(6, 5)
    expected = core_loss(logits, normalization=normalization)  # type: ignore[arg-type]
    value = core_loss(logits.softmax(1), normalization=normalization, from_probs=True)  # type: ignore[arg-type]
    torch.testing.assert_close(value, expected)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: core_loss(torch.zeros(2, 3), normalization="column"),
            ValueError,
            "'row' or 'sum'; got 'column'",
        ),  # type: ignore[arg-type]
        (lambda: core_loss(torch.zeros(2, 3).long()), TypeError, "got torch.int64: convert with .float"),
        (
            lambda: core_loss(torch.zeros(3)),
            ValueError,
            r"core_loss needs .* got shape \(3,\): for a single logit",
        ),
        (lambda: core_loss(torch.zeros(3, 1)), ValueError, r"two classes; got shape \(3, 1\)"),
        (
            lambda: entropy_loss(torch.zeros(0, 3)),
            ValueError,
            r"entropy_loss .* one sample .* got shape \(0, 3\)",
        ),
        (lambda: entropy_loss(torch.zeros(2, 3, 0)), ValueError, r"got shape \(2, 3, 0\)"),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
