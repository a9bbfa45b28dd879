"""Learning rates, schedules, accumulation, noise and the walk from the start."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trueup.nn import convert_ghost_batchnorm
from trueup.optim._large_batch import (
    DistanceFromInit,
    adapt_regime,
    ghost_accumulate,
    multiplicative_noise,
    scale_lr,
)

# ---- scale_lr, adapt_regime ----


@pytest.mark.parametrize(("rule", "factor"), [("sqrt", 4.0), ("linear", 16.0), ("none", 1.0)])
def test_scale_lr(rule: str, factor: float) -> None:
    assert scale_lr(0.1, 2048, 128, rule) == pytest.approx(0.1 * factor, rel=1e-15)


def test_sqrt_is_the_default_rule_and_keeps_the_covariance() -> None:
    lr = scale_lr(0.3, 96, 32)
    assert lr**2 / 96 == pytest.approx(0.3**2 / 32)


@given(
    ratio=st.integers(1, 64), base=st.integers(1, 512), extra=st.integers(0, 511), epochs=st.integers(1, 300)
)
def test_regime_keeps_at_least_the_small_batch_updates(
    ratio: int, base: int, extra: int, epochs: int
) -> None:
    large = base * ratio + extra % base
    (milestone,), total = adapt_regime([epochs // 2], epochs, large, base)
    stretch = math.ceil(large / base)
    assert (milestone, total) == (epochs // 2 * stretch, epochs * stretch)
    samples = 50_000
    assert total * samples / large >= epochs * samples / base * (1 - 1e-12)


def test_regime_leaves_its_argument_alone() -> None:
    milestones = [10, 20]
    adapt_regime(milestones, 30, 64, 32)
    assert milestones == [10, 20]
    assert adapt_regime(np.array([10, 20]), 30, 64, 32) == ([20, 40], 60)


def test_smaller_batches_warn() -> None:
    with pytest.warns(UserWarning, match="batch_size 32 is smaller than base_batch_size 128"):
        assert scale_lr(0.1, 32, 128) == pytest.approx(0.05)
    with pytest.warns(UserWarning, match="smaller"):
        assert adapt_regime([5], 10, 32, 128) == ([5], 10)
    losses = torch.tensor([1.0, 3.0])
    with pytest.warns(UserWarning, match="smaller"):
        assert multiplicative_noise(losses, 8) == 2.0


# ---- ghost_accumulate ----


def model_and_batch(samples: int = 12) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    return model, torch.randn(samples, 5, dtype=torch.float64), torch.randint(3, (samples,))


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_loop_form_equals_layer_form_for_equal_ghost_batches() -> None:
    model, x, y = model_and_batch()
    layer = convert_ghost_batchnorm(model, 4)
    loss, norm = ghost_accumulate(model, F.cross_entropy, x, y, 4, max_norm=None)
    want = F.cross_entropy(layer(x), y)
    want.backward()
    torch.testing.assert_close(loss, want.detach())
    torch.testing.assert_close(gradients(model), gradients(layer))
    torch.testing.assert_close(norm, torch.cat([g.flatten() for g in gradients(layer)]).norm())
    torch.testing.assert_close(model.state_dict(), layer.state_dict())


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [5, 4]), (12, [3, 3, 3]), (36, [1] * 9)])
def test_a_smaller_last_batch_is_cut_into_as_many_smaller_pieces(
    batch_size: int | None, sizes: list[int]
) -> None:
    seen: list[int] = []
    model = nn.Linear(5, 3)
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    ghost_accumulate(
        model, F.cross_entropy, torch.randn(9, 5), torch.randint(3, (9,)), 4, batch_size=batch_size
    )
    assert seen == sizes


def test_pieces_weigh_the_same_and_the_loss_counts_samples() -> None:
    model = nn.Linear(1, 1, bias=False)
    x, y = torch.tensor([[1.0], [1.0], [1.0], [4.0], [4.0]]), torch.zeros(5, 1)
    loss, _ = ghost_accumulate(model, lambda out, _: out.mean(), x, y, 2, max_norm=None)
    # Pieces [1, 1, 1] and [4, 4]: the gradient is the mean of 1 and 4, the loss w (3 * 1 + 2 * 4) / 5.
    torch.testing.assert_close(model.weight.grad, torch.tensor([[2.5]]))
    torch.testing.assert_close(loss, model.weight.detach().squeeze() * 11 / 5)


def test_the_average_is_clipped_not_the_pieces() -> None:
    model, x, y = model_and_batch()
    free = copy.deepcopy(model)
    _, norm = ghost_accumulate(free, F.cross_entropy, x, y, 4, max_norm=None)
    limit = float(norm) / 2
    _, reported = ghost_accumulate(model, F.cross_entropy, x, y, 4, max_norm=limit)
    torch.testing.assert_close(reported, norm)
    # torch adds 1e-6 to the norm it divides by
    torch.testing.assert_close(gradients(model), [g / 2 for g in gradients(free)], rtol=1e-5, atol=0)
    ghost_accumulate(model, F.cross_entropy, x, y, 4, max_norm=2 * float(norm))
    assert max(g.abs().max() for g in gradients(model)) > 0


def test_old_gradients_are_dropped_and_frozen_parameters_left() -> None:
    model, x, y = model_and_batch()
    model[0].weight.requires_grad_(False)
    ghost_accumulate(model, F.cross_entropy, x, y, 4)
    first = [g.clone() for g in gradients(model)]
    model[1].reset_running_stats()
    ghost_accumulate(model, F.cross_entropy, x, y, 4)
    torch.testing.assert_close(gradients(model), first)
    assert model[0].weight.grad is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": torch.randn(3, 5)}, ValueError, "same number of samples, at least one; got 3 and 12"),
        ({"inputs": torch.randn(0, 5), "targets": torch.randn(0)}, ValueError, "at least one; got 0 and 0"),
        ({"ghost_batch_size": 0}, ValueError, "ghost_batch_size must be at least 1; got 0"),
        ({"ghost_batch_size": 4.0}, TypeError, "ghost_batch_size must be an integer; got 4.0"),
        ({"batch_size": -1}, ValueError, "batch_size must be at least 1"),
        ({"max_norm": 0.0}, ValueError, "max_norm must be positive, or None"),
        ({"max_norm": math.nan}, ValueError, "max_norm must be positive"),
        (
            {"loss_fn": lambda out, y: F.cross_entropy(out, y, reduction="none")},
            TypeError,
            r"got shape \(4,\)",
        ),
        ({"loss_fn": lambda out, y: 1.0}, TypeError, "must return a scalar tensor.*got float"),
        ({"model": nn.ReLU()}, ValueError, "no parameter that requires a gradient"),
    ],
)
def test_ghost_accumulate_refuses(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    model, x, y = model_and_batch()
    given_arguments: dict[str, object] = {
        "model": model,
        "loss_fn": F.cross_entropy,
        "inputs": x,
        "targets": y,
        "ghost_batch_size": 4,
    }
    with pytest.raises(error, match=message):
        ghost_accumulate(**(given_arguments | arguments))


# ---- multiplicative_noise ----


def test_noise_restores_the_covariance_of_the_small_batch() -> None:
    """The weights z have mean 1 and variance B_L/B_S - 1: their gradient's second moment is 1/B_S."""
    losses = torch.zeros(4096, dtype=torch.float64, requires_grad=True)
    loss = multiplicative_noise(losses, 64, torch.Generator().manual_seed(0))
    loss.backward()
    z = losses.grad * 4096
    spread = 4096 / 64 - 1
    assert float(z.mean()) == pytest.approx(1, abs=4 * math.sqrt(spread / 4096))
    assert float(z.var()) == pytest.approx(spread, rel=0.1)


def test_noise_comes_from_the_generator_alone() -> None:
    losses = torch.rand(32)
    first, second = (multiplicative_noise(losses, 4, torch.Generator().manual_seed(7)) for _ in range(2))
    assert first == second
    assert first != multiplicative_noise(losses, 4, torch.Generator().manual_seed(8))


def test_no_noise_at_the_base_batch_size() -> None:
    losses = torch.rand(8)
    assert multiplicative_noise(losses, 8) == losses.mean()


@pytest.mark.bad_input
@pytest.mark.parametrize("losses", [torch.tensor(1.0), torch.rand(3, 2), torch.rand(0)])
def test_noise_needs_a_loss_a_sample(losses: Tensor) -> None:
    with pytest.raises(ValueError, match=r"one loss per sample.*reduction='none'"):
        multiplicative_noise(losses, 4)


# ---- DistanceFromInit ----


def test_distance_is_the_norm_over_all_parameters() -> None:
    model = nn.Linear(2, 2)
    distance = DistanceFromInit(model)
    with torch.no_grad():
        model.weight.add_(torch.tensor([[1.0, 2.0], [0.0, 2.0]]))
        model.bias.add_(torch.tensor([0.0, 4.0]))
    assert distance.update() == pytest.approx(5.0)
    assert distance.distances == [distance.update(), distance.distances[1]]


def test_distance_has_the_range_of_the_parameters_and_of_float32_at_least() -> None:
    for dtype, far in ((torch.float64, 1e100), (torch.float16, 6e4)):
        model = nn.Linear(1, 1, bias=False, dtype=dtype)
        nn.init.zeros_(model.weight)
        distance = DistanceFromInit(model)
        nn.init.constant_(model.weight, far)
        assert distance.update() == pytest.approx(far, rel=1e-3)


@pytest.mark.parametrize(
    ("law", "path"),
    [("log", np.log), ("sqrt", np.sqrt), ("linear", np.asarray)],
    ids=["log", "sqrt", "linear"],
)
def test_fit_names_the_law(law: str, path: object) -> None:
    distance = DistanceFromInit(nn.Linear(1, 1))
    t = np.arange(1, 301)
    distance.distances = list(3.0 * path(t) + 0.5 + 0.01 * np.sin(t))
    fit = distance.fit()
    assert set(fit) == {"log", "sqrt", "linear"}
    assert max(fit, key=fit.get) == law
    assert fit[law] > 0.999
    assert all(value < 0.99 for name, value in fit.items() if name != law)


def test_r2_is_that_of_least_squares() -> None:
    distance = DistanceFromInit(nn.Linear(1, 1))
    d = np.random.default_rng(0).normal(size=120).cumsum()
    distance.distances = list(d)
    design = np.stack([np.log(np.arange(1, 121)), np.ones(120)], 1)
    residual = np.linalg.lstsq(design, d)[1][0]
    assert distance.fit()["log"] == pytest.approx(1 - residual / ((d - d.mean()) ** 2).sum())


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        ([], "at least 100 updates.*got 0\\. Call update"),
        ([1.0, 2.0] * 49, "at least 100 updates.*got 98"),
        ([2.5] * 120, "distance is 2.5 at every update"),
        ([1.0] * 100 + [math.nan], "not finite from update 101 on"),
    ],
)
def test_fit_refuses(distances: list[float], message: str) -> None:
    distance = DistanceFromInit(nn.Linear(1, 1))
    distance.distances = distances
    with pytest.raises(ValueError, match=message):
        distance.fit()


def test_distance_needs_parameters_that_stay_in_place() -> None:
    with pytest.raises(ValueError, match="model with parameters"):
        DistanceFromInit(nn.ReLU())
    model = nn.Linear(2, 2)
    distance = DistanceFromInit(model)
    model.weight.data = torch.zeros(3, 2)
    with pytest.raises(RuntimeError, match=r"was \(2, 2\) on cpu at the start and is \(3, 2\)"):
        distance.update()


# ---- bad settings ----


@pytest.mark.parametrize("sizes", [(0, 32), (32, 0), (-4, 32)])
def test_batch_sizes_are_positive(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        scale_lr(0.1, *sizes)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        adapt_regime([1], 2, *sizes)


@pytest.mark.bad_input
def test_settings_out_of_range() -> None:
    with pytest.raises(TypeError, match="batch_size must be an integer"):
        scale_lr(0.1, 2.5, 1)
    with pytest.raises(ValueError, match="lr must not be negative"):
        scale_lr(-0.1, 64, 32)
    with pytest.raises(ValueError, match=r"rule must be one of \('sqrt', 'linear', 'none'\); got 'cubic'"):
        scale_lr(0.1, 64, 32, "cubic")
    with pytest.raises(ValueError, match=r"milestones are epochs.*got -1 in \[-1, 3\]"):
        adapt_regime([-1, 3], 10, 64, 32)
    with pytest.raises(ValueError, match=r"milestones are epochs.*got 1\.5"):
        adapt_regime([1.5], 10, 64, 32)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        adapt_regime([1], 0, 64, 32)
