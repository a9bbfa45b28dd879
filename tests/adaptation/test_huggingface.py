"""Hugging Face's ResNet and ViT with random weights, adapted to shifted batches."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueup.adaptation import (
    AlphaBatchNorm2d,
    OnlineAdapter,
    convert_unmix_tns,
    core,
    corrupt,
    entropy_loss,
    restore,
    tent,
)

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")


def resnet() -> Any:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=3,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=5,
    )
    model = transformers.ResNetForImageClassification(config)
    with torch.no_grad():
        for _ in range(3):
            model.train()(pixel_values=images())  # statistics of the source
    return model.eval()


def images(seed: int = 0) -> Tensor:
    return torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def stream() -> list[Tensor]:
    return [corrupt(images(s), "fog", generator=torch.Generator().manual_seed(s)) for s in range(3)]


@pytest.mark.parametrize("adapt", [tent, core])
def test_a_resnet(adapt: Any) -> None:
    model = resnet()
    adapter = adapt(model)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {
        name for name, module in adapter.model.named_modules() if isinstance(module, AlphaBatchNorm2d)
    } == norms
    assert adapter.adapted == [
        name for name, _ in model.named_parameters() if name.rpartition(".")[0] in norms
    ]

    logits = [adapter(pixel_values=x) for x in stream()]
    assert all(z.shape == (16, 5) and z.isfinite().all() and not z.requires_grad for z in logits)
    assert not torch.equal(
        adapter.model.state_dict()[adapter.adapted[0]], model.state_dict()[adapter.adapted[0]]
    )
    adapter.reset()
    assert all(torch.equal(adapter(pixel_values=x), z) for x, z in zip(stream(), logits, strict=True))

    restored = restore(adapter.model)
    assert type(restored) is type(model)
    for (name, value), (same, original) in zip(
        restored.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert name == same
        assert torch.equal(value, original), name
    assert torch.equal(restored.eval()(images()).logits, model(images()).logits)


def test_a_resnet_in_place_and_with_unmixed_statistics() -> None:
    model = resnet()
    before = model(images()).logits.detach()
    optimizer = partial(torch.optim.SGD, lr=0.1)
    adapter = OnlineAdapter(model, entropy_loss, optimizer)
    assert torch.equal(adapter(images()), before)  # the source's own statistics
    assert not torch.equal(model(images()).logits, before)
    adapter.reset()
    assert torch.equal(model(images()).logits, before)

    unmixed = OnlineAdapter(convert_unmix_tns(model, 4), entropy_loss, optimizer)
    assert all(unmixed(x).isfinite().all() for x in stream())
    assert torch.equal(restore(unmixed.model)(images()).logits, before)


def test_a_vit_has_layer_norms_only() -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=8, num_labels=5, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    adapter = tent(model)
    assert all("layernorm" in name for name in adapter.adapted)
    logits = adapter(pixel_values=images())
    assert torch.equal(logits, model.eval()(pixel_values=images()).logits)  # no dropout
    assert not torch.equal(adapter(pixel_values=images()), logits)
    with pytest.raises(ValueError, match="core mixes the statistics of batch norms, but the model has none"):
        core(model)
