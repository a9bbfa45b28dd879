"""Per-channel views: the same in both memory layouts, without a copy, and exact where a mean is large."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from trueup._numerics.per_channel import (
    instance_affine,
    instance_moments,
    instance_sums,
    is_channels_last,
    per_channel_view,
    restore_shape,
    upcast_contiguous,
)
from trueup._numerics.upcasting import upcast

LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return torch.stack([x, x + 1], dim=-1)[..., 0]


# ---- shapes ----


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_a_view_shares_memory(shape: tuple[int, ...], layout: str) -> None:
    x = laid_out(torch.randn(shape), layout)
    view = per_channel_view(x)
    assert view.shape == (2, 3, x[0, 0].numel())
    assert view.data_ptr() == x.data_ptr()
    assert is_channels_last(view) == (layout == "channels last" or len(shape) == 2)
    back = restore_shape(x, view.clone())
    assert torch.equal(back, x)
    assert back.stride() == x.stride()


def test_to_autograd_a_restored_shape_is_no_view() -> None:
    output = torch.randn(2, 3, 20, requires_grad=True).sin()
    y = restore_shape(torch.empty(2, 3, 4, 5), output)
    assert not y._is_view()
    assert y.data_ptr() == output.data_ptr()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (2, 3, 4, 0)])
def test_no_values_are_no_samples(shape: tuple[int, ...]) -> None:
    view = per_channel_view(torch.ones(shape))
    assert view.shape[:2] == (0, 3)
    assert restore_shape(torch.ones(shape), view).shape == shape
    nothing = torch.ones(0, 3)
    assert all(t.shape == (0, 3) for t in (*instance_moments(view), *instance_sums(view, view, nothing)))
    assert instance_affine(view, nothing, nothing, nothing).shape == view.shape


# ---- upcast_contiguous ----


@pytest.mark.parametrize("channels_last", [True, False])
@LAYOUTS
@DTYPES
def test_upcast_contiguous(dtype: torch.dtype, layout: str, channels_last: bool) -> None:
    x = laid_out(torch.randn(3, 4, 5).to(dtype), layout)
    y = upcast_contiguous(x, channels_last)
    assert y.dtype == upcast(x).dtype
    assert torch.equal(y, upcast(x))
    assert (y.transpose(1, 2) if channels_last else y).is_contiguous()
    as_wanted = y.dtype == dtype and layout == ("channels last" if channels_last else "contiguous")
    assert (y.data_ptr() == x.data_ptr()) == as_wanted


# ---- instance_moments ----


@LAYOUTS
@DTYPES
def test_instance_moments(dtype: torch.dtype, layout: str) -> None:
    x = laid_out((100 + 0.1 * torch.randn(3, 4, 50)).to(dtype), layout)
    mean, var = instance_moments(x)
    assert mean.dtype == var.dtype == upcast(x).dtype
    torch.testing.assert_close(mean.double(), x.double().mean(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), x.double().var(2, correction=0), rtol=1e-5, atol=0)


@LAYOUTS
def test_vmap_has_a_rule_for_every_step(layout: str) -> None:
    """Without one it warns, once per process by default, and loops."""
    x = laid_out(torch.randn(2, 3, 4, 50).flatten(0, 1), layout).unflatten(0, (2, 3))
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(action="error"):
            mean, var = torch.vmap(instance_moments)(x)
    finally:
        torch.set_warn_always(False)
    torch.testing.assert_close(mean, x.mean(3))
    torch.testing.assert_close(var, x.var(3, correction=0))


# ---- instance_affine ----


@LAYOUTS
@DTYPES
def test_instance_affine(dtype: torch.dtype, layout: str) -> None:
    x = laid_out(torch.randn(3, 4, 5).to(dtype), layout)
    center, scale, shift = torch.randn(3, 3, 4, dtype=upcast(x).dtype)
    y = instance_affine(x, center, scale, shift)
    assert y.dtype == dtype
    assert is_channels_last(y) == is_channels_last(x)
    want = (x.double() - center.unsqueeze(2)) * scale.unsqueeze(2) + shift.unsqueeze(2)
    torch.testing.assert_close(
        y.double(), want.to(dtype).double(), rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-5
    )


# ---- instance_sums ----


@LAYOUTS
@DTYPES
def test_instance_sums(dtype: torch.dtype, layout: str) -> None:
    grad, x = torch.randn(2, 3, 4, 5).to(dtype)
    grad, x = laid_out(grad, "contiguous"), laid_out(x, layout)
    center = torch.randn(3, 4, dtype=upcast(x).dtype)
    for given in (center, None):
        sum_gx, sum_g = instance_sums(grad, x, given)
        subtracted = 0 if given is None else center.double().unsqueeze(2)
        want = (grad.double() * (x.double() - subtracted)).sum(2)
        torch.testing.assert_close(sum_gx.double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sum_g.double(), grad.double().sum(2), rtol=1e-5, atol=1e-5)


@LAYOUTS
def test_instance_sums_of_deviations_from_a_large_mean(layout: str) -> None:
    grad, x = torch.randn(2, 2, 3, 1000)
    x = laid_out(100 + 0.01 * x, layout)
    center = x.mean(2)
    want = (grad.double() * (x.double() - center.double().unsqueeze(2))).sum(2)
    torch.testing.assert_close(instance_sums(grad, x, center)[0].double(), want, rtol=1e-4, atol=1e-6)
