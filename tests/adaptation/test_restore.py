"""Converters and `restore`: the source model comes back bit for bit, whatever happened between."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trueup.adaptation import (
    AlphaBatchNorm2d,
    UnMixTNS2d,
    convert_alpha_bn,
    convert_test_batch_norm,
    convert_unmix_tns,
    restore,
)

Converter = Callable[..., nn.Module]
CONVERTERS = [convert_alpha_bn, convert_test_batch_norm, convert_unmix_tns]


class Shared(nn.Module):
    """A trained model with one norm in two places, a frozen one, one in training mode and a shared one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 1)
        self.norm = nn.BatchNorm2d(4, 1e-3, 0.3)
        self.again = self.norm
        self.plain = [self.norm]
        self.sync = nn.SyncBatchNorm(4)
        self.frozen = nn.BatchNorm2d(4).requires_grad_(False)
        self.no_affine = nn.BatchNorm2d(4, affine=False)
        self.no_bias = nn.BatchNorm2d(4, bias=False)
        self.head = nn.BatchNorm1d(4)
        with torch.no_grad():
            for tensor in self.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 2)
        self.eval()
        self.head.train()
        self.frozen.weight.requires_grad_(True)
        self.norm.note = "kept"

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.norm(self.conv(x)).relu())
        x = self.no_bias(self.no_affine(self.frozen(self.sync(x))))
        return self.head(x.mean((2, 3)))


def assert_same(got: nn.Module, want: nn.Module) -> None:
    """Check everything that makes up a model."""
    assert repr(got) == repr(want)
    assert list(got.state_dict()) == list(want.state_dict())
    for a, b in zip(got.state_dict().values(), want.state_dict().values(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    for a, b in zip(got.modules(), want.modules(), strict=True):
        assert type(a) is type(b)
        assert a.training == b.training
        assert vars(a).keys() == vars(b).keys()
        plain = (bool, int, float, str, type(None))
        assert {n: v for n, v in vars(a).items() if isinstance(v, plain)} == {
            n: v for n, v in vars(b).items() if isinstance(v, plain)
        }
    for a, b in zip(got.parameters(), want.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad


def adapt(model: nn.Module) -> None:
    """Train the affine parameters as TENT does, on a few batches."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(6, 2, 3, 3)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("converter", CONVERTERS)
def test_source_comes_back_bit_for_bit(converter: Converter, inplace: bool) -> None:
    model = Shared()
    model.conv.requires_grad_(False)
    source, identities = copy.deepcopy(model), [*model.parameters()]
    converted = converter(model, inplace=inplace)
    assert (converted is model) == inplace
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in converted.modules())
    assert converted.norm is converted.again is converted.plain[0]
    adapt(converted)
    assert not torch.equal(converted.norm.weight, source.norm.weight)
    restored = restore(converted, inplace=inplace)
    assert restored.norm is restored.again is restored.plain[0]
    assert_same(restored, source)
    assert inplace or isinstance(converted.norm, type(converter(source).norm))  # as it was
    assert_same(model, source)
    x = torch.randn(4, 2, 3, 3)
    assert torch.equal(restored(x), source(x))
    if inplace:
        assert all(a is b for a, b in zip(restored.parameters(), identities, strict=True))


@pytest.mark.parametrize("first", CONVERTERS)
def test_converted_twice_goes_back_to_the_source(first: Converter) -> None:
    model = Shared()
    model.conv.requires_grad_(False)
    once = first(model)
    adapt(once)
    twice = convert_alpha_bn(once, 0.9)
    assert twice.norm.source_weight == 0.9
    assert torch.equal(twice.norm.weight, model.norm.weight)
    assert isinstance(once.norm, type(first(model).norm))
    assert_same(restore(twice), model)


def test_a_norm_alone_and_a_model_without_layers_to_restore() -> None:
    norm = nn.BatchNorm2d(3)
    layer = convert_unmix_tns(norm)
    assert isinstance(layer, UnMixTNS2d)
    assert_same(restore(layer), norm)
    assert_same(restore(norm), norm)
    assert_same(restore(AlphaBatchNorm2d(3)), norm)


def test_restore_follows_dtype_mode_copies_and_pickles() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)).eval()
    converted = pickle.loads(pickle.dumps(copy.deepcopy(convert_unmix_tns(model)))).double().train()
    assert_same(restore(converted), copy.deepcopy(model).double().train())


def test_a_loaded_checkpoint_becomes_the_source() -> None:
    model, other = Shared(), Shared()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    converted = convert_unmix_tns(model)
    converted.load_state_dict(other.state_dict())
    restored = restore(converted)
    for name, value in other.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value)


def test_hooks_stay_and_can_be_removed() -> None:
    model, calls = nn.Sequential(nn.BatchNorm2d(2)).eval(), []
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    converted = convert_alpha_bn(model, inplace=True)
    converted(torch.randn(2, 2, 2, 2))
    restored = restore(converted, inplace=True)
    restored(torch.randn(2, 2, 2, 2))
    assert len(calls) == 2
    handle.remove()
    restored(torch.randn(2, 2, 2, 2))
    assert len(calls) == 2


def test_sync_batch_norm_takes_inputs_of_any_rank() -> None:
    norm = nn.SyncBatchNorm(3).eval()
    layer = convert_alpha_bn(norm, 1.0)
    for shape in ((4, 3), (4, 3, 2), (4, 3, 2, 2), (4, 3, 2, 2, 2)):
        x = torch.randn(shape)
        torch.testing.assert_close(layer(x), norm(x))
    assert layer.process_group == "world"
    assert type(restore(layer)) is nn.SyncBatchNorm


def test_options_reach_the_layers() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=None))
    layer = convert_alpha_bn(model, 0.2, prior_strength=4.0, unbiased=True, detach_stats=True)[0]
    assert (layer.source_weight, layer.prior_strength) == (0.2, 4.0)
    assert (layer.unbiased, layer.detach_stats) == (True, True)
    assert convert_test_batch_norm(model)[0].source_weight == 0
    layer = convert_unmix_tns(
        model, 8, batch_size=16, max_batch_size=32, temperature=0.1, init_coeff=0.2, exact_variance=True,
        momentum=0.3,
    )[0]  # fmt: skip
    assert (layer.num_components, layer.batch_size, layer.max_batch_size) == (8, 16, 32)
    assert (layer.temperature, layer.init_coeff, layer.exact_variance, layer.momentum) == (
        0.1,
        0.2,
        True,
        0.3,
    )
    assert restore(convert_unmix_tns(model, momentum=0.3))[0].momentum is None


def test_the_generator_fixes_a_conversion() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    one, two = (convert_unmix_tns(model, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one[0].means, two[0].means)
    assert not torch.equal(one[0].means, one[1].means)


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "no batch norm, so that there is nothing to adapt"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "norms are LayerNorm.*no batch statistics"),
    ],
)
def test_a_model_without_batch_norm_is_returned_with_a_warning(
    converter: Converter, model: nn.Module, message: str
) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        converted = converter(model)
    assert caught[0].filename == __file__
    assert converted is not model
    assert_same(converted, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert converter(model, inplace=True) is model


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("norm", "convert", "message"),
    [
        (nn.BatchNorm2d(2), lambda m: convert_alpha_bn(m, 2.0), r"source_weight must be in \[0, 1\]"),
        (nn.LayerNorm(2), lambda m: convert_alpha_bn(m, 2.0), r"source_weight must be in \[0, 1\]"),
        (nn.BatchNorm2d(2), lambda m: convert_unmix_tns(m, 0), "num_components must be at least 1"),
        (nn.BatchNorm2d(2, momentum=None), convert_unmix_tns, "got momentum=None"),
        (nn.BatchNorm2d(2, track_running_stats=False), convert_unmix_tns, "track_running_stats=False"),
        (nn.BatchNorm2d(2, track_running_stats=False), convert_alpha_bn, "pass source_weight=0"),
    ],
)
def test_models_and_options_that_do_not_fit(norm: nn.Module, convert: Converter, message: str) -> None:
    model = nn.Sequential(norm)
    with pytest.raises(ValueError, match=message):
        convert(model)
    assert model[0] is norm
