"""AdamP and SGDP steps on CPU, against torch's fused and foreach optimizers and against the official form.

The official classes cannot be installed beside us, so their form is written out again here: a loop over
parameters with whole-tensor operations, `F.cosine_similarity` for each view, and a Python branch on its
maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row
from trueup.optim import SGDP, AdamP

OFFICIAL = "official form, re-implemented"
PROJECTION = {"eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1}
Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    """The 161 parameter tensors of ResNet-50, 25.6 million elements."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(depth):
            convolutions = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, channels, 1, 1))
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def transformer(layers: int = 12, width: int = 768, vocabulary: int = 16384, context: int = 1024) -> Shapes:
    """A pre-norm transformer of 12 layers of width 768, 98.4 million elements."""
    layer: Shapes = [
        (3 * width, width),
        (3 * width,),
        (width, width),
        (width,),
        (4 * width, width),
        (4 * width,),
        (width, 4 * width),
        (width,),
        *[(width,)] * 4,
    ]
    return [(vocabulary, width), (context, width), *layer * layers, (width,), (width,)]


class OfficialForm(torch.optim.Optimizer):
    """What both official classes share: the projection, with a Python branch on each view."""

    def project(self, p: Tensor, grad: Tensor, update: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
        for view in (lambda x: x.view(x.size(0), -1), lambda x: x.view(1, -1)):
            rows = view(p)
            cosine = F.cosine_similarity(view(grad), rows, dim=1, eps=group["eps"]).abs()
            if cosine.max() < group["delta"] / math.sqrt(rows.size(1)):
                broadcast = [-1] + [1] * (p.dim() - 1)
                normal = p / rows.norm(dim=1).view(broadcast).add_(group["eps"])
                update -= normal * view(normal * update).sum(dim=1).view(broadcast)
                return update, group["wd_ratio"]
        return update, 1.0


class OfficialAdamP(OfficialForm):
    def __init__(self, params: list[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {**PROJECTION, "lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                state["step"] += 1
                m, v = state["exp_avg"], state["exp_avg_sq"]
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                denominator = (v.sqrt() / math.sqrt(1 - 0.999 ** state["step"])).add_(group["eps"])
                update, ratio = m / denominator, 1.0
                if p.dim() > 1:
                    update, ratio = self.project(p, p.grad, update, group)
                if group["weight_decay"] > 0:
                    p.mul_(1 - group["lr"] * group["weight_decay"] * ratio)
                p.add_(update, alpha=-group["lr"] / (1 - 0.9 ** state["step"]))


class OfficialSGDP(OfficialForm):
    def __init__(self, params: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        defaults = {**PROJECTION, "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].mul_(momentum).add_(p.grad)
                update, ratio = p.grad + momentum * buffer, 1.0
                if p.dim() > 1:
                    update, ratio = self.project(p, p.grad, update, group)
                if group["weight_decay"] > 0:
                    p.mul_(1 - lr * group["weight_decay"] * ratio / (1 - momentum))
                p.add_(update, alpha=-lr)


def parameters(shapes: Shapes, gradient: str) -> list[nn.Parameter]:
    """Weights whose gradient keeps every matrix out of the projection ("aligned") or in it ("orthogonal").

    An orthogonal gradient of every row survives the steps: with lr = 0 the weights stay, and so does the
    decision.
    """
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in shapes:
        p = nn.Parameter(torch.randn(shape, generator=generator) * 0.02)
        p.grad = torch.randn(shape, generator=generator) * 1e-3
        if p.dim() > 1:
            rows, grad = p.detach().flatten(1), p.grad.flatten(1)
            along = (rows * grad).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)
            grad -= along * rows
            if gradient == "aligned":
                grad += 0.05 * rows
        params.append(p)
    return params


def row(
    what: str,
    peer: str,
    bound: float,
    shapes: Shapes,
    ours: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    theirs: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    gradient: str = "aligned",
) -> Row:
    """Each side steps its own copy of the parameters, as two training runs would."""
    return Row(
        what, peer, bound, ours(parameters(shapes, gradient)).step, theirs(parameters(shapes, gradient)).step
    )


# lr = 0 leaves the weights where they are, so that every round does the same work, and costs no less to
# compute.
def adamp(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return AdamP(params, 0.0, weight_decay=1e-2)


def fused(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 0.0, weight_decay=1e-2, fused=True)


def official_adamp(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return OfficialAdamP(params, 0.0, weight_decay=1e-2)


def sgdp(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return SGDP(params, 0.0, momentum=0.9, weight_decay=1e-4, nesterov=True)


def foreach_sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.0, momentum=0.9, weight_decay=1e-4, nesterov=True, foreach=True)


def official_sgdp(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return OfficialSGDP(params, 0.0, momentum=0.9, weight_decay=1e-4)


def rows() -> Iterator[Row]:
    still, moving = "nothing projected", "projection everywhere"
    resnet, large = resnet50(), transformer()
    yield row(f"AdamP step, ResNet-50, {still}", "AdamW(fused)", 2.6, resnet, adamp, fused)
    yield row(f"AdamP step, ResNet-50, {still}", OFFICIAL, 0.35, resnet, adamp, official_adamp)
    yield row(f"AdamP step, ResNet-50, {moving}", "AdamW(fused)", 3.2, resnet, adamp, fused, "orthogonal")
    yield row(f"AdamP step, ResNet-50, {moving}", OFFICIAL, 0.5, resnet, adamp, official_adamp, "orthogonal")
    yield row("AdamP step, 12 x 768 transformer", "AdamW(fused)", 2.6, large, adamp, fused)
    yield row("AdamP step, 12 x 768 transformer", OFFICIAL, 0.15, large, adamp, official_adamp)
    yield row("SGDP step, ResNet-50", "SGD(foreach)", 2.0, resnet, sgdp, foreach_sgd)
    yield row("SGDP step, ResNet-50", OFFICIAL, 0.65, resnet, sgdp, official_sgdp)
    yield row("SGDP step, 12 x 768 transformer", "SGD(foreach)", 2.0, large, sgdp, foreach_sgd)
    yield row("SGDP step, 12 x 768 transformer", OFFICIAL, 0.55, large, sgdp, official_sgdp)
