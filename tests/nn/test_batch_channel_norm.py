"""Batch-channel and estimated batch normalisation: mathematics, state, cost, several processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from processes import in_processes
from trueup.nn import (
    BatchChannelNorm1d,
    BatchChannelNorm2d,
    EstimatedBatchNorm1d,
    EstimatedBatchNorm2d,
    batch_channel_norm,
    convert,
    estimated_batch_norm,
)
from trueup.nn._batch_channel_norm import batch_then_group_norm

LAYERS = {2: BatchChannelNorm1d, 3: BatchChannelNorm1d, 4: BatchChannelNorm2d}


def build(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    """Return a layer whose parameters and statistics are neither ones nor zeros."""
    layer = LAYERS[len(shape)](shape[1], dtype=dtype, num_groups=2, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
        layer.bn.running_mean.normal_()
        layer.bn.running_var.uniform_(0.5, 2.0)
    return layer


def two_steps(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the definition: the batch part on its own, then torch's group norm. Updates nothing."""
    bn, channels = layer.bn, x.shape[1]
    view = (1, -1, *[1] * (x.dim() - 2))
    if layer.estimate and layer.training:
        with torch.no_grad():
            values = x.movedim(1, -1).flatten(0, -2)
            r = layer.moving_speed
            mean = (1 - r) * bn.running_mean + r * values.mean(0)
            var = (1 - r) * bn.running_var + r * (values - bn.running_mean).square().mean(0)
    elif layer.training:
        values = x.movedim(1, -1).flatten(0, -2)
        mean, var = values.mean(0), values.var(0, correction=0)
    else:
        mean, var = bn.running_mean, bn.running_var
    u = (x - mean.view(view)) / (var + layer.batch_eps).sqrt().view(view)
    u = u * bn.weight.view(view) + bn.bias.view(view)
    z = F.group_norm(u, layer.num_groups, eps=layer.eps)
    repeats = channels // layer.weight.numel()
    weight, bias = (p.flatten().repeat_interleave(repeats).view(view) for p in (layer.weight, layer.bias))
    return z * weight + bias


def gradients(layer: nn.Module, y: Tensor, x: Tensor, direction: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, (x, *layer.parameters()), direction))


@pytest.mark.parametrize("channel_affine", ["group", "channel"])
@pytest.mark.parametrize("mode", ["batch", "estimate", "evaluate"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(5, 4), (3, 6, 5), (3, 4, 3, 2), (2, 4, 1, 1)])
def test_is_batch_norm_and_then_group_norm(
    shape: tuple[int, ...], layout: str, mode: str, channel_affine: str
) -> None:
    options = {"channel_affine": channel_affine, "eps": 1e-2, "batch_eps": 0.1, "moving_speed": 0.3}
    layer = build(shape, estimate=mode == "estimate", **options).train(mode != "evaluate")
    x, direction = torch.randn(2, *shape, dtype=torch.float64) * 3 + 1
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    want = two_steps(layer, x)
    wanted = gradients(layer, want, x, direction)
    got = layer(x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients(layer, got, x, direction), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_kernel_equals_the_equation(layout: str) -> None:
    x, (mean, var, *parameters) = torch.randn(3, 4, 5).double(), torch.rand(6, 4).double() + 0.5
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    parameters[2:] = (p[:2] for p in parameters[2:])  # one per group
    inputs = [t.requires_grad_() for t in (x, *parameters)]
    options = {"channel_weight": parameters[2], "channel_bias": parameters[3], "num_groups": 2}
    for training in (False, True):
        if training:
            mean, var = x.mean((0, 2)), x.var((0, 2), correction=0)
        running = mean.detach().clone(), var.detach().clone()
        y = batch_channel_norm(
            x, *running, *parameters[:2], training=training, eps=1e-2, batch_eps=0.1, **options
        )
        want = batch_then_group_norm(x, mean, var, parameters, 2, 1e-2, 0.1)
        torch.testing.assert_close(y, want)
        upstream = torch.randn_like(want)
        torch.testing.assert_close(*(torch.autograd.grad(out, inputs, upstream) for out in (y, want)))


def test_running_statistics_of_batches_are_torchs() -> None:
    for momentum in (0.1, None, 1.0):
        ours, theirs = (
            BatchChannelNorm2d(4, momentum=momentum, num_groups=2),
            nn.BatchNorm2d(4, 1e-5, momentum),
        )
        for _ in range(3):
            x = torch.randn(3, 4, 2, 2) * 2 + 1
            ours(x), theirs(x)
        running = dict(ours.bn.state_dict())
        torch.testing.assert_close(running, dict(theirs.state_dict()))


@pytest.mark.parametrize(
    "layer", [BatchChannelNorm1d(4, num_groups=2, estimate=True), EstimatedBatchNorm1d(4)]
)
def test_estimates_move_around_the_old_mean_and_before_use(layer: nn.Module) -> None:
    part = layer.bn if isinstance(layer, BatchChannelNorm1d) else layer
    x = torch.randn(3, 4) + 2
    layer(x)
    torch.testing.assert_close(part.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(part.running_var, 0.9 + 0.1 * x.square().mean(0))
    assert part.num_batches_tracked == 1
    before = part.running_mean.clone()
    y = layer.train(False)(x)
    assert torch.equal(part.running_mean, before)
    torch.testing.assert_close(layer(x), y)


@pytest.mark.parametrize("speed", [0.0, 0.3, 1.0])
def test_estimated_batch_norm_is_batch_norm_by_what_it_estimated(speed: float) -> None:
    mean, var = torch.randn(3), torch.rand(3) + 0.5
    weight, bias, x = torch.randn(3), torch.randn(3), torch.randn(4, 3, 5)
    y = estimated_batch_norm(x, mean, var, weight, bias, training=True, moving_speed=speed)
    torch.testing.assert_close(y, F.batch_norm(x, mean, var, weight, bias))


def test_two_forwards_before_their_backwards() -> None:
    """The second forward moves the buffers, which the first one's backward must not see."""
    for layer in (BatchChannelNorm1d(4, num_groups=2, estimate=True), EstimatedBatchNorm1d(4)):
        xs = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
        start = {name: t.clone() for name, t in layer.state_dict().items()}
        (layer(xs[0]).sin().sum()).backward()
        alone = xs[0].grad.clone()
        xs[0].grad = None
        layer.load_state_dict(start)
        losses = [layer(x).sin().sum() for x in xs]
        sum(losses).backward()
        torch.testing.assert_close(xs[0].grad, alone)


def test_a_warm_start_takes_the_first_batch_for_the_estimates() -> None:
    for layer in (
        BatchChannelNorm1d(4, num_groups=2, estimate=True, warm_start=True),
        EstimatedBatchNorm1d(4, warm_start=True),
    ):
        part = getattr(layer, "bn", layer)
        first, second = torch.randn(2, 5, 4) * 3 + 7
        layer(first)
        torch.testing.assert_close(part.running_mean, first.mean(0))
        torch.testing.assert_close(part.running_var, first.var(0, correction=0))
        layer(second)
        torch.testing.assert_close(part.running_mean, 0.9 * first.mean(0) + 0.1 * second.mean(0))


@pytest.mark.parametrize("estimate", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 1, 1), (1, 4, 1, 1)])
def test_a_group_of_one_value_gives_the_bias(shape: tuple[int, ...], estimate: bool) -> None:
    """As torch's group norm and the official code; the batch part's statistics move all the same."""
    layer = LAYERS[len(shape)](4, num_groups=4, estimate=estimate, dtype=torch.float64)
    nn.init.normal_(layer.bias)
    x, direction = torch.randn(2, *shape, dtype=torch.float64)
    if len(x) == 1 and not estimate:
        with pytest.raises(ValueError, match="more than one value per channel"):
            layer(x)
        return
    y = layer(x.requires_grad_())
    torch.testing.assert_close(y, layer.bias.view(-1, *[1] * (x.dim() - 2)).expand(shape))
    y.backward(direction)
    for gradient in (x.grad, layer.weight.grad, layer.bn.weight.grad, layer.bn.bias.grad):
        assert gradient.abs().max() < 1e-9
    torch.testing.assert_close(layer.bias.grad.flatten(), direction.transpose(0, 1).flatten(1).sum(1))
    torch.testing.assert_close(layer.bn.running_mean, 0.1 * x.detach().transpose(0, 1).flatten(1).mean(1))


def test_estimates_that_stand_still_have_a_warm_start_all_the_same() -> None:
    for layer in (
        BatchChannelNorm1d(4, num_groups=2, estimate=True, moving_speed=0.0, warm_start=True),
        EstimatedBatchNorm1d(4, moving_speed=0.0, warm_start=True),
    ):
        part = getattr(layer, "bn", layer)
        first, second = torch.randn(2, 5, 4) * 3 + 7
        y = layer(first)
        torch.testing.assert_close(part.running_mean, first.mean(0))
        torch.testing.assert_close(part.running_var, first.var(0, correction=0))
        second[0, 0] = torch.nan
        layer(second)
        torch.testing.assert_close(part.running_mean, first.mean(0))
        assert part.num_batches_tracked == 2
        torch.testing.assert_close(layer.eval()(first), y)


def test_scale_and_shift_of_the_input_do_not_matter_to_batch_statistics() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    scale, shift = torch.rand(1, 4, 1).double() + 0.5, torch.randn(1, 4, 1).double()
    options = {"training": True, "eps": 0.0, "batch_eps": 0.0, "num_groups": 2}
    y = batch_channel_norm(x, None, None, **options)
    torch.testing.assert_close(batch_channel_norm(x * scale + shift, None, None, **options), y)


# ---- precision ----


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("estimate", [True, False])
def test_variance_survives_a_large_mean(estimate: bool, layout: str) -> None:
    x = 100 + 0.01 * torch.randn(4, 4, 14, 14)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    options = {"estimate": estimate, "warm_start": True} if estimate else {"momentum": None}
    layer = BatchChannelNorm2d(4, num_groups=2, **options)
    layer(x)
    values = x.double().movedim(1, -1).flatten(0, -2)
    want = values.var(0, correction=0 if estimate else 1)
    torch.testing.assert_close(layer.bn.running_var.double(), want, rtol=1e-3, atol=0)
    y, direction = layer.train(False)(x.requires_grad_()), torch.randn(x.shape)
    (grad,) = torch.autograd.grad(y, x, direction)
    exact = layer.double()
    x64 = x.detach().double().requires_grad_()
    (want_grad,) = torch.autograd.grad(exact(x64), x64, direction.double())
    assert (grad - want_grad).norm() <= 1e-3 * want_grad.norm()


@pytest.mark.parametrize("estimate", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_take_their_statistics_in_float32(dtype: torch.dtype, estimate: bool) -> None:
    """Squares of 400 overflow float16."""
    x = (torch.randn(4, 4, 5, 5) * 400).to(dtype)
    layer, reference = (BatchChannelNorm2d(4, num_groups=2, estimate=estimate) for _ in range(2))
    y, want = layer(x), reference(x.float())
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), want, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(layer.state_dict(), reference.state_dict(), rtol=1e-5, atol=1e-6)


# ---- cost ----


@pytest.mark.parametrize("estimate", [True, False])
@pytest.mark.parametrize("shape", [(4, 8, 16, 16), (64, 8)])
def test_saves_the_input_and_little_else(shape: tuple[int, ...], estimate: bool) -> None:
    layer = LAYERS[len(shape)](8, num_groups=4, estimate=estimate)
    x = torch.randn(shape, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes), lambda t: t):
        layer(x)
    moments = 2 * 4 * 8 if len(shape) == 4 else 0
    channels, groups, count = 2 * 8 + 2 * 8, 2 * 4, 1
    assert sum(sizes) == 4 * (x.numel() + moments + channels + groups + count)


def test_saves_at_most_4_1_bytes_per_element() -> None:
    x = torch.randn(2, 64, 28, 28, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes), lambda t: t):
        BatchChannelNorm2d(64)(x)
    assert sum(sizes) <= 4.1 * x.numel()


# ---- state ----


def test_state_has_the_official_names() -> None:
    for estimate in (True, False):
        state = BatchChannelNorm2d(8, num_groups=4, estimate=estimate).state_dict()
        shapes = {name: tuple(t.shape) for name, t in state.items()}
        assert shapes == {
            "weight": (1, 4, 1), "bias": (1, 4, 1), "bn.weight": (8,), "bn.bias": (8,),
            "bn.running_mean": (8,), "bn.running_var": (8,), "bn.num_batches_tracked": (),
        }  # fmt: skip


def test_the_official_speed_is_accepted_and_not_restored() -> None:
    layer = BatchChannelNorm2d(8, num_groups=4, estimate=True, moving_speed=0.2)
    layer.load_state_dict(layer.state_dict() | {"bn.estbn_moving_speed": torch.zeros(1)})
    assert layer.moving_speed == 0.2
    with pytest.raises(RuntimeError, match=r"bn\.other"):
        layer.load_state_dict(layer.state_dict() | {"bn.other": torch.zeros(1)})


def test_weights_from_before_batches_were_counted_are_accepted() -> None:
    """As torch's layers do; the published weights of the first residual networks have no counter."""
    for layer, prefix in ((EstimatedBatchNorm2d(8), ""), (BatchChannelNorm2d(8, num_groups=4), "bn.")):
        old = {name: torch.rand_like(t) for name, t in layer.state_dict().items() if t.is_floating_point()}
        layer.load_state_dict(old)
        torch.testing.assert_close(layer.state_dict()[f"{prefix}running_var"], old[f"{prefix}running_var"])
        now = layer.state_dict()  # its version says that it has a counter
        del now[f"{prefix}num_batches_tracked"]
        with pytest.raises(RuntimeError, match=r"Missing key.*num_batches_tracked"):
            layer.load_state_dict(now)


def test_batch_norm_converts_to_the_estimated_form() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, 1e-3))
    converted = convert(model, nn.BatchNorm2d, EstimatedBatchNorm2d, moving_speed=0.05)
    assert (converted[1].eps, converted[1].moving_speed) == (1e-3, 0.05)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(converted.eval()(x), model.eval()(x))


# ---- accumulation, checkpointing, processes ----


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("estimate", [True, False])
def test_checkpointing_moves_the_statistics_once(estimate: bool, use_reentrant: bool) -> None:
    plain, again = (build((3, 4, 2, 2), estimate=estimate) for _ in range(2))
    again.load_state_dict(plain.state_dict())
    for _ in range(2):
        x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
        grads = []
        for layer, run in (
            (plain, plain),
            (again, lambda x: checkpoint(again, x, use_reentrant=use_reentrant)),
        ):
            leaf = x.clone().requires_grad_()
            run(leaf).sin().sum().backward()
            grads.append([leaf.grad, *(p.grad for p in layer.parameters())])
        torch.testing.assert_close(grads[1], grads[0])
        torch.testing.assert_close(again.state_dict(), plain.state_dict())


def test_each_micro_batch_moves_the_estimates() -> None:
    whole, parts = (BatchChannelNorm1d(4, num_groups=2, estimate=True) for _ in range(2))
    x = torch.randn(4, 4) + 1
    whole(x)
    for part in x.split(2):
        parts(part)
    assert parts.bn.num_batches_tracked == 2
    assert not torch.allclose(parts.bn.running_mean, whole.bn.running_mean, rtol=1e-2)


CUTS = [3, 1]


def share(rank: int) -> dict[Any, Any]:
    """Run one process's rows of a batch in both forms; then without a group under DistributedDataParallel."""
    found: dict[Any, Any] = {}
    for estimate in (True, False):
        layer, x, direction = joined(estimate, dist.group.WORLD)
        part = x.split(CUTS)[rank].clone().requires_grad_()
        y = layer(part)
        y.backward(direction.split(CUTS)[rank])
        found[estimate] = (
            y.detach(), part.grad, [p.grad for p in layer.parameters()], dict(layer.bn.named_buffers())
        )  # fmt: skip
        before = {name: b.clone() for name, b in layer.bn.named_buffers()}
        layer(part[:0]).sum().backward()
        found[f"nothing, {estimate}"] = (before, dict(layer.bn.named_buffers()))
    # A step in which nobody has a sample is no warm start.
    layer = build((4, 4, 3, 2), estimate=True, warm_start=True, process_group=dist.group.WORLD)
    before = layer.bn.running_mean.clone()
    layer(x[:0])
    assert torch.equal(layer.bn.running_mean, before)
    layer(x)
    found["warm"] = layer.bn.running_mean.clone()
    groups = [dist.new_group([r]) for r in range(2)]
    with pytest.raises(ValueError, match="more than one value per channel"):
        build((1, 4, 1, 1), process_group=groups[rank])(x[:1, :, :1, :1])
    found["second"] = "no error"
    y = joined(False, dist.group.WORLD)[0](part)
    try:
        torch.autograd.grad(y.sin().sum(), part, create_graph=True)
    except RuntimeError as error:
        found["second"] = str(error)
    alone, x, _ = joined(True, None)
    model = DistributedDataParallel(alone)
    for _ in range(2):
        model(x.split(CUTS)[rank])
    found["local"] = alone.bn.running_mean.clone()
    return found


def joined(estimate: bool, group: dist.ProcessGroup | None) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(5)
    layer = build((4, 4, 3, 2), estimate=estimate, process_group=group)
    x, direction = torch.randn(2, 4, 4, 3, 2, dtype=torch.float64)
    return layer, x, direction


def test_two_processes_are_one_on_the_joined_batch(tmp_path: Path) -> None:
    processes = in_processes(share, folder=tmp_path)
    for estimate in (True, False):
        layer, x, direction = joined(estimate, None)
        x.requires_grad_()
        y = layer(x)
        y.backward(direction)
        ys, grads, weights, buffers = zip(*(found[estimate] for found in processes), strict=True)
        torch.testing.assert_close(torch.cat(ys), y.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(torch.cat(grads), x.grad, rtol=1e-9, atol=1e-11)
        total = [a + b for a, b in zip(*weights, strict=True)]
        torch.testing.assert_close(total, [p.grad for p in layer.parameters()], rtol=1e-9, atol=1e-11)
        for before, after in (found[f"nothing, {estimate}"] for found in processes):
            torch.testing.assert_close(after, before, rtol=0, atol=0)
        for own in buffers:
            torch.testing.assert_close(own, dict(layer.bn.named_buffers()), rtol=1e-9, atol=1e-11)
    assert all("no second derivative" in found["second"] for found in processes)
    for found in processes:
        torch.testing.assert_close(found["warm"], joined(True, None)[1].mean((0, 2, 3)))
    # Without a group the second process's estimates are overwritten by the first's before each forward.
    first, x, _ = joined(True, None)
    first(x[:3])
    once = first.bn.running_mean.clone()
    first(x[:3])
    torch.testing.assert_close(processes[0]["local"], first.bn.running_mean)
    lost = 0.9 * once + 0.1 * x[3:].mean((0, 2, 3))
    torch.testing.assert_close(processes[1]["local"], lost)


# ---- bad input ----


def test_arguments_stand_where_torch_has_them() -> None:
    layer = BatchChannelNorm2d(64, 1e-3, 0.2, False, True, "meta", torch.float64)
    assert (layer.eps, layer.momentum, layer.bn.weight, layer.num_groups) == (1e-3, 0.2, None, 32)
    assert layer.bn.running_mean.dtype == torch.float64
    assert layer.weight.device.type == "meta"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 5}, "num_groups must divide the channels.*has 8 channels, got num_groups=5"),
        ({"num_groups": 0}, "num_groups must divide"),
        ({"moving_speed": 1.5}, r"moving_speed must be in \[0, 1\]; got 1.5"),
        ({"moving_speed": math.nan}, "moving_speed must be in"),
        ({"num_groups": 1, "estimate": True, "momentum": 2.0}, r"momentum must be in \[0, 1\], or None"),
        ({"momentum": -0.1}, "momentum must be in"),
        ({"eps": -1.0}, "^eps must not be negative"),
        ({"batch_eps": -1.0}, "batch_eps must not be negative"),
        ({"channel_affine": "sample"}, "channel_affine must be None or one of"),
        ({"estimate": True, "track_running_stats": False}, "keeps running estimates"),
        ({"warm_start": True}, "pass estimate=True too"),
    ],
)  # fmt: skip
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchChannelNorm2d(8, **({"num_groups": 4} | options))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BatchChannelNorm2d(8, num_groups=2.0), r"num_groups must be an int; got 2\.0"),
        (lambda: BatchChannelNorm2d(8.0, num_groups=2), r"num_features must be an int; got 8\.0"),
        (lambda: EstimatedBatchNorm2d(8.0), r"num_features must be an int; got 8\.0"),
        # None would have meant batch statistics.
        (lambda: BatchChannelNorm1d(8, num_groups=2, moving_speed=None), "moving_speed must be a number"),
        (lambda: EstimatedBatchNorm2d(8, moving_speed=None), "moving_speed must be a number; got None"),
        (lambda: BatchChannelNorm2d(8, num_groups=2, batch_eps="0"), "batch_eps must be a number; got '0'"),
    ],
)
def test_settings_of_the_wrong_type(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (BatchChannelNorm2d(4, num_groups=2), (3, 4), r"BatchChannelNorm2d needs input \(N, C, H, W\)"),
        (BatchChannelNorm1d(4, num_groups=2), (3, 4, 2, 2), r"needs input \(N, C\) or \(N, C, L\)"),
        (EstimatedBatchNorm2d(4), (3, 4), r"EstimatedBatchNorm2d needs input \(N, C, H, W\)"),
        (BatchChannelNorm1d(4, num_groups=2), (3, 6), "has 6 channels, but running_mean.*num_features=6"),
        (EstimatedBatchNorm1d(4), (3, 6), "has 6 channels, but running_mean"),
        (BatchChannelNorm1d(4, num_groups=2), (1, 4), "more than one value per channel.*estimate=True"),
    ],
)
def test_inputs_that_do_not_fit(layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(shape))


@pytest.mark.bad_input
@pytest.mark.parametrize("layer", [BatchChannelNorm1d(4, num_groups=2), EstimatedBatchNorm1d(4)])
def test_input_must_be_floating_point(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"needs a floating point input; got torch\.int64"):
        layer(torch.ones(3, 4, dtype=torch.int64))


@pytest.mark.bad_input
def test_missing_arguments_of_the_functions() -> None:
    x, ones = torch.randn(4, 4), torch.ones(4)
    with pytest.raises(ValueError, match="pass both, or training=True"):
        batch_channel_norm(x, None, None, num_groups=2)
    with pytest.raises(ValueError, match="running_mean and running_var go together"):
        batch_channel_norm(x, ones, None, training=True, num_groups=2)
    with pytest.raises(ValueError, match="pass num_batches_tracked"):
        batch_channel_norm(x, ones, ones, training=True, momentum=None, num_groups=2)
    with pytest.raises(ValueError, match="one value per group or per channel"):
        batch_channel_norm(x, ones, ones, num_groups=2, channel_weight=torch.ones(3))
    with pytest.raises(ValueError, match="pass num_batches_tracked"):
        estimated_batch_norm(x, ones, ones, training=True, warm_start=True)
    with pytest.raises(ValueError, match=r"estimated_batch_norm normalises by running_mean.*got None"):
        estimated_batch_norm(x, None, None)
    with pytest.raises(TypeError, match="moving_speed must be a number; got None"):
        estimated_batch_norm(x, ones, ones, moving_speed=None)
    with pytest.raises(TypeError, match=r"running_mean must be floating point; got torch\.int64"):
        batch_channel_norm(x, ones.long(), ones, num_groups=2)


def test_batches_are_counted_only_where_the_count_is_used() -> None:
    x, mean, var = torch.randn(4, 4), torch.zeros(4), torch.ones(4)
    batch_channel_norm(x, mean, var, momentum=None, warm_start=True, num_groups=2)
    batch_channel_norm(x, mean, var, training=True, momentum=None, moving_speed=0.1, num_groups=2)
    estimated_batch_norm(x, mean, var, warm_start=True)
