"""AdamP and SGDP steps on CPU, against torch's fused and foreach optimizers and the plain functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Row
from trueup.optim import SGDP, AdamP, _adamp, _sgdp
from trueup.optim._routes import RoutedOptimizer, State

PLAIN = "the plain function"
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


class Plain:
    """Steps with the plain function in an optimizer's file, one parameter at a time."""

    def __init__(self, optimizer: RoutedOptimizer, equation: Callable[..., tuple[Tensor, State]]) -> None:
        (self.group,) = optimizer.param_groups
        self.equation = equation
        self.state = {
            p: {
                name: p.new_zeros(()) if name in optimizer.scalars else torch.zeros_like(p)
                for name in optimizer.state_names
            }
            for p in self.group["params"]
        }

    @torch.no_grad()
    def step(self) -> None:
        for p, state in self.state.items():
            weight, self.state[p] = self.equation(p, p.grad, state, self.group)
            p.copy_(weight)


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
    theirs: Callable[[list[nn.Parameter]], torch.optim.Optimizer | Plain],
    gradient: str = "aligned",
) -> Row:
    """Each side steps its own copy of the parameters, as two training runs would."""
    return Row(
        what, peer, bound, ours(parameters(shapes, gradient)).step, theirs(parameters(shapes, gradient)).step
    )


# lr = 0 leaves the weights where they are, so that every round does the same work, and costs no less to
# compute.
def adamp(params: list[nn.Parameter]) -> AdamP:
    return AdamP(params, 0.0, weight_decay=1e-2)


def fused(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 0.0, weight_decay=1e-2, fused=True)


def plain_adamp(params: list[nn.Parameter]) -> Plain:
    return Plain(adamp(params), _adamp.adamp)


def sgdp(params: list[nn.Parameter]) -> SGDP:
    return SGDP(params, 0.0, momentum=0.9, weight_decay=1e-4, nesterov=True)


def foreach_sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.0, momentum=0.9, weight_decay=1e-4, nesterov=True, foreach=True)


def plain_sgdp(params: list[nn.Parameter]) -> Plain:
    return Plain(sgdp(params), _sgdp.sgdp)


def rows() -> Iterator[Row]:
    still, moving = "nothing projected", "projection everywhere"
    resnet, large = resnet50(), transformer()
    yield row(f"AdamP step, ResNet-50, {still}", "AdamW(fused)", 2.6, resnet, adamp, fused)
    yield row(f"AdamP step, ResNet-50, {still}", PLAIN, 0.25, resnet, adamp, plain_adamp)
    yield row(f"AdamP step, ResNet-50, {moving}", "AdamW(fused)", 3.2, resnet, adamp, fused, "orthogonal")
    yield row(f"AdamP step, ResNet-50, {moving}", PLAIN, 0.4, resnet, adamp, plain_adamp, "orthogonal")
    yield row("AdamP step, 12 x 768 transformer", "AdamW(fused)", 2.6, large, adamp, fused)
    yield row("AdamP step, 12 x 768 transformer", PLAIN, 0.15, large, adamp, plain_adamp)
    yield row("SGDP step, ResNet-50", "SGD(foreach)", 2.0, resnet, sgdp, foreach_sgd)
    yield row("SGDP step, ResNet-50", PLAIN, 0.45, resnet, sgdp, plain_sgdp)
    yield row("SGDP step, 12 x 768 transformer", "SGD(foreach)", 2.0, large, sgdp, foreach_sgd)
    yield row("SGDP step, 12 x 768 transformer", PLAIN, 0.55, large, sgdp, plain_sgdp)
