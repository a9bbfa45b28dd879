"""The weight compander: its function and inverse, initialisation, learnt parameters, statistics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trueup.nn import (
    WeightCompander,
    bake,
    inverse_weight_compand,
    parametrize_weights,
    weight_compand,
    weight_compander_param_groups,
    weight_stats,
)

BOUNDS = {"arctan": math.pi / 2, "tanh": 1.0, "softsign": 1.0}


@pytest.fixture(params=BOUNDS)
def fn(request: pytest.FixtureRequest) -> str:
    return request.param


@settings(max_examples=50, deadline=None)
@given(
    v=st.floats(-50, 50),
    a=st.floats(0.01, 10),
    b=st.floats(0.01, 10),
    fn=st.sampled_from(sorted(BOUNDS)),
)
def test_is_the_closed_form(v: float, a: float, b: float, fn: str) -> None:
    want = {
        "arctan": a * math.atan(v / b),
        "tanh": a * math.tanh(v / b),
        "softsign": a * v / (b + abs(v)),
    }[fn]
    got = weight_compand(torch.tensor(v, dtype=torch.float64), a, b, fn).item()
    assert got == pytest.approx(want, rel=1e-12, abs=1e-300)
    assert abs(got) <= a * BOUNDS[fn]


def test_gradients_are_those_of_the_brief() -> None:
    v, a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([-2.0, 0.0, 0.7], 1.5, 0.8))
    weight_compand(v, a, b).backward(g := torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64))
    dv = g * (a / b) / (1 + (v / b) ** 2)
    torch.testing.assert_close(v.grad, dv.detach())
    torch.testing.assert_close(a.grad, (g * torch.arctan(v / b)).sum().detach())
    torch.testing.assert_close(b.grad, (-(dv * v).sum() / b).detach())
    assert v.grad[1].item() == pytest.approx(2 * 1.5 / 0.8)  # the slope at zero is a / b


def test_the_inverse_is_exact_inside_and_clips_at_the_margin(fn: str) -> None:
    bound = 0.5 * BOUNDS[fn]
    w = torch.tensor([-0.9, -0.1, 0.0, 0.3, 0.98], dtype=torch.float64) * bound
    v = inverse_weight_compand(w, 0.5, 2.0, fn)
    torch.testing.assert_close(weight_compand(v, 0.5, 2.0, fn), w)
    beyond = inverse_weight_compand(torch.tensor([-9.0, 9.0], dtype=torch.float64), 0.5, 2.0, fn, margin=0.1)
    torch.testing.assert_close(
        weight_compand(beyond, 0.5, 2.0, fn), torch.tensor([-0.9, 0.9], dtype=torch.float64) * bound
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("margin", [0.0, 1e-9])
def test_a_margin_below_what_the_dtype_tells_keeps_sign_and_bound(
    fn: str, margin: float, dtype: torch.dtype
) -> None:
    w = torch.tensor([-9.0, -1.5 * BOUNDS[fn], 9.0], dtype=dtype)
    v = inverse_weight_compand(w, 1.5, 0.7, fn, margin=margin)
    assert v.isfinite().all()
    want = 1.5 * BOUNDS[fn] * w.sign()
    torch.testing.assert_close(
        weight_compand(v, 1.5, 0.7, fn), want, rtol=1e-2 if dtype.itemsize == 2 else 1e-6, atol=0
    )


def test_half_weights_are_computed_in_float32(fn: str) -> None:
    v = torch.randn(100).bfloat16()
    got = weight_compand(v, 1.5, 0.7, fn)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, weight_compand(v.float(), 1.5, 0.7, fn).bfloat16())
    # v / b overflows float16; the function is at its bound there
    big = weight_compand(torch.tensor([6e4], dtype=torch.float16), 1.0, 1e-3, fn)
    torch.testing.assert_close(big, torch.tensor([BOUNDS[fn]], dtype=torch.float16))


def test_preserve_starts_as_the_same_function_and_direct_does_not(fn: str) -> None:
    layer = nn.Linear(30, 20)  # uniform: no weight beyond 1.74 standard deviations
    x = torch.randn(4, 30)
    options = {"types": nn.Linear, "fn": fn, "a": 3.0, "b": 2.0}
    torch.testing.assert_close(parametrize_weights(layer, WeightCompander, **options)(x), layer(x))

    std = layer.weight.std(unbiased=False).item()
    direct = parametrize_weights(layer, WeightCompander, **options, init="direct")
    assert torch.equal(direct.parametrizations.weight.original, layer.weight)
    torch.testing.assert_close(direct.weight, weight_compand(layer.weight, 3.0 * std, 2.0 * std, fn))


def test_a_and_b_are_in_standard_deviations_unless_absolute() -> None:
    weight = torch.randn(50, 40) * 0.03 + 1
    std = weight.std(unbiased=False)
    relative = WeightCompander(weight, 1.5, 1.25)
    torch.testing.assert_close([relative.a, relative.b], [1.5 * std, 1.25 * std])
    torch.testing.assert_close(relative.bound, 1.5 * std * math.pi / 2)
    absolute = WeightCompander(weight, 1.5, 1.25, relative=False)
    assert (absolute.a.item(), absolute.b.item()) == (1.5, 1.25)
    # a layer that starts at zero has no deviation of its own
    zero = WeightCompander(torch.zeros(3, 4, 2, 2), 1.5)
    assert zero.a.item() == pytest.approx(1.5 / 4)
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    companded = parametrize_weights(layer, WeightCompander, types=nn.Linear)
    assert not companded.weight.any()


def test_a_and_b_are_state_and_only_learnt_if_asked() -> None:
    layer = nn.Linear(4, 3)
    fixed = parametrize_weights(layer, WeightCompander, types=nn.Linear)
    learnt = parametrize_weights(layer, WeightCompander, types=nn.Linear, learnable=True)
    torch.testing.assert_close(fixed.state_dict(), learnt.state_dict())
    assert len(list(fixed.parameters())) == 2
    assert len(list(learnt.parameters())) == 4

    groups = weight_compander_param_groups(learnt, 0.1, weight_decay=0.01, ab_lr_scale=0.5)
    optimizer = torch.optim.SGD(groups)
    learnt(torch.randn(5, 4)).square().sum().backward()
    (compander,) = learnt.parametrizations.weight
    want = {n: (p - 0.1 * (p.grad + 0.01 * p)).detach() for n, p in learnt.named_parameters()}
    want |= {
        f"parametrizations.weight.0.{n}": (p - 0.05 * p.grad).detach()
        for n, p in compander.named_parameters()
    }
    optimizer.step()
    for name, p in learnt.named_parameters():
        torch.testing.assert_close(p.detach(), want[name])


def test_baked_is_exactly_the_same_function() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    companded = parametrize_weights(
        model, WeightCompander, types=(nn.Conv2d, nn.Linear), fn="tanh", learnable=True
    )
    x = torch.randn(2, 2, 4, 4)
    plain = bake(companded)
    assert torch.equal(plain(x), companded(x))
    assert plain.state_dict().keys() == model.state_dict().keys()


def test_weight_stats_counts_each_layer_in_its_own_deviations() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    for layer, scale in zip(model, (1.0, 100.0), strict=True):
        with torch.no_grad():
            layer.weight.fill_(0.05 * scale)
            layer.weight[::2] = 2 * scale
            layer.weight[:2] *= -1
    z = model[0].weight / model[0].weight.std(unbiased=False)
    stats = weight_stats(model)
    assert stats["near_zero"].item() == pytest.approx(0.5)
    torch.testing.assert_close(stats["largest"], z.abs().max().detach())
    torch.testing.assert_close(stats["kurtosis"], z.pow(4).mean().detach())
    assert stats["saturated"] == 0

    companded = parametrize_weights(
        model, WeightCompander, types=nn.Linear, skip=["1"], a=2.0, relative=False
    )
    with torch.no_grad():
        companded[0].parametrizations.weight.original.fill_(1e6)
        companded[0].parametrizations.weight.original[0] = 0
    assert weight_stats(companded)["saturated"].item() == pytest.approx(0.9 / 2)


def test_a_layer_that_starts_at_zero_does_not_hide_the_others() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    alone = weight_stats(model[0])
    nn.init.zeros_(model[1].weight)
    stats = weight_stats(model)
    torch.testing.assert_close(stats["largest"], alone["largest"])
    torch.testing.assert_close(stats["near_zero"], (1 + alone["near_zero"]) / 2)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_empty_layer_counts_for_nothing() -> None:
    layer, empty = nn.Linear(4, 4), nn.Linear(4, 0)
    assert weight_stats(nn.Sequential(layer, empty)) == weight_stats(layer)
    with pytest.raises(ValueError, match=r"the model has no Linear or .* with weights"):
        weight_stats(empty)


@pytest.mark.bad_input
def test_bad_input_is_refused() -> None:
    weight = torch.ones(2, 3)
    with pytest.raises(ValueError, match="a must be positive; got 0"):
        weight_compand(weight, 0, 1)
    with pytest.raises(ValueError, match="b must be positive; got -1"):
        WeightCompander(weight, 1, -1)
    with pytest.raises(ValueError, match=r"fn must be one of .* got 'sin'"):
        WeightCompander(weight, fn="sin")
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        weight_compand(weight.long(), 1, 1)
    for margin in (-0.1, 1.0):
        with pytest.raises(ValueError, match="margin must be in"):
            inverse_weight_compand(weight, 1, 1, margin=margin)
        with pytest.raises(ValueError, match="margin must be in"):
            WeightCompander(weight, margin=margin)
    with pytest.raises(ValueError, match="init must be 'preserve' or 'direct'; got 'same'"):
        WeightCompander(weight, init="same")
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="no learnable a and b"):
        weight_compander_param_groups(model, 0.1)
    with pytest.raises(ValueError, match="ab_lr_scale must not be negative"):
        weight_compander_param_groups(model, 0.1, ab_lr_scale=-1)
    with pytest.raises(ValueError, match="no Linear or Conv1d"):
        weight_stats(nn.ReLU())
    with pytest.raises(ValueError, match="has a parametrised weight already"):
        parametrize_weights(
            parametrize_weights(model, WeightCompander, types=nn.Linear), WeightCompander, types=nn.Linear
        )
