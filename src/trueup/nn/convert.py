"""Put a layer into a model that exists: every module of one kind is replaced by its counterpart.

Weights, running statistics, hooks, device, dtype, training mode and `requires_grad` stay; so do the names in
the state dict. `convert` is the one converter of the library: a layer that takes the place of another needs
nothing but a constructor with the same argument names, or a class method ``from_module(module, **options)``
where its settings cannot be read off by name. A layer that is norm and activation in one says so by an
argument ``apply_act`` of its constructor: the activation after each norm is then found, and goes.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from trueup.nn.ghost_batch_norm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, Remainder
from trueup.nn.layer_norm_cells import Cell
from trueup.nn.table import Table
from trueup.nn.wrapped import refuse_wrapped

__all__ = ["Conversion", "convert", "convert_ghost_batchnorm"]

_Kind = type[nn.Module] | tuple[type[nn.Module], ...]

# Where torch keeps a module's hooks. The dictionaries themselves move: handles can still remove their hook.
_HOOKS = tuple(name for name in vars(nn.Module()) if "_hook" in name)

# Settings that torch's norms name differently.
_SYNONYMS = {"num_features": "num_channels", "groups": "num_groups"}
_SYNONYMS |= {theirs: ours for ours, theirs in _SYNONYMS.items()}

# What a layer without them has no use for: they go, and the report says so.
_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Conversion(NamedTuple):
    """A row of the report: what became of a module, and what is to be known about it."""

    name: str
    before: str
    after: str
    note: str


def convert(
    model: nn.Module,
    source: _Kind | Mapping[type[nn.Module], type[nn.Module]],
    target: type[nn.Module] | None = None,
    *,
    inplace: bool = False,
    activation: _Kind = (nn.ReLU, nn.SiLU),
    pairs: Mapping[str, str | None] | None = None,
    report: Callable[[Table[Conversion]], object] | None = None,
    **options: Any,
) -> nn.Module:
    """Replace every module of kind ``source`` by a ``target`` with the same weights and settings.

    Args:
        model: any module; it may itself be of kind ``source``.
        source: a module class or several, or a mapping from classes to their targets; modules of their
            subclasses are replaced too.
        target: the class to put in. Settings that its constructor and the replaced module share by name are
            taken over, unless the class has ``from_module(module, **options)``, which is then called.
        inplace: change ``model`` and keep its very parameters, so that an optimizer goes on with them. By
            default the model is left alone and a copy converted.
        activation: for a target that is norm and activation in one (it takes ``apply_act``): the kinds of
            activation that it stands for. They are found by `torch.fx` and become `nn.Identity`; where none
            follows, the target gets ``apply_act=False``. Give ``apply_act`` yourself to leave them alone.
        pairs: names of norms and of their activations (None: it has none), where `torch.fx` cannot tell.
        report: called with a table of the changes, just before they are made: ``print``, ``tables.append``.
        **options: arguments for ``target``; they win over the replaced module's settings.

    Returns:
        The converted model: use this value, since a model that is itself of kind ``source`` is replaced
        whole. A module used in several places is replaced by one module used in the same places. Parameters
        that only the target has are new; an optimizer made before does not know them.

    Raises:
        ValueError: nothing to convert; or a module that cannot be replaced without a silent change of what
            the model means: see the tutorial on conversion for the list. The model is then as it was.
        TypeError: ``source`` or ``target`` is no module class, or the target does not take an option.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> converted = convert(model, nn.BatchNorm2d, GhostBatchNorm2d, ghost_batch_size=16, report=print)
    name  before       after             note
    1     BatchNorm2d  GhostBatchNorm2d
    >>> converted[1]
    GhostBatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, ..., ghost_batch_size=16, remainder='merge')
    >>> _ = converted.load_state_dict(model.state_dict())
    """
    targets = _targets(source, target)
    _check_model(model, targets)
    if not inplace:
        model = copy.deepcopy(model)
    kinds = tuple(targets)
    norms: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, kinds)}
    target_of = {norm: next(t for kind, t in targets.items() if isinstance(norm, kind)) for norm in norms}

    activation_of: dict[nn.Module, nn.Module | None] = {}
    fused = {norm: name for norm, name in norms.items() if _fuses(target_of[norm], options)}
    if fused:
        activation_of = _activations(model, fused, activation, pairs or {})
    elif pairs is not None:
        raise TypeError("pairs is for targets that take apply_act, and apply_act must not be given with it")

    # All counterparts are built before the first is put in, so that an error leaves the model as it was.
    replaced: dict[nn.Module, nn.Module] = {}
    rows = []
    for norm, name in norms.items():
        own, notes = {}, []
        if norm in activation_of:
            own = {"apply_act": activation_of[norm] is not None}
            notes = [] if own["apply_act"] else ["no activation follows: apply_act=False"]
        replaced[norm] = new = _counterpart(norm, name, target_of[norm], options | own, model.training)
        rows.append(_row(name, norm, new, notes))
    names = {module: name for name, module in model.named_modules()}
    for norm, act in activation_of.items():
        if act is not None and act not in replaced:
            replaced[act] = _with_hooks(nn.Identity().train(act.training), act)
            rows.append(_row(names[act], act, replaced[act], [f"is in {norms[norm]}"]))

    for module in replaced:
        if "forward" in vars(module):
            raise ValueError(
                f"{names[module] or 'the model'}, a {type(module).__name__}, has a forward pass of its own, "
                "set on the object and not by its class, which would be lost: take it off first"
            )
    # The last thing that can fail.
    if report is not None:
        report(Table(rows))
    for parent in names:
        if parent not in replaced:
            for name, child in parent._modules.items():
                if child in replaced:
                    parent._modules[name] = replaced[child]
    _leave_fast_paths(names, {*replaced.values()})
    return replaced.get(model, model)


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
    return convert(model, _GHOSTS, inplace=inplace, ghost_batch_size=ghost_batch_size, remainder=remainder)


_GHOSTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


# ---- what is asked for ----


def _targets(
    source: _Kind | Mapping[type[nn.Module], type[nn.Module]], target: type[nn.Module] | None
) -> dict[type[nn.Module], type[nn.Module]]:
    """The target of each kind of source."""
    if isinstance(source, Mapping):
        if target is not None:
            raise TypeError(
                "convert takes a mapping from classes to targets, or a source and a target: not both"
            )
        pairs = list(source.items())
    else:
        kinds = source if isinstance(source, tuple) else (source,)
        pairs = [(kind, cast(type[nn.Module], target)) for kind in kinds]
    if not pairs:
        raise TypeError("convert needs at least one class to replace, such as nn.BatchNorm2d; got none")
    for kind in (kind for pair in pairs for kind in pair):
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"convert needs module classes, such as nn.BatchNorm2d; got {kind!r}")
    return dict(pairs)


def _check_model(model: nn.Module, targets: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    found = sorted({type(module).__name__ for module in model.modules()})
    if not any(isinstance(module, tuple(targets)) for module in model.modules()):
        wanted = " or ".join(kind.__name__ for kind in targets)
        raise ValueError(f"nothing to convert: the model has no {wanted}; it is made of {', '.join(found)}")
    refuse_wrapped(model)
    for name, module in model.named_modules():
        if not any(isinstance(child, tuple(targets)) for child in module.children()):
            continue
        where = f"{name or 'the model'}, a {type(module).__name__}"
        if isinstance(module, Cell):
            raise ValueError(
                f"the norms in {where}, belong to its equation, which takes layer norms: convert the other "
                "parts of the model, one by one"
            )
        if isinstance(module, nn.MultiheadAttention):
            raise ValueError(
                f"{where}, reads the weights of its out_proj and never calls it, so that another layer in "
                "its place would do nothing: convert the other parts of the model, one by one"
            )


# ---- the counterpart of a module ----


def _counterpart(
    module: nn.Module, path: str, target: type[nn.Module], options: dict[str, Any], model_trains: bool
) -> nn.Module:
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
    if like is not None and any(
        (t.device, t.dtype) != (like.device, like.dtype)
        for t in (*new.parameters(), *new.buffers())
        if t.is_floating_point()
    ):
        new.to(device=like.device, dtype=like.dtype)
    _check_statistics(module, path, new, model_trains)
    if module._parameters and not any(p.requires_grad for p in module.parameters()):
        new.requires_grad_(False)
    _take_over(new._parameters, module._parameters, module, new)
    _take_over(new._buffers, _kept_buffers(module, new), module, new)
    moved = {*module.modules()}  # by `from_module`: they keep their own flag
    for part in new.modules():
        if part not in moved:
            part.training = module.training
    return _with_hooks(new, module)


@functools.cache
def _arguments(target: type[nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(target).parameters)


def _shared_settings(module: nn.Module, target: type[nn.Module]) -> dict[str, Any]:
    """The arguments of the target's constructor that the module has as attributes."""
    settings = {}
    for name in _arguments(target):  # type: ignore[arg-type]  # a class is hashable
        if name in module._parameters:
            # `bias=True` asks for a parameter of that name, in torch's layers.
            settings[name] = module._parameters[name] is not None
        elif hasattr(module, name):
            settings[name] = getattr(module, name)
        elif hasattr(module, _SYNONYMS.get(name, name)):
            settings[name] = getattr(module, _SYNONYMS[name])
    return settings


def _check_statistics(module: nn.Module, path: str, new: nn.Module, model_trains: bool) -> None:
    """Refuse a counterpart that would quietly stop sharing or stop fixing its statistics."""
    kinds = f"{path or 'the model'}, {type(module).__name__} -> {type(new).__name__}"
    dropped = _dropped_statistics(module, new)
    if dropped and model_trains and not module.training:
        raise ValueError(
            f"{kinds}: the first is in eval mode while the model trains, so it is frozen at its running "
            f"statistics; the second has no {dropped[0]} to be frozen at: call .train() on it, or keep it"
        )
    parts = [
        n for n, part in new.named_modules() if part not in (new, module) and "running_mean" in part._buffers
    ]
    if dropped and parts:
        raise ValueError(
            f"{kinds}: the second keeps its statistics in a part of its own, {parts[0]!r}, and convert would "
            "lose the first's: put the second in yourself, and load the first's state dict into its "
            f"{parts[0]!r}"
        )
    local = bool(new._buffers) and getattr(new, "process_group", None) is None
    if isinstance(module, nn.SyncBatchNorm) and not isinstance(new, nn.SyncBatchNorm) and local:
        raise ValueError(
            f"{kinds}: the first shares its statistics between processes, the second would keep its own: "
            "pass process_group=torch.distributed.group.WORLD if it takes one, or convert the model before "
            "convert_sync_batchnorm"
        )


def _dropped_statistics(module: nn.Module, new: nn.Module) -> list[str]:
    return [n for n in _RUNNING_STATISTICS if module._buffers.get(n) is not None and n not in new._buffers]


def _kept_buffers(module: nn.Module, new: nn.Module) -> dict[str, Any]:
    dropped = _dropped_statistics(module, new)
    return {name: buffer for name, buffer in module._buffers.items() if name not in dropped}


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


def _with_hooks(new: nn.Module, module: nn.Module) -> nn.Module:
    vars(new).update({name: vars(module)[name] for name in _HOOKS})
    hook: Any
    for hook in new._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(new)  # it was the module that the hook was registered at
    return new


def _leave_fast_paths(modules: Iterable[nn.Module], new: set[nn.Module]) -> None:
    """In eval mode torch's encoder computes its layers itself, from their weights, unless told so."""

    def holds_new(layer: nn.Module) -> bool:
        if not isinstance(layer, nn.TransformerEncoderLayer):
            return False
        dropouts = layer.dropout, layer.dropout1, layer.dropout2  # which it skips
        idle = {module for module in dropouts if isinstance(module, nn.Identity)}
        return not (new - idle).isdisjoint(layer.modules())

    for module in modules:
        if holds_new(module):
            vars(module)["activation_relu_or_gelu"] = 0
        elif isinstance(module, nn.TransformerEncoder) and any(map(holds_new, module.layers)):
            module.use_nested_tensor = False


def _row(name: str, module: nn.Module, new: nn.Module, notes: list[str]) -> Conversion:
    dropped = _dropped_statistics(module, new)
    state = [
        [name for name, t in (*m._parameters.items(), *m._buffers.items()) if t is not None]
        for m in (module, new)
    ]
    added = [name for name in state[1] if name not in state[0]]
    notes = notes + [
        f"{verb} {', '.join(names)}" for verb, names in (("adds", added), ("drops", dropped)) if names
    ]
    return Conversion(name or "(model)", type(module).__name__, type(new).__name__, "; ".join(notes))


# ---- which activation follows a norm ----


def _fuses(target: type[nn.Module], options: dict[str, Any]) -> bool:
    """Is the target norm and activation in one, and is it ours to find the activation?"""
    return "apply_act" not in options and "apply_act" in _arguments(target)  # type: ignore[arg-type]


def _activations(
    model: nn.Module, norms: dict[nn.Module, str], kinds: _Kind, pairs: Mapping[str, str | None]
) -> dict[nn.Module, nn.Module | None]:
    """The activation module after each norm, or None where there is none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[nn.Module, nn.Module | None] = {}
    for name, partner in pairs.items():
        for known in (name, partner):
            if known is not None and known not in modules:
                raise ValueError(f"pairs names {known!r}, which the model does not have")
        if modules[name] not in norms:
            raise ValueError(f"pairs names {name!r}, a {type(modules[name]).__name__} that is not converted")
        found[modules[name]] = None if partner is None else modules[partner]
    unnamed = {norm: name for norm, name in norms.items() if norm not in found}
    if unnamed:
        named = {act for act in found.values() if act is not None}
        found |= _Flow(model, unnamed, kinds, modules).activations(named)
    for act in found.values():
        if act is not None and _has_parameters(act):
            raise ValueError(f"the activation {type(act).__name__} has parameters, which would be lost")
    return found


class _Flow(fx.Tracer):
    """The graph of a model's forward pass, in which only modules that hold a norm are looked into."""

    def __init__(
        self, model: nn.Module, norms: dict[nn.Module, str], kinds: _Kind, modules: dict[str, nn.Module]
    ) -> None:
        super().__init__()
        self.model, self.norms, self.kinds, self.modules = model, norms, kinds, modules
        self.open = {
            module
            for module in model.modules()
            if module not in norms
            and (type(module) in _CONTAINERS or any(child in norms for child in module.modules()))
        }

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if m in self.open:
            # Not m(...): the model's hooks are for tensors.
            return m.forward(*args, **kwargs)
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def activations(self, named: Collection[nn.Module]) -> dict[nn.Module, nn.Module | None]:
        """The activation of each norm, each used after these norms only, or ``named`` as somebody else's."""
        calls = self._calls()
        found: dict[nn.Module, nn.Module | None] = {}
        absorbed: dict[nn.Module, int] = {}
        for norm, name in self.norms.items():
            if norm not in calls:
                raise ValueError(_ask(name, "torch.fx does not come by it"))
            after = [self._after(node, name) for node in calls[norm]]
            if len(set(after)) > 1:
                raise ValueError(_ask(name, "it is used in several places, with different activations"))
            found[norm] = after[0]
            if after[0] is not None:
                absorbed[after[0]] = absorbed.get(after[0], 0) + len(after)
        for act, count in absorbed.items():
            places = [name for name, module in self.modules.items() if module is act]
            hidden = [name for name in places if self.modules[name.rpartition(".")[0]] not in self.open]
            if act not in named and (len(calls[act]) != count or hidden):
                raise ValueError(
                    f"the activation {' or '.join(places)} is also used where no converted norm comes before "
                    "it, so it cannot go: give each place an activation of its own"
                )
        return found

    def _calls(self) -> dict[nn.Module, list[fx.Node]]:
        """The nodes that call each module."""
        if self.model in self.norms:
            raise ValueError(_ask("", "the model is the norm itself"))
        try:
            graph = self.trace(self.model)
        except Exception as error:  # whatever the model's own code raises when it is shown no tensor
            reason = f"torch.fx cannot trace the model ({type(error).__name__}: {error})"
            raise ValueError(_ask(next(iter(self.norms.values())), reason)) from error
        calls: dict[nn.Module, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                calls.setdefault(self.modules[str(node.target)], []).append(node)
        return calls

    def _after(self, node: fx.Node, name: str) -> nn.Module | None:
        """The activation that a call's result goes to, if it goes nowhere else."""
        between = []
        while not (acts := [user for user in node.users if self._may_activate(user)]):
            if len(node.users) != 1:
                return None
            (node,) = node.users
            module = self._module(node)
            if len(node.all_input_nodes) > 1 or (module is not None and _has_parameters(module)):
                return None
            if not isinstance(module, nn.Identity):
                between.append(str(node))
        act, module = acts[0], self._module(acts[0])
        if len(node.users) > 1:
            raise ValueError(_ask(name, f"its result goes to {act} and elsewhere"))
        if between:
            raise ValueError(_ask(name, f"{act} follows, but only after {', '.join(between)}"))
        if module is None:
            raise ValueError(
                f"{name} is followed by the function {act}, which convert cannot take out of your code: "
                "write it as a module, self.act = nn.ReLU()"
            )
        if not isinstance(module, self.kinds):
            kind = type(module).__name__
            raise ValueError(
                _ask(name, f"{act.target} follows, a {kind}: pass activation={kind} if it goes with the norm")
            )
        return module

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _may_activate(self, node: fx.Node) -> bool:
        """Is it one of torch's activations, or code of the user's that was not looked into?"""
        module = self._module(node)
        if module is None:
            function = getattr(node.target, "__name__", str(node.target))
            return node.op in ("call_function", "call_method") and function.rstrip("_") in _FUNCTIONS
        if module in self.norms:
            return False
        known = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn."))
        return isinstance(module, self.kinds) or known is nn.Module or known.__name__ in _ACTIVATIONS


# What runs its children in order, or nothing at all.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# Torch's activations; as a function nn.LeakyReLU is leaky_relu.
_ACTIVATIONS = set(nn.modules.activation.__all__) - {
    "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin"
}  # fmt: skip
_FUNCTIONS = {
    name for name in dir(F) if name.replace("_", "") in {kind.lower() for kind in _ACTIVATIONS}
}  # fmt: skip


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _ask(name: str, reason: str) -> str:
    return (
        f"which activation belongs to {name or 'the model'}? {reason}. Say it: pairs={{{name!r}: NAME}}, or "
        f"pairs={{{name!r}: None}} for none"
    )
