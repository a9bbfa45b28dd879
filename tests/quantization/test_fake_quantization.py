"""Fake quantisation: the levels, what is kept, what passes to the gradient, and layers that come and go."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trueup.quantization import (
    FakeQuantLinear,
    dequantize_,
    fake_quantization,
    fake_quantize_fp4,
    fake_quantize_int4,
    fake_quantize_int4_symmetric,
    int4_codes,
    quantize_linear_,
)

ALL = [fake_quantize_fp4, fake_quantize_int4_symmetric, fake_quantize_int4]
KEEPING = ALL[:2]


def values(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("quantize", "levels"), list(zip(ALL, (9, 16, 16), strict=True)))
def test_no_more_levels_than_four_bits_hold(quantize, levels: int) -> None:
    x = values(1, 4096)
    options = {} if quantize is fake_quantize_int4 else {"keep_top": 0}
    found = quantize(x, group_size=4096, **options).unique()
    assert levels - 2 <= len(found) <= levels
    torch.testing.assert_close(found.diff(), found.diff()[:1].expand(len(found) - 1))


@pytest.mark.parametrize("quantize", KEEPING)
@pytest.mark.parametrize("keep_top", [1, 3])
def test_the_largest_are_kept_and_the_rest_scaled_by_the_largest_of_them(quantize, keep_top: int) -> None:
    x = values(5, 32)
    y = quantize(x, group_size=32, keep_top=keep_top)
    top = x.abs().topk(keep_top, dim=1).indices
    assert torch.equal(y.gather(1, top), x.gather(1, top))
    rest = x.scatter(1, top, 0.0)
    torch.testing.assert_close(y.scatter(1, top, 0.0), quantize(rest, group_size=32, keep_top=0))


@pytest.mark.parametrize("quantize", ALL)
def test_a_value_moves_by_half_a_level_at_most(quantize) -> None:
    x = values(6, 64)
    y = quantize(x, group_size=64)
    if quantize is fake_quantize_int4:
        step = (x.amax(1) - x.amin(1)) / 15
    else:
        step = x.abs().topk(3, dim=1).values[:, -1] / (4 if quantize is fake_quantize_fp4 else 7)
    assert ((y - x).abs() <= step[:, None] * (0.5 + 1e-9)).all()


@pytest.mark.parametrize("quantize", ALL)
def test_groups_are_independent_and_quantised_once(quantize) -> None:
    x = values(4, 16)
    y = quantize(x, group_size=8)
    parts = [quantize(part, group_size=8) for part in x.reshape(-1, 8)]
    assert torch.equal(y, torch.stack(parts).view_as(x))
    if quantize is not fake_quantize_int4_symmetric:  # its level -8 may become the new scale
        torch.testing.assert_close(quantize(y, group_size=8), y)


@pytest.mark.parametrize("quantize", ALL)
@pytest.mark.parametrize("x", [torch.zeros(2, 8), torch.full((2, 8), 1e-30), torch.full((2, 8), -3e38)])
def test_constant_groups_stay_finite(quantize, x: Tensor) -> None:
    y = quantize(x, group_size=8)
    assert y.isfinite().all()
    if quantize is not fake_quantize_int4 or x.abs().max() < 1:  # it clips what is far from zero, see there
        torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-5)


def test_int4_clips_a_group_that_does_not_straddle_zero() -> None:
    assert fake_quantize_int4(torch.tensor([3.0, 4.0]), group_size=2).max() <= 15 / 15


@pytest.mark.parametrize("quantize", ALL)
def test_nan_stays_in_its_group(quantize) -> None:
    x = values(2, 16)
    x[0, 3] = torch.nan
    y = quantize(x, group_size=16)
    assert y[0, 3].isnan()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("quantize", ALL)
def test_the_gradient_passes_straight_through(quantize) -> None:
    x = values(3, 8).requires_grad_()
    direction = values(3, 8) + 1
    quantize(x, group_size=8).backward(direction)
    assert torch.equal(x.grad, direction)


@pytest.mark.parametrize("quantize", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_scaled_in_float32(quantize, dtype: torch.dtype) -> None:
    x = values(4, 32, dtype=dtype)
    y = quantize(x, group_size=32)
    assert y.dtype == dtype
    assert torch.equal(y, quantize(x.float(), group_size=32).to(dtype))


@pytest.mark.parametrize("quantize", ALL)
def test_blocks_compiled_and_mapped_alike(quantize, monkeypatch: pytest.MonkeyPatch) -> None:
    x = values(6, 16)
    want = quantize(x, group_size=16)
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: quantize(t, group_size=16), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), want)
    assert torch.equal(
        torch.func.vmap(lambda t: quantize(t, group_size=16), in_dims=1)(x.view(2, 3, 16)),
        want.view(2, 3, 16).transpose(0, 1),
    )
    monkeypatch.setattr(fake_quantization, "_BLOCK", 32)
    assert torch.equal(quantize(x, group_size=16), want)


class Allocations(TorchDispatchMode):
    """How many tensors of at least so many elements were made."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.large = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known:
                self.large += x.untyped_storage().nbytes() >= 4 * self.size
        return out


@pytest.mark.parametrize("quantize", ALL)
def test_only_the_result_is_of_full_size(quantize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_quantization, "_BLOCK", 256)
    x = values(64, 64, dtype=torch.float32)
    with Allocations(x.numel()) as made:
        quantize(x, group_size=64)
    assert made.large == 1


def test_int4_is_its_codes() -> None:
    x = values(4, 32)
    codes, scale, zero = int4_codes(x, group_size=16)
    assert codes.dtype == torch.uint8
    assert codes.max() == 15
    want = scale * (codes.view(-1, 16).double() - zero)
    torch.testing.assert_close(fake_quantize_int4(x, group_size=16), want.view_as(x))


# ---- layers ----


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.Linear(8, 3))


@pytest.mark.parametrize("scheme", ["fp4", "int4"])
def test_a_quantised_model_trains_its_own_parameters_and_comes_back(scheme: str) -> None:
    net = model()
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    seen: list[str] = []
    net[0].register_forward_hook(lambda *_: seen.append("hook"))
    x = values(5, 16, dtype=torch.float32)
    plain = net(x)
    assert quantize_linear_(net, scheme, group_size=8, skip=["3"]) is net
    assert [type(layer).__name__ for layer in net] == ["FakeQuantLinear", "ReLU", "FakeQuantLinear", "Linear"]
    quantised = net(x)
    assert not torch.equal(quantised, plain)
    assert seen == ["hook", "hook"]
    quantised.square().sum().backward()
    optimizer.step()
    for name, p in net.named_parameters():
        assert p.data_ptr() == before[name][0]
        assert not torch.equal(p, before[name][1])
    dequantize_(net)
    assert [type(layer).__name__ for layer in net] == ["Linear", "ReLU", "Linear", "Linear"]
    fresh = model()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), net(x))


@pytest.mark.parametrize("scheme", ["fp4", "int4"])
def test_the_product_is_of_quantised_values_in_both_directions(scheme: str) -> None:
    layer = FakeQuantLinear(16, 4, scheme=scheme, group_size=8, keep_top=1, dtype=torch.float64)
    x = values(5, 16).requires_grad_()
    gy = values(5, 4)
    y = layer(x)
    y.backward(gy)
    if scheme == "fp4":
        xq, wq = (fake_quantize_fp4(t.detach(), group_size=8, keep_top=1) for t in (x, layer.weight))
    else:
        xq = fake_quantize_int4_symmetric(x.detach(), group_size=8, keep_top=1)
        wq = fake_quantize_int4(layer.weight.detach(), group_size=8)
    torch.testing.assert_close(y, xq @ wq.T + layer.bias)
    torch.testing.assert_close(x.grad, gy @ wq)
    torch.testing.assert_close(layer.weight.grad, gy.T @ xq)
    torch.testing.assert_close(layer.bias.grad, gy.sum(0))


def test_copies_of_a_quantised_model_compute_the_same() -> None:
    net = quantize_linear_(model(), group_size=8)
    x = values(2, 16, dtype=torch.float32)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(x), net(x))
    assert "scheme='fp4'" in repr(net[0])


@pytest.mark.bad_input
def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="divides the number of elements; got 10 elements"):
        fake_quantize_fp4(torch.zeros(2, 5), group_size=4)
    with pytest.raises(ValueError, match="keep_top from 0 to group_size - 1"):
        fake_quantize_fp4(torch.zeros(2, 4), group_size=4, keep_top=4)
    with pytest.raises(TypeError, match="floating point"):
        fake_quantize_int4(torch.zeros(4, dtype=torch.int64), group_size=4)
    with pytest.raises(ValueError, match="scheme must be one of fp4, int4; got 'int8'"):
        FakeQuantLinear(8, 8, scheme="int8", group_size=8)
    with pytest.raises(ValueError, match="group_size must divide in_features"):
        FakeQuantLinear(10, 8, group_size=8)


@pytest.mark.bad_input
def test_a_model_that_cannot_be_quantised_is_left_alone() -> None:
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 6), nn.Linear(6, 2))
    with pytest.raises(ValueError, match="layer '2': group_size must divide"):
        quantize_linear_(net, group_size=8)
    assert all(type(layer) is nn.Linear for layer in net)
    with pytest.raises(ValueError, match="skip names"):
        quantize_linear_(net, group_size=2, skip=["head"])
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        quantize_linear_(nn.ReLU())
    with pytest.raises(ValueError, match="no FakeQuantLinear"):
        dequantize_(net)
    nn.utils.parametrizations.weight_norm(net[0])
    with pytest.raises(ValueError, match="parametrised"):
        quantize_linear_(net, group_size=2, keep_top=1)
