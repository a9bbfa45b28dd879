"""Weight standardisation: the formula in both forms, invariances, edges and precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trueup.nn import WeightStandardization, parametrize_weights, standardize_weight

FORMS = [(unbiased, inside) for unbiased in (True, False) for inside in (True, False)]


@pytest.fixture(params=FORMS, ids=lambda form: f"unbiased={form[0]}-inside={form[1]}")
def form(request: pytest.FixtureRequest) -> dict[str, bool]:
    unbiased, inside = request.param
    return {"unbiased": unbiased, "eps_inside": inside}


def naive(weight: Tensor, eps: float, unbiased: bool, eps_inside: bool) -> Tensor:
    """The equation, filter by filter."""
    rows = []
    for w in weight:
        var = w.var(unbiased=unbiased)
        rows.append((w - w.mean()) / ((var + eps).sqrt() if eps_inside else var.sqrt() + eps))
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=5).filter(lambda s: torch.Size(s[1:]).numel() > 1),
    form=st.sampled_from(FORMS),
    # large enough that its place, and a factor n/(n-1), show
    eps=st.sampled_from([1e-5, 0.3]),
)
def test_equals_the_equation(shape: list[int], form: tuple[bool, bool], eps: float) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))
    weight = (weight + 0.5).requires_grad_()
    got = standardize_weight(weight, eps=eps, unbiased=form[0], eps_inside=form[1])
    want = naive(weight, eps, *form)
    torch.testing.assert_close(got, want)
    direction = torch.randn_like(got)
    torch.testing.assert_close(*(torch.autograd.grad(y, weight, direction)[0] for y in (got, want)))


def test_filters_have_mean_zero_and_unit_variance(form: dict[str, bool]) -> None:
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64) * 7 + 3
    var, mean = torch.var_mean(
        standardize_weight(weight, eps=0.0, **form), (1, 2, 3), unbiased=form["unbiased"]
    )
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(var, torch.ones_like(var))


def test_shift_and_scale_of_a_filter_have_no_effect(form: dict[str, bool]) -> None:
    weight = torch.randn(3, 20, dtype=torch.float64)
    scale, shift = torch.tensor([[0.5], [2.0], [30.0]]), torch.tensor([[-1.0], [0.0], [9.0]])
    got, want = (standardize_weight(w, eps=0.0, **form) for w in (weight * scale + shift, weight))
    torch.testing.assert_close(got, want)


def test_a_constant_filter_gives_zeros_and_a_bounded_gradient(form: dict[str, bool]) -> None:
    weight = torch.full((2, 27), 0.7, dtype=torch.float64, requires_grad=True)
    got = standardize_weight(weight, eps=1e-4, **form)
    assert torch.equal(got, torch.zeros_like(got))
    direction = torch.randn_like(got)
    (grad,) = torch.autograd.grad(got, weight, direction)
    amplified = 1e-4**-0.5 if form["eps_inside"] else 1e4
    torch.testing.assert_close(grad, (direction - direction.mean(1, keepdim=True)) * amplified)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_the_mean_of_a_constant_filter_is_not_blown_up(
    dtype: torch.dtype, form: dict[str, bool]
) -> None:
    for value in (0.1, 1 / 3, 0.7, 12.3, 1000.1):
        for n in (2, 9, 18, 27, 75, 147, 288, 1152):
            assert not standardize_weight(torch.full((1, n), value, dtype=dtype), **form).any()


def test_the_variance_is_exact_far_from_zero() -> None:
    weight = torch.randn(4, 64, dtype=torch.float64) * 1e-2 + 100
    got = standardize_weight(weight.float(), eps=0.0).double()
    torch.testing.assert_close(got.var(1), torch.ones(4, dtype=torch.float64), rtol=1e-3, atol=0)
    # a float32 mean of 100 is off by an ulp or so, 8e-6: that is 8e-4 of the deviation
    torch.testing.assert_close(got, standardize_weight(weight.float().double(), eps=0.0), rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_get_float32_statistics(dtype: torch.dtype, form: dict[str, bool]) -> None:
    # 300^2 overflows float16; 255 / 256 of it is lost in bfloat16.
    weight = (torch.randn(4, 40, dtype=torch.float64) * 300).to(dtype)
    got = standardize_weight(weight, **form)
    assert got.dtype == dtype
    assert torch.equal(got, standardize_weight(weight.float(), **form).to(dtype))


def test_backward_keeps_nothing_but_the_weight() -> None:
    weight = torch.randn(64, 32, 3, 3, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        standardize_weight(weight)
    # besides: a mean and a deviation a filter, and the constant factor, a value for each of the fan-in
    assert sum(saved.values()) <= 4 * (weight.numel() + 2 * 64 + 32 * 9)


def test_the_stored_weight_is_the_plain_one() -> None:
    conv = nn.Conv2d(3, 4, 3)
    standardised = parametrize_weights(conv, WeightStandardization, eps=1e-3)
    assert torch.equal(standardised.parametrizations.weight.original, conv.weight)
    assert torch.equal(standardised.weight, standardize_weight(conv.weight, eps=1e-3))
    x = torch.randn(2, 3, 5, 5)
    want = torch.conv2d(x, standardize_weight(conv.weight, eps=1e-3), conv.bias)
    assert torch.equal(standardised(x), want)

    standardised.weight = conv.weight * 2 + 1
    assert torch.equal(standardised.parametrizations.weight.original, conv.weight * 2 + 1)


@pytest.mark.bad_input
def test_bad_input_is_refused() -> None:
    with pytest.raises(TypeError, match=r"int64: convert with \.float\(\)"):
        standardize_weight(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        standardize_weight(torch.ones(3))
    with pytest.raises(ValueError, match="eps must not be negative; got -1"):
        standardize_weight(torch.ones(2, 3), eps=-1)
    with pytest.raises(ValueError, match="at least 2 values per filter"):
        standardize_weight(torch.ones(2, 1, 1, 1))
    assert not standardize_weight(torch.ones(2, 1), unbiased=False).any()
    # a parametrisation says so when it is put in, not at the first batch
    with pytest.raises(ValueError, match="at least 2 values per filter"):
        parametrize_weights(nn.Conv2d(4, 4, 1, groups=4), WeightStandardization)
