"""UnMix-TNS: loops in numpy over samples and components, special cases, state, processes, bad input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trueup.adaptation import UnMixTNS1d, UnMixTNS2d, UnMixTNS3d, unmix_tns
from trueup.adaptation._unmix_tns import unmix_statistics, unmix_statistics_by_matmul

LAYERS = {3: UnMixTNS1d, 4: UnMixTNS2d, 5: UnMixTNS3d}


def build(rank: int = 4, channels: int = 3, **options: Any) -> nn.Module:
    """Return a layer, in float64, of a batch norm with statistics and parameters of its own."""
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(channels, dtype=torch.float64)
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2)
    return LAYERS[rank].from_module(norm.eval(), **({"num_components": 4} | options))


def by_loops(
    x: np.ndarray, layer: nn.Module, momentum: float, exact: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the output and the new components, one sample and one component at a time."""
    means, variances = layer.means.numpy(), layer.vars.numpy()
    samples, (components, channels) = len(x), means.shape
    y, new_means, new_vars = np.empty_like(x), means.copy(), variances.copy()
    for b in range(samples):
        mu = np.array([x[b, c].mean() for c in range(channels)])
        s2 = np.array([((x[b, c] - mu[c]) ** 2).mean() for c in range(channels)])
        cosine = [mu @ m / (np.linalg.norm(mu) * np.linalg.norm(m)) for m in means]
        p = np.exp(np.array(cosine) / layer.temperature)
        p /= p.sum()
        hat_mean = [(1 - p[k]) * means[k] + p[k] * mu for k in range(components)]
        hat_var = [
            (1 - p[k]) * variances[k] + p[k] * s2 + exact * p[k] * (1 - p[k]) * (mu - means[k]) ** 2
            for k in range(components)
        ]
        mean = sum(hat_mean) / components
        var = sum(hat_var) / components + sum(m**2 for m in hat_mean) / components - mean**2
        for c in range(channels):
            normalized = (x[b, c] - mean[c]) / np.sqrt(var[c] + layer.eps)
            y[b, c] = normalized * layer.weight[c].item() + layer.bias[c].item()
        for k in range(components):
            new_means[k] += momentum * p[k] * (mu - means[k]) / samples
            new_vars[k] += momentum * p[k] * (s2 - variances[k]) / samples
    return y, new_means, new_vars


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("exact_variance", [True, False])
@pytest.mark.parametrize("shape", [(5, 3, 4), (1, 3, 3, 2), (4, 3, 1, 1), (2, 3, 2, 1, 3)])
def test_layer_is_the_equations(shape: tuple[int, ...], exact_variance: bool, training: bool) -> None:
    layer = build(len(shape), batch_size=16, exact_variance=exact_variance, temperature=0.3).train(training)
    momentum = 1 - 0.9 ** (16 / 64)
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64) * 2 + 1
        y, means, variances = by_loops(x.numpy(), layer, momentum, exact_variance)
        np.testing.assert_allclose(layer(x).detach().numpy(), y, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(layer.means.numpy(), means, rtol=1e-11)
        np.testing.assert_allclose(layer.vars.numpy(), variances, rtol=1e-11)


@pytest.mark.parametrize("exact_variance", [True, False])
def test_matmuls_give_the_statistics_far_from_zero_too(exact_variance: bool) -> None:
    mean, var = 100 + 0.1 * torch.randn(6, 5), torch.rand(6, 5)
    means, vars = 100 + 0.1 * torch.randn(7, 5), torch.rand(7, 5)
    p = torch.rand(6, 7).softmax(1)
    got = unmix_statistics_by_matmul(mean, var, means, vars, p, exact_variance)
    exact = [t.double() for t in (mean, var, means, vars, p)]
    want = [t.float() for t in unmix_statistics(*exact, exact_variance)]
    torch.testing.assert_close(list(got), want, rtol=1e-4, atol=1e-5)


def test_gradient_flows_through_the_moments_of_the_instances_alone() -> None:
    layer = build(temperature=0.3)
    x = torch.randn(3, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    var, mean = torch.var_mean(x, (2, 3), correction=0)
    similarity = nn.functional.normalize(mean) @ nn.functional.normalize(layer.means).t()
    p = (similarity / 0.3).softmax(1).detach()
    m, v = unmix_statistics(mean, var, layer.means.clone(), layer.vars.clone(), p)
    want = (x - m[:, :, None, None]) / (v[:, :, None, None] + layer.eps).sqrt()
    want = want * layer.weight[:, None, None] + layer.bias[:, None, None]
    direction = torch.randn_like(x)
    torch.testing.assert_close(
        torch.autograd.grad(layer(x), [x, *layer.parameters()], direction),
        torch.autograd.grad(want, [x, *layer.parameters()], direction),
    )


def test_two_batches_may_be_forward_before_either_is_backward() -> None:
    x, direction = torch.randn(2, 2, 3, 3, 2, 2, dtype=torch.float64)
    grads = []
    for interleaved in (True, False):
        layer = build()
        leaves = [batch.clone().requires_grad_() for batch in x]
        ys = []
        for leaf, d in zip(leaves, direction, strict=True):
            ys.append(layer(leaf))
            if not interleaved:
                ys.pop().backward(d)
        torch.autograd.backward(ys, [*direction][: len(ys)])
        grads.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*grads)


def test_one_component_is_instance_norm() -> None:
    layer, x = build(num_components=1), torch.randn(3, 3, 4, 4, dtype=torch.float64)
    want = nn.functional.instance_norm(x, weight=layer.weight, bias=layer.bias, eps=layer.eps)
    assert torch.equal(layer.means[0], layer.running_mean)
    assert torch.equal(layer.vars[0], layer.running_var)
    torch.testing.assert_close(layer(x), want)


def test_inputs_without_positions_are_normalized_by_the_source() -> None:
    norm = nn.BatchNorm1d(3, dtype=torch.float64).eval()
    norm.running_mean.uniform_()
    layer, x = UnMixTNS1d.from_module(norm), torch.randn(4, 3, dtype=torch.float64)
    means = layer.means.clone()
    torch.testing.assert_close(layer(x), norm(x))
    assert torch.equal(layer.means, means)


def test_components_keep_the_moments_of_the_source() -> None:
    norm = nn.BatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([1.0, -3.0]))
    norm.running_var.copy_(torch.tensor([0.5, 4.0]))
    generator = torch.Generator().manual_seed(0)
    layer = UnMixTNS2d.from_module(norm, num_components=20_000, init_coeff=0.3, generator=generator)
    torch.testing.assert_close(layer.means.mean(0), norm.running_mean, atol=0.05, rtol=0)
    total = layer.vars.mean(0) + layer.means.var(0, correction=0)
    torch.testing.assert_close(total, norm.running_var, rtol=0.02, atol=0)
    torch.testing.assert_close(layer.vars[7], 0.7 * norm.running_var)


def test_momentum_follows_the_batch_size() -> None:
    assert build(batch_size=64).effective_momentum == pytest.approx(0.1)
    assert build(batch_size=32).effective_momentum == pytest.approx(1 - 0.9**0.5)
    assert build(batch_size=16, max_batch_size=16, momentum=0.3).effective_momentum == pytest.approx(0.3)


# ---- state ----


def test_reset_and_frozen() -> None:
    layer, x = build(), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    start = copy.deepcopy(layer.state_dict())
    first = layer(x)
    assert not torch.equal(layer.means, start["means"])
    layer.reset()
    torch.testing.assert_close(layer.state_dict(), start, rtol=0, atol=0)
    layer.frozen = True
    assert torch.equal(layer(x), first)
    torch.testing.assert_close(layer.state_dict(), start, rtol=0, atol=0)


def test_the_generator_fixes_the_noise() -> None:
    a, b = (build(generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.means, b.means)
    assert not torch.equal(build().means, a.means)


def test_a_loaded_state_resets_to_its_own_start() -> None:
    layer, other = build(), build(generator=torch.Generator().manual_seed(3))
    start = layer.means.clone()
    layer(torch.randn(4, 3, 2, 2, dtype=torch.float64))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.means, layer.means)
    other.reset()
    assert torch.equal(other.means, start)
    with pytest.raises(RuntimeError, match="size mismatch for means"):
        build(num_components=5).load_state_dict(layer.state_dict())


def test_state_dict_of_a_batch_norm_becomes_the_source() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(7)
    layer = UnMixTNS2d(3, num_components=4)
    layer.load_state_dict(norm.state_dict())
    want = UnMixTNS2d.from_module(norm, num_components=4)
    want.noise.copy_(layer.noise)
    want.reset()
    torch.testing.assert_close(layer.state_dict(), want.state_dict())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_is_refused_unless_frozen(use_reentrant: bool) -> None:
    layer, x = build(), torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="frozen=True"):
        checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
    layer.frozen = True
    checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()


def test_saves_at_most_4_3_bytes_per_element() -> None:
    x = torch.randn(16, 256, 14, 14, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes), lambda t: t):
        UnMixTNS2d(256)(x)
    assert sum(sizes) <= 4.3 * x.numel()


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 0}, "num_components must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_batch_size": 0}, "max_batch_size must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"init_coeff": 1.0}, "init_coeff=1 leaves the components no variance"),
        ({"init_coeff": -0.1}, r"init_coeff must be in \[0, 1\]"),
        ({"momentum": None}, "got momentum=None.*say momentum=0.1"),
        ({"track_running_stats": False}, "use convert_test_batch_norm"),
        ({"eps": -1.0}, "eps must not be negative"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnMixTNS2d(3, **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: UnMixTNS2d(3)(x[0]), ValueError, r"needs input \(N, C, H, W\)"),
        (lambda x: UnMixTNS2d(5)(x), ValueError, "has 3 channels|3 channels of the"),
        (lambda x: UnMixTNS1d(5)(x[:, :, 0, 0]), ValueError, "has 3 channels, but running_mean"),
        (lambda x: UnMixTNS2d(3)(x.long()), TypeError, r"floating point input; got torch\.int64"),
        (lambda x: unmix_tns(x, torch.ones(2, 3), torch.ones(3, 3)), ValueError, "got vars of shape"),
        (lambda x: unmix_tns(x, torch.ones(3), torch.ones(3)), ValueError, r"shape \(K, C\)"),
        (
            lambda x: unmix_tns(x, torch.ones(2, 3), torch.ones(2, 3), momentum=2.0),
            ValueError,
            r"momentum must be in \[0, 1\]",
        ),
    ],
)
def test_inputs_that_do_not_fit(
    call: Callable[[Tensor], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(torch.ones(2, 3, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_components_of_half_layers_do_not_round_small_moves_away(dtype: torch.dtype) -> None:
    layer = UnMixTNS2d(3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert layer.means.dtype == layer.vars.dtype == torch.float32
    assert layer(torch.randn(4, 3, 5, 5, dtype=dtype)).dtype == dtype
