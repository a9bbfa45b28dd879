"""Adaptive gradient clipping against its rule, unit by unit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from processes import in_processes
from trueup.nn import adaptive_clip_grad_

SHAPES = [(4, 3, 2, 2), (5, 6), (7,), (), (3, 1), (0, 4)]


def parameter(shape: tuple[int, ...], scale: float = 1.0, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    p = nn.Parameter(torch.randn(shape, dtype=dtype))
    p.grad = torch.randn(shape, dtype=dtype) * scale
    return p


def rule(p: Tensor, clip: float, eps: float, grad_eps: float) -> Tensor:
    units = zip(p.detach(), p.grad, strict=True) if p.dim() > 1 else [(p.detach(), p.grad)]
    clipped = []
    for w, g in units:
        bound, norm = clip * max(float(w.norm()), eps), float(g.norm())
        clipped.append(g * bound / max(norm, grad_eps) if norm > bound else g.clone())
    return torch.stack(clipped) if p.dim() > 1 and len(p) else clipped[0] if clipped else p.grad.clone()


@pytest.mark.parametrize("clip", [0.01, 0.5, 1e-6])
@torch.no_grad()
def test_each_unit_follows_the_rule(clip: float) -> None:
    # gradients of very different size: some units are clipped and some are not
    parameters = [parameter(shape, scale) for shape in SHAPES for scale in (1e-7, 1e-2, 0.4, 10)]
    parameters[0][0] = 0  # a unit without weight is clipped as if its norm were eps
    parameters[1].grad.zero_()
    want = [rule(p, clip, 0.02, 1e-6) for p in parameters]
    assert adaptive_clip_grad_(iter(parameters), clip, eps=0.02) is None
    for p, g in zip(parameters, want, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=0)


def test_one_parameter_and_one_without_a_gradient() -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    adaptive_clip_grad_([p])
    assert p.grad is None
    p.grad = torch.tensor([0.0, 10.0])
    grad = p.grad
    adaptive_clip_grad_(p, 0.1)
    assert p.grad is grad
    torch.testing.assert_close(grad, torch.tensor([0.0, 0.5]))


def test_a_parameter_listed_twice_is_clipped_once() -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    p.grad = torch.tensor([0.0, 10.0])
    adaptive_clip_grad_([p, p], 0.1)
    torch.testing.assert_close(p.grad, torch.tensor([0.0, 0.5]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_norms_are_taken_in_float32(dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.ones(1, 400, dtype=dtype))
    p.grad = torch.full((1, 400), 300.0, dtype=dtype)  # the sum of squares overflows float16
    adaptive_clip_grad_(p, 0.5)
    assert p.grad.dtype == dtype
    torch.testing.assert_close(p.grad, torch.full((1, 400), 0.5, dtype=dtype))


def test_mixed_dtypes_and_memory_formats() -> None:
    single, double = parameter((4, 3), 10, torch.float32), parameter((2, 3, 4, 4), 10)
    double.grad = double.grad.to(memory_format=torch.channels_last)
    want = [rule(p, 0.1, 1e-3, 1e-6) for p in (single, double)]
    adaptive_clip_grad_([single, double], 0.1)
    torch.testing.assert_close([single.grad, double.grad], want)
    assert double.grad.is_contiguous(memory_format=torch.channels_last)


def test_nan_is_not_hidden() -> None:
    p = parameter((2, 3))
    p.grad[0, 0] = float("nan")
    want = rule(p, 0.01, 1e-3, 1e-6)[1]
    adaptive_clip_grad_(p)
    assert p.grad[0, 0].isnan()
    torch.testing.assert_close(p.grad[1], want)


def sharded(rank: int) -> None:
    mesh = dist.init_device_mesh("cpu", (2,))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 10
    models = []
    for shard in (False, True):
        torch.manual_seed(0)
        # 5 rows on two processes, and 1; a layer norm's vectors are one unit each, in two pieces
        model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 1))
        if shard:
            fully_shard(model, mesh=mesh)
        (model(x) * x.sum(1, keepdim=True)).square().sum().backward()
        adaptive_clip_grad_(model.parameters(), 0.05)
        models.append(model)
    for whole, parts in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(parts.grad.full_tensor(), whole.grad)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch is built without gloo")
def test_units_in_two_processes_are_whole(tmp_path: Path) -> None:
    in_processes(sharded, folder=tmp_path)


def test_bad_input_is_refused_before_any_gradient_changes() -> None:
    for name in ("clip", "eps", "grad_eps"):
        with pytest.raises(ValueError, match=f"{name} must be positive; got 0"):
            adaptive_clip_grad_([], **{name: 0})
    first, table = parameter((2, 3), 100), nn.Embedding(3, 2, sparse=True)
    before = first.grad.clone()
    table(torch.tensor([0, 1])).sum().backward()
    with pytest.raises(TypeError, match=r"needs dense gradients; got one of layout torch\.sparse_coo"):
        adaptive_clip_grad_([first, table.weight])
    complex_parameter = parameter((2, 2), dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"needs real parameters; got torch\.complex64"):
        adaptive_clip_grad_([first, complex_parameter])
    assert torch.equal(first.grad, before)
