"""Test every optimizer in `trueup.optim`, found automatically; the cases are in `optimizers.py`."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import trueup.optim
from conformance.optimizers import CASES, STEPPED_BY_CLOSURE, Case
from trueup._numerics import flat_chunks
from trueup._numerics.upcasting import upcast_dtype
from trueup.optim import _routes

SHAPES = [(4, 6), (3, 2, 3, 3), (5,), (1, 8), (6, 1), (), (0, 3), (3, 0)]
STEPS = 4
VARIANTS = [
    pytest.param(case, hyper, id=f"{case.optimizer.__name__}-{name}")
    for case in CASES
    for name, hyper in case.variants.items()
]
# One variant with everything on, for what does not depend on the hyperparameters.
FULLEST = [
    pytest.param(case, max(case.variants.values(), key=len), id=case.optimizer.__name__) for case in CASES
]
# Those that look at norms, to skip a gradient that is not finite.
SKIPPING = [p for p in VARIANTS if p.values[0].skips_nonfinite]
ROUTES = [pytest.param(False, id="single-tensor"), pytest.param(True, id="foreach")]


pytestmark = pytest.mark.usefixtures("one_thread")


def start(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def gradient(param: Tensor, step: int, index: int) -> Tensor:
    """A gradient that is, in turn, random, orthogonal to each row, and orthogonal to the whole."""
    generator = torch.Generator().manual_seed(100 * step + index)
    grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
    kind = (step + index) % 3
    if param.dim() > 1 and param.numel() and kind:
        rows = param.size(0) if kind == 1 else 1
        p, g = param.detach().double().reshape(rows, -1), grad.reshape(rows, -1)
        if p.size(1) == 1:  # what is orthogonal to a number is 0, and not rounding noise
            return torch.zeros_like(param)
        grad = (g - p * (p * g).sum(1, keepdim=True) / (p * p).sum(1, keepdim=True)).reshape(param.shape)
    return grad.to(param.dtype)


def feed(params: Sequence[Tensor], step: int, sign: float = 1.0) -> None:
    for index, param in enumerate(params):
        param.grad = torch.empty_like(param).copy_(sign * gradient(param, step, index))


def train(optimizer: Optimizer, params: Sequence[Tensor], steps: range, sign: float = 1.0) -> None:
    for step in steps:
        feed(params, step, sign)
        optimizer.step()


def close(actual: Sequence[Tensor], expected: Sequence[Tensor], **tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.detach(), e.detach(), **tolerance)


def shaped_state(optimizer: Optimizer, param: Tensor) -> list[tuple[str, Tensor]]:
    """The state that has the parameter's shape, by name."""
    scalars = getattr(optimizer, "scalars", {"step"})
    return [(name, value) for name, value in optimizer.state[param].items() if name not in scalars]


def routes(case: Case) -> list[dict[str, Any]]:
    return [{"foreach": False}, {"foreach": True}] if case.two_routes else [{}]


def test_every_public_optimizer_has_a_case() -> None:
    public = [getattr(trueup.optim, name) for name in trueup.optim.__all__]
    optimizers = {x for x in public if inspect.isclass(x) and issubclass(x, Optimizer)}
    assert optimizers, "no optimizer is public"
    cases = {case.optimizer for case in CASES}
    assert cases | STEPPED_BY_CLOSURE.keys() == optimizers, "add a Case to tests/conformance/optimizers.py"


@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_equals_naive_reference(case: Case, hyper: dict[str, Any]) -> None:
    for route in routes(case):
        params = start()
        optimizer = case.build(params, **hyper, **route)
        full = {**optimizer.defaults}
        expected = [param.detach().clone() for param in params]
        states: list[dict[str, Any]] = [{} for _ in params]
        for step in range(STEPS):
            feed(params, step)
            expected = [
                case.reference(e, param.grad, state, **full)
                for e, param, state in zip(expected, params, states)
            ]
            optimizer.step()
            close(params, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_routes_equal_the_plain_function(case: Case, hyper: dict[str, Any]) -> None:
    """The function that states the equations in the optimizer's file, in weights and in state."""
    for route in routes(case):
        params = [p for p in start() if p.numel()]
        optimizer = case.build(params, **hyper, **route)
        expected = [param.detach().clone() for param in params]
        states: list[dict[str, Tensor]] = [{} for _ in params]
        for step in range(STEPS):
            feed(params, step)
            grads = [param.grad.clone() for param in params]
            optimizer.step()
            for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
                own = optimizer.state[param]
                before = states[index] or {name: torch.zeros_like(value) for name, value in own.items()}
                expected[index], states[index] = case.equation(
                    expected[index], grad, before, optimizer.param_groups[0]
                )
                assert states[index].keys() == own.keys()
                close([*own.values()], [states[index][name] for name in own], rtol=1e-11, atol=1e-13)
            close(params, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_rows_longer_than_a_chunk(case: Case, hyper: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_chunks(monkeypatch, 4)
    test_equals_naive_reference(case, hyper)


def shrink_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Make chunks small everywhere they are used, so that small tensors take many."""
    for module in [*vars(trueup.optim).values(), flat_chunks]:
        if inspect.ismodule(module) and hasattr(module, "CHUNK_SIZE"):
            monkeypatch.setattr(module, "CHUNK_SIZE", size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_routes_are_equal(case: Case, hyper: dict[str, Any], dtype: torch.dtype) -> None:
    results = []
    for route in routes(case):
        params = start(dtype=dtype)
        optimizer = case.build(params, **hyper, **route)
        train(optimizer, params, range(STEPS))
        state = [value for param in params for value in optimizer.state[param].values()]
        results.append([*params, *state])
    tolerance = {"rtol": 2e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    close(results[0], results[-1], **tolerance)


@pytest.mark.parametrize(("scale", "size"), [(0.0, 4), (1e-6, 4), (1.0, flat_chunks.CHUNK_SIZE), (1e4, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_routes_are_equal_in_half_precision(
    case: Case,
    hyper: dict[str, Any],
    dtype: torch.dtype,
    scale: float,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the same weights and state, each step's results differ by the rounding of what is stored."""
    if not case.two_routes:
        return
    shrink_chunks(monkeypatch, size)
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
    single, foreach = start(dtype=dtype), start(dtype=dtype)
    one = case.build(single, **hyper, foreach=False)
    other = case.build(foreach, **hyper, foreach=True)
    for step in range(STEPS):
        before = [param.detach().double() for param in single]
        feed(single, step, scale)
        feed(foreach, step, scale)
        one.step()
        other.step()
        for p, q, old in zip(single, foreach, before, strict=True):
            if not p.numel():
                continue
            # In float16 the square of a large gradient is infinite, and infinity times a beta of 0 is NaN.
            assert torch.equal(p.isnan(), q.isnan())
            assert p.isfinite().all() or (scale > 1 and not case.optimizer.upcasts_state)
            # Both round the weight once; nesterov's momentum is read back from half precision.
            slack = eps * (old.abs() + 4 * (p.double() - old).abs().max()) + tiny
            assert not ((p.double() - q.double()).abs() > slack).any()
            for name, value in one.state[p].items():
                expected = other.state[q][name].double()
                unit = torch.finfo(value.dtype).eps
                slack = 4 * unit * expected.nan_to_num(0, 0, 0).abs().amax().item() + tiny
                torch.testing.assert_close(value.double(), expected, rtol=0, atol=slack, equal_nan=True)
        with torch.no_grad():
            for p, q in zip(single, foreach):
                q.copy_(p)
        other.load_state_dict(copy.deepcopy(one.state_dict()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("foreach", ROUTES)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.optimizer.__name__) for case in CASES])
def test_decay_survives_half_precision(case: Case, foreach: bool, dtype: torch.dtype) -> None:
    """Over hundreds of steps whose decay alone is below half a unit of the weight's last place."""
    means = []
    for d in (torch.float32, dtype):
        weight = nn.Parameter(torch.full((64, 64), 1.5, dtype=d))
        route = {"foreach": foreach} if case.two_routes else {}
        optimizer = case.build([weight], **{"lr": 0.1, "weight_decay": 0.01, **route})
        generator = torch.Generator().manual_seed(0)
        for _ in range(300):
            gradient = 0.1 * torch.randn(64, 64, generator=generator)
            weight.grad = gradient.to(dtype).to(d)
            optimizer.step()
        means.append(weight.float().mean().item())
    assert means[0] < 1.2
    assert means[1] == pytest.approx(means[0], abs=0.02)


@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_few_half_weights_are_upcast_at_once(
    case: Case, hyper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not case.two_routes:
        return
    sizes: list[int] = []
    route = case.optimizer._step_foreach

    def recorded(self: Any, group: Any, params: list[Tensor], *lists: list[Tensor]) -> None:
        sizes.append(sum(p.numel() for p in params))
        route(self, group, params, *lists)

    together, apart = start(dtype=torch.bfloat16), start(dtype=torch.bfloat16)
    train(case.build(together, **hyper, foreach=True), together, range(STEPS))
    monkeypatch.setattr(case.optimizer, "_step_foreach", recorded)
    monkeypatch.setattr(_routes, "_UPCAST_AT_ONCE", 60)
    train(case.build(apart, **hyper, foreach=True), apart, range(STEPS))
    close(apart, together, rtol=0, atol=0)
    # (4, 6); then (3, 2, 3, 3) and (5,); then the rest but for the empty ones
    assert sizes == [24, 59, 15] * STEPS


def test_a_zero_gradient_leaves_half_weights_alone() -> None:
    for case, foreach, dtype in itertools.product(CASES, (False, True), (torch.float16, torch.bfloat16)):
        params = start(dtype=dtype)
        optimizer = case.build(params, **({"foreach": foreach} if case.two_routes else {}))
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        close(params, start(dtype=dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("case", "hyper"), SKIPPING)
def test_norms_of_lists_are_those_of_each(
    case: Case, hyper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accelerator's kernels take the norms of all gradients at once; a CPU has them too, though slower."""
    for value in (1.0, torch.nan, torch.inf):
        results = []
        for on_cpu in (True, False):
            with monkeypatch.context() as patch:
                if not on_cpu:
                    patch.setattr(Tensor, "is_cpu", False)
                params = start()
                optimizer = case.build(params, **hyper, foreach=True)
                for step in range(STEPS):
                    feed(params, step)
                    params[0].grad[1, 2] *= value if step == 2 else 1.0
                    optimizer.step()
                results.append(params)
        close(results[1], results[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_compiled_step(case: Case, hyper: dict[str, Any]) -> None:
    torch._dynamo.reset()
    eager, compiled = start(dtype=torch.float32), start(dtype=torch.float32)
    train(case.build(eager, **hyper), eager, range(STEPS))
    optimizer = case.build(compiled, **hyper)
    step = torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)
    for number in range(STEPS):
        feed(compiled, number)
        step()
    close(compiled, eager, rtol=2e-6, atol=1e-6)


# foreach=False is the single-tensor route only on a CPU.
SINGLE_TENSOR = [
    pytest.param(case, {**max(case.variants.values(), key=len), "foreach": False})
    for case in CASES
    if case.two_routes
]


@pytest.mark.parametrize(("case", "hyper"), [*FULLEST, *SINGLE_TENSOR])
def test_foreach_route_never_synchronises(case: Case, hyper: dict[str, Any]) -> None:
    # No value exists under FakeTensorMode: whatever reads one raises.
    with FakeTensorMode():
        params = [torch.empty(shape, device="cuda") for shape in SHAPES]
        optimizer = case.build(params, **hyper)
        for _ in range(2):
            for param in params:
                param.grad = torch.empty_like(param)
            optimizer.step()
        for param in params:
            assert all(value.device.type == "cuda" for value in optimizer.state[param].values())


@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_the_default_device_does_not_matter(case: Case, hyper: dict[str, Any]) -> None:
    """`torch.set_default_device` is for what users make; what we make belongs to the parameter."""
    for route in routes(case):
        params, others = start(), start()
        optimizer = case.build(params, **hyper, **route)
        for step in range(STEPS):
            feed(params, step)
            with torch.device("meta"):
                optimizer.step()
        train(case.build(others, **hyper, **route), others, range(STEPS))
        close(params, others, rtol=0, atol=0)


class Allocations(TorchDispatchMode):
    """Bytes of the largest tensor that an operation allocated."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        known = {x.untyped_storage().data_ptr() for x in flat if isinstance(x, Tensor)}
        out = func(*args, **kwargs)
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_single_tensor_route_allocates_no_more_than_chunks(
    case: Case, hyper: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not case.two_routes:
        return
    shrink_chunks(monkeypatch, 256)
    params = start([(64, 64), (4, 1024), (4096,), (256, 16)], dtype)
    optimizer = case.build(params, **hyper)
    train(optimizer, params, range(1))  # state is allocated here, and only here
    for step in range(1, STEPS):
        feed(params, step)
        with Allocations() as recorded:
            optimizer.step()
        assert 0 <= recorded.largest <= 4 * 256


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
@pytest.mark.parametrize("foreach", ROUTES)
def test_half_types_follow_the_reference(
    case: Case, hyper: dict[str, Any], foreach: bool, dtype: torch.dtype
) -> None:
    upcasts = case.optimizer.upcasts_state
    if dtype == torch.float16 and not upcasts:
        pytest.skip("keeps moments in the parameter's dtype, as torch.optim: squares underflow in float16")
    params = start([(4, 4096), (4096,)], dtype)
    route = {"foreach": foreach} if case.two_routes else {}
    optimizer = case.build(params, **hyper, **route)
    expected = [param.detach().double() for param in params]
    states: list[dict[str, Any]] = [{} for _ in params]
    for step in range(3):
        feed(params, step)
        before = [param.detach().double() for param in params]
        expected = [
            case.reference(b, param.grad.double(), state, **optimizer.defaults)
            for b, param, state in zip(before, params, states)
        ]
        optimizer.step()
        eps = torch.finfo(dtype).eps
        for param, value, old in zip(params, expected, before):
            # The weight rounds after decay and after the step, the update and its momentum as well; with
            # state in float32 there is but one rounding.
            slack = eps * value.abs() + 2 * eps * (value - old).abs().max()
            if upcasts:
                slack = (
                    0.5001 * eps * value.abs() + 1e-4 * (value - old).abs().max() + torch.finfo(dtype).tiny
                )
            assert ((param.detach().double() - value).abs() <= slack).all()
            state_dtype = torch.float32 if upcasts else dtype
            assert all(s.dtype == state_dtype for n, s in shaped_state(optimizer, param))
            assert all(s.dtype == torch.float32 for s in optimizer.state[param].values() if s.dim() == 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_resumes_exactly(case: Case, hyper: dict[str, Any], dtype: torch.dtype) -> None:
    for route in routes(case):
        straight, resumed = start(dtype=dtype), start(dtype=dtype)
        train(case.build(straight, **hyper, **route), straight, range(STEPS))
        first = case.build(resumed, **hyper, **route)
        train(first, resumed, range(2))
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = case.build(resumed, **hyper, **route)
        second.load_state_dict(torch.load(file, weights_only=True))
        train(second, resumed, range(2, STEPS))
        close(resumed, straight, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_state_goes_on_with_parameters_of_another_dtype(
    case: Case, hyper: dict[str, Any], dtype: torch.dtype
) -> None:
    for route in routes(case):
        saved = start(dtype=torch.float32)
        first = case.build(saved, **hyper, **route)
        train(first, saved, range(2))
        params = [nn.Parameter(param.detach().to(dtype)) for param in saved]
        second = case.build(params, **hyper, **route)
        second.load_state_dict(first.state_dict())
        for old, param in zip(saved, params):
            for name, value in second.state[param].items():
                kept = name in case.optimizer.scalars or case.optimizer.upcasts_state
                assert value.dtype == (upcast_dtype(dtype) if kept else dtype)
                assert torch.equal(value, first.state[old][name].to(value.dtype))
        train(second, params, range(2, STEPS))
        train(first, saved, range(2, STEPS))
        for old, param in zip(saved, params):
            torch.testing.assert_close(param.float(), old, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_copies_carry_on(case: Case, hyper: dict[str, Any], duplicate: Any) -> None:
    params = start()
    optimizer = case.build(params, **hyper)
    train(optimizer, params, range(2))
    twin = duplicate(optimizer)
    twins = twin.param_groups[0]["params"]
    train(optimizer, params, range(2, STEPS))
    train(twin, twins, range(2, STEPS))
    close(twins, params, rtol=0, atol=0)


@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_groups_are_independent(case: Case, hyper: dict[str, Any]) -> None:
    together, alone = start(), start()
    low, high = {**hyper, "lr": 1e-3}, {**hyper, "lr": 1e-1}
    optimizer = case.build([{"params": together[:3], **low}], **hyper)
    optimizer.add_param_group({"params": together[3:], **high})
    pair = case.build(alone[:3], **low), case.build(alone[3:], **high)
    for step in range(STEPS):
        feed(together, step)
        feed(alone, step)
        optimizer.step()
        for one in pair:
            one.step()
    close(together, alone, rtol=0, atol=0)


@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_closure_runs_once_with_gradients(case: Case, hyper: dict[str, Any]) -> None:
    params = start([(2, 3)])
    optimizer = case.build(params, **hyper)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    before = params[0].detach().clone()
    assert optimizer.step(closure).item() == calls[0]
    assert len(calls) == 1
    assert not torch.equal(params[0], before)
    assert optimizer.step() is None


@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_maximize_is_the_negative_gradient(
    case: Case, hyper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for route, size in itertools.product(routes(case), (flat_chunks.CHUNK_SIZE, 4)):
        shrink_chunks(monkeypatch, size)
        up, down = start(), start()
        train(case.build(up, **hyper, **route, maximize=True), up, range(STEPS))
        train(case.build(down, **hyper, **route), down, range(STEPS), sign=-1)
        close(up, down, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_learning_rate_may_be_a_tensor_and_scheduled(case: Case, hyper: dict[str, Any]) -> None:
    for route, shape in itertools.product(routes(case), ((), (1,))):
        plain, tensor = start(), start()
        lr = torch.full(shape, 0.05, dtype=torch.float64)
        pair = (
            case.build(plain, **{**hyper, "lr": 0.05}, **route),
            case.build(tensor, **{**hyper, "lr": lr}, **route),
        )
        schedules = [torch.optim.lr_scheduler.ExponentialLR(one, 0.5) for one in pair]
        for step in range(STEPS):
            for params, one, schedule in zip((plain, tensor), pair, schedules):
                feed(params, step)
                one.step()
                schedule.step()
        close(tensor, plain, rtol=1e-12, atol=1e-14)
        assert float(pair[1].param_groups[0]["lr"]) == pytest.approx(0.05 * 0.5**STEPS)


@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_grad_scaler_skips_overflow(case: Case, hyper: dict[str, Any]) -> None:
    scaled, plain = start(dtype=torch.float32), start(dtype=torch.float32)
    optimizer = case.build(scaled, **hyper)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    feed(scaled, 0, sign=8.0)
    scaler.step(optimizer)
    scaler.update()
    feed(plain, 0)
    case.build(plain, **hyper).step()
    close(scaled, plain, rtol=0, atol=0)
    feed(scaled, 1)
    scaled[0].grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    close(scaled, plain, rtol=0, atol=0)
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_parameters_without_gradient_stay(case: Case, hyper: dict[str, Any]) -> None:
    for route in routes(case):
        params = start()
        optimizer = case.build(params, **hyper, **route)
        optimizer.step()  # nothing has a gradient
        feed(params, 0)
        params[0].grad = None
        before = params[0].detach().clone()
        optimizer.step()
        assert torch.equal(params[0], before)
        assert params[0] not in optimizer.state
        optimizer.zero_grad()
        assert all(param.grad is None for param in params)


@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_layout_does_not_matter(case: Case, hyper: dict[str, Any]) -> None:
    """channels_last, transposed and strided parameters, and a gradient laid out otherwise than its weight."""
    for route in routes(case):
        plain = start([(3, 4, 2, 2), (4, 3), (4, 3), (3, 4, 2, 2), (2, 3, 2, 2, 2)])
        train(case.build(plain, **hyper, **route), plain, range(STEPS))
        other = start([(3, 4, 2, 2), (4, 3), (4, 3), (3, 4, 2, 2), (2, 3, 2, 2, 2)])
        other[0].data = other[0].data.to(memory_format=torch.channels_last)
        other[1].data = other[1].data.t().contiguous().t()
        other[2].data = torch.stack([other[2].data] * 2, dim=-1)[..., 0]
        other[4].data = other[4].data.to(memory_format=torch.channels_last_3d)
        optimizer = case.build(other, **hyper, **route)
        for step in range(STEPS):
            feed(other, step)
            other[3].grad = other[3].grad.to(memory_format=torch.channels_last)
            optimizer.step()
        close(other, plain, rtol=1e-11, atol=1e-13)
        assert other[0].is_contiguous(memory_format=torch.channels_last)
        shaped = [s for _, s in shaped_state(optimizer, other[0])]
        assert all(s.is_contiguous(memory_format=torch.channels_last) for s in shaped)


@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_nan_reaches_the_weight(case: Case, hyper: dict[str, Any]) -> None:
    if case.skips_nonfinite:
        pytest.skip(case.skips_nonfinite)
    for route in routes(case):
        params = start([(2, 3), (2, 3)])
        optimizer = case.build(params, **hyper, **route)
        feed(params, 0)
        params[0].grad[0, 0] = torch.nan
        optimizer.step()
        assert params[0][0, 0].isnan()
        assert params[1].isfinite().all()


# The last is finite, but not its square.
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e200])
@pytest.mark.parametrize(("case", "hyper"), SKIPPING)
def test_a_gradient_that_is_not_finite_never_was(case: Case, hyper: dict[str, Any], value: float) -> None:
    for route in routes(case):
        struck, spared = start([(2, 3), (2, 3)]), start([(2, 3), (2, 3)])
        optimizer, other = (case.build(params, **hyper, **route) for params in (struck, spared))
        for step in range(STEPS + 1):
            feed(struck, step)
            feed(spared, step)
            if step in (0, 2):
                struck[0].grad[1, 2] = value
                spared[0].grad = None
            optimizer.step()
            other.step()
        close(struck, spared, rtol=0, atol=0)


@pytest.mark.parametrize(("case", "hyper"), VARIANTS)
def test_zero_gradients_change_nothing_but_by_decay(case: Case, hyper: dict[str, Any]) -> None:
    for route in routes(case):
        params = start([(2, 3)])
        optimizer = case.build(params, **{**hyper, "weight_decay": 0.0}, **route)
        for _ in range(STEPS):
            params[0].grad = torch.zeros_like(params[0])
            optimizer.step()
        close(params, start([(2, 3)]), rtol=0, atol=0)


@pytest.mark.parametrize(("case", "hyper"), SKIPPING)
def test_a_first_step_that_is_skipped_divides_nothing_by_zero(case: Case, hyper: dict[str, Any]) -> None:
    for route in routes(case):
        params = start([(2, 3)])
        optimizer = case.build(params, **{**hyper, "eps": 0.0}, **route)
        params[0].grad = torch.full_like(params[0], math.nan)
        optimizer.step()
        close(params, start([(2, 3)]), rtol=0, atol=0)


@pytest.mark.parametrize(("case", "hyper"), FULLEST)
def test_what_joins_and_leaves_in_the_middle(case: Case, hyper: dict[str, Any]) -> None:
    for route in routes(case):
        first, late, alone = start([(4, 6)]), start([(3, 5)]), start([(3, 5)])
        optimizer = case.build(first, **hyper, **route)
        train(optimizer, first, range(2))
        optimizer.add_param_group({"params": late})
        first[0].requires_grad_(False)
        first[0].grad = None
        frozen = first[0].detach().clone()
        train(optimizer, late, range(2))
        assert torch.equal(first[0], frozen)
        train(case.build(alone, **hyper, **route), alone, range(2))
        close(late, alone, rtol=0, atol=0)
        first[0].requires_grad_(True)
        train(optimizer, first, range(2, STEPS))
        straight = start([(4, 6)])
        train(case.build(straight, **hyper, **route), straight, range(STEPS))
        close(first, straight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("case", "hyper", "message"),
    [
        pytest.param(case, hyper, message, id=f"{case.optimizer.__name__}-{hyper}")
        for case in CASES
        for hyper, message in case.bad
    ],
)
def test_bad_hyperparameters(case: Case, hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        case.build(start(), **hyper)
    optimizer = case.build(start()[:1])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": start()[1:], **hyper})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("case", [pytest.param(case, id=case.optimizer.__name__) for case in CASES])
class TestBadInput:
    def test_sparse_gradient(self, case: Case) -> None:
        param = nn.Parameter(torch.zeros(3, 2))
        param.grad = torch.eye(3, 2).to_sparse()
        with pytest.raises(RuntimeError, match="dense real gradients"):
            case.build([param]).step()

    def test_complex_parameter(self, case: Case) -> None:
        with pytest.raises(RuntimeError, match="real parameters"):
            case.build([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
        optimizer = case.build(start())
        with pytest.raises(RuntimeError, match="real parameters"):
            optimizer.add_param_group({"params": nn.Parameter(torch.zeros(3, dtype=torch.complex64))})
        assert len(optimizer.param_groups) == 1

    def test_no_parameters(self, case: Case) -> None:
        with pytest.raises(ValueError, match="empty parameter list"):
            case.build([])
        case.build([{"params": []}]).step()

    def test_state_of_another_optimizer(self, case: Case) -> None:
        params = start()
        for other in (torch.optim.AdamW, torch.optim.SGD, *(c.optimizer for c in CASES)):
            if other is case.optimizer:
                continue
            foreign = other(params, 1e-3)
            train(foreign, params, range(1))
            mine = case.build(params)
            with pytest.raises(ValueError, match=f"{case.optimizer.__name__}.load_state_dict needs"):
                mine.load_state_dict(foreign.state_dict())
            assert not mine.state

    def test_state_of_other_shapes(self, case: Case) -> None:
        params = start([(2, 3)])
        saved = case.build(params)
        train(saved, params, range(1))
        with pytest.raises(ValueError, match="shape"):
            case.build(start([(3, 2)])).load_state_dict(saved.state_dict())
