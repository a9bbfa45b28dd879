"""Put a weight parametrisation into a model, and take it out again for deployment.

A parametrisation here is a module that computes a layer's weight from the tensor that is stored and trained,
as in `torch.nn.utils.parametrize`, which does the work. Its class is called with the weight that it is to
parametrise, then with options: `trueup.nn.WeightStandardization`, `ScaledWeightStandardization` and
`WeightCompander` are such classes, and a user's own may be one.
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
    """Parametrise the weight of every layer of some types, or of one layer.

    Args:
        model: any module; it may itself be of one of the types.
        parametrization: class of the parametrisation, called ``parametrization(weight, **options)`` for each
            layer.
        types: layer classes; their subclasses count too.
        skip: names of modules to leave alone, with all that is inside them, as in ``model.named_modules()``.
        inplace: change ``model`` and keep its very parameters, so that an optimizer goes on with them. By
            default the model is left alone and a copy parametrised.
        **options: for the parametrisation.

    Returns:
        The parametrised model. The trained tensor of a layer is ``layer.parametrizations.weight.original``,
        in the state dict too; ``layer.weight`` is the effective weight, computed at each access unless
        within ``torch.nn.utils.parametrize.cached()``. (Do not run a model and a deep copy of it within the
        same ``cached()``: torch gives both the weights of whichever came first.) What a parametrisation
        learns for a frozen weight is frozen too. Torch saves such a model by its state dict alone.

    Raises:
        ValueError: no layer of these types; a name to skip that the model does not have; a layer that is
            already parametrised, lazy, or shares its weight with another; a transposed convolution, where the
            parametrisation is one of output filters; a model that is wrapped for distributed training.
        TypeError: ``types`` holds no module class, ``skip`` is a text; and what the parametrisation raises.

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
        raise TypeError(f"skip must hold names of modules; got the text {skip!r}: pass [{skip!r}]")
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
    # All parametrisations are built and tried before the first is put in: an error leaves the model alone.
    owners = _owners(model)
    built = {layer: _build(layer, name, owners, parametrization, options) for layer, name in layers.items()}
    for layer, new in built.items():
        own_class(layer)
        parametrize.register_parametrization(layer, "weight", new)
        layer.parametrizations.train(layer.training)  # type: ignore[union-attr]
    return model


def bake(model: Model, *, inplace: bool = False) -> Model:
    """Make every parametrised tensor a plain one of the same value: same function, nothing to compute.

    What a parametrisation learnt beside the tensor goes with it, and the state dict gets the names of a plain
    model. What was frozen stays so; a stored tensor that several layers share becomes each layer's own. Meant
    for deployment: training the result would train another parametrisation.

    Args:
        model: any module; parametrisations of whatever origin are baked in, those of torch too.
        inplace: change ``model``; by default it is left alone and a copy is baked.

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
                    # Torch gives this very tensor the baked value: what shares it must not see that.
                    setattr(entry, key, _copy(original))
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
            if originals and name in layer._buffers:
                # What became of several frozen parameters, or without gradients, torch takes for a buffer.
                trains = any(original.requires_grad for original in originals.values())
                weight = layer._buffers.pop(name)
                layer.register_parameter(name, nn.Parameter(weight, trains))  # type: ignore[arg-type]
    return model


def own_class(layer: nn.Module) -> None:
    """Torch keeps a parametrised tensor as a property of a class made for the layer, which a deep copy of the
    layer shares. Adding or removing one must not reach the other copies."""
    if parametrize.is_parametrized(layer):
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def _owners(model: nn.Module) -> Counter[int]:
    """How many modules have each parameter, by its id."""
    return Counter(id(p) for module in model.modules() for p in module._parameters.values())


def _copy(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def _inside(model: nn.Module, names: Iterable[str]) -> set[nn.Module]:
    """The modules of these names and all of their descendants."""
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
    what = f"{type(layer).__name__} {name!r}" if name else type(layer).__name__
    if parametrize.is_parametrized(layer, "weight"):
        raise ValueError(
            f"{what} has a parametrised weight already: bake it or take it out first "
            "(torch.nn.utils.parametrize.remove_parametrizations), or name the layer in skip"
        )
    weight = layer._parameters.get("weight")
    if weight is None:
        raise ValueError(f"{what} has no parameter called weight: leave its type out of types")
    if is_lazy(weight):
        raise ValueError(f"{what} is not yet initialised: run one batch through the model first")
    if owners[id(weight)] > 1:
        raise ValueError(
            f"{what} shares its weight with another module, which would see the stored tensor in its place: "
            "untie them, or name the layer in skip"
        )
    if isinstance(layer, _ConvTransposeNd) and getattr(parametrization, "filters_first", False):
        raise ValueError(
            f"{what} has its output filters along dimension 1, and {parametrization.__name__} standardises "
            "along dimension 0: name the layer in skip, or leave its type out of types"
        )
    new = parametrization(weight, **options)
    if not weight.requires_grad:
        new.requires_grad_(False)
    rehearsal = nn.Module()
    rehearsal.weight = _copy(weight)
    parametrize.register_parametrization(rehearsal, "weight", new)
    return new
