"""Find what a subclass or a single object does beyond its class, so that a conversion loses none of it."""

from __future__ import annotations

from torch import nn

__all__ = ["overridden_attributes", "own_methods"]

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


def overridden_attributes(cls: type[nn.Module], kind: type[nn.Module]) -> list[str]:
    """Return the attributes of `kind` that its subclass `cls` redefines.

    >>> class Doubled(nn.ReLU):
    ...     def forward(self, x):
    ...         return 2 * super().forward(x)
    >>> overridden_attributes(Doubled, nn.ReLU)
    ['forward']
    """
    owners: dict[str, type] = {}
    for owner in cls.__mro__:
        for name in vars(owner):
            owners.setdefault(name, owner)
    return [
        name
        for name, owner in owners.items()
        # Torch's own subclasses count as their kind.
        if owner not in kind.__mro__
        and not owner.__module__.startswith("torch.nn.")
        and name not in _HARMLESS
        # A property with a setter may replace an attribute of the object, such as eps.
        and (hasattr(kind, name) or getattr(vars(owner)[name], "fset", None))
    ]


def own_methods(module: nn.Module) -> list[str]:
    """Return the methods that are overridden on this object rather than in its class.

    >>> relu = nn.ReLU()
    >>> relu.forward = lambda x: x
    >>> own_methods(relu)
    ['forward']
    """
    return [
        name
        for name, value in vars(module).items()
        if callable(value) and name not in _HARMLESS and callable(getattr(type(module), name, None))
    ]
