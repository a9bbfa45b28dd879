"""Train a model's linear layers as if they computed in four bits.

Weights and inputs of each layer are fake-quantised in every forward pass, and the gradient passes straight
through. The trained weight stays in full precision, under its name in the state dict. This is how
Stable-SPAM's experiments simulate 4-bit training (Huang et al. 2025, arXiv 2502.17055); they do not quantise
embeddings, norms and the output layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Literal, TypeVar, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from trueup.quantization._fake_quantization import (
    fake_quantize_fp4,
    fake_quantize_int4,
    fake_quantize_int4_symmetric,
)
from trueup.quantization._matrix_parameters import MatrixParameter, bypassed_layers, matrix_parameters

__all__ = ["FakeQuantLinear", "dequantize_", "quantize_linear_"]

_SAVED_SWITCH = "_fast_path_of_full_precision"

Scheme = Literal["fp4", "int4"]
Model = TypeVar("Model", bound=nn.Module)


class FakeQuantLinear(nn.Linear):
    """A linear layer whose weight and input are fake-quantised to four bits in every forward pass.

    Args:
        in_features, out_features, bias, device, dtype: as `torch.nn.Linear`.
        scheme: `"fp4"`, or `"int4"`, which is asymmetric for weights and symmetric for inputs.
        group_size: number of consecutive elements that share a scale; must divide `in_features`, so that no
            group spans two rows.
        keep_top: number of largest magnitudes that a group keeps exactly (for INT4 in inputs only).

    Raises:
        ValueError: an unknown scheme or sizes that do not fit.

    Source: Huang et al. 2025, section 5 and its code.

    >>> import torch
    >>> layer = FakeQuantLinear(8, 2, group_size=8, keep_top=0)
    >>> layer(torch.randn(3, 8)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: object = None,
        dtype: object = None,
        *,
        scheme: Scheme = "fp4",
        group_size: int = 256,
        keep_top: int = 2,
    ) -> None:
        _check(in_features, scheme, group_size, keep_top)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.scheme = scheme
        self.group_size = group_size
        self.keep_top = keep_top

    def forward(self, input: Float[Tensor, "*batch ins"]) -> Float[Tensor, "*batch outs"]:
        """Multiply the quantised input by the quantised weight."""
        options = {"group_size": self.group_size, "keep_top": self.keep_top}
        if self.scheme == "fp4":
            x, weight = fake_quantize_fp4(input, **options), fake_quantize_fp4(self.weight, **options)
        else:
            x = fake_quantize_int4_symmetric(input, **options)
            weight = fake_quantize_int4(self.weight, group_size=self.group_size)
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, scheme={self.scheme!r}, group_size={self.group_size}, "
            f"keep_top={self.keep_top}"
        )


def quantize_linear_(
    model: Model,
    scheme: Scheme = "fp4",
    *,
    group_size: int = 256,
    keep_top: int = 2,
    skip: str | Iterable[str] = (),
) -> Model:
    """Turn every `nn.Linear` inside a model into a `FakeQuantLinear` with the same parameters, in place.

    An optimizer that holds the parameters stays valid; hooks, ties (an output layer that shares the
    embedding's weight) and the state dict stay. Layers that are quantised already are left as they are.

    Parameters that multiply but cannot be quantised are never silently left out: unless they are skipped, one
    error names them all. They are the weights of

    - subclasses of `nn.Linear`, the `Conv1D` of Hugging Face's GPT-2, `nn.Bilinear`, and each `nn.Linear`
      that is parametrised or has a forward pass set on the object;
    - `nn.MultiheadAttention` and `nn.LinearCrossEntropyLoss`, which never call the layers inside them;
    - recurrent layers and their cells, those of torch and of `trueup.nn`;
    - convolutions of kernel size 1, except with one group per input channel, which only scale;

    and, of all other classes, parameters with at least two dimensions larger than 1, such as fused experts.
    Whether those multiply cannot be seen from outside: skip those that do not, such as a position embedding.
    Exempt are torch's embeddings, norms, `nn.PReLU` and larger convolutions, and their subclasses that do not
    override `forward`.

    Products with a buffer of such classes are not noticed, nor those with the weight of a layer that its
    owner does not call, as in `F.linear(x, self.embedding.weight)`.

    Args:
        model: any module, a Hugging Face one for example.
        scheme, group_size, keep_top: see `FakeQuantLinear`.
        skip: names of modules to skip with all inside them, names of parameters, or shell patterns of either
            (`"*.o_proj"`); pass the output layer's (`"lm_head"`), as the authors do. A parameter that several
            modules hold is skipped only where it is named.

    Returns:
        The model itself.

    Raises:
        ValueError: a name that the model does not have, parameters that would stay in full precision, no
            linear layer, or one whose `in_features` the group size does not divide; the model is then
            unchanged.

    >>> model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> _ = quantize_linear_(model, "int4", group_size=8, skip=["2"])
    >>> [type(layer).__name__ for layer in model]
    ['FakeQuantLinear', 'ReLU', 'Linear']
    """
    patterns = [skip] if isinstance(skip, str) else list(skip)
    excluded, skipped = _skipped(model, patterns)
    bypassed = bypassed_layers(model)
    found = list(matrix_parameters(model))
    excluded |= {f.module for f in found if f.certain and f.name in skipped}
    called = {name: module for name, module in model.named_modules() if module not in bypassed}
    layers = {
        name: module
        for name, module in called.items()
        if type(module) is nn.Linear and module not in excluded and "forward" not in vars(module)
    }
    quantized: set[nn.Module] = set(layers.values())
    quantized.update(module for module in called.values() if isinstance(module, FakeQuantLinear))
    remaining = [f for f in found if f.name not in skipped and not (f.certain and f.module in quantized)]
    if remaining:
        raise ValueError(_error_text(model, remaining, quantized, patterns))
    if not layers:
        raise ValueError(
            "nothing to quantise: the model has no nn.Linear that is not skipped or quantised already"
        )
    for name, layer in layers.items():
        try:
            _check(layer.in_features, scheme, group_size, keep_top)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    for layer in layers.values():
        # Changing only the class keeps references to the layer, its parameters and its hooks valid.
        layer.__class__ = FakeQuantLinear
        vars(layer).update(scheme=scheme, group_size=group_size, keep_top=keep_top)
    for module, switch, off in _fast_paths(model):
        if any(isinstance(inside, FakeQuantLinear) for inside in module.modules()):
            vars(module).setdefault(_SAVED_SWITCH, getattr(module, switch))
            setattr(module, switch, off)
    return model


def dequantize_(model: Model) -> Model:
    """Turn every `FakeQuantLinear` back into the `nn.Linear` it was, in place, with its trained weight.

    Returns:
        The model itself.

    Raises:
        ValueError: the model has no `FakeQuantLinear`, or one that is parametrised.

    >>> model = quantize_linear_(nn.Sequential(nn.Linear(8, 8)), group_size=8)
    >>> type(dequantize_(model)[0]).__name__
    'Linear'
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, FakeQuantLinear)}
    if not layers:
        raise ValueError("nothing to dequantise: the model has no FakeQuantLinear")
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer):
            raise ValueError(f"layer {name!r} is parametrised: take the parametrisation out first")
    for layer in layers.values():
        layer.__class__ = nn.Linear  # type: ignore[assignment]
        for setting in ("scheme", "group_size", "keep_top"):
            delattr(layer, setting)
    for module, switch, _ in _fast_paths(model):
        if _SAVED_SWITCH in vars(module):
            setattr(module, switch, vars(module).pop(_SAVED_SWITCH))
    return model


def _fast_paths(model: nn.Module) -> Iterator[tuple[nn.Module, str, object]]:
    """Yield each module that in eval mode bypasses its layers' forward, its switch, and the off value."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            yield module, "activation_relu_or_gelu", 0
        elif isinstance(module, nn.TransformerEncoder):
            yield module, "use_nested_tensor", False


def _skipped(model: nn.Module, patterns: list[str]) -> tuple[set[nn.Module], set[str]]:
    """Return the modules that patterns name, with all inside them, and the names of skipped parameters."""
    first = {module: name for name, module in model.named_modules()}
    modules: set[nn.Module] = set()
    parameters: set[str] = set()
    for pattern in patterns:
        matched = False
        for name, module in model.named_modules(remove_duplicate=False):  # a shared layer has several names
            if _matches(name, pattern):
                modules.update(module.modules())
                matched = True
            for local in (*module._parameters, *module._buffers):
                if _matches(_join(name, local), pattern):
                    parameters.add(_join(first[module], local))
                    matched = True
        if not matched:
            raise ValueError(
                f"skip names {pattern!r}, which the model does not have: see model.named_modules()"
            )
    parameters |= {_join(first[m], local) for m in modules for local in (*m._parameters, *m._buffers)}
    return modules, parameters


def _error_text(
    model: nn.Module, found: list[MatrixParameter], quantized: set[nn.Module], patterns: list[str]
) -> str:
    """Name the parameters that would stay in full precision, and the `skip` that excludes them."""
    bypassed = bypassed_layers(model)
    names = {module: name for name, module in model.named_modules()}
    known = [name for name, _ in model.named_modules(remove_duplicate=False)]
    known += [name for name, _ in model.named_parameters(remove_duplicate=False)]
    text = "quantize_linear_ would leave parameters in full precision that are not skipped."
    for certain, heading in (
        (True, "These multiply, but are not the weight of a plain nn.Linear:"),
        (False, "These may multiply, which cannot be seen from outside:"),
    ):
        shapes: dict[str, dict[str, str]] = {}
        for f in found:
            if f.certain == certain:
                kind = _kind(f.module, bypassed)
                shape = "of unknown shape" if is_lazy(f.parameter) else str(tuple(f.parameter.shape))
                shapes.setdefault(kind, {})[f.name] = shape
        if shapes:
            text += f"\n{heading}"
        for kind, of_kind in shapes.items():
            for pattern, group in _patterns(of_kind, known).items():
                text += f"\n  {pattern}: {kind}, {', '.join(dict.fromkeys(of_kind[n] for n in group))}"
    skip = []
    for f in found:
        layer = bypassed.get(f.module, f.module)
        whole = f.certain and names[layer] and quantized.isdisjoint(layer.modules())
        skip.append(names[layer] if whole else f.name)
    return (
        f"{text}\nReplace what multiplies by a plain nn.Linear; skip the rest (such as a position embedding) "
        "and what should stay in full precision. To skip all of these, pass\n  "
        f"skip={[*patterns, *_patterns(skip, known)]}"
    )


def _kind(module: nn.Module, bypassed: dict[nn.Module, nn.Module]) -> str:
    """Return the class of a module, and why it is not quantised if it is an `nn.Linear`."""
    kind = parametrize.type_before_parametrizations(module)
    why = ""
    if module in bypassed:
        why = f", which {type(bypassed[module]).__name__} does not call"
    elif kind is nn.Linear and parametrize.is_parametrized(module):
        why = ", parametrised: take the parametrisation out"
    elif kind is nn.Linear and "forward" in vars(module):
        why = ", with a forward pass of its own, set on the object: take it off"
    return kind.__name__ + why


def _patterns(names: Iterable[str], known: Iterable[str]) -> dict[str, list[str]]:
    """Replace numbers by a star where the pattern then matches no other known name."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(name)
    patterns: dict[str, list[str]] = {}
    for pattern, group in groups.items():
        if len(group) > 1 and {name for name in known if fnmatchcase(name, pattern)} == set(group):
            patterns[pattern] = group
        else:
            patterns |= {name: [name] for name in group}
    return patterns


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _join(prefix: str, local: str) -> str:
    return f"{prefix}.{local}" if prefix else local


def _check(in_features: int, scheme: str, group_size: int, keep_top: int) -> None:
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme must be one of {', '.join(get_args(Scheme))}; got {scheme!r}")
    if group_size < 1 or in_features % group_size:
        raise ValueError(
            f"group_size must divide in_features; got in_features={in_features}, group_size={group_size}: "
            "pass a divisor, or skip the layer"
        )
    if not 0 <= keep_top < group_size:
        raise ValueError(f"keep_top must be from 0 to group_size - 1; got {keep_top} of {group_size}")
