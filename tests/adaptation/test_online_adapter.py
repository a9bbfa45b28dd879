"""The online adapter: its steps by hand, what it leaves alone, and what it restores."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from trueup.adaptation import (
    AlphaBatchNorm2d,
    OnlineAdapter,
    convert_alpha_bn,
    convert_unmix_tns,
    core,
    core_loss,
    entropy_loss,
    restore,
    tent,
)

ADAM = partial(torch.optim.Adam, lr=0.01)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def network(dropout: float = 0.5) -> nn.Sequential:
    """Return a trained-like model in training mode, with statistics and affine parameters of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, eps=1e-3),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5, momentum=None),
        nn.Flatten(),
        nn.Linear(80, 3),
    ).double()
    for norm in (model[1], model[5]):
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def layer_norm_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()


def batches(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(count, 8, 1, 8, 8, generator=generator, dtype=torch.float64) + 1


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor], *, but: Iterable[str] = ()) -> None:
    assert a.keys() == b.keys()
    different = {name for name in a if not torch.equal(a[name], b[name])}
    assert different == {*but}


def norms_by_hand(model: nn.Sequential, x: Tensor, source_weight: float) -> Tensor:
    """Evaluate the model with mixed statistics, written out."""
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            mean = source_weight * layer.running_mean + (1 - source_weight) * x.mean((0, 2, 3))
            var = source_weight * layer.running_var + (1 - source_weight) * x.var((0, 2, 3), correction=0)
            x = (x - mean[:, None, None]) / (var[:, None, None] + layer.eps).sqrt()
            x = x * layer.weight[:, None, None] + layer.bias[:, None, None]
        elif not isinstance(layer, nn.Dropout):
            x = layer(x)
    return x


@pytest.mark.parametrize("steps", [1, 3])
def test_tent_by_hand(steps: int) -> None:
    adapter = tent(network(), optimizer=ADAM, steps=steps)
    model = network()
    optimizer = ADAM([p for norm in (model[1], model[5]) for p in norm.parameters()])
    for x in batches():
        for _ in range(steps):
            logits = norms_by_hand(model, x, 0.0)
            probs = logits.softmax(1)
            optimizer.zero_grad()
            (-(probs * probs.log()).sum(1).mean()).backward()
            optimizer.step()
        predicted = adapter(x)
        torch.testing.assert_close(predicted, logits.detach())
        assert not predicted.requires_grad
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(adapter.model.get_parameter(name), parameter)
    assert adapter.adapted == ["1.weight", "1.bias", "5.weight", "5.bias"]


@pytest.mark.parametrize("normalization", ["row", "sum"])
def test_core_by_hand(normalization: str) -> None:
    adapter = core(network(), 0.3, normalization=normalization, optimizer=SGD)  # type: ignore[arg-type]
    model = network()
    optimizer = SGD([p for norm in (model[1], model[5]) for p in norm.parameters()])
    for x in batches():
        logits = norms_by_hand(model, x, 0.3)
        probs = logits.softmax(1)
        correlation = probs.T @ probs
        if normalization == "row":
            off_diagonal = (correlation / correlation.sum(1, keepdim=True)).fill_diagonal_(0).sum() / 3
        else:
            off_diagonal = correlation.fill_diagonal_(0).sum() / len(x)
        optimizer.zero_grad()
        off_diagonal.backward()
        optimizer.step()
        torch.testing.assert_close(adapter(x), logits.detach())


@pytest.mark.parametrize("loss", [entropy_loss, core_loss])
def test_adaptation_lowers_the_loss(loss: Callable[[Tensor], Tensor]) -> None:
    adapter = OnlineAdapter(convert_alpha_bn(network(), 0.0), loss, ADAM)
    x = batches(1)[0]
    values = [float(loss(adapter(x))) for _ in range(20)]
    assert values[-1] < 0.95 * values[0]


def test_only_the_chosen_parameters_change() -> None:
    model = network()
    model[4].weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = state(model)
    adapter = OnlineAdapter(model, entropy_loss, SGD)
    assert adapter.model is model
    for x in batches():
        adapter(x)
    assert_equal(state(model), before, but=adapter.adapted)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())


def test_a_step_needs_no_gradient_of_the_rest_and_none_from_before() -> None:
    needed: list[list[str]] = []
    models = [network(), network()]
    for p in models[0].parameters():
        p.grad = torch.ones_like(p)  # left over from training

    def loss(model: nn.Module, logits: Tensor) -> Tensor:
        needed.append([name for name, p in model.named_parameters() if p.requires_grad])
        return entropy_loss(logits)

    for model in models:
        adapter = OnlineAdapter(model, partial(loss, model), SGD)
        x = batches()[0].requires_grad_()
        adapter(x)
        assert x.grad is None
        assert needed.pop() == adapter.adapted
    assert_equal(state(models[0]), state(models[1]))


def test_the_source_of_a_converted_model_stays() -> None:
    for adapt in (tent, core):
        source = network()
        before = state(source)
        adapter = adapt(source, optimizer=SGD)
        for x in batches():
            adapter(x)
        assert_equal(state(source), before)
        assert isinstance(adapter.model[1], AlphaBatchNorm2d)
        # also without reset()
        assert_equal(state(restore(adapter.model)), before)


@pytest.mark.parametrize(
    ("parameters", "adapted"),
    [
        ("norm-affine", ["1.weight", "1.bias", "5.weight", "5.bias"]),
        (lambda name, p: name.startswith("5") or p.dim() == 2, ["5.weight", "5.bias", "7.weight"]),
        (lambda name, p: name == "7.bias", ["7.bias"]),
    ],
)
def test_choice_of_parameters(parameters: Any, adapted: list[str]) -> None:
    model = network()
    before = state(model)
    adapter = OnlineAdapter(model, entropy_loss, SGD, parameters=parameters)
    adapter(batches()[0])
    assert adapter.adapted == adapted
    assert_equal(state(model), before, but=adapted)
    same = network()
    named = dict(same.named_parameters())
    given = OnlineAdapter(same, entropy_loss, SGD, parameters=(named[name] for name in adapted))
    given(batches()[0])
    assert_equal(state(same), state(model))


def test_a_frozen_parameter_can_be_chosen() -> None:
    model = network().requires_grad_(False)
    before = state(model)
    OnlineAdapter(model, entropy_loss, SGD)(batches()[0])
    assert not torch.equal(model[1].weight, before["1.weight"])
    assert not model[1].weight.requires_grad


@pytest.mark.parametrize("optimizer", [ADAM, SGD])
def test_reset(optimizer: Any) -> None:
    adapter = OnlineAdapter(convert_unmix_tns(network(), 4, momentum=0.1), core_loss, optimizer)
    before = state(adapter.model)
    first = [adapter(x) for x in batches()]
    assert not torch.equal(adapter.model[1].means, before["1.means"])
    adapter.optimizer.param_groups[0]["lr"] = 0.5
    adapter.reset()
    assert_equal(state(adapter.model), before)
    assert not adapter.optimizer.state
    for x, logits in zip(batches(), first, strict=True):
        assert torch.equal(adapter(x), logits)


def test_reset_brings_back_from_nan() -> None:
    adapter = tent(network())
    expected = adapter(batches()[0])
    adapter(batches()[0] * math.nan)
    assert adapter(batches()[0]).isnan().all()
    adapter.reset()
    assert torch.equal(adapter(batches()[0]), expected)


def test_episodic() -> None:
    online, episodic = (tent(network(), optimizer=SGD, steps=2, episodic=flag) for flag in (False, True))
    results = [(online(x), episodic(x)) for x in batches()]
    for x, (of_online, of_episodic) in zip(batches(), results, strict=True):
        fresh = tent(network(), optimizer=SGD, steps=2)(x)
        assert torch.equal(of_episodic, fresh)
        assert torch.equal(of_online, fresh) is bool((x == batches()[0]).all())


def test_evaluation_mode_and_dropout() -> None:
    adapter = tent(network(dropout=0.9))
    parent = nn.Sequential(adapter).train()
    assert adapter.training
    assert not any(module.training for module in adapter.model.modules())
    x = batches()[0]
    logits = parent(x)
    adapter.reset()
    assert torch.equal(parent(x), logits)
    parent.eval()
    assert not adapter.training


def test_frozen() -> None:
    adapter = OnlineAdapter(
        convert_unmix_tns(network(), 4, momentum=0.1), entropy_loss, SGD, episodic=True, steps=2
    )
    assert not adapter.frozen
    adapter(batches()[0])
    before = state(adapter.model)
    adapter.frozen = True
    assert adapter.model[1].frozen
    frozen = adapter(batches()[1].requires_grad_())
    assert not frozen.requires_grad
    assert_equal(state(adapter.model), before)
    with torch.inference_mode():
        assert torch.equal(adapter(batches()[1]), frozen)
    adapter.frozen = False
    adapter(batches()[1])
    assert not torch.equal(adapter.model[1].means, before["1.means"])


def test_frozen_layers_stay_as_the_user_set_them() -> None:
    model = convert_unmix_tns(network(), 4, momentum=0.1)
    model[1].frozen = True
    OnlineAdapter(model, entropy_loss, SGD)(batches()[0])
    assert model[1].frozen
    assert not model[5].frozen


def test_no_grad_is_overridden() -> None:
    adapter, expected = tent(network()), tent(network())
    with torch.no_grad():
        result = [adapter(x) for x in batches()]
        assert not torch.is_grad_enabled()
    for x, logits in zip(batches(), result, strict=True):
        assert torch.equal(expected(x), logits)


def test_state_dict_resumes(tmp_path: Path) -> None:
    x = batches()
    adapter = tent(network(), optimizer=ADAM)
    adapter(x[0])
    torch.save(adapter.state_dict(), tmp_path / "adapter.pt")
    expected = [adapter(x[1]), adapter(x[2])]

    other = network()
    nn.init.ones_(other[1].weight)  # another source, which the state dict replaces
    resumed = tent(other, optimizer=partial(torch.optim.Adam, lr=0.5))
    resumed.load_state_dict(torch.load(tmp_path / "adapter.pt", weights_only=True))
    assert [torch.equal(resumed(b), e) for b, e in zip(x[1:], expected, strict=False)] == [True, True]
    adapter.reset()
    resumed.reset()
    assert torch.equal(resumed(x[0]), adapter(x[0]))
    assert torch.equal(resumed(x[1]), adapter(x[1]))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda adapter: pickle.loads(pickle.dumps(adapter))])
def test_a_copy_goes_on_alone(copied: Callable[[OnlineAdapter], OnlineAdapter]) -> None:
    adapter = tent(network(), optimizer=ADAM)
    adapter(batches()[0])
    clone = copied(adapter)
    before = state(adapter.model)
    result = [clone(x) for x in batches()]
    assert_equal(state(adapter.model), before)
    assert all(torch.equal(adapter(x), logits) for x, logits in zip(batches(), result, strict=True))


def test_layer_norm_only() -> None:
    """TENT trains its scales and shifts; there are no statistics to convert, and Core has nothing to mix."""
    source = layer_norm_network()
    before = state(source)
    adapter = tent(source, optimizer=SGD)
    x = torch.randn(16, 4, dtype=torch.float64)
    assert torch.equal(adapter(x), source.eval()(x))
    assert_equal(state(source), before)
    assert_equal(state(adapter.model), before, but=["1.weight", "1.bias"])
    adapter.reset()
    assert_equal(state(adapter.model), before)
    with pytest.raises(
        ValueError, match="batch norms, but the model has none: to train the affine parameters"
    ):
        core(source)


class Output(NamedTuple):
    logits: Tensor
    features: Tensor


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = layer_norm_network()

    def forward(self, *, pixel_values: Tensor) -> Output:
        return Output(self.net(pixel_values), pixel_values)


def test_an_object_with_logits_and_keyword_arguments() -> None:
    x = torch.randn(16, 4, dtype=torch.float64)
    adapter, plain = tent(Classifier()), tent(layer_norm_network())
    for _ in range(2):
        assert torch.equal(adapter(pixel_values=x), plain(x))


def test_empty_and_single_batches() -> None:
    adapter = tent(network())
    before = state(adapter.model)
    assert adapter(batches()[0][:0]).shape == (0, 3)
    assert_equal(state(adapter.model), before)
    assert adapter(batches()[0][:1]).isfinite().all()


def test_half_precision() -> None:
    adapter = tent(network().bfloat16(), optimizer=SGD)
    for x in batches():
        assert adapter(x.bfloat16()).isfinite().all()


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = layer_norm_network()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).detach()


X = torch.randn(4, 4, dtype=torch.float64)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: OnlineAdapter(nn.Linear(4, 3), entropy_loss, SGD),
            ValueError,
            "no norm layer of torch with affine parameters: choose what to train",
        ),
        (lambda: tent(nn.BatchNorm1d(3, affine=False)), ValueError, "no norm layer of torch with affine"),
        (
            lambda: OnlineAdapter(layer_norm_network(), entropy_loss, SGD, parameters="all"),  # type: ignore[arg-type]
            ValueError,
            "got 'all': pass one of these",
        ),
        (
            lambda: OnlineAdapter(layer_norm_network(), entropy_loss, SGD, parameters=[]),
            ValueError,
            "nothing to train",
        ),
        (
            lambda: OnlineAdapter(layer_norm_network(), entropy_loss, SGD, parameters=lambda name, p: False),
            ValueError,
            "nothing to train",
        ),
        (
            lambda: OnlineAdapter(
                layer_norm_network(), entropy_loss, SGD, parameters=layer_norm_network().parameters()
            ),
            ValueError,
            "not the model's: take them from this very model",
        ),
        (
            lambda: OnlineAdapter(layer_norm_network(), entropy_loss, torch.optim.SGD([X], lr=1.0)),  # type: ignore[arg-type]
            TypeError,
            "a function from parameters to an optimizer; got SGD",
        ),
        (
            lambda: OnlineAdapter(layer_norm_network(), entropy_loss, lambda p: p),  # type: ignore[arg-type, return-value]
            TypeError,
            "a function from parameters to an optimizer",
        ),
        (lambda: OnlineAdapter(layer_norm_network(), "entropy", SGD), TypeError, "got 'entropy'"),  # type: ignore[arg-type]
        (lambda: tent(layer_norm_network(), steps=0), ValueError, "steps must be at least 1; got 0"),
        (lambda: core(network(), 1.5), ValueError, "source_weight must be in"),
        (
            lambda: OnlineAdapter(layer_norm_network(), lambda z: z.sum(1), SGD)(X),
            ValueError,
            r"must be a scalar; got shape \(4,\): return its mean",
        ),
        (lambda: tent(Detached())(X), RuntimeError, "does not depend on the parameters net.1.weight"),
        (
            lambda: tent(Tuple())(X),
            TypeError,
            "the model must return logits, or an object with an attribute `logits`; got tuple",
        ),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


class Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = layer_norm_network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), x


def test_inference_mode_is_refused() -> None:
    adapter = tent(network())
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"needs gradients.*use torch.no_grad"):
        adapter(batches()[0])


def test_loading_a_state_dict_shares_nothing_with_it() -> None:
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    first = tent(network())
    first(x)
    state = copy.deepcopy(first.state_dict())
    second = tent(network())
    runs = []
    for _ in range(2):  # a step changes an optimizer's state in place
        second.load_state_dict(state)
        runs.append([second(x) for _ in range(3)])
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)


def test_restore_of_an_adapter_gives_back_other_norms_too() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 3)
    ).eval()
    x = torch.randn(6, 1, 8, 8)
    for adapter in (tent(model), core(model)):
        for _ in range(2):
            adapter(x)
        assert not torch.equal(adapter.model[3].weight, model[3].weight)
        source = restore(adapter)
        assert type(source) is nn.Sequential
        assert type(source[1]) is nn.BatchNorm2d
        torch.testing.assert_close(source.state_dict(), model.state_dict(), rtol=0, atol=0)
        with pytest.raises(TypeError, match=r"pass adapter\.model"):
            OnlineAdapter(adapter, entropy_loss, ADAM)
        assert isinstance(restore(adapter, inplace=True), nn.Sequential)
