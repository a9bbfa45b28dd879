"""Properties that every public layer must have, whatever it computes."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

import trueup.adaptation
import trueup.nn
from conformance.layers import CASES, Case


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=[True, False], ids=["train", "eval"])
def training(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


State = dict[str, Tensor]
Function = Callable[..., tuple[Tensor, ...]]


def state_of(layer: nn.Module) -> tuple[State, State]:
    """Return parameters that require a gradient, and a copy of the buffers."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    return parameters, {name: b.clone() for name, b in layer.named_buffers()}


def outputs(result: object) -> list[Tensor]:
    """Return the tensors of a result, which may be a tuple."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def step(layer: nn.Module, x: Tensor, seed: int = 2) -> list[Tensor]:
    """Return outputs, gradients of input and parameters for a random direction, and buffers after it."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    ys = outputs(layer(x))
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(y.shape, generator=generator, device="cpu").to(y) for y in ys]
    torch.autograd.backward(ys, directions)
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    return [*(y.detach() for y in ys), *grads, *(b.clone() for b in layer.buffers())]


def assert_same(got: list[Tensor], want: list[Tensor], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True, check_dtype=False)


def test_every_public_layer_has_a_case() -> None:
    public = [getattr(area, name) for area in (trueup.nn, trueup.adaptation) for name in area.__all__]
    # A layer of `adaptation` is one that takes the place of a batch norm; its other modules wrap a model.
    layers = {kind for kind in public if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    layers -= {
        kind
        for kind in layers
        if not hasattr(kind, "from_module") and kind.__module__.startswith("trueup.adaptation")
    }
    missing = layers - {case.kind for case in CASES}
    assert not missing, f"add a Case to tests/conformance/layers.py for {sorted(k.__name__ for k in missing)}"


# ---- derivatives ----


def differentiable(case: Case, training: bool) -> tuple[Function, tuple[Tensor, ...]]:
    """Return the layer as a function of input and parameters, with buffers restored before each call."""
    layer = case.build(torch.float64, training=training)
    parameters, buffers = state_of(layer)

    def function(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        fresh = {name: b.clone() for name, b in buffers.items()}
        state = dict(zip(parameters, values, strict=True)) | fresh
        return tuple(y for y in outputs(functional_call(layer, state, (x,))) if y.is_floating_point())

    return function, (case.example(torch.float64).requires_grad_(), *parameters.values())


def test_gradient_is_that_of_the_forward(case: Case, training: bool) -> None:
    if case.approximate_backward and (training or case.adapts):
        pytest.skip(f"approximate by design: {case.approximate_backward}")
    function, arguments = differentiable(case, training)
    assert torch.autograd.gradcheck(function, arguments)


def test_gradient_can_be_differentiated_again(case: Case, training: bool) -> None:
    function, arguments = differentiable(case, training)
    if case.once_differentiable and training:
        grads = torch.autograd.grad(function(*arguments)[0].square().sum(), arguments, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad(grads[0].square().sum(), arguments)
        return
    if case.approximate_backward and (training or case.adapts):
        pytest.skip(f"approximate by design: {case.approximate_backward}")
    # Along random directions: every element of a second derivative would take minutes for all layers.
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)
    # gradgradcheck holds that gradient against its own differences; it must also be the one used in training.
    ys = function(*arguments)
    directions = [torch.randn_like(y) for y in ys]
    once, again = (
        torch.autograd.grad(ys, arguments, directions, retain_graph=True, create_graph=graph)
        for graph in (False, True)
    )
    torch.testing.assert_close(once, again)


def test_forward_mode_agrees_with_reverse_mode(case: Case, training: bool) -> None:
    if case.once_differentiable and training:
        pytest.skip(f"approximate by design: {case.approximate_backward}")
    function, arguments = differentiable(case, training)
    tangents = tuple(torch.randn_like(a) for a in arguments)
    ys, along = torch.func.jvp(function, arguments, tangents)
    directions = [torch.randn_like(y) for y in ys]
    grads = torch.autograd.grad(function(*arguments), arguments, directions)
    forward = sum((d * a).sum() for d, a in zip(directions, along, strict=True))
    reverse = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
    torch.testing.assert_close(forward, reverse)


def test_func_grad_is_autograd(case: Case, training: bool) -> None:
    # In float64: behind a normalisation, the gradient of a sum of squares is hardly more than rounding error.
    layer = case.build(torch.float64, training=training)
    x = case.example(torch.float64)
    parameters, buffers = state_of(layer)

    def loss(parameters: State, buffers: State, x: Tensor) -> Tensor:
        fresh = {name: b.clone() for name, b in buffers.items()}
        return sum(y.square().sum() for y in outputs(functional_call(layer, (parameters, fresh), (x,))))

    got = torch.func.grad(loss, argnums=(0, 2))(parameters, buffers, x)

    leaf = x.clone().requires_grad_()
    want = torch.autograd.grad(loss(parameters, buffers, leaf), (*parameters.values(), leaf))
    assert_same(tree_leaves(got), list(want))


@pytest.mark.parametrize("shared", ["nothing", "weights", "inputs"])
def test_vmap_is_a_loop(case: Case, training: bool, shared: str) -> None:
    """Three layers side by side, with their gradients: an ensemble, or one layer on three batches."""
    layer = case.build(training=training)
    if shared == "inputs" and not layer.state_dict():
        pytest.skip("without state there is nothing in which the three could differ")
    states, batches = [state_of(layer) for _ in range(3)], [case.example(seed=i) for i in range(3)]
    with torch.no_grad():
        for i, (parameters, _) in enumerate(states):
            if shared != "weights":
                for p in parameters.values():
                    p.mul_(1 + i)
    if shared == "inputs":
        batches = batches[:1] * 3

    def loss(parameters: State, buffers: State, x: Tensor) -> tuple[Tensor, tuple[object, State]]:
        buffers = {name: b.clone() for name, b in buffers.items()}
        result = functional_call(layer, (parameters, buffers), (x,))
        return sum((y * y.detach()).sum() for y in outputs(result)), (result, buffers)

    run = torch.func.grad(loss, argnums=(0, 2), has_aux=True)
    loop = [run(p, b, x) for (p, b), x in zip(states, batches, strict=True)]
    parameters, buffers = ({n: torch.stack([s[i][n] for s in states]) for n in states[0][i]} for i in (0, 1))
    if shared == "weights":
        parameters = states[0][0]
    batch, dim = (batches[0], None) if shared == "inputs" else (torch.stack(batches), 0)
    vectorized = torch.func.vmap(run, in_dims=(None if shared == "weights" else 0, 0, dim))
    got = vectorized(parameters, buffers, batch)
    want = [torch.stack(values) for values in zip(*map(tree_leaves, loop), strict=True)]
    assert_same(tree_leaves(got), want)


# ---- operations in place ----


def in_both_formats(x: Tensor) -> list[Tensor]:
    return [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]


def test_an_operation_in_place_may_follow(case: Case, training: bool) -> None:
    """As `out += identity` and `nn.ReLU(inplace=True)` do in every residual network."""

    def after(y: Tensor, in_place: bool) -> Tensor:
        identity = torch.linspace(-1, 1, y.numel()).view(y.shape)
        return torch.relu_(y.add_(identity)) if in_place else torch.relu(y + identity)

    for x in in_both_formats(case.example()):
        results = []
        for in_place in (True, False):
            layer, leaf = case.build(training=training), x.clone().requires_grad_()
            ys = [after(y, in_place) for y in outputs(layer(leaf)) if y.is_floating_point()]
            if case.keeps_output and in_place:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    torch.autograd.backward(ys, ys)
                break
            torch.autograd.backward(ys, [y.detach() for y in ys])
            results.append([*(y.detach() for y in ys), leaf.grad, *(p.grad for p in layer.parameters())])
        else:
            assert_same(*results)


def test_an_input_changed_later_never_gives_wrong_gradients(case: Case, training: bool) -> None:
    """Either the gradients no longer depend on it, or torch raises its error for in-place changes."""
    for x in in_both_formats(case.example()):
        results = []
        for changed in (False, True):
            layer, leaf = case.build(training=training), x.clone().requires_grad_()
            inner = leaf * 1
            ys = [y for y in outputs(layer(inner)) if y.is_floating_point()]
            directions = [torch.linspace(-1, 1, y.numel()).view(y.shape) for y in ys]
            if changed:
                inner.mul_(2).add_(1)
            try:
                torch.autograd.backward(ys, directions)
            except RuntimeError as error:
                if not changed or "modified by an inplace operation" not in str(error):
                    raise
                break
            results.append([leaf.grad, *(p.grad for p in layer.parameters())])
        else:
            assert_same(*results)


# ---- precision ----


@pytest.mark.parametrize("how", ["autocast", "input", "module"])
def test_bfloat16_is_close_to_float32(case: Case, training: bool, how: str) -> None:
    if how == "input" and case.parametrization:
        pytest.skip("the layer is torch's own, which takes inputs of its weight's type only")
    x = case.example().bfloat16()
    want = step(case.build(training=training), x.float())
    layer = case.build(training=training)
    if how == "module":
        layer.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        got = step(layer, x)
    assert got[0].dtype == torch.bfloat16
    assert len(got) == len(want)
    for ours, reference in zip(got, want, strict=True):
        error = (ours.double() - reference.double()).norm()
        assert error <= 0.02 * reference.double().norm() + 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [case for case in CASES if case.stateful], ids=str)
def test_half_buffers_are_rounded_once(case: Case, dtype: torch.dtype) -> None:
    """From values of that dtype they are updated as in float64, then rounded to the nearest."""
    exact = case.build(torch.float64)
    with torch.no_grad():
        for tensor in [*exact.parameters(), *exact.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 3).copy_(tensor.to(dtype))
    layer = copy.deepcopy(exact).to(dtype)
    x = (case.example() + 2).to(dtype)
    layer(x)
    exact(x.double())
    for got, want in zip(layer.buffers(), exact.buffers(), strict=True):
        # Half a unit in the last place, and what float32 leaves out.
        assert ((got - want).abs() <= 0.501 * torch.finfo(dtype).eps * want.abs()).all()


# ---- compilers ----


def assert_compiles(case: Case, training: bool, backend: str) -> None:
    compiled = torch.compile(case.build(training=training), fullgraph=True, backend=backend)
    layer = case.build(training=training)
    batches = [case.example()]
    if training:
        # Another number of samples, in the other format if there is one: recompiled for any number.
        batches.append(in_both_formats(torch.cat([batches[0] + 1, batches[0]]))[-1])
    for x in batches:
        assert_same(step(compiled, x), step(layer, x))


def test_compiles_as_one_graph(case: Case, training: bool) -> None:
    assert_compiles(case, training, "aot_eager")


@pytest.mark.parametrize("case", list({case.kind: case for case in CASES}.values()), ids=str)
def test_compiles_for_one_sample_and_for_any_strides(case: Case) -> None:
    x = case.example()
    inputs = [x.transpose(0, -1).contiguous().transpose(0, -1)]
    if not case.one_sample:
        inputs.append(x[:1])
    for given in inputs:
        torch.compiler.reset()
        compiled = torch.compile(case.build(), fullgraph=True, backend="aot_eager")
        assert_same(step(compiled, given), step(case.build(), given))


@pytest.mark.parametrize("case", [case for case in CASES if case.inductor], ids=str)
def test_compiles_to_machine_code(case: Case) -> None:
    assert_compiles(case, True, "inductor")


def test_a_setting_may_change_between_compiled_calls() -> None:
    layer, x = trueup.nn.EstimatedBatchNorm2d(4), torch.randn(2, 4, 3, 3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for speed in (0.5, 0.25, 0.125):
        layer.running_mean.zero_()
        layer.moving_speed = speed
        compiled(x)
        torch.testing.assert_close(layer.running_mean, speed * x.mean((0, 2, 3)))


def test_exports(case: Case, training: bool) -> None:
    layer, x = case.build(training=training), case.example()
    exported = torch.export.export(copy.deepcopy(layer), (x,)).module()
    for seed in (1, 2):
        assert_same(outputs(exported(case.example(seed=seed))), outputs(layer(case.example(seed=seed))))
    assert_same([exported.state_dict()[name] for name in layer.state_dict()], [*layer.state_dict().values()])


def test_evaluation_exports_for_any_number_of_samples(case: Case) -> None:
    if case.one_sample and not case.stateful:
        pytest.skip("without running statistics evaluation needs the number of ghost batches")
    layer, x = case.build(training=False), case.example()
    samples = torch.export.Dim("samples", min=2, max=64)
    exported = torch.export.export(copy.deepcopy(layer), (x,), dynamic_shapes=({0: samples},)).module()
    more = torch.cat([x + 1, x])
    assert_same(outputs(exported(more)), outputs(layer(more)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_evaluation_can_be_traced_and_saved(case: Case) -> None:
    layer, file = case.build(training=False), io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, case.example(), check_trace=False), file)
    file.seek(0)
    x = case.example(seed=2)
    assert_same(outputs(torch.jit.load(file)(x)), outputs(layer(x)))


def test_an_exported_layer_can_be_trained(case: Case) -> None:
    layer, x = case.build(torch.float64), case.example(torch.float64)
    exported = torch.export.export(copy.deepcopy(layer), (x,)).module()
    gradients = []
    for module in (exported, layer):
        leaf = x.clone().requires_grad_()
        (y, *_) = outputs(module(leaf))
        y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
        gradients.append(
            [leaf.grad, *(module.get_parameter(name).grad for name, _ in layer.named_parameters())]
        )
    assert_same(*gradients)


# ---- state ----


def trained(case: Case) -> nn.Module:
    """Return a layer whose buffers differ from those of a new one."""
    layer = case.build()
    layer(case.example(seed=3))
    return layer


def test_state_dict_restores(case: Case, training: bool) -> None:
    layer = trained(case).train(training)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = case.layer().train(training)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert_same(step(fresh, case.example()), step(layer, case.example()), rtol=0, atol=0)


def test_deepcopy_and_pickle_restore(case: Case, training: bool) -> None:
    layer = trained(case).train(training)
    copies = [copy.deepcopy(layer)]
    if case.parametrization:
        with pytest.raises(RuntimeError, match="state_dict"):
            pickle.dumps(layer)
    else:
        copies.append(pickle.loads(pickle.dumps(layer)))
    want = step(layer, case.example())
    for other in copies:
        assert repr(other) == repr(layer)
        assert_same(step(other, case.example()), want, rtol=0, atol=0)


def test_builds_on_the_meta_device(case: Case) -> None:
    layer = case.layer(device="meta")
    state = layer.state_dict()
    assert all(tensor.is_meta for tensor in state.values())
    ready = case.build()
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(ready.state_dict())
    assert_same(step(layer, case.example()), step(ready, case.example()), rtol=0, atol=0)


def test_shapes_propagate_on_the_meta_device(case: Case, training: bool) -> None:
    got = outputs(case.layer(device="meta").train(training)(case.example().to("meta")))
    want = outputs(case.build(training=training)(case.example()))
    assert [(y.shape, y.dtype, y.device.type) for y in got] == [(y.shape, y.dtype, "meta") for y in want]


def test_the_default_device_does_not_matter(case: Case, training: bool) -> None:
    """`torch.set_default_device` applies to what users create; what a layer creates follows the input."""
    layer, x = case.build(training=training), case.example()
    want = step(layer, x)
    layer = case.build(training=training)
    with torch.device("meta"):
        got = step(layer, x)
    assert_same(got, want, rtol=0, atol=0)


def test_buffers_change_only_in_training(case: Case, training: bool) -> None:
    layer = case.build(training=training)
    before = {name: b.clone() for name, b in layer.named_buffers()}
    layer(case.example())
    changed = any(not torch.equal(b, before[name]) for name, b in layer.named_buffers())
    assert changed == ((training or case.adapts) and bool(case.stateful))


# Without running statistics evaluation normalises by the batch, as in torch.
@pytest.mark.parametrize("case", [case for case in CASES if case.stateful], ids=str)
def test_evaluation_treats_samples_independently(case: Case) -> None:
    layer = trained(case).eval()
    x = case.example()
    torch.testing.assert_close(copy.deepcopy(layer)(x)[:1], layer(x[:1]))


# ---- memory layouts, sizes and values ----


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "expanded"])
def test_memory_layout_does_not_matter(case: Case, training: bool, layout: str) -> None:
    x = case.example()
    if layout == "channels_last":
        moved = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "transposed":
        moved = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "strided":
        moved = torch.stack([x, x + 1], dim=-1)[..., 0]
    else:
        x = moved = x[:1].expand(x.shape) + torch.zeros(x.shape[0], *[1] * (x.dim() - 1))
        moved = x[:1].expand(x.shape)
    want = step(case.build(training=training), x.contiguous())
    assert_same(step(case.build(training=training), moved), want)
    if layout == "channels_last" and x.dim() == 4 and case.channels_last:
        (y,) = outputs(case.build(training=training)(moved))
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_input_is_left_alone(case: Case, training: bool) -> None:
    x = case.example()
    before = x.clone()
    step(case.build(training=training), x)
    assert torch.equal(x, before)


def test_one_sample(case: Case, training: bool) -> None:
    layer, x = case.build(training=training), case.example()[:1]
    statistics_of_the_batch = training or not any(True for _ in layer.buffers())
    if case.one_sample and statistics_of_the_batch:
        with pytest.raises(ValueError, match=case.one_sample):
            layer(x)
        return
    for result in step(layer, x):
        assert result.isfinite().all()


def test_empty_batch(case: Case, training: bool) -> None:
    """An empty result, zero gradients, and no change of state."""
    layer, x = case.build(training=training), case.example()[:0]
    _, before = state_of(layer)
    (y, *_), grads = outputs(layer(x.requires_grad_())), [x, *layer.parameters()]
    assert y.shape[0] == 0
    assert y.dtype == x.dtype
    y.sum().backward()
    assert all(g.grad is not None and not g.grad.any() for g in grads)
    assert_same([*layer.buffers()], [*before.values()], rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_hidden(case: Case, training: bool, value: float) -> None:
    if case.bounded and value == float("inf"):
        pytest.skip(f"bounded by design: {case.bounded}")
    x = case.example()
    x.view(-1)[0] = value
    y = outputs(case.build(training=training)(x))[0]
    assert not y.view(-1)[0].isfinite()
