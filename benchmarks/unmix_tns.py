"""UnMixTNS against its equation, operation by operation as in the official layer, and torch's batch norm."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.batch_channel_norm import training_step
from benchmarks.harness import Measured, Row
from trueup.adaptation import UnMixTNS2d
from trueup.adaptation._unmix_tns import assign, unmix_statistics


def rows() -> Iterator[Row | Measured]:
    torch.manual_seed(0)
    images, directions = torch.randn(2, 64, 256, 14, 14)
    images.requires_grad_()
    for components in (16, 128):
        what = f"UnMixTNS2d forward + backward, 64x256x14x14, K = {components}"
        layer = UnMixTNS2d(256, num_components=components).eval()
        ours = training_step(layer, images, directions)
        peers = {
            "the official form": (partial(naively, layer, {"means": layer.means, "vars": layer.vars}), 0.2),
            "nn.BatchNorm2d, training mode": (nn.BatchNorm2d(256), 1.3),
        }
        for peer, (theirs, bound) in peers.items():
            yield Row(what, peer, bound, ours, training_step(theirs, images, directions))
        saved: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(partial(_note, saved), lambda t: t):
            layer(images)
        value = sum(saved.values()) / images.numel()
        yield Measured(f"UnMixTNS2d, K = {components}", "saved for backward", value, "bytes/element", 4.3)


def naively(layer: UnMixTNS2d, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Apply the paper's equations, one operation after the other."""
    mean, var = x.mean((2, 3)), x.var((2, 3), correction=0)
    p = assign(mean, state["means"], layer.temperature)
    center, spread = unmix_statistics(mean, var, state["means"], state["vars"], p)
    y = (x - center[:, :, None, None]) / torch.sqrt(spread[:, :, None, None] + layer.eps)
    with torch.no_grad():
        for name, values in (("means", mean), ("vars", var)):
            step = p.unsqueeze(2) * (values.unsqueeze(1) - state[name])
            state[name] = state[name] + layer.effective_momentum * step.mean(0)
    return y * layer.weight[:, None, None] + layer.bias[:, None, None]


def _note(saved: dict[int, int], t: Tensor) -> Tensor:
    saved[t.data_ptr()] = t.nbytes
    return t
