"""The skeleton of an optimizer with two routes.

The blocked route steps a CPU tensor block by block through cache (`blocks.py`) and may read values. The
device route steps lists of tensors with `torch._foreach_*` operations and never reads a value back, so that
it runs without synchronisation on accelerators and inside `torch.compile(opt.step)`. Both must give the
same numbers, of half types to the rounding of what they store: they compute in float32. A subclass writes
one method for each and this class does what they share: collecting tensors, choosing the route, checking
input, and loading state.
"""

from __future__ import annotations

import inspect
import math
import operator
from abc import abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Any, ClassVar, NamedTuple, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from trueup._numerics.flat_chunks import Scratch, in_memory_order, uses_single_tensor_route
from trueup._numerics.upcasting import upcast_dtype

Group = dict[str, Any]

#: Elements of half types that are stepped together, in float32 copies: 64 MiB for each of weight and state.
_COPIED = 1 << 24


class Flat(NamedTuple):
    """A CPU parameter with its gradient and state, flat in one memory order. It is not empty.

    `rows` is the parameter's size along dimension 0, or 0 if it has less than two dimensions.
    """

    rows: int
    param: Tensor
    grad: Tensor
    state: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Uncast:
    """A tensor of a state dict, wrapped to keep torch from rounding it to the parameter's dtype."""

    value: Tensor


class RoutedOptimizer(Optimizer):
    """Base of optimizers that step each parameter on its own.

    A subclass names its state in `state_names`: what is in `scalars` is a 0-d number, everything else has the
    parameter's shape. Numbers are kept in float32 or better, the rest in the parameter's dtype or, if `wide`,
    in float32 or better too. A subclass names its constructor arguments that older state dicts may lack in
    `optional`, and implements `_check`, `_step_single_tensor` and `_step_foreach`.
    """

    state_names: ClassVar[tuple[str, ...]]
    scalars: ClassVar[frozenset[str]] = frozenset({"step"})
    wide: ClassVar[bool] = False
    optional: ClassVar[Group] = {"foreach": None, "maximize": False}

    def __init__(self, params: ParamsT, defaults: Group) -> None:
        super().__init__(params, defaults)

    def _names(self, group: Group) -> tuple[str, ...]:
        """The state that a group's hyperparameters call for."""
        return self.state_names

    def _dtype(self, name: str, param: Tensor) -> torch.dtype:
        """The dtype of a parameter's state of that name."""
        return upcast_dtype(param.dtype) if self.wide or name in self.scalars else param.dtype

    @abstractmethod
    def _check(self, group: Group) -> None:
        """Raise ValueError for hyperparameters out of range."""

    @abstractmethod
    def _step_single_tensor(self, group: Group, scratch: Scratch, flats: list[Flat]) -> None:
        """Step CPU tensors of one dtype, reading values as need be."""

    @abstractmethod
    def _step_foreach(
        self, group: Group, params: list[Tensor], grads: list[Tensor], *state: list[Tensor]
    ) -> None:
        """Step lists of tensors, none empty and all of one device, without reading any value.

        All are float32, or all float64: copies, where the parameters are of a half type.
        """

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with hyperparameters of their own, as `torch.optim.Optimizer.add_param_group`.

        Raises:
            ValueError: a hyperparameter is out of range.
            RuntimeError: a parameter is complex.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if param.is_complex():
                del self.param_groups[-1]
                raise RuntimeError(
                    f"{type(self).__name__} needs real parameters; got one of dtype {param.dtype} and shape "
                    f"{tuple(param.shape)}: store real and imaginary parts (torch.view_as_real)"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: recomputes the loss and its gradients; called once, with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            state: list[list[Tensor]] = [[] for _ in self._names(group)]
            self._init_group(group, params, grads, *state)
            tensors = list(zip(params, grads, *state))
            self._step_lists(
                group, tensors if torch.compiler.is_compiling() else self._step_cpu(group, tensors)
            )
        return loss

    def _step_cpu(self, group: Group, members: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        """Step what takes the blocked route; return the rest. Each member: parameter, gradient, state."""
        shaped = [name not in self.scalars for name in self._names(group)]
        flats: dict[torch.dtype, list[Flat]] = defaultdict(list)
        rest = []
        for tensors in members:
            param = tensors[0]
            flat = None
            if uses_single_tensor_route(param, group["foreach"]):
                flat = in_memory_order(*tensors[:2], *compress(tensors[2:], shaped))
            if flat is None:
                rest.append(tensors)
                continue
            whole = iter(flat[2:])
            own = tuple(next(whole) if big else t for t, big in zip(tensors[2:], shaped, strict=True))
            rows = param.size(0) if param.dim() > 1 else 0
            flats[param.dtype].append(Flat(rows, flat[0], flat[1], own))
        scratch = Scratch()
        with np.errstate(all="ignore"):  # NaN and infinity propagate silently, as in torch
            for of_dtype in flats.values():
                self._step_single_tensor(group, scratch, of_dtype)
        return rest

    def _step_lists(self, group: Group, members: list[tuple[Tensor, ...]]) -> None:
        # kernels that take lists of tensors are fast only where those are of one device and dtype
        alike: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, ...]]] = defaultdict(list)
        for tensors in members:
            alike[tensors[0].device, tensors[0].dtype].append(tensors)
        for (_, dtype), of_kind in alike.items():
            if upcast_dtype(dtype) == dtype:
                self._step_foreach(group, *(list(column) for column in zip(*of_kind)))
                continue
            for some in _bounded(of_kind):
                stored = [list(column) for column in zip(*some)]
                computed = [[t.to(upcast_dtype(dtype)) for t in column] for column in stored]
                self._step_foreach(group, *computed)
                # All but the gradients, which are the second.
                for column, values in zip((stored[0], *stored[2:]), (computed[0], *computed[2:])):
                    if column[0].dtype != values[0].dtype:
                        copy_list(column, values)

    # torch.compile knows this method by its name: it runs it outside the graph and maps the lists it fills.
    def _init_group(
        self, group: Group, params: list[Tensor], grads: list[Tensor], *state: list[Tensor]
    ) -> None:
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} needs dense gradients; got layout {param.grad.layout}: build the "
                    "embedding with sparse=False, or give it an optimizer of its own (torch.optim.SparseAdam)"
                )
            own = self.state[param]
            for name in self._names(group):
                if name not in own:
                    dtype = self._dtype(name, param)
                    own[name] = (
                        torch.zeros((), dtype=dtype, device=param.device)
                        if name in self.scalars
                        else torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
                    )
            if not param.numel():
                continue
            params.append(param)
            grads.append(param.grad)
            for tensors, name in zip(state, self._names(group)):
                tensors.append(own[name])

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state dict of this class or of the official implementation.

        Raises:
            ValueError: it belongs to another optimizer, or to parameters of other shapes.
        """
        with checked_after_hooks(self, self._checked):
            super().load_state_dict(state_dict)

    def _checked(self, state_dict: StateDict) -> StateDict:
        """Refuse a state dict, or return it with its tensors safe from rounding."""
        name = type(self).__name__
        # `defaults` alone would not do: torch and users' subclasses add keys of their own there.
        lineage: list[Any] = [kind for kind in type(self).__mro__ if kind.__module__.startswith("trueup.")]
        arguments = {key for kind in lineage for key in inspect.signature(kind).parameters}
        needed = (arguments & self.defaults.keys()) - self.optional.keys()
        for group in state_dict["param_groups"]:
            if missing := sorted(needed - group.keys()):
                raise ValueError(
                    f"{name}.load_state_dict needs a state dict of {name}; got one whose param_groups lack "
                    f"{', '.join(missing)}: load it into the optimizer that saved it"
                )
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved, params):
            own = state_dict["state"].get(index)
            if not own:
                continue
            if missing := sorted(set(self.state_names) - own.keys()):
                raise ValueError(
                    f"{name}.load_state_dict needs {', '.join(self.state_names)} for every parameter; got "
                    f"{', '.join(own)}: load it into the optimizer that saved it"
                )
            for key in self.state_names:
                if key not in self.scalars and own[key].shape != param.shape:
                    raise ValueError(
                        f"{name}.load_state_dict needs {key} of the parameter's shape {tuple(param.shape)}; "
                        f"got {tuple(own[key].shape)}: pass the saved run's parameters, in their order"
                    )
        ours = set(saved)
        uncast = {
            index: {key: _Uncast(value) if isinstance(value, Tensor) else value for key, value in own.items()}
            for index, own in state_dict["state"].items()
            if index in ours
        }
        return {**state_dict, "state": {**state_dict["state"], **uncast}}

    def __setstate__(self, state: StateDict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.optional.items():
                group.setdefault(name, value)
            for param in group["params"]:
                own = self.state.get(param, {})
                for name, loaded in own.items():
                    value = loaded.value if isinstance(loaded, _Uncast) else loaded
                    if isinstance(value, Tensor) and (value is not loaded or name in self._names(group)):
                        own[name] = value.to(param.device, self._dtype(name, param))
                    elif name in self.scalars:  # a Python int in official code
                        own[name] = torch.as_tensor(
                            value, dtype=self._dtype(name, param), device=param.device
                        )


def _bounded(members: list[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Split a list where its first tensors would come to more than `_COPIED` elements together."""
    some: list[tuple[Tensor, ...]] = []
    total = 0
    for tensors in members:
        if some and total + tensors[0].numel() > _COPIED:
            yield some
            some, total = [], 0
        some.append(tensors)
        total += tensors[0].numel()
    yield some


@contextmanager
def checked_after_hooks(
    optimizer: Optimizer, check: Callable[[StateDict], StateDict | None]
) -> Iterator[None]:
    """Make `Optimizer.load_state_dict` check, within this context, what the user's pre-hooks return.

    `check` raises, or returns what to load instead, or None.
    """
    hooks = optimizer._optimizer_load_state_dict_pre_hooks

    def run(_: Optimizer, state_dict: StateDict) -> StateDict:
        # From here on the optimizer's hooks are the user's: they may change them, and load again.
        optimizer._optimizer_load_state_dict_pre_hooks = hooks
        for hook in [*hooks.values()]:
            changed = hook(optimizer, state_dict)
            state_dict = state_dict if changed is None else changed
        checked = check(state_dict)
        return state_dict if checked is None else checked

    optimizer._optimizer_load_state_dict_pre_hooks = OrderedDict({0: run})
    try:
        yield
    finally:
        optimizer._optimizer_load_state_dict_pre_hooks = hooks


def copy_list(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target."""
    if any(isinstance(target, DTensor) for target in targets):  # for which there is no such kernel
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
    else:
        torch._foreach_copy_(targets, sources)


def check_range(
    name: str, value: object, low: float, high: float = math.inf, *, open_end: bool = False
) -> None:
    """Raise ValueError unless low <= value <= high (< high with `open_end`).

    One-element tensors pass: reading one could synchronise.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name} must be a number or a tensor of one element; got shape {tuple(value.shape)}"
            )
        return
    if not (low <= value < high if open_end else low <= value <= high):  # type: ignore[operator]
        interval = f"[{low:g}, {high:g}{')' if open_end else ']'}" if high < math.inf else f"at least {low:g}"
        raise ValueError(f"{name} must be {'in ' if high < math.inf else ''}{interval}; got {value}")


def number(value: float | Tensor) -> float | Tensor:
    """A one-element tensor as a 0-d one, which operations on lists of tensors ask for; a float as it is."""
    return value.reshape(()) if isinstance(value, Tensor) else value


def check_count(name: str, value: object, low: int) -> None:
    """Raise ValueError unless the value is an integer, `low` or more."""
    if not isinstance(value, SupportsIndex) or operator.index(value) < low:
        raise ValueError(f"{name} must be an integer, at least {low}; got {value!r}")


def check_decays(name: str, values: object, count: int) -> None:
    """Raise ValueError unless `values` are that many numbers in [0, 1)."""
    if not isinstance(values, tuple | list) or len(values) != count:
        raise ValueError(f"{name} must be {('two', 'three')[count - 2]} numbers; got {values!r}")
    for index, value in enumerate(values):
        check_range(f"{name}[{index}]", value, 0, 1, open_end=True)
