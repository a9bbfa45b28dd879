"""Converting models: what stays, what changes, and what is refused."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations

from processes import in_processes
from trueup.models import CifarResNet
from trueup.nn import (
    BatchChannelNorm2d,
    Conversion,
    EvoNorm2dB0,
    EvoNorm2dS0,
    EvoNorm2dS1,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    LayerNormGRU,
    PowerNorm1d,
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
    """A target without `from_module`, with a parameter of its own, `gain`."""

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


# ---- errors leave the model as it was ----


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
        (nn.Linear(3, 3), nn.Linear, TwoWeights, ValueError, r"shape \(3, 3\) in the old layer, but \(2,\)"),
        (nn.PReLU(3), nn.PReLU, nn.ReLU, ValueError, "PReLU -> ReLU: the old layer has 'weight', but"),
        (nn.RReLU(), nn.RReLU, nn.Linear, TypeError, "in_features"),
        (nn.Sequential(nn.Tanh()), nn.Sequential, nn.ReLU, ValueError, "Sequential, has children"),
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


def test_an_error_of_the_target_names_the_module() -> None:
    model = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(30)))
    with pytest.raises(ValueError, match=r"^2\.0, a BatchNorm2d: EvoNorm2dS0 needs num_features divisible"):
        convert(model, nn.BatchNorm2d, EvoNorm2dS0, apply_act=False)


def test_refuses_an_unknown_option() -> None:
    with pytest.raises(TypeError, match="ghost_size"):
        convert(nn.BatchNorm2d(3), nn.BatchNorm2d, GhostBatchNorm2d, ghost_size=4)


def test_a_model_without_batch_norm_is_named() -> None:
    with pytest.raises(
        ValueError, match="no BatchNorm1d or BatchNorm2d or BatchNorm3d; it is made of Linear"
    ):
        convert_ghost_batchnorm(nn.Linear(2, 2), 4)


# ---- layers that are normalization and activation in one ----


class NormSilu(nn.Module):
    """Batch normalization, then SiLU. Conversion to it keeps the outputs in training mode."""

    def __init__(self, num_features: int, apply_act: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.apply_act, self.eps = apply_act, eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.v = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return nn.functional.silu(y) if self.apply_act else y


class Net(nn.Module):
    """A stem, and a residual block whose second norm has no activation."""

    def __init__(self, act: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Identity(), act())
        self.conv1, self.bn1, self.act1 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=1e-2), act()
        self.conv2, self.bn2, self.act2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), act()
        for norm in (self.stem[1], self.bn1, self.bn2):
            nn.init.uniform_(norm.weight)
            nn.init.uniform_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.act2(x + self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))


def branch_on_values(self: nn.Module, x: Tensor) -> Tensor:
    return Net.forward(self, x) if x.sum() > 0 else x


class Untraceable(Net):
    forward = branch_on_values


PAIRS = {"stem.1": "stem.3", "bn1": "act1", "bn2": None}


def pasted(refusal: pytest.ExceptionInfo[ValueError]) -> dict[str, str | None]:
    """Return the pairs that an error suggests, evaluated as if pasted."""
    suggestion = re.search(r"pairs=(\{\n.*?^\})", str(refusal.value), re.MULTILINE | re.DOTALL)
    assert suggestion is not None
    return eval(suggestion[1])


@pytest.mark.parametrize("inplace", [True, False])
def test_fuses_the_norm_with_the_activation_after_it(inplace: bool) -> None:
    model = Net()
    x = torch.randn(3, 1, 6, 6)
    want, state = model(x), dict(model.named_parameters())
    seen: list[str] = []
    model.act1.register_forward_hook(lambda *_: seen.append("act1"))
    model.stem.register_forward_hook(lambda *_: seen.append("stem"))
    tables: list[list[Conversion]] = []
    converted = convert(model, nn.BatchNorm2d, NormSilu, inplace=inplace, report=tables.append)

    assert seen == []
    torch.testing.assert_close(converted(x), want)
    assert seen == ["stem", "act1"]
    assert [type(converted.get_submodule(name)) for name in ("stem.3", "act1")] == [nn.Identity] * 2
    assert isinstance(converted.act2, nn.SiLU)
    assert [converted.get_submodule(name).apply_act for name in PAIRS] == [True, True, False]
    assert converted.bn1.eps == 1e-2
    assert all((converted.get_parameter(name) is p) == inplace for name, p in state.items())

    drops = "adds v; drops running_mean, running_var, num_batches_tracked"
    assert tables == [
        [
            ("stem.1", "BatchNorm2d", "NormSilu", drops),
            ("bn1", "BatchNorm2d", "NormSilu", drops),
            ("bn2", "BatchNorm2d", "NormSilu", f"no activation follows: apply_act=False; {drops}"),
            ("stem.3", "SiLU", "Identity", "is in stem.1"),
            ("act1", "SiLU", "Identity", "is in bn1"),
        ]
    ]


def test_a_model_that_cannot_be_traced_names_its_pairs() -> None:
    model = Untraceable()
    with pytest.raises(
        ValueError, match=r"each of these norms: torch.fx cannot trace.*TraceError"
    ) as refusal:
        convert(model, nn.BatchNorm2d, NormSilu)
    assert "'stem.1': NAME,\n    'bn1': NAME,\n    'bn2': NAME,\n" in str(refusal.value)
    converted = convert(model, nn.BatchNorm2d, NormSilu, pairs=PAIRS)
    x = torch.rand(3, 1, 6, 6)
    torch.testing.assert_close(converted(x), model(x))
    assert isinstance(converted.act1, nn.Identity)


def test_other_kinds_of_activation_go_when_they_are_named() -> None:
    model = Net(nn.GELU)
    with pytest.raises(ValueError, match=r"stem\.3 follows, a GELU") as refusal:
        convert(model, nn.BatchNorm2d, NormSilu)
    assert str(refusal.value).endswith("wherever they follow a norm: activation=(nn.ReLU, nn.SiLU, nn.GELU)")
    assert isinstance(convert(model, nn.BatchNorm2d, NormSilu, pairs=pasted(refusal)).act1, nn.Identity)
    assert isinstance(convert(model, nn.BatchNorm2d, NormSilu, activation=nn.GELU).act1, nn.Identity)
    # The names can also be given by hand, and apply_act=False keeps all activations.
    assert isinstance(convert(model, nn.BatchNorm2d, NormSilu, pairs=PAIRS).act1, nn.Identity)
    converted = convert(model, nn.BatchNorm2d, NormSilu, apply_act=False)
    assert isinstance(converted.act1, nn.GELU)
    assert not converted.bn1.apply_act


def test_an_activation_shared_by_converted_norms_alone_goes() -> None:
    act = nn.SiLU()
    model = nn.Sequential(nn.BatchNorm2d(2), act, nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), act)
    x = torch.randn(3, 2, 4, 4)
    converted = convert(model, nn.BatchNorm2d, NormSilu)
    torch.testing.assert_close(converted(x), model(x))
    assert converted[1] is converted[4]


def test_what_holds_no_norm_is_not_traced() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model = nn.Sequential(Picky(), nn.BatchNorm2d(2), nn.SiLU(), nn.Sequential(Picky()))
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(convert(model, nn.BatchNorm2d, NormSilu)(x), model(x))


class Calls(nn.Module):
    """Two norms, an activation and a convolution, with the forward pass of a test."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.bn, self.other = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.act, self.conv = nn.SiLU(), nn.Conv2d(2, 2, 1)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Holder(nn.Module):
    """A module without norms, which is not traced."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act, self.fc = act, nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, x: m.other(nn.functional.silu(m.bn(x))), "function silu follows.*a module, nn.SiLU with"),
        (lambda m, x: m.other(m.bn(x).relu_()), r"bn: the function relu_ follows.*a module, nn.ReLU with"),
        (lambda m, x: m.other(m.act(h := m.bn(x)) + h), r"bn: its result goes to act and elsewhere"),
        (lambda m, x: m.act(m.other(m.conv(m.act(m.bn(x)))) + x), "act is also used where no converted norm"),
        (lambda m, x: m.other(m.act(m.bn(x)) + m.bn(x)), r"bn: it is used in several places"),
        (lambda m, x: m.act(m.bn(x)), "activation of other: torch.fx finds no call of it"),
        (lambda m, x: m.other(m.swish(m.bn(x))), r"bn: swish follows, a Swish\. Pass pairs"),
        (lambda m, x: m.other(m.act(m.drop(m.bn(x)))), "act follows, but only after drop"),
        (lambda m, x: m.other(nn.functional.silu(m.bn(x).contiguous())), "silu follows, but only after"),
    ],
)  # fmt: skip
def test_refuses_an_unclear_activation(forward, message: str) -> None:
    model = Calls(forward)
    model.swish, model.drop = Swish(), nn.Dropout()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        convert(model, nn.BatchNorm2d, NormSilu, inplace=True)
    assert [type(module) for module in model.modules()] == kinds


class StochasticDepth(nn.Module):
    """Drop the branch of a residual sum for some samples, as torchvision's class of this name does."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(0.8) / 0.8


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.SiLU(), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        )
        self.stochastic_depth = StochasticDepth()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stochastic_depth(self.block(x))


def test_one_error_names_all_unclear_norms_and_its_pairs_are_safe() -> None:
    model = nn.Sequential(*[Branch() for _ in range(9)])
    with pytest.raises(ValueError, match="each of these norms") as refusal:
        convert(model, nn.BatchNorm2d, NormSilu)
    assert "'3.block.4': None,  # 3.stochastic_depth follows, a StochasticDepth\n" in str(refusal.value)
    assert "activation=" not in str(refusal.value)
    pairs = pasted(refusal)
    assert pairs == {f"{i}.block.4": None for i in range(9)}
    converted = convert(model, nn.BatchNorm2d, NormSilu, pairs=pairs)
    assert sum(isinstance(module, StochasticDepth) for module in converted.modules()) == 9
    assert [module.apply_act for module in converted.modules() if isinstance(module, NormSilu)] == [
        True, False
    ] * 9  # fmt: skip
    x = torch.randn(4, 2, 3, 3)
    torch.manual_seed(0)
    want = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(converted(x), want)


def test_pairs_to_paste_keep_those_given_before() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), Swish(), nn.BatchNorm2d(2), Swish())
    with pytest.raises(ValueError, match=r"activation of 2: 3 follows, a Swish") as refusal:
        convert(model, nn.BatchNorm2d, NormSilu, pairs={"0": "1"})
    assert pasted(refusal) == {"0": "1", "2": None}


def test_only_an_activation_that_may_go_is_suggested() -> None:
    # A sigmoid is a gate, GLU halves the channels, and the weight of PReLU would be lost.
    others = [nn.GELU(), nn.Sigmoid(), nn.GLU(1), nn.PReLU(), nn.Hardswish()]
    model = nn.Sequential(*[module for act in others for module in (nn.BatchNorm2d(2), act)])
    with pytest.raises(ValueError, match="each of these norms") as refusal:
        convert(model, nn.BatchNorm2d, NormSilu)
    assert pasted(refusal) == {"0": "1", "2": None, "4": None, "6": None, "8": "9"}
    assert str(refusal.value).endswith("activation=(nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish)")
    with pytest.raises(ValueError, match=r"7 follows, a PReLU with parameters or buffers") as refusal:
        convert(model, nn.BatchNorm2d, NormSilu, activation=nn.PReLU)
    assert pasted(refusal)["6"] is None


def test_an_activation_that_is_used_elsewhere_too_is_not_suggested() -> None:
    model = Calls(lambda m, x: m.gelu(m.other(m.gelu(m.bn(x))) + x))
    model.gelu = nn.GELU()
    with pytest.raises(ValueError, match=r"a GELU that is used elsewhere too: give each") as refusal:
        convert(model, nn.BatchNorm2d, NormSilu)
    with pytest.raises(NameError, match="NAME"):
        pasted(refusal)


def test_a_gate_written_as_a_function_stays() -> None:
    model = Calls(lambda m, x: m.act(m.other(torch.sigmoid(m.bn(x)))))
    with pytest.raises(
        ValueError, match=r"activation of bn: the function sigmoid follows\. Pass pairs"
    ) as refusal:
        convert(model, nn.BatchNorm2d, NormSilu)
    converted = convert(model, nn.BatchNorm2d, NormSilu, pairs=pasted(refusal))
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(converted(x), model(x))


class LeakySilu(nn.SiLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * x


def test_a_subclass_of_an_activation_that_overrides_something_is_unclear() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), LeakySilu())
    with pytest.raises(ValueError, match=r"1 follows, a LeakySilu") as refusal:
        convert(model, nn.BatchNorm2d, NormSilu)
    assert pasted(refusal) == {"0": None}
    named = convert(model, nn.BatchNorm2d, NormSilu, activation=LeakySilu)
    assert isinstance(named[1], nn.Identity)


def test_pairs_may_name_the_unclear_norms_only() -> None:
    # bn's result goes to the activation and elsewhere; other's activation is found.
    model = Calls(lambda m, x: m.last(m.other(m.act(h := m.bn(x)) + h)))
    model.last = nn.SiLU()
    converted = convert(model, nn.BatchNorm2d, NormSilu, pairs={"bn": None})
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(converted(x), model(x))
    assert isinstance(converted.last, nn.Identity)


@pytest.mark.parametrize(
    "after",
    [
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 2, 1), nn.SiLU()),
        nn.Sequential(nn.Flatten(), nn.Softmax(1)),
        nn.GroupNorm(1, 2),
        nn.Sequential(),
    ],
    ids=["convolution", "softmax", "norm", "end"],
)
def test_where_no_activation_follows(after: nn.Module) -> None:
    converted = convert(nn.Sequential(nn.BatchNorm2d(2), after), nn.BatchNorm2d, NormSilu)
    assert not converted[0].apply_act


def test_an_activation_in_a_sequence_of_its_own_is_seen() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.SiLU(), nn.Conv2d(2, 2, 1)))
    converted = convert(model, nn.BatchNorm2d, NormSilu)
    assert converted[0].apply_act
    assert isinstance(converted[1][0], nn.Identity)


def test_an_activation_in_a_list_of_activations_is_seen() -> None:
    model = Calls(lambda m, x: m.other(m.acts[0](m.bn(x))))
    model.acts = nn.ModuleList([nn.SiLU()])
    converted = convert(model, nn.BatchNorm2d, NormSilu)
    assert (converted.bn.apply_act, converted.other.apply_act) == (True, False)
    assert isinstance(converted.acts[0], nn.Identity)


def test_refuses_an_activation_that_a_module_without_norms_uses_too() -> None:
    model = Net()
    model.head = Holder(model.act1)
    model.forward = lambda x: model.head(Net.forward(model, x))
    with pytest.raises(ValueError, match=r"activation act1 or head\.act is also used"):
        convert(model, nn.BatchNorm2d, NormSilu, inplace=True)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pairs": {"bn9": None}}, ValueError, "names 'bn9', which the model does not have"),
        ({"pairs": {"bn1": "act9"}}, ValueError, "names 'act9', which the model does not have"),
        ({"pairs": {"act1": None}}, ValueError, "names 'act1', a SiLU that is not converted"),
        ({"pairs": PAIRS | {"bn1": "conv1"}}, ValueError, "Conv2d has parameters or buffers, which would be"),
        ({"pairs": PAIRS, "apply_act": True}, TypeError, "cannot be combined with it"),
    ],
)
def test_refuses_pairs_that_do_not_fit(options, error, message) -> None:
    with pytest.raises(error, match=message):
        convert(Net(), nn.BatchNorm2d, NormSilu, **options)


def test_pairs_are_for_targets_with_an_activation() -> None:
    with pytest.raises(TypeError, match="pairs is for targets that take apply_act"):
        convert(Net(), nn.BatchNorm2d, GhostBatchNorm2d, pairs=PAIRS)


def test_a_model_that_is_a_norm_needs_apply_act() -> None:
    with pytest.raises(ValueError, match="the model is the norm itself"):
        convert(nn.BatchNorm2d(2), nn.BatchNorm2d, NormSilu)
    assert convert(nn.BatchNorm2d(2), nn.BatchNorm2d, NormSilu, apply_act=True).apply_act


# ---- changes of the meaning ----


class Local(nn.BatchNorm2d):
    """Keep the statistics of one process."""


class KeepsVariance(nn.Module):
    """Keep a running variance, whatever the settings."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.ones(num_features))
        self.register_buffer("running_var", torch.ones(num_features))


def test_frozen_statistics_stay_or_are_refused() -> None:
    model = Net()
    model.bn1.eval()
    with pytest.raises(ValueError, match=r"bn1, BatchNorm2d -> NormSilu: .* in eval mode.*running_mean"):
        convert(model, nn.BatchNorm2d, NormSilu)
    assert not convert(model, nn.BatchNorm2d, GhostBatchNorm2d).bn1.training
    # A model that is in eval mode as a whole is not frozen.
    assert not convert(model.eval(), nn.BatchNorm2d, NormSilu).bn1.training


def test_what_is_frozen_gets_no_trainable_parameters() -> None:
    model = Net()
    model.bn1.requires_grad_(False)
    converted = convert(model, nn.BatchNorm2d, NormSilu)
    assert not converted.bn1.v.requires_grad
    assert converted.bn2.v.requires_grad


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("layer", "source", "target", "message"),
    [
        (nn.SyncBatchNorm(2), nn.SyncBatchNorm, Local, "0, SyncBatchNorm -> Local: .*its statistics between"),
        (nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d, KeepsVariance,
         "the new layer has 'running_var', but the old one does not"),
        (nn.LayerNorm((2, 2)), nn.LayerNorm, PowerNorm1d, "one dimension of channels"),
        (nn.LayerNorm(2, bias=False), nn.LayerNorm, PowerNorm1d,
         "the new layer has 'bias', but the old one does not"),
        (nn.utils.spectral_norm(nn.Linear(2, 2)), nn.Linear, Scaled, "the old layer has 'weight_orig', but"),
    ],
)  # fmt: skip
def test_refuses_what_would_change_the_meaning(
    layer: nn.Module, source: type, target: type, message: str
) -> None:
    model = nn.Sequential(layer)
    with pytest.raises(ValueError, match=message):
        convert(model, source, target, inplace=True)
    assert model[0] is layer


def convert_wrapped(rank: int) -> None:
    mesh = init_device_mesh("cpu", (1,))
    for wrapped in (nn.parallel.DistributedDataParallel(Net()), fully_shard(Net(), mesh=mesh)):
        with pytest.raises(ValueError, match="change the model first, and wrap the changed one"):
            convert(wrapped, nn.BatchNorm2d, GhostBatchNorm2d)


def test_refuses_a_model_that_is_wrapped_for_distributed_training(tmp_path: Path) -> None:
    in_processes(convert_wrapped, folder=tmp_path, number=1)


@pytest.mark.bad_input  # no process group, only something in its place
def test_statistics_that_are_shared_stay_shared() -> None:
    group = object()
    layer = nn.SyncBatchNorm(2)
    layer.process_group = group
    assert convert(layer, nn.SyncBatchNorm, EvoNorm2dB0, inplace=True, apply_act=True).process_group is group
    # A layer without batch statistics has nothing to share.
    assert isinstance(
        convert(nn.SyncBatchNorm(2), nn.SyncBatchNorm, nn.GroupNorm, num_groups=1), nn.GroupNorm
    )


def test_refuses_a_forward_method_set_on_the_object() -> None:
    for name in ("bn1", "act1"):
        model = Net()
        layer = model.get_submodule(name)
        layer.forward = lambda x: x
        with pytest.raises(ValueError, match=f"{name}, a .* has a forward of its own"):
            convert(model, nn.BatchNorm2d, NormSilu, inplace=True)
        assert model.get_submodule(name) is layer


def test_refuses_the_norms_of_a_recurrent_cell() -> None:
    model = nn.ModuleDict({"norm": nn.LayerNorm(3), "rnn": LayerNormGRU(3, 4)})
    with pytest.raises(ValueError, match=r"the norms in rnn.cells.0, a LayerNormGRUCell, belong to its equa"):
        convert(model, nn.LayerNorm, PowerNorm1d)
    assert isinstance(convert(model["norm"], nn.LayerNorm, PowerNorm1d), PowerNorm1d)


def test_torchs_encoder_layer_leaves_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = convert(nn.TransformerEncoder(layer, 2), nn.LayerNorm, PowerNorm1d).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        model.layers[0].norm1.running_phi.fill_(4)
        fast = model(x)
    torch.testing.assert_close(fast, model(x).detach())


def test_torchs_encoder_leaves_its_fast_path_for_padded_batches() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    padding = torch.tensor([[False, False, True], [False, False, False]])
    x = torch.randn(2, 3, 8)
    model = convert(encoder, nn.LayerNorm, PowerNorm1d).eval()
    with torch.no_grad():
        fast = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(fast, model(x, src_key_padding_mask=padding).detach())
    assert encoder.use_nested_tensor  # a copy was converted
    assert convert(encoder, nn.Dropout, nn.Identity).use_nested_tensor
    before = nn.Sequential(nn.BatchNorm1d(8), encoder)
    assert convert(before, nn.BatchNorm1d, GhostBatchNorm1d)[1].use_nested_tensor


def test_torchs_encoder_layer_calls_a_converted_activation() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True).eval()
    model, x = convert(layer, nn.ReLU, nn.Tanh), torch.randn(2, 3, 8)
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x).detach())


@pytest.mark.bad_input
def test_refuses_what_attention_reads_the_weights_of() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    with pytest.raises(ValueError, match="self_attn, a MultiheadAttention, reads the weights of its out"):
        convert(layer, nn.Linear, nn.Identity)


def test_submodules_of_a_target_get_the_mode_of_the_replaced_module() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.RReLU()).eval()
    converted = convert(model, nn.BatchNorm2d, EvoNorm2dS1, activation=nn.RReLU, groups=2)
    assert not any(module.training for module in converted.modules())


# ---- modules that do more than their kind ----


class NormAct(nn.BatchNorm2d):
    """Norm, dropout and activation in one, with the state dict of a norm, as timm's `BatchNormAct2d`."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class GhostNormAct(GhostBatchNorm2d):
    @classmethod
    def from_module(cls, module, **options):
        new = super().from_module(module, **options)
        new.drop, new.act = module.drop, module.act
        return new

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def timm_like() -> nn.Sequential:
    block = nn.Sequential(nn.Conv2d(3, 3, 1), NormAct(3))
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), NormAct(3), block)


def test_a_norm_that_activates_is_refused_by_name() -> None:
    model = timm_like()
    kinds = [type(module) for module in model.modules()]
    message = (
        r"^2, a NormAct \(and 1 more\), overrides forward of BatchNorm2d.*\(model, \{NormAct: Target\}\)"
    )
    with pytest.raises(ValueError, match=message):
        convert_ghost_batchnorm(model, 4, inplace=True)
    # Naming the class is not enough: the target must have a place for its parts.
    with pytest.raises(
        ValueError, match=r"2, a NormAct, has children that find no place .*, drop, act: name"
    ):
        convert(model, {NormAct: GhostBatchNorm2d}, inplace=True)
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("inplace", [True, False])
def test_a_norm_that_activates_is_converted_by_a_target_of_its_own(inplace: bool, order: int) -> None:
    model = timm_like()
    x = torch.randn(4, 2, 5, 5)
    model(x)
    want, names = model.eval()(x), list(model.state_dict())
    seen: list[str] = []
    model[2].register_forward_hook(lambda *_: seen.append("norm"))
    model[2].act.register_forward_hook(lambda *_: seen.append("act"))
    targets = dict([(nn.BatchNorm2d, GhostBatchNorm2d), (NormAct, GhostNormAct)][::order])
    converted = convert(model, targets, inplace=inplace, ghost_batch_size=2)
    assert [type(converted[i]) for i in (1, 2)] == [GhostBatchNorm2d, GhostNormAct]
    assert list(converted.state_dict()) == names
    torch.testing.assert_close(converted(x), want, rtol=0, atol=0)
    assert seen == ["act", "norm"]
    converted.train()(x).sum().backward()
    assert all(p.grad is not None for p in converted.parameters())


def test_a_target_may_do_the_work_of_a_child_itself() -> None:
    """EvoNorm does the work of the activation, and puts an Identity in its place."""

    class Fused(NormSilu):
        @classmethod
        def from_module(cls, module: NormAct, **options: Any) -> Fused:
            new = cls(module.num_features, eps=module.eps, **options)
            new.drop, new.act = module.drop, nn.Identity()
            return new

    model = nn.Sequential(NormAct(3))
    converted = convert(model, {NormAct: Fused}, apply_act=True)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(converted(x), nn.functional.silu(nn.BatchNorm2d(3)(x)))


def test_what_a_target_takes_over_is_converted_too() -> None:
    model = nn.Sequential(NormAct(3))
    converted = convert(model, {NormAct: GhostNormAct, nn.ReLU: nn.Tanh}, inplace=True)
    assert isinstance(converted[0].act, nn.Tanh)


def test_a_target_may_wrap_what_it_replaces() -> None:
    class Halved(nn.Module):
        @classmethod
        def from_module(cls, module):
            new = cls()
            new.inner = module
            return new

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) / 2

    model = nn.Sequential(nn.Tanh())
    converted = convert(model, nn.Tanh, Halved)
    assert isinstance(converted[0].inner, nn.Tanh)
    x = torch.randn(3)
    torch.testing.assert_close(converted(x), model(x) / 2)


def test_what_a_target_takes_over_stays_as_it_is() -> None:
    class Cast(GhostNormAct):
        @classmethod
        def from_module(cls, module, **options):
            new = super().from_module(module, **options)
            new.scale = nn.Linear(1, 1)
            new.register_buffer("count", torch.zeros(()))
            return new

    model = nn.Sequential(NormAct(3).half())
    model[0].act = nn.PReLU(3)
    converted = convert(model, {NormAct: Cast})
    assert converted[0].act.weight.dtype == torch.float32
    assert {t.dtype for t in (converted[0].scale.weight, converted[0].count)} == {torch.float16}


class Mixed:
    def train(self, mode: bool = True):
        return super().train(False)


class After(nn.Module):
    def train(self, mode: bool = True):
        return super().train(False)


class Scheduled(nn.BatchNorm2d):
    @property
    def momentum(self) -> float:
        return 0.5

    @momentum.setter
    def momentum(self, value: float) -> None: ...


def overriding(name: str) -> type[nn.BatchNorm2d]:
    method = getattr(nn.BatchNorm2d, name)
    return type("Own", (nn.BatchNorm2d,), {name: lambda self, *args, **kwargs: method(self, *args, **kwargs)})


@pytest.mark.parametrize(
    ("kind", "overridden"),
    [
        *[(overriding(name), name) for name in (
            "forward", "train", "__call__", "state_dict", "_load_from_state_dict", "get_extra_state", "half",
        )],
        (type("Own", (Mixed, nn.BatchNorm2d), {}), "train"),
        (type("Own", (nn.BatchNorm2d, After), {}), "train"),
        (type("Own", (overriding("forward"),), {}), "forward"),
        (Scheduled, "momentum"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", [GhostBatchNorm2d, EvoNorm2dS0, nn.GroupNorm])
def test_refuses_a_subclass_that_overrides_something(
    kind: type[nn.Module], overridden: str, target: type[nn.Module]
) -> None:
    model = nn.Sequential(kind(4))
    with pytest.raises(
        ValueError, match=f"0, a .*, overrides {overridden} of BatchNorm2d, which {target.__name__}"
    ):
        convert(model, nn.BatchNorm2d, target, inplace=True)
    assert type(model[0]) is kind


def test_refuses_an_object_whose_class_was_changed() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].__class__ = overriding("forward")
    with pytest.raises(ValueError, match="overrides forward"):
        convert_ghost_batchnorm(model, 4)


class Described(nn.BatchNorm2d):
    """Override nothing that computes."""

    __constants__ = ("number",)
    number: int = 3
    log: Callable[[str], None] | None = None

    def __init__(self, num_features: int, number: int) -> None:
        super().__init__(num_features)
        self.number = number
        self.log = print

    def extra_repr(self) -> str:
        return "of ours"

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 2.0)

    def fuse(self) -> None: ...

    @property
    def width(self) -> int:
        return self.num_features


def test_a_subclass_that_overrides_nothing_is_converted() -> None:
    assert isinstance(convert_ghost_batchnorm(nn.Sequential(Described(4, 5)), 4)[0], GhostBatchNorm2d)
    assert isinstance(convert(Described(4, 5), Described, GhostBatchNorm2d), GhostBatchNorm2d)


def test_a_class_that_is_named_itself_is_the_callers_decision() -> None:
    kind = overriding("train")
    assert isinstance(convert(nn.Sequential(kind(4)), kind, GhostBatchNorm2d)[0], GhostBatchNorm2d)


def test_torchs_own_subclasses_are_of_their_kind() -> None:
    kind = nn.modules.batchnorm._BatchNorm
    model = nn.Sequential(nn.BatchNorm1d(4), nn.SyncBatchNorm(4))
    converted = convert(model, kind, nn.GroupNorm, num_groups=2)
    assert [type(module) for module in converted] == [nn.GroupNorm] * 2
    converted = convert(nn.Sequential(nn.Dropout2d()), nn.modules.dropout._DropoutNd, nn.Identity)
    assert isinstance(converted[0], nn.Identity)


def extended(norm: nn.Module, what: str) -> nn.Module:
    """Give the norm a class of its own, and state that its kind lacks."""
    norm.__class__ = type("Extended", (type(norm),), {})
    if what == "child":
        norm.extra = nn.Linear(1, 1)
    elif what == "parameter":
        norm.extra = nn.Parameter(torch.ones(4))
    else:
        norm.register_buffer("extra", torch.ones(4), persistent=False)
    return norm


@pytest.mark.parametrize("what", ["child", "parameter", "buffer"])
@pytest.mark.parametrize(
    ("source", "target", "options"),
    [
        (nn.BatchNorm2d, GhostBatchNorm2d, {}),
        (nn.BatchNorm2d, EvoNorm2dS0, {"groups": 2, "apply_act": False}),
        (nn.BatchNorm2d, nn.GroupNorm, {"num_groups": 2}),
        (nn.LayerNorm, PowerNorm1d, {}),
    ],
)
def test_refuses_state_that_finds_no_place(source, target, options, what: str) -> None:
    norm = extended(source(4), what)
    model = nn.Sequential(norm)
    message = (
        "0, a Extended.*, has children"
        if what == "child"
        else f"0, .* -> {target.__name__}: the old layer has 'extra'"
    )
    with pytest.raises(ValueError, match=message):
        convert(model, source, target, inplace=True, **options)
    assert model[0] is norm


@pytest.mark.parametrize("name", ["train", "_load_from_state_dict", "state_dict", "to"])
def test_refuses_a_method_set_on_the_object(name: str) -> None:
    for path in ("bn1", "act1"):
        model = Net()
        layer = model.get_submodule(path)
        setattr(layer, name, lambda *args: None)
        with pytest.raises(ValueError, match=f"{path}, a .* has a {name} of its own, set on the object"):
            convert(model, nn.BatchNorm2d, NormSilu, inplace=True)
        assert model.get_submodule(path) is layer


@pytest.mark.parametrize("inplace", [True, False])
def test_what_was_set_on_the_object_stays(inplace: bool) -> None:
    model = Net()
    for layer in (model.bn1, model.act1):
        layer.qconfig = None  # not to be quantized; without the attribute the parent's would apply
        layer.layer_id = 3
        layer._is_hf_initialized = True
        layer._cache = [1]
    converted = convert(model, nn.BatchNorm2d, NormSilu, inplace=inplace)
    for layer in (converted.bn1, converted.act1):
        assert (layer.qconfig, layer.layer_id, layer._is_hf_initialized) == (None, 3, True)
        # Working state and settings of the old layer are gone.
        assert vars(layer).keys().isdisjoint({"_cache", "momentum", "inplace", "track_running_stats"})
    assert "qconfig" not in vars(converted.bn2)


@pytest.mark.parametrize("inplace", [True, False])
def test_what_is_not_saved_stays_unsaved(inplace: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    model[0].register_buffer("running_mean", torch.ones(3), persistent=False)
    names = list(model.state_dict())
    converted = convert_ghost_batchnorm(model, 4, inplace=inplace)
    assert list(converted.state_dict()) == names
    assert converted[0].running_mean[0] == 1


@pytest.mark.parametrize("inplace", [True, False])
def test_what_is_saved_stays_saved(inplace: bool) -> None:
    class Unsaved(nn.BatchNorm2d):
        def __init__(self, num_features: int) -> None:
            super().__init__(num_features)
            self.register_buffer("running_mean", self.running_mean, persistent=False)

    model = nn.Sequential(nn.BatchNorm2d(3))
    names = list(model.state_dict())
    assert list(convert(model, nn.BatchNorm2d, Unsaved, inplace=inplace).state_dict()) == names


def test_new_parameters_of_a_layer_without_any_are_not_frozen() -> None:
    converted = convert(nn.Sequential(nn.BatchNorm2d(3, affine=False)), nn.BatchNorm2d, OnlyGain)
    assert converted[0].gain.requires_grad


class OnlyGain(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = self.bias = None
        self.gain = nn.Parameter(torch.ones(num_features))


def test_an_error_leaves_the_hooks_with_the_old_modules() -> None:
    seen: list[nn.Module] = []
    model = nn.Sequential(nn.BatchNorm2d(4), NormAct(4))
    model[0].register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    with pytest.raises(ValueError, match="find no place"):
        convert(model, {nn.BatchNorm2d: GhostBatchNorm2d, NormAct: GhostBatchNorm2d}, inplace=True)
    gc.collect()
    model.load_state_dict(model.state_dict())
    assert seen == [model[0]]


# ---- modules in plain attributes and containers ----


class Pair(NamedTuple):
    first: nn.Module
    second: int


class Stages(nn.Module):
    """Register stages one by one and run them from a list, as detectron2's ResNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[nn.Module | list] = []
        for number in range(2):
            stage = nn.BatchNorm2d(2)
            self.add_module(f"res{number}", stage)
            self.stages.append(stage)
        self.act = nn.SiLU()
        self.acts = {"last": [self.act]}
        self.__dict__["first"] = self.res0
        self.named = (Pair(self.res0, 1), 2, ((self.res1,), self.res0))
        self.again = self.named
        self.both, self.swapped = (self.res0, self.res1), (self.res1, self.res0)
        self.sums = {"numbers": [1, 2], "self": self}
        self.stages.append(self.stages)  # a cycle

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages[:2]:
            x = stage(x)
        return self.acts["last"][0](x)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_module_in_a_plain_container_is_replaced_there_too(inplace: bool) -> None:
    model = Stages()
    x = torch.randn(3, 2, 4, 4)
    want, old, stages = model(x), model.res0, model.stages
    tables: list[list[Conversion]] = []
    converted = convert(model, nn.BatchNorm2d, NormSilu, inplace=inplace, report=tables.append)
    assert (converted is model) == (converted.stages is stages) == inplace
    assert [type(converted.res0), type(converted.act)] == [NormSilu, nn.Identity]
    assert all(a is b for a, b in zip(converted.stages, (converted.res0, converted.res1), strict=False))
    assert converted.stages[2] is converted.stages
    assert converted.acts["last"][0] is converted.act
    assert converted.first is converted.res0
    named = (Pair(converted.res0, 1), 2, ((converted.res1,), converted.res0))
    assert converted.named == named
    assert converted.named[0].first is converted.res0
    assert converted.again is converted.named
    assert converted.both == (converted.res0, converted.res1) == converted.swapped[::-1]
    assert converted.sums["numbers"] == [1, 2]
    assert converted.sums["self"] is converted
    torch.testing.assert_close(converted(x), want)

    notes = {row.name: row.note for row in tables[0]}
    places = "stages[0], first, named[0][0], named[2][1], again[0][0], again[2][1], both[0], swapped[1]"
    assert f"also in {places};" in notes["res0"]
    assert notes["act"] == "is in res1; also in acts['last'][0]"
    if not inplace:
        assert model.stages[0] is model.first is model.named[0].first is old
        assert model.acts["last"][0] is model.act


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("kind", [set, frozenset, deque])
def test_a_module_in_a_set_or_deque_is_replaced_there_too(kind: type, inplace: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    model.held = held = kind([model[0], 3])
    converted = convert_ghost_batchnorm(model, 4, inplace=inplace)
    assert set(converted.held) == {converted[0], 3}
    assert isinstance(converted.held, kind)
    assert (converted.held is held) == (inplace and kind is not frozenset)
    assert inplace or (isinstance(model[0], nn.BatchNorm2d) and model[0] in held)


def test_a_container_that_cannot_be_rebuilt_leaves_the_model_as_it_was() -> None:
    class Two(tuple):
        def __new__(cls, one: object, other: object) -> Two:
            return super().__new__(cls, (one, other))

        def __getnewargs__(self) -> tuple[object, ...]:
            return (*self,)

    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    model.stages = [model[0]]
    model.held = Two(model[1], 3)
    before = [*model]
    with pytest.raises(TypeError):
        convert_ghost_batchnorm(model, 4, inplace=True)
    assert [*model] == before
    assert model.stages == before[:1]
    assert [*model.held] == [before[1], 3]


def test_a_container_that_is_not_registered_runs_the_new_layers() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2))
    model.inner = [nn.Sequential(model[0])]
    converted = convert_ghost_batchnorm(model, 4)
    assert converted.inner[0][0] is converted[0]
    assert isinstance(model.inner[0][0], nn.BatchNorm2d)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_new_layer_holds_new_layers(inplace: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    model[0].partners = (model[1],)
    converted = convert_ghost_batchnorm(model, 4, inplace=inplace)
    assert converted[0].partners == (converted[1],)


def test_a_weak_proxy_is_left_alone() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(2)))
    vars(model[0])["parent"] = weakref.proxy(model)
    assert isinstance(convert_ghost_batchnorm(model, 4, inplace=True)[0][0], GhostBatchNorm2d)


@pytest.mark.parametrize("other", [True, False], ids=["beside others", "alone"])
@pytest.mark.parametrize("where", ["direct", "list", "deep"])
def test_refuses_a_norm_that_is_not_registered(where: str, other: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2) if other else nn.Tanh())
    norm = nn.BatchNorm2d(2)
    held = {"direct": norm, "list": [norm], "deep": {"a": (nn.Sequential(norm),)}}[where]
    vars(model[0])["held"] = held
    path = {"direct": "0.held", "list": r"0.held\[0\]", "deep": r"0.held\['a'\]\[0\].0"}[where]
    with pytest.raises(ValueError, match=f"^{path}, a BatchNorm2d, is not registered: torch does not see it"):
        convert_ghost_batchnorm(model, 4)


def test_refuses_an_activation_that_is_not_registered() -> None:
    model = Calls(lambda m, x: m.hidden[0](m.bn(x)))
    model.hidden = [nn.SiLU()]
    with pytest.raises(ValueError, match=r"calls a SiLU that is not registered: use nn\.ModuleList"):
        convert(model, nn.BatchNorm2d, NormSilu)


def test_refuses_an_activation_that_a_module_without_norms_holds_in_a_list() -> None:
    model = Net()
    model.head = Holder(nn.ReLU())
    model.head.acts = [model.act1]
    model.forward = lambda x: model.head(Net.forward(model, x))
    with pytest.raises(ValueError, match=r"activation act1 or head\.acts\[0\] is also used"):
        convert(model, nn.BatchNorm2d, NormSilu, inplace=True)


def test_a_module_that_runs_a_norm_from_a_list_is_traced() -> None:
    class Runs(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norms, self.act = [norm], nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.norms[0](x))

    model = Calls(lambda m, x: m.runs(x))
    del model.other
    model.runs = Runs(model.bn)
    converted = convert(model, nn.BatchNorm2d, NormSilu)
    assert isinstance(converted.runs.act, nn.Identity)
    assert converted.runs.norms[0].apply_act


# ---- the report, and several kinds at once ----


def test_a_mapping_converts_several_kinds_at_once() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Tanh(), nn.BatchNorm1d(4))
    converted = convert(model, {nn.BatchNorm2d: GhostBatchNorm2d, nn.Tanh: nn.ReLU})
    assert [type(module) for module in converted] == [GhostBatchNorm2d, nn.ReLU, nn.BatchNorm1d]


def test_settings_that_norms_name_differently_are_taken_over() -> None:
    grouped = nn.GroupNorm(2, 4, eps=1e-3)
    evonorm = convert(grouped, nn.GroupNorm, EvoNorm2dS0, apply_act=True)
    assert (evonorm.num_features, evonorm.groups, evonorm.eps) == (4, 2, 1e-3)
    norm = convert(nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm2d, nn.GroupNorm, num_groups=2)[0]
    assert (norm.num_channels, norm.num_groups, norm.affine) == (4, 2, True)


def test_the_report_prints() -> None:
    lines: list[str] = []
    convert(nn.BatchNorm2d(2), nn.BatchNorm2d, GhostBatchNorm2d, report=lambda t: lines.append(str(t)))
    assert lines[0].split() == [
        "name",
        "before",
        "after",
        "note",
        "(model)",
        "BatchNorm2d",
        "GhostBatchNorm2d",
    ]


@pytest.mark.bad_input
def test_a_report_that_fails_leaves_the_model_as_it_was() -> None:
    model = Net()
    before = list(model.modules())
    with pytest.raises(ZeroDivisionError):
        convert(model, nn.BatchNorm2d, GhostBatchNorm2d, inplace=True, report=lambda table: 1 / 0)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


@pytest.mark.bad_input
def test_refuses_two_targets_or_none() -> None:
    for nothing in ((), {}):
        with pytest.raises(TypeError, match="at least one class to replace"):
            convert(Net(), nothing, GhostBatchNorm2d if nothing == () else None)
    with pytest.raises(TypeError, match=r"needs module classes.*got \[<class"):
        convert(Net(), [nn.BatchNorm2d], GhostBatchNorm2d)
    with pytest.raises(TypeError, match="not both"):
        convert(Net(), {nn.BatchNorm2d: GhostBatchNorm2d}, GhostBatchNorm2d)
    with pytest.raises(TypeError, match=r"needs module classes.*got None"):
        convert(Net(), nn.BatchNorm2d)


# ---- whole models ----


@pytest.mark.bad_input  # torch.fx runs the network on proxies, which its signature forbids
def test_a_resnet_in_evonorm() -> None:
    model = CifarResNet(1, 8, 4, 10)
    before = dict(model.named_parameters())
    converted = convert(model, nn.BatchNorm2d, EvoNorm2dS0, group_size=2, inplace=True)
    assert all(converted.get_parameter(name) is p for name, p in before.items())
    assert not [m for m in converted.modules() if isinstance(m, nn.BatchNorm2d)]
    # The ReLU after each sum stays.
    assert sum(isinstance(m, nn.ReLU) for m in converted.modules()) == len(converted.blocks)
    assert [norm.apply_act for norm in converted.modules() if isinstance(norm, EvoNorm2dS0)] == [
        *[True] * 2, False, *[True, False, False] * 2
    ]  # fmt: skip
    nn.functional.cross_entropy(converted(torch.randn(4, 1, 8, 8)), torch.arange(4)).backward()
    assert all(p.grad is not None for p in converted.parameters())


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_hugging_face_model_in_powernorm(family: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    torch.manual_seed(0)
    if family == "bert":
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
        )
        model = transformers.BertModel(config)
    else:
        config = transformers.DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=16)
        model = transformers.DistilBertModel(config)
    before = model.state_dict()
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)]
    converted = convert(model, nn.LayerNorm, PowerNorm1d, group_num=2, warmup_iters=3)
    assert [n for n, m in converted.named_modules() if isinstance(m, PowerNorm1d)] == norms
    # An old checkpoint loads; only state that the new layers alone have is missing.
    missing, unexpected = converted.load_state_dict(before, strict=False)
    assert not unexpected
    assert {name.rpartition(".")[2] for name in missing} == {"running_phi", "ema_gz", "iters"}

    tokens = torch.randint(20, (3, 5))
    mask = torch.tensor([[1] * 5, [1] * 5, [1, 1, 1, 0, 0]])
    converted.train()(tokens, attention_mask=mask).last_hidden_state.sum().backward()
    assert all(int(m.iters) == 1 for m in converted.modules() if isinstance(m, PowerNorm1d))
    assert converted.eval()(tokens, attention_mask=mask).last_hidden_state.isfinite().all()


@pytest.mark.bad_input  # torch.fx runs the network on proxies, which its signature forbids
def test_tensors_stay_where_they_are_or_are_copied_once() -> None:
    model = CifarResNet(1, 8, 4, 10)
    there = {name: t.data_ptr() for name, t in model.state_dict().items()}
    convert(model, nn.BatchNorm2d, EvoNorm2dS0, group_size=2, inplace=True)
    assert all(t.data_ptr() == there[name] for name, t in model.state_dict().items() if name in there)

    copies = []
    model = CifarResNet(1, 8, 4, 10)

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.clone.default:
                copies.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    with Count():
        convert(model, nn.BatchNorm2d, GhostBatchNorm2d)
    assert sum(copies) <= sum(t.numel() for t in model.state_dict().values())


@pytest.mark.bad_input  # torch.fx runs the network on proxies, which its signature forbids
def test_the_tutorial_runs() -> None:
    pytest.importorskip("transformers", reason="the tutorial converts a Hugging Face model")
    page = Path(__file__).parents[2] / "docs" / "tutorials" / "convert.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    scope: dict[str, object] = {"__name__": "tutorial"}
    for block in blocks:
        exec(block, scope)
    assert isinstance(scope["gated"].act, nn.Identity)
    net, converted = scope["net"], scope["ghost_net"]
    assert list(converted.state_dict()) == list(net.state_dict())
    x = torch.randn(4, 3, 6, 6)
    assert (converted.train()(x) >= 0).all()
    converted.load_state_dict(net.state_dict())
    torch.testing.assert_close(converted.eval()(x), net.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_before_loading_go_to_the_counterpart(inplace: bool) -> None:
    seen: list[nn.Module] = []
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    converted = convert(model, nn.BatchNorm2d, GhostBatchNorm2d, inplace=inplace)
    gc.collect()  # the replaced module is gone
    converted.load_state_dict(converted.state_dict())
    assert seen == [converted[0]]


def test_statistics_that_the_counterpart_keeps_deeper_down_are_not_lost() -> None:
    model = nn.Sequential(nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match="keeps its statistics in a submodule, 'bn', and convert would lose"):
        convert(model, nn.BatchNorm2d, BatchChannelNorm2d, num_groups=4, channel_affine="channel")
    made = BatchChannelNorm2d(8, num_groups=4)
    made.bn.load_state_dict(model[0].state_dict())  # as the message says
