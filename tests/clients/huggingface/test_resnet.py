"""Hugging Face's ResNet, converted, and loaded from a folder that `save_pretrained` wrote."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from trueup.nn import EvoNorm2dS0, GhostBatchNorm2d, convert, convert_ghost_batchnorm


class GhostResNetForImageClassification(ResNetForImageClassification):
    """Convert the model in its constructor, so that `from_pretrained` finds the layers to load.

    transformers chooses the loss by the end of the class name.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        convert_ghost_batchnorm(self, 4, inplace=True)


class EvoNormResNetForImageClassification(ResNetForImageClassification):
    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        for part in traceable_parts(self):
            convert(part, nn.BatchNorm2d, EvoNorm2dS0, group_size=4, inplace=True)


def traceable_parts(model: ResNetForImageClassification) -> list[nn.Module]:
    """Return the parts that hold the norms. Around them the model branches on its arguments."""
    return [model.resnet.embedder.embedder, *model.resnet.encoder.stages]


@pytest.fixture(params=["basic", "bottleneck"])
def config(request: pytest.FixtureRequest) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type=request.param, num_labels=5
    )


def trained(model: ResNetForImageClassification) -> ResNetForImageClassification:
    """Train for two steps, so that statistics and weights leave their initial values."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(pixel_values=images(), labels=torch.arange(8) % 5).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    return model


def images() -> Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(model: ResNetForImageClassification) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(images()).logits
    return result


def kinds(model: nn.Module) -> Counter[type[nn.Module]]:
    return Counter(type(module) for module in model.modules())


def test_ghost_batch_norm_takes_the_place_of_every_norm(config: ResNetConfig) -> None:
    model = trained(ResNetForImageClassification(config))
    ghost = convert_ghost_batchnorm(model, 4)
    before, after = kinds(model), kinds(ghost)
    assert after.pop(GhostBatchNorm2d) == before.pop(nn.BatchNorm2d)
    assert after == before
    assert torch.equal(logits(ghost), logits(model))
    assert not torch.equal(ghost.train()(images()).logits, model.train()(images()).logits)
    trained(ghost)


def test_a_checkpoint_goes_both_ways(config: ResNetConfig, tmp_path: Path) -> None:
    ghost = trained(convert_ghost_batchnorm(ResNetForImageClassification(config), 4))
    ghost.save_pretrained(tmp_path)
    for kind, norm in (
        (ResNetForImageClassification, nn.BatchNorm2d),
        (GhostResNetForImageClassification, GhostBatchNorm2d),
    ):
        loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        assert kinds(loaded)[norm] == kinds(ghost)[GhostBatchNorm2d]
        assert torch.equal(logits(loaded), logits(ghost))


def test_an_untraceable_model_needs_pairs(config: ResNetConfig) -> None:
    model = ResNetForImageClassification(config)
    with pytest.raises(ValueError, match="cannot determine the activation of each of these norms") as raised:
        convert(model, nn.BatchNorm2d, EvoNorm2dS0, group_size=4)
    for name, module in model.named_modules():
        assert (f"{name!r}: NAME" in str(raised.value)) is isinstance(module, nn.BatchNorm2d)


def test_evonorm_takes_the_activations_that_follow_a_norm(config: ResNetConfig) -> None:
    model = ResNetForImageClassification(config)
    by_parts = EvoNormResNetForImageClassification(config)
    pairs: dict[str, str | None] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, ResNetConvLayer):
            acts = not isinstance(layer.activation, nn.Identity)
            pairs[f"{name}.normalization"] = f"{name}.activation" if acts else None
        elif name.endswith(".shortcut.normalization"):
            pairs[name] = None
    by_pairs = convert(model, nn.BatchNorm2d, EvoNorm2dS0, group_size=4, pairs=pairs)

    for evonorm in (by_parts, by_pairs):
        for name, norm in evonorm.named_modules():
            if isinstance(norm, EvoNorm2dS0):
                assert norm.apply_act is (pairs[name] is not None)
        left = {name for name, module in evonorm.named_modules() if isinstance(module, nn.ReLU)}
        every = {name for name, module in model.named_modules() if isinstance(module, nn.ReLU)}
        assert left == every - set(pairs.values())
        assert len(left) == 4  # one after the sum of each residual block
        assert kinds(evonorm)[EvoNorm2dS0] == kinds(model)[nn.BatchNorm2d]
        trained(evonorm)


def test_evonorm_comes_back_from_a_checkpoint(config: ResNetConfig, tmp_path: Path) -> None:
    evonorm = trained(EvoNormResNetForImageClassification(config))
    evonorm.save_pretrained(tmp_path)
    loaded, info = EvoNormResNetForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits(loaded), logits(evonorm))
