"""Test SAM: the perturbation, weights that come back bit for bit, and any optimizer inside."""

from __future__ import annotations

import copy
import math
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from processes import in_processes
from trueup.optim import SAM, SGDP, SPAM, AdamP, NormalizedGD, StableSPAM
from trueup.optim._sam import perturbations


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def batch(n: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=generator).to(dtype), torch.randint(3, (n,), generator=generator)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def snapshot(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_perturbation_is_the_formula(adaptive: bool) -> None:
    model = network()
    sam = SAM(torch.optim.SGD(model.parameters(), 0.1), 0.3, adaptive=adaptive)
    loss_of(model, *batch()).backward()
    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    g = torch.cat([p.grad.flatten() for p in model.parameters()])
    e = 0.3 * w**2 * g / (w * g).norm() if adaptive else 0.3 * g / g.norm()
    with sam.perturbed():
        moved = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(moved, w + e, rtol=0, atol=1e-11)
    stated = perturbations([*model.parameters()], [p.grad for p in model.parameters()], 0.3, adaptive)
    torch.testing.assert_close(torch.cat([part.flatten() for part in stated]), e, rtol=0, atol=1e-11)


def test_adaptive_perturbation_follows_a_rescaling_of_the_weights() -> None:
    """ASAM, section 3: f(w) = h(a w) perturbs w by 1/a of what h perturbs a w by."""
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    a = torch.tensor([3.0, 0.1, 7.0], dtype=torch.float64)
    moves = []
    for start, scale in ((w, a), (w * a, torch.ones_like(a))):
        p = nn.Parameter(start.clone())
        sam = SAM(torch.optim.SGD([p], 0.1), 0.2, adaptive=True)
        (p * scale).exp().sum().backward()
        with sam.perturbed():
            moves.append((p.detach() - start) * scale)
    torch.testing.assert_close(*moves, rtol=1e-10, atol=0)


def test_rho_zero_is_the_optimizer_itself() -> None:
    plain, sharp = network(), network()
    base, wrapped = (torch.optim.SGD(m.parameters(), 0.1, 0.9) for m in (plain, sharp))
    sam = SAM(wrapped, 0.0)
    for _ in range(3):
        base.zero_grad()
        loss_of(plain, *batch()).backward()
        base.step()

        def closure() -> Tensor:
            wrapped.zero_grad()
            loss = loss_of(sharp, *batch())
            loss.backward()
            return loss

        sam.step(closure)
    assert same(sharp, snapshot(plain))


BASES = [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, AdamP, SGDP, StableSPAM, SPAM]


@pytest.mark.parametrize("base", BASES)
def test_closure_and_pieces_are_one_step(base: type[torch.optim.Optimizer]) -> None:
    by_closure, by_pieces = network(), network()
    one, two = SAM(base(by_closure.parameters(), lr=0.1)), SAM(base(by_pieces.parameters(), lr=0.1))
    x, y = batch()

    def closure() -> Tensor:
        one.optimizer.zero_grad()
        loss = loss_of(by_closure, x, y)
        loss.backward()
        return loss

    for _ in range(3):
        before = loss_of(by_closure, x, y)
        assert torch.equal(one.step(closure), before)
        two.optimizer.zero_grad()
        loss_of(by_pieces, x, y).backward()
        two.perturb()
        two.optimizer.zero_grad()
        loss_of(by_pieces, x, y).backward()
        two.restore()
        two.optimizer.step()
    assert same(by_pieces, snapshot(by_closure))


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    whole, parts = network(), network()
    x, y = batch(8)
    sams = [SAM(torch.optim.SGD(m.parameters(), 0.1), 0.5) for m in (whole, parts)]
    for sam, model, cuts in ((sams[0], whole, 1), (sams[1], parts, 4)):

        def closure(sam: SAM = sam, model: nn.Module = model, cuts: int = cuts) -> Tensor:
            sam.optimizer.zero_grad()
            losses = [
                loss_of(model, *piece) / cuts for piece in zip(x.chunk(cuts), y.chunk(cuts), strict=True)
            ]
            torch.stack(losses).sum().backward()
            return torch.stack(losses).sum()

        sam.step(closure)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_an_interrupt_while_perturbing_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(torch.float32)
    sam = SAM(torch.optim.SGD(model.parameters(), 0.1), 5.0)
    loss_of(model, *batch(dtype=torch.float32)).backward()
    before = snapshot(model)

    copy, copied = torch._foreach_copy_, []

    def half_way(targets: list[Tensor], sources: list[Tensor]) -> None:
        copy(targets, sources)
        if len(copied) == 2:  # the first two have moved
            assert not same(model, before)
            copied.clear()
            raise KeyboardInterrupt
        copied.append(targets)

    monkeypatch.setattr(torch, "_foreach_copy_", half_way)
    with pytest.raises(KeyboardInterrupt), sam.perturbed():
        pytest.fail("not reached")
    assert same(model, before)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_weights_come_back_bit_by_bit_after_an_exception(adaptive: bool) -> None:
    model = network(torch.float32)
    sam = SAM(torch.optim.SGD(model.parameters(), 0.1), 5.0, adaptive=adaptive)
    before, calls = snapshot(model), []

    def closure() -> Tensor:
        calls.append(not same(model, before))
        if len(calls) == 2:
            raise KeyboardInterrupt
        loss = loss_of(model, *batch(dtype=torch.float32))
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        sam.step(closure)
    assert calls == [False, True]
    assert same(model, before)
    with pytest.raises(RuntimeError, match="weights are not perturbed"):
        sam.restore()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("scale", [2.0**16, math.inf, math.nan])
def test_a_scaled_gradient_perturbs_alike_and_one_that_overflowed_not_at_all(
    scale: float, adaptive: bool
) -> None:
    models = network(), network()
    moved = []
    for model, factor in zip(models, (1.0, scale), strict=True):
        sam = SAM(torch.optim.SGD(model.parameters(), 0.1), adaptive=adaptive)
        loss_of(model, *batch()).backward()
        for p in model.parameters():
            p.grad.mul_(factor)
        before = snapshot(model)
        with sam.perturbed():
            moved.append([p.detach() - b for p, b in zip(model.parameters(), before, strict=True)])
    for plain, scaled in zip(*moved, strict=True):
        assert scaled.isfinite().all()
        want = plain if math.isfinite(scale) else torch.zeros_like(plain)
        torch.testing.assert_close(scaled, want, rtol=1e-9, atol=1e-14)


def test_with_a_gradient_scaler() -> None:
    plain, scaled = network(torch.float32), network(torch.float32)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for model, optimizer, scale in (
        (plain, optimizers[0], lambda loss: loss),
        (scaled, optimizers[1], scaler.scale),
    ):
        sam = SAM(optimizer, 0.2)
        scale(loss_of(model, *batch(dtype=torch.float32))).backward()
        with sam.perturbed():
            optimizer.zero_grad()
            scale(loss_of(model, *batch(dtype=torch.float32))).backward()
        if model is plain:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("overflows", [1, 2])
def test_a_gradient_scaler_skips_what_overflowed(overflows: int) -> None:
    """In the second pass: no step at all. In the first: a plain step, without a perturbation."""
    model = network(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sam, before = SAM(optimizer, 0.2), snapshot(model)
    scaler.scale(loss_of(model, *batch(dtype=torch.float32))).backward()
    if overflows == 1:
        model[0].weight.grad[0, 0] = torch.inf
    with sam.perturbed():
        assert same(model, before) == (overflows == 1)
        optimizer.zero_grad()
        scaler.scale(loss_of(model, *batch(dtype=torch.float32))).backward()
        if overflows == 2:
            model[0].weight.grad[0, 0] = torch.inf
    assert same(model, before)
    scaler.step(optimizer)
    scaler.update()
    assert same(model, before) == (overflows == 2)
    assert scaler.get_scale() == 2.0 ** (9 if overflows == 2 else 10)


class Live(TorchDispatchMode):
    """Most bytes that tensors made within held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        known = {x.untyped_storage().data_ptr() for x in flat if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known:
                size = x.untyped_storage().nbytes()
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(x, self.free, size)
        return out

    def free(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("adaptive", [False, True])
def test_one_copy_of_the_parameters_is_made_once(adaptive: bool) -> None:
    params = [nn.Parameter(torch.randn(64, 64)) for _ in range(10)]
    for p in params:
        p.grad = torch.randn(64, 64)
    sam = SAM(torch.optim.SGD(params, 0.1), adaptive=adaptive)
    whole, one = 10 * 4 * 64**2, 4 * 64**2
    # besides the copy: nothing, or in the adaptive form what one tensor's product and square take
    for held in (whole, 0):
        with Live() as memory, sam.perturbed():
            pass
        assert held <= memory.most <= held + 2 * one * adaptive + 1000


def test_parameters_that_change_their_dtype_come_back_bit_by_bit() -> None:
    model = network(torch.float32)
    sam = SAM(torch.optim.SGD(model.parameters(), 0.1))
    loss_of(model, *batch(dtype=torch.float32)).backward()
    with sam.perturbed():
        pass
    model.zero_grad()
    for p in model.double().parameters():
        p.data += 1e-12
    before = snapshot(model)
    loss_of(model, *batch()).backward()
    with sam.perturbed():
        assert not same(model, before)
    assert same(model, before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_carry_on(duplicate: Any) -> None:
    model = network()
    sam = SAM(torch.optim.SGD(model.parameters(), 0.1, 0.9), 0.3)
    pair = model, sam
    for number in range(3):
        if number == 1:
            pair = duplicate(pair)
        for net, own in {id(m): (m, o) for m, o in ((model, sam), pair)}.values():
            loss_of(net, *batch()).backward()
            with own.perturbed():
                own.optimizer.zero_grad()
                loss_of(net, *batch()).backward()
            own.optimizer.step()
            own.optimizer.zero_grad()
    assert pair[0] is not model
    assert same(pair[0], snapshot(model))


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_listed_twice_is_one() -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    p.grad = p.detach().clone()
    sam = SAM(torch.optim.SGD([p, p], 0.1), 0.5)
    with sam.perturbed():
        torch.testing.assert_close(p.detach(), torch.tensor([3.3, 4.4]))
    assert p.tolist() == [3.0, 4.0]


def test_parameters_without_a_gradient_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    sam = SAM(torch.optim.SGD(model.parameters(), 0.1), 1.0)
    loss_of(model, *batch()).backward()
    before = snapshot(model)
    with sam.perturbed():
        moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, True, True]


@pytest.mark.parametrize("adaptive", [False, True])
def test_what_is_maximized_is_perturbed_to_where_it_is_lowest(adaptive: bool) -> None:
    p, q = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    groups = [{"params": [p]}, {"params": [q], "maximize": True}]
    p.grad, q.grad = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 2.0])  # of a loss and of its negative
    with SAM(torch.optim.SGD(groups, 0.1), 0.5, adaptive=adaptive).perturbed():
        assert p.tolist() != [3.0, 4.0]
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1.0), (torch.float16, 1e4), (torch.float16, 1e-6), (torch.bfloat16, 1.0)],
)
@pytest.mark.parametrize("spoiled", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
def test_accelerators_perturb_as_a_cpu_does(
    adaptive: bool, spoiled: bool, dtype: torch.dtype, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    perturbed = []
    for on_cpu in (True, False):
        if not on_cpu:
            monkeypatch.setattr(Tensor, "is_cpu", False)
        generator = torch.Generator().manual_seed(0)
        p, q = (nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype)) for _ in range(2))
        p.grad, q.grad = (scale * torch.randn(2, 3, 4, generator=generator)).to(dtype)
        if spoiled:
            p.grad[0, 0] = torch.inf
        groups = [{"params": [p]}, {"params": [q], "maximize": True}]
        with SAM(torch.optim.SGD(groups, 0.1), 0.5, adaptive=adaptive).perturbed():
            perturbed.append([p.detach().clone(), q.detach().clone()])
        assert torch.equal(p, perturbed[0][0]) == spoiled
    close = {"rtol": torch.finfo(dtype).eps, "atol": 0.0} if dtype != torch.float32 else {}
    torch.testing.assert_close(perturbed[1], perturbed[0], **close)


@pytest.mark.parametrize("adaptive", [False, True])
def test_no_value_is_read_from_an_accelerator(adaptive: bool) -> None:
    with FakeTensorMode():  # reading a value of a fake tensor raises
        p = nn.Parameter(torch.empty(5, 4, device="cuda"))
        p.grad = torch.empty(5, 4, device="cuda")
        sam = SAM(torch.optim.SGD([p], 0.1, foreach=True), adaptive=adaptive)
        with sam.perturbed():
            assert p.device.type == "cuda"
        sam.optimizer.step()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("adaptive", [False, True])
def test_half_types_are_perturbed_as_float32_is(adaptive: bool, scale: float) -> None:
    """Weights times scaled gradients, and one over their norm, are beyond the range of float16."""
    generator = torch.Generator().manual_seed(0)
    w, g = torch.randn(2, 1000, generator=generator).half().float()
    moves = []
    for dtype in (torch.float32, torch.float16):
        p = nn.Parameter(8 * w.to(dtype))
        p.grad = (g * scale).to(torch.float16).to(dtype)
        with SAM(torch.optim.SGD([p], 0.1), 5.0, adaptive=adaptive).perturbed():
            moves.append(p.detach().float() - 8 * w)
    torch.testing.assert_close(moves[1], moves[0], rtol=0.01, atol=0.01)


def test_the_norm_of_a_large_model_has_the_digits_of_float32() -> None:
    p = nn.Parameter(torch.zeros(2048, 1024))
    p.grad = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))
    with SAM(torch.optim.SGD([p], 0.1), 100.0).perturbed():
        assert p.detach().double().norm().item() == pytest.approx(100.0, rel=5e-6)


def test_half_precision_norms_are_taken_in_float32() -> None:
    p = nn.Parameter(torch.zeros(100_000, dtype=torch.float16))
    p.grad = torch.full_like(p, 10.0)  # the sum of squares is 1e7, above float16's range
    sam = SAM(torch.optim.SGD([p], 0.1), 100.0)
    with sam.perturbed():
        torch.testing.assert_close(p.detach().float().norm(), torch.tensor(100.0), rtol=1e-3, atol=0)


# ---- several processes ----


def train(rank: int, kind: str) -> list[Tensor]:
    """Ten steps on this process's half of the batch; the whole weights."""
    model, (x, y) = network(), batch(8)
    half = slice(4 * rank, 4 * rank + 4)
    wrapped: nn.Module = model
    if kind == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    else:
        wrapped = DistributedDataParallel(model)
    for adaptive in (False, True):
        sam = SAM(torch.optim.SGD(model.parameters(), 0.2, 0.9), 0.3, adaptive=adaptive)

        def closure(sam: SAM = sam) -> Tensor:
            sam.optimizer.zero_grad()
            loss = loss_of(wrapped, x[half], y[half])
            loss.backward()
            return loss

        for _ in range(5):
            sam.step(closure)
    return [p.full_tensor() if kind == "fsdp" else p.detach() for p in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_the_joined_batch(tmp_path: Path, kind: str) -> None:
    found = in_processes(train, kind, folder=tmp_path)
    model, (x, y) = network(), batch(8)
    for adaptive in (False, True):
        sam = SAM(torch.optim.SGD(model.parameters(), 0.2, 0.9), 0.3, adaptive=adaptive)

        def closure(sam: SAM = sam) -> Tensor:
            sam.optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            return loss

        for _ in range(5):
            sam.step(closure)
    for weights in found:
        for p, want in zip(weights, model.parameters(), strict=True):
            torch.testing.assert_close(p, want.detach(), rtol=1e-6, atol=1e-9)


def locally(rank: int) -> tuple[list[Tensor], list[Tensor]]:
    """How the weights were perturbed by this process's own gradient, and what they are after the step."""
    model, (x, y) = network(), batch(8)
    half = slice(4 * rank, 4 * rank + 4)
    wrapped = DistributedDataParallel(model)
    sam = SAM(torch.optim.SGD(model.parameters(), 0.2), 0.3)
    before = snapshot(model)
    with wrapped.no_sync():
        loss_of(wrapped, x[half], y[half]).backward()
    with sam.perturbed():
        moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
        sam.optimizer.zero_grad()
        loss_of(wrapped, x[half], y[half]).backward()
    sam.optimizer.step()
    return moved, snapshot(model)


@pytest.mark.slow
def test_a_local_perturbation_is_each_processs_own(tmp_path: Path) -> None:
    found = in_processes(locally, folder=tmp_path)
    x, y = batch(8)
    grads = []
    for rank, (moved, _) in enumerate(found):
        model = network()
        sam = SAM(torch.optim.SGD(model.parameters(), 0.2), 0.3)
        half = slice(4 * rank, 4 * rank + 4)
        before = snapshot(model)
        loss_of(model, x[half], y[half]).backward()
        with sam.perturbed():
            for p, b, m in zip(model.parameters(), before, moved, strict=True):
                torch.testing.assert_close(p.detach() - b, m, rtol=1e-9, atol=1e-12)
            model.zero_grad()
            loss_of(model, x[half], y[half]).backward()
        grads.append([p.grad for p in model.parameters()])
    for _, weights in found:
        for p, b, one, two in zip(weights, before, *grads, strict=True):
            torch.testing.assert_close(p, b - 0.2 * (one + two) / 2, rtol=1e-9, atol=1e-12)


# ---- bad input ----


@pytest.mark.bad_input
def test_what_is_no_optimizer() -> None:
    with pytest.raises(TypeError, match="SAM works with an optimizer"):
        SAM(network().parameters())
    for optimizer in (torch.optim.LBFGS(network().parameters()), NormalizedGD(network().parameters(), 1.0)):
        with pytest.raises(TypeError, match="computes its own within"):
            SAM(optimizer)


@pytest.mark.bad_input
@pytest.mark.parametrize("rho", [-0.1, math.inf, math.nan])
def test_rho_out_of_range(rho: float) -> None:
    with pytest.raises(ValueError, match="rho must be finite and at least 0"):
        SAM(torch.optim.SGD(network().parameters(), 0.1), rho)


@pytest.mark.bad_input
def test_steps_out_of_order() -> None:
    model = network()
    sam = SAM(torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(TypeError, match="needs a closure"):
        sam.step(None)
    with pytest.raises(RuntimeError, match="Call backward"):
        sam.perturb()
    with pytest.raises(RuntimeError, match="weights are not perturbed"):
        sam.restore()
    loss_of(model, *batch()).backward()
    sam.perturb()
    with pytest.raises(RuntimeError, match="already perturbed"):
        sam.perturb()


@pytest.mark.bad_input
def test_complex_gradients() -> None:
    p = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="dense real gradients"):
        SAM(torch.optim.SGD([p], 0.1)).perturb()


@pytest.mark.bad_input
def test_sparse_gradients() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(RuntimeError, match="dense real gradients"):
        SAM(torch.optim.SGD(table.parameters(), 0.1)).perturb()
    assert torch.equal(table.weight, before)
