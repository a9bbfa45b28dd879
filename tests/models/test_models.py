import pytest
import torch
from torch import nn

from trueup.models import convnet, mlp


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (mlp(12, (8, 8), 3), (4, 3, 4)),
        (convnet(3, (4, 8, 8), 3), (4, 3, 16, 16)),
    ],
)
def test_every_parameter_learns(model, shape):
    out = model(torch.randn(shape))
    assert out.shape == (4, 3)
    nn.functional.cross_entropy(out, torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_norm_is_the_callers_choice():
    net = convnet(1, (4, 4), 2, norm=lambda c: nn.GroupNorm(2, c))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
