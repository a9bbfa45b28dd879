"""Normalization by mixed statistics: the equation in numpy, its two ends, gradients, processes, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trueup.adaptation import (
    AlphaBatchNorm1d,
    AlphaBatchNorm2d,
    AlphaBatchNorm3d,
    alpha_batch_norm,
)

LAYERS = {2: AlphaBatchNorm1d, 3: AlphaBatchNorm1d, 4: AlphaBatchNorm2d, 5: AlphaBatchNorm3d}
BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
SHAPES = [(5, 3), (1, 3), (4, 3, 5), (4, 3, 3, 2), (2, 3, 2, 1, 3)]


def trained(rank: int, channels: int = 3, **options: Any) -> nn.Module:
    """Return a batch norm with statistics and parameters of its own."""
    torch.manual_seed(1)
    norm = BATCH_NORMS[rank](channels, dtype=torch.float64, **options)
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2)
    return norm.eval()


def by_loops(x: np.ndarray, norm: nn.Module, source_weight: float, unbiased: bool) -> np.ndarray:
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c].ravel()
        mean = sum(values) / len(values)
        squares = sum((v - mean) ** 2 for v in values)
        var = squares / (len(values) - 1 if unbiased and len(values) > 1 else len(values))
        m = source_weight * float(norm.running_mean[c]) + (1 - source_weight) * mean
        v = source_weight * float(norm.running_var[c]) + (1 - source_weight) * var
        weight, bias = norm.weight[c].item(), norm.bias[c].item()
        y[:, c] = (x[:, c] - m) / math.sqrt(v + norm.eps) * weight + bias
    return y


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_is_the_equation(shape: tuple[int, ...], unbiased: bool, training: bool) -> None:
    norm, x = trained(len(shape)), torch.randn(shape, dtype=torch.float64) * 3 + 1
    layer = LAYERS[len(shape)].from_module(norm, source_weight=0.3, unbiased=unbiased).train(training)
    before = {name: b.clone() for name, b in layer.named_buffers()}
    want = by_loops(x.numpy(), norm, 0.3, unbiased)
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(b, before[name]) for name, b in layer.named_buffers())


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 3, 2)])
def test_the_ends_are_the_source_and_the_batch(shape: tuple[int, ...]) -> None:
    norm, x = trained(len(shape)), torch.randn(shape, dtype=torch.float64)
    layer = LAYERS[len(shape)].from_module(norm, source_weight=1.0)
    torch.testing.assert_close(layer(x), norm(x))
    layer.source_weight = 0.0
    torch.testing.assert_close(layer(x), norm.train()(x))


def test_the_prior_weighs_the_source_by_the_size_of_the_batch() -> None:
    norm, x = trained(4), torch.randn(4, 3, 3, 2, dtype=torch.float64)
    layer, fixed = (AlphaBatchNorm2d.from_module(norm, **options) for options in ({"prior_strength": 12}, {}))
    for samples, weight in ((4, 12 / 16), (1, 12 / 13)):
        fixed.source_weight = weight
        torch.testing.assert_close(layer(x[:samples]), fixed(x[:samples]))
    layer.prior_strength = 0
    fixed.source_weight = 0.0
    torch.testing.assert_close(layer(x), fixed(x))


@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 2, 2)])
@pytest.mark.parametrize("detach_stats", [True, False])
def test_gradient_through_the_statistics(shape: tuple[int, ...], detach_stats: bool) -> None:
    """Against autograd through the same arithmetic, written with torch's reductions."""
    norm, x = trained(len(shape)), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    layer = LAYERS[len(shape)].from_module(norm, source_weight=0.3, detach_stats=detach_stats)
    dims = (0, *range(2, len(shape)))
    statistics = x.detach() if detach_stats else x
    var, mean = torch.var_mean(statistics, dims, correction=0)
    shape_c = (1, -1, *[1] * (len(shape) - 2))
    m, v = 0.3 * norm.running_mean + 0.7 * mean, 0.3 * norm.running_var + 0.7 * var
    want = (x - m.view(shape_c)) / (v.view(shape_c) + norm.eps).sqrt()
    want = want * norm.weight.view(shape_c) + norm.bias.view(shape_c)
    direction = torch.randn_like(x)
    torch.testing.assert_close(
        torch.autograd.grad(layer(x), [x, *layer.parameters()], direction),
        torch.autograd.grad(want, [x, *norm.parameters()], direction),
    )


def test_batch_norm_without_running_statistics_or_bias() -> None:
    x = torch.randn(4, 3, 2, 2)
    alone = nn.BatchNorm2d(3, track_running_stats=False)
    layer = AlphaBatchNorm2d.from_module(alone, source_weight=0.0)
    torch.testing.assert_close(layer(x), alone(x))
    weight_only = nn.BatchNorm2d(3, bias=False).eval()
    layer = AlphaBatchNorm2d.from_module(weight_only, source_weight=1.0)
    assert layer.bias is None
    torch.testing.assert_close(layer(x), weight_only(x))


def test_state_dict_of_a_batch_norm_becomes_the_source() -> None:
    norm, layer = trained(4), AlphaBatchNorm2d(3, dtype=torch.float64)
    layer.load_state_dict(norm.state_dict())
    assert torch.equal(layer.initial_weight, norm.weight)
    assert torch.equal(layer.initial_bias, norm.bias)
    with torch.no_grad():
        layer.weight.add_(1)  # trained
    fresh = AlphaBatchNorm2d(3, dtype=torch.float64)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.initial_weight, norm.weight)
    assert torch.equal(fresh.weight, norm.weight + 1)


def test_variance_survives_a_large_mean() -> None:
    x = 100 + 0.01 * torch.randn(4, 4, 14, 14)
    y = AlphaBatchNorm2d(4, eps=0.0, source_weight=0.0)(x).double()
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(4).double(), rtol=1e-3, atol=0)


def test_saves_the_input_and_little_else() -> None:
    x = torch.randn(8, 16, 14, 14, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes), lambda t: t):
        AlphaBatchNorm2d(16)(x)
    assert sum(sizes) == 4 * (x.numel() + 3 * 8 * 16 + 4 * 16)


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source_weight": 1.5}, ValueError, r"source_weight must be in \[0, 1\]; got 1.5"),
        ({"source_weight": math.nan}, ValueError, "source_weight must be in"),
        ({"source_weight": None}, TypeError, "source_weight must be a number; got None"),
        ({"prior_strength": -1.0}, ValueError, "prior_strength must not be negative; got -1.0"),
        ({"eps": -1.0}, ValueError, "eps must not be negative"),
        ({"track_running_stats": False}, ValueError, "without running statistics.*pass source_weight=0"),
        ({"num_features": 0}, ValueError, "num_features must be at least 1; got 0"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AlphaBatchNorm2d(**({"num_features": 3} | options))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: AlphaBatchNorm2d(3)(x[:, :, 0, 0]), ValueError, r"needs input \(N, C, H, W\)"),
        (lambda x: AlphaBatchNorm2d(5)(x), ValueError, "has 3 channels, but running_mean has shape"),
        (lambda x: AlphaBatchNorm2d(3)(x.long()), TypeError, r"floating point input; got torch\.int64"),
        (lambda x: alpha_batch_norm(x, None, None), ValueError, "pass both, or source_weight=0"),
        (lambda x: alpha_batch_norm(x, None, torch.ones(3)), ValueError, "go together"),
        (lambda x: AlphaBatchNorm2d.from_module(nn.LayerNorm(3)), TypeError, "batch norm; got LayerNorm"),
    ],
)
def test_inputs_that_do_not_fit(
    call: Callable[[Tensor], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(torch.ones(2, 3, 2, 2))
