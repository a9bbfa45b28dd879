"""The shared statistics keep their digits where floating point loses them, however they are pooled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from processes import in_processes
from trueup._numerics.chunking import chunk_size, sample_chunks, write
from trueup._numerics.moments import across_processes, group_moments, pool


def direct(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Compute the definition in float64."""
    values = x.double().reshape(len(x), groups, -1)
    return values.mean(-1), values.var(-1, correction=0)


# ---- group_moments ----


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize(("mean", "sd"), [(100.0, 1e-2), (0.0, 1e-5), (0.0, 1e3), (-3.0, 1.0)])
def test_no_digits_are_lost_to_a_large_mean_or_a_small_deviation(mean: float, sd: float, groups: int) -> None:
    x = mean + sd * torch.randn(4, 6, 49)
    for ours, want in zip(group_moments(x, groups), direct(x, groups), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=1e-6 * sd)
    ours = group_moments(x.double(), groups)
    torch.testing.assert_close(ours, direct(x, groups), rtol=1e-10, atol=1e-12 * sd)


def test_a_large_batch_is_processed_a_few_samples_at_a_time() -> None:
    x = torch.randn(9, 64, 1000)
    assert chunk_size(x, 64 * 1000, len(x)) == 2
    torch.testing.assert_close(group_moments(x.double(), 8), direct(x, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_have_float32_moments(dtype: torch.dtype) -> None:
    x = (50 + 2 * torch.randn(3, 4, 100)).to(dtype)
    for ours, want in zip(group_moments(x, 2), direct(x, 2), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=0)


def test_squares_do_not_overflow_in_float16() -> None:
    x = (1000 * torch.randn(2, 4, 64)).half()
    assert x.square().isinf().any()
    torch.testing.assert_close(group_moments(x, 2)[1].double(), direct(x, 2)[1], rtol=1e-5, atol=0)


def test_a_constant_has_no_variance_and_nan_is_not_hidden() -> None:
    x = torch.full((2, 2, 5), 7.0)
    x[1, 0, 3] = torch.nan
    mean, var = group_moments(x, 2)
    torch.testing.assert_close(mean, torch.tensor([[7.0, 7.0], [torch.nan, 7.0]]), equal_nan=True)
    torch.testing.assert_close(var, torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]), equal_nan=True)


# ---- sample_chunks, write ----


def test_sample_chunks_are_small_and_together_the_whole() -> None:
    x, other = torch.randn(9, 64, 1000), torch.randn(9, 3)
    parts = list(sample_chunks(x, other))
    assert [len(part) for part, _ in parts] == [2, 2, 2, 2, 1]
    for whole, given in zip((x, other), zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(given), whole)
    assert [[len(t) for t in part] for part in sample_chunks(x[:0], other[:0])] == [[0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_rounded_once(dtype: torch.dtype) -> None:
    a, b, out = torch.randn(3, 4), torch.randn(3, 4), torch.empty(4, 3, dtype=dtype).T
    write(out, torch.add, a, b)
    assert torch.equal(out, (a + b).to(dtype))


# ---- pool ----


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [0, 1, (0, 1)])
def test_pooled_moments_are_those_of_the_union(dim: int | tuple[int, ...], keepdim: bool) -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64) * torch.arange(1, 5).view(4, 1) + torch.arange(3).view(
        3, 1, 1
    )
    axes = (dim, 2) if isinstance(dim, int) else (*dim, 2)
    got = pool(x.mean(2), x.var(2, correction=0), dim, keepdim=keepdim)
    want = x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)
    if keepdim:
        torch.testing.assert_close(got, tuple(w.squeeze(2) for w in want))
    else:
        torch.testing.assert_close(got, (x.mean(axes), x.var(axes, correction=0)))


def test_pooling_keeps_the_digits_and_can_be_differentiated() -> None:
    x = 100 + 1e-2 * torch.randn(8, 6, 49)
    _, var = pool(*group_moments(x, 6), 0)
    want = x.double().var((0, 2), correction=0)
    # The instances' means are rounded to float32, and so is how they vary.
    torch.testing.assert_close(var.double(), want, rtol=2e-4, atol=0)
    leaves = (torch.randn(3, 2).double().requires_grad_(), torch.rand(3, 2).double().requires_grad_())
    assert torch.autograd.gradcheck(lambda m, v: pool(m, v, 0), leaves)


# ---- across_processes ----


def share(rank: int, x: Tensor, cuts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the moments of all rows of x, from one process's part of them."""
    rows = x.split(cuts)[rank]
    mean, var = rows.mean(0), rows.var(0, correction=0)
    found = across_processes(mean, var, len(rows), dist.group.WORLD)
    # On a process without rows the mean is nan, which must not reach the others.
    assert mean.isnan().all() == (len(rows) == 0)
    return found


@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
@pytest.mark.parametrize("cuts", [[5, 2], [7, 0]])
def test_two_processes_know_the_moments_of_the_whole(tmp_path: Path, cuts: list[int]) -> None:
    x = 100 + 1e-2 * torch.randn(7, 4)
    for mean, var, count in in_processes(share, x, cuts, folder=tmp_path):
        torch.testing.assert_close(mean.double(), x.double().mean(0), rtol=3e-7, atol=0)
        torch.testing.assert_close(var.double(), x.double().var(0, correction=0), rtol=5e-3, atol=0)
        assert count == 7


def test_one_process_is_left_alone() -> None:
    mean, var = torch.randn(2, 3)
    assert across_processes(mean, var, 5, None) == (mean, var, 5)
