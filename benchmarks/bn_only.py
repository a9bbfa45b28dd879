"""Training only batch norm against training everything, and masked weights against a hand-written loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Row
from trueup.models import CifarResNet
from trueup.nn import freeze_all_but_norm_affine, random_parameter_mask, train_masked, train_only


def rows() -> Iterator[Row]:
    everything, frozen, masked, by_hand = (network() for _ in range(4))
    freeze_all_but_norm_affine(frozen)
    masks = random_parameter_mask(masked, generator=torch.Generator().manual_seed(0))
    train_masked(masked, masks)
    what = "ResNet-20 of width 16, 64x3x32x32, one step"
    yield Row(
        what=f"{what}, batch norm only",
        peer="everything trained",
        bound=0.85,
        ours=step(frozen),
        theirs=step(everything),
    )
    yield Row(
        what=f"{what}, train_masked",
        peer="mask gradients, step, put masked entries back",
        bound=1.1,
        ours=step(masked),
        theirs=masked_step(by_hand, masks),
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(3, 20, 16, 10)


def step(model: nn.Module) -> Callable[[], None]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 1e-3, 0.9, weight_decay=1e-4)
    x, y = torch.randn(64, 3, 32, 32), torch.arange(64) % 10

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def masked_step(model: nn.Module, masks: dict[str, Tensor]) -> Callable[[], None]:
    """Return the hand-written step: every weight in the optimizer, and three passes over whole tensors."""
    train_only(model, also_train=list(masks))
    weights = [model.get_parameter(name) for name in masks]
    start = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.SGD(weights, 1e-3, 0.9, weight_decay=1e-4)
    x, y = torch.randn(64, 3, 32, 32), torch.arange(64) % 10

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for weight, mask in zip(weights, masks.values(), strict=True):
            weight.grad.mul_(mask)
        optimizer.step()
        with torch.no_grad():
            for weight, mask, old in zip(weights, masks.values(), start, strict=True):
                weight.copy_(torch.where(mask, weight, old))

    return run
