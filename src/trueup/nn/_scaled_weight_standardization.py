"""Scaled weight standardisation: keep the variance of the signal in nets without normalisation.

Problem: shared batch statistics fit none of several clients that train on different domains, and at batch
size 1 there are none. Idea: leave normalisation out and standardise the weights instead, so that each layer
keeps the variance of its input. For each output filter w of n = fan-in values, with the biased variance,

    scaled(w) = gain * gamma * (w - mean(w)) / sqrt(max(n var(w), eps))

where gamma is a constant of the activation before the layer (`activation_gain`: the inverse standard
deviation of that activation of a standard normal variable), and gain is learnt.

Zhuang, Lyu: FedWon: Triumphing Multi-domain Federated Learning Without Normalization, ICLR 2024, arXiv
2306.05879, equation 1, which is that of Brock, De, Smith, Simonyan (arXiv 2102.06171). No code of FedWon was
published: floor, gain and constants are those of Brock et al.; FedWon's equation seems to have no gain.
"""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trueup._numerics.upcasting import upcast

__all__ = ["ScaledWeightStandardization", "activation_gain", "scaled_standardize_weight"]


def scaled_standardize_weight(
    weight: Float[Tensor, "out ins *kernel"],
    gain: Float[Tensor, " out"] | None = None,
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> Float[Tensor, "out ins *kernel"]:
    """Give each output filter mean 0 and norm `gain * gamma`, that is variance `(gain * gamma)^2 / fan-in`.

    Args:
        weight: floating point, `(O, I/groups, *kernel)` or `(O, I)`: filters along dimension 0.
        gain: `(O,)`; None means 1.
        gamma: > 0, the `activation_gain` of the activation that the layer's input went through.
        eps: floor of `fan-in * var`, >= 0. A filter below it is divided by sqrt(eps), a constant: a
            constant filter gives zeros.

    Statistics are taken in float32 or better; the result has the weight's dtype.

    Raises:
        TypeError: the weight is not floating point.
        ValueError: fewer than two dimensions, a fan-in of 1 (every filter would be 0), a gain of another
            shape, gamma not positive, eps negative.

    Source: equation 1 of the paper.

    >>> w = scaled_standardize_weight(torch.tensor([[1.0, 2.0, 3.0, 6.0]]), gamma=activation_gain("relu"))
    >>> w.mean().item(), w.norm().item()
    (0.0, 1.7139...)
    """
    _check(weight, gamma, eps)
    if gain is not None and gain.shape != weight.shape[:1]:
        raise ValueError(
            f"gain must hold one value per filter, of shape {tuple(weight.shape[:1])}; "
            f"got {tuple(gain.shape)}"
        )
    filters = upcast(weight).flatten(1)
    centered = filters - filters.mean(1, keepdim=True)
    # Centre twice: a constant filter leaves the mean's rounding error, which a small floor would amplify.
    centered = centered - centered.mean(1, keepdim=True)
    factor = gamma * centered.square().sum(1, keepdim=True).clamp_min(eps).rsqrt()
    if gain is not None:
        factor = factor * gain.unsqueeze(1)
    return (centered * factor).view_as(weight).to(weight.dtype)


# 1 / std(activation(z)) for z ~ N(0, 1), as published. They are estimates: the exact value for relu is
# sqrt(2 / (1 - 1/pi)) = 1.71286.
_GAINS = MappingProxyType(
    {
        "celu": 1.270926833152771,
        "elu": 1.2716004848480225,
        "gelu": 1.7015043497085571,
        "identity": 1.0,
        "leaky_relu": 1.70590341091156,
        "relu": 1.7139588594436646,
        "relu6": 1.7131484746932983,
        "selu": 1.0008515119552612,
        "sigmoid": 4.803835391998291,
        "silu": 1.7881293296813965,
        "softplus": 1.9203323125839233,
        "tanh": 1.5939117670059204,
    }
)


def activation_gain(activation: str) -> float:
    """Return the factor that gives the activation of a standard normal variable variance 1.

    Args:
        activation: the function's name in `torch.nn.functional`, with its default settings, or `"identity"`.

    Raises:
        ValueError: no constant is known for the activation.

    Source: the table in the code of Brock et al., estimated from a sample and so right to about 1e-3.

    >>> round(activation_gain("relu"), 4)
    1.714
    """
    try:
        return _GAINS[activation]
    except KeyError:
        raise ValueError(
            f"no gain is known for the activation {activation!r}, only for {', '.join(_GAINS)}: pass gamma="
            "1 / activation(torch.randn(10**6)).std()"
        ) from None


class ScaledWeightStandardization(nn.Module):
    """Parametrisation of a weight by `scaled_standardize_weight`, for `trueup.nn.parametrize_weights`.

    The stored weight is the plain one, of any scale. The layer's bias, if it has one, is unchanged.

    Args:
        weight: the weight to parametrise; only its shape, dtype and device are used.
        gamma: `activation_gain` of the activation that the layer's input went through; 1.0 if it went through
            none. There is no default, as with a wrong gamma the signal shrinks or grows in every layer.
        eps: floor of `fan-in * var`.
        gain: learn one gain per filter, which starts at 1.

    Shape:
        (O, ...) -> the same, filters along dimension 0.

    Raises:
        TypeError, ValueError: as `scaled_standardize_weight`.

    Training and evaluation compute the same, and nothing depends on the batch: batches of one sample, clients
    with different data and several processes need no special treatment. See `trueup.nn.adaptive_clip_grad_`
    for the clipping used to train nets without normalisation, and `trueup.nn.bake` for deployment.

    Source: Zhuang, Lyu 2024 (arXiv 2306.05879), equation 1.

    >>> from trueup.nn import parametrize_weights
    >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU())
    >>> model = parametrize_weights(model, ScaledWeightStandardization, gamma=activation_gain("relu"))
    >>> [name for name, _ in model[2].named_parameters()]
    ['bias', 'parametrizations.weight.original', 'parametrizations.weight.0.gain']
    """

    # The statistics are per output filter, so `parametrize_weights` refuses transposed convolutions.
    filters_first = True

    gain: nn.Parameter | None

    def __init__(self, weight: Tensor, *, gamma: float, eps: float = 1e-4, gain: bool = True) -> None:
        _check(weight, gamma, eps)
        super().__init__()
        self.gamma = gamma
        self.eps = eps
        ones = torch.ones(len(weight), dtype=weight.dtype, device=weight.device) if gain else None
        self.register_parameter("gain", None if ones is None else nn.Parameter(ones))

    def forward(self, weight: Float[Tensor, "out ins *kernel"]) -> Float[Tensor, "out ins *kernel"]:
        """Standardise the stored weight."""
        return scaled_standardize_weight(weight, self.gain, gamma=self.gamma, eps=self.eps)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Store the weight itself; its mean and scale have no effect."""
        return weight

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:.4g}, eps={self.eps}, gain={self.gain is not None}"


def _check(weight: Tensor, gamma: float, eps: float) -> None:
    if not weight.is_floating_point():
        raise TypeError(
            f"weight standardisation needs a floating point weight; got {weight.dtype}: convert with .float()"
        )
    if weight.dim() < 2:
        raise ValueError(
            f"weight standardisation needs a weight (out, in, ...); got shape {tuple(weight.shape)}: "
            "skip this layer"
        )
    if math.prod(weight.shape[1:]) < 2:
        raise ValueError(
            f"weight standardisation needs a fan-in of at least 2; got shape {tuple(weight.shape)}, whose "
            "filters would all become 0: skip this layer"
        )
    if not gamma > 0:
        raise ValueError(f"gamma must be positive; got {gamma}")
    if not eps >= 0:
        raise ValueError(f"eps must not be negative; got {eps}")
