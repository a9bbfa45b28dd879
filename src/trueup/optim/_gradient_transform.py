"""The base of what changes gradients before each step of any optimizer.

A transform attaches itself to an optimizer by a hook; several act in the order of attachment. Its state is a
few numbers per parameter.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from trueup._numerics.upcasting import upcast_dtype
from trueup.optim._normalized_gd import NormalizedGD
from trueup.optim._validation import checked_gradient


def check_optimizer(name: str, optimizer: object) -> None:
    """Raise TypeError unless `optimizer` is one that steps by gradients computed before its step."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"{name} works with an optimizer, such as torch.optim.SGD(model.parameters(), lr=0.1); got "
            f"{optimizer!r}"
        )
    if isinstance(optimizer, torch.optim.LBFGS | NormalizedGD):
        raise TypeError(
            f"{name} needs gradients before the step, but {type(optimizer).__name__} computes its own within "
            "the step. Use an optimizer that steps by p.grad"
        )


class GradientTransform:
    """Base of transforms that change gradients in place before each step of an optimizer.

    A subclass lists its state, 0-d tensors per parameter, in `state_names` and implements `_apply`.

    Args:
        optimizer: the optimizer whose steps it precedes. If that wraps another optimizer, as accelerate's and
            `ZeroRedundancyOptimizer` do, the transform attaches to the inner one.

    Raises:
        TypeError: `optimizer` is no optimizer, has no hooks, or computes gradients within its step.
        RuntimeError: in a step, a gradient is sparse, complex, or still scaled by a `GradScaler`.

    `state_dict` and `load_state_dict` save and restore the state, which the optimizer's own state dict does
    not hold. `remove` detaches the transform. A copy (`copy.deepcopy`, pickle) acts on a copy of the
    optimizer.
    """

    state_names: ClassVar[tuple[str, ...]] = ("step",)

    def __init__(self, optimizer: Optimizer) -> None:
        check_optimizer(type(self).__name__, optimizer)
        self.optimizer = _innermost(optimizer)
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._attach()

    def _attach(self) -> None:
        if not hasattr(self.optimizer, "_optimizer_step_pre_hooks"):
            raise TypeError(
                f"{type(self).__name__} acts by a hook before each step; got a "
                f"{type(self.optimizer).__name__} without hooks. Attach it to the optimizer inside"
            )
        self._handle: RemovableHandle | None = self.optimizer.register_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Detach from the optimizer, which then steps as it did without."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    # A copy of an optimizer has no hooks, so a copy of the transform attaches itself again.
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handle": self._handle is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._handle:
            self._attach()
        else:
            self._handle = None

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                f"{type(self).__name__} needs unscaled gradients, and a fused optimizer unscales them within "
                "its step. Call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        # A closure computes the gradients: call it now, and give the step one that returns its result.
        changed = None
        positional = len(args) > 1  # after the optimizer itself
        closure = args[1] if positional else kwargs.get("closure")
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if positional:
                changed = (args[0], lambda: loss, *args[2:]), kwargs
            else:
                changed = args, {**kwargs, "closure": lambda: loss}
        self._transform()
        return changed

    @torch.no_grad()
    def _transform(self) -> None:
        # Parameters are stacked: on a device launching a kernel costs more than computing a few numbers.
        alike: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                checked_gradient(type(self).__name__, p.grad)
                if p not in self.state:
                    zero = torch.zeros((), dtype=upcast_dtype(p.dtype), device=p.device)
                    self.state[p] = {name: zero.clone() for name in self.state_names}
                alike[p.device, p.dtype].append(p)
        for params in alike.values():
            grads = [p.grad for p in params if p.grad is not None]
            columns = [[self.state[p][name] for p in params] for name in self.state_names]
            after = self._apply(params, grads, *(torch.stack(column) for column in columns))
            for column, values in zip(columns, after, strict=True):
                torch._foreach_copy_(column, list(values.unbind()))

    def _apply(self, params: list[Tensor], grads: list[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        """Change gradients of one device and dtype in place; return their next state, each (tensors,)."""
        raise NotImplementedError

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """Return the state of each parameter, by the parameter's index in the optimizer's groups."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {i: dict(self.state[p]) for i, p in enumerate(params) if p in self.state}

    def load_state_dict(self, state_dict: dict[int, dict[str, Tensor]]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: it belongs to another transform or to more parameters, or holds other than 0-d
                tensors.
        """
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        loaded = {}
        for i, own in state_dict.items():
            scalars = all(isinstance(value, Tensor) and value.dim() == 0 for value in own.values())
            if i not in range(len(params)) or set(own) != set(self.state_names) or not scalars:
                raise ValueError(
                    f"{type(self).__name__}.load_state_dict needs {', '.join(self.state_names)} for each of "
                    f"{len(params)} parameters, by its index, as 0-d tensors; got {own} for {i!r}. Load it "
                    "into the transform that saved it"
                )
            loaded[params[i]] = {
                name: value.detach().clone().to(params[i].device) for name, value in own.items()
            }
        self.state = loaded


def _innermost(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that steps, unwrapped from the wrappers of accelerate and torch.distributed."""
    while True:
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "optim", None)
        if not isinstance(inner, Optimizer):
            return optimizer
        optimizer = inner
