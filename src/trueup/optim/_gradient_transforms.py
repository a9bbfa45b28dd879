"""What StableSPAM does to Adam, in parts that work with any optimizer.

Spikes in a gradient inflate Adam's second moment for hundreds of steps, and a drifting gradient norm makes
its step size drift. Per tensor, at its t-th step, with largest entry a and norm n:

    AdaClip        M <- g3 M + (1 - g3) a,  limit = M / (1 - g3^t):   entries above the limit times limit / a
    AdaGN          N1 <- g1 N1 + (1 - g1) n,  N2 <- g2 N2 + (1 - g2) n^2:
                   g <- g / n * N1 / (1 - g1^t) / (sqrt(N2 / (1 - g2^t)) + eps)
    MomentumReset  every few steps the moments are zeroed and their bias correction starts again

Each attaches itself to an optimizer and acts before its every step, in the order of attachment; `StableSPAM`
is Adam with all three. Huang et al.: Stable-SPAM, 2025, arXiv 2502.17055, section 4. The averages are kept in
float32 or better: in bfloat16 one with weight 0.001 would not move.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from trueup._numerics.flat_chunks import BLOCK, in_memory_order, split, uses_single_tensor_route
from trueup._numerics.upcasting import upcast_dtype
from trueup.optim._normalized_gd import NormalizedGD
from trueup.optim._routes import check_count, check_decays, check_range

Scalar = TypeVar("Scalar", float, Tensor)

_STEP_SIZES = {"step_size", "eta", "mu"}  # of torch.optim.Rprop and ASGD


def clip_limit(largest: Scalar, average: Scalar, gamma: float, t: Scalar) -> tuple[Scalar, Scalar]:
    """AdaClip's new average of the largest entry, and the limit for this step; for numbers or 0-d tensors."""
    average = gamma * average + (1 - gamma) * largest
    return average, average / correction(gamma, t)


def norm_factor(
    norm: Scalar, first: Scalar, second: Scalar, gammas: tuple[Any, float], eps: float, t: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """AdaGN's new averages of the norm and of its square, and what to multiply the gradient by."""
    first = gammas[0] * first + (1 - gammas[0]) * norm
    second = gammas[1] * second + (1 - gammas[1]) * norm**2
    root = (second / correction(gammas[1], t)) ** 0.5 + eps
    # A norm of 0 is a gradient of zeros, which any finite factor leaves alone.
    return first, second, first / correction(gammas[0], t) / (root + (root == 0)) / (norm + (norm == 0))


def correction(base: Any, t: Any) -> Any:
    """1 - base^t. By expm1 for tensors: float32's 0.99999 has only two digits of 1 - 0.99999 right."""
    if isinstance(base, Tensor):
        return -torch.expm1(t * base.log())
    if isinstance(t, Tensor):
        return -torch.expm1(t * (math.log(base) if base else -math.inf))
    return 1 - base**t


def clipped(grad: Tensor, limit: float | Tensor, ratio: float | Tensor) -> Tensor:
    """The gradient with every entry above the limit in size scaled by the ratio, limit / largest."""
    # This jumps: an entry at the limit stays, the next number above it becomes limit^2 / largest. So where an
    # entry lies within rounding of the limit, right implementations differ in that weight, by up to about
    # lr (1 - limit / largest); all else agrees to rounding. Limits must therefore be as exact as numbers are:
    # with 1 - 0.999^t in plain float32, 1e-5 off, entries of one tensor in 7000 change sides at each step.
    return torch.where(grad.abs() > limit, grad * ratio, grad)


def largest_entry(grad: Tensor) -> Tensor:
    """max |g| of the whole tensor, sharded or not, 0-d; NaN or infinity if there is one."""
    local = grad.to_local() if isinstance(grad, DTensor) else grad
    # A process may hold none of a small tensor's rows.
    value = torch.stack(local.aminmax()).abs().amax() if local.numel() else local.new_zeros(())
    value = value.to(upcast_dtype(grad.dtype))
    if isinstance(grad, DTensor):
        # Infinity for NaN, which a maximum over processes may lose.
        value = torch.where(value.isnan(), math.inf, value)
        over = [Replicate() if place.is_replicate() else Partial("max") for place in grad.placements]
        value = DTensor.from_local(value, grad.device_mesh, over).full_tensor()
    return value


def norm_of(grad: Tensor) -> Tensor:
    """||g|| of the whole tensor, sharded or not, 0-d, summed in float32 or better."""
    dtype = upcast_dtype(grad.dtype)
    if grad.numel() > BLOCK and uses_single_tensor_route(grad, None) and not torch.compiler.is_compiling():
        # On a CPU torch sums float32 squares in a few long chains: a norm of 12.6 million is 5e-4 too small.
        (flat,) = in_memory_order(grad) or [grad.reshape(-1)]
        parts = [torch.linalg.vector_norm(block, dtype=dtype) for (block,) in split(flat)]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(parts))
        return norm
    norm = torch.linalg.vector_norm(grad, dtype=dtype)
    # One operation more for a shard: what follows mixes it with plain scalars.
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def largest_entries(grads: list[Tensor]) -> Tensor:
    """`largest_entry` of each, (number,)."""
    if _has_list_kernels(grads):
        return torch.stack(torch._foreach_norm(grads, math.inf)).to(upcast_dtype(grads[0].dtype))
    return torch.stack([largest_entry(grad) for grad in grads])


def norms_of(grads: list[Tensor]) -> Tensor:
    """`norm_of` each, (number,)."""
    if _has_list_kernels(grads):
        return torch.stack(torch._foreach_norm(grads, 2, upcast_dtype(grads[0].dtype)))
    return torch.stack([norm_of(grad) for grad in grads])


def _has_list_kernels(tensors: list[Tensor]) -> bool:
    """Whether torch's norms of a list are exact, fast and of whole tensors: not on a CPU, nor of shards."""
    return not any(t.is_cpu or isinstance(t, DTensor) or not t.numel() for t in tensors)


def scale(tensors: list[Tensor] | tuple[Tensor, ...], factors: Tensor) -> None:
    """Multiply each tensor by its number of ``factors``, (number,), in place."""
    torch._foreach_mul_(tensors, list(factors.unbind()))


def check_optimizer(name: str, optimizer: object) -> None:
    """Raise TypeError unless the optimizer steps by gradients that are there before its step."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"{name} works with an optimizer, such as torch.optim.SGD(model.parameters(), lr=0.1); got "
            f"{optimizer!r}"
        )
    if isinstance(optimizer, torch.optim.LBFGS | NormalizedGD):
        raise TypeError(
            f"{name} needs gradients that are there before the step; {type(optimizer).__name__} computes its "
            "own within: use an optimizer that steps by p.grad"
        )


def _innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps and has the state, out of the wrappers of accelerate and torch.distributed."""
    while True:
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "optim", None)
        if not isinstance(inner, Optimizer):
            return optimizer
        optimizer = inner


class GradientTransform:
    """Acts on the gradients of an optimizer's parameters before each of its steps, in place.

    A subclass names its numbers a parameter in ``state_names`` and implements ``_apply``.

    Args:
        optimizer: whose steps it precedes; if that wraps an optimizer, as accelerate's and
            `ZeroRedundancyOptimizer` do, it attaches to the one inside.

    Raises:
        TypeError: ``optimizer`` is no optimizer, has no hooks, or computes gradients within its step.
        RuntimeError: in a step, a gradient is sparse, complex, or still scaled by a `GradScaler`.

    `state_dict` and `load_state_dict` save and restore its averages, which the optimizer's own do not hold.
    `remove` detaches it. A copy (`copy.deepcopy`, pickle) has an optimizer of its own, a copy likewise.
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
                f"{type(self.optimizer).__name__} without hooks: attach to the optimizer that it wraps"
            )
        self._handle: RemovableHandle | None = self.optimizer.register_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Detach: the optimizer's steps are its own again."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    # A copy of an optimizer has no hooks, so a copy of the transform attaches itself to it anew.
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
                "its step: call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        # A closure makes the gradients: call it now, and let the step find what it returned.
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
        # Side by side: on a device the launch of a kernel costs more than it does to a tensor's few numbers.
        alike: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.layout != torch.strided or p.grad.is_complex():
                    raise RuntimeError(
                        f"{type(self).__name__} needs dense real gradients; got layout {p.grad.layout}, "
                        f"dtype {p.grad.dtype}: build the embedding with sparse=False, or train its "
                        "parameters with another optimizer"
                    )
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
        """Change gradients of one device and dtype; from their numbers, each (number,), to the next ones."""
        raise NotImplementedError

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """The averages, by the parameter's number in the optimizer's groups."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {i: dict(self.state[p]) for i, p in enumerate(params) if p in self.state}

    def load_state_dict(self, state_dict: dict[int, dict[str, Tensor]]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: it is that of another transform or of more parameters, or holds no 0-d tensors.
        """
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        loaded = {}
        for i, own in state_dict.items():
            numbers = all(isinstance(value, Tensor) and value.dim() == 0 for value in own.values())
            if i not in range(len(params)) or set(own) != set(self.state_names) or not numbers:
                raise ValueError(
                    f"{type(self).__name__}.load_state_dict needs {', '.join(self.state_names)} for each of "
                    f"{len(params)} parameters, by its number, as 0-d tensors; got {own} for {i!r}"
                )
            loaded[params[i]] = {
                name: value.detach().clone().to(params[i].device) for name, value in own.items()
            }
        self.state = loaded


class AdaClip(GradientTransform):
    """Scale down the entries of a gradient that are above the running average of its largest.

    They keep their ratio to the largest, which becomes the average. A gradient with NaN or infinity is left
    as it is and does not enter the average.

    Args:
        optimizer: whose steps it precedes.
        gamma: decay of the average, in [0, 1).

    Raises:
        ValueError: ``gamma`` is out of range.

    Source: Huang et al. 2025, equations of section 4.1.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> transform = AdaClip(optimizer, gamma=0.5)
    >>> for gradient in ([1.0, 0.5, 0.0], [10.0, 5.0, 1.0]):
    ...     weight.grad = torch.tensor(gradient)
    ...     optimizer.step()
    >>> weight.grad  # the limit is (0.25 x 1 + 0.5 x 10) / 0.75
    tensor([7., 5., 1.])
    """

    state_names = ("step", "max")

    def __init__(self, optimizer: Optimizer, gamma: float = 0.999) -> None:
        check_range("gamma", gamma, 0, 1, open_end=True)
        super().__init__(optimizer)
        self.gamma = gamma

    def _apply(self, params: list[Tensor], grads: list[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        step, average = state
        largest = largest_entries(grads)
        finite = largest.isfinite()
        step = step + finite
        new, limit = clip_limit(largest, average, self.gamma, step)
        ratio = limit / (largest + (largest == 0))
        # Nothing is above infinity.
        limit = torch.where(finite, limit, math.inf)
        for grad, most, factor in zip(grads, limit, ratio, strict=True):
            grad.mul_(torch.where(grad.abs().to(most.dtype) > most, factor, 1.0))
        return step, torch.where(finite, new, average)


class AdaGN(GradientTransform):
    """Give a gradient the norm (average norm) / (root of the average squared norm), about 1 if it is steady.

    A gradient with NaN or infinity is left as it is and does not enter the averages.

    Args:
        optimizer: whose steps it precedes.
        gammas: decay of the average norm and of the average squared norm, each in [0, 1).
        eps: added to the root.

    Raises:
        ValueError: a number is out of range.

    Source: Huang et al. 2025, equations of section 4.2.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> transform = AdaGN(optimizer)
    >>> weight.grad = torch.tensor([300.0, 400.0])
    >>> optimizer.step()
    >>> weight.data
    tensor([-0.6000, -0.8000])
    """

    state_names = ("step", "norm", "norm_sq")

    def __init__(
        self, optimizer: Optimizer, gammas: tuple[float, float] = (0.7, 0.9), eps: float = 1e-8
    ) -> None:
        check_decays("gammas", gammas, 2)
        check_range("eps", eps, 0)
        super().__init__(optimizer)
        self.gammas = gammas
        self.eps = eps

    def _apply(self, params: list[Tensor], grads: list[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        step, first, second = state
        norm = norms_of(grads)
        finite = norm.square().isfinite()
        step = step + finite
        new_first, new_second, factor = norm_factor(norm, first, second, self.gammas, self.eps, step)
        for grad, own in zip(grads, torch.where(finite, factor, 1.0), strict=True):
            # In float32 at least: a factor may be beyond float16.
            wide = grad.to(norm.dtype).mul_(own)
            if wide.dtype != grad.dtype:
                grad.copy_(wide)
        return step, torch.where(finite, new_first, first), torch.where(finite, new_second, second)


class MomentumReset(GradientTransform):
    """Zero an optimizer's moments every few steps, and start their bias correction again.

    Zeroed are the tensors of the parameter's shape in the optimizer's state, except running maxima
    (``max_exp_avg_sq``) and step sizes that the optimizer keeps, and its count ``step``, be it a tensor or a
    Python number, of each parameter or of a group; the gradient is not touched. A group's count starts again
    with the parameter of the group that has stepped most often.

    Args:
        optimizer: whose steps it precedes.
        interval: number of steps, at least 1; the step of that number is the first after zeroing.

    Raises:
        ValueError: ``interval`` is out of range.

    Source: Huang et al. 2025, section 4.3.

    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.Adam([weight])
    >>> transform = MomentumReset(optimizer, interval=3)
    >>> for _ in range(3):
    ...     weight.grad = torch.ones(1)
    ...     optimizer.step()
    >>> optimizer.state[weight]["step"]
    tensor(1.)
    """

    def __init__(self, optimizer: Optimizer, interval: int) -> None:
        check_count("interval", interval, 1)
        super().__init__(optimizer)
        self.interval = interval

    def _transform(self) -> None:
        super()._transform()
        for group in self.optimizer.param_groups:
            stepping = [p for p in group["params"] if p.grad is not None]
            if _is_number(group.get("step")) and stepping:
                device = stepping[0].device
                steps = [self.state[p]["step"].to(device, torch.float32) for p in stepping]
                if torch.stack(steps).amax() % self.interval == 0:
                    group["step"] *= 0

    def _apply(self, params: list[Tensor], grads: list[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        step = state[0] + 1
        for param, keep in zip(params, step % self.interval != 0, strict=True):
            own = self.optimizer.state.get(param, {})
            for name, value in own.items():
                if name == "step" and _is_number(value) and not isinstance(value, Tensor):
                    own[name] = value * int(keep)  # reads keep from its device, which other counts need not
                    continue
                if not isinstance(value, Tensor) or name.startswith("max_") or name in _STEP_SIZES:
                    continue
                kept = keep.to(value.device)
                if name == "mu_product":  # NAdam's bias correction, which starts from 1
                    value.mul_(kept).add_(~kept)
                elif name == "step" or value.shape == param.shape:
                    value.mul_(kept)
        return (step,)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)
