"""Find the activation module that follows each norm in a model's forward pass.

`convert` needs it for layers that are normalization and activation in one. `torch.fx` records the forward
pass as a graph. Only modules that hold a norm are entered; every other module is one node, so its code need
not be traceable. Where the graph leaves an activation open, one error lists all norms concerned and suggests
`pairs` to paste. The suggestion never removes a module that may be something other than an activation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from trueup.nn._module_references import Reference
from trueup.nn._overrides import overridden_attributes

__all__ = ["find_activations"]

# Containers of modules; entering them shows which activation they call.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# Torch's activations, and their functional forms: leaky_relu for LeakyReLU.
_ACTIVATIONS = set(nn.modules.activation.__all__) - {
    "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin"
}  # fmt: skip
_FUNCTIONS = {name: kind for name in dir(F) for kind in _ACTIVATIONS if name.replace("_", "") == kind.lower()}

# Activations that a fused layer may replace. Others are gates, as a sigmoid is, or have weights.
_REPLACEABLE = {
    "CELU", "ELU", "GELU", "Hardswish", "LeakyReLU", "Mish", "ReLU", "ReLU6", "RReLU", "SELU", "SiLU"
}  # fmt: skip


def find_activations(
    model: nn.Module,
    norms: Mapping[nn.Module, str],
    kinds: type[nn.Module] | tuple[type[nn.Module], ...],
    pairs: Mapping[str, str | None],
    references: list[Reference],
) -> dict[nn.Module, nn.Module | None]:
    """Return the activation that follows each norm, or None where none does.

    Args:
        model: the model that holds the norms.
        norms: the norms and their names.
        kinds: the classes of activation that may be removed.
        pairs: names of norms and of their activations, which need not be searched for.
        references: the plain references in the model, of `find_references`.

    Raises:
        ValueError: the graph leaves the activation of a norm open; an activation is used elsewhere too, or
            has state; or `pairs` names a module that does not fit.

    >>> model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    >>> found = find_activations(model, {model[0]: "0", model[3]: "3"}, nn.ReLU, {}, [])
    >>> found[model[0]] is model[1], found[model[3]]
    (True, None)
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[nn.Module, nn.Module | None] = {}
    for name, partner in pairs.items():
        for known in (name, partner):
            if known is not None and known not in modules:
                raise ValueError(f"pairs names {known!r}, which the model does not have")
        if modules[name] not in norms:
            raise ValueError(f"pairs names {name!r}, a {type(modules[name]).__name__} that is not converted")
        found[modules[name]] = None if partner is None else modules[partner]
    unpaired = {norm: name for norm, name in norms.items() if norm not in found}
    if unpaired:
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        found |= _Finder(model, modules, unpaired, kinds, pairs, references).find()
    for norm, act in found.items():
        if act is not None and _has_state(act):
            raise ValueError(
                f"the activation {type(act).__name__} has parameters or buffers, which would be lost: "
                f"pass pairs={{{norms[norm]!r}: None}} to keep it"
            )
    return found


class _Unclear(Exception):
    """The reason why a norm's activation is unclear, and the safe answer as Python source."""

    def __init__(self, reason: str, answer: str = "None", kind: type[nn.Module] | None = None) -> None:
        self.reason, self.answer, self.kind = reason, answer, kind


class _Finder(fx.Tracer):
    """Trace a model and follow the result of each norm through the graph."""

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        norms: Mapping[nn.Module, str],
        kinds: tuple[type[nn.Module], ...],
        pairs: Mapping[str, str | None],
        references: list[Reference],
    ) -> None:
        super().__init__()
        self.model, self.modules, self.norms, self.kinds = model, modules, norms, kinds
        self.pairs, self.references = pairs, references
        self.names: dict[nn.Module, list[str]] = {}
        for name, module in modules.items():
            self.names.setdefault(module, []).append(name)
        holders = {*norms, *(r.holder for r in references if r.module in norms)}
        self.entered = {module for module in self.names if type(module) in _CONTAINERS}
        for holder in holders & self.names.keys():
            for name in self.names[holder]:
                parts = name.split(".")
                self.entered.update(modules[".".join(parts[:end])] for end in range(len(parts) + 1))
        self.entered -= norms.keys()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if m in self.entered:
            # Not m(...), which would run the model's hooks on proxies.
            return m.forward(*args, **kwargs)
        if m not in self.names:
            raise NameError(f"it calls a {type(m).__name__} that is not registered: use nn.ModuleList")
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def find(self) -> dict[nn.Module, nn.Module | None]:
        """Return the activation of each norm."""
        try:
            calls = self._calls()
        except _Unclear as unclear:
            raise ValueError(self._question(dict.fromkeys(self.norms, unclear))) from unclear.__cause__
        found: dict[nn.Module, nn.Module | None] = {}
        open_questions: dict[nn.Module, _Unclear] = {}
        for norm in self.norms:
            try:
                found[norm] = self._activation_of(calls.get(norm, []))
            except _Unclear as unclear:
                open_questions[norm] = unclear
        shared = self._used_elsewhere(found, calls)
        for norm, act in found.items():
            if act is not None and not self._is_replaceable(act):
                open_questions[norm] = self._unclear_kind(act, shared)
        if open_questions:
            in_order = {norm: open_questions[norm] for norm in self.norms if norm in open_questions}
            raise ValueError(self._question(in_order))
        if shared:
            raise ValueError(
                f"the activation {', '.join(shared.values())} is also used where no converted norm comes "
                "before it, and must stay there: give each place an activation of its own"
            )
        return found

    def _calls(self) -> dict[nn.Module, list[fx.Node]]:
        """Return the nodes that call each module."""
        if self.model in self.norms:
            raise ValueError(
                "the model is the norm itself, so that no activation can be found: pass apply_act=True for a "
                "layer that activates, else apply_act=False"
            )
        try:
            graph = self.trace(self.model)
        except Exception as error:  # the model's own code may raise anything on proxies
            reason = " ".join(f"torch.fx cannot trace the model ({type(error).__name__}: {error})".split())
            raise _Unclear(reason, "NAME") from error
        calls: dict[nn.Module, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                calls.setdefault(self.modules[str(node.target)], []).append(node)
        return calls

    def _activation_of(self, calls: list[fx.Node]) -> nn.Module | None:
        """Return the activation that follows all calls of a norm."""
        if not calls:
            raise _Unclear("torch.fx finds no call of it", "NAME")
        after = {self._next_activation(call) for call in calls}
        if len(after) > 1:
            raise _Unclear("it is used in several places, with different activations")
        return after.pop()

    def _next_activation(self, node: fx.Node) -> nn.Module | None:
        """Return the activation, or what may be one, that alone receives the node's result."""
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
            raise _Unclear(f"its result goes to {act} and elsewhere")
        if between:
            raise _Unclear(f"{act} follows, but only after {', '.join(between)}")
        if module is None:
            kind = _FUNCTIONS[_function(act)]
            if kind not in _REPLACEABLE:
                raise _Unclear(f"the function {act} follows")
            raise _Unclear(
                f"the function {act} follows, which convert cannot remove from your code: make it a module, "
                f"nn.{kind} with the same arguments",
                "NAME",
            )
        return module

    def _may_activate(self, node: fx.Node) -> bool:
        """Return whether a node is one of torch's activations, or a user's module that is not entered."""
        module = self._module(node)
        if module is None:
            return _function(node) in _FUNCTIONS
        if module in self.norms:
            return False
        known = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn."))
        return isinstance(module, self.kinds) or known is nn.Module or known.__name__ in _ACTIVATIONS

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _used_elsewhere(
        self, found: Mapping[nn.Module, nn.Module | None], calls: Mapping[nn.Module, list[fx.Node]]
    ) -> dict[nn.Module, str]:
        """Return the names of the activations that other modules than the norms use, or may use, too."""
        paired = {self.modules[name] for name in self.pairs.values() if name is not None}
        uses = Counter[nn.Module]()
        for norm, act in found.items():
            if act is not None and act not in paired:
                uses[act] += len(calls[norm])
        shared = {}
        for act, count in uses.items():
            # A module that is not entered may call any activation that it holds.
            names = self.names[act]
            unseen = [name for name in names if self.modules[name.rpartition(".")[0]] not in self.entered]
            unseen += [r.path for r in self.references if r.module is act and r.holder not in self.entered]
            if unseen or len(calls[act]) != count:
                shared[act] = " or ".join(dict.fromkeys([*names, *unseen]))
        return shared

    def _is_replaceable(self, act: nn.Module) -> bool:
        kinds = (kind for kind in self.kinds if isinstance(act, kind))
        return not _has_state(act) and any(not overridden_attributes(type(act), kind) for kind in kinds)

    def _unclear_kind(self, act: nn.Module, shared: Collection[nn.Module]) -> _Unclear:
        """Describe an activation that is not of the kinds to remove; suggest it only if it may go."""
        cls, name = type(act), self.names[act][0]
        state = " with parameters or buffers" if _has_state(act) else ""
        reason = f"{name} follows, a {cls.__name__}{state}"
        if not (cls.__module__.startswith("torch.nn.") and cls.__name__ in _REPLACEABLE):
            return _Unclear(reason)
        if act in shared:
            return _Unclear(f"{reason} that is used elsewhere too: give each place one of its own", "NAME")
        return _Unclear(reason, repr(name), cls)

    def _question(self, unclear: Mapping[nn.Module, _Unclear]) -> str:
        """Return the error for all unclear norms, with `pairs` to paste."""
        reasons = list(dict.fromkeys(each.reason for each in unclear.values()))
        lines = [f"{name!r}: {answer!r}," for name, answer in self.pairs.items()]
        for norm, each in unclear.items():
            comment = f"  # {each.reason}" if len(reasons) > 1 else ""
            lines.append(f"{self.norms[norm]!r}: {each.answer},{comment}")
        which = self.norms[next(iter(unclear))] if len(unclear) == 1 else "each of these norms"
        text = f"cannot determine the activation of {which}" + (
            f": {reasons[0]}" if len(reasons) == 1 else ""
        )
        text += ". Pass pairs, where None keeps what follows the norm:\npairs={\n    "
        text += "\n    ".join(lines) + "\n}"
        if any(each.answer == "NAME" for each in unclear.values()):
            text += "\nReplace NAME by the name of the activation, or by None"
        kinds = dict.fromkeys([*self.kinds, *(each.kind for each in unclear.values() if each.kind)])
        if len(kinds) > len(self.kinds):
            text += (
                "\nOr remove these kinds wherever they follow a norm: "
                f"activation=({', '.join(map(_source, kinds))})"
            )
        return text


def _function(node: fx.Node) -> str:
    """Return the name of the function that a node calls, without the underscore of in-place ones, or ''."""
    is_call = node.op in ("call_function", "call_method")
    return str(getattr(node.target, "__name__", node.target)).rstrip("_") if is_call else ""


def _source(kind: type[nn.Module]) -> str:
    return f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn.") else kind.__name__


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(), *module.buffers()))
