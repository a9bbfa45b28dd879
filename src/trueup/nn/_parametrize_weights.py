"""Parametrise the weights of a model's layers, and turn them back into plain tensors for deployment.

A parametrisation is a module that computes a layer's weight from another tensor, which is stored and trained,
as in `torch.nn.utils.parametrize`. Its class takes the weight to parametrise, then options.
`trueup.nn.WeightStandardization`, `ScaledWeightStandardization` and `WeightCompander` are such classes; users
may write their own.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from trueup.nn._wrapped import refuse_wrapped

__all__ = ["bake", "parametrize_weights"]

Model = TypeVar("Model", bound=nn.Module)


def parametrize_weights(
    model: Model,
    parametrization: Callable[..., nn.Module],
    *,
    types: type[nn.Module] | tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    skip: Iterable[str] = (),
    inplace: bool = False,
    **options: Any,
) -> Model:
    """Parametrise the weight of every layer of some types.

    Args:
        model: any module, which may itself be of one of the types.
        parametrization: class of the parametrisation, called as `parametrization(weight, **options)` once
            per layer.
        types: layer classes. Subclasses count too.
        skip: names of modules to leave alone, with all their submodules, as in `model.named_modules()`.
        inplace: change `model` and keep its parameters, so that an existing optimizer goes on with them. By
            default `model` stays as it is and a copy is parametrised.
        **options: options of the parametrisation.

    Returns:
        The parametrised model. Its `layer.parametrizations.weight.original` is the trained tensor of a layer,
        in the state dict too. Its `layer.weight` is the effective weight, computed at each access unless
        within `torch.nn.utils.parametrize.cached()`. (Do not run a model and a deep copy of it within the
        same `cached()`: torch uses the weights of whichever came first for both.) What a parametrisation
        learns for a frozen weight is frozen too. torch can save such a model by its state dict only.

    Raises:
        ValueError: no layer is of these types; a name in `skip` is unknown; a layer is already parametrised
            or lazy, or shares its weight with another; a layer is a transposed convolution, and the
            parametrisation works on output filters; the model is wrapped for distributed training.
        TypeError: `types` holds something other than module classes, or `skip` is a string.
        Exception: whatever the parametrisation raises.

    >>> from torch.nn.utils.parametrize import cached
    >>> from trueup.nn import WeightStandardization
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> model = parametrize_weights(model, WeightStandardization, skip=["3"], eps=1e-6, unbiased=False)
    >>> [name for name in model.state_dict() if name.startswith("0")]
    ['0.bias', '0.parametrizations.weight.original']
    >>> with cached():
    ...     model[0].weight is model[0].weight
    True
    """
    types = types if isinstance(types, tuple) else (types,)
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"types must be module classes, such as nn.Conv2d; got {kind!r}")
    if isinstance(skip, str):
        raise TypeError(f"skip must be a list of names; got the string {skip!r}: pass [{skip!r}]")
    refuse_wrapped(model)
    if not inplace:
        model = copy.deepcopy(model)

    skipped = _inside(model, skip)
    layers = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, types) and module not in skipped
    }
    if not layers:
        wanted = " or ".join(kind.__name__ for kind in types)
        raise ValueError(f"nothing to parametrise: the model has no {wanted} outside of skip={list(skip)}")
    # Build and try all parametrisations before registering the first: an error leaves the model alone.
    owners = _owners(model)
    built = {layer: _build(layer, name, owners, parametrization, options) for layer, name in layers.items()}
    for layer, new in built.items():
        own_class(layer)
        parametrize.register_parametrization(layer, "weight", new)
        layer.parametrizations.train(layer.training)  # type: ignore[union-attr]
    return model


def bake(model: Model, *, inplace: bool = False) -> Model:
    """Replace every parametrised tensor by a plain one of the same value.

    The model computes the same function, without the cost of the parametrisation, and its state dict has the
    names of a plain model. Parameters of the parametrisation itself are dropped. Frozen tensors stay frozen,
    and layers that shared a stored tensor get one each. Meant for deployment: training the result is not
    training with the parametrisation.

    Args:
        model: any module. All parametrisations are baked in, including those of torch.
        inplace: change `model`. By default `model` stays as it is and a copy is baked.

    Raises:
        ValueError: nothing in the model is parametrised.

    >>> import torch
    >>> from trueup.nn import WeightStandardization
    >>> conv = parametrize_weights(nn.Conv2d(3, 8, 3), WeightStandardization)
    >>> plain = bake(conv)
    >>> type(plain).__name__, list(plain.state_dict()), torch.equal(plain.weight, conv.weight)
    ('Conv2d', ['bias', 'weight'], True)
    """
    if not inplace:
        model = copy.deepcopy(model)
    layers = [module for module in model.modules() if parametrize.is_parametrized(module)]
    if not layers:
        raise ValueError("nothing to bake: no module of the model is parametrised")
    owners = _owners(model)
    for layer in layers:
        own_class(layer)
        for name, entry in list(layer.parametrizations.items()):  # type: ignore[operator, union-attr]
            originals = dict(entry.named_parameters(recurse=False))
            for key, original in originals.items():
                if owners[id(original)] > 1:
                    # torch writes the baked value into this tensor, which other layers must not see.
                    setattr(entry, key, _copy(original))
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
            if originals and name in layer._buffers:
                # torch registers a buffer if there were several originals and the result needs no gradient.
                trains = any(original.requires_grad for original in originals.values())
                weight = layer._buffers.pop(name)
                layer.register_parameter(name, nn.Parameter(weight, trains))  # type: ignore[arg-type]
    return model


def own_class(layer: nn.Module) -> None:
    """Give a parametrised layer a class of its own.

    torch stores a parametrised tensor as a property of a class that it makes for the layer. Deep copies of
    the layer share this class, and must not see each other's changes.
    """
    if parametrize.is_parametrized(layer):
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def _owners(model: nn.Module) -> Counter[int]:
    """Return the number of modules that hold each parameter, by its id."""
    return Counter(id(p) for module in model.modules() for p in module._parameters.values())


def _copy(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def _inside(model: nn.Module, names: Iterable[str]) -> set[nn.Module]:
    """Return the modules of these names and all their submodules."""
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            some = ", ".join(repr(n) for n in list(known)[1:6])
            raise ValueError(f"skip names {name!r}, which the model does not have; it has {some}, ...")
    return {module for name in names for module in known[name].modules()}


def _build(
    layer: nn.Module,
    name: str,
    owners: Counter[int],
    parametrization: Callable[..., nn.Module],
    options: dict[str, Any],
) -> nn.Module:
    """Build the parametrisation of a layer and try it on a copy of the weight."""
    what = f"{type(layer).__name__} {name!r}" if name else type(layer).__name__
    if parametrize.is_parametrized(layer, "weight"):
        raise ValueError(
            f"{what} has a parametrised weight already: bake it or remove the parametrisation first "
            "(torch.nn.utils.parametrize.remove_parametrizations), or name the layer in skip"
        )
    weight = layer._parameters.get("weight")
    if weight is None:
        raise ValueError(f"{what} has no parameter named weight: leave its class out of types")
    if is_lazy(weight):
        raise ValueError(f"{what} is not yet initialised: run one batch through the model first")
    if owners[id(weight)] > 1:
        raise ValueError(
            f"{what} shares its weight with another module, which would use the stored tensor in its place: "
            "untie them, or name the layer in skip"
        )
    if isinstance(layer, _ConvTransposeNd) and getattr(parametrization, "filters_first", False):
        raise ValueError(
            f"{what} has its output filters along dimension 1, but {parametrization.__name__} works along "
            "dimension 0: name the layer in skip, or leave its class out of types"
        )
    new = parametrization(weight, **options)
    if not weight.requires_grad:
        new.requires_grad_(False)
    rehearsal = nn.Module()
    rehearsal.weight = _copy(weight)
    parametrize.register_parametrization(rehearsal, "weight", new)
    return new
