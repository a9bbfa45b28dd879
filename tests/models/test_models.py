import pytest
import torch
from torch import nn

from trueup.models import cifar_resnet, convnet, mlp


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (mlp(12, (8, 8), 3), (4, 3, 4)),
        (convnet(3, (4, 8, 8), 3), (4, 3, 16, 16)),
        (cifar_resnet(8, 3), (4, 3, 32, 32)),
    ],
)
def test_every_parameter_learns(model, shape):
    out = model(torch.randn(shape))
    assert out.shape == (4, 3)
    nn.functional.cross_entropy(out, torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_resnets_have_the_sizes_of_the_paper(depth, millions):
    assert sum(p.numel() for p in cifar_resnet(depth).parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("depth", [2, 18, 45])
def test_a_depth_between_two_nets_is_refused(depth):
    with pytest.raises(ValueError, match="6n \\+ 2"):
        cifar_resnet(depth)


def test_the_norm_is_the_callers_choice():
    net = convnet(1, (4, 4), 2, norm=lambda c: nn.GroupNorm(2, c))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
