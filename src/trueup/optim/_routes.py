"""The base of optimizers that have two routes, single-tensor and foreach.

The single-tensor route steps CPU tensors one by one, in chunks that stay in cache (`flat_chunks.py`), and may
read values. The foreach route steps lists of tensors with `torch._foreach_*` operations and never reads a
value, so that it runs without synchronisation on accelerators and inside `torch.compile(opt.step)`. Both give
the same numbers, up to the rounding of what half types store: they compute in float32 or better.

A method's file states its update once more, as one plain function of a weight, its gradient and its state. It
is the specification that both routes are tested against, and the naive peer in the benchmark. A subclass
implements the two routes; this class collects tensors, chooses the route, checks input and loads state.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, StateDict

from trueup._numerics.flat_chunks import Scratch, in_memory_order, uses_single_tensor_route
from trueup._numerics.upcasting import upcast_dtype
from trueup.optim._validation import check_last_group_is_real, checked_gradient

Group = dict[str, Any]
State = dict[str, Tensor]
Tensors = list[Tensor]
Weight = Float[Tensor, "*shape"]

#: Elements of half types that the foreach route upcasts at once: 64 MiB for each of weight and state.
_UPCAST_AT_ONCE = 1 << 24


class Flat(NamedTuple):
    """A CPU parameter with its gradient and state, flat in one memory order; never empty.

    `rows` is the parameter's size along dimension 0, or 0 if it has fewer than two dimensions.
    """

    rows: int
    param: Tensor
    grad: Tensor
    state: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Uncast:
    """A tensor of a state dict, wrapped so that torch does not round it to the parameter's dtype."""

    value: Tensor


class RoutedOptimizer(Optimizer):
    """Base of optimizers that step each parameter on its own, by one of two routes.

    A subclass lists its state in `state_names`. Names in `scalars` are 0-d tensors, in float32 or better; all
    others have the parameter's shape, and the parameter's dtype or, with `upcasts_state`, float32 or better.
    `optional` gives values to constructor arguments that a loaded state dict may lack.
    """

    state_names: ClassVar[tuple[str, ...]]
    scalars: ClassVar[frozenset[str]] = frozenset({"step"})
    upcasts_state: ClassVar[bool] = False
    optional: ClassVar[Group] = {"foreach": None, "maximize": False}

    def _names(self, group: Group) -> tuple[str, ...]:
        """Return the names of the state that a group's hyperparameters need."""
        return self.state_names

    def _dtype(self, name: str, param: Tensor) -> torch.dtype:
        """Return the dtype of the state `name` of a parameter."""
        return upcast_dtype(param.dtype) if self.upcasts_state or name in self.scalars else param.dtype

    @abstractmethod
    def _check(self, group: Group) -> None:
        """Raise ValueError for hyperparameters out of range."""

    @abstractmethod
    def _step_single_tensor(self, group: Group, scratch: Scratch, flats: list[Flat]) -> None:
        """Step CPU tensors of one dtype; values may be read."""

    @abstractmethod
    def _step_foreach(self, group: Group, params: Tensors, grads: Tensors, *state: Tensors) -> None:
        """Step lists of tensors of one device, none of them empty, without reading any value.

        All are float32, or all float64; parameters of half types come as float32 copies.
        """

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with hyperparameters of their own, as in `torch.optim.Optimizer`.

        Raises:
            ValueError: a hyperparameter is out of range.
            RuntimeError: a parameter is complex.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        check_last_group_is_real(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients; called once, with gradients enabled.

        Returns:
            The closure's result, or None without a closure.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: Tensors = []
            grads: Tensors = []
            state: list[Tensors] = [[] for _ in self._names(group)]
            self._init_group(group, params, grads, *state)
            tensors = list(zip(params, grads, *state))
            if not torch.compiler.is_compiling():
                tensors = self._run_single_tensor(group, tensors)
            self._run_foreach(group, tensors)
        return loss

    def _run_single_tensor(self, group: Group, members: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        """Step the members that take this route; return the rest. A member is parameter, gradient, state."""
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
            flat_state = iter(flat[2:])
            own = tuple(next(flat_state) if big else t for t, big in zip(tensors[2:], shaped, strict=True))
            rows = param.size(0) if param.dim() > 1 else 0
            flats[param.dtype].append(Flat(rows, flat[0], flat[1], own))
        scratch = Scratch()
        with np.errstate(all="ignore"):  # NaN and infinity propagate silently, as in torch
            for of_dtype in flats.values():
                self._step_single_tensor(group, scratch, of_dtype)
        return rest

    def _run_foreach(self, group: Group, members: list[tuple[Tensor, ...]]) -> None:
        # Kernels that take lists are fast only if all tensors are of one device and dtype.
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
                # All but the gradients, which are the second column.
                for column, values in zip((stored[0], *stored[2:]), (computed[0], *computed[2:])):
                    if column[0].dtype != values[0].dtype:
                        copy_list(column, values)

    # torch.compile knows this method by name: it runs it outside the graph and maps the lists it fills.
    def _init_group(self, group: Group, params: Tensors, grads: Tensors, *state: Tensors) -> None:
        for param in group["params"]:
            if param.grad is None:
                continue
            checked_gradient(type(self).__name__, param.grad)
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
            ValueError: the state dict belongs to another optimizer, or to parameters of other shapes.
        """
        with checked_after_hooks(self, self._checked):
            super().load_state_dict(state_dict)

    def _checked(self, state_dict: StateDict) -> StateDict:
        """Check a state dict and return it with its tensors wrapped against rounding."""
        name = type(self).__name__
        # `defaults` alone is not enough: torch and users' subclasses add keys of their own to it.
        lineage: list[Any] = [kind for kind in type(self).__mro__ if kind.__module__.startswith("trueup.")]
        arguments = {key for kind in lineage for key in inspect.signature(kind).parameters}
        needed = (arguments & self.defaults.keys()) - self.optional.keys()
        for group in state_dict["param_groups"]:
            if missing := sorted(needed - group.keys()):
                raise ValueError(
                    f"{name}.load_state_dict needs a state dict of {name}; got one whose param_groups lack "
                    f"{', '.join(missing)}. Load it into the optimizer that saved it"
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
                    f"{', '.join(own)}. Load it into the optimizer that saved it"
                )
            for key in self.state_names:
                if key not in self.scalars and own[key].shape != param.shape:
                    raise ValueError(
                        f"{name}.load_state_dict needs {key} of the parameter's shape {tuple(param.shape)}; "
                        f"got {tuple(own[key].shape)}. Pass the parameters of the saved run in the same order"
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
                    elif name in self.scalars:  # a Python int in the official code
                        own[name] = torch.as_tensor(
                            value, dtype=self._dtype(name, param), device=param.device
                        )


def _bounded(members: list[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Split a list into runs whose parameters have at most `_UPCAST_AT_ONCE` elements in total."""
    some: list[tuple[Tensor, ...]] = []
    total = 0
    for tensors in members:
        if some and total + tensors[0].numel() > _UPCAST_AT_ONCE:
            yield some
            some, total = [], 0
        some.append(tensors)
        total += tensors[0].numel()
    yield some


@contextmanager
def checked_after_hooks(
    optimizer: Optimizer, check: Callable[[StateDict], StateDict | None]
) -> Iterator[None]:
    """Make `Optimizer.load_state_dict` check the state dict after the user's pre-hooks, in this context.

    `check` raises, or returns a state dict to load instead, or returns None.
    """
    hooks = optimizer._optimizer_load_state_dict_pre_hooks

    def run(_: Optimizer, state_dict: StateDict) -> StateDict:
        # From here on the optimizer has the user's hooks again: hooks may change them, or load again.
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


def copy_list(targets: Tensors, sources: Tensors) -> None:
    """Copy each source into its target."""
    if any(isinstance(target, DTensor) for target in targets):  # there is no such kernel for them
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
    else:
        torch._foreach_copy_(targets, sources)


def scalar(value: float | Tensor) -> float | Tensor:
    """Return a one-element tensor as a 0-d one, which operations on lists need; return a float unchanged."""
    return value.reshape(()) if isinstance(value, Tensor) else value


def multiply_each(tensors: list[Tensor] | tuple[Tensor, ...], factors: Tensor) -> None:
    """Multiply each tensor in place by its own factor; `factors` has the shape (tensors,)."""
    torch._foreach_mul_(tensors, list(factors.unbind()))
