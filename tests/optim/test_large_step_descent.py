"""Large steps on linear problems: every mode against its naive form, the perceptron limit, the worst case."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trueup.optim import large_step_descent, worst_case_problem
from trueup.optim._large_step_descent import Mode

PERCEPTRONS = ("batch_perceptron", "normalized_batch_perceptron")


pytestmark = pytest.mark.usefixtures("one_thread")


def separable(n: int = 30, d: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    direction = torch.randn(d, generator=generator, dtype=torch.float64)
    return Z * torch.sign(Z @ direction)[:, None]


def naive(theta: Tensor, Z: Tensor, lr: float, mode: str, w: Tensor) -> Tensor:
    """The step in the plainest words, before separation."""
    theta = theta.clone().requires_grad_()
    margins = Z @ theta
    loss = (w * F.softplus(-margins)).sum() / w.sum()
    (grad,) = torch.autograd.grad(loss, theta)
    theta, margins = theta.detach(), margins.detach()
    wrong = w * ((margins < 0) + 0.5 * (margins == 0))
    match mode:
        case "normalized":
            return theta - lr * grad * w.sum() / (w * torch.sigmoid(-margins)).sum()
        case "lrgd":
            return theta - lr * grad
        case "inverse_loss":
            return theta - lr * grad / loss.detach()
        case "unit_gradient":
            return theta - lr * grad / grad.norm()
        case "batch_perceptron":
            return theta + wrong @ Z / w.sum()
        case "normalized_batch_perceptron":
            return theta + wrong @ Z / wrong.sum() if wrong.sum() > 0 else theta
    raise AssertionError(mode)


def steps_to_separate(Z: Tensor, lr: float, mode: Mode, most: int = 5000) -> int:
    for step, (_, margins) in enumerate(large_step_descent(Z, lr, mode)):
        if margins.min() > 0 or step == most:
            return step
    raise AssertionError


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lr", [0.5, 20.0])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_every_mode_equals_its_naive_form(mode: Mode, lr: float, weighted: bool) -> None:
    Z = separable()
    w = torch.rand(30, dtype=torch.float64) + 0.5 if weighted else torch.ones(30, dtype=torch.float64)
    start = torch.linspace(-0.2, 0.3, 5, dtype=torch.float64)
    theta = start
    descent = large_step_descent(Z, lr, mode, weight=w if weighted else None, start=start)
    for iterate in islice(descent, 6):
        # After separation rounding differences grow from step to step, and most with large steps.
        torch.testing.assert_close(iterate.theta, theta, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(iterate.margins, Z @ theta, rtol=1e-7, atol=1e-7)
        theta = naive(theta, Z, lr, mode, w)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_weight_two_is_two_samples_and_zero_is_none(mode: Mode) -> None:
    Z, w = separable(6, 3), torch.tensor([2.0, 0.0, 1.0, 1.0, 3.0, 1.0])
    pair = (
        large_step_descent(Z, 2.0, mode, weight=w),
        large_step_descent(Z.repeat_interleave(w.long(), 0), 2.0, mode),
    )
    for mine, repeated in islice(zip(*pair, strict=False), 5):
        torch.testing.assert_close(mine.theta, repeated.theta)


def test_weights_of_another_dtype_leave_the_features_theirs() -> None:
    Z, w = separable().float(), torch.rand(30, dtype=torch.float64)
    for mine, plain in islice(
        zip(*(large_step_descent(Z, mode="lrgd", weight=v) for v in (w, w.float())), strict=False), 3
    ):
        assert mine.theta.dtype == torch.float32
        assert torch.equal(mine.theta, plain.theta)


def test_start_is_zero_and_is_the_first_iterate() -> None:
    Z = separable()
    theta, margins = next(large_step_descent(Z))
    assert torch.equal(theta, torch.zeros(5).double())
    assert torch.equal(margins, torch.zeros(30).double())
    start = torch.ones(5).double()
    descent = large_step_descent(Z, start=start)
    next(descent), next(descent)
    assert torch.equal(start, torch.ones(5).double())


@pytest.mark.parametrize(("mode", "limit"), [("lrgd", PERCEPTRONS[0]), ("normalized", PERCEPTRONS[1])])
def test_a_huge_step_is_a_perceptron_until_separation(mode: Mode, limit: Mode) -> None:
    for seed in range(5):
        Z, lr = separable(seed=seed), 1e8
        for now, of_limit in zip(
            large_step_descent(Z, lr, mode), large_step_descent(Z, 1.0, limit), strict=False
        ):
            torch.testing.assert_close(now.theta / lr, of_limit.theta, rtol=0, atol=1e-9)
            if of_limit.margins.min() > 0:
                break


def test_perceptrons_ignore_the_step_and_stand_still_once_separated() -> None:
    Z = separable()
    for mode in PERCEPTRONS:
        slow, fast = (
            [i.theta for i in islice(large_step_descent(Z, lr, mode), 300)]  # type: ignore[arg-type]
            for lr in (0.1, 100.0)
        )
        assert all(torch.equal(a, b) for a, b in zip(slow, fast, strict=True))
        assert (Z @ slow[-1]).min() > 0
        assert torch.equal(slow[-1], slow[-2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["normalized", "inverse_loss", "unit_gradient"])
def test_goes_on_after_separation_without_nan(mode: Mode, dtype: torch.dtype) -> None:
    Z = separable().to(dtype)
    *_, (known, margins) = islice(large_step_descent(Z, 10.0), 300)
    start = 800 * known / margins.min()  # sigmoid(-800) is 0 in any precision
    iterates = list(islice(large_step_descent(Z, 10.0, mode, start=start), 20))
    assert iterates[-1].margins.min() > 750
    assert not torch.equal(iterates[-1].theta, iterates[-2].theta)
    assert all(i.theta.isfinite().all() for i in iterates)


@pytest.mark.parametrize("scale", [1e-250, 1e-20, 1e160])
def test_a_unit_gradient_is_one_at_any_scale(scale: float) -> None:
    plain, scaled = (
        next(islice(large_step_descent(Z, 2.0, "unit_gradient"), 1, None)).theta
        for Z in (separable(), separable() * scale)
    )
    torch.testing.assert_close(scaled, plain)
    assert plain.norm().item() == pytest.approx(2.0)


def with_margin(seed: int) -> tuple[Tensor, Tensor]:
    """Data with a margin of 0.5, and a direction that has it."""
    Z = separable(seed=seed)
    towards = F.normalize(Z.sum(0), dim=0)
    Z = Z + (0.5 - (Z @ towards).clamp(max=0.5))[:, None] * towards
    assert (Z @ towards).min() > 0.499
    return Z, towards


def test_the_margin_grows_after_separation() -> None:
    Z, _ = with_margin(seed=0)
    start = 30 * torch.randn(5, generator=torch.Generator().manual_seed(1)).double()

    def margin(i: Any) -> float:
        return float(i.margins.min() / i.theta.norm())

    iterates = list(islice(large_step_descent(Z, 1.0, start=start), 2000))
    separating = next(i for i in iterates if i.margins.min() > 0)
    assert margin(separating) < 0.2
    assert margin(iterates[-1]) > 0.49


def test_the_papers_table() -> None:
    X, y = worst_case_problem(1000)
    Z = y[:, None] * X
    assert [steps_to_separate(Z, lr, "normalized") for lr in (100, 10, 1, 0.1)] == [2, 2, 16, 157]
    assert [steps_to_separate(Z, lr, "lrgd") for lr in (100, 10)] == [308, 729]
    X, y = worst_case_problem(200)
    Z = y[:, None] * X
    assert [steps_to_separate(Z, lr, "normalized") for lr in (100, 10, 1, 0.1)] == [2, 2, 13, 125]
    assert [steps_to_separate(Z, lr, "lrgd") for lr in (100, 10, 1)] == [62, 121, 1226]


@pytest.mark.parametrize("lr", [0.3, 3.0, 300.0])
def test_guarantee(lr: float) -> None:
    """R^2 / mu^2 + 2 log(2n - 1) / (lr mu^2) steps, for a lower bound of the margin mu."""
    for seed in range(5):
        Z, _ = with_margin(seed)
        R2 = float(Z.square().sum(1).max())
        assert steps_to_separate(Z, lr, "normalized") <= R2 / 0.25 + 2 * math.log(59) / (lr * 0.25)


def test_worst_case_problem() -> None:
    X, y = worst_case_problem(4, dtype=torch.float32)
    assert X.tolist() == [[0.5, -1], [-0.5, -1], [-0.5, -1], [-0.5, -1]]
    assert y.tolist() == [1, -1, -1, -1]
    for dtype in (torch.float32, torch.float64):
        assert all(t.dtype == dtype for t in worst_case_problem(4, dtype=dtype))
    with pytest.raises(ValueError, match="n >= 2"):
        worst_case_problem(1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"Z": [[1.0]]}, TypeError, "got list"),
        ({"Z": torch.ones(2, 2, dtype=torch.int)}, TypeError, "torch.int32"),
        ({"Z": torch.ones(2)}, ValueError, r"got \(2,\)"),
        ({"Z": torch.ones(0, 2)}, ValueError, r"got \(0, 2\)"),
        ({"lr": 0.0}, ValueError, "above 0"),
        ({"lr": math.inf}, ValueError, "finite"),
        ({"mode": "perceptron"}, ValueError, "mode must be one of"),
        ({"weight": torch.ones(2)}, ValueError, r"weight must have shape \(3,\)"),
        ({"start": torch.ones(3)}, ValueError, r"start must have shape \(2,\)"),
    ],
)
def test_bad_input_raises_at_once(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        large_step_descent(**{"Z": torch.ones(3, 2), **arguments})
