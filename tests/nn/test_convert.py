"""Conversion keeps everything about a model except the kind of its layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from trueup.nn import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert,
    convert_ghost_batchnorm,
)


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, eps=1e-3, momentum=0.3),
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5, affine=False)),
        nn.Flatten(),
        nn.LazyLinear(6),
        nn.BatchNorm1d(6, momentum=None),
    )
    for _ in range(2):
        model(torch.randn(4, 3, 5, 5))
    return model


def test_one_call_converts_every_batch_norm_and_copies() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    converted = convert_ghost_batchnorm(model, 8, remainder="keep")

    assert isinstance(converted[1], GhostBatchNorm2d)
    assert isinstance(converted[2][2], GhostBatchNorm2d)
    assert isinstance(converted[5], GhostBatchNorm1d)
    assert (converted[1].eps, converted[1].momentum, converted[2][2].affine) == (1e-3, 0.3, False)
    assert converted[5].momentum is None
    assert {m.ghost_batch_size for m in converted.modules() if hasattr(m, "ghost_batch_size")} == {8}
    assert converted[1].remainder == "keep"

    assert isinstance(model[1], nn.BatchNorm2d)
    assert list(converted.state_dict()) == list(before)
    torch.testing.assert_close(converted.state_dict(), before, rtol=0, atol=0)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in converted.parameters()}
    assert not shared
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(converted.eval()(x), model.eval()(x), rtol=0, atol=0)


def test_in_place_keeps_the_very_parameters() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    result = convert_ghost_batchnorm(model, 8, inplace=True)
    assert result is model
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert all(b is buffers[name] for name, b in model.named_buffers())


def test_a_model_that_is_the_source_itself_is_replaced_whole() -> None:
    layer = nn.BatchNorm3d(2)
    converted = convert(layer, nn.BatchNorm3d, GhostBatchNorm3d, inplace=True, ghost_batch_size=3)
    assert isinstance(converted, GhostBatchNorm3d)
    assert converted.weight is layer.weight
    assert converted.ghost_batch_size == 3


@pytest.mark.parametrize("inplace", [True, False])
def test_a_shared_layer_stays_shared(inplace: bool) -> None:
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(norm, nn.Linear(3, 3), nn.Sequential(norm))
    converted = convert_ghost_batchnorm(model, 4, inplace=inplace)
    assert converted[0] is converted[2][0]
    assert isinstance(converted[0], GhostBatchNorm1d)


def test_tied_parameters_stay_tied() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    converted = convert_ghost_batchnorm(model, 4)
    assert converted[0].weight is converted[1].weight


@pytest.mark.parametrize("inplace", [True, False])
def test_mode_gradients_dtype_and_hooks_stay(inplace: bool) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).double()
    model[0].eval()
    model[1].bias.requires_grad_(False)
    seen: list[str] = []
    handle = model[1].register_forward_hook(lambda *_: seen.append("forward"))
    model[1].register_forward_pre_hook(lambda *_, **__: seen.append("pre"), with_kwargs=True)
    model[1].register_full_backward_hook(lambda *_: seen.append("backward"))
    model[1].register_state_dict_post_hook(lambda *_: seen.append("state"))

    converted = convert_ghost_batchnorm(model, 4, inplace=inplace)

    assert [m.training for m in converted.modules()] == [True, False, True]
    assert [p.requires_grad for p in converted.parameters()] == [True, True, True, False]
    assert {p.dtype for p in converted.parameters()} == {torch.float64}
    assert converted[1].num_batches_tracked.dtype == torch.int64
    converted(torch.randn(4, 3, dtype=torch.float64, requires_grad=True)).sum().backward()
    converted.state_dict()
    assert seen == ["pre", "forward", "backward", "state"]
    if inplace:
        handle.remove()
        converted(torch.randn(4, 3, dtype=torch.float64))
        assert seen[4:] == ["pre"]


def test_device_stays() -> None:
    converted = convert_ghost_batchnorm(nn.Sequential(nn.BatchNorm1d(3, device="meta")), 4)
    assert {t.device.type for t in converted.state_dict().values()} == {"meta"}


def test_converting_again_changes_the_ghost_batch_size() -> None:
    once = convert(nn.Sequential(nn.BatchNorm2d(3)), nn.BatchNorm2d, GhostBatchNorm2d, remainder="keep")
    twice = convert(once, GhostBatchNorm2d, GhostBatchNorm2d, ghost_batch_size=5)
    assert (twice[0].ghost_batch_size, twice[0].remainder) == (5, "keep")


def test_converts_back_by_the_names_of_the_settings() -> None:
    ghost = convert_ghost_batchnorm(network(), 4)
    back = convert(ghost, GhostBatchNorm2d, nn.BatchNorm2d)
    assert type(back[1]) is nn.BatchNorm2d
    assert (back[1].eps, back[1].momentum, back[2][2].affine) == (1e-3, 0.3, False)
    assert isinstance(back[5], GhostBatchNorm1d)


class Scaled(nn.Module):
    """A target known by its constructor alone; `gain` is its own."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_any_layer_with_the_same_argument_names_converts(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=bias)).double()
    converted = convert(model, nn.Linear, Scaled, gain=2.0)
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(converted(x), 2 * model(x))
    assert converted[0].gain.dtype == torch.float64


def test_several_kinds_of_source() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    converted = convert(model, (nn.Identity, nn.Tanh), nn.ReLU)
    assert isinstance(converted[1], nn.ReLU)


# ---- what it refuses, leaving the model as it was ----


class TwoWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("layer", "source", "target", "error", "message"),
    [
        (nn.ReLU(), nn.BatchNorm2d, GhostBatchNorm2d, ValueError, "no BatchNorm2d; it is made of Conv1d, "),
        (nn.BatchNorm1d(3), nn.BatchNorm1d, GhostBatchNorm2d, TypeError, "of BatchNorm2d; got BatchNorm1d"),
        (nn.GroupNorm(1, 3), nn.GroupNorm, GhostBatchNorm2d, TypeError, "got GroupNorm"),
        (nn.LazyBatchNorm1d(), nn.LazyBatchNorm1d, GhostBatchNorm1d, ValueError, "not yet init"),
        (nn.Linear(3, 3), nn.Linear, TwoWeights, ValueError, r"shape \(3, 3\), the new one \(2,\)"),
        (nn.PReLU(3), nn.PReLU, nn.ReLU, ValueError, "PReLU -> ReLU: the first has a weight, the second no"),
        (nn.RReLU(), nn.RReLU, nn.Linear, TypeError, "in_features"),
        (nn.Sequential(nn.Tanh()), nn.Sequential, nn.ReLU, ValueError, "Sequential has children"),
        (nn.Tanh(), "BatchNorm2d", GhostBatchNorm2d, TypeError, "needs module classes.*got 'BatchNorm2d'"),
        (nn.Tanh(), nn.Tanh, nn.ReLU(), TypeError, "needs module classes"),
        (parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear, Scaled, ValueError, "is parametrised"),
    ],
)  # fmt: skip
def test_refuses_what_it_cannot_convert(
    layer: nn.Module, source: type, target: type, error: type[Exception], message: str
) -> None:
    model = nn.ModuleList([nn.Conv1d(1, 1, 1), layer]) if source is not nn.Sequential else layer
    before = list(model.modules())
    with pytest.raises(error, match=message):
        convert(model, source, target, inplace=True)
    assert [a is b for a, b in zip(model.modules(), before, strict=True)] == [True] * len(before)


def test_refuses_an_unknown_option() -> None:
    with pytest.raises(TypeError, match="ghost_size"):
        convert(nn.BatchNorm2d(3), nn.BatchNorm2d, GhostBatchNorm2d, ghost_size=4)


def test_a_model_without_batch_norm_is_named() -> None:
    with pytest.raises(
        ValueError, match="no BatchNorm1d or BatchNorm2d or BatchNorm3d; it is made of Linear"
    ):
        convert_ghost_batchnorm(nn.Linear(2, 2), 4)
