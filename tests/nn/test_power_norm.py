"""Power normalisation's mathematics: the two forms of the rule for nu, its edges, its state, its cost."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from processes import in_processes
from trueup.nn import PowerNorm1d, PowerNorm2d, convert, power_norm
from trueup.nn._power_norm import equation, scale_groups


def build(features: int = 6, dtype: torch.dtype = torch.float64, **options: object) -> PowerNorm1d:
    """A layer with weights that are neither ones nor zeros."""
    layer = PowerNorm1d(features, dtype=dtype, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(features))
        layer.bias.copy_(torch.randn(features))
    return layer


def step(layer: nn.Module, x: Tensor, direction: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Output, gradients, and the state after the backward."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = layer(x) if mask is None else layer(x, mask)
    y.backward(direction)
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters()), *(b.clone() for b in layer.buffers())]


class ByTheEquations:
    """The definition line by line for tokens (N, C), with the paper's nu in the place of ema_gz."""

    def __init__(self, layer: PowerNorm1d) -> None:
        self.layer = layer
        self.phi, self.nu = torch.ones_like(layer.running_phi), torch.zeros_like(layer.ema_gz)
        self.seen = 0

    def step(self, x: Tensor, direction: Tensor, real: Tensor) -> list[Tensor]:
        layer, self.seen = self.layer, self.seen + 1
        x = x.detach().requires_grad_()
        u = x
        if layer.group_scaling:
            parts = x.view(len(x), layer.group_num, -1)
            u = (parts / (parts.pow(2).mean(-1, keepdim=True) + layer.group_eps).sqrt()).view_as(x)
        v = u.detach()
        batch = v[real].pow(2).mean(0)
        psi = ((batch if self.seen <= layer.warmup_iters else self.phi) + layer.eps).sqrt()
        z = v / psi
        weight = layer.weight.detach()
        y = weight * z + layer.bias.detach()
        if self.seen < layer.warmup_iters:
            self.phi = self.phi * (self.seen - 1) / self.seen + batch / self.seen
        self.phi = layer.alpha_fwd * self.phi + (1 - layer.alpha_fwd) * batch
        g = direction * weight
        du = (g - self.nu * z) / ((batch + layer.eps).sqrt() if layer.variant == "official" else psi)
        decay = 1 - layer.alpha_bkw  # algorithm 2 of the paper, with Gamma and Lambda
        self.nu = self.nu * (1 - decay * z.pow(2).mean(0)) + decay * (g * z).mean(0)
        u.backward(du)
        gz = self.nu / decay if decay else torch.zeros_like(self.nu)
        seen = torch.tensor([self.seen])
        return [y, x.grad, (direction * z).sum(0), direction.sum(0), self.phi, gz, seen]


@given(
    batch=st.integers(1, 5),
    time=st.integers(1, 6),
    size=st.integers(1, 3),
    groups=st.integers(1, 3),
    options=st.fixed_dictionaries(
        {
            "warmup_iters": st.integers(0, 4),
            "alpha_fwd": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
            "alpha_bkw": st.sampled_from([0.0, 0.7, 0.9]),
            "eps": st.sampled_from([1e-5, 0.3]),
            "group_eps": st.sampled_from([1e-5, 0.2]),
            "group_scaling": st.booleans(),
            "variant": st.sampled_from(["paper", "official"]),
            "batch_first": st.booleans(),
        }
    ),
    masked=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_paper_equations_with_nu_for_the_mean(
    batch: int, time: int, size: int, groups: int, options: dict[str, object], masked: bool
) -> None:
    """nu = (1 - alpha_bkw) ema_gz: the paper's rule and the code's are one."""
    layer = build(size * groups, group_num=groups, **options)
    reference = ByTheEquations(layer)
    shape = (batch, time) if options["batch_first"] else (time, batch)
    for _ in range(4):
        x, direction = torch.randn(2, *shape, layer.num_features, dtype=torch.float64) * 2 + 0.5
        mask = torch.rand(batch, time) < 0.3 if masked else torch.zeros(batch, time, dtype=torch.bool)
        mask[0, 0] = False
        got = step(layer, x, direction, mask if masked else None)
        real = ~(mask if options["batch_first"] else mask.t()).reshape(-1)
        want = reference.step(x.flatten(0, 1), direction.flatten(0, 1), real)
        got[:2] = (t.flatten(0, 1) for t in got[:2])
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_kernels_compute_the_equation(variant: str) -> None:
    """Beyond the warm-up, in several chunks, with a nu that is not 0."""
    layer = build(512, group_num=4, warmup_iters=1, variant=variant)
    for _ in range(3):
        x, direction = torch.randn(2, 700, 512, dtype=torch.float64)
        phi, nu = layer.running_phi.clone(), 0.1 * layer.ema_gz.clone()
        got = step(layer, x, direction)
    leaf = x.clone().requires_grad_()
    u = scale_groups(leaf, 4, 1e-5)
    gradient_phi = u.detach().square().mean(0) if variant == "official" else None
    y = equation(u, phi, layer.weight, layer.bias, 1e-5, gradient_phi=gradient_phi, nu=nu)
    want = torch.autograd.grad(y, [leaf, layer.weight, layer.bias], direction)
    torch.testing.assert_close(got[:4], [y.detach(), *want], rtol=1e-9, atol=1e-10)


def test_the_variants_differ_only_after_the_warm_up() -> None:
    layers = [build(warmup_iters=2, variant=variant) for variant in ("paper", "official")]
    layers[1].load_state_dict(layers[0].state_dict())
    for t in range(4):
        x, direction = torch.randn(2, 2, 3, 6, dtype=torch.float64)
        paper, official = (step(layer, x, direction) for layer in layers)
        torch.testing.assert_close(paper[0], official[0])
        assert torch.allclose(paper[1], official[1]) == (t < 2)
    assert PowerNorm1d(6).variant == "paper"


def test_two_dimensions_are_tokens_by_channels() -> None:
    layers = [build(group_num=2, warmup_iters=2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    mask = torch.tensor([[False, True, False]] * 2)
    for _ in range(3):
        x, direction = torch.randn(2, 2, 3, 6, dtype=torch.float64)
        flat = step(layers[0], x.flatten(0, 1), direction.flatten(0, 1), mask.flatten())
        for t, whole in zip(flat, step(layers[1], x, direction, mask), strict=True):
            torch.testing.assert_close(t, whole.view_as(t))


def test_pixels_are_tokens() -> None:
    images, tokens = PowerNorm2d(4, group_num=2, warmup_iters=1), PowerNorm1d(4, group_num=2, warmup_iters=1)
    for _ in range(3):
        x, direction = torch.randn(2, 3, 4, 2, 5)
        got = step(images, x, direction)
        want = step(tokens, *(t.movedim(1, -1).flatten(1, 2) for t in (x, direction)))
        want[:2] = (t.view(3, 2, 5, 4).movedim(-1, 1) for t in want[:2])
        torch.testing.assert_close(got, want)


def test_the_scale_of_a_channel_does_not_matter() -> None:
    """During the warm-up each channel is divided by its own root mean square, without group scaling."""
    x, scale = torch.randn(5, 7, 3, dtype=torch.float64), torch.tensor([1.0, 100.0, 1e-3]).double()
    plain, scaled = (build(3, group_scaling=False, eps=1e-30, affine=True) for _ in range(2))
    scaled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(scaled(x * scale), plain(x))
    values = ((plain(x) - plain.bias) / plain.weight).square().mean((0, 1))
    torch.testing.assert_close(values, torch.ones(3).double())


def test_evaluation_divides_by_the_running_mean() -> None:
    layer = build(2, group_scaling=False, eps=0.25).eval()
    layer.running_phi.copy_(torch.tensor([0.75, 3.75]))
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.weight * x / torch.tensor([1.0, 2.0]).double() + layer.bias)


# ---- edges ----


@pytest.mark.parametrize("how", ["empty", "all padding"])
@pytest.mark.parametrize("warmup", [0, 100])
def test_a_batch_without_a_token_moves_no_state(how: str, warmup: int) -> None:
    layer = build(warmup_iters=warmup, group_num=2)
    for _ in range(2):
        step(layer, *torch.randn(2, 2, 3, 6, dtype=torch.float64))
    before = copy.deepcopy(layer.state_dict())
    x, direction = torch.randn(2, 0 if how == "empty" else 2, 3, 6, dtype=torch.float64)
    mask = None if how == "empty" else torch.ones(2, 3, dtype=torch.bool)
    y, grad, *_ = step(layer, x, direction, mask)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(y, copy.deepcopy(layer).eval()(x))
    assert grad.isfinite().all()


def test_padding_does_not_enter_the_forward() -> None:
    x, mask = torch.randn(3, 4, 6, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2:] = mask[2] = True
    layers = [build(group_num=3) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    real = layers[0](x[~mask])
    x[mask] = torch.nan
    torch.testing.assert_close(layers[1](x, mask)[~mask], real)
    torch.testing.assert_close(layers[1].running_phi, layers[0].running_phi)


def test_one_token_is_legal() -> None:
    for layer, shape in ((PowerNorm1d(4), (1, 4)), (PowerNorm2d(4), (1, 4, 1, 1))):
        results = step(layer, *torch.randn(2, *shape))
        assert all(t.isfinite().all() for t in results)


def test_without_warm_up_the_first_batch_is_divided_by_one() -> None:
    layer = PowerNorm1d(3, warmup_iters=0, eps=0.5, group_scaling=False)
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer(x), x / math.sqrt(1.5))
    torch.testing.assert_close(layer.running_phi, 0.9 + 0.1 * x.square().mean(0))


def test_alpha_of_one_keeps() -> None:
    layer = build(alpha_fwd=1.0, alpha_bkw=1.0, warmup_iters=0)
    first, second = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    step(layer, *first.unsqueeze(1))
    assert torch.equal(layer.running_phi, torch.ones(6).double())
    assert layer.ema_gz.any()  # kept, and never used
    other = build(alpha_fwd=1.0, alpha_bkw=1.0, warmup_iters=0)
    other.load_state_dict(layer.state_dict())
    other.ema_gz.zero_()
    (_, grad, *_), (_, without, *_) = (step(m, *second.unsqueeze(1)) for m in (layer, other))
    torch.testing.assert_close(grad, without)


@pytest.mark.parametrize("value", [0.0, 1e-30, 7.0])
def test_zero_and_constant_input(value: float) -> None:
    layer = PowerNorm1d(4, group_num=2)
    for _ in range(3):
        y, grad, *_ = step(layer, torch.full((2, 3, 4), value), torch.randn(2, 3, 4))
        assert grad.isfinite().all()
    want = 0.0 if value < 1 else 1.0
    torch.testing.assert_close(y, torch.full_like(y, want), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("mean", "deviation"), [(100.0, 1e-2), (0.0, 1e-5), (0.0, 1e4)])
def test_float32_is_as_good_as_its_last_bits(mean: float, deviation: float) -> None:
    x, direction = (
        mean + deviation * torch.randn(8, 16, 6, dtype=torch.float64),
        torch.randn(8, 16, 6).double(),
    )
    exact = build(group_num=2, warmup_iters=1)
    layer = PowerNorm1d(6, group_num=2, warmup_iters=1)
    layer.load_state_dict(exact.state_dict())
    x = x.float().double()
    for _ in range(2):
        for got, want in zip(
            step(layer, x.float(), direction.float()), step(exact, x, direction), strict=True
        ):
            error = (got.double() - want).abs().max()
            assert error <= 2e-5 * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_half_types_take_their_statistics_in_float32(dtype: torch.dtype, masked: bool) -> None:
    """Squares of 1000 overflow float16."""
    x, direction = (torch.randn(4, 8, 6) * 1000).to(dtype), torch.randn(4, 8, 6).to(dtype)
    mask = torch.zeros(4, 8, dtype=torch.bool) if masked else None
    for group_scaling in (True, False):
        layer, reference = (PowerNorm1d(6, warmup_iters=1, group_scaling=group_scaling) for _ in range(2))
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                got = step(layer, x, direction, mask)
            want = step(reference, x.float(), direction.float(), mask)
            assert got[0].dtype == got[1].dtype == dtype
            for ours, theirs in zip(got, want, strict=True):
                tolerance = 2**-7 if ours.dtype == dtype else 1e-5
                assert (ours.float() - theirs).abs().max() <= tolerance * theirs.abs().max()


# ---- state ----


def test_an_evaluated_layer_maps_over_batches_of_images() -> None:
    layer, images = PowerNorm2d(4).eval(), torch.randn(3, 2, 4, 5, 5)
    torch.testing.assert_close(torch.func.vmap(layer)(images), torch.stack([layer(x) for x in images]))


@pytest.mark.parametrize("overflow", [math.inf, math.nan])
def test_a_gradient_that_overflowed_leaves_no_trace(overflow: float) -> None:
    """As when a loss scaler tries too large a scale: that step is skipped, and the next one is right."""
    layer = build()
    for _ in range(3):
        step(layer, *torch.randn(2, 2, 3, 6, dtype=torch.float64))
    before = layer.ema_gz.clone()
    direction = torch.ones(2, 3, 6, dtype=torch.float64)
    direction[0, 0, 0] = overflow  # of one channel
    step(layer, torch.randn(2, 3, 6, dtype=torch.float64), direction)
    assert before.any()
    assert torch.equal(layer.ema_gz, before)


def test_the_layer_used_twice_before_the_backward() -> None:
    """Each backward pass takes the nu of its own forward pass, and each updates ema_gz."""
    layer = build()
    step(layer, *torch.randn(2, 2, 3, 6, dtype=torch.float64))
    twin = copy.deepcopy(layer)
    start = layer.ema_gz.clone()
    x, direction = torch.randn(2, 2, 3, 6, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(leaf) for leaf in leaves]
    for y in outputs:
        y.backward(direction)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    step(twin, x, direction)
    torch.testing.assert_close(layer.ema_gz - start, 2 * (twin.ema_gz - start))
    assert layer.iters.item() == 3


def test_accumulated_gradients_move_the_state_once_a_batch() -> None:
    once, halves = build(), build()
    halves.load_state_dict(once.state_dict())
    batches = torch.randn(2, 2, 2, 3, 6, dtype=torch.float64)
    for x, direction in batches:
        halves(x.requires_grad_()).backward(direction)
    assert halves.iters.item() == 2
    for x, direction in batches:
        step(once, x, direction)
    torch.testing.assert_close(list(halves.buffers()), list(once.buffers()))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_checkpointing_changes_nothing(use_reentrant: bool, masked: bool) -> None:
    """Before, at and after the end of the warm-up; a batch of padding in between."""
    norm = build(group_num=2, warmup_iters=3)
    plain = nn.ModuleList([nn.Linear(6, 6), norm, nn.Linear(6, 6)]).double()
    saving = copy.deepcopy(plain)
    for t in range(6):
        x, direction = torch.randn(2, 2, 3, 6, dtype=torch.float64)
        mask = torch.rand(2, 3) < (1.0 if t == 4 else 0.3) if masked else None

        def run(model: nn.ModuleList, x: Tensor, mask: Tensor | None = mask) -> Tensor:
            first, norm, last = model
            return last(norm(first(x), mask).sin())

        results = []
        for model in (plain, saving):
            model.zero_grad()
            leaf = x.clone().requires_grad_()
            if model is saving:
                y = checkpoint(run, model, leaf, use_reentrant=use_reentrant)
            else:
                y = run(model, leaf)
            y.backward(direction)
            results.append([y, leaf.grad, *(p.grad for p in model.parameters()), *model.buffers()])
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def test_an_exported_layer_trains_with_nu_of_zero() -> None:
    layer = build(group_num=2)
    step(layer, *torch.randn(2, 2, 3, 6, dtype=torch.float64))
    exported = torch.export.export(copy.deepcopy(layer), (torch.randn(2, 3, 6).double(),)).module()
    gz = layer.ema_gz.clone()
    layer.ema_gz.zero_()
    x, direction = torch.randn(2, 2, 3, 6, dtype=torch.float64)
    (_, want, *_), (_, got, *_) = (step(m, x, direction) for m in (layer, exported))
    torch.testing.assert_close(got, want)
    assert torch.equal(exported.get_buffer("ema_gz"), gz)


def test_no_mirror_of_the_counter_on_the_host() -> None:
    """A loaded counter decides: the state is the buffers and nothing else."""
    trained, fresh = (build(warmup_iters=2) for _ in range(2))
    for _ in range(3):
        step(trained, *torch.randn(2, 2, 3, 6, dtype=torch.float64))
    fresh.load_state_dict(trained.state_dict())
    x, direction = torch.randn(2, 2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(step(fresh, x, direction), step(trained, x, direction))
    assert {name: tuple(b.shape) for name, b in trained.named_buffers()} == {
        "running_phi": (6,),
        "ema_gz": (6,),
        "iters": (1,),
    }


def test_differentiating_twice_says_why_not() -> None:
    layer, x = build(), torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable: its gradient in training is an approx"):
        grad.sum().backward()


# ---- processes ----

SIZES = [(3, 1), (2, 2), (4, 0), (1, 3)]


def shares(t: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x, direction = torch.randn(2, sum(SIZES[t]), 5, 6, generator=generator, dtype=torch.float64)
    return x, direction, torch.rand(sum(SIZES[t]), 5, generator=generator) < 0.3


def run_process(rank: int, weights: dict[str, Tensor]) -> tuple[Any, ...]:
    layer = PowerNorm1d(6, group_num=2, warmup_iters=2, process_group=dist.group.WORLD, dtype=torch.float64)
    layer.load_state_dict(weights)
    joined = []
    for t, sizes in enumerate(SIZES):
        x, direction, mask = (part.split(sizes)[rank] for part in shares(t))
        joined.append(step(layer, x, direction, mask))

    # Without a process group: rank 0's state is broadcast before each forward.
    local = PowerNorm1d(6, dtype=torch.float64)
    local.load_state_dict(weights)
    model = DistributedDataParallel(local)
    inputs = [torch.randn(2, 5, 6, dtype=torch.float64) + rank for _ in range(2)]
    model(inputs[0]).sum().backward()
    before = [b.clone() for b in local.buffers()]
    model(inputs[1]).sum().backward()
    return joined, before, inputs[1], list(local.buffers()), local.weight.grad


def test_two_processes_are_one_with_the_joined_batch(tmp_path: Path) -> None:
    layer = build(group_num=2, warmup_iters=2)
    weights = layer.state_dict()
    ranks = in_processes(run_process, weights, folder=tmp_path)
    for t in range(len(SIZES)):
        want = step(layer, *shares(t))
        first, second = (rank[0][t] for rank in ranks)
        got = [torch.cat(pair) for pair in zip(first[:2], second[:2], strict=True)]
        got += [a + b for a, b in zip(first[2:4], second[2:4], strict=True)]
        torch.testing.assert_close([*got, *first[4:]], want, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(first[4:], second[4:], rtol=0, atol=0)

    # DistributedDataParallel with local statistics: rank 1 went on from rank 0's state.
    (_, zero, _, _, grad), (_, one, x, after, same) = ranks
    assert not torch.allclose(zero[0], one[0])
    moved = PowerNorm1d(6, dtype=torch.float64)
    moved.load_state_dict(weights)
    for buffer, value in zip(moved.buffers(), zero, strict=True):
        buffer.copy_(value)
    moved(x).sum().backward()
    torch.testing.assert_close(list(moved.buffers()), after)
    torch.testing.assert_close(grad, same)


# ---- cost ----


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("variant", "vectors"), [("paper", 5), ("official", 6)])
def test_saves_the_input_and_little_else(groups: int, variant: str, vectors: int) -> None:
    layer = PowerNorm1d(64, group_num=groups, variant=variant)
    x = torch.randn(16, 32, 64, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    tokens, channels, one = 16 * 32 * groups, vectors * 64, 1
    assert sum(saved.values()) == 4 * (x.numel() + tokens + channels + one)


@pytest.mark.parametrize(
    ("layer", "shape"), [(PowerNorm1d(512, group_num=4), (8, 64, 512)), (PowerNorm2d(64), (16, 64, 14, 14))]
)
def test_saves_at_most_4_1_bytes_per_element(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes), lambda t: t):
        layer(x)
    assert 4 * x.numel() < sum(sizes) <= 4.1 * x.numel()


# ---- drop-in ----


def test_takes_the_place_of_layer_norm() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    converted = convert(model, nn.LayerNorm, PowerNorm1d, group_num=2, warmup_iters=7)
    assert isinstance(converted.norm1, PowerNorm1d)
    assert (converted.norm2.eps, converted.norm2.warmup_iters) == (model.norm2.eps, 7)
    assert torch.equal(converted.norm1.weight, model.norm1.weight)
    converted(torch.randn(2, 3, 8)).sum().backward()
    assert converted.norm2.ema_gz.any()
    converted.load_state_dict(model.state_dict(), strict=False)
    with pytest.raises(ValueError, match="one dimension of channels"):
        PowerNorm1d.from_module(nn.LayerNorm((3, 4)))
    with pytest.raises(TypeError, match="takes the place of LayerNorm; got GroupNorm"):
        PowerNorm1d.from_module(nn.GroupNorm(2, 4))
    with pytest.raises(ValueError, match="the new layer has 'bias', but the old one does not"):
        convert(nn.LayerNorm(4, bias=False), nn.LayerNorm, PowerNorm1d)


def test_repr_names_its_settings() -> None:
    assert repr(PowerNorm1d(4, group_num=2, warmup_iters=5)) == (
        "PowerNorm1d(4, eps=1e-05, alpha_fwd=0.9, alpha_bkw=0.9, affine=True, warmup_iters=5, group_num=2)"
    )
    assert "group_scaling=False" in repr(PowerNorm2d(4, group_scaling=False))


def test_reset_is_the_start() -> None:
    layer, fresh = PowerNorm1d(4), PowerNorm1d(4)
    step(layer, *torch.randn(2, 3, 4))
    layer.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), fresh.state_dict(), rtol=0, atol=0)


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", [PowerNorm1d, PowerNorm2d])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": 0.0}, ValueError, "eps must be positive, .* got 0.0"),
        ({"eps": math.nan}, ValueError, "eps must be positive"),
        ({"group_eps": -1.0}, ValueError, "group_eps must be positive"),
        ({"num_features": -1}, ValueError, "num_features must be at least 1; got -1"),
        ({"alpha_fwd": 1.1}, ValueError, r"alpha_fwd must be in \[0, 1\]; got 1.1"),
        ({"alpha_bkw": -0.1}, ValueError, r"alpha_bkw must be in \[0, 1\]"),
        ({"warmup_iters": -1}, ValueError, "warmup_iters must be at least 0; got -1"),
        ({"warmup_iters": 1.5}, TypeError, "warmup_iters must be an int"),
        ({"group_num": 0}, ValueError, "group_num must be at least 1"),
        ({"group_num": 4}, ValueError, r"divisible by group_num; got num_features=6, group_num=4"),
        ({"group_num": True}, TypeError, "group_num must be an int; got True"),
        ({"variant": "exact"}, ValueError, r"variant must be one of \('paper', 'official'\); got 'exact'"),
    ],
)
def test_settings_out_of_range(
    kind: type[nn.Module], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(**{"num_features": 6} | options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("layer", "x", "error", "message"),
    [
        (PowerNorm1d(6), torch.zeros(2, 3, 5), ValueError, "has 5 channels, but running_phi has shape"),
        (PowerNorm1d(6), torch.zeros(6), ValueError, r"needs input \(B, T, C\) or \(N, C\)"),
        (PowerNorm1d(6), torch.zeros(1, 2, 3, 6), ValueError, "use PowerNorm2d"),
        (PowerNorm2d(6), torch.zeros(2, 3, 6), ValueError, r"needs input \(N, C, H, W\).*use PowerNorm1d"),
        (PowerNorm1d(6), torch.zeros(2, 3, 6, dtype=torch.int64), TypeError, "floating point input; got"),
    ],
)
def test_inputs_that_do_not_fit(layer: nn.Module, x: Tensor, error: type[Exception], message: str) -> None:
    for training in (True, False):
        with pytest.raises(error, match=message):
            layer.train(training)(x)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.bool), ValueError, r"per token, shape \(2, 3\); got shape \(3, 2\)"),
        (torch.zeros(3, dtype=torch.bool), ValueError, r"got shape \(3,\)"),
        (torch.zeros(2, 3, 1, dtype=torch.bool), ValueError, "got shape"),
        (torch.zeros(2, 3), TypeError, "must be boolean, True for padding; got torch.float32"),
    ],
)
def test_masks_that_do_not_fit(mask: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PowerNorm1d(6)(torch.zeros(2, 3, 6), mask)


@pytest.mark.bad_input
def test_the_function_names_what_does_not_fit() -> None:
    state = torch.ones(2), torch.zeros(2), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"needs input \(\*, C\) with tokens"):
        power_norm(torch.zeros(2), *state)
    with pytest.raises(ValueError, match="weight has shape"):
        power_norm(torch.zeros(3, 2), *state, torch.ones(3))
