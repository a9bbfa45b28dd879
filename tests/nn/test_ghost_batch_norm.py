"""Ghost batch normalisation: its mathematics, invariances and cost."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trueup.nn import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, ghost_batch_norm
from trueup.nn._ghost_batch_norm import normalize_ghost_batches

LAYERS = {
    2: (GhostBatchNorm1d, nn.BatchNorm1d),
    3: (GhostBatchNorm1d, nn.BatchNorm1d),
    4: (GhostBatchNorm2d, nn.BatchNorm2d),
    5: (GhostBatchNorm3d, nn.BatchNorm3d),
}


def pair(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **options: object
) -> tuple[nn.Module, nn.Module]:
    """Return our layer and torch's, with the same weights, neither ones nor zeros."""
    ghost, batch = LAYERS[len(shape)]
    shared = {key: options.pop(key) for key in ("eps", "momentum", "affine") if key in options}
    ours, theirs = ghost(shape[1], dtype=dtype, **shared, **options), batch(shape[1], dtype=dtype, **shared)
    with torch.no_grad():
        for p in ours.parameters():
            p.copy_(torch.randn_like(p))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def chunks(x: Tensor, size: int, remainder: str) -> list[Tensor]:
    """Return the ghost batches of the definition, one by one."""
    parts = list(x.split(size))
    if remainder == "merge" and len(parts) > 1 and len(parts[-1]) < size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def everything(layer: nn.Module, x: Tensor, direction: Tensor, cut: object = None) -> list[Tensor]:
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = layer(x) if cut is None else torch.cat([layer(chunk) for chunk in cut(x)])
    y.backward(direction)
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters()), *(b.clone() for b in layer.buffers())]


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
@pytest.mark.parametrize("remainder", ["merge", "keep"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape", [(12, 5), (11, 5), (8, 5, 6), (11, 4, 3, 3), (8, 4, 3, 2), (6, 2, 2, 3, 2), (7, 3, 1, 1)]
)
def test_equals_batch_norm_of_each_ghost_batch_in_turn(
    shape: tuple[int, ...], layout: str, remainder: str, momentum: float | None
) -> None:
    torch.manual_seed(0)
    size = 4
    ours, theirs = pair(shape, momentum=momentum, ghost_batch_size=size, remainder=remainder)
    for _ in range(3):
        x, direction = torch.randn(2, *shape, dtype=torch.float64) * 3 + 1
        if layout == "channels_last":
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        got = everything(ours, x, direction)
        want = everything(theirs, x, direction, lambda x: chunks(x, size, remainder))
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernels_equal_the_equation(dtype: torch.dtype, layout: str) -> None:
    weight, bias, x = (
        torch.randn(3, dtype=dtype),
        torch.randn(3, dtype=dtype),
        torch.randn(8, 3, 5, dtype=dtype),
    )
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    y = ghost_batch_norm(x, None, None, weight, bias, training=True, ghost_batch_size=4)
    want, _, _ = normalize_ghost_batches(x.unflatten(0, (2, 4)), weight, bias, 1e-5)
    torch.testing.assert_close(y, want)
    upstream = torch.randn_like(want)
    torch.testing.assert_close(*(torch.autograd.grad(out, inputs, upstream) for out in (y, want)))


@given(
    samples=st.integers(2, 40),
    channels=st.integers(1, 5),
    spatial=st.lists(st.integers(1, 4), max_size=3),
    size=st.integers(2, 50),
    remainder=st.sampled_from(["merge", "keep"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.sampled_from([1e-5, 1e-3, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
)
@settings(max_examples=150, deadline=None)
def test_equals_the_loop_for_any_shape(
    samples: int,
    channels: int,
    spatial: list[int],
    size: int,
    remainder: str,
    dtype: torch.dtype,
    eps: float,
    scale: float,
) -> None:
    shape = (samples, channels, *spatial)
    ours, theirs = pair(shape, dtype, eps=eps, ghost_batch_size=size, remainder=remainder)
    x, direction = torch.randn(2, *shape, dtype=dtype) * scale
    if math.prod(spatial) == 1 and any(len(chunk) == 1 for chunk in chunks(x, size, remainder)):
        with pytest.raises(ValueError, match="more than one value per channel"):
            ours(x)
        return
    got = everything(ours, x, direction)
    want = everything(theirs, x, direction, lambda x: chunks(x, size, remainder))
    # Differences grow with 1/rstd for nearly constant ghost batches, which small ones can be.
    tolerance = 2e-3 if dtype == torch.float32 else 1e-9
    for ours_value, reference in zip(got, want, strict=True):
        assert (ours_value - reference).abs().max() <= tolerance * (1 + reference.abs().max())


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 3, 3)])
@pytest.mark.parametrize("size", [6, 7, 1000])
def test_one_ghost_batch_is_batch_norm(shape: tuple[int, ...], size: int) -> None:
    ours, theirs = pair(shape, ghost_batch_size=size)
    x, direction = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(everything(ours, x, direction), everything(theirs, x, direction))


@pytest.mark.parametrize("shape", [(12, 3), (12, 3, 4, 4)])
def test_scale_and_shift_of_a_ghost_batch_do_not_matter(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    moved = torch.cat([ghost * (i + 2.0) + 10.0 * i for i, ghost in enumerate(x.split(4))])
    want = ghost_batch_norm(x, training=True, eps=0.0, ghost_batch_size=4)
    got = ghost_batch_norm(moved, training=True, eps=0.0, ghost_batch_size=4)
    torch.testing.assert_close(got, want)
    whole = ghost_batch_norm(moved, training=True, eps=0.0, ghost_batch_size=12)
    assert (whole - want).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5)])
def test_each_ghost_batch_has_the_bias_as_mean_and_the_weight_as_deviation(shape: tuple[int, ...]) -> None:
    weight, bias = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([-1.0, 0.0, 5.0]).double()
    x = torch.randn(shape, dtype=torch.float64)
    y = ghost_batch_norm(x, weight=weight, bias=bias, training=True, eps=0.0, ghost_batch_size=4)
    for ghost in y.split(4):
        values = ghost.movedim(1, -1).flatten(0, -2)
        torch.testing.assert_close(values.mean(0), bias)
        torch.testing.assert_close(values.std(0, correction=0), weight)


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 2)])
def test_epsilon_is_added_to_the_variance_under_the_root(shape: tuple[int, ...]) -> None:
    """Values +-0.1 have variance 0.01; with eps 0.03 the root is 0.2."""
    x = (torch.arange(math.prod(shape)) % 2 * 0.2 - 0.1).double().view(shape)
    y = ghost_batch_norm(x, training=True, eps=0.03, ghost_batch_size=2)
    torch.testing.assert_close(y, x / 0.2)


def test_drop_stats_normalises_the_remainder_but_does_not_count_it() -> None:
    layer = GhostBatchNorm1d(2, ghost_batch_size=4, remainder="drop_stats").double()
    reference = GhostBatchNorm1d(2, ghost_batch_size=4).double()
    x = torch.randn(10, 2, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(y, ghost_batch_norm(x, training=True, ghost_batch_size=4, remainder="keep"))
    reference(x[:8])
    torch.testing.assert_close(layer.state_dict(), reference.state_dict())
    layer(x[:3])
    torch.testing.assert_close(layer.state_dict(), reference.state_dict())


def test_a_dropped_remainder_of_one_sample_gives_the_bias() -> None:
    bias = torch.tensor([3.0, -1.0])
    x = torch.randn(5, 2, requires_grad=True)
    y = ghost_batch_norm(x, bias=bias, training=True, ghost_batch_size=2, remainder="drop_stats")
    torch.testing.assert_close(y[4], bias)
    (y * torch.randn(5, 2)).sum().backward()
    assert torch.equal(x.grad[4], torch.zeros(2))
    assert x.grad[:4].abs().max() > 0


def test_constant_input_gives_the_bias() -> None:
    for shape in [(6, 2), (6, 2, 3, 3)]:
        y = ghost_batch_norm(torch.full(shape, 7.0), training=True, ghost_batch_size=3)
        assert torch.equal(y, torch.zeros(shape))


def test_running_statistics_without_tracking() -> None:
    layer = GhostBatchNorm1d(3, track_running_stats=False, ghost_batch_size=4)
    assert not list(layer.buffers())
    x = torch.randn(8, 3)
    assert torch.equal(layer.eval()(x), layer.train()(x))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_moves_the_running_statistics_once(use_reentrant: bool) -> None:
    plain, checkpointed = (GhostBatchNorm1d(3, ghost_batch_size=4) for _ in range(2))
    x, direction = torch.randn(2, 8, 3)
    plain(x)
    y = checkpoint(checkpointed, x.clone().requires_grad_(), use_reentrant=use_reentrant)
    y.backward(direction)
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict(), rtol=0, atol=0)


# ---- precision ----


@pytest.mark.parametrize("shape", [(64, 8), (32, 4, 14, 14)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_variance_survives_a_large_mean(shape: tuple[int, ...], layout: str) -> None:
    """Mean 100 and deviation 0.01: E[x^2] - E[x]^2 in float32 would be noise."""
    torch.manual_seed(0)
    x = 100 + 0.01 * torch.randn(shape)
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    layer = LAYERS[x.dim()][0](shape[1], momentum=None, ghost_batch_size=8)
    y = layer(x)
    values = x.double().movedim(1, -1).reshape(shape[0] // 8, -1, shape[1])
    torch.testing.assert_close(layer.running_var.double(), values.var(1).mean(0), rtol=2e-3, atol=0)
    torch.testing.assert_close(layer.running_mean.double(), values.mean((0, 1)), rtol=1e-7, atol=0)
    want = ghost_batch_norm(x.double(), training=True, ghost_batch_size=8)
    # Half an ulp of 100 is 4e-4 of the deviation.
    torch.testing.assert_close(y.double(), want, rtol=0, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 4), (32, 4, 8, 8)])
def test_half_types_take_their_statistics_in_float32(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape) * 2 + 5).to(dtype)
    layer, reference = (LAYERS[len(shape)][0](4, ghost_batch_size=8) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    want = reference(x.float())
    assert y.dtype == dtype
    # The output is rounded once; the statistics not at all.
    torch.testing.assert_close(y.float(), want, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(layer.state_dict(), reference.state_dict(), rtol=1e-5, atol=1e-6)


# ---- cost ----


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "size"), [((32, 8, 16, 16), 8), ((256, 64), 32), ((30, 8, 16, 16), 7)])
def test_saves_the_input_and_little_else(shape: tuple[int, ...], size: int, layout: str) -> None:
    layer = LAYERS[len(shape)][0](shape[1], ghost_batch_size=size)
    x = torch.randn(shape)
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    ghosts = shape[0] // size
    moments, weights = 2 * ghosts * shape[1] * 4, 2 * shape[1] * 4
    assert sum(saved.values()) == x.numel() * 4 + moments + weights


@pytest.mark.parametrize("shape", [(4096, 512), (32, 64, 28, 28)])
def test_saves_at_most_4_1_bytes_per_element_beside_the_moments(shape: tuple[int, ...]) -> None:
    layer = LAYERS[len(shape)][0](shape[1])
    x = torch.randn(shape, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes), lambda t: t):
        layer(x)
    assert sum(sizes) <= 4.1 * x.numel()


# ---- drop-in ----


def test_arguments_stand_where_torch_has_them() -> None:
    layer = GhostBatchNorm2d(6, 1e-3, 0.2, False, True, "meta", torch.float64)
    assert (layer.eps, layer.momentum, layer.affine, layer.track_running_stats) == (1e-3, 0.2, False, True)
    assert layer.running_mean.device.type == "meta"
    assert layer.running_mean.dtype == torch.float64
    assert (layer.ghost_batch_size, layer.remainder) == (128, "merge")
    assert GhostBatchNorm1d(3, bias=False).bias is None


@pytest.mark.parametrize(("ghost", "batch"), list(dict.fromkeys(LAYERS.values())))
def test_state_interchanges_with_torch(ghost: type[nn.Module], batch: type[nn.Module]) -> None:
    assert list(ghost(3).state_dict()) == list(batch(3).state_dict())
    ghost(3).load_state_dict(batch(3).state_dict())
    assert isinstance(ghost(3), nn.modules.batchnorm._BatchNorm)


def test_repr_shows_its_own_settings() -> None:
    shown = repr(GhostBatchNorm1d(3, ghost_batch_size=16, remainder="keep"))
    inherited = repr(nn.BatchNorm1d(3)).removeprefix("BatchNorm1d(").removesuffix(")")
    assert shown == f"GhostBatchNorm1d({inherited}, ghost_batch_size=16, remainder='keep')"


def test_ghost_batches_do_not_see_each_other() -> None:
    x = torch.randn(12, 3, 2, 2, requires_grad=True)
    y = ghost_batch_norm(x, training=True, ghost_batch_size=4)
    (grad,) = torch.autograd.grad(y[4:8].square().sum() + (y[4:8] * torch.randn(4, 3, 2, 2)).sum(), x)
    touched = [bool(part.any()) for part in grad.split(4)]
    assert touched == [False, True, False]
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairwise(y.split(4)))


# ---- bad input ----


@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize("layer", [GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d])
def test_ghost_batch_size_must_be_positive(layer: type[nn.Module], size: int) -> None:
    with pytest.raises(ValueError, match=f"ghost_batch_size must be at least 1; got {size}"):
        layer(3, ghost_batch_size=size)


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [2.0, "8", True, None])
def test_ghost_batch_size_must_be_an_integer(size: object) -> None:
    with pytest.raises(TypeError, match="ghost_batch_size must be an int"):
        GhostBatchNorm2d(3, ghost_batch_size=size)


def test_a_single_sample_has_no_variance_in_one_dimension() -> None:
    with pytest.raises(ValueError, match="GhostBatchNorm1d needs ghost_batch_size >= 2"):
        GhostBatchNorm1d(3, ghost_batch_size=1)
    GhostBatchNorm2d(3, ghost_batch_size=1)(torch.randn(2, 3, 4, 4))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remainder": "drop"}, r"remainder must be one of .*'merge'.*; got 'drop'"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\].*got -0.1"),
        ({"momentum": 1.5}, r"momentum must be in \[0, 1\].*got 1.5"),
        ({"momentum": math.nan}, r"momentum must be in \[0, 1\]"),
        ({"eps": -1e-5}, "eps must not be negative"),
        ({"eps": math.nan}, "eps must not be negative"),
    ],
)
def test_settings_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GhostBatchNorm1d(3, **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (GhostBatchNorm1d(3), (4, 3, 2, 2), r"needs input \(N, C\) or \(N, C, L\); got .*\(4, 3, 2, 2\)"),
        (GhostBatchNorm2d(3), (4, 3), r"GhostBatchNorm2d needs input \(N, C, H, W\)"),
        (GhostBatchNorm3d(3), (3, 4, 4, 4), r"GhostBatchNorm3d needs input \(N, C, D, H, W\)"),
        (GhostBatchNorm1d(3), (6, 4), r"has 4 channels, but running_mean has shape \(3,\).*num_features=4"),
        (GhostBatchNorm2d(3, affine=False), (6, 4, 2, 2), r"has 4 channels, but running_mean"),
        (GhostBatchNorm2d(3, track_running_stats=False), (6, 4, 2, 2), r"has 4 channels, but weight"),
        (GhostBatchNorm1d(3), (1, 3), r"more than one value per channel; got input of shape \(1, 3\)"),
        (GhostBatchNorm1d(3, ghost_batch_size=2, remainder="keep"), (5, 3), "remainder='keep', which leaves"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(shape))


@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_input_must_be_floating_point(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="needs a floating point input; got torch"):
        GhostBatchNorm1d(3)(torch.ones(4, 3).to(dtype))


@pytest.mark.bad_input
def test_missing_arguments_of_the_function() -> None:
    x, ones = torch.randn(4, 3), torch.ones(3)
    with pytest.raises(ValueError, match="needs input"):
        ghost_batch_norm(torch.randn(4), training=True)
    with pytest.raises(ValueError, match="pass both, or training=True"):
        ghost_batch_norm(x)
    with pytest.raises(ValueError, match="running_mean and running_var go together"):
        ghost_batch_norm(x, running_mean=ones, training=True)
    with pytest.raises(ValueError, match="pass num_batches_tracked"):
        ghost_batch_norm(x, ones.clone(), ones.clone(), training=True, momentum=None)
