"""Power normalisation against the official layer's composed form, and torch's norms of a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Measured, Row
from trueup.nn import PowerNorm1d


def rows() -> Iterator[Row | Measured]:
    torch.manual_seed(0)
    tokens, directions = torch.randn(2, 128, 32, 512)
    tokens.requires_grad_()
    layer = PowerNorm1d(512, group_num=4, batch_first=False)
    ours = training_step(layer, tokens, directions)
    what = "PowerNorm1d forward + backward, 128x32x512, 4 groups"
    for peer, theirs, bound in (
        ("naive re-implementation of the official layer", NaivePowerNorm(512, groups=4), 0.20),
        ("nn.RMSNorm", nn.RMSNorm(512), 1.2),
        ("nn.LayerNorm", nn.LayerNorm(512), 4.2),
    ):
        yield Row(
            what=what, peer=peer, bound=bound, ours=ours, theirs=training_step(theirs, tokens, directions)
        )
    yield Measured("PowerNorm1d saved for backward", "input", saved_bytes(layer, tokens), "B/elt", 4.1)


class NaivePowerNorm(nn.Module):
    """Group scaling and power normalisation as the official layer composes them: channels second.

    Written from the equations; each operation is autograd's own, or reads and writes the whole batch.
    """

    def __init__(self, features: int, *, groups: int, warmup: int = 10000) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("phi", torch.ones(1, features, 1, 1))
        self.register_buffer("gz", torch.zeros(1, features, 1, 1))
        self.register_buffer("iters", torch.zeros(1, dtype=torch.int64))
        self.groups, self.warmup = groups, warmup

    def forward(self, x: Tensor) -> Tensor:
        steps, batch, features = x.shape
        parts = x.view(steps, batch, self.groups, features // self.groups)
        second_moment = parts.square().mean(-1, keepdim=True)
        second_moment = second_moment.repeat(1, 1, 1, features // self.groups)
        x = x / (second_moment.reshape(steps, batch, features) + 1e-5).sqrt()
        self.iters.copy_(self.iters + 1)
        planes = x.permute(1, 2, 0).contiguous().unsqueeze(-1)
        y = _NaivePower.apply(
            planes, self.weight, self.bias, self.phi, self.gz, int(self.iters.item()), self.warmup
        )
        return y.squeeze(-1).permute(2, 0, 1).contiguous()


class _NaivePower(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, phi, gz, step, warmup):
        c = x.size(1)
        var = (x.clone() * x).mean(dim=3).mean(dim=2).mean(dim=0).view(1, c, 1, 1)
        z = x / ((var if step <= warmup else phi) + 1e-5).sqrt()
        y = weight.view(1, c, 1, 1) * z + bias.view(1, c, 1, 1)
        ctx.save_for_backward(z, var, weight, gz)
        if step < warmup:
            phi.copy_(phi * (step - 1) / step + var / step)
        phi.copy_(0.9 * phi + 0.1 * var)
        return y

    @staticmethod
    def backward(ctx, grad):
        z, var, weight, gz = ctx.saved_tensors
        c = z.size(1)
        g = grad * weight.view(1, c, 1, 1)
        approx = g - 0.1 * gz * z
        gz.add_((approx * z).mean(dim=3).mean(dim=2).mean(dim=0).view(1, c, 1, 1))
        dx = approx / (var + 1e-5).sqrt()
        dweight = (grad * z).sum(dim=3).sum(dim=2).sum(dim=0)
        return dx, dweight, grad.sum(dim=3).sum(dim=2).sum(dim=0), None, None, None, None


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
