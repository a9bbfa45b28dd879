"""Layers, optimizers and quantisers on a CUDA device: the CPU's values, without synchronisation.

These tests need a device. Elsewhere `FakeTensorMode` checks the device routes, for shapes but not for values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformance import layers, optimizers
from conformance.test_layers import assert_same, in_both_formats, outputs, step
from conformance.test_optimizers import FULLEST, STEPS, VARIANTS, close, feed, start
from trueup.nn import GhostBatchNorm2d, LayerNormLSTM, PowerNorm1d, adaptive_clip_grad_, convert
from trueup.optim import SAM, AdaClip, AdaGN, MomentumReset
from trueup.quantization import (
    fake_quantize_fp4,
    fake_quantize_int4,
    fake_quantize_int4_symmetric,
    quantize_linear_,
)

if not torch.cuda.is_available():
    pytest.skip("no CUDA device on this machine", allow_module_level=True)

LAYERS = pytest.mark.parametrize("case", layers.CASES, ids=str)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Disable TF32, to which float32 convolutions round their input by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.compiler.reset()


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise an error where an operation waits for the device, as `.item()` does."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def to_cpu(tensors: list[Tensor]) -> list[Tensor]:
    return [t.cpu() for t in tensors]


# ---- layers ----


@LAYERS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-11), (torch.float32, 1e-3, 1e-4)]
)
def test_layers_compute_what_they_do_on_the_cpu(
    case: layers.Case, training: bool, dtype: torch.dtype, rtol: float, atol: float
) -> None:
    for x in in_both_formats(case.example(dtype)):
        here, there = case.build(dtype, training=training), case.build(dtype, training=training).cuda()
        for _ in range(2):
            want, got = step(here, x), step(there, x.cuda())
            assert all(t.is_cuda for t in got)
            assert_same(to_cpu(got), want, rtol=rtol, atol=atol)


@LAYERS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_in_autocast_are_close_to_float32(case: layers.Case, dtype: torch.dtype) -> None:
    x = case.example().to(dtype)
    want = step(case.build(), x.float())
    layer = case.build().cuda()
    with torch.autocast("cuda", dtype):
        got = step(layer, x.cuda())
    assert got[0].dtype == dtype
    for ours, reference in zip(to_cpu(got), want, strict=True):
        error = (ours.double() - reference.double()).norm()
        assert error <= 0.02 * reference.double().norm() + 0.01


@LAYERS
@pytest.mark.parametrize("training", [True, False])
def test_layers_never_wait(case: layers.Case, training: bool) -> None:
    layer, x = case.build(training=training).cuda(), case.example().cuda().requires_grad_()
    directions = [torch.ones_like(y) for y in outputs(layer(x))]
    with no_waiting():
        torch.autograd.backward(outputs(layer(x)), directions)


def test_sequence_lengths_never_wait() -> None:
    layer, x = LayerNormLSTM(3, 5).cuda(), torch.randn(7, 4, 3, device="cuda")
    with no_waiting():
        output, _ = layer(x, lengths=[7, 1, 4, 0])
    want, _ = layer.cpu()(x.cpu(), lengths=[7, 1, 4, 0])
    torch.testing.assert_close(output.cpu(), want)


@pytest.mark.parametrize("case", [case for case in layers.CASES if case.inductor], ids=str)
def test_compiled_layers_compute_the_same(case: layers.Case) -> None:
    compiled = torch.compile(case.build().cuda(), fullgraph=True)
    x = case.example()
    assert_same(to_cpu(step(compiled, x.cuda())), step(case.build(), x))


def test_a_converted_model_stays_where_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).cuda()
    x = torch.randn(4, 3, 6, 6, device="cuda")
    converted = convert(model, nn.BatchNorm2d, GhostBatchNorm2d, ghost_batch_size=4)
    assert all(t.is_cuda for t in converted.state_dict().values())
    torch.testing.assert_close(converted(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("tokens", "channels", "groups"), [(20000, 96, 3), (7000, 512, 4), (70, 2100, 0), (3000, 1, 1)]
)
def test_power_norms_kernels_compute_what_its_operations_do(
    tokens: int, channels: int, groups: int, masked: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    here = PowerNorm1d(channels, group_num=groups or 1, group_scaling=bool(groups))
    there = copy.deepcopy(here).cuda()
    mask = torch.rand(tokens) > 0.7 if masked else None
    for _ in range(3):
        x, direction = torch.randn(2, tokens, channels).add(0.5).to(dtype)
        results = []
        for layer in (here, there):
            place = layer.weight.device
            leaf = (x.float() if layer is here else x).to(place, copy=True)
            y = layer(leaf.requires_grad_(), None if mask is None else mask.to(place))
            y.backward(direction.to(y))
            results.append([y, leaf.grad, layer.weight.grad, layer.bias.grad, *layer.buffers()])
            layer.zero_grad()
        for want, got in zip(*results, strict=True):
            error = (got.detach().cpu().double() - want.detach().double()).norm()
            assert error <= (3e-3 if got.dtype == torch.bfloat16 else 2e-5) * want.double().norm() + 1e-5


# ---- optimizers ----


def mirror(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().cuda()) for p in params]


def train_both(
    here: Callable[[], object], there: Callable[[], object], params: list[Any], mirrored: list[Any]
) -> None:
    """Step both with the same gradients, on the device without waiting for it."""
    for number in range(STEPS):
        feed(params, number)
        for p, q in zip(params, mirrored, strict=True):
            q.grad = torch.empty_like(q).copy_(p.grad)
        here()
        with no_waiting():
            there()


@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_optimizers_step_as_on_the_cpu_and_never_wait(
    case: optimizers.Case, hyper: dict[str, Any], dtype: torch.dtype
) -> None:
    params = start(dtype=dtype)
    mirrored = mirror(params)
    here, there = case.build(params, **hyper), case.build(mirrored, **hyper)
    train_both(here.step, there.step, params, mirrored)
    assert all(value.is_cuda for p in mirrored for value in there.state[p].values())
    tolerance = {"rtol": 2e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    close(to_cpu(mirrored), params, **tolerance)


@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_compiled_steps_are_the_same(case: optimizers.Case, hyper: dict[str, Any]) -> None:
    params = start(dtype=torch.float32)
    mirrored = mirror(params)
    here, there = case.build(params, **hyper), case.build(mirrored, **hyper)
    compiled = torch.compile(there.step, fullgraph=True)
    for number in range(STEPS):
        feed(params, number)
        for p, q in zip(params, mirrored, strict=True):
            q.grad = p.grad.cuda()
        here.step()
        compiled()
    close(to_cpu(mirrored), params, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_the_grad_scaler_skips_overflow(case: optimizers.Case, hyper: dict[str, Any]) -> None:
    (p,) = mirror(start([(4, 6)], torch.float32))
    optimizer, scaler = case.build([p], **hyper), torch.amp.GradScaler("cuda", init_scale=8.0)
    before = p.detach().clone()
    for value in (torch.inf, 1.0):
        assert torch.equal(p, before)
        p.grad = torch.full_like(p, value)
        scaler.scale(torch.zeros((), device="cuda"))
        scaler.step(optimizer)
        scaler.update()
    assert not torch.equal(p, before)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_perturbs_as_on_the_cpu_and_never_waits(adaptive: bool) -> None:
    params = start([(4, 6), (5,), (3, 2, 3, 3)])
    mirrored = mirror(params)

    def stepper(params: list[nn.Parameter]) -> Callable[[], None]:
        sam = SAM(torch.optim.SGD(params, 0.1, momentum=0.9), 0.5, adaptive=adaptive)

        def run() -> None:
            with sam.perturbed():
                for p in params:
                    p.grad = p.grad + p.detach()  # depends on where the weights are
            sam.optimizer.step()

        return run

    train_both(stepper(params), stepper(mirrored), params, mirrored)
    close(to_cpu(mirrored), params, rtol=1e-10, atol=1e-12)


def test_gradient_transforms_act_as_on_the_cpu_and_never_wait() -> None:
    params = start([(4, 6), (5,), (3, 2, 3, 3)])
    mirrored = mirror(params)

    def stepper(params: list[nn.Parameter]) -> Callable[[], object]:
        optimizer = torch.optim.SGD(params, 0.1, momentum=0.9, foreach=True)
        for transform in (AdaClip, AdaGN):
            transform(optimizer)
        MomentumReset(optimizer, interval=2)
        return optimizer.step

    train_both(stepper(params), stepper(mirrored), params, mirrored)
    close(to_cpu(mirrored), params, rtol=1e-9, atol=1e-11)


def test_adaptive_clipping_is_as_on_the_cpu_and_never_waits() -> None:
    params = start([(4, 6), (5,), (3, 2, 3, 3)])
    mirrored = mirror(params)
    train_both(
        lambda: adaptive_clip_grad_(params, 0.1), lambda: adaptive_clip_grad_(mirrored, 0.1), params, mirrored
    )
    close([q.grad.cpu() for q in mirrored], [p.grad for p in params], rtol=1e-12, atol=1e-14)


# ---- quantisation ----


@pytest.mark.parametrize("quantize", [fake_quantize_fp4, fake_quantize_int4, fake_quantize_int4_symmetric])
def test_quantisers_round_as_on_the_cpu_and_never_wait(quantize: Callable[..., Tensor]) -> None:
    x = torch.randn(64, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    on_device = x.cuda().requires_grad_()
    with no_waiting():
        y = quantize(on_device)
        y.backward(torch.ones_like(y))
    torch.testing.assert_close(y.cpu(), quantize(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(on_device.grad, torch.ones_like(y))


@pytest.mark.parametrize("scheme", ["fp4", "int4"])
def test_a_quantised_model_trains_on_the_device(scheme: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 256))
    here, there = (quantize_linear_(copy.deepcopy(model), scheme=scheme, group_size=8) for _ in range(2))
    there.cuda()
    x = torch.randn(4, 256)
    got, want = there(x.cuda()), here(x)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-4)
    with no_waiting():
        there(x.cuda(non_blocking=True)).sum().backward()
    assert all(p.grad is not None and p.grad.is_cuda for p in there.parameters())
