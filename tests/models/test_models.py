import pytest
import torch
from torch import nn

from trueup.models import CifarResNet, Decoder, PreActResNet, SequenceClassifier, convnet, mlp


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (mlp(12, (8, 8), 3), (4, 3, 4)),
        (convnet(3, (4, 8, 8), 3), (4, 3, 16, 16)),
        (CifarResNet(3, 14, 2, 3), (4, 3, 9, 16)),
        (PreActResNet(3, 14, 4, 3), (4, 3, 9, 16)),
        (SequenceClassifier(nn.GRU(5, 6, batch_first=True), 6, 3), (4, 7, 5)),
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


def test_the_depth_of_a_resnet_counts_its_layers():
    model = CifarResNet(3, 20, 4, 10)
    convolutions = [
        m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "short" not in name
    ]
    assert len(convolutions) + 1 == 20
    assert [block.conv1.stride[0] for block in model.blocks] == [1, 1, 1, 2, 1, 1, 2, 1, 1]
    for depth in (2, 9, -4):
        with pytest.raises(ValueError, match=f"such as 8, 14 or 20; got {depth}"):
            CifarResNet(3, depth, 4, 10)


def test_a_preactivation_resnet_normalises_before_it_convolves():
    made = []

    def norm_act(channels):
        made.append(channels)
        return nn.Tanh()

    model = PreActResNet(3, 14, 4, 10, norm_act)
    assert made == [4, 4, 4, 4, 4, 8, 8, 8, 8, 16, 16, 16, 16]
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module is not model.stem:
            module.register_forward_hook(lambda _, args, output: seen.append(args[0].abs().max() <= 1))
    assert model(torch.randn(2, 3, 8, 8) * 100).shape == (2, 10)
    assert len(seen) == 12 + 2
    assert all(seen)
    with pytest.raises(ValueError, match="such as 8, 14 or 20; got 9"):
        PreActResNet(3, 9, 4, 10)


def test_every_parameter_of_the_decoder_learns():
    net = Decoder(11, width=8, depth=2, heads=2, block=5)
    logits = net(torch.randint(11, (4, 5)))
    assert logits.shape == (4, 5, 11)
    nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(11, (20,))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_decoder_does_not_see_what_comes():
    net = Decoder(11, width=8, depth=2, heads=2, block=5)
    symbols = torch.randint(10, (3, 5))
    changed = symbols.clone()
    changed[:, 3] = 10
    before, after = net(symbols), net(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amin(dim=(0, 2)).min() > 0
    torch.testing.assert_close(net(symbols[:, :2]), before[:, :2])


def test_the_decoder_norms_after_the_sums():
    net = Decoder(
        11, width=8, depth=2, heads=2, block=5, norm=lambda c: nn.RMSNorm(c, elementwise_affine=False)
    )
    seen = []
    net.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(torch.randint(11, (3, 5)))
    torch.testing.assert_close(seen[0].square().mean(-1), torch.ones(3, 5), rtol=1e-3, atol=0)


def test_the_decoder_may_norm_first():
    nets = [
        Decoder(11, width=8, depth=2, heads=2, block=5, norm=lambda _: nn.Identity(), norm_first=first)
        for first in (True, False)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    symbols = torch.randint(11, (3, 5))
    torch.testing.assert_close(nets[0](symbols), nets[1](symbols))  # without norms there is no order

    net = Decoder(11, width=8, depth=2, heads=2, block=5, norm_first=True)
    x = torch.randn(3, 5, 8)
    for layer in net.layers[:-1]:
        want = x + layer.attention(nn.functional.layer_norm(x, (8,)))
        want = want + layer.feed_forward(nn.functional.layer_norm(want, (8,)))
        torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(net.layers[-1](x), nn.functional.layer_norm(x, (8,)))
