"""Whatever `torch.optim.AdamW` survives, every optimizer, wrapper and transform of `trueup.optim` survives.

Each test saves, copies, loads or extends a training in its middle, and wants it to end with the very weights
of one that was left alone. AdamW takes every test too: it shows that what is asked of ours is right.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import AdamW, Optimizer

import trueup.optim
from conformance.optimizers import CASES
from trueup.optim import SAM, AdaClip, AdaGN, AdamP, MomentumReset, NormalizedGD, StableSPAM
from trueup.optim._gradient_transform import GradientTransform

STEPS, MIDDLE = 8, 5
SHAPES = [(4, 3), (5,), (2, 6), (), (0, 3)]


def params(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def margins(weights: Sequence[Tensor], t: int) -> Tensor:
    """Two numbers that depend on every weight, and on the step."""
    generator = torch.Generator().manual_seed(100 + t)
    total = torch.zeros(2, dtype=torch.float64)
    for w in weights:
        total = total + (torch.randn(2, *w.shape, generator=generator).double() * w).reshape(2, -1).sum(1)
    return total


@dataclass(frozen=True)
class Subject:
    """A thing under test: how it is made around parameters, and how it takes a step.

    Attributes:
        build: makes its parts: the optimizer first, then what wraps it or is attached to it.
        closure: it steps by a closure that returns margins and calls no backward.
    """

    kind: type
    build: Callable[[Any], tuple[Any, ...]]
    closure: bool = False

    def step(self, parts: tuple[Any, ...], weights: Sequence[nn.Parameter], t: int) -> None:
        def closure() -> Tensor:
            parts[0].zero_grad()
            loss = margins(weights, t).square().mean()
            loss.backward()
            return loss

        if self.closure:
            parts[0].step(lambda: margins(weights, t))
        elif isinstance(parts[-1], SAM):
            parts[-1].step(closure)
        else:
            closure()
            parts[0].step()

    def train(self, parts: tuple[Any, ...], weights: Sequence[nn.Parameter], steps: range) -> None:
        for t in steps:
            self.step(parts, weights, t)

    def straight(self, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
        """The weights of a training that nothing interrupts."""
        weights = params(dtype)
        self.train(self.build(weights), weights, range(STEPS))
        return weights

    def half_way(self, dtype: torch.dtype = torch.float64) -> tuple[tuple[Any, ...], list[nn.Parameter]]:
        weights = params(dtype)
        parts = self.build(weights)
        self.train(parts, weights, range(MIDDLE))
        return parts, weights


def around(attach: Callable[[Optimizer], Any], base: Callable[[Any], Optimizer]) -> Callable[..., Any]:
    def build(weights: Any) -> tuple[Any, ...]:
        optimizer = base(weights)
        return optimizer, attach(optimizer)

    return build


def adamw(weights: Any) -> Optimizer:
    return AdamW(weights, 1e-2)


SUBJECTS = {
    "AdamW": Subject(AdamW, lambda weights: (adamw(weights),)),
    **{
        case.optimizer.__name__: Subject(
            case.optimizer,
            lambda weights, case=case: (case.build(weights, **max(case.variants.values(), key=len)),),
        )
        for case in CASES
    },
    "StableSPAM, amsgrad": Subject(StableSPAM, lambda weights: (StableSPAM(weights, amsgrad=True),)),
    "NormalizedGD": Subject(NormalizedGD, lambda weights: (NormalizedGD(weights, 0.1),), closure=True),
    "SAM": Subject(SAM, around(SAM, adamw)),
    "SAM with AdamP": Subject(SAM, around(SAM, AdamP)),
    "AdaClip": Subject(AdaClip, around(lambda o: AdaClip(o, 0.6), adamw)),
    "AdaGN": Subject(AdaGN, around(AdaGN, adamw)),
    "MomentumReset": Subject(MomentumReset, around(lambda o: MomentumReset(o, 3), adamw)),
    "MomentumReset with StableSPAM": Subject(
        MomentumReset, around(lambda o: MomentumReset(o, 3), StableSPAM)
    ),
}
EACH = [pytest.param(subject, id=name) for name, subject in SUBJECTS.items()]
#: Without those whose step needs a closure, as that of torch's LBFGS does.
BY_GRADIENT = [pytest.param(subject, id=name) for name, subject in SUBJECTS.items() if not subject.closure]
#: Those that are optimizers, whose state dict has hooks.
OPTIMIZERS = [
    pytest.param(subject, id=name)
    for name, subject in SUBJECTS.items()
    if issubclass(subject.kind, Optimizer) and not subject.closure
]
DUPLICATES = [
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(lambda x: pickle.loads(pickle.dumps(x)), id="pickle"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


def equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    torch.testing.assert_close(list(actual), list(expected), rtol=0, atol=0)


def saved(parts: tuple[Any, ...]) -> list[Any]:
    """The state dicts of all parts that have one, through a file."""
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts if hasattr(part, "state_dict")], file)
    file.seek(0)
    loaded: list[Any] = torch.load(file, weights_only=True)
    return loaded


def load(parts: tuple[Any, ...], states: list[Any]) -> None:
    for part, state in zip((p for p in parts if hasattr(p, "state_dict")), states, strict=True):
        part.load_state_dict(state)


def test_every_public_optimizer_and_what_works_with_one_is_a_subject() -> None:
    public = [getattr(trueup.optim, name) for name in trueup.optim.__all__]
    classes = {
        x
        for x in public
        if inspect.isclass(x)
        and (issubclass(x, Optimizer | GradientTransform) or "optimizer" in inspect.signature(x).parameters)
    }
    assert classes == {subject.kind for subject in SUBJECTS.values()} - {AdamW}


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("subject", EACH)
def test_a_state_dict_loads_any_number_of_times(subject: Subject, dtype: torch.dtype, times: int) -> None:
    first, weights = subject.half_way(dtype)
    states = saved(first)
    second = subject.build(weights)
    for _ in range(times):
        load(second, states)
    subject.train(second, weights, range(MIDDLE, STEPS))
    equal(weights, subject.straight(dtype))


@pytest.mark.parametrize("subject", EACH)
def test_loading_what_is_there_already_changes_nothing(subject: Subject) -> None:
    """As accelerate does when it prepares an optimizer, before the first step and in the middle."""
    weights = params()
    parts = subject.build(weights)
    load(parts, saved(parts))
    subject.train(parts, weights, range(MIDDLE))
    load(parts, saved(parts))
    subject.train(parts, weights, range(MIDDLE, STEPS))
    equal(weights, subject.straight())


@pytest.mark.parametrize("duplicate", DUPLICATES)
@pytest.mark.parametrize("subject", EACH)
def test_copies_load_are_copied_again_and_go_on(subject: Subject, duplicate: Callable[[Any], Any]) -> None:
    first, weights = subject.half_way()
    states = saved(first)
    parts, weights = duplicate((first, weights))
    load(parts, states)
    parts, weights = duplicate((parts, weights))
    load(parts, states)
    subject.train(parts, weights, range(MIDDLE, STEPS))
    equal(weights, subject.straight())


@pytest.mark.parametrize("duplicate", DUPLICATES)
@pytest.mark.parametrize("subject", EACH)
def test_parameters_join_after_all_that(subject: Subject, duplicate: Callable[[Any], Any]) -> None:
    results = []
    for interrupted in (False, True):
        weights = params()
        parts = subject.build(weights[:2])
        subject.train(parts, weights[:2], range(MIDDLE))
        if interrupted:
            parts, weights = duplicate((parts, weights))
            load(parts, saved(parts))
            load(parts, saved(parts))
        parts[0].add_param_group({"params": weights[2:], "lr": 0.05})
        subject.train(parts, weights, range(MIDDLE, STEPS))
        results.append(weights)
    equal(*results)


def swap(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The entries of the first and the third parameter, whose shapes differ, in each other's place."""
    state = state_dict["state"]
    return {**state_dict, "state": {**state, 0: state[2], 2: state[0]}}


def swap_in_place(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    state_dict["state"] = swap(optimizer, state_dict)["state"]


@pytest.mark.parametrize("hook", [swap, swap_in_place])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("subject", OPTIMIZERS)
def test_a_hook_may_rearrange_what_is_loaded(
    subject: Subject, dtype: torch.dtype, hook: Callable[..., Any]
) -> None:
    (first,), weights = subject.half_way(dtype)
    (second,) = subject.build([weights[i] for i in (2, 1, 0, 3, 4)])
    seen: list[Any] = []
    second.register_load_state_dict_pre_hook(hook)
    second.register_load_state_dict_post_hook(lambda o: seen.append(copy.deepcopy(o.state_dict()["state"])))
    (state,) = saved((first,))
    second.load_state_dict(state)
    # What a hook sees afterwards is what is there, and the hook that was registered is the only one.
    torch.testing.assert_close(seen, [second.state_dict()["state"]], rtol=0, atol=0)
    assert list(second._optimizer_load_state_dict_pre_hooks.values()) == [hook]
    subject.train((second,), weights, range(MIDDLE, STEPS))
    equal(weights, subject.straight(dtype))


def remove_itself(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    optimizer._optimizer_load_state_dict_pre_hooks.popitem()


def load_another(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    if not optimizer.__dict__.setdefault("loading", False):
        optimizer.loading = True
        optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("hook", [remove_itself, load_another])
@pytest.mark.parametrize("subject", [*OPTIMIZERS, pytest.param(SUBJECTS["NormalizedGD"], id="NormalizedGD")])
def test_a_hook_may_remove_itself_or_load(subject: Subject, hook: Callable[..., Any]) -> None:
    (optimizer,), weights = subject.half_way()
    (state,) = saved((optimizer,))
    optimizer.register_load_state_dict_pre_hook(hook)
    post: list[Any] = []
    optimizer.register_load_state_dict_post_hook(
        lambda o: post.append(o.register_load_state_dict_pre_hook(swap))
    )
    optimizer.load_state_dict(state)
    for handle in post:  # registered while loading, they are hooks as any
        assert swap in optimizer._optimizer_load_state_dict_pre_hooks.values()
        handle.remove()
    assert swap not in optimizer._optimizer_load_state_dict_pre_hooks.values()
    assert (hook in optimizer._optimizer_load_state_dict_pre_hooks.values()) == (hook is load_another)
    subject.train((optimizer,), weights, range(MIDDLE, STEPS))
    equal(weights, subject.straight())


@pytest.mark.parametrize("subject", OPTIMIZERS)
def test_a_subclass_with_a_default_of_its_own_loads_its_parents_state(subject: Subject) -> None:
    (first,), weights = subject.half_way()
    (state,) = saved((first,))

    class Cautious(subject.kind):  # type: ignore[name-defined,misc]
        def __init__(self, params: Any, cautious: bool = False, **hyper: Any) -> None:
            super().__init__(params, **hyper)
            self.defaults["cautious"] = cautious

        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)
            for group in self.param_groups:
                group.setdefault("cautious", False)

    arguments = inspect.signature(subject.kind).parameters
    settings = {name: value for name, value in first.defaults.items() if name in arguments}
    heir = Cautious(weights, **settings)
    for _ in range(2):
        heir.load_state_dict(state)
    assert heir.param_groups[0]["cautious"] is False
    subject.train((heir,), weights, range(MIDDLE, STEPS))
    equal(weights, subject.straight())


@pytest.mark.parametrize("subject", OPTIMIZERS)
def test_a_hook_that_raises_leaves_the_optimizer_as_it_was(subject: Subject) -> None:
    (first,), weights = subject.half_way()
    (state,) = saved((first,))

    def refuse(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = first.register_load_state_dict_pre_hook(refuse)
    with pytest.raises(KeyboardInterrupt):
        first.load_state_dict(state)
    handle.remove()
    assert not first._optimizer_load_state_dict_pre_hooks
    subject.train((first,), weights, range(MIDDLE, STEPS))
    equal(weights, subject.straight())


@pytest.mark.parametrize("subject", OPTIMIZERS)
def test_hooks_of_steps_and_of_saving_are_called(subject: Subject) -> None:
    (optimizer,), weights = subject.half_way()
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before the step"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after the step"))
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("after saving"))
    optimizer.load_state_dict(optimizer.state_dict())
    subject.train((optimizer,), weights, range(MIDDLE, MIDDLE + 1))
    assert calls == ["before saving", "after saving", "before the step", "after the step"]


@pytest.mark.parametrize("subject", OPTIMIZERS)
def test_what_a_state_dict_holds_beside_is_kept(subject: Subject) -> None:
    """Schedulers write into groups, and users into the state of a parameter or of none."""
    (first,), weights = subject.half_way()
    (state,) = saved((first,))
    state["state"]["examples"] = 640
    state["state"][0]["mean"] = torch.ones(SHAPES[0])
    state["param_groups"][0]["initial_lr"] = 0.5
    (second,) = subject.build(weights)
    second.load_state_dict(state)
    second.load_state_dict(second.state_dict())
    assert second.state["examples"] == 640
    assert torch.equal(second.state[weights[0]]["mean"], torch.ones(SHAPES[0], dtype=torch.float64))
    assert second.param_groups[0]["initial_lr"] == 0.5
    subject.train((second,), weights, range(MIDDLE, STEPS))
    equal(weights, subject.straight())


@pytest.mark.parametrize("subject", BY_GRADIENT)
def test_schedulers_go_on(subject: Subject) -> None:
    results = []
    for interrupted in (False, True):
        weights = params()
        parts = subject.build(weights)
        schedule = torch.optim.lr_scheduler.OneCycleLR(parts[0], 0.1, total_steps=20, cycle_momentum=False)
        for t in range(STEPS):
            subject.step(parts, weights, t)
            schedule.step()
            if interrupted and t == MIDDLE:
                states, place = saved(parts), schedule.state_dict()
                parts = subject.build(weights)
                schedule = torch.optim.lr_scheduler.OneCycleLR(
                    parts[0], 0.1, total_steps=20, cycle_momentum=False
                )
                schedule.load_state_dict(place)
                load(parts, states)
                load(parts, states)
        results.append(weights)
    equal(*results)


class Weights(nn.Module):
    """The weights as a module, which distributed checkpoints name them by; one is never trained."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)


@pytest.mark.parametrize("named", [False, True], ids=["parameters", "named_parameters"])
@pytest.mark.parametrize("subject", BY_GRADIENT)
def test_distributed_checkpoints_are_saved_and_loaded_twice(
    subject: Subject, named: bool, tmp_path: Path
) -> None:
    model = Weights(params())
    parts = subject.build(model.named_parameters() if named else model.parameters())
    subject.train(parts, model.weights, range(MIDDLE))
    others = saved(parts)[1:]
    dcp.save({"optimizer": get_optimizer_state_dict(model, parts[0])}, checkpoint_id=tmp_path, no_dist=True)

    again = subject.build(model.named_parameters() if named else model.parameters())
    model.zero_grad()
    for _ in range(2):
        target = {"optimizer": get_optimizer_state_dict(model, again[0])}
        dcp.load(target, checkpoint_id=tmp_path, no_dist=True)
        set_optimizer_state_dict(model, again[0], target["optimizer"])
    load(again[1:], others)
    subject.train(again, model.weights, range(MIDDLE, STEPS))
    equal(model.weights, subject.straight())


class Prepared(Optimizer):
    """An optimizer around an optimizer, with no hooks of its own, as accelerate prepares it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        optimizer.load_state_dict(optimizer.state_dict())

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    @property
    def defaults(self) -> Any:
        return self.optimizer.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        return self.optimizer.step(closure)


@pytest.mark.parametrize("subject", EACH)
def test_an_optimizer_is_prepared(subject: Subject) -> None:
    weights = params()
    parts = subject.build(weights)
    prepared = (Prepared(parts[0]), *parts[1:])
    subject.train(prepared, weights, range(MIDDLE))
    states = saved(prepared)
    parts = subject.build(weights)
    prepared = (Prepared(parts[0]), *parts[1:])
    for _ in range(2):
        load(prepared, states)
    subject.train(prepared, weights, range(MIDDLE, STEPS))
    equal(weights, subject.straight())


@pytest.mark.parametrize("duplicate", [None, *DUPLICATES])
@pytest.mark.parametrize("attach", [SAM, lambda o: AdaClip(o, 0.6), AdaGN, lambda o: MomentumReset(o, 3)])
def test_wrappers_and_transforms_take_a_prepared_optimizer(
    attach: Callable[[Optimizer], Any], duplicate: Callable[[Any], Any] | None
) -> None:
    direct = Subject(SAM, around(attach, adamw))
    prepared = Subject(SAM, around(attach, lambda weights: Prepared(Prepared(adamw(weights)))))
    parts, weights = prepared.half_way()
    if duplicate is not None:
        parts, weights = duplicate((parts, weights))
    load(parts, saved(parts))
    prepared.train(parts, weights, range(MIDDLE, STEPS))
    equal(weights, direct.straight())
    if isinstance(parts[1], GradientTransform):
        parts[1].remove()
        assert not parts[0].optimizer.optimizer._optimizer_step_pre_hooks


def test_a_transform_says_that_a_wrapper_hides_the_hooks() -> None:
    wrapper = Prepared(adamw(params()))
    wrapper.inner = vars(wrapper).pop("optimizer")
    with pytest.raises(TypeError, match="AdaClip acts by a hook before each step; got a Prepared without"):
        AdaClip(wrapper)
