"""Training parts of a model, masked weights, and the report on norm layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from trueup.models import CifarResNet
from trueup.nn import (
    GhostBatchNorm2d,
    freeze_all_but_norm_affine,
    norm_affine_report,
    random_parameter_mask,
    reinit_norm_affine,
    train_masked,
    train_only,
)


def resnet() -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(1, 8, 4, 10)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8))
    loss.backward()
    optimizer.step()


# ---- trainable parameters ----


def test_the_papers_count() -> None:
    model = CifarResNet(3, 110, 16, 10)
    assert sum(p.numel() for p in model.parameters()) == 1_730_714
    for train_output, count in ((False, 8_288), (True, 8_938)):
        names = freeze_all_but_norm_affine(model, train_output=train_output)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
        assert ("fc.weight" in names) == train_output


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        GhostBatchNorm2d(4),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_every_norm_layer_counts(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), norm)
    assert freeze_all_but_norm_affine(model) == [f"1.{name}" for name, _ in norm.named_parameters()]


def test_parts_can_be_named_alone_and_all_come_back() -> None:
    model = resnet()
    everything = list(dict(model.named_parameters()))
    assert train_only(model) == []
    assert train_only(model, "output") == ["fc.weight", "fc.bias"]
    others = train_only(model, "others", "output")
    assert not [name for name in others if "bn" in name or name.endswith("shortcut.1.weight")]
    assert train_only(model, "norm", "output", "others") == everything
    assert sorted(others + train_only(model, "norm")) == sorted(everything)


def test_names_that_stay_trainable_and_another_output_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Linear(2, 2))
    assert freeze_all_but_norm_affine(model, also_train=["0.bias"]) == ["0.bias", "1.weight", "1.bias"]
    names = freeze_all_but_norm_affine(model, train_output=True, output_layer="2")
    assert names == ["1.weight", "1.bias", "2.weight", "2.bias"]


def test_a_norm_without_affine_contributes_nothing_and_a_shared_one_counts_once() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(shared, nn.Linear(3, 3), shared, nn.BatchNorm1d(3, affine=False))
    assert freeze_all_but_norm_affine(model) == ["0.weight", "0.bias"]
    assert [row.features for row in norm_affine_report(model)] == [3, 3]


def test_the_names_of_a_wrapped_model_carry_its_prefix() -> None:
    model = nn.DataParallel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert freeze_all_but_norm_affine(model) == ["module.1.weight", "module.1.bias"]
    with pytest.raises(ValueError, match=r"no parameter '0.bias'; did you mean 'module.0.bias'\?"):
        freeze_all_but_norm_affine(model, also_train=["0.bias"])


def test_only_gamma_beta_and_running_statistics_move() -> None:
    model = resnet()
    reinit_norm_affine(model)
    names = freeze_all_but_norm_affine(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    buffers = {name for name, _ in model.named_buffers()}
    assert changed == {*names, *buffers}
    assert model.conv.weight.grad is None


# ---- initial values ----


@pytest.mark.parametrize(
    ("kind", "low", "high", "mean"),
    [("uniform", 0.0, 1.0, 0.5), ("ones", 1.0, 1.0, 1.0), ("uniform_pm1", -1.0, 1.0, 0.0)],
)
def test_initial_values_of_the_affine_parameters(kind: str, low: float, high: float, mean: float) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4000), nn.BatchNorm2d(3, affine=False), nn.RMSNorm(4000))
    reinit_norm_affine(model, kind, 0.25, generator=torch.Generator().manual_seed(0))
    assert (model[0].bias == 0.25).all()
    for weight in (model[0].weight, model[2].weight):
        assert low <= weight.min() <= low + 0.01
        assert high - 0.01 <= weight.max() <= high
        assert abs(weight.mean().item() - mean) < 0.03
    first = model[0].weight.clone()
    reinit_norm_affine(model, kind, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model[0].weight, first, rtol=0, atol=0)


# ---- the control: random weights of the same number ----


def test_as_many_weights_per_filter_as_the_norm_has() -> None:
    model = CifarResNet(3, 14, 8, 10)
    masks = random_parameter_mask(model, generator=torch.Generator().manual_seed(0))
    convolutions = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert list(masks) == [f"{name}.weight" for name in convolutions]
    for name, mask in masks.items():
        assert mask.shape == model.get_parameter(name).shape
        assert (mask.flatten(1).sum(1) == 2).all()
    again = random_parameter_mask(model, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(masks[name], again[name]) for name in masks)

    affine = sum(m.weight.numel() * 2 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    names = train_masked(model, masks)
    assert sum(model.get_parameter(name).numel() for name in names) == affine


def test_what_is_drawn_does_not_depend_on_the_default_device() -> None:
    layer, masks = nn.Conv1d(2, 8, 3), []
    for device in ("cpu", "meta"):
        with torch.device(device):
            masks.append(random_parameter_mask(layer, generator=torch.Generator().manual_seed(0))["weight"])
    assert torch.equal(*masks)


def test_every_weight_is_as_likely() -> None:
    mask = random_parameter_mask(nn.Conv1d(2, 8000, 3), generator=torch.Generator().manual_seed(0))["weight"]
    torch.testing.assert_close(mask.float().mean(0), torch.full((2, 3), 1 / 3), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    ],
    ids=["SGD", "AdamW"],
)
def test_masked_entries_stay_bit_identical(optimizer) -> None:
    model = resnet()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    masks = random_parameter_mask(model)
    train_masked(model, masks, train_output=True)
    torch.testing.assert_close(model.conv.weight, start["conv.weight"], rtol=0, atol=0)
    assert not model.bn.weight.requires_grad
    opt = optimizer([p for p in model.parameters() if p.requires_grad])
    for _ in range(3):
        step(model, opt)
    for name, mask in masks.items():
        weight: Tensor = model.get_submodule(name.rpartition(".")[0]).weight
        assert torch.equal(weight[~mask], start[name][~mask]), name
        assert (weight[mask] != start[name][mask]).all(), name
    assert not torch.equal(model.fc.weight, start["fc.weight"])

    plain = model.conv.weight.detach().clone()
    parametrize.remove_parametrizations(model.conv, "weight")
    torch.testing.assert_close(model.conv.weight, plain, rtol=0, atol=0)


def test_the_gradient_of_the_trained_entries_is_the_weights() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3)).double()
    masks = random_parameter_mask(model)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    model(x).square().sum().backward()
    want = model[0].weight.grad[masks["0.weight"]]
    train_masked(model, masks)
    model(x).square().sum().backward()
    torch.testing.assert_close(model[0].parametrizations.weight.original.grad, want)


@pytest.mark.bad_input  # the compiler's fake tensors do not match the signature
def test_a_masked_model_can_be_copied_saved_and_compiled() -> None:
    model = resnet()
    train_masked(model, random_parameter_mask(model, generator=torch.Generator().manual_seed(1)))
    twin = resnet()
    train_masked(twin, random_parameter_mask(twin, generator=torch.Generator().manual_seed(2)))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(4, 1, 8, 8)
    for other in (twin, copy.deepcopy(model), torch.compile(model, backend="eager", fullgraph=True)):
        torch.testing.assert_close(other.train()(x), model.train()(x))
    torch.compiler.reset()


def test_a_wrapped_model_is_not_masked() -> None:
    class DistributedDataParallel(nn.DataParallel):
        """A wrapper is recognized by the name of its class."""

    model = DistributedDataParallel(resnet())
    with pytest.raises(ValueError, match="wrapped for distributed training"):
        train_masked(model, random_parameter_mask(model))


def test_masking_one_copy_leaves_the_other_alone() -> None:
    """Copies of a parametrised layer share the class that torch makes for it."""
    layer = nn.Conv2d(2, 3, 3)
    parametrize.register_parametrization(layer, "bias", nn.Identity())
    other, x = copy.deepcopy(layer), torch.randn(1, 2, 4, 4)
    want = other(x)
    train_masked(layer, random_parameter_mask(layer))
    torch.testing.assert_close(other(x), want, rtol=0, atol=0)


# ---- the report ----


def test_the_report_counts_small_weights() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2, dtype=torch.bfloat16))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.0, -0.009, 0.01, 1.0]))
        model[2].weight.copy_(torch.tensor([0.5, -2.0]))
    first, second, total = norm_affine_report(model)
    assert (first.layer, first.features, first.disabled) == ("0", 4, 0.5)
    assert (second.layer, second.features, second.disabled, second.median) == ("2", 2, 0.0, 1.25)
    assert (total.layer, total.features) == ("(all)", 6)
    assert total.disabled == pytest.approx(1 / 3)
    assert norm_affine_report(model, 0.6)[-1].disabled == pytest.approx(4 / 6)
    assert str(norm_affine_report(model)).splitlines()[0].split() == list(first._fields)


# ---- errors ----


def shared_convolution() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    model[1].weight = model[0].weight
    return model


def masked() -> nn.Module:
    model = nn.Conv2d(2, 2, 3)
    train_masked(model, random_parameter_mask(model))
    return model


MASK = {"0.weight": torch.ones(2, 2, 3, 3, dtype=torch.bool)}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: train_only(nn.Linear(2, 2), "output"), ValueError, "no norm layer with affine parameters"),
        (lambda: norm_affine_report(nn.BatchNorm1d(2, affine=False)), ValueError, "no norm layer"),
        (lambda: reinit_norm_affine(nn.Tanh()), ValueError, "pass norm_layers="),
        (lambda: train_only(resnet(), "bn"), ValueError, "'norm', 'output' and 'others'; got 'bn'"),
        (lambda: train_only(resnet(), ["norm"]), ValueError, r"got \['norm'\]"),
        (lambda: train_only(resnet(), "output", output_layer="relu"), ValueError, "ReLU, which has no param"),
        (lambda: train_only(resnet(), "norm", also_train=["conv.wight"]), ValueError, "mean 'conv.weight'"),
        (lambda: train_only(resnet(), "output", also_train=["bn.bias"]), ValueError,
         "belongs to the part 'norm': train that part"),
        (lambda: train_only(resnet(), "norm", output_layer="head"), ValueError, "no module 'head'"),
        (lambda: train_only(nn.BatchNorm1d(2), "output"), ValueError, "pass output_layer=NAME"),
        (lambda: reinit_norm_affine(resnet(), "zeros"), ValueError, "'uniform', 'ones', 'uniform_pm1'; got"),
        (lambda: reinit_norm_affine(parametrizations.weight_norm(nn.LayerNorm((2, 2)))), ValueError,
         "the model is parametrised"),
        (lambda: random_parameter_mask(nn.Linear(2, 2)), ValueError, "no Conv1d, Conv2d or Conv3d"),
        (lambda: random_parameter_mask(nn.Conv2d(1, 4, 1)), ValueError, "has 1 weights, fewer than per_chan"),
        (lambda: random_parameter_mask(nn.Conv2d(1, 4, 3), 0), ValueError, "at least 1; got 0"),
        (lambda: norm_affine_report(resnet(), -1.0), ValueError, "must not be negative; got -1.0"),
        (lambda: norm_affine_report(resnet(), float("nan")), ValueError, "must not be negative; got nan"),
        (lambda: train_masked(resnet(), {}), ValueError, "no masks"),
        (lambda: train_masked(shared_convolution(), MASK), ValueError, "is shared, as 0.weight and 1.w"),
        (lambda: train_masked(nn.Sequential(nn.Conv2d(2, 3, 3)), MASK), ValueError,
         r"shape \(3, 2, 3, 3\); got \(2, 2, 3, 3\)"),
        (lambda: train_masked(nn.Sequential(nn.Conv2d(2, 2, 3)), {"0.weight": MASK["0.weight"].float()}),
         TypeError, "must be boolean.*got torch.float32"),
        (lambda: train_masked(parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), {"weight": MASK["0.weight"]}),
         ValueError, "weight belongs to a parametrised layer"),
        (lambda: train_masked(masked(), {"weight": MASK["0.weight"]}), ValueError,
         "weight belongs to a parametrised layer"),
        (lambda: train_masked(masked(), {"parametrizations.weight.original": MASK["0.weight"]}), ValueError,
         "belongs to a parametrised layer"),
    ],
)  # fmt: skip
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_refusal_leaves_the_model_as_it_was() -> None:
    model = resnet()
    with pytest.raises(ValueError, match="no parameter"):
        train_only(model, "norm", also_train=["x"])
    with pytest.raises(ValueError, match="shape"):
        train_masked(model, random_parameter_mask(model) | {"conv.weight": MASK["0.weight"]})
    assert all(p.requires_grad for p in model.parameters())
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
