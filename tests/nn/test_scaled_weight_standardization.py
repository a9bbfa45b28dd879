"""Scaled weight standardisation: the equation, its floor, the constants, and signals through deep nets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trueup.nn import (
    ScaledWeightStandardization,
    activation_gain,
    bake,
    parametrize_weights,
    scaled_standardize_weight,
)

ACTIVATIONS = (
    *("celu", "elu", "gelu", "identity", "leaky_relu", "relu", "relu6", "selu", "sigmoid", "silu"),
    *("softplus", "tanh"),
)


def naive(weight: Tensor, gain: Tensor, gamma: float, eps: float) -> Tensor:
    """Equation 1, filter by filter, the floor on the fan-in times the variance."""
    rows = []
    for w, g in zip(weight, gain, strict=True):
        spread = w.numel() * w.var(unbiased=False)
        scale = spread.rsqrt() if spread > eps else torch.tensor(eps, dtype=w.dtype).rsqrt()
        rows.append(g * gamma * (w - w.mean()) * scale)
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(3, 4), (4, 2, 3, 3), (2, 1, 5), (2, 2, 2, 1, 3)])
@pytest.mark.parametrize("eps", [1e-4, 3.0])
def test_equals_the_equation(shape: tuple[int, ...], eps: float) -> None:
    # With the larger eps some filters are below the floor and some above.
    weight = torch.randn(shape, dtype=torch.float64) * torch.linspace(0.2, 2, shape[0]).view(
        -1, *[1] * (len(shape) - 1)
    )
    leaves = weight.requires_grad_(), torch.randn(shape[0], dtype=torch.float64, requires_grad=True)
    got = scaled_standardize_weight(*leaves, gamma=1.7, eps=eps)
    want = naive(*leaves, 1.7, eps)
    torch.testing.assert_close(got, want)
    direction = torch.randn_like(got)
    for ours, theirs in zip(*(torch.autograd.grad(y, leaves, direction) for y in (got, want)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_filter_has_the_norm_gain_times_gamma_whatever_its_mean_and_scale() -> None:
    weight = torch.randn(3, 5, 2, 2, dtype=torch.float64)
    gain = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    got = scaled_standardize_weight(weight, gain, gamma=1.5)
    torch.testing.assert_close(got.flatten(1).norm(dim=1), 1.5 * gain)
    torch.testing.assert_close(got.flatten(1).mean(1), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(scaled_standardize_weight(weight * 40 - 7, gain, gamma=1.5), got)


def test_a_constant_filter_gives_zeros_and_a_bounded_gradient() -> None:
    weight = torch.full((2, 6), 0.1, dtype=torch.float64, requires_grad=True)
    got = scaled_standardize_weight(weight, eps=1e-4)
    torch.testing.assert_close(got, torch.zeros_like(got))
    direction = torch.randn_like(got)
    (grad,) = torch.autograd.grad(got, weight, direction)
    # sqrt(eps) is a constant there: only the mean is differentiated
    torch.testing.assert_close(grad, 100 * (direction - direction.mean(1, keepdim=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_the_mean_of_a_constant_filter_is_not_blown_up(dtype: torch.dtype) -> None:
    for value in (0.1, 1 / 3, 0.7, 12.3, 1000.1):
        for n in (2, 9, 18, 27, 75, 147, 288, 1152):
            assert not scaled_standardize_weight(torch.full((1, n), value, dtype=dtype), eps=1e-12).any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_constants_give_a_normal_variance_one(activation: str) -> None:
    function = getattr(nn.functional, activation, lambda z: z)
    nodes, weights = np.polynomial.hermite_e.hermegauss(160)
    values = function(torch.tensor(nodes)).numpy()
    mean, square = (np.sum(weights * v) / math.sqrt(2 * math.pi) for v in (values, values**2))
    assert activation_gain(activation) == pytest.approx((square - mean**2) ** -0.5, rel=4e-3)


def test_the_signal_keeps_its_power_through_twenty_layers() -> None:
    signal = torch.randn(256, 128, dtype=torch.float64)
    for _ in range(20):
        weight = 5 * torch.randn(128, 128, dtype=torch.float64) + 2
        signal = signal.relu() @ scaled_standardize_weight(weight, gamma=activation_gain("relu")).T
    assert signal.square().mean().item() == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_get_float32_statistics(dtype: torch.dtype) -> None:
    weight, gain = (torch.randn(4, 40) * 300).to(dtype), torch.rand(4).to(dtype)
    got = scaled_standardize_weight(weight, gain)
    assert got.dtype == dtype
    assert torch.equal(got, scaled_standardize_weight(weight.float(), gain.float()).to(dtype))


def test_the_layer_learns_a_gain_and_leaves_its_bias_alone() -> None:
    conv = nn.Conv2d(3, 4, 3)
    scaled = parametrize_weights(conv, ScaledWeightStandardization, gamma=1.5)
    (parametrization,) = scaled.parametrizations.weight
    assert torch.equal(scaled.bias, conv.bias)
    assert torch.equal(scaled.parametrizations.weight.original, conv.weight)
    with torch.no_grad():
        parametrization.gain.copy_(torch.tensor([0.5, 1.0, 2.0, -1.0]))
    want = scaled_standardize_weight(conv.weight, parametrization.gain, gamma=1.5)
    assert torch.equal(scaled.weight, want)
    assert torch.equal(bake(scaled).weight, want)
    scaled(torch.randn(1, 3, 4, 4)).square().sum().backward()
    assert parametrization.gain.grad.abs().min() > 0

    without = parametrize_weights(conv, ScaledWeightStandardization, gamma=1.5, gain=False)
    assert len(list(without.parameters())) == 2
    with pytest.raises(TypeError, match="gamma"):
        parametrize_weights(conv, ScaledWeightStandardization)


@pytest.mark.bad_input
def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one value per filter, of shape \(2,\); got \(3,\)"):
        scaled_standardize_weight(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"fan-in of at least 2; got shape \(2, 1, 1\)"):
        scaled_standardize_weight(torch.ones(2, 1, 1))
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        scaled_standardize_weight(torch.ones(3))
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        scaled_standardize_weight(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="gamma must be positive; got 0"):
        scaled_standardize_weight(torch.ones(2, 3), gamma=0)
    with pytest.raises(ValueError, match="eps must not be negative; got -1"):
        scaled_standardize_weight(torch.ones(2, 3), eps=-1)
    with pytest.raises(ValueError, match=r"'mish', only for celu, elu, .* pass gamma"):
        activation_gain("mish")
