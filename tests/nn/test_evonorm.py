"""EvoNorm's mathematics: the equations as printed, their invariances and their cost."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from processes import in_processes
from trueup import nn as layers
from trueup.nn import (
    EvoNorm2dB0,
    EvoNorm2dB1,
    EvoNorm2dB2,
    EvoNorm2dS0,
    EvoNorm2dS0a,
    EvoNorm2dS1,
    EvoNorm2dS1a,
    EvoNorm2dS2,
    EvoNorm2dS2a,
    _evonorm,
    evonorm_b,
    evonorm_s,
)

BATCH = {"B0": EvoNorm2dB0, "B1": EvoNorm2dB1, "B2": EvoNorm2dB2}
SAMPLE = {
    "S0": EvoNorm2dS0, "S0a": EvoNorm2dS0a, "S1": EvoNorm2dS1,
    "S1a": EvoNorm2dS1a, "S2": EvoNorm2dS2, "S2a": EvoNorm2dS2a,
}  # fmt: skip
SHAPES = [(3, 8, 7), (3, 8, 4, 3), (1, 8, 2, 2), (2, 8, 2, 3, 2), (4, 8, 1, 1)]


def printed_b(layer: nn.Module, x: Tensor, left_var: Tensor | None = None) -> Tensor:
    """Compute B0, B1 and B2 as in the paper, independently of the library."""
    space, column = tuple(range(2, x.dim())), (-1, *[1] * (x.dim() - 2))
    if left_var is None:
        left_var = x.var((0, *space), correction=0)
    left = (left_var + layer.eps).sqrt().view(column)
    std = (x.var(space, correction=0, keepdim=True) + layer.eps).sqrt()
    rms = (x.square().mean(space, keepdim=True) + layer.eps).sqrt()
    right = {
        EvoNorm2dB0: lambda: layer.v.view(column) * x + std,
        EvoNorm2dB1: lambda: (x + 1) * rms,
        EvoNorm2dB2: lambda: rms - x,
    }[type(layer)]()
    return x / torch.maximum(left, right) * layer.weight.view(column) + layer.bias.view(column)


def printed_s(layer: nn.Module, x: Tensor) -> Tensor:
    """Compute S0, S1, S2 and the "a" layers as in the paper and in timm, independently of the library."""
    column, kind = (-1, *[1] * (x.dim() - 2)), type(layer).__name__[-3:].strip("d")
    z = x
    if layer.apply_act:
        z = x * torch.sigmoid(layer.v.view(column) * x) if "S0" in kind else layer.act(x)
    if layer.apply_act or kind.endswith("a"):
        grouped = x.reshape(len(x), layer.groups, -1)
        power = grouped.square().mean(2) if "S2" in kind else grouped.var(2, correction=0)
        root = (power + layer.eps).sqrt().repeat_interleave(x.shape[1] // layer.groups, 1)
        z = z / root.view(*root.shape, *[1] * (x.dim() - 2))
    return z * layer.weight.view(column) + layer.bias.view(column)


def randomized(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p))
        for b in layer.buffers():
            b.mul_(2.5)
    return layer


def example(shape: tuple[int, ...], layout: str = "contiguous") -> Tensor:
    x = torch.randn(shape, dtype=torch.float64) * 2 + 0.5
    return x if layout == "contiguous" else x.movedim(1, -1).contiguous().movedim(-1, 1)


def derivatives(y: Tensor, x: Tensor, layer: nn.Module, direction: Tensor | None = None) -> list[Tensor]:
    if direction is None:
        direction = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), direction)]


# ---- the equations ----


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", BATCH)
def test_batch_forms_are_the_printed_equations(form: str, shape: tuple[int, ...], layout: str) -> None:
    layer = randomized(BATCH[form](8, momentum=0.3, eps=1e-3, dtype=torch.float64))
    running = layer.running_var.clone()
    for _ in range(2):
        x = example(shape, layout).requires_grad_()
        got, want = (derivatives(f(x), x, layer) for f in (layer, partial(printed_b, layer)))
        torch.testing.assert_close(got, want)
        running = 0.7 * running + 0.3 * x.detach().movedim(1, -1).reshape(-1, 8).var(0)
        torch.testing.assert_close(layer.running_var, running)
    layer.eval()
    got = derivatives(layer(x), x, layer)
    torch.testing.assert_close(got, derivatives(printed_b(layer, x, running), x, layer))
    torch.testing.assert_close(layer.running_var, running)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("form", SAMPLE)
def test_sample_forms_are_the_printed_equations(
    form: str, apply_act: bool, shape: tuple[int, ...], layout: str
) -> None:
    options = {"act_layer": nn.ReLU} if form == "S1a" else {}
    layer = SAMPLE[form](8, 2, None, apply_act, eps=1e-3, dtype=torch.float64, **options)
    randomized(layer)
    x = example(shape, layout).requires_grad_()
    got, want = (derivatives(f(x), x, layer) for f in (layer, partial(printed_s, layer)))
    torch.testing.assert_close(got, want)
    assert torch.equal(layer.eval()(x), got[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", [*BATCH, *SAMPLE])
def test_the_kernels_compute_the_equations_of_the_methods_file(
    form: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = BATCH[form] if form in BATCH else partial(SAMPLE[form], groups=2)
    pair = [build(8, dtype=torch.float64).train(training) for _ in range(2)]
    pair[1].load_state_dict(randomized(pair[0]).state_dict())
    x, results = example((3, 8, 4, 3)).requires_grad_(), []
    for layer, composite in zip(pair, (False, True), strict=True):
        monkeypatch.setattr(_evonorm, "must_use_composite_ops", lambda composite=composite: composite)
        y = layer(x)
        assert ("Fused" in y.grad_fn.next_functions[0][0].name()) != composite
        results.append([*derivatives(y, x, layer), *layer.buffers()])
    torch.testing.assert_close(*results)


@given(
    samples=st.integers(1, 5),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 3),
    spatial=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    form=st.sampled_from([*BATCH, *SAMPLE]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.sampled_from([1e-5, 1e-3, 1.0]),
    magnitude=st.sampled_from([1e-3, 1.0, 100.0]),
)
@settings(max_examples=100, deadline=None)
def test_any_shape_and_magnitude(
    samples: int,
    groups: int,
    group_size: int,
    spatial: list[int],
    form: str,
    dtype: torch.dtype,
    eps: float,
    magnitude: float,
) -> None:
    channels = groups * group_size
    x = (torch.randn(samples, channels, *spatial, dtype=dtype) * magnitude).requires_grad_()
    if form in BATCH:
        layer, printed = BATCH[form](channels, eps=eps, dtype=dtype), printed_b
        if samples * math.prod(spatial) == 1:
            with pytest.raises(ValueError, match="more than one value per channel"):
                layer(x)
            return
    else:
        layer, printed = SAMPLE[form](channels, group_size=group_size, eps=eps, dtype=dtype), printed_s
    randomized(layer)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    for got, want in zip(
        derivatives(layer(x), x, layer), derivatives(printed(layer, x), x, layer), strict=True
    ):
        assert (got - want).abs().max() <= tolerance * (1 + want.abs().max())


@pytest.mark.parametrize("form", BATCH)
def test_without_activation_the_batch_forms_scale_and_shift(form: str) -> None:
    layer = randomized(BATCH[form](8, apply_act=False, dtype=torch.float64))
    x = example((3, 8, 2, 2))
    before = layer.running_var.clone()
    want = x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), want)
    assert torch.equal(layer.running_var, before)


def test_epsilon_is_added_under_the_root() -> None:
    """Values +-0.1 have variance 0.01; with eps 0.03 the root is 0.2."""
    x = torch.tensor([0.1, -0.1]).double().view(1, 1, 2)
    one = torch.ones(1).double()
    for form in ("S1", "S2"):
        y = evonorm_s(x, one, 0 * one, groups=1, eps=0.03, form=form, activation=None)
        torch.testing.assert_close(y, x / 0.2)
    # v = 0: both sides are that root.
    y = evonorm_b(x, None, one, 0 * one, 0 * one, training=True, eps=0.03)
    torch.testing.assert_close(y, x / 0.2)


def test_an_exact_tie_sends_half_the_gradient_to_either_side() -> None:
    """One sample and v = 0: the batch's deviation is the sample's."""
    layer = EvoNorm2dB0(2, dtype=torch.float64)
    nn.init.zeros_(layer.v)
    x = example((1, 2, 3, 3)).requires_grad_()
    got, want = derivatives(layer(x), x, layer), derivatives(printed_b(layer, x), x, layer)
    torch.testing.assert_close(got, want)
    half = torch.sin(torch.arange(18).double()).view(2, 9) * x[0].flatten(1).square() / 2
    torch.testing.assert_close(
        got[-1], -(half / (x[0].flatten(1).var(1, correction=0) + 1e-5).unsqueeze(1)).sum(1)
    )


@pytest.mark.parametrize("form", ["S1a", "S2a"])
def test_without_activation_the_scale_of_a_group_does_not_matter(form: str) -> None:
    layer = SAMPLE[form](6, groups=3, apply_act=False, eps=1e-12, dtype=torch.float64)
    x = example((2, 6, 3, 3))
    scales = torch.tensor([1.0, 1.0, 20.0, 20.0, 0.3, 0.3]).double().view(-1, 1, 1)
    torch.testing.assert_close(layer(x * scales), layer(x))


def test_no_form_subtracts_a_mean() -> None:
    for layer in (EvoNorm2dS0(4, groups=2), EvoNorm2dB0(4)):
        y = layer(torch.randn(8, 4, 6, 6) + 5)
        assert y.mean() > 0.5


def test_sample_statistics_do_not_see_other_samples() -> None:
    x, layer = torch.randn(3, 4, 2, 2), EvoNorm2dS0(4, groups=2)
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


# ---- precision ----


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("mean", "sd"), [(100.0, 1e-2), (0.0, 1e-5)])
@pytest.mark.parametrize("form", ["S0", "S2", "B0", "B1", "B2"])
def test_statistics_keep_their_digits(form: str, mean: float, sd: float, layout: str) -> None:
    x = (mean + sd * torch.randn(4, 8, 14, 14)).double()
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    kind, printed = (BATCH, printed_b) if form in BATCH else (partial(SAMPLE[form], groups=2), printed_s)
    kind = kind[form] if form in BATCH else kind
    layer = kind(8, eps=1e-12)
    x = x.float()
    want = printed(layer.double(), x.double())
    y = layer.float()(x)
    # B2 subtracts x from its root mean square; half an ulp of 100 is 4e-4 of the deviation.
    rtol = 3e-5 if mean == 0 else 2e-3 if form == "B2" else 1e-4
    torch.testing.assert_close(y.double(), want, rtol=rtol, atol=0)
    if form in BATCH:
        var = x.double().var((0, 2, 3))
        torch.testing.assert_close(layer.running_var.double(), 0.9 + 0.1 * var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["S0", "S2", "B0", "B1", "B2"])
def test_half_types_take_their_statistics_in_float32(form: str, dtype: torch.dtype) -> None:
    layer = BATCH[form](8) if form in BATCH else SAMPLE[form](8, groups=2)
    randomized(layer)
    # Squares of these overflow in float16, and so do B1's products.
    x = (torch.randn(4, 8, 6, 6) * 300).to(dtype)
    assert dtype == torch.bfloat16 or x.square().isinf().any()
    y = layer(x)
    assert y.dtype == dtype
    (printed_y,) = ((printed_b if form in BATCH else printed_s)(layer, x.float()),)
    torch.testing.assert_close(y.float(), printed_y, rtol=2**-7, atol=2**-7)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


# ---- cost ----


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    return sum(saved.values())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_saves_the_input_and_little_else(layout: torch.memory_format) -> None:
    x = torch.randn(4, 64, 16, 16).contiguous(memory_format=layout).requires_grad_()
    values, vector, instances, groups = x.numel() * 4, 64 * 4, 4 * 64 * 4, 4 * 32 * 4
    assert saved_bytes(EvoNorm2dS0(64), x) == values + 3 * vector + 2 * groups
    assert saved_bytes(EvoNorm2dS1(64), x) == values + 2 * vector + 2 * groups
    # The channels' mean, variance and their count too.
    assert saved_bytes(EvoNorm2dB0(64), x) == values + 3 * vector + 2 * instances + 2 * vector + 4
    assert saved_bytes(EvoNorm2dB2(64), x) == values + 2 * vector + 2 * instances + 2 * vector + 4


@pytest.mark.parametrize("kind", [*BATCH.values(), *SAMPLE.values()])
def test_saves_at_most_4_1_bytes_per_element(kind: type[nn.Module]) -> None:
    x = torch.randn(8, 64, 28, 28, requires_grad=True)
    assert saved_bytes(kind(64), x) <= 4.1 * x.numel()


class Copies(TorchDispatchMode):
    """Count the copies of tensors with at least `elements` elements."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        copying = (
            torch.ops.aten.clone.default,
            torch.ops.aten.copy_.default,
            torch.ops.aten._to_copy.default,
        )
        self.count += func in copying and out.numel() >= self.elements
        return out


@pytest.mark.parametrize("shape", [(3, 32, 5, 4), (2, 64, 40, 40), (2, 32, 2, 3, 4)])  # the second in chunks
@pytest.mark.parametrize("form", ["B0", "B1", "B2", "S0", "S1", "S2"])
def test_channels_last_is_not_copied(form: str, shape: tuple[int, ...]) -> None:
    """A transposed copy would take as long as five passes over the values."""
    layer = randomized(getattr(layers, f"EvoNorm2d{form}")(shape[1], dtype=torch.float64))
    x, direction = example(shape), example(shape)
    want = derivatives(layer(x.requires_grad_()), x, layer, direction)
    last, direction = (t.detach().movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, direction))
    with Copies(last[0].numel()) as copies:
        got = derivatives(layer(last.requires_grad_()), last, layer, direction)
    assert copies.count == 0
    assert got[0].stride() == got[1].stride() == last.stride()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("form", ["B0", "S0"])
def test_some_channels_of_channels_last_input(form: str) -> None:
    """Values with gaps between the positions, as `chunk` leaves them, and a gradient in another layout."""
    layer = randomized(getattr(layers, f"EvoNorm2d{form}")(32, dtype=torch.float64))
    x = example((3, 64, 5, 4), "channels_last")[:, 16:48].requires_grad_()
    got = derivatives(layer(x), x, layer)
    dense = x.detach().contiguous().requires_grad_()
    torch.testing.assert_close(got, derivatives(layer(dense), dense, layer))
    assert got[0].is_contiguous(memory_format=torch.channels_last)


# ---- stateful, and distributed ----


def test_every_training_forward_moves_the_running_variance_once() -> None:
    """Also under gradient accumulation, where each micro-batch is a forward."""
    layer, (first, second) = EvoNorm2dB0(3, momentum=0.5), torch.randn(2, 4, 3, 5, 5)
    layer(first).sum().backward()
    layer(second).sum().backward()
    want = 0.25 + 0.25 * first.var((0, 2, 3)) + 0.5 * second.var((0, 2, 3))
    torch.testing.assert_close(layer.running_var, want)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_moves_it_once_and_changes_nothing(use_reentrant: bool) -> None:
    """As plain training; `BatchNorm`, whose statistics the second forward moves again, is the contrast."""
    x, direction = torch.randn(2, 4, 3, 5, 5)
    for kind, same in ((EvoNorm2dB0, True), (nn.BatchNorm2d, False)):
        plain, checkpointed = (nn.Sequential(kind(3), nn.Conv2d(3, 3, 1)) for _ in range(2))
        checkpointed.load_state_dict(plain.state_dict())
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        plain(a).backward(direction)
        checkpoint(checkpointed, b, use_reentrant=use_reentrant).backward(direction)
        torch.testing.assert_close(a.grad, b.grad)
        assert torch.equal(plain[0].running_var, checkpointed[0].running_var) == same


def train_apart(rank: int, x: Tensor, direction: Tensor) -> dict[str, list[Tensor]]:
    """Train one of two processes on its part of the batch: layers by cut and form, then data-parallel."""
    results: dict[str, list[Tensor]] = {}
    for cuts in ([3, 2], [5, 0]):
        for form, kind in BATCH.items():
            torch.manual_seed(1)
            layer = randomized(kind(3, dtype=x.dtype, process_group=dist.group.WORLD))
            part = x.split(cuts)[rank].clone().requires_grad_()
            y = layer(part)
            y.backward(direction.split(cuts)[rank])
            grads = [p.grad for p in layer.parameters()]
            results[f"{cuts}{form}"] = [y.detach(), part.grad, *grads, layer.running_var.clone()]
    before = layer.running_var.clone()
    nothing = x[:0].clone().requires_grad_()
    layer.zero_grad()
    layer(nothing).sum().backward()
    assert torch.equal(layer.running_var, before)
    assert not any(p.grad.any() for p in layer.parameters())
    if rank == 0:
        again = layer(part)
        with pytest.raises(RuntimeError, match="process_group has no second derivative"):
            torch.autograd.grad(again.square().sum(), part, create_graph=True)
    else:
        layer(part)
    layer.eval()
    if rank == 0:  # evaluation does not communicate
        layer(part)

    for group in (dist.group.WORLD, None):
        model = nn.parallel.DistributedDataParallel(EvoNorm2dB0(3, dtype=x.dtype, process_group=group))
        model(x.split([3, 2])[rank]).backward(direction.split([3, 2])[rank])
        model(x)  # the buffers are broadcast before a forward
        results[f"ddp{group is None}"] = [model.module.running_var, model.module.weight.grad]
    return results


def test_two_processes_equal_one_on_the_joined_batch(tmp_path: Path) -> None:
    x, direction = example((5, 3, 4, 4)), example((5, 3, 4, 4))
    ours, theirs = in_processes(train_apart, x, direction, folder=tmp_path)
    for form, kind in BATCH.items():
        torch.manual_seed(1)
        layer = randomized(kind(3, dtype=x.dtype))
        joined = x.clone().requires_grad_()
        y = layer(joined)
        y.backward(direction)
        for cuts in ("[3, 2]", "[5, 0]"):
            a, b = ours[cuts + form], theirs[cuts + form]
            torch.testing.assert_close(torch.cat([a[0], b[0]]), y.detach())
            torch.testing.assert_close(torch.cat([a[1], b[1]]), joined.grad)
            for p, mine, other in zip(layer.parameters(), a[2:-1], b[2:-1], strict=True):
                torch.testing.assert_close(mine + other, p.grad)
            torch.testing.assert_close([a[-1], b[-1]], [layer.running_var] * 2)

    # Data-parallel, one step and one more forward on all of x in each process.
    def after(*batches: Tensor) -> Tensor:
        layer = EvoNorm2dB0(3, dtype=x.dtype)
        for batch in batches:
            layer(batch)
        return layer.running_var

    for saved in (ours, theirs):
        torch.testing.assert_close(saved["ddpFalse"][0], after(x, torch.cat([x, x])))
        torch.testing.assert_close(saved["ddpTrue"][0], after(x[:3], x))
    torch.testing.assert_close(ours["ddpFalse"][1], theirs["ddpFalse"][1])


# ---- drop-in ----


def test_arguments_have_the_positions_of_timm_and_torch() -> None:
    layer = EvoNorm2dB0(6, False, 0.2, 1e-3, "meta", torch.float64)
    assert (layer.apply_act, layer.momentum, layer.eps, layer.v) == (False, 0.2, 1e-3, None)
    assert layer.running_var.device.type == "meta"
    assert layer.running_var.dtype == torch.float64
    layer = EvoNorm2dS0(6, 3, None, True, 1e-3, "meta", torch.float64)
    assert (layer.groups, layer.apply_act, layer.eps, layer.v.dtype) == (3, True, 1e-3, torch.float64)
    layer = EvoNorm2dS1(6, 3, None, True, nn.ReLU, 1e-3)
    assert (type(layer.act), layer.eps) == (nn.ReLU, 1e-3)
    assert EvoNorm2dS0(12, 32, 4).groups == 3
    for name, kind in SAMPLE.items():
        assert kind(32).eps == (1e-3 if name.endswith("a") else 1e-5)


@pytest.mark.parametrize("name", [*BATCH, *SAMPLE])
def test_state_is_named_as_in_timm(name: str) -> None:
    kind = getattr(layers, f"EvoNorm2d{name}")
    names = ["weight", "bias", *(["v"] if "0" in name else []), *(["running_var"] if "B" in name else [])]
    state = kind(32).state_dict()
    assert list(state) == names
    assert all(torch.equal(t, torch.full((32,), float(n != "bias"))) for n, t in state.items())
    assert "v" not in kind(32, apply_act=False).state_dict()


def test_groups_that_do_not_divide() -> None:
    message = (
        r"EvoNorm2dS0 needs num_features divisible by groups; got num_features=30, groups=32: pass groups=30"
    )
    with pytest.raises(ValueError, match=message):
        EvoNorm2dS0(30)
    assert EvoNorm2dS0(30, variant="official").groups == 30
    for kind in SAMPLE.values():
        assert kind(48, variant="official").groups == 24
    with pytest.raises(ValueError, match=r"divisible by group_size; got num_features=30, group_size=4"):
        EvoNorm2dS1(30, group_size=4)
    with pytest.raises(ValueError, match=r"evonorm_s needs .*num_features=3, groups=2: pass groups=1"):
        evonorm_s(torch.ones(1, 3, 2), *torch.ones(3, 3), groups=2)


def test_an_activation_never_changes_the_input() -> None:
    x = torch.randn(3, 4, 5)
    layer = EvoNorm2dS1(4, groups=2, act_layer=lambda: nn.Sequential(nn.ReLU(inplace=True)))
    before = x.clone()
    torch.testing.assert_close(layer(x), EvoNorm2dS1(4, groups=2, act_layer=nn.ReLU)(before))
    assert torch.equal(x, before)


def test_repr_names_its_settings() -> None:
    assert repr(EvoNorm2dB0(3)) == "EvoNorm2dB0(3, apply_act=True, momentum=0.1, eps=1e-05)"
    assert "8, groups=4, apply_act=True, eps=1e-05" in repr(EvoNorm2dS1(8, groups=4))


def test_empty_batches_are_legal_without_and_within_a_batch_dimension() -> None:
    for shape in [(0, 4, 2, 2), (2, 4, 0, 2)]:
        for layer in (EvoNorm2dB0(4), EvoNorm2dS0(4, groups=2)):
            layer(torch.ones(shape)).sum().backward()
            assert not layer.v.grad.any()


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: EvoNorm2dB0(3, momentum=1.5), ValueError, r"momentum must be in \[0, 1\]; got 1.5"),
        (lambda: EvoNorm2dB0(3, momentum=math.nan), ValueError, "momentum must be"),
        (lambda: EvoNorm2dB0(3, momentum=None), ValueError, "got None: EvoNorm counts no batches"),
        (lambda: EvoNorm2dB0(3, eps=0.0), ValueError, "eps must be positive.*got 0.0"),
        (lambda: EvoNorm2dS0(32, eps=-1e-5), ValueError, "eps must be positive"),
        (lambda: EvoNorm2dS0(32, eps=math.nan), ValueError, "eps must be positive"),
        (lambda: EvoNorm2dS0(0), ValueError, "num_features must be at least 1; got 0"),
        (lambda: EvoNorm2dS0(32, groups=0), ValueError, "groups=0: pass groups=1"),
        (lambda: EvoNorm2dS0(32, groups=2.0), TypeError, "groups must be an int; got 2.0"),
        (lambda: EvoNorm2dS0(32, group_size=0), ValueError, "group_size=0"),
        (lambda: EvoNorm2dS0(32, group_size=2.0), TypeError, "group_size must be an int; got 2.0"),
        (lambda: EvoNorm2dS0(32.0), TypeError, r"num_features must be an int; got 32\.0"),
        (lambda: EvoNorm2dB0(3, momentum="0.1"), TypeError, "momentum must be a number; got '0.1'"),
        (lambda: EvoNorm2dB0(3, eps=None), TypeError, "eps must be a number; got None"),
        (lambda: EvoNorm2dS0(32, variant="timm"), ValueError, r"variant must be one of .*; got 'timm'"),
        (lambda: EvoNorm2dS1(32, act_layer=nn.ReLU()), TypeError, r"got ReLU\(\): pass its class"),
    ],
)
def test_settings_out_of_range(build: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.bad_input
@pytest.mark.parametrize("layer", [EvoNorm2dB0(4), EvoNorm2dS1(4, groups=2), EvoNorm2dB1(4, apply_act=False)])
def test_inputs_that_do_not_fit(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"needs input \(N, C, H, W\).*got shape \(4, 4\)"):
        layer(torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"has 5 channels, but \w+ has shape \(4,\).*num_features=5"):
        layer(torch.ones(4, 5, 2, 2))
    with pytest.raises(TypeError, match=r"floating point input; got torch\.int64"):
        layer(torch.ones(4, 4, 2, 2, dtype=torch.int64))


def test_one_value_per_channel_has_no_variance() -> None:
    x = torch.randn(1, 4, 1, 1)
    with pytest.raises(ValueError, match=r"EvoNorm-B0 needs more than one value per channel.*an S form"):
        EvoNorm2dB0(4)(x)
    assert EvoNorm2dB0(4).eval()(x).isfinite().all()
    assert EvoNorm2dB0(4)(torch.randn(1, 4, 2, 1)).isfinite().all()
    assert EvoNorm2dS0(4, groups=2)(x).isfinite().all()


@pytest.mark.bad_input
def test_the_functions_refuse_bad_arguments() -> None:
    x, one = torch.randn(2, 4, 3), torch.ones(4)
    with pytest.raises(ValueError, match=r"S0 with an activation, need v.*got no v for form='S0': pass v$"):
        evonorm_s(x, one, one, groups=2)
    with pytest.raises(ValueError, match="got a v for form='S1': pass v=None"):
        evonorm_s(x, one, one, one, groups=2, form="S1")
    with pytest.raises(ValueError, match=r"S0 activates by .* use form='S1'"):
        evonorm_s(x, one, one, one, groups=2, activation=torch.relu)
    with pytest.raises(TypeError, match=r"running_var must be floating point; got torch\.int64"):
        evonorm_b(x, one.long(), one, one, one)
    with pytest.raises(ValueError, match=r"form must be one of \('S0', 'S1', 'S2'\); got 'S3'"):
        evonorm_s(x, one, one, groups=2, form="S3")
    with pytest.raises(ValueError, match=r"B0, .*need v.*got no v for form='B0'"):
        evonorm_b(x, one, one, one)
    with pytest.raises(ValueError, match=r"form must be one of \('B0', 'B1', 'B2'\); got 'B3'"):
        evonorm_b(x, one, one, one, form="B3")
    with pytest.raises(ValueError, match="pass it, or training=True"):
        evonorm_b(x, None, one, one, one)
