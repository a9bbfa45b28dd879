"""The normalised loss and its optimizer: mathematics, stability, the contract, processes, bad input."""

from __future__ import annotations

import copy
import io
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from processes import in_processes
from trueup.optim import SGDP, AdamP, NormalizedGD, misclassification_weights, normalized_logistic_loss
from trueup.optim._normalized_gd import log_beta


def some_margins(n: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, generator=generator, dtype=torch.float64)


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(9, 4, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 1.0], dtype=dtype)
    return X, y


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def descend(optimizer: NormalizedGD, model: nn.Module, steps: int) -> list[float]:
    X, y = problem(next(model.parameters()).dtype)
    return [optimizer.step(lambda: y * model(X).squeeze(1)).item() for _ in range(steps)]


def same(first: nn.Module, second: nn.Module, **tolerance: float) -> None:
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# --- the loss ---


def test_loss_is_the_mean_and_its_gradient_is_beta_times_as_large() -> None:
    margins = some_margins().requires_grad_()
    loss = normalized_logistic_loss(margins)
    mean = F.softplus(-margins).mean()
    beta = 1 / torch.sigmoid(-margins.detach()).mean()
    torch.testing.assert_close(loss, mean)
    (mine,), (plain,) = torch.autograd.grad(loss, margins), torch.autograd.grad(mean, margins)
    torch.testing.assert_close(mine, beta * plain)
    torch.testing.assert_close(log_beta(margins), beta.log())
    torch.testing.assert_close(mine.sum().item(), -1.0)
    assert (beta * plain - plain).abs().max() > 0.01  # the factor is not 1 here


def test_scaled_loss_scales_the_gradient() -> None:
    margins = some_margins().requires_grad_()
    (grad,) = torch.autograd.grad(3 * normalized_logistic_loss(margins), margins)
    torch.testing.assert_close(grad, -3 * misclassification_weights(margins.detach()))


def test_second_derivative_holds_beta_constant() -> None:
    margins = some_margins(4)
    beta = log_beta(margins).exp()
    (grad,) = torch.autograd.grad(
        normalized_logistic_loss(m := margins.clone().requires_grad_()), m, create_graph=True
    )
    rows = torch.stack([torch.autograd.grad(g, m, retain_graph=True)[0] for g in grad])
    plain = torch.func.hessian(lambda m: F.softplus(-m).mean())(margins)
    torch.testing.assert_close(rows, beta * plain)


def test_functional_transforms() -> None:
    rows = torch.stack([some_margins(seed=s) for s in range(3)])
    grads = torch.func.vmap(torch.func.grad(normalized_logistic_loss))(rows)
    for row, grad in zip(rows, grads, strict=True):
        torch.testing.assert_close(grad, -misclassification_weights(row))


@pytest.mark.bad_input  # the hook that checks shapes breaks the graph
def test_compiles_without_graph_breaks() -> None:
    margins, weight = some_margins().requires_grad_(), torch.rand(7, dtype=torch.float64)
    compiled = torch.compile(normalized_logistic_loss, fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(margins, weight), margins)
    torch.testing.assert_close(grad, -misclassification_weights(margins.detach(), weight))


def test_weights_count_samples() -> None:
    margins = some_margins(4)
    weight = torch.tensor([2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    repeated = margins.repeat_interleave(weight.long())
    torch.testing.assert_close(normalized_logistic_loss(margins, weight), normalized_logistic_loss(repeated))
    torch.testing.assert_close(log_beta(margins, weight), log_beta(repeated))
    shares = misclassification_weights(repeated)
    torch.testing.assert_close(
        misclassification_weights(margins, weight),
        torch.stack([shares[:2].sum(), torch.zeros(()).double(), shares[2], shares[3:].sum()]),
    )
    scaled = misclassification_weights(margins, 5 * weight)
    torch.testing.assert_close(scaled, misclassification_weights(margins, weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e3, 3e4])
def test_no_zero_over_zero_after_separation(dtype: torch.dtype, size: float) -> None:
    """The direct form is NaN here: every sigmoid(-m) underflows."""
    margins = (size * torch.tensor([1.0, 1.5, 1.0, 2.0])).to(dtype).requires_grad_()
    s = torch.sigmoid(-margins.detach())
    assert (s / s.sum()).isnan().all()
    loss = normalized_logistic_loss(margins)
    loss.backward()
    torch.testing.assert_close(margins.grad, torch.tensor([-0.5, 0, -0.5, 0], dtype=dtype))
    assert (
        loss.dtype == log_beta(margins).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    )
    assert log_beta(margins).item() == pytest.approx(size + math.log(2), rel=1e-6 if size == 1e3 else 1e-2)


def test_shares_sum_to_one_at_any_size() -> None:
    for size in (1.0, 1e4, 1e8, 1e30):
        for sign in (-1, 1):
            margins = sign * size * (1 + torch.rand(50, generator=torch.Generator().manual_seed(0)))
            assert misclassification_weights(margins).sum().item() == pytest.approx(1, abs=1e-6)


def test_nan_and_all_zero_weights_are_nan() -> None:
    assert normalized_logistic_loss(torch.tensor([1.0, torch.nan])).isnan()
    assert misclassification_weights(torch.ones(2), torch.zeros(2)).isnan().all()


# --- the optimizer ---


@pytest.mark.parametrize(
    "lr", [0.3, torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)]
)
def test_step_is_sgd_with_the_normalised_loss(lr: float | Tensor) -> None:
    X, y = problem()
    mine, plain = network(), network()
    optimizer, sgd = NormalizedGD(mine.parameters(), lr), torch.optim.SGD(plain.parameters(), 0.3)
    for _ in range(4):
        loss = optimizer.step(lambda: y * mine(X).squeeze(1))
        margins = y * plain(X).squeeze(1)
        mean = F.softplus(-margins).mean()
        sgd.zero_grad()
        (mean / torch.sigmoid(-margins).mean().detach()).backward()
        sgd.step()
        torch.testing.assert_close(loss, mean.detach())
        assert not loss.requires_grad
    same(mine, plain, rtol=1e-12, atol=1e-13)


def test_separates_where_a_direct_form_turns_to_nan() -> None:
    X, y = problem(torch.float32)
    model = nn.Linear(4, 1)
    optimizer = NormalizedGD(model.parameters(), lr=1e4)
    X = X + y[:, None]
    descend_on = lambda: y * model(X).squeeze(1)  # noqa: E731
    for _ in range(60):
        optimizer.step(descend_on)
    margins = descend_on()
    assert margins.min() > 110  # sigmoid(-110) is 0 in float32
    assert all(p.isfinite().all() for p in model.parameters())


def test_closure_runs_once_with_gradients_even_under_no_grad() -> None:
    X, y = problem()
    model, calls = network(), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return y * model(X).squeeze(1)

    with torch.no_grad():
        NormalizedGD(model.parameters(), 0.1).step(closure)
    assert calls == [True]


def test_old_gradients_do_not_count_and_scheduler_works() -> None:
    first, second = network(), network()
    optimizer = NormalizedGD(first.parameters(), 0.4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for p in first.parameters():
        p.grad = torch.full_like(p, 1e6)
    descend(optimizer, first, 1)
    schedule.step()
    descend(optimizer, first, 1)
    descend(NormalizedGD(second.parameters(), 0.4), second, 1)
    descend(NormalizedGD(second.parameters(), 0.2), second, 1)
    same(first, second, rtol=0, atol=0)


def test_groups_have_step_sizes_of_their_own() -> None:
    mine, plain = network(), network()
    optimizer = NormalizedGD([{"params": mine[0].parameters(), "lr": 0.05}], 0.3)
    optimizer.add_param_group({"params": mine[2].parameters()})
    X, y = problem()
    optimizer.step(lambda: y * mine(X).squeeze(1))
    normalized_logistic_loss(y * plain(X).squeeze(1)).backward()
    for p, q in zip(plain.parameters(), mine.parameters(), strict=True):
        lr = 0.05 if any(p is r for r in plain[0].parameters()) else 0.3
        torch.testing.assert_close(q, p - lr * p.grad)


def test_parameters_without_gradient_stay() -> None:
    model, idle = network(), nn.Parameter(torch.ones(3))
    descend(NormalizedGD([*model.parameters(), idle], 0.1), model, 1)
    assert torch.equal(idle, torch.ones(3))
    optimizer = NormalizedGD([{"params": []}], 0.1)
    descend(optimizer, model, 1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_carry_on(duplicate: Any) -> None:
    model = network()
    pair = duplicate((model, NormalizedGD(model.parameters(), 0.3)))
    descend(NormalizedGD(model.parameters(), 0.3), model, 3)
    descend(pair[1], pair[0], 3)
    same(model, pair[0], rtol=0, atol=0)


def test_resumes_exactly() -> None:
    model = network()
    optimizer = NormalizedGD(model.parameters(), 0.3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    descend(optimizer, model, 1)
    schedule.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = NormalizedGD(network().parameters(), 7.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == pytest.approx(0.15)


@pytest.mark.parametrize("lr", [1000.3, torch.tensor(1000.3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_type_takes_the_step_of_float32_rounded_once(dtype: torch.dtype, lr: float | Tensor) -> None:
    """A gradient times a large step size is beyond float16 before the weight is subtracted."""
    p = nn.Parameter(torch.tensor([60000.0, 1.0]).to(dtype))
    optimizer = NormalizedGD([p], lr)
    optimizer.step(lambda: -100.0 * p[:1].float() * torch.ones(3) + p[1:].float())
    expected = torch.tensor([60000.0, 1.0]).to(dtype).float() - float(lr) * p.grad.float()
    assert torch.equal(p.detach(), expected.to(dtype))


def test_a_hook_may_change_what_is_loaded() -> None:
    optimizer = NormalizedGD(network().parameters(), 0.3)
    optimizer.register_load_state_dict_pre_hook(lambda _, s: {**s, "state": {}})
    state = optimizer.state_dict()
    state["state"] = {0: {"written_by": "somebody"}}
    for _ in range(2):
        optimizer.load_state_dict(state)
    assert not optimizer.state


def test_layout_does_not_matter() -> None:
    plain, other = network(), network()
    other[0].weight.data = other[0].weight.data.t().contiguous().t()
    for model in (plain, other):
        descend(NormalizedGD(model.parameters(), 0.3), model, 3)
    same(plain, other, rtol=1e-12, atol=1e-14)


def test_no_value_is_read() -> None:
    """So that nothing waits for an accelerator."""
    with FakeTensorMode():  # reading a value of a fake tensor raises
        model = nn.Linear(4, 1)
        X, y = torch.empty(9, 4), torch.empty(9)
        for lr in (1.0, torch.ones(())):
            loss = NormalizedGD(model.parameters(), lr).step(lambda: y * model(X).squeeze(1))
            assert loss.shape == ()


# --- several processes ---


def one_of_two(rank: int) -> list[list[Tensor]]:
    """Ten steps with 3 or 6 of the samples: parameters in the end, whole, and losses, for both wrappers."""
    X, y = problem()
    rows = slice(0, 3) if rank == 0 else slice(3, None)
    replicated: nn.Module = nn.parallel.DistributedDataParallel(network())
    sharded = fully_shard(network(), mesh=init_device_mesh("cpu", (2,)))
    results = []
    for model in (replicated, sharded):
        optimizer = NormalizedGD(model.parameters(), 20.0, process_group=dist.group.WORLD)
        losses = []
        for _ in range(10):
            losses.append(optimizer.step(lambda model=model: y[rows] * model(X[rows]).squeeze(1)))
        whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
        results.append([*(p.detach() for p in whole), torch.stack(losses)])
    return results


def shares_of_one(rank: int) -> Tensor:
    margins = torch.tensor([[1e6, 1e6 + 1], [1e6 + 2, 3e6]][rank])
    return misclassification_weights(margins, process_group=dist.group.WORLD)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch is built without gloo")
def test_shares_over_processes_long_after_separation(tmp_path: Path) -> None:
    shares = torch.cat(in_processes(shares_of_one, folder=tmp_path))
    torch.testing.assert_close(shares, torch.tensor([0.0, -1.0, -2.0, -2e6]).softmax(0))


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch is built without gloo")
def test_processes_step_as_one_with_all_samples(tmp_path: Path) -> None:
    model = network()
    losses = descend(NormalizedGD(model.parameters(), 20.0), model, 10)
    expected = [*(p.detach() for p in model.parameters()), torch.tensor(losses, dtype=torch.float64)]
    for by_ddp, by_fsdp in in_processes(one_of_two, folder=tmp_path):
        torch.testing.assert_close(by_ddp, expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(by_fsdp, expected, rtol=1e-6, atol=1e-9)


# --- bad input ---


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("margins", "error", "message"),
    [
        (0.5, TypeError, "got float"),
        (torch.tensor([1, -1]), TypeError, "torch.int64"),
        (torch.tensor(0.7), ValueError, r"one margin per sample instead of a loss"),
        (torch.zeros(3, 3), ValueError, r"\(n, n\) table"),
        (torch.zeros(0), ValueError, r"shape \(0,\)"),
    ],
)
def test_margins_that_are_none(margins: Any, error: type[Exception], message: str) -> None:
    for call in (
        normalized_logistic_loss,
        misclassification_weights,
        log_beta,
        lambda m: NormalizedGD(network().parameters(), 1.0).step(lambda: m),
    ):
        with pytest.raises(error, match=message):
            call(margins)


@pytest.mark.bad_input
@pytest.mark.parametrize("weight", [torch.ones(2), torch.ones(3, 1), torch.ones(())])
def test_weight_of_another_shape(weight: Tensor) -> None:
    with pytest.raises(ValueError, match=r"one entry per sample, shape \(3,\)"):
        normalized_logistic_loss(torch.zeros(3), weight)


@pytest.mark.bad_input
def test_weight_of_whole_numbers() -> None:
    with pytest.raises(TypeError, match="weight must be a floating-point"):
        normalized_logistic_loss(torch.zeros(3), torch.ones(3, dtype=torch.long))


@pytest.mark.bad_input
@pytest.mark.parametrize("closure", [None, 3.0])
def test_closure_missing(closure: Any) -> None:
    with pytest.raises(TypeError, match="needs a closure that returns the margins"):
        NormalizedGD(network().parameters(), 1.0).step(closure)


def test_detached_margins() -> None:
    X, y = problem()
    model = network()
    with pytest.raises(RuntimeError, match="depend on no parameter"):
        NormalizedGD(model.parameters(), 1.0).step(lambda: y * model(X).squeeze(1).detach())


@pytest.mark.parametrize("lr", [0, -1.0, math.nan, math.inf, torch.ones(2)])
def test_step_size_out_of_range(lr: Any) -> None:
    with pytest.raises(ValueError, match="lr must be"):
        NormalizedGD(network().parameters(), lr)
    optimizer = NormalizedGD(network().parameters(), 1.0)
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.add_param_group({"params": nn.Parameter(torch.ones(1)), "lr": lr})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradient_leaves_no_trace() -> None:
    table, scale = nn.Embedding(3, 1, sparse=True), nn.Parameter(torch.ones(1))
    optimizer = NormalizedGD([scale, *table.parameters()], 1.0)
    with pytest.raises(RuntimeError, match="dense real gradients"):
        optimizer.step(lambda: (table(torch.tensor([0, 2])) * scale).squeeze(1))
    assert scale.item() == 1


def test_complex_parameter() -> None:
    odd = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(RuntimeError, match="real parameters"):
        NormalizedGD([odd], 1.0)
    optimizer = NormalizedGD(network().parameters(), 1.0)
    with pytest.raises(RuntimeError, match="real parameters"):
        optimizer.add_param_group({"params": odd})
    assert len(optimizer.param_groups) == 1


def test_no_parameters() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        NormalizedGD([], 1.0)


@pytest.mark.parametrize("other", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS, AdamP, SGDP])
def test_state_of_another_optimizer(other: type[torch.optim.Optimizer]) -> None:
    model = network()
    foreign = other(model.parameters(), 1e-3)
    X, y = problem()

    def closure() -> float:
        foreign.zero_grad()
        loss = normalized_logistic_loss(y * model(X).squeeze(1))
        loss.backward()
        return loss.item()

    foreign.step(closure)
    with pytest.raises(ValueError, match=r"NormalizedGD.load_state_dict needs"):
        NormalizedGD(model.parameters(), 1.0).load_state_dict(foreign.state_dict())
