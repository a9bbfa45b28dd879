"""timm's networks, converted: norms with dropout and activation, and blocks with drop path."""

from __future__ import annotations

import ast
from collections import Counter
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, DropPath, SqueezeExcite
from torch import Tensor, nn

from trueup.nn import EvoNorm2dS0, GhostBatchNorm2d, convert, convert_ghost_batchnorm


class GhostBatchNormAct2d(GhostBatchNorm2d):
    """Ghost batch normalization, then the `drop` and `act` of timm's `BatchNormAct2d`."""

    @classmethod
    def from_module(cls, module: BatchNormAct2d, **options: Any) -> GhostBatchNormAct2d:
        layer = super().from_module(module, **options)
        layer.drop, layer.act = module.drop, module.act
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class EvoNormAct2d(EvoNorm2dS0):
    """EvoNorm, then the `drop` of timm's `BatchNormAct2d`; without activation it only scales and shifts."""

    @classmethod
    def from_module(cls, module: BatchNormAct2d, **options: Any) -> EvoNormAct2d:
        options["apply_act"] = not isinstance(module.act, nn.Identity)
        layer = cls(module.num_features, eps=module.eps, **options)
        layer.drop, layer.act = module.drop, module.act
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))


def efficientnet() -> nn.Module:
    return trained(timm.create_model("efficientnet_b0", num_classes=10, drop_path_rate=0.2))


def trained(model: nn.Module) -> nn.Module:
    """Train for a step, so that weights and statistics leave their initial values."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loss = F.cross_entropy(model.train()(images()), torch.arange(8))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    return model


def images() -> Tensor:
    return torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def scores(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(images())
    return result


def kinds(model: nn.Module) -> Counter[type[nn.Module]]:
    return Counter(type(module) for module in model.modules())


def names(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


def test_a_norm_that_activates_is_not_taken_for_a_norm() -> None:
    model = efficientnet()
    before = scores(model)
    with pytest.raises(ValueError, match="BatchNormAct2d"):
        convert_ghost_batchnorm(model, 4, inplace=True)
    assert torch.equal(scores(model), before)


def test_ghost_batch_norm_keeps_what_the_norm_does_more() -> None:
    model = efficientnet()
    ghost = convert(model, BatchNormAct2d, GhostBatchNormAct2d, ghost_batch_size=4)
    before, after = kinds(model), kinds(ghost)
    assert after.pop(GhostBatchNormAct2d) == before.pop(BatchNormAct2d) == 49
    assert after == before
    assert torch.equal(scores(ghost), scores(model))
    trained(ghost)
    # checkpoints go both ways
    model.load_state_dict(ghost.state_dict())
    assert torch.equal(scores(ghost), scores(model))
    ghost.load_state_dict(trained(model).state_dict())
    assert torch.equal(scores(ghost), scores(model))


def test_evonorm_activates_by_itself() -> None:
    model = efficientnet()
    # apply_act keeps the activations outside of norms; the target sets its own value for each norm.
    evonorm = convert(model, BatchNormAct2d, EvoNormAct2d, group_size=8, apply_act=True)
    assert names(evonorm, EvoNormAct2d) == names(model, BatchNormAct2d)
    activating = {name for name, norm in evonorm.named_modules() if getattr(norm, "apply_act", False)}
    assert {f"{name}.act" for name in activating} == {
        name for name in names(model, nn.SiLU) if name.endswith(".act")
    }
    assert len(activating) == 33  # each but the last of the 16 blocks
    for kind in (nn.SiLU, DropPath, SqueezeExcite):
        assert names(evonorm, kind) == names(model, kind)
    trained(evonorm)


def resnet() -> nn.Module:
    return trained(timm.create_model("resnet18", num_classes=10, drop_path_rate=0.2))


def test_a_plain_norm_needs_no_target_of_your_own() -> None:
    model = resnet()
    ghost = convert_ghost_batchnorm(model, 4)
    assert names(ghost, GhostBatchNorm2d) == names(model, nn.BatchNorm2d)
    assert torch.equal(scores(ghost), scores(model))
    trained(ghost)


def test_the_advice_about_drop_path_leaves_it_in_place() -> None:
    model = resnet()
    with pytest.raises(ValueError, match="DropPath") as raised:
        convert(model, nn.BatchNorm2d, EvoNorm2dS0, group_size=8)
    message = str(raised.value)
    assert "activation=DropPath" not in message
    pairs = ast.literal_eval(message[message.index("{") : message.rindex("}") + 1])
    evonorm = convert(model, nn.BatchNorm2d, EvoNorm2dS0, group_size=8, pairs=pairs)
    assert names(evonorm, EvoNorm2dS0) == names(model, nn.BatchNorm2d)
    assert names(evonorm, DropPath) == names(model, DropPath)
    # What follows the sum of a block stays.
    assert names(evonorm, nn.ReLU) == {name for name in names(model, nn.ReLU) if name.endswith("act2")}
    trained(evonorm)
