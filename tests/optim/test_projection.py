"""Test the projection: its mathematics, its decision, its precision, and that both routes decide alike."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trueup._numerics import flat_chunks
from trueup._numerics.flat_chunks import Scratch
from trueup.optim import _projection, project_radial


def orthogonal_to(param: Tensor, grad: Tensor, rows: int, cosine: float = 0.0) -> Tensor:
    """`grad` turned so that its angle to each of `rows` rows of `param` has this cosine."""
    p, g = param.reshape(rows, -1), grad.reshape(rows, -1)
    p = p / p.norm(dim=1, keepdim=True)
    g = g - p * (p * g).sum(1, keepdim=True)
    g = g / g.norm(dim=1, keepdim=True)
    return (math.sqrt(1 - cosine**2) * g + cosine * p).reshape(param.shape)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "view"), [(4, "channel"), (1, "layer")])
def test_update_becomes_orthogonal(rows: int, view: str) -> None:
    p, u = randn(4, 3, 2, 2), randn(4, 3, 2, 2, seed=1)
    g = orthogonal_to(p, randn(4, 3, 2, 2, seed=2), rows)
    projected, ratio = project_radial(p, g, u, wd_ratio=0.3)
    assert ratio == pytest.approx(0.3)
    inner = (projected * p).reshape(rows, -1).sum(1)
    torch.testing.assert_close(inner, torch.zeros_like(inner), rtol=0, atol=1e-6)  # n is unit but for eps
    if view == "layer":  # the rows themselves are not orthogonal
        assert ((projected * p).reshape(4, -1).sum(1).abs() > 1e-2).any()
    # what was removed is a multiple of each row
    removed = (u - projected).reshape(rows, -1) / p.reshape(rows, -1)
    torch.testing.assert_close(removed, removed[:, :1].expand_as(removed))


def test_residue_of_eps() -> None:
    # n = p / (||p|| + eps) falls short of unit length by eps / ||p||: twice that of the component along p
    # stays.
    p, g = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[-4.0, 3.0]]).double()
    projected, _ = project_radial(p, g, p.clone(), eps=0.5)
    torch.testing.assert_close(projected, p * (1 - 25 / 5.5**2))


def test_channel_view_comes_first_and_needs_every_row() -> None:
    p, u = randn(3, 8), randn(3, 8, seed=1)
    g = orthogonal_to(p, randn(3, 8, seed=2), 3)
    g[2] = p[2]  # one row is parallel: neither view passes
    projected, ratio = project_radial(p, g, u)
    assert ratio == 1
    assert torch.equal(projected, u)


@pytest.mark.parametrize("shape", [(1, 64), (5, 64)])
def test_threshold_is_delta_over_root_dimension(shape: tuple[int, int]) -> None:
    p = randn(*shape)
    for factor, expected in ((0.999, True), (1.001, False)):
        g = orthogonal_to(p, randn(*shape, seed=1), shape[0], factor * 0.1 / math.sqrt(shape[1]))
        if not expected:
            g[0] *= 100  # keeps the layer view from passing by an accident of signs
        _, ratio = project_radial(p, g, g, delta=0.1)
        assert (ratio < 1) == expected
        assert (
            _projection.invariant_row_norms(p.flatten(), g.flatten(), shape[0], 0.1, 1e-8, Scratch())
            is not None
        ) == expected


@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_special_values(eps: float) -> None:
    p, zero = randn(2, 3), torch.zeros(2, 3, dtype=torch.float64)
    nan = torch.full_like(p, math.nan)
    cases = [
        (p, zero, 0.1, eps > 0),  # a zero gradient is orthogonal, unless 0 / 0
        (p, zero, 0.0, False),  # delta = 0 never projects
        (p, nan, 0.1, False),
        (nan, p, 0.1, False),
        (zero, p, 0.1, eps > 0),
    ]
    for param, grad, delta, expected in cases:
        update, ratio = project_radial(param, grad, p, delta=delta, eps=eps)
        assert (ratio < 1) == expected
        assert param.isnan().any() or update.isfinite().all()
        norms = _projection.invariant_row_norms(param.flatten(), grad.flatten(), 2, delta, eps, Scratch())
        assert (norms is not None) == expected


def test_vectors_are_never_projected() -> None:
    p = randn(8)
    update, ratio = project_radial(p, torch.zeros_like(p), p)
    assert torch.equal(update, p)
    assert ratio == 1
    assert ratio.shape == ()


def test_input_is_left_alone() -> None:
    p, u = randn(2, 3), randn(2, 3, seed=1)
    before = u.clone()
    project_radial(p, torch.zeros_like(p), u)
    assert torch.equal(u, before)


@pytest.mark.bad_input
def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"one shape; got \(2, 3\), \(3, 2\) and \(2, 3\)"):
        project_radial(randn(2, 3), randn(3, 2), randn(2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_decides_as_float64(dtype: torch.dtype) -> None:
    """Near the threshold sums kept in 8 bits are too coarse; squares of these sizes overflow float16."""
    decided = 0
    for seed in range(60):
        p = 30 * randn(1, 4096, seed=seed)
        g = orthogonal_to(p, randn(1, 4096, seed=seed + 1000), 1, 0.1 / 64)
        p, g = p.to(dtype), (100 * g).to(dtype)
        margin = (p.double() * g.double()).sum().abs() / p.double().norm() / g.double().norm() / (
            0.1 / 64
        ) - 1
        if not 1e-3 < margin.abs() < 1e-1:
            continue
        decided += 1
        assert (project_radial(p, g, g)[1] < 1) == (margin < 0)
        assert (
            _projection.invariant_row_norms(p.flatten(), g.flatten(), 1, 0.1, 1e-8, Scratch()) is not None
        ) == (margin < 0)
    assert decided >= 20


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    kind=st.sampled_from(["random", "channel", "layer", "zero"]),
    size=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_routes_decide_alike(shape: list[int], kind: str, size: int, seed: int) -> None:
    p, g = randn(*shape, seed=seed), randn(*shape, seed=seed + 1)
    if kind == "zero":
        g = torch.zeros_like(g)
    elif kind != "random":
        g = orthogonal_to(p, g, shape[0] if kind == "channel" else 1)
    if not g.isfinite().all():  # a row of one element has no orthogonal gradient
        g = torch.zeros_like(g)
    _, ratio = project_radial(p, g, p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat_chunks, "CHUNK_SIZE", size)
        patch.setattr(_projection, "CHUNK_SIZE", size)
        norms = _projection.invariant_row_norms(p.flatten(), g.flatten(), shape[0], 0.1, 1e-8, Scratch())
    assert (norms is not None) == (ratio < 1)
    if kind == "zero":
        assert len(norms) == shape[0]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_without_elements_nothing_is_projected(shape: tuple[int, ...]) -> None:
    update, ratio = project_radial(*torch.empty(3, *shape).unbind())
    assert update.shape == shape
    assert ratio == 1


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 50), length=st.integers(1, 50), size=st.integers(1, 60))
def test_row_chunks_cover_everything_once(rows: int, length: int, size: int) -> None:
    flat = torch.arange(rows * length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat_chunks, "CHUNK_SIZE", size)
        parts = flat_chunks.row_chunks(flat, rows)
    assert torch.equal(torch.cat([chunk.flatten() for part in parts for chunk in part]), flat)
    assert all(chunk.numel() <= size for part in parts for chunk in part)
    assert all(sum(chunk.numel() for chunk in part) % length == 0 for part in parts)
