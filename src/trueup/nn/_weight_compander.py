"""Weight compander: weights through a bounded function that is steep at zero.

RECONSTRUCTED: no code was published, and only the abstract could be read. The function and its two parameters
follow from the abstract's description; all constants are ours.

Problem: some weights grow large and dominate while many stay near zero, and the net over-fits. Idea: train v,
and let the layer use w = psi(v), where psi compresses large values and expands small ones ("compander"):

    psi(v) = a arctan(v / b)        |w| < a pi/2,    psi'(0) = a/b > 1

Near zero a gradient step moves w (a/b)^2 times as far, away from zero; where |v| is large it hardly moves w.

Cakaj, Mehnert, Yang: Weight Compander: A Simple Weight Reparameterization for Regularization, IJCNN 2023,
arXiv 2306.16993.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trueup._numerics.upcasting import upcast

__all__ = [
    "WeightCompander",
    "inverse_weight_compand",
    "weight_compand",
    "weight_compander_param_groups",
    "weight_stats",
]

Function = Literal["arctan", "tanh", "softsign"]


class _Compander(NamedTuple):
    """An odd, increasing, bounded function with slope 1 at zero."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    bound: float


_FUNCTIONS: dict[str, _Compander] = {
    "arctan": _Compander(torch.arctan, torch.tan, math.pi / 2),
    "tanh": _Compander(torch.tanh, torch.atanh, 1.0),
    "softsign": _Compander(nn.functional.softsign, lambda w: w / (1 - w.abs()), 1.0),
}


def weight_compand(
    v: Float[Tensor, "*shape"], a: float | Tensor, b: float | Tensor, fn: Function = "arctan"
) -> Float[Tensor, "*shape"]:
    """Compute the weight that a layer uses, `a * fn(v / b)`.

    Args:
        v: the stored weight, floating point, any shape.
        a: > 0; the weight stays within `a * pi/2` for arctan, within `a` for the others.
        b: > 0; the slope at zero is `a / b`.
        fn: `"arctan"`, the paper's; or `"tanh"`, or `"softsign"`, x / (1 + |x|).

    Computed in float32 or better; the result has v's dtype.

    Raises:
        TypeError: `v` is not floating point.
        ValueError: an unknown function, or a number a or b that is not positive (values of tensors are not
            checked).

    Source: reconstructed from the abstract, which describes a bounded function that expands near zero.

    >>> weight_compand(torch.tensor([0.0, 0.1, 100.0]), a=1.5, b=1.0)
    tensor([0.0000, 0.1495, 2.3412])
    """
    _check(v, a, b, fn)
    return (a * _FUNCTIONS[fn].forward(upcast(v) / b)).to(v.dtype)


def inverse_weight_compand(
    w: Float[Tensor, "*shape"],
    a: float | Tensor,
    b: float | Tensor,
    fn: Function = "arctan",
    *,
    margin: float = 1e-3,
) -> Float[Tensor, "*shape"]:
    """Compute the v whose `weight_compand` is w, with w clipped to `1 - margin` of the bound on either side.

    Args:
        w: weights, floating point, any shape.
        a, b, fn: see `weight_compand`.
        margin: in [0, 1). The inverse grows without limit towards the bound; 0 stands for the dtype's eps.

    Raises:
        TypeError, ValueError: as `weight_compand`; a margin out of its range.

    >>> inverse_weight_compand(torch.tensor([0.0, 0.1495, 9.0]), a=1.5, b=1.0, margin=0.1)
    tensor([0.0000, 0.1000, 6.3138])
    """
    _check(w, a, b, fn)
    _check_margin(margin)
    compander, upcast_w = _FUNCTIONS[fn], upcast(w)
    # Below the bound itself: the float32 nearest to pi/2 is beyond it, where tan is negative.
    bound = (1 - max(margin, torch.finfo(upcast_w.dtype).eps)) * compander.bound
    return (b * compander.inverse((upcast_w / a).clamp(-bound, bound))).to(w.dtype)


class WeightCompander(nn.Module):
    """Parametrisation of a weight by `weight_compand`, for `trueup.nn.parametrize_weights`.

    RECONSTRUCTED from the paper's abstract: the defaults are ours. Tune the learning rate: near zero the
    steps of the weight are (a/b)^2 times those of an ordinary layer. Weight decay acts on the stored v.

    Args:
        weight: the weight to parametrise; its standard deviation is the unit of a and b.
        a: > 0. The default bounds weights at 2.36 standard deviations of the initial weights.
        b: > 0. The default makes the slope at zero 1.5.
        learnable: train a and b as parameters, one of each per layer. Their gradients are sums over all
            weights, and at the learning rate of the weights training diverges: use
            `weight_compander_param_groups`. Not for `fully_shard`, which takes no scalar parameters.
        relative: a and b are in units of the standard deviation of `weight` at construction (1 / sqrt(fan-in)
            if the weight is constant, such as zero). Otherwise they are absolute.
        fn: `"arctan"`, `"tanh"` or `"softsign"`.
        init: the value to store when the layer is parametrised, and when its `weight` is assigned.
            `"preserve"`: the inverse, so that the layer computes the same as before, except for weights
            beyond the bound; `"direct"`: the weight itself, so that effective weights are about a/b larger.
        margin: see `inverse_weight_compand`.

    Shape:
        any -> the same.

    Raises:
        TypeError, ValueError: as `weight_compand`; a margin or init out of its range.

    Keep v in float32: in half types the gradient of large weights underflows. Parametrise before training:
    an optimizer's moments belong to v. For deployment see `trueup.nn.bake`.

    Source: Cakaj, Mehnert, Yang 2023 (arXiv 2306.16993), reconstructed from its abstract.

    >>> from trueup.nn import bake, parametrize_weights
    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> companded = parametrize_weights(model, WeightCompander, types=nn.Linear)
    >>> bool(weight_stats(companded)["largest"] < 2.6)
    True
    >>> bake(companded)[0]
    Linear(in_features=64, out_features=32, bias=True)
    """

    a: Tensor
    b: Tensor

    def __init__(
        self,
        weight: Tensor,
        a: float = 1.5,
        b: float = 1.0,
        *,
        learnable: bool = False,
        relative: bool = True,
        fn: Function = "arctan",
        init: Literal["preserve", "direct"] = "preserve",
        margin: float = 1e-3,
    ) -> None:
        _check(weight, a, b, fn)
        _check_margin(margin)
        if init not in ("preserve", "direct"):
            raise ValueError(f"init must be 'preserve' or 'direct'; got {init!r}")
        super().__init__()
        self.fn: Function = fn
        self.init = init
        self.margin = margin
        unit = _std(weight) if relative else torch.ones((), dtype=weight.dtype, device=weight.device)
        for name, value in (("a", a), ("b", b)):
            if learnable:
                self.register_parameter(name, nn.Parameter(unit * value))
            else:
                self.register_buffer(name, unit * value)

    @property
    def bound(self) -> Tensor:
        """The largest magnitude that a weight can have, shape ()."""
        return self.a * _FUNCTIONS[self.fn].bound

    def forward(self, v: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Compute the weight from the stored v."""
        return weight_compand(v, self.a, self.b, self.fn)

    def right_inverse(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Compute the value to store for a weight; see `init`."""
        if self.init == "direct":
            return weight
        return inverse_weight_compand(weight, self.a, self.b, self.fn, margin=self.margin)

    def extra_repr(self) -> str:
        learnable = isinstance(self.a, nn.Parameter)
        return f"fn={self.fn!r}, init={self.init!r}, learnable={learnable}"


def weight_compander_param_groups(
    model: nn.Module, lr: float, *, weight_decay: float = 0.0, ab_lr_scale: float = 1e-3
) -> list[dict[str, Any]]:
    """Build parameter groups that give a and b of all companders a small learning rate and no weight decay.

    Args:
        model: with learnable `WeightCompander` parametrisations.
        lr, weight_decay: of all other parameters.
        ab_lr_scale: >= 0, the learning rate of a and b divided by `lr`. In our trials 1 diverged or lost
            accuracy, and 1e-3 did not.

    Raises:
        ValueError: the model has no learnable a and b; a negative scale.

    >>> from trueup.nn import parametrize_weights
    >>> model = parametrize_weights(nn.Linear(4, 2), WeightCompander, types=nn.Linear, learnable=True)
    >>> groups = weight_compander_param_groups(model, 0.1, weight_decay=5e-4)
    >>> [(len(g["params"]), g["lr"], g["weight_decay"]) for g in groups]
    [(2, 0.1, 0.0005), (2, 0.0001, 0.0)]
    """
    if not ab_lr_scale >= 0:
        raise ValueError(f"ab_lr_scale must not be negative; got {ab_lr_scale}")
    companders = [module for module in model.modules() if isinstance(module, WeightCompander)]
    scalars = [p for compander in companders for p in compander.parameters()]
    if not scalars:
        raise ValueError(
            "the model has no learnable a and b: parametrise it with WeightCompander and learnable=True, or "
            "pass model.parameters() to the optimizer"
        )
    ids = {id(p) for p in scalars}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        {"params": others, "lr": lr, "weight_decay": weight_decay},
        {"params": scalars, "lr": lr * ab_lr_scale, "weight_decay": 0.0},
    ]


@torch.no_grad()
def weight_stats(
    model: nn.Module,
    *,
    types: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
) -> dict[str, Tensor]:
    """Measure the distribution of a model's effective weights, each layer in its own standard deviations.

    Args:
        model: parametrised or not. A layer of equal weights, such as one that starts at zero, is measured in
            units of 1 / sqrt(fan-in).
        types: classes of the layers to measure.

    Returns:
        Four scalars: `near_zero`, the share of weights below 0.1 standard deviations; `largest`, the
        largest magnitude in standard deviations; `kurtosis`, the mean fourth power (3 for normal weights);
        `saturated`, the share of weights beyond 0.95 of their compander's bound, 0 without one.

    Raises:
        ValueError: the model has no such layer, or only empty ones.

    >>> layer = nn.Linear(2, 2)
    >>> _ = nn.init.constant_(layer.weight[0], 1.0), nn.init.constant_(layer.weight[1], -1.0)
    >>> {name: value.item() for name, value in weight_stats(layer).items()}
    {'near_zero': 0.0, 'largest': 1.0, 'kurtosis': 1.0, 'saturated': 0.0}
    """
    layers = [m for m in model.modules() if isinstance(m, types) and cast(Tensor, m.weight).numel()]
    if not layers:
        raise ValueError(f"the model has no {' or '.join(kind.__name__ for kind in types)} with weights")
    relative, saturated = [], []
    for layer in layers:
        weight = upcast(layer.weight.detach())  # type: ignore[operator]
        relative.append((weight / _std(weight)).flatten())
        saturated.append(torch.zeros_like(relative[-1], dtype=torch.bool))
        for compander in _companders(layer):
            saturated[-1] |= weight.flatten().abs() > 0.95 * compander.bound
    z = torch.cat(relative)
    return {
        "near_zero": (z.abs() < 0.1).to(z.dtype).mean(),
        "largest": z.abs().max(),
        "kurtosis": z.pow(4).mean(),
        "saturated": torch.cat(saturated).to(z.dtype).mean(),
    }


def _companders(layer: nn.Module) -> Iterable[WeightCompander]:
    if parametrize.is_parametrized(layer, "weight"):
        for parametrization in layer.parametrizations.weight:  # type: ignore[union-attr]
            if isinstance(parametrization, WeightCompander):
                yield parametrization


@torch.no_grad()
def _std(weight: Tensor) -> Tensor:
    """Return the standard deviation of the weights, or 1 / sqrt(fan-in) if they are constant."""
    std = upcast(weight).std(unbiased=False)
    fan_in = max(math.prod(weight.shape[1:]), 1)
    return torch.where(std > 0, std, fan_in**-0.5).to(weight.dtype)


def _check(weight: Tensor, a: float | Tensor, b: float | Tensor, fn: str) -> None:
    if not weight.is_floating_point():
        raise TypeError(
            f"the weight compander needs a floating point weight; got {weight.dtype}: convert with .float()"
        )
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, Tensor) and not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    if fn not in get_args(Function):
        raise ValueError(f"fn must be one of {get_args(Function)}; got {fn!r}")


def _check_margin(margin: float) -> None:
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be in [0, 1); got {margin}")
