"""Put a layer into a model that exists: every module of one kind is replaced by its counterpart.

Weights, running statistics, hooks, device, dtype, training mode and `requires_grad` stay; so do the names in
the state dict. `convert` is the one converter of the library: a layer that takes the place of another needs
nothing but a constructor with the same argument names, or a class method ``from_module(module, **options)``
where its settings cannot be read off by name.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from trueup.nn.ghost_batch_norm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, Remainder

__all__ = ["convert", "convert_ghost_batchnorm"]

Model = TypeVar("Model", bound=nn.Module)

_Kind = type[nn.Module] | tuple[type[nn.Module], ...]

# Where torch keeps a module's hooks. The dictionaries themselves move: handles can still remove their hook.
_HOOKS = tuple(
    name
    for name in vars(nn.Module())
    if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
)


def convert(
    model: nn.Module, source: _Kind, target: type[nn.Module], *, inplace: bool = False, **options: Any
) -> nn.Module:
    """Replace every module of kind ``source`` by a ``target`` with the same weights and settings.

    Args:
        model: any module; it may itself be of kind ``source``.
        source: a module class or several; modules of their subclasses are replaced too.
        target: the class to put in. Settings that its constructor and the replaced module share by name are
            taken over, unless the class has ``from_module(module, **options)``, which is then called.
        inplace: change ``model`` and keep its very parameters, so that an optimizer goes on with them. By
            default the model is left alone and a copy converted.
        **options: arguments for ``target``; they win over the replaced module's settings.

    Returns:
        The converted model: use this value, since a model that is itself of kind ``source`` is replaced
        whole. A module used in several places is replaced by one module used in the same places.

    Raises:
        ValueError: nothing to convert; or a module that cannot be replaced without loss: weights that the
            target does not have or of another shape, a lazy module not yet initialised, a parametrised one,
            or one with children.
        TypeError: ``source`` or ``target`` is no module class, or the target does not take an option.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> converted = convert(model, nn.BatchNorm2d, GhostBatchNorm2d, ghost_batch_size=16)
    >>> converted[1]
    GhostBatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, ..., ghost_batch_size=16, remainder='merge')
    >>> _ = converted.load_state_dict(model.state_dict())
    """
    kinds = source if isinstance(source, tuple) else (source,)
    for kind in (*kinds, target):
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"convert needs module classes, such as nn.BatchNorm2d; got {kind!r}")
    return _replace(model, kinds, lambda module: _counterpart(module, target, options), inplace)


def convert_ghost_batchnorm(
    model: nn.Module,
    ghost_batch_size: int = 128,
    *,
    remainder: Remainder = "merge",
    inplace: bool = False,
) -> nn.Module:
    """Replace every `BatchNorm1d`, `2d` and `3d` by the `GhostBatchNorm` of its rank.

    Used like `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, except that the model is copied unless
    ``inplace``. ``SyncBatchNorm`` is left alone: ghost statistics are local by definition.

    Args:
        model: any module.
        ghost_batch_size: samples in a ghost batch; the batch size that the recipe was tuned for.
        remainder: see `trueup.nn.ghost_batch_norm`.
        inplace: see `convert`.

    Raises:
        ValueError: the model has no batch normalisation, and as `convert`.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    >>> convert_ghost_batchnorm(model, 32)[1].ghost_batch_size
    32
    """
    targets = {
        nn.BatchNorm1d: GhostBatchNorm1d,
        nn.BatchNorm2d: GhostBatchNorm2d,
        nn.BatchNorm3d: GhostBatchNorm3d,
    }
    options = {"ghost_batch_size": ghost_batch_size, "remainder": remainder}

    def counterpart(module: nn.Module) -> nn.Module:
        target = next(target for kind, target in targets.items() if isinstance(module, kind))
        return _counterpart(module, target, options)

    return _replace(model, tuple(targets), counterpart, inplace)


def _replace(
    model: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    counterpart: Callable[[nn.Module], nn.Module],
    inplace: bool,
) -> nn.Module:
    if not any(isinstance(module, kinds) for module in model.modules()):
        found = sorted({type(module).__name__ for module in model.modules()})
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"nothing to convert: the model has no {wanted}; it is made of {', '.join(found)}")
    if not inplace:
        model = copy.deepcopy(model)

    # All counterparts are built before the first is put in, so that an error leaves the model as it was.
    replaced = {module: counterpart(module) for module in model.modules() if isinstance(module, kinds)}
    for parent in list(model.modules()):
        if parent not in replaced:
            for name, child in parent._modules.items():
                if child in replaced:
                    parent._modules[name] = replaced[child]
    return replaced.get(model, model)


def _counterpart(module: nn.Module, target: type[nn.Module], options: dict[str, Any]) -> nn.Module:
    """A ``target`` with the module's settings and its very parameters, buffers and hooks."""
    name = type(module).__name__
    if parametrize.is_parametrized(module):
        raise ValueError(
            f"{name} is parametrised: call torch.nn.utils.parametrize.remove_parametrizations first, and "
            "parametrise the converted model"
        )
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    if any(is_lazy(tensor) for tensor in tensors):
        raise ValueError(
            f"{name} is not yet initialised: run one batch through the model before converting it"
        )

    from_module = getattr(target, "from_module", None)
    if from_module is not None:
        new: nn.Module = from_module(module, **options)
    elif module._modules:
        raise ValueError(
            f"{name} has children, and {target.__name__} has no from_module to say where they go"
        )
    else:
        new = target(**(_shared_settings(module, target) | options))

    like = next((t for t in tensors if t.is_floating_point()), None)
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    _take_over(new._parameters, module._parameters, module, new)
    _take_over(new._buffers, module._buffers, module, new)
    for hooks in _HOOKS:
        setattr(new, hooks, getattr(module, hooks))
    new._is_full_backward_hook = module._is_full_backward_hook
    # Only its own flag: children that `from_module` moved keep theirs.
    new.training = module.training
    return new


def _shared_settings(module: nn.Module, target: type[nn.Module]) -> dict[str, Any]:
    """The arguments of the target's constructor that the module has as attributes."""
    settings = {}
    for name in inspect.signature(target).parameters:
        if name in module._parameters:
            # `bias=True` asks for a parameter of that name, in torch's layers.
            settings[name] = module._parameters[name] is not None
        elif hasattr(module, name):
            settings[name] = getattr(module, name)
    return settings


def _take_over(new: dict[str, Any], old: dict[str, Any], module: nn.Module, counterpart: nn.Module) -> None:
    """Put the old tensors in the place of the new ones of the same name."""
    for name, tensor in old.items():
        if tensor is None and new.get(name) is None:
            continue
        kinds = f"{type(module).__name__} -> {type(counterpart).__name__}"
        if tensor is None or new.get(name) is None:
            has, lacks = ("no", "a") if tensor is None else ("a", "no")
            raise ValueError(
                f"{kinds}: the first has {has} {name}, the second {lacks}: their settings must agree"
            )
        if tensor.shape != new[name].shape:
            raise ValueError(
                f"{kinds}: {name} has shape {tuple(tensor.shape)}, the new one {tuple(new[name].shape)}"
            )
        new[name] = tensor
