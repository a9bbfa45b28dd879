"""Find the parameters of a model that take part in a matrix product, or may.

What a forward pass computes cannot be seen from outside. So layers of torch are judged by their class, and a
parameter of any other class by its shape: with at least two dimensions larger than 1 it may be a matrix, like
a position embedding of shape (1, 197, 768), and unlike a class token of shape (1, 1, 768).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from trueup.nn._recurrent_cell import Cell

__all__ = ["MatrixParameter", "bypassed_layers", "matrix_parameters"]

_MULTIPLY = (nn.Linear, nn.MultiheadAttention, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, Cell)
_CONV1D = "transformers.pytorch_utils.Conv1D"  # compared by name, as transformers may be missing
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_DO_NOT = (nn.Embedding, nn.EmbeddingBag, nn.PReLU, _ConvNd, *_NORMS)
_BYPASS = (nn.MultiheadAttention, nn.LinearCrossEntropyLoss)
# weight_norm, spectral_norm and prune, as hooks, store a weight under another name.
_STORED_AS = re.compile(r"_(orig|g|v)$")


class MatrixParameter(NamedTuple):
    """A parameter of one module, or a buffer in its place, that takes part in a matrix product, or may."""

    name: str  # in the model
    parameter: Tensor
    module: nn.Module
    certain: bool  # judged by the module's class, not by the shape alone


def matrix_parameters(model: nn.Module) -> Iterator[MatrixParameter]:
    """Yield the parameters of a model that take part in a matrix product, or may, module by module.

    For a parametrised weight the module is the layer, not the parametrisation that stores it.

    >>> model = nn.Sequential(nn.Embedding(9, 8), nn.LSTM(8, 4), nn.Conv1d(4, 4, 3))
    >>> [found.name for found in matrix_parameters(model)]
    ['1.weight_ih_l0', '1.weight_hh_l0']
    """
    parametrised = {
        stored: (module, name)
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for name, stored in module.parametrizations.items()  # type: ignore[union-attr, operator]
    }
    for prefix, holder in model.named_modules():
        for local, parameter in (holder._parameters | holder._buffers).items():
            if parameter is None or not (parameter.is_floating_point() or parameter.is_complex()):
                continue
            module, role = parametrised.get(holder, (holder, _STORED_AS.sub("", local)))
            multiplies = _multiplies(module)
            if multiplies is False and role in ("weight", "bias"):
                continue
            certain = bool(multiplies) and "weight" in role
            if not certain and (local in holder._buffers or (multiplies and role == "bias")):
                continue  # a buffer may be a mask or a table: only weights of known layers count
            if is_lazy(parameter) or _may_be_matrix(parameter, certain):
                yield MatrixParameter(f"{prefix}.{local}" if prefix else local, parameter, module, certain)


def bypassed_layers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Find the layers that are never called, and the module around each that computes with its weight."""
    return {child: m for m in model.modules() if isinstance(m, _BYPASS) for child in m.children()}


def _multiplies(module: nn.Module) -> bool | None:
    """Return whether a module multiplies by its weights; None if that cannot be seen from outside."""
    classes = type(module).__mro__
    if isinstance(module, _MULTIPLY) or _CONV1D in {f"{c.__module__}.{c.__qualname__}" for c in classes}:
        return True
    if isinstance(module, _ConvNd) and set(module.kernel_size) == {1} and module.in_channels != module.groups:
        return True  # a linear layer per pixel; with one group per channel it only scales
    forward = next(c for c in classes if "forward" in vars(c)).__module__
    if isinstance(module, _DO_NOT) and forward.startswith("torch.nn.") and "forward" not in vars(module):
        return False
    return None


def _may_be_matrix(parameter: Tensor, certain: bool) -> bool:
    return parameter.dim() >= 2 if certain else sum(size > 1 for size in parameter.shape) >= 2
