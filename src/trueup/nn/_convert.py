"""Replace every module of one kind in an existing model by its counterpart, such as a norm by another norm.

The model keeps its weights, running statistics, hooks, device, dtype, training mode, `requires_grad` and the
names in its state dict. `convert` is the only converter of the library. A new layer needs nothing but a
constructor with the same argument names, or a class method `from_module(module, **options)` where matching
names is not enough. A layer that is normalization and activation in one has a constructor argument
`apply_act`: `convert` then finds the activation after each norm and removes it.

Nothing that a module does beyond its kind is dropped silently. A subclass that overrides something, a child
without a place in the new layer and a method that is set on the object are errors.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from trueup.nn._find_activations import find_activations
from trueup.nn._ghost_batch_norm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, Remainder
from trueup.nn._module_references import MODULE_ATTRIBUTES, Reference, find_references, updates
from trueup.nn._overrides import overridden_attributes, own_methods
from trueup.nn._recurrent_cell import Cell
from trueup.nn._table import Table
from trueup.nn._wrapped import refuse_wrapped

__all__ = ["Conversion", "convert", "convert_ghost_batchnorm"]

_Kind = type[nn.Module] | tuple[type[nn.Module], ...]
_Targets = Mapping[type[nn.Module], type[nn.Module]]

# The new module gets the dictionaries of hooks themselves, so that a hook's handle can still remove it.
_HOOKS = tuple(name for name in MODULE_ATTRIBUTES if "_hook" in name)

# Settings that torch's norms name differently.
_SYNONYMS = {"num_features": "num_channels", "groups": "num_groups"}
_SYNONYMS |= {theirs: ours for ours, theirs in _SYNONYMS.items()}

# Dropped, with a note in the report, where the new layer has none of its own.
_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_GHOSTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


class Conversion(NamedTuple):
    """A row of the report: a replaced module, with its class before and after."""

    name: str
    before: str
    after: str
    note: str


def convert(
    model: nn.Module,
    source: _Kind | _Targets,
    target: type[nn.Module] | None = None,
    *,
    inplace: bool = False,
    activation: _Kind = (nn.ReLU, nn.SiLU),
    pairs: Mapping[str, str | None] | None = None,
    report: Callable[[Table[Conversion]], object] | None = None,
    **options: Any,
) -> nn.Module:
    """Replace every module of class `source` by a `target` with the same weights and settings.

    Args:
        model: any module, which may itself be of class `source`.
        source: a module class, a tuple of classes, or a mapping from classes to their targets. Modules of
            subclasses are replaced too, unless the subclass overrides something. If a module belongs to
            several classes of a mapping, the most specific one counts.
        target: the class of the new modules. A class method `from_module(module, **options)`, if it has one,
            builds them. Otherwise the constructor takes over the settings that the replaced module has under
            the same names.
        inplace: change `model` and keep its parameters, so that an existing optimizer goes on with them. By
            default `model` stays as it is and a copy is converted.
        activation: the classes of activation to remove after a norm, for a target that is normalization and
            activation in one (its constructor takes `apply_act`). `torch.fx` finds these activations, and
            `nn.Identity` replaces them. A norm without one gets `apply_act=False`. Pass `apply_act` to keep
            all activations.
        pairs: names of norms, each with the name of its activation, or with None if it has none. Needed where
            `torch.fx` cannot find the activation.
        report: called with a table of the changes just before they are made, such as `print` or
            `tables.append`.
        **options: arguments for `target`. They take precedence over the settings of the replaced module.

    Returns:
        The converted model. Use this value, because a model that is itself of class `source` is replaced as a
        whole. A module used in several places is replaced by one module used in the same places. Parameters
        that only the target has are new, and an existing optimizer does not hold them.

    Raises:
        ValueError: there is nothing to convert, or a replacement would silently change what the model
            computes. The tutorial on conversion lists the cases. The model is then as it was.
        TypeError: `source` or `target` is not a module class, or the target does not take an option.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> converted = convert(model, nn.BatchNorm2d, GhostBatchNorm2d, ghost_batch_size=16, report=print)
    name  before       after             note
    1     BatchNorm2d  GhostBatchNorm2d
    >>> converted[1]
    GhostBatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, ..., ghost_batch_size=16, remainder='merge')
    >>> _ = converted.load_state_dict(model.state_dict())
    """
    targets = _targets(source, target)
    references = find_references(model)
    _check_model(model, targets, references)
    if not inplace:
        model = copy.deepcopy(model)
        references = find_references(model)
    names = {module: name for name, module in model.named_modules()}
    target_of = {m: targets[kind] for m in names if (kind := _kind_of(m, targets)) is not None}

    activation_of: dict[nn.Module, nn.Module | None] = {}
    fused = {m: names[m] for m, cls in target_of.items() if "apply_act" in _arguments(cls)}  # type: ignore[arg-type]
    if fused and "apply_act" not in options:
        activation_of = find_activations(model, fused, activation, pairs or {}, references)
    elif pairs is not None:
        raise TypeError(
            "pairs is for targets that take apply_act, and cannot be combined with it: pass one of the two"
        )

    # Build all new modules before the first goes into the model, so that an error leaves it as it was.
    replaced: dict[nn.Module, nn.Module] = {}
    notes: dict[nn.Module, list[str]] = {}
    for module, cls in target_of.items():
        own, notes[module] = {}, []
        if module in activation_of:
            own["apply_act"] = activation_of[module] is not None
            notes[module] = [] if own["apply_act"] else ["no activation follows: apply_act=False"]
        replaced[module] = _replacement(module, names[module], cls, options | own, model.training)
    for norm, act in activation_of.items():
        if act is not None and act not in replaced:
            replaced[act], notes[act] = nn.Identity().train(act.training), [f"is in {names[norm]}"]
    for module, new in replaced.items():
        _carry_over(module, names[module], new)
        if also := [reference.path for reference in references if reference.module is module]:
            notes[module].append(f"also in {', '.join(also)}")
    update_calls = updates(replaced, references)
    if report is not None:
        report(Table(_row(names[old], old, new, notes[old]) for old, new in replaced.items()))
    # Nothing below can fail.
    _register(replaced, names)
    for update in update_calls:
        update()
    _disable_fast_paths(names, {*replaced.values()})
    return replaced.get(model, model)


def convert_ghost_batchnorm(
    model: nn.Module,
    ghost_batch_size: int = 128,
    *,
    remainder: Remainder = "merge",
    inplace: bool = False,
) -> nn.Module:
    """Replace every `BatchNorm1d`, `2d` and `3d` by the `GhostBatchNorm` of its rank.

    Use it like `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, except that it copies the model unless
    `inplace`. It leaves `SyncBatchNorm` alone, because ghost statistics are local by definition.

    Args:
        model: any module.
        ghost_batch_size: samples per ghost batch, usually the batch size that the recipe was tuned for.
        remainder: see `trueup.nn.ghost_batch_norm`.
        inplace: see `convert`.

    Raises:
        ValueError: the model has no batch normalization, or an error of `convert`.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    >>> convert_ghost_batchnorm(model, 32)[1].ghost_batch_size
    32
    """
    return convert(model, _GHOSTS, inplace=inplace, ghost_batch_size=ghost_batch_size, remainder=remainder)


# ---- check what is to be converted ----


def _targets(source: _Kind | _Targets, target: type[nn.Module] | None) -> _Targets:
    """Return the target of each source class."""
    if isinstance(source, Mapping):
        if target is not None:
            raise TypeError(
                "convert takes a mapping from classes to targets, or a source and a target, but not both"
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


def _kind_of(module: nn.Module, targets: _Targets) -> type[nn.Module] | None:
    """Return the most specific source class that a module belongs to."""
    return next((kind for kind in type(module).__mro__ if kind in targets), None)


def _check_model(model: nn.Module, targets: _Targets, references: Iterable[Reference]) -> None:
    """Raise if the model cannot be converted, whatever the options of the targets."""
    names = {module: name for name, module in model.named_modules()}
    for reference in references:
        if reference.module in names:
            continue
        for path, module in reference.module.named_modules(prefix=reference.path):
            if module not in names and _kind_of(module, targets) is not None:
                raise ValueError(
                    f"{_where(path, module)}, is not registered: torch does not see it, and convert would "
                    "miss it. If it is part of the model, hold it in nn.ModuleList, nn.ModuleDict or an "
                    "attribute of its own; otherwise remove it for the conversion"
                )
    if not any(_kind_of(module, targets) for module in names):
        wanted = " or ".join(kind.__name__ for kind in targets)
        found = sorted({type(module).__name__ for module in names})
        raise ValueError(f"nothing to convert: the model has no {wanted}; it is made of {', '.join(found)}")
    refuse_wrapped(model)
    _check_subclasses(names, targets)
    for module, name in names.items():
        if not any(_kind_of(child, targets) for child in module.children()):
            continue
        where = _where(name, module)
        if isinstance(module, Cell):
            raise ValueError(
                f"the norms in {where}, belong to its equation, which needs layer norms: convert the other "
                "parts of the model one by one"
            )
        if isinstance(module, nn.MultiheadAttention):
            raise ValueError(
                f"{where}, reads the weights of its out_proj without calling it, so that a new layer there "
                "would have no effect: convert the other parts of the model one by one"
            )


def _check_subclasses(names: Mapping[nn.Module, str], targets: _Targets) -> None:
    """Raise if the class of any module overrides something of its source class; one error lists them all."""
    of_class: dict[type[nn.Module], list[nn.Module]] = {}
    for module in names:
        of_class.setdefault(type(module), []).append(module)
    errors = []
    for cls, modules in of_class.items():
        kind = _kind_of(modules[0], targets)
        if kind is not None and (overridden := overridden_attributes(cls, kind)):
            more = f" (and {len(modules) - 1} more)" if len(modules) > 1 else ""
            errors.append(
                f"{_where(names[modules[0]], modules[0])}{more}, overrides {', '.join(overridden)} of "
                f"{kind.__name__}, which {targets[kind].__name__} would lose: name the class itself, "
                f"convert(model, {{{cls.__name__}: Target}}), with a Target whose from_module takes over "
                "what the class does, or replace the module by hand"
            )
    if errors:
        raise ValueError("\n".join(errors))


def _where(name: str, module: nn.Module) -> str:
    return f"{name or 'the model'}, a {type(module).__name__}"


# ---- build the new module ----


def _replacement(
    module: nn.Module, name: str, target: type[nn.Module], options: dict[str, Any], model_trains: bool
) -> nn.Module:
    """Build a `target` with the module's settings, parameters, buffers, dtype, device and mode."""
    new = _build(module, _where(name, module), target, options)
    change = f"{name or 'the model'}, {type(module).__name__} -> {type(new).__name__}"
    _check_statistics(module, new, change, model_trains)

    old_parts = {*module.modules()}  # what `from_module` takes over stays as it is
    parts = [part for part in new.modules() if part not in old_parts]
    like = next((t for t in _tensors(module) if t.is_floating_point()), None)
    for part in parts:
        part.training = module.training
        if like is not None:
            _move(part, like)
    weights = [*module.parameters()]
    if weights and not any(p.requires_grad for p in weights):
        new.requires_grad_(False)
    _take_over(new._parameters, module._parameters, change)
    dropped = _dropped_statistics(module, new)
    buffers = {key: buffer for key, buffer in module._buffers.items() if key not in dropped}
    _take_over(new._buffers, buffers, change)
    new._non_persistent_buffers_set -= buffers.keys()
    new._non_persistent_buffers_set |= buffers.keys() & module._non_persistent_buffers_set
    return new


def _move(part: nn.Module, like: Tensor) -> None:
    """Give a module's own tensors the device of another tensor, and the floating-point ones its dtype."""

    def moved(t: Tensor) -> Tensor:
        return t.to(like.device, like.dtype if t.is_floating_point() else t.dtype)

    if any(moved(t) is not t for t in _tensors(part)):
        part._apply(moved, recurse=False)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _build(module: nn.Module, where: str, target: type[nn.Module], options: dict[str, Any]) -> nn.Module:
    """Call the constructor or the `from_module` of the target."""
    if parametrize.is_parametrized(module):
        raise ValueError(
            f"{where}, is parametrised: call torch.nn.utils.parametrize.remove_parametrizations first, and "
            "parametrise the converted model"
        )
    if any(is_lazy(tensor) for tensor in _tensors(module)):
        raise ValueError(
            f"{where}, is not yet initialised: run one batch through the model before converting it"
        )
    from_module = getattr(target, "from_module", None)
    if from_module is None and any(True for _ in module.children()):
        raise ValueError(
            f"{where}, has children, and {target.__name__} has no from_module that takes them over: convert "
            f"to a subclass of {target.__name__} that has one"
        )
    try:
        new: nn.Module = (
            from_module(module, **options)
            if from_module is not None
            else target(**(_shared_settings(module, target) | options))
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error

    taken, children = {*new.modules()}, dict(new.named_children())
    lost = [n for n, child in module.named_children() if child not in taken and n not in children]
    if lost:
        raise ValueError(
            f"{where}, has children that find no place in the new {target.__name__}, {', '.join(lost)}: "
            f"name the class itself, convert(model, {{{type(module).__name__}: Target}}), with a Target "
            "whose from_module takes them over (or sets an nn.Identity of the same name if it does a "
            "child's work itself), or replace the module by hand"
        )
    return new


@functools.cache
def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _shared_settings(module: nn.Module, target: type[nn.Module]) -> dict[str, Any]:
    """Return the arguments of the target's constructor that the module has as attributes."""
    settings = {}
    for name in _arguments(target):  # type: ignore[arg-type]  # a class is hashable
        if name in module._parameters:
            # In torch's layers `bias=True` adds a parameter of that name.
            settings[name] = module._parameters[name] is not None
        elif hasattr(module, name):
            settings[name] = getattr(module, name)
        elif hasattr(module, _SYNONYMS.get(name, name)):
            settings[name] = getattr(module, _SYNONYMS[name])
    return settings


def _check_statistics(module: nn.Module, new: nn.Module, change: str, model_trains: bool) -> None:
    """Raise if the new module would silently unfreeze, restart or stop sharing its statistics."""
    dropped = _dropped_statistics(module, new)
    if dropped and model_trains and not module.training:
        raise ValueError(
            f"{change}: the old layer is in eval mode in a model that trains, so it is frozen at its running "
            f"statistics, but the new one has no {dropped[0]}: convert the other parts of the model one by "
            "one, or call .train() on the old layer if its statistics may follow the batch again"
        )
    parts = [
        n for n, part in new.named_modules() if part not in (new, module) and "running_mean" in part._buffers
    ]
    if dropped and parts:
        raise ValueError(
            f"{change}: the new layer keeps its statistics in a submodule, {parts[0]!r}, and convert would "
            "lose those of the old one: build the new layer yourself, and load the old one's state dict into "
            f"its {parts[0]!r}"
        )
    local = bool(new._buffers) and getattr(new, "process_group", None) is None
    if isinstance(module, nn.SyncBatchNorm) and not isinstance(new, nn.SyncBatchNorm) and local:
        raise ValueError(
            f"{change}: the old layer shares its statistics between processes, but the new one would not: "
            "pass process_group=torch.distributed.group.WORLD if the new layer takes it, or convert the "
            "model before you call convert_sync_batchnorm"
        )


def _dropped_statistics(module: nn.Module, new: nn.Module) -> list[str]:
    return [n for n in _RUNNING_STATISTICS if module._buffers.get(n) is not None and n not in new._buffers]


def _take_over(new: dict[str, Any], old: dict[str, Any], change: str) -> None:
    """Replace the new tensors by the old ones of the same names."""
    for name, tensor in old.items():
        if tensor is None and new.get(name) is None:
            continue
        if tensor is None or new.get(name) is None:
            has, lacks, fix = (
                ("new", "old", "") if tensor is None else ("old", "new", ", or add it to the target")
            )
            raise ValueError(
                f"{change}: the {has} layer has {name!r}, but the {lacks} one does not: make their settings "
                f"agree{fix}"
            )
        if tensor.shape != new[name].shape:
            raise ValueError(
                f"{change}: {name} has shape {tuple(tensor.shape)} in the old layer, but "
                f"{tuple(new[name].shape)} in the new one: make their settings agree"
            )
        new[name] = tensor


def _carry_over(module: nn.Module, name: str, new: nn.Module) -> None:
    """Give the new module the hooks, and the attributes that others set, such as `qconfig`."""
    if methods := own_methods(module):
        raise ValueError(
            f"{_where(name, module)}, has a {methods[0]} of its own, set on the object and not by its class, "
            "which would be lost: remove it first"
        )
    vars(new).update({name: vars(module)[name] for name in _HOOKS})
    # The arguments of all constructors: as attributes they are settings of the old layer.
    constructors = [vars(base)["__init__"] for base in type(module).__mro__ if "__init__" in vars(base)]
    settings = {name for constructor in constructors for name in _arguments(constructor)}
    for attribute, value in vars(module).items():
        if attribute in MODULE_ATTRIBUTES or attribute in settings or hasattr(new, attribute):
            continue
        # A private object is working state of the old layer, but a private number or text may be a flag.
        if not attribute.startswith("_") or isinstance(value, (bool, int, float, str, type(None))):
            vars(new)[attribute] = value


def _row(name: str, module: nn.Module, new: nn.Module, notes: list[str]) -> Conversion:
    before, after = (
        [name for name, t in (*m._parameters.items(), *m._buffers.items()) if t is not None]
        for m in (module, new)
    )
    if added := [name for name in after if name not in before]:
        notes = [*notes, f"adds {', '.join(added)}"]
    if dropped := _dropped_statistics(module, new):
        notes = [*notes, f"drops {', '.join(dropped)}"]
    return Conversion(name or "(model)", type(module).__name__, type(new).__name__, "; ".join(notes))


# ---- put the new modules into the model ----


def _register(replaced: Mapping[nn.Module, nn.Module], modules: Iterable[nn.Module]) -> None:
    """Make the new modules children where the old ones were."""
    hook: Any
    for new in replaced.values():
        for hook in new._load_state_dict_pre_hooks.values():
            if getattr(hook, "with_module", False):  # bound to the old module
                hook.module = weakref.ref(new)
    # `from_module` may take over children that are replaced themselves, or may wrap the old module.
    parents: list[tuple[nn.Module, nn.Module | None]] = [(m, None) for m in modules if m not in replaced]
    parents += [(part, old) for old, new in replaced.items() for part in new.modules()]
    for parent, wrapped in parents:
        for name, child in parent._modules.items():
            if child is not None and child is not wrapped:
                parent._modules[name] = replaced.get(child, child)


def _disable_fast_paths(modules: Iterable[nn.Module], new: set[nn.Module]) -> None:
    """Make torch's transformer layers call the new modules in eval mode too.

    `nn.TransformerEncoderLayer` has a fast path for eval mode, which reads the weights of its submodules and
    never calls them.
    """

    def holds_new(layer: nn.Module) -> bool:
        if not isinstance(layer, nn.TransformerEncoderLayer):
            return False
        # The fast path skips dropout, so that an Identity in its place makes no difference.
        dropouts = layer.dropout, layer.dropout1, layer.dropout2
        idle = {module for module in dropouts if isinstance(module, nn.Identity)}
        return not (new - idle).isdisjoint(layer.modules())

    for module in modules:
        if holds_new(module):
            vars(module)["activation_relu_or_gelu"] = 0
        elif isinstance(module, nn.TransformerEncoder) and any(map(holds_new, module.layers)):
            module.use_nested_tensor = False
