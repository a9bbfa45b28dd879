"""Layers and optimizers on a CUDA device, eager and compiled, against torch's own; without one, no rows.

The bounds are for a device of an H200's speed. At these sizes the layers' compiled forms take the device's
time; what is eager, and the optimizers, take that of launching kernels, which is the processor's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.adamp import (
    PLAIN,
    Shapes,
    adamp,
    parameters,
    plain_adamp,
    plain_sgdp,
    resnet50,
    sgdp,
    transformer,
)
from benchmarks.batch_channel_norm import training_step
from benchmarks.fake_quantization import official_fp4, official_int4
from benchmarks.harness import Row
from benchmarks.layer_norm import gru_loop, lstm_loop
from benchmarks.sam import perturb_and_restore
from benchmarks.stable_spam import plain_spam, plain_stable_spam, spam, stable_spam
from trueup.nn import (
    BatchChannelNorm2d,
    EvoNorm2dB0,
    EvoNorm2dS0,
    GhostBatchNorm2d,
    LayerNormGRU,
    LayerNormLSTM,
    PowerNorm1d,
)
from trueup.optim import SAM
from trueup.quantization import fake_quantize_fp4, fake_quantize_int4


def rows() -> Iterator[Row]:
    if not torch.cuda.is_available():
        return
    yield from layers()
    yield from optimizers()
    yield from quantisers()
    yield from recurrent()


def layers() -> Iterator[Row]:
    """Of sizes at which the device, and not the launch of its kernels, takes the time."""
    images, tokens = (1024, 64, 56, 56), (4096, 64, 512)
    bn, bn_silu = nn.BatchNorm2d(64), nn.Sequential(nn.BatchNorm2d(64), nn.SiLU())
    for layer, peer, shape, eager, compiled, both in (
        (EvoNorm2dS0(64), bn_silu, images, 1.9, 0.5, 1.2),
        (EvoNorm2dB0(64), bn_silu, images, 2.5, 0.6, 1.4),
        (BatchChannelNorm2d(64, num_groups=32), bn, images, 0.9, 0.6, 1.5),
        (GhostBatchNorm2d(64, ghost_batch_size=32), bn, images, 0.8, 0.6, 1.8),
        (PowerNorm1d(512, group_num=4, batch_first=False), nn.RMSNorm(512), tokens, 3.2, 1.8, 2.2),
    ):
        layer.cuda()
        peer.cuda()
        x, direction = torch.randn(2, *shape, device="cuda")
        x.requires_grad_()
        what = f"{type(layer).__name__} forward + backward, {'x'.join(map(str, shape))}"
        ours, theirs = training_step(layer, x, direction), training_step(peer, x, direction)
        ours_compiled, theirs_compiled = (
            training_step(torch.compile(module, fullgraph=True), x, direction) for module in (layer, peer)
        )
        name = "nn.BatchNorm2d + SiLU" if peer is bn_silu else f"nn.{type(peer).__name__}"
        yield Row(what, name, eager, ours, theirs)
        yield Row(f"{what}, compiled", name, compiled, ours_compiled, theirs)
        yield Row(f"{what}, compiled", f"{name}, compiled", both, ours_compiled, theirs_compiled)
        torch.compiler.reset()


def optimizers() -> Iterator[Row]:
    """Against the plain functions, as on the CPU; torch's fused AdamW takes 14 to 36 times less than ours."""
    peer = PLAIN
    for name, shapes in (("ResNet-50", resnet50()), ("12 x 768 transformer", transformer())):
        for optimizer, plain, bound in (
            (adamp, plain_adamp, 0.8),
            (sgdp, plain_sgdp, 0.8),
            (stable_spam, plain_stable_spam, 0.5),
            (spam, plain_spam, 2.0),
        ):
            ours, theirs = optimizer(on_device(shapes)), plain(on_device(shapes))
            yield Row(f"{type(ours).__name__} step, {name}", peer, bound, ours.step, theirs.step)
    sgd = torch.optim.SGD(on_device(resnet50()), 0.0, momentum=0.9, foreach=True)
    sam = SAM(torch.optim.SGD(on_device(resnet50()), 0.0, momentum=0.9, foreach=True))
    what = "SAM, ResNet-50: perturb and restore"
    yield Row(what, "SGD(foreach) step", 10, perturb_and_restore(sam), sgd.step)


def on_device(shapes: Shapes) -> list[nn.Parameter]:
    moved = []
    for p in parameters(shapes, "aligned"):
        moved.append(nn.Parameter(p.detach().cuda()))
        moved[-1].grad = p.grad.cuda()
    return moved


def quantisers() -> Iterator[Row]:
    weight = torch.randn(4096, 4096, device="cuda")
    peer = "official form, re-implemented"
    for name, ours, theirs in (
        ("FP4", fake_quantize_fp4, official_fp4),
        ("INT4", fake_quantize_int4, official_int4),
    ):
        what = f"{name} fake quantisation, 4096 x 4096"
        yield Row(what, peer, 1.1, partial(ours, weight), partial(theirs, weight))
        yield Row(f"{what}, compiled", peer, 1, partial(torch.compile(ours), weight), partial(theirs, weight))


def recurrent() -> Iterator[Row]:
    x, direction = torch.randn(2, 100, 32, 256, device="cuda")
    x.requires_grad_()
    for layer, loop, peer, bounds in (
        (LayerNormLSTM(256, 256), lstm_loop, nn.LSTM(256, 256), (0.9, 17)),
        (LayerNormGRU(256, 256), gru_loop, nn.GRU(256, 256), (0.8, 17)),
    ):
        layer.cuda()
        peer.cuda()
        what = f"{type(layer).__name__} forward + backward, 100 steps, batch 32, 256 units"
        ours = training_step(partial(outputs_of, layer), x, direction)
        theirs = training_step(partial(outputs_of, peer), x, direction)
        over_cells = training_step(loop(layer.cells[0]), x, direction)
        yield Row(what, "a loop over cells", bounds[0], ours, over_cells)
        yield Row(what, f"nn.{type(peer).__name__} (cuDNN)", bounds[1], ours, theirs)


def outputs_of(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]
