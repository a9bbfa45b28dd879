"""Power normalisation against its equation, composed of torch's operations, and torch's norms of a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Measured, Row
from trueup.nn import PowerNorm1d
from trueup.nn._power_norm import equation, scale_groups


def rows() -> Iterator[Row | Measured]:
    torch.manual_seed(0)
    tokens, directions = torch.randn(2, 128, 32, 512)
    tokens.requires_grad_()
    layer = PowerNorm1d(512, group_num=4, batch_first=False)
    ours = training_step(layer, tokens, directions)
    what = "PowerNorm1d forward + backward, 128x32x512, 4 groups"
    for peer, theirs, bound in (
        ("the equation, composed", ByTheEquation(512, groups=4), 0.55),
        ("nn.RMSNorm", nn.RMSNorm(512), 1.2),
        ("nn.LayerNorm", nn.LayerNorm(512), 4.2),
    ):
        yield Row(
            what=what, peer=peer, bound=bound, ours=ours, theirs=training_step(theirs, tokens, directions)
        )
    yield Measured("PowerNorm1d saved for backward", "input", saved_bytes(layer, tokens), "B/elt", 4.1)


class ByTheEquation(nn.Module):
    """The layer in its warm-up, by its equation, composed of torch's operations; nu is not updated."""

    def __init__(self, features: int, *, groups: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("phi", torch.ones(features))
        self.register_buffer("nu", torch.zeros(features))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        u = scale_groups(x.flatten(0, 1), self.groups, 1e-5)
        phi = u.detach().square().mean(0)
        self.phi.lerp_(phi, 0.1)
        return equation(u, phi, self.weight, self.bias, 1e-5, nu=self.nu).view_as(x)


def saved_bytes(layer: nn.Module, x: Tensor) -> float:
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes), lambda t: t):
        layer(x)
    return sum(sizes) / x.numel()


def training_step(layer: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        layer(x).backward(direction)

    return run
