"""Put a layer into a model that exists: every module of one kind is replaced by its counterpart.

Weights, running statistics, hooks, device, dtype, training mode and `requires_grad` stay; so do the names in
the state dict. `convert` is the one converter of the library: a layer that takes the place of another needs
nothing but a constructor with the same argument names, or a class method ``from_module(module, **options)``
where its settings cannot be read off by name. A layer that is norm and activation in one says so by an
argument ``apply_act`` of its constructor: the activation after each norm is then found, and goes.

What a module does beyond its kind is never dropped silently: a subclass that overrides something, a child
without a place in the new layer and a method set on the object are errors.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from trueup.nn._ghost_batch_norm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, Remainder
from trueup.nn._recurrent_cell import Cell
from trueup.nn._table import Table
from trueup.nn._wrapped import refuse_wrapped

__all__ = ["Conversion", "convert", "convert_ghost_batchnorm"]

_Kind = type[nn.Module] | tuple[type[nn.Module], ...]

# Where torch keeps a module's hooks. The dictionaries themselves move: handles can still remove their hook.
_HOOKS = tuple(name for name in vars(nn.Module()) if "_hook" in name)

# What every module has; but for `_modules` it holds no modules.
_EVERY_MODULE = frozenset(vars(nn.Module()))

# What a subclass may define without computing anything else.
_HARMLESS = {
    "__init__", "__new__", "__init_subclass__", "__class_getitem__", "__subclasshook__",
    "__doc__", "__module__", "__qualname__", "__slots__", "__dict__", "__weakref__",
    "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
    "__constants__", "__firstlineno__", "__static_attributes__", "__orig_bases__", "__type_params__",
    "__repr__", "__str__", "__dir__", "__eq__", "__hash__", "dump_patches", "call_super_init",
    "extra_repr", "_get_name", "_version", "_compiled_call_impl",
    "reset_parameters", "reset_running_stats", "_check_input_dim",
}  # fmt: skip

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
        source: a module class or several, or a mapping from classes to their targets. Modules of subclasses
            are replaced too, unless the subclass overrides something; of several classes in a mapping, the
            most specific one counts.
        target: the class to put in. Settings that its constructor and the replaced module share by name are
            taken over, unless the class has ``from_module(module, **options)``, which is then called.
        inplace: change ``model`` and keep its very parameters, so that an optimizer goes on with them. By
            default the model is left alone and a copy converted.
        activation: for a target that is norm and activation in one (it takes ``apply_act``): the kinds of
            activation that it stands for. They are found by `torch.fx` and become `nn.Identity`; where none
            follows, the target gets ``apply_act=False``. Pass ``apply_act`` to leave them alone.
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
    references = _check_model(model, targets)
    if not inplace:
        model = copy.deepcopy(model)
        references = _references(model)
    names = {module: name for name, module in model.named_modules()}
    target_of = {m: targets[kind] for m in names if (kind := _kind_of(type(m), targets)) is not None}
    norms = {norm: names[norm] for norm in target_of}

    activation_of: dict[nn.Module, nn.Module | None] = {}
    fused = {norm: name for norm, name in norms.items() if _fuses(target_of[norm], options)}
    if fused:
        activation_of = _activations(model, fused, activation, pairs or {}, references)
    elif pairs is not None:
        raise TypeError("pairs is for targets that take apply_act, and apply_act must not be given with it")

    # All counterparts are built before the first is put in, so that an error leaves the model as it was.
    elsewhere: dict[nn.Module, list[str]] = {}
    for reference in references:
        elsewhere.setdefault(reference.module, []).append(reference.path)
    replaced: dict[nn.Module, nn.Module] = {}
    rows = []

    def replace(module: nn.Module, new: nn.Module, notes: list[str]) -> None:
        _check_methods(module, names[module])
        replaced[module] = _carry_over(new, module)
        if module in elsewhere:
            notes = [*notes, f"also in {', '.join(elsewhere[module])}"]
        rows.append(_row(names[module], module, new, notes))

    for norm, name in norms.items():
        own, notes = {}, []
        if norm in activation_of:
            own = {"apply_act": activation_of[norm] is not None}
            notes = [] if own["apply_act"] else ["no activation follows: apply_act=False"]
        replace(norm, _counterpart(norm, name, target_of[norm], options | own, model.training), notes)
    for norm, act in activation_of.items():
        if act is not None and act not in replaced:
            replace(act, nn.Identity().train(act.training), [f"is in {norms[norm]}"])

    exchanges = _exchanges(replaced, references)
    # The last thing that can fail.
    if report is not None:
        report(Table(rows))
    _put_in(replaced, names)
    for exchange in exchanges:
        exchange()
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


def _kind_of(
    cls: type[nn.Module], targets: Mapping[type[nn.Module], type[nn.Module]]
) -> type[nn.Module] | None:
    """The most specific kind of source that a class belongs to."""
    return next((kind for kind in cls.__mro__ if kind in targets), None)


def _check_model(model: nn.Module, targets: Mapping[type[nn.Module], type[nn.Module]]) -> list[_Reference]:
    """Refuse what cannot be converted whatever the target; return the plain references to modules."""
    names = {module: name for name, module in model.named_modules()}
    references = _references(model)
    unregistered = [r for r in references if r.module not in names]
    for reference in unregistered:
        for path, module in reference.module.named_modules(prefix=reference.path):
            if module not in names and _kind_of(type(module), targets) is not None:
                raise ValueError(
                    f"{_where(path, module)}, is not registered: torch does not see it, and convert "
                    "would pass it over. If it is part of the model, hold it in nn.ModuleList, nn.ModuleDict "
                    "or an attribute of its own; if not, take it out and put it back after the conversion"
                )
    if not any(_kind_of(type(module), targets) for module in names):
        wanted = " or ".join(kind.__name__ for kind in targets)
        found = sorted({type(module).__name__ for module in names})
        raise ValueError(f"nothing to convert: the model has no {wanted}; it is made of {', '.join(found)}")
    refuse_wrapped(model)
    _check_subclasses(names, targets)
    for module, name in names.items():
        if not any(_kind_of(type(child), targets) for child in module.children()):
            continue
        where = _where(name, module)
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
    return references


def _where(name: str, module: nn.Module) -> str:
    return f"{name or 'the model'}, a {type(module).__name__}"


def _check_subclasses(
    names: Mapping[nn.Module, str], targets: Mapping[type[nn.Module], type[nn.Module]]
) -> None:
    """Refuse modules whose class does more than the kind that was named, all in one error."""
    of_class: dict[type[nn.Module], list[nn.Module]] = {}
    for module in names:
        of_class.setdefault(type(module), []).append(module)
    errors = []
    for cls, modules in of_class.items():
        kind = _kind_of(cls, targets)
        if kind is not None and (overridden := _overrides(cls, kind)):
            more = f" (and {len(modules) - 1} more)" if len(modules) > 1 else ""
            errors.append(
                f"{_where(names[modules[0]], modules[0])}{more}, overrides {', '.join(overridden)} of "
                f"{kind.__name__}, which {targets[kind].__name__} knows nothing of: name the class itself, "
                f"convert(model, {{{cls.__name__}: Target}}), with a Target whose from_module brings along "
                "what the class does, or replace the module by hand"
            )
    if errors:
        raise ValueError("\n".join(errors))


def _overrides(cls: type[nn.Module], kind: type[nn.Module]) -> tuple[str, ...]:
    """The attributes of ``kind`` that mean something else in its subclass."""
    if cls is kind:
        return ()
    owners: dict[str, type] = {}
    for owner in cls.__mro__:
        for name in vars(owner):
            owners.setdefault(name, owner)
    return tuple(
        name
        for name, owner in owners.items()
        # Torch's own subclasses are what their kind says; SyncBatchNorm has a check of its own.
        if owner not in kind.__mro__
        and not owner.__module__.startswith("torch.nn.")
        and name not in _HARMLESS
        # A property with a setter may stand in for an attribute of the object, such as eps.
        and (hasattr(kind, name) or getattr(vars(owner)[name], "fset", None))
    )


def _check_methods(module: nn.Module, name: str) -> None:
    """Refuse methods that are set on the object: a new object would not have them."""
    for attribute, value in vars(module).items():
        if not callable(value) or attribute in _HARMLESS:
            continue
        if callable(getattr(type(module), attribute, None)):
            raise ValueError(
                f"{_where(name, module)}, has a {attribute} of its own, set on the object and not by its "
                "class, which would be lost: take it off first"
            )


# ---- modules that are held beside the registered ones ----


class _Reference(NamedTuple):
    """A module in a plain attribute, or in a list, dict or set there: ``path`` is ``stages[0]``, say."""

    path: str
    module: nn.Module
    holder: nn.Module
    attribute: str


def _references(model: nn.Module) -> list[_Reference]:
    """All of them; a module that is held in no other way is looked into, its children are references too."""
    found = []
    queue = [(name, module) for name, module in model.named_modules()]
    registered = {module for _, module in queue}
    seen = {*registered}
    for prefix, holder in queue:
        for attribute, value in vars(holder).items():
            if attribute in _EVERY_MODULE and (attribute != "_modules" or holder in registered):
                continue
            if not issubclass(type(value), _HOLDERS):
                continue
            for path, module in _modules_in(value, f"{prefix}.{attribute}" if prefix else attribute, set()):
                found.append(_Reference(path, module, holder, attribute))
                if module not in seen:
                    parts = [(name, m) for name, m in module.named_modules(prefix=path) if m not in seen]
                    queue.extend(parts)
                    seen.update(part for _, part in parts)
    return found


# By type(value): a weak proxy only claims to be a module.
_HOLDERS = (nn.Module, list, tuple, dict, set, frozenset, deque)


def _items(container: Any) -> list[tuple[Any, Any]]:
    return [*(container.items() if isinstance(container, dict) else enumerate(container))]


def _modules_in(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield path, value
    elif id(value) not in seen:
        seen.add(id(value))
        for key, item in _items(value):
            if issubclass(type(item), _HOLDERS):
                yield from _modules_in(item, f"{path}[{key!r}]", seen)


class _Exchange:
    """New modules for old in plain containers: the calls that change lists, and new tuples for old."""

    def __init__(self, replaced: Mapping[nn.Module, nn.Module]) -> None:
        self.replaced = replaced
        self.done: dict[int, Any] = {}
        self.changes: list[Callable[[], object]] = []

    def of(self, value: Any) -> Any:
        """What to hold instead of the value; `changes` are the calls that make it so."""
        if not issubclass(type(value), _HOLDERS):
            return value
        if isinstance(value, nn.Module):
            return self.replaced.get(value, value)
        if id(value) not in self.done:
            self.done[id(value)] = value
            old = _items(value)
            new = [self.of(item) for _, item in old]
            if any(item is not before for item, (_, before) in zip(new, old)):
                if isinstance(value, tuple | frozenset):
                    make = getattr(type(value), "_make", type(value))  # a named tuple takes its fields singly
                    self.done[id(value)] = make(new)
                elif isinstance(value, set):
                    self.changes += [value.clear, functools.partial(value.update, new)]
                else:
                    self.changes += [
                        functools.partial(value.__setitem__, key, item)
                        for item, (key, before) in zip(new, old)
                        if item is not before
                    ]
        return self.done[id(value)]


def _exchanges(
    replaced: Mapping[nn.Module, nn.Module], references: Iterable[_Reference]
) -> list[Callable[[], object]]:
    """The calls that put the new modules into plain attributes and containers."""
    exchange = _Exchange(replaced)
    for holder, attribute in dict.fromkeys(
        (r.holder, r.attribute) for r in references if r.module in replaced
    ):
        attributes = vars(replaced.get(holder, holder))
        if attribute in attributes:
            new = exchange.of(attributes[attribute])
            exchange.changes.append(functools.partial(attributes.__setitem__, attribute, new))
    return exchange.changes


def _put_in(replaced: Mapping[nn.Module, nn.Module], names: Iterable[nn.Module]) -> None:
    """Put the new modules where the old ones were, as children."""
    for new in replaced.values():
        _bind_hooks(new)
    # `from_module` may have taken over children that are replaced themselves, or have wrapped the old module.
    parents: list[tuple[nn.Module, nn.Module | None]] = [(m, None) for m in names if m not in replaced]
    parents += [(part, old) for old, new in replaced.items() for part in new.modules()]
    for parent, wrapped in parents:
        for name, child in parent._modules.items():
            if child is not None and child is not wrapped:
                parent._modules[name] = replaced.get(child, child)


# ---- the counterpart of a module ----


def _counterpart(
    module: nn.Module, path: str, target: type[nn.Module], options: dict[str, Any], model_trains: bool
) -> nn.Module:
    """A ``target`` with the module's settings and its very parameters, buffers and hooks."""
    where = _where(path, module)
    if parametrize.is_parametrized(module):
        raise ValueError(
            f"{where}, is parametrised: call torch.nn.utils.parametrize.remove_parametrizations first, and "
            "parametrise the converted model"
        )
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    if any(is_lazy(tensor) for tensor in tensors):
        raise ValueError(
            f"{where}, is not yet initialised: run one batch through the model before converting it"
        )

    from_module = getattr(target, "from_module", None)
    if from_module is None and any(True for _ in module.children()):
        raise ValueError(
            f"{where}, has children, and {target.__name__} has no from_module to say where they go: "
            f"convert to a subclass of {target.__name__} with a from_module that takes them over"
        )
    try:
        new: nn.Module = (
            from_module(module, **options)
            if from_module is not None
            else target(**(_shared_settings(module, target) | options))
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error

    moved = {*module.modules()}  # by `from_module`: they stay as they are
    parts = [part for part in new.modules() if part not in moved]
    taken, instead = {*new.modules()}, dict(new.named_children())
    lost = [n for n, child in module.named_children() if child not in taken and n not in instead]
    if lost:
        raise ValueError(
            f"{where}, has children that find no place in the new {target.__name__}, {', '.join(lost)}: "
            f"name the class itself, convert(model, {{{type(module).__name__}: Target}}), with a Target "
            "whose from_module takes them over (an nn.Identity of that name where it does a child's work "
            "itself), or replace the module by hand"
        )
    like = next((t for t in tensors if t.is_floating_point()), None)
    if like is not None:
        for part in parts:
            _move(part, like)
    _check_statistics(module, path, new, model_trains)
    weights = [*module.parameters()]
    if weights and not any(p.requires_grad for p in weights):
        new.requires_grad_(False)
    becomes = _becomes(path, module, new)
    _take_over(new._parameters, module._parameters, becomes)
    buffers = _kept_buffers(module, new)
    _take_over(new._buffers, buffers, becomes)
    new._non_persistent_buffers_set -= buffers.keys()
    new._non_persistent_buffers_set |= buffers.keys() & module._non_persistent_buffers_set
    for part in parts:
        part.training = module.training
    return new


def _move(part: nn.Module, like: Tensor) -> None:
    """Give a module's own tensors the dtype and device of the replaced ones."""
    own = [t for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]
    if any(t.device != like.device or (t.is_floating_point() and t.dtype != like.dtype) for t in own):
        part._apply(
            lambda t: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype), recurse=False
        )


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
    kinds = _becomes(path, module, new)
    dropped = _dropped_statistics(module, new)
    if dropped and model_trains and not module.training:
        raise ValueError(
            f"{kinds}: the first is in eval mode while the model trains, so it is frozen at its running "
            f"statistics; the second has no {dropped[0]} to be frozen at: convert the other parts of the "
            "model, one by one, or call .train() on it if its statistics may follow the batch again"
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


def _becomes(path: str, module: nn.Module, new: nn.Module) -> str:
    return f"{path or 'the model'}, {type(module).__name__} -> {type(new).__name__}"


def _dropped_statistics(module: nn.Module, new: nn.Module) -> list[str]:
    return [n for n in _RUNNING_STATISTICS if module._buffers.get(n) is not None and n not in new._buffers]


def _kept_buffers(module: nn.Module, new: nn.Module) -> dict[str, Any]:
    dropped = _dropped_statistics(module, new)
    return {name: buffer for name, buffer in module._buffers.items() if name not in dropped}


def _take_over(new: dict[str, Any], old: dict[str, Any], becomes: str) -> None:
    """Put the old tensors in the place of the new ones of the same name."""
    for name, tensor in old.items():
        if tensor is None and new.get(name) is None:
            continue
        if tensor is None or new.get(name) is None:
            fix = "" if tensor is None else ", or the second needs a place for it"
            has, lacks = ("second", "first") if tensor is None else ("first", "second")
            raise ValueError(
                f"{becomes}: the {has} has {name!r}, the {lacks} has not: their settings must agree{fix}"
            )
        if tensor.shape != new[name].shape:
            raise ValueError(
                f"{becomes}: {name} has shape {tuple(tensor.shape)}, the new one {tuple(new[name].shape)}"
            )
        new[name] = tensor


def _carry_over(new: nn.Module, module: nn.Module) -> nn.Module:
    """Keep hooks, and attributes set from outside: a quantization config, a framework's flag, a number."""
    vars(new).update({name: vars(module)[name] for name in _HOOKS})
    settings = _settings(type(module))  # type: ignore[arg-type]  # a class is hashable
    for name, value in vars(module).items():
        if name in _EVERY_MODULE or name in settings:
            continue
        # A private object is working state of the replaced layer, a private number or text may be a flag.
        foreign = not name.startswith("_") or isinstance(value, (bool, int, float, str, type(None)))
        if foreign and not hasattr(new, name):
            vars(new)[name] = value
    return new


@functools.cache
def _settings(cls: type[nn.Module]) -> frozenset[str]:
    """The arguments of all constructors of a class; as attributes they are settings of the layer."""
    constructors = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
    return frozenset(name for each in constructors for name in inspect.signature(each).parameters)


def _bind_hooks(new: nn.Module) -> None:
    """Bind the hooks that run before loading to the new module, as they were bound to the old one."""
    hook: Any
    for hook in new._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(new)


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
    model: nn.Module,
    norms: dict[nn.Module, str],
    kinds: _Kind,
    pairs: Mapping[str, str | None],
    references: list[_Reference],
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
        flow = _Flow(model, unnamed, kinds if isinstance(kinds, tuple) else (kinds,), modules, references)
        found |= flow.activations(named, pairs)
    for norm, act in found.items():
        if act is not None and _has_state(act):
            raise ValueError(
                f"the activation {type(act).__name__} has parameters or buffers, which would be lost: "
                f"pairs={{{norms[norm]!r}: None}} keeps it where it is"
            )
    return found


class _InDoubt(Exception):
    """Why nobody can tell which activation belongs to a norm, and the safe answer, as Python."""

    def __init__(self, reason: str, answer: str = "None", kind: type[nn.Module] | None = None) -> None:
        self.reason, self.answer, self.kind = reason, answer, kind


class _Flow(fx.Tracer):
    """The graph of a model's forward pass, in which only modules that hold a norm are looked into."""

    def __init__(
        self,
        model: nn.Module,
        norms: dict[nn.Module, str],
        kinds: tuple[type[nn.Module], ...],
        modules: dict[str, nn.Module],
        references: list[_Reference],
    ) -> None:
        super().__init__()
        self.model, self.norms, self.kinds, self.modules = model, norms, kinds, modules
        self.references = references
        self.registered = {*modules.values()}
        holding = {*norms, *(r.holder for r in references if r.module in norms)}
        self.open = {module for module in self.registered if type(module) in _CONTAINERS}
        for name, module in modules.items():
            if module in holding:
                parts = name.split(".")
                self.open.update(modules[".".join(parts[:end])] for end in range(len(parts) + 1))
        self.open -= norms.keys()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if m in self.open:
            # Not m(...): the model's hooks are for tensors.
            return m.forward(*args, **kwargs)
        if m not in self.registered:
            raise NameError(f"it calls a {type(m).__name__} that is not registered: use nn.ModuleList")
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def activations(
        self, named: Collection[nn.Module], pairs: Mapping[str, str | None]
    ) -> dict[nn.Module, nn.Module | None]:
        """The activation of each norm, each used after these norms only, or ``named`` as somebody else's."""
        found: dict[nn.Module, nn.Module | None] = {}
        doubts: dict[nn.Module, _InDoubt] = {}
        try:
            calls = self._calls()
        except _InDoubt as doubt:
            raise ValueError(self._ask(dict.fromkeys(self.norms, doubt), pairs)) from doubt.__cause__
        for norm in self.norms:
            try:
                if norm not in calls:
                    raise _InDoubt("torch.fx does not come by it", "NAME")
                after = [self._after(node) for node in calls[norm]]
                if len(set(after)) > 1:
                    raise _InDoubt("it is used in several places, with different activations")
                found[norm] = after[0]
            except _InDoubt as doubt:
                doubts[norm] = doubt

        expected: dict[nn.Module, int] = {}
        for norm, act in found.items():
            if act is not None and act not in named:
                expected[act] = expected.get(act, 0) + len(calls[norm])
        places: dict[nn.Module, list[str]] = {act: [] for act in expected}
        for name, module in self.modules.items():
            if module in places:
                places[module].append(name)
        shared = {}
        for act, count in expected.items():
            unseen = [name for name in places[act] if self.modules[name.rpartition(".")[0]] not in self.open]
            unseen += [r.path for r in self.references if r.module is act and r.holder not in self.open]
            if unseen or len(calls[act]) != count:
                shared[act] = " or ".join(dict.fromkeys([*places[act], *unseen]))
        for norm, follower in found.items():
            if follower is not None and not self._stands_for(follower):
                doubts[norm] = self._another(follower, shared)
        if doubts:
            raise ValueError(self._ask({norm: doubts[norm] for norm in self.norms if norm in doubts}, pairs))
        if shared:
            raise ValueError(
                f"the activation {', '.join(shared.values())} is also used where no converted norm comes "
                "before it, so it cannot go: give each place an activation of its own"
            )
        return found

    def _stands_for(self, act: nn.Module) -> bool:
        kinds = (kind for kind in self.kinds if isinstance(act, kind))
        return not _has_state(act) and any(not _overrides(type(act), kind) for kind in kinds)

    def _another(self, act: nn.Module, shared: Collection[nn.Module]) -> _InDoubt:
        """The doubt about an activation of another kind: only one that may go is suggested."""
        cls = type(act)
        name = next(name for name, module in self.modules.items() if module is act)
        reason = f"{name} follows, a {cls.__name__}" + (
            " with parameters or buffers" if _has_state(act) else ""
        )
        if not (cls.__module__.startswith("torch.nn.") and cls.__name__ in _RECTIFIERS):
            return _InDoubt(reason)
        if act in shared:
            return _InDoubt(f"{reason} that is used elsewhere too: give each place one of its own", "NAME")
        return _InDoubt(reason, repr(name), cls)

    def _ask(self, doubts: Mapping[nn.Module, _InDoubt], pairs: Mapping[str, str | None]) -> str:
        """The error for all norms in doubt: pairs to paste, which leave alone what may be no activation."""
        reasons = {doubt.reason for doubt in doubts.values()}
        lines = [f"{name!r}: {answer!r}," for name, answer in pairs.items()]
        for norm, doubt in doubts.items():
            comment = f"  # {doubt.reason}" if len(reasons) > 1 else ""
            lines.append(f"{self.norms[norm]!r}: {doubt.answer},{comment}")
        text = "which activation belongs to "
        text += f"{self.norms[next(iter(doubts))]}? " if len(doubts) == 1 else "each of these norms? "
        text += "" if len(reasons) > 1 else f"{reasons.pop()}. "
        text += (
            "Say it (None: no activation, and what follows stays):\npairs={\n    "
            + "\n    ".join(lines)
            + "\n}"
        )
        if any(doubt.answer == "NAME" for doubt in doubts.values()):
            text += "\nNAME stands for the name of the activation, or None"
        kinds = dict.fromkeys([*self.kinds, *(doubt.kind for doubt in doubts.values() if doubt.kind)])
        if len(kinds) > len(self.kinds):
            text += f"\nor, wherever they follow a norm: activation=({', '.join(map(_written, kinds))})"
        return text

    def _calls(self) -> dict[nn.Module, list[fx.Node]]:
        """The nodes that call each module."""
        if self.model in self.norms:
            raise ValueError(
                "the model is the norm itself, and nothing says whether an activation follows it: pass "
                "apply_act=True if the layer is to activate, else apply_act=False"
            )
        try:
            graph = self.trace(self.model)
        except Exception as error:  # whatever the model's own code raises when it is shown no tensor
            reason = " ".join(f"torch.fx cannot trace the model ({type(error).__name__}: {error})".split())
            raise _InDoubt(reason, "NAME") from error
        calls: dict[nn.Module, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                calls.setdefault(self.modules[str(node.target)], []).append(node)
        return calls

    def _after(self, node: fx.Node) -> nn.Module | None:
        """The activation, or what may be one, that a call's result goes to, if it goes nowhere else."""
        between = []
        while not (acts := [user for user in node.users if self._may_activate(user)]):
            if len(node.users) != 1:
                return None
            (node,) = node.users
            module = self._module(node)
            if len(node.all_input_nodes) > 1 or (module is not None and _has_state(module)):
                return None
            if not isinstance(module, nn.Identity):
                between.append(str(node))
        act, module = acts[0], self._module(acts[0])
        if len(node.users) > 1:
            raise _InDoubt(f"its result goes to {act} and elsewhere")
        if between:
            raise _InDoubt(f"{act} follows, but only after {', '.join(between)}")
        if module is None:
            kind = _FUNCTIONS[_function(act)]
            if kind not in _RECTIFIERS:
                raise _InDoubt(f"the function {act} follows")
            raise _InDoubt(
                f"the function {act} follows, which convert cannot take out of your code: make it a module, "
                f"nn.{kind} with the same arguments",
                "NAME",
            )
        return module

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _may_activate(self, node: fx.Node) -> bool:
        """Is it one of torch's activations, or code of the user's that was not looked into?"""
        module = self._module(node)
        if module is None:
            return _function(node) in _FUNCTIONS
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
_FUNCTIONS = {name: kind for name in dir(F) for kind in _ACTIVATIONS if name.replace("_", "") == kind.lower()}

# Those that a norm and activation in one may stand for. Others are gates, as a sigmoid is, or have weights.
_RECTIFIERS = {
    "CELU", "ELU", "GELU", "Hardswish", "LeakyReLU", "Mish", "ReLU", "ReLU6", "RReLU", "SELU", "SiLU"
}  # fmt: skip


def _function(node: fx.Node) -> str:
    """The name of the function that a node calls, if any, without the underscore of in-place ones."""
    calls = node.op in ("call_function", "call_method")
    return str(getattr(node.target, "__name__", node.target)).rstrip("_") if calls else ""


def _written(kind: type[nn.Module]) -> str:
    return f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn.") else kind.__name__


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(), *module.buffers()))
