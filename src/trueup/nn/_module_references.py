"""Find and update modules that a model holds in plain attributes, lists, tuples, dicts and sets.

torch registers a module that is assigned to an attribute or held by `nn.ModuleList` and the like. Some models
keep the same module in a plain container too, as detectron2 does with `self.stages = [...]`. Replacing the
registered module alone would leave the old one in the container.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

__all__ = ["MODULE_ATTRIBUTES", "Reference", "find_references", "updates"]

# The attributes of every module. Of these, only `_modules` holds modules.
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))

# Compared with `type(value)`, because a weak proxy to a module passes `isinstance`.
_HOLDERS = (nn.Module, list, tuple, dict, set, frozenset, deque)


class Reference(NamedTuple):
    """A module in the plain attribute `attribute` of `holder`; `path` is its address, such as `stages[0]`."""

    path: str
    module: nn.Module
    holder: nn.Module
    attribute: str


def find_references(model: nn.Module) -> list[Reference]:
    """Return all plain references to modules, including those inside modules that are not registered.

    >>> model = nn.Sequential(nn.Tanh())
    >>> model.stages = [model[0]]
    >>> [reference.path for reference in find_references(model)]
    ['stages[0]']
    """
    found = []
    queue = list(model.named_modules())
    registered = {module for _, module in queue}
    seen = {*registered}
    for prefix, holder in queue:  # grows as unregistered modules are found
        for attribute, value in vars(holder).items():
            if attribute in MODULE_ATTRIBUTES and (attribute != "_modules" or holder in registered):
                continue
            if not issubclass(type(value), _HOLDERS):
                continue
            for path, module in _modules_in(value, f"{prefix}.{attribute}" if prefix else attribute, set()):
                found.append(Reference(path, module, holder, attribute))
                if module not in seen:
                    parts = [(name, m) for name, m in module.named_modules(prefix=path) if m not in seen]
                    queue.extend(parts)
                    seen.update(part for _, part in parts)
    return found


def updates(
    replaced: Mapping[nn.Module, nn.Module], references: Iterable[Reference]
) -> list[Callable[[], object]]:
    """Return the calls that put the new modules into plain attributes and containers.

    Lists, dicts and sets are changed in place. Tuples and frozen sets are rebuilt here, which may raise; the
    calls themselves do not.
    """
    calls: list[Callable[[], object]] = []
    new_values: dict[int, Any] = {}  # by the id of the old value: shared values stay shared

    def updated(value: Any) -> Any:
        if not issubclass(type(value), _HOLDERS):
            return value
        if isinstance(value, nn.Module):
            return replaced.get(value, value)
        if id(value) not in new_values:
            new_values[id(value)] = value  # ends the recursion where a container holds itself
            old = _items(value)
            new = [updated(item) for _, item in old]
            changed = [(key, item) for item, (key, before) in zip(new, old) if item is not before]
            if changed and isinstance(value, tuple | frozenset):
                # A named tuple takes its items as separate arguments.
                new_values[id(value)] = getattr(type(value), "_make", type(value))(new)
            elif changed and isinstance(value, set):
                calls.extend([value.clear, functools.partial(value.update, new)])
            else:
                calls.extend(functools.partial(value.__setitem__, key, item) for key, item in changed)
        return new_values[id(value)]

    for holder, attribute in dict.fromkeys(
        (r.holder, r.attribute) for r in references if r.module in replaced
    ):
        attributes = vars(replaced.get(holder, holder))
        if attribute in attributes:
            new = updated(attributes[attribute])
            calls.append(functools.partial(attributes.__setitem__, attribute, new))
    return calls


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
