"""Train a model's linear layers as if they computed in four bits.

Weights and inputs of each layer are fake-quantised in every forward pass, and the gradient passes straight
through: the weight that is trained stays in full precision, with its name in the state dict. This is how
Stable-SPAM's experiments simulate 4-bit training (Huang et al. 2025, arXiv 2502.17055): embeddings, norms and
the output layer are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
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

_CONV1D = "transformers.pytorch_utils.Conv1D"  # by its name: transformers may be missing
_KEPT = "_fast_path_of_full_precision"

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
    skip: str | Iterable[str] = (),
) -> Model:
    """Turn every `nn.Linear` inside a model into a `FakeQuantLinear` with the very same parameters, in place.

    An optimizer that holds the parameters goes on with them; hooks, ties (an output layer that shares the
    embedding's weight) and the state dict stay. Layers quantised before are left as they are.

    Nothing is left in full precision that you have not named: a layer that multiplies by a matrix, but not as
    `nn.Linear` does, raises. That is a subclass, an `nn.MultiheadAttention`, and the ``Conv1D`` of Hugging
    Face's GPT-2, whose weight is transposed: put an `nn.Linear` in its place, or skip it.

    Args:
        model: any module, a Hugging Face one for example.
        scheme, group_size, keep_top: see `FakeQuantLinear`.
        skip: names of modules to leave alone with all inside them, or shell patterns (``"*.o_proj"``); pass
            the output layer's (``"lm_head"``), as the authors do.

    Returns:
        The model itself.

    Raises:
        ValueError: no linear layer, a name that the model does not have, a layer whose ``in_features`` the
            group size does not divide, one that is parametrised, has a forward pass set on the object, or is
            no plain `nn.Linear`; the model is then unchanged.

    >>> model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> _ = quantize_linear_(model, "int4", group_size=8, skip=["2"])
    >>> [type(layer).__name__ for layer in model]
    ['FakeQuantLinear', 'ReLU', 'Linear']
    """
    known = dict(model.named_modules(remove_duplicate=False))  # a shared layer has several names
    left: set[nn.Module] = set()
    for pattern in [skip] if isinstance(skip, str) else skip:
        named = [module for name, module in known.items() if fnmatchcase(name, pattern)]
        if not named:
            raise ValueError(f"skip names {pattern!r}, which the model does not have")
        left.update(inside for module in named for inside in module.modules())
    layers = {
        name: module
        for name, module in known.items()
        if module not in left and _multiplies(module) and not isinstance(module, FakeQuantLinear)
    }
    if not layers:
        raise ValueError("nothing to quantise: the model has no nn.Linear that is not skipped or quantised")
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer):
            raise ValueError(f"layer {name!r} is parametrised: take the parametrisation out, or skip it")
        if "forward" in vars(layer):
            raise ValueError(
                f"layer {name!r} has a forward pass of its own, set on the object and not by its class, "
                "which would go past the quantisation: take it off first, or skip the layer"
            )
        if type(layer) is not nn.Linear:
            raise ValueError(
                f"layer {name!r} is a {type(layer).__name__}, which is no plain nn.Linear: put one with its "
                "weights in its place, or leave it in full precision by skip, where a pattern names all of "
                "its kind"
            )
        try:
            _check(layer.in_features, scheme, group_size, keep_top)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    for layer in layers.values():
        # The same object with another forward: whoever holds the layer, its parameters or hooks, keeps them.
        layer.__class__ = FakeQuantLinear
        vars(layer).update(scheme=scheme, group_size=group_size, keep_top=keep_top)
    for module, switch, off in _fast_paths(model):
        if any(isinstance(inside, FakeQuantLinear) for inside in module.modules()):
            vars(module).setdefault(_KEPT, getattr(module, switch))
            setattr(module, switch, off)
    return model


def dequantize_(model: Model) -> Model:
    """Turn every `FakeQuantLinear` back into the `nn.Linear` it was, in place, with its trained weight.

    Returns:
        The model itself.

    Raises:
        ValueError: the model has no `FakeQuantLinear`, or one that is parametrised.

    >>> model = quantize_linear_(nn.Sequential(nn.Linear(8, 8)), group_size=8)
    >>> type(dequantize_(model)[0]).__name__
    'Linear'
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, FakeQuantLinear)}
    if not layers:
        raise ValueError("nothing to dequantise: the model has no FakeQuantLinear")
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer):
            raise ValueError(f"layer {name!r} is parametrised: take the parametrisation out first")
    for layer in layers.values():
        layer.__class__ = nn.Linear  # type: ignore[assignment]
        for setting in ("scheme", "group_size", "keep_top"):
            delattr(layer, setting)
    for module, switch, _ in _fast_paths(model):
        if _KEPT in vars(module):
            setattr(module, switch, vars(module).pop(_KEPT))
    return model


def _fast_paths(model: nn.Module) -> Iterator[tuple[nn.Module, str, object]]:
    """What in eval mode computes layers from their weights, past their forward; its switch, and off."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            yield module, "activation_relu_or_gelu", 0
        elif isinstance(module, nn.TransformerEncoder):
            yield module, "use_nested_tensor", False


def _multiplies(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a matrix of its own."""
    ancestors = {f"{ancestor.__module__}.{ancestor.__qualname__}" for ancestor in type(module).__mro__}
    return isinstance(module, nn.Linear | nn.MultiheadAttention) or _CONV1D in ancestors


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
