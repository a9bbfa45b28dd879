"""Parametrising a model's weights, caching them, and baking them in."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from trueup.nn import ScaledWeightStandardization, WeightStandardization, bake, parametrize_weights


class Doubled(nn.Module):
    """A parametrisation that counts its calls and whose inverse is not the identity."""

    def __init__(self, weight: Tensor, factor: float = 2.0) -> None:
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * self.factor

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.factor


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 5, 2), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(5, 2),
    )


def parametrised(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if parametrize.is_parametrized(module, "weight")]


def test_layers_of_the_types_are_parametrised_in_a_copy() -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 4, 4)
    got = parametrize_weights(model, Doubled, factor=4.0)
    assert parametrised(got) == ["0", "2.0"]
    assert parametrised(model) == []
    assert list(model.state_dict()) == list(before)
    # the inverse keeps the function
    torch.testing.assert_close(got.eval()(x), model.eval()(x))
    torch.testing.assert_close(got[0].parametrizations.weight.original, model[0].weight / 4)
    assert parametrised(parametrize_weights(model, Doubled, types=nn.Linear)) == ["4"]
    assert parametrised(parametrize_weights(model, Doubled, types=(nn.Linear, nn.Conv2d), skip=["2"])) == [
        "0",
        "4",
    ]


def test_in_place_keeps_the_very_parameters_and_the_mode() -> None:
    model = small_net().eval()
    weight = model[0].weight
    assert parametrize_weights(model, Doubled, inplace=True) is model
    assert model[0].parametrizations.weight.original is weight
    assert not any(module.training for module in model.modules())


def test_one_layer_can_be_the_model() -> None:
    conv = parametrize_weights(nn.Conv1d(2, 3, 2), WeightStandardization)
    assert parametrize.is_parametrized(conv, "weight")


def test_within_cached_the_weight_is_computed_once() -> None:
    conv = parametrize_weights(nn.Conv2d(3, 3, 1), Doubled)
    (doubled,) = conv.parametrizations.weight
    doubled.calls = 0
    x = torch.randn(1, 3, 2, 2)
    with parametrize.cached():
        twice = conv(conv(x))
    assert doubled.calls == 1
    torch.testing.assert_close(conv(conv(x)), twice)
    assert doubled.calls == 3
    gradients = []
    for context in (parametrize.cached, torch.enable_grad):
        conv.zero_grad()
        with context():
            conv(conv(x)).sum().backward()
        gradients.append(conv.parametrizations.weight.original.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_baked_is_exactly_the_same_function(dtype: torch.dtype) -> None:
    model = parametrize_weights(small_net().to(dtype), WeightStandardization).eval()
    x = torch.randn(2, 3, 4, 4, dtype=dtype)
    want = model(x)
    plain = bake(model)
    assert torch.equal(plain(x), want)
    assert plain.state_dict().keys() == small_net().state_dict().keys()
    assert type(plain[0]) is nn.Conv2d
    assert plain[0].weight.requires_grad
    assert not plain[0].training
    small_net().to(dtype).load_state_dict(plain.state_dict())
    # baking the copy leaves the model alone, although torch lets both share a class
    assert parametrised(model) == ["0", "2.0"]
    assert torch.equal(model(x), want)

    original = model[0].parametrizations.weight.original
    assert bake(model, inplace=True) is model
    assert torch.equal(model(x), want)
    assert model[0].weight is original


def test_a_copy_can_be_parametrised_further() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    parametrize.register_parametrization(model[0], "bias", Doubled(model[0].bias))
    x = torch.randn(1, 3, 4, 4)
    want = model(x)
    both = parametrize_weights(model, Doubled)
    torch.testing.assert_close(both(x), want)
    assert torch.equal(model(x), want)
    torch.testing.assert_close(bake(both)(x), want)


def test_parametrisations_of_torch_are_baked_too() -> None:
    linear = parametrizations.weight_norm(nn.Linear(3, 2))
    plain = bake(nn.Sequential(linear))
    assert sorted(plain.state_dict()) == ["0.bias", "0.weight"]
    torch.testing.assert_close(plain[0].weight, linear.weight)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("of_torch", [parametrizations.weight_norm, lambda layer: layer])
def test_baked_parameters_are_parameters_that_train_or_not_as_before(of_torch, context, trains) -> None:
    model = parametrize_weights(nn.Sequential(of_torch(nn.Linear(3, 2)), nn.Conv1d(2, 2, 2)), Doubled)
    model.requires_grad_(trains)
    with context():
        plain = bake(model)
    assert {name: p.requires_grad for name, p in plain.named_parameters()} == dict.fromkeys(
        ("0.bias", "0.weight", "1.bias", "1.weight"), trains
    )
    assert not list(plain.buffers())


@pytest.mark.parametrize("inplace", [True, False])
def test_what_shares_a_stored_weight_does_not_see_it_baked(inplace: bool) -> None:
    model = parametrize_weights(nn.Sequential(*(nn.Linear(3, 3) for _ in range(3))), Doubled, types=nn.Linear)
    stored = model[0].parametrizations.weight.original
    model[1].parametrizations.weight.original = stored
    model.append(nn.Linear(3, 3))
    model[3].weight = stored
    x = torch.randn(2, 3)
    want = model(x)
    torch.testing.assert_close(bake(model, inplace=inplace)(x), want)


@pytest.mark.parametrize("trains", [True, False])
def test_what_is_learnt_for_a_frozen_weight_is_frozen(trains: bool) -> None:
    conv = nn.Conv2d(3, 4, 3)
    conv.weight.requires_grad_(trains)
    conv = parametrize_weights(conv, ScaledWeightStandardization, gamma=1.0)
    assert [p.requires_grad for p in conv.parameters()] == [True, trains, trains]


def shared_weight() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.ReLU, {}, r"the model has no Conv1d or Conv2d or Conv3d outside of skip=\[\]"),
        (small_net, {"skip": ["0", "2"]}, r"outside of skip=\['0', '2'\]"),
        (small_net, {"skip": ["1", "conv"]}, "skip names 'conv', which the model does not have; it has '0'"),
        (
            lambda: parametrize_weights(small_net(), Doubled),
            {},
            "'0' has a parametrised weight already",
        ),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), {}, "'0' is not yet initialised: run one batch"),
        (shared_weight, {"types": nn.Linear}, "Linear '0' shares its weight"),
        (small_net, {"types": nn.ReLU}, "ReLU '2.1' has no parameter named weight"),
    ],
)
def test_what_cannot_be_parametrised_is_refused_and_left_alone(
    model: Callable[[], nn.Module], options: dict[str, object], message: str
) -> None:
    given = model()
    before = parametrised(given)
    with pytest.raises(ValueError, match=message):
        parametrize_weights(given, Doubled, inplace=True, **options)
    assert parametrised(given) == before


def test_an_error_in_the_second_layer_leaves_the_first_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, groups=4))
    with pytest.raises(ValueError, match="at least 2 values per filter"):
        parametrize_weights(model, WeightStandardization, inplace=True)
    assert parametrised(model) == []


class Shrinking(nn.Module):
    """A user's parametrisation that fits some weights only."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()

    def forward(self, weight: Tensor) -> Tensor:
        return weight[:4]


def test_a_parametrisation_that_does_not_fit_the_second_layer_leaves_the_first_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
    with pytest.raises(ValueError, match="may not change the shape"):
        parametrize_weights(model, Shrinking, inplace=True)
    assert parametrised(model) == []


def test_a_wrapped_model_is_refused() -> None:
    class DistributedDataParallel(nn.DataParallel):
        """A wrapper is recognized by the name of its class."""

    with pytest.raises(ValueError, match="wrapped for distributed training"):
        parametrize_weights(DistributedDataParallel(small_net()), Doubled)


def test_transposed_convolutions_are_refused_where_filters_count() -> None:
    model = nn.ConvTranspose2d(3, 4, 2)
    with pytest.raises(ValueError, match="output filters along dimension 1"):
        parametrize_weights(model, WeightStandardization, types=nn.ConvTranspose2d)
    parametrize_weights(model, Doubled, types=nn.ConvTranspose2d)


@pytest.mark.bad_input
def test_types_are_module_classes_and_a_plain_model_is_not_baked() -> None:
    with pytest.raises(TypeError, match="types must be module classes"):
        parametrize_weights(small_net(), Doubled, types="Conv2d")
    with pytest.raises(TypeError, match=r"got the string '2.0': pass \['2.0'\]"):
        parametrize_weights(small_net(), Doubled, skip="2.0")
    with pytest.raises(ValueError, match="nothing to bake"):
        bake(small_net())
