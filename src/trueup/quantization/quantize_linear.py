"""Train a model's linear layers as if they computed in four bits.

Weights and inputs of each layer are fake-quantised in every forward pass, and the gradient passes straight
through: the weight that is trained stays in full precision, with its name in the state dict. This is how
Stable-SPAM's experiments simulate 4-bit training (Huang et al. 2025, arXiv 2502.17055): embeddings, norms and
the output layer are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trueup.quantization.fake_quantization import (
    fake_quantize_fp4,
    fake_quantize_int4,
    fake_quantize_int4_symmetric,
)

__all__ = ["FakeQuantLinear", "dequantize_", "quantize_linear_"]

Scheme = Literal["fp4", "int4"]
Model = TypeVar("Model", bound=nn.Module)


class FakeQuantLinear(nn.Linear):
    """A linear layer whose weight and input are fake-quantised to four bits in every forward pass.

    Args:
        in_features, out_features, bias, device, dtype: as `torch.nn.Linear`.
        scheme: ``"fp4"``, or ``"int4"``: weights asymmetric, inputs symmetric.
        group_size: consecutive elements that share a scale; must divide ``in_features``, so that no group
            spans two rows.
        keep_top: largest magnitudes of a group that are kept exactly (of INT4, of inputs only).

    Raises:
        ValueError: an unknown scheme or sizes that do not fit.

    Source: Huang et al. 2025, section 5 and its code.

    >>> import torch
    >>> layer = FakeQuantLinear(8, 2, group_size=8, keep_top=0)
    >>> layer(torch.randn(3, 8)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: object = None,
        dtype: object = None,
        *,
        scheme: Scheme = "fp4",
        group_size: int = 256,
        keep_top: int = 2,
    ) -> None:
        _check(in_features, scheme, group_size, keep_top)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.scheme = scheme
        self.group_size = group_size
        self.keep_top = keep_top

    def forward(self, input: Float[Tensor, "*batch ins"]) -> Float[Tensor, "*batch outs"]:
        """The product of the quantised input and weight."""
        options = {"group_size": self.group_size, "keep_top": self.keep_top}
        if self.scheme == "fp4":
            x, weight = fake_quantize_fp4(input, **options), fake_quantize_fp4(self.weight, **options)
        else:
            x = fake_quantize_int4_symmetric(input, **options)
            weight = fake_quantize_int4(self.weight, group_size=self.group_size)
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, scheme={self.scheme!r}, group_size={self.group_size}, "
            f"keep_top={self.keep_top}"
        )


def quantize_linear_(
    model: Model,
    scheme: Scheme = "fp4",
    *,
    group_size: int = 256,
    keep_top: int = 2,
    skip: Iterable[str] = (),
) -> Model:
    """Turn every `nn.Linear` inside a model into a `FakeQuantLinear` with the very same parameters, in place.

    An optimizer that holds the parameters goes on with them; hooks stay.

    Args:
        model: any module, a Hugging Face one for example.
        scheme, group_size, keep_top: see `FakeQuantLinear`.
        skip: names of modules to leave alone with all inside them; pass the output layer's (``"lm_head"``),
            as the authors do.

    Returns:
        The model itself.

    Raises:
        ValueError: no linear layer, a name that the model does not have, a layer whose ``in_features`` the
            group size does not divide, or one that is parametrised; the model is then unchanged.

    >>> model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> _ = quantize_linear_(model, "int4", group_size=8, skip=["2"])
    >>> [type(layer).__name__ for layer in model]
    ['FakeQuantLinear', 'ReLU', 'Linear']
    """
    known = dict(model.named_modules())
    skip = list(skip)
    if unknown := [name for name in skip if name not in known]:
        raise ValueError(f"skip names {unknown}, which the model does not have")
    left = {module for name in skip for module in known[name].modules()}
    layers = {
        name: module
        for name, module in known.items()
        if isinstance(module, nn.Linear)
        and (type(module) is nn.Linear or parametrize.is_parametrized(module))
        and module not in left
    }
    if not layers:
        raise ValueError("nothing to quantise: the model has no nn.Linear outside of skip")
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer):
            raise ValueError(f"layer {name!r} is parametrised: take the parametrisation out, or skip it")
        try:
            _check(layer.in_features, scheme, group_size, keep_top)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    for layer in layers.values():
        # The same object with another forward: whoever holds the layer, its parameters or hooks, keeps them.
        layer.__class__ = FakeQuantLinear
        vars(layer).update(scheme=scheme, group_size=group_size, keep_top=keep_top)
    return model


def dequantize_(model: Model) -> Model:
    """Turn every `FakeQuantLinear` back into the `nn.Linear` it was, in place, with its trained weight.

    Returns:
        The model itself.

    Raises:
        ValueError: the model has no `FakeQuantLinear`.

    >>> model = quantize_linear_(nn.Sequential(nn.Linear(8, 8)), group_size=8)
    >>> type(dequantize_(model)[0]).__name__
    'Linear'
    """
    layers = [module for module in model.modules() if type(module) is FakeQuantLinear]
    if not layers:
        raise ValueError("nothing to dequantise: the model has no FakeQuantLinear")
    for layer in layers:
        layer.__class__ = nn.Linear  # type: ignore[assignment]
        for name in ("scheme", "group_size", "keep_top"):
            delattr(layer, name)
    return model


def _check(in_features: int, scheme: str, group_size: int, keep_top: int) -> None:
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme must be one of {', '.join(get_args(Scheme))}; got {scheme!r}")
    if group_size < 1 or in_features % group_size:
        raise ValueError(
            f"group_size must divide in_features; got in_features={in_features}, group_size={group_size}: "
            "pass a divisor, or skip the layer"
        )
    if not 0 <= keep_top < group_size:
        raise ValueError(f"keep_top must be from 0 to group_size - 1; got {keep_top} of {group_size}")
