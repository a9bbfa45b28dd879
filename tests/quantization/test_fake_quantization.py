"""Fake quantisation: the levels, what is kept, what passes to the gradient, and layers that come and go."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trueup.optim import StableSPAM
from trueup.quantization import (
    FakeQuantLinear,
    dequantize_,
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


@pytest.mark.parametrize(("quantize", "levels"), list(zip(ALL, (9, 15, 16), strict=True)))
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


@pytest.mark.parametrize("quantize", KEEPING)
def test_a_group_of_one_is_its_own_scale(quantize) -> None:
    x = values(5)
    torch.testing.assert_close(quantize(x, group_size=1, keep_top=0), x)


@pytest.mark.parametrize("quantize", ALL)
def test_groups_are_independent_and_quantised_once(quantize) -> None:
    x = values(4, 16)
    y = quantize(x, group_size=8)
    parts = [quantize(part, group_size=8) for part in x.reshape(-1, 8)]
    assert torch.equal(y, torch.stack(parts).view_as(x))
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
def test_forward_mode_and_second_derivatives_pass_straight_through(quantize) -> None:
    x = values(8)
    direction = values(8) + 1
    of = lambda t: quantize(t, group_size=8)  # noqa: E731
    value, tangent = torch.func.jvp(of, (x,), (direction,))
    assert torch.equal(value, of(x))
    assert torch.equal(tangent, direction)
    torch.testing.assert_close(torch.func.jacfwd(of)(x), torch.eye(8).double())
    hessian = torch.func.hessian(lambda t: (of(t) ** 3).sum())(x)
    torch.testing.assert_close(hessian, torch.diag(6 * of(x)))


@pytest.mark.parametrize("quantize", ALL)
def test_the_result_is_where_the_input_is(quantize) -> None:
    x = values(4, 8)
    with torch.device("meta"):  # as by torch.set_default_device
        got = quantize(x, group_size=8)
    assert torch.equal(got, quantize(x, group_size=8))


@pytest.mark.parametrize("quantize", ALL)
@pytest.mark.parametrize("shape", [(0,), (0, 8), (8,), (2, 3, 8)])
def test_any_number_of_groups_and_any_layout(quantize, shape: tuple[int, ...]) -> None:
    x = values(*shape)
    y = quantize(x, group_size=8)
    assert y.shape == x.shape
    transposed = x.movedim(-1, 0).contiguous().movedim(0, -1)
    assert torch.equal(quantize(transposed, group_size=8), y)
    assert torch.equal(quantize(x[None].expand(2, *shape), group_size=8), y[None].expand(2, *shape))


@pytest.mark.parametrize("quantize", KEEPING)
def test_infinities_that_are_kept_leave_the_others_alone(quantize) -> None:
    x = values(1, 16)
    x[0, 5] = torch.inf
    y = quantize(x, group_size=16, keep_top=1)
    want = quantize(x.masked_fill(x.isinf(), 0.0), group_size=16, keep_top=0)
    assert y[0, 5] == torch.inf
    torch.testing.assert_close(y.masked_fill(y.isinf(), 0.0), want)


@pytest.mark.parametrize("quantize", ALL)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_an_infinity_or_nan_that_is_not_kept_makes_its_group_nan(quantize, bad: float) -> None:
    x = values(2, 16)
    x[0, ::5] = bad
    options = {} if quantize is fake_quantize_int4 else {"keep_top": 3}
    y = quantize(x, group_size=16, **options)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()
    if quantize is not fake_quantize_int4:
        y = quantize(x, group_size=16, keep_top=4)
        torch.testing.assert_close(y[0, ::5], x[0, ::5], equal_nan=True)
        assert y.isfinite().sum() == 32 - 4


@pytest.mark.parametrize("quantize", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_values_of_a_type_are_quantised_as_any_others(quantize, dtype: torch.dtype) -> None:
    """Their range is beyond the type, and so may be the last level."""
    limit = torch.finfo(dtype).max
    unit = torch.tensor(
        [[-1.0, 1.0, 0.5, 0.3, -0.7, 0.0], [0.0, 1.0, 0.6, 0.2, 0.9, 0.5]], dtype=torch.float64
    )
    x = (torch.cat([unit, -unit]) * limit).to(dtype)
    options = {} if quantize is fake_quantize_int4 else {"keep_top": 0}
    y = quantize(x, group_size=6, **options)
    # A power of two scales all of it exactly, to where nothing overflows.
    wide = x.to(torch.promote_types(dtype, torch.float32))
    want = quantize(wide / 256, group_size=6, **options).clamp(-limit / 256, limit / 256) * 256
    assert y.isfinite().all()
    assert torch.equal(y, want.to(dtype))


def test_int4_codes_of_the_largest_values_and_of_none() -> None:
    limit = torch.finfo(torch.float32).max
    codes, scale, zero = int4_codes(torch.tensor([-limit, -0.4 * limit, 0.0, limit]), group_size=4)
    assert codes.tolist() == [0, 5, 8, 15]
    torch.testing.assert_close(scale.double(), torch.tensor([[2 / 15 * limit]], dtype=torch.float64))
    assert zero.item() == 8
    for bad in (torch.inf, -torch.inf, torch.nan):
        codes, scale, zero = int4_codes(torch.tensor([1.0, bad, -2.0, 0.0]), group_size=4)
        assert codes.tolist() == [0, 0, 0, 0]
        assert (scale * (codes - zero)).isnan().all()


@pytest.mark.parametrize("quantize", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_scaled_in_float32(quantize, dtype: torch.dtype) -> None:
    x = values(4, 32, dtype=dtype)
    y = quantize(x, group_size=32)
    assert y.dtype == dtype
    assert torch.equal(y, quantize(x.float(), group_size=32).to(dtype))


@pytest.mark.parametrize("quantize", ALL)
def test_chunks_and_mapped_samples_are_quantised_alike(quantize) -> None:
    x = values(6, 16)
    want = quantize(x, group_size=16)
    assert torch.equal(
        torch.func.vmap(lambda t: quantize(t, group_size=16), in_dims=1)(x.view(2, 3, 16)),
        want.view(2, 3, 16).transpose(0, 1),
    )
    copies = 2**17 // x.numel() + 2  # more than one chunk
    assert torch.equal(quantize(x.repeat(copies, 1), group_size=16), want.repeat(copies, 1))


@pytest.mark.bad_input  # the hook that checks shapes breaks the graph
@pytest.mark.parametrize("quantize", ALL)
def test_compiles_as_one_graph(quantize) -> None:
    x = values(6, 16)
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: quantize(t, group_size=16), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), quantize(x, group_size=16))


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
def test_only_the_result_is_of_full_size(quantize) -> None:
    x = values(4096, 64, dtype=torch.float32)  # two chunks
    with Allocations(x.numel()) as made:
        quantize(x, group_size=64)
    assert made.large == 1


def test_int4_of_a_group_that_ends_at_zero_is_exact() -> None:
    """Its zero point is the first or the last of the codes."""
    for sign, zero in ((1.0, 0.0), (-1.0, 15.0)):
        x = sign * torch.tensor([0.0, 3.0, 7.0, 15.0])
        assert torch.equal(fake_quantize_int4(x, group_size=4), x)
        assert int4_codes(x, group_size=4)[2].item() == zero


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


@pytest.mark.parametrize("padded", [False, True])
def test_encoder_layers_do_not_go_past_the_quantised_ones_in_eval_mode(padded: bool) -> None:
    """torch computes `nn.TransformerEncoderLayer` from its weights there, and packs what is padded."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    x = values(2, 5, 16, dtype=torch.float32)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    slow = net(x, src_key_padding_mask=mask).detach()
    with torch.no_grad():
        plain = net(x, src_key_padding_mask=mask)
    quantize_linear_(net, group_size=8, skip="*.self_attn")
    trained = net(x, src_key_padding_mask=mask).detach()
    with torch.no_grad():
        evaluated = net(x, src_key_padding_mask=mask)
    torch.testing.assert_close(evaluated, trained)
    assert (evaluated - slow).abs().max() > 0.01
    dequantize_(net)
    with torch.no_grad():
        assert torch.equal(net(x, src_key_padding_mask=mask), plain)


def test_layers_take_any_batch_and_autocast() -> None:
    layer = FakeQuantLinear(16, 4, group_size=8)
    x = values(3, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.05)
    low.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer(values(0, 16, dtype=torch.float32)).shape == (0, 4)
    assert layer(x[0]).shape == (4,)


@pytest.mark.bad_input  # the hook that checks shapes breaks the graph
def test_layers_compile_and_export() -> None:
    layer = FakeQuantLinear(16, 4, group_size=8)
    x = values(3, 16, dtype=torch.float32)
    exported = torch.export.export(layer, (x,)).module()
    assert torch.equal(exported(x), layer(x))
    grads = [torch.autograd.grad(m(x).sum(), m.weight)[0] for m in (exported, layer)]
    assert torch.equal(*grads)
    assert grads[0].any()
    torch._dynamo.reset()
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_a_second_call_quantises_the_rest() -> None:
    shared = nn.Linear(8, 8)
    net = nn.Sequential(shared, nn.Linear(8, 8), shared)
    quantize_linear_(
        net, "fp4", group_size=8, skip=["2"]
    )  # either of its names leaves the shared layer alone
    assert [type(layer) is FakeQuantLinear for layer in net] == [False, True, False]
    quantize_linear_(net, "int4", group_size=4)
    assert [layer.scheme for layer in net] == ["int4", "fp4", "int4"]
    with pytest.raises(ValueError, match="not skipped or quantised"):
        quantize_linear_(net, group_size=8)


# ---- Hugging Face ----


def llama(**config: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
            **config,
        )
    )


@pytest.mark.parametrize("scheme", ["fp4", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_hugging_face_model_trains_in_four_bits(scheme: str, tied: bool, tmp_path: Path) -> None:
    net = llama(tie_word_embeddings=tied)
    names = list(net.state_dict())
    quantize_linear_(net, scheme, group_size=32, skip=["lm_head"])
    kinds = {name.rpartition(".")[2] for name, m in net.named_modules() if isinstance(m, FakeQuantLinear)}
    assert kinds == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert type(net.lm_head) is nn.Linear

    optimizer = StableSPAM(net.parameters(), 1e-2, reset_interval=5)
    ids = torch.randint(40, (4, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(12):
        losses.append(net(ids, labels=ids).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 1
    assert (net.lm_head.weight is net.model.embed_tokens.weight) == tied

    # what is saved is an ordinary model, which quantises to the same
    assert list(net.state_dict()) == names
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path).eval()
    quantised = net.eval()(ids).logits
    full = dequantize_(net)(ids).logits
    assert torch.equal(again(ids).logits, full)
    assert not torch.equal(quantised, full)
    assert torch.equal(
        quantize_linear_(again, scheme, group_size=32, skip=["lm_head"])(ids).logits, quantised
    )
    assert again.generate(ids[:1, :4], max_new_tokens=3, do_sample=False).shape == (1, 7)


def test_patterns_leave_layers_alone() -> None:
    net = quantize_linear_(llama(), group_size=32, skip=["lm_head", "*.o_proj", "model.layers.1.mlp"])
    left = [name for name, m in net.named_modules() if type(m) is nn.Linear]
    assert left == [
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj",
        *(f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")),
        "lm_head",
    ]


@pytest.mark.bad_input
def test_gpt2s_transposed_layers_are_named_and_not_passed_over() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1
    )
    net = transformers.GPT2LMHeadModel(config)
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.attn\.c_attn\.weight: Conv1D, \(32, 96\)"):
        quantize_linear_(net, group_size=32)
    assert not any(isinstance(m, FakeQuantLinear) for m in net.modules())
    quantize_linear_(net, group_size=32, skip=["*.attn", "*.mlp"])
    assert isinstance(net.lm_head, FakeQuantLinear)
    assert net.lm_head.weight is net.transformer.wte.weight


@pytest.mark.bad_input
def test_what_does_not_fit() -> None:
    with pytest.raises(TypeError, match="tensor of floating point values; got list"):
        fake_quantize_fp4([1.0, 2.0], group_size=2)
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
    net[1].forward = net[1].forward  # as hooks of some libraries do
    with pytest.raises(ValueError, match=r"1\.weight: Linear, with a forward pass of its own"):
        quantize_linear_(net, group_size=2, keep_top=1)
    assert all(type(layer) is nn.Linear for layer in net)
    del net[1].forward
    nn.utils.parametrizations.weight_norm(net[0])
    with pytest.raises(ValueError, match="parametrised"):
        quantize_linear_(net, group_size=2, keep_top=1)
    layer = FakeQuantLinear(8, 8, group_size=8)
    nn.utils.parametrizations.weight_norm(layer)
    with pytest.raises(ValueError, match="parametrised"):
        dequantize_(layer)
