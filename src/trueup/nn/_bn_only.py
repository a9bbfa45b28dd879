"""Train only the scale and shift of the norm layers, and the paper's controls for this experiment.

A network can learn features, or it can scale and shift random ones. To see how far the second alone goes, the
paper keeps every weight at its random start and trains the affine parameters of the norm layers, about 0.5 %
of a ResNet. `train_only` trains any of the three parts of a model: norm layers, output layer and others. The
control trains as many weights chosen at random, 2 per filter:

    w = frozen.masked_scatter(mask, values),     values: the trained entries, a vector.

Frankle, Schwab, Morcos: Training BatchNorm and Only BatchNorm, ICLR 2021, arXiv 2003.00152. The official code
supports BatchNorm2d only; here every norm layer of torch counts, and no optimizer can change a masked entry.
Norm layers stay in training mode and update their running statistics, as in the paper.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from trueup.nn._parametrize_weights import own_class
from trueup.nn._table import Table
from trueup.nn._wrapped import refuse_wrapped

__all__ = [
    "NormAffine",
    "freeze_all_but_norm_affine",
    "norm_affine_report",
    "random_parameter_mask",
    "reinit_norm_affine",
    "train_masked",
    "train_only",
]

Part = Literal["norm", "output", "others"]
Kinds = tuple[type[nn.Module], ...]

# In torch, batch, synchronized and instance normalization derive from _NormBase.
NORM_LAYERS: Kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def train_only(
    model: nn.Module,
    *parts: Part,
    output_layer: str | None = None,
    also_train: Collection[str] = (),
    norm_layers: Kinds = NORM_LAYERS,
) -> list[str]:
    """Train some parts of the model and freeze the others, by setting `requires_grad`.

    Build the optimizer afterwards and give it only the trainable parameters. An optimizer that holds frozen
    parameters may still change them, by momentum and weight decay.

    Args:
        model: any module with norm layers that have affine parameters.
        *parts: any of `"norm"` (weight and bias of the norm layers), `"output"` (the output layer) and
            `"others"` (the rest). Without parts, everything is frozen.
        output_layer: name of the output layer; by default the last `nn.Linear`.
        also_train: names of parameters of the part `"others"` to train even if that part is frozen.
        norm_layers: the classes that count as norm layers, with their subclasses.

    Returns:
        Names of the trainable parameters, in the order of `model.named_parameters()`. A parameter that
        several layers share is listed once.

    Raises:
        ValueError: no norm layer has affine parameters; a part or name is unknown; the output layer is
            needed to separate `"output"` from `"others"`, but is not found or has no parameters.

    Source: section 3 of the paper.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
    >>> train_only(model, "norm", "output")
    ['1.weight', '1.bias', '3.weight', '3.bias']
    >>> train_only(model, "output", also_train=["0.bias"])
    ['0.bias', '3.weight', '3.bias']
    """
    for part in parts:
        if part not in get_args(Part):
            raise ValueError(f"parts must be among 'norm', 'output' and 'others'; got {part!r}")
    names = dict(model.named_parameters())
    norm = {p for _, layer in _norms(model, norm_layers) for p in layer.parameters()}
    output: set[nn.Parameter] = set()
    if output_layer is not None or ("output" in parts) != ("others" in parts):
        output = set(_output(model, output_layer).parameters())

    part_of = {
        name: "norm" if p in norm else "output" if p in output else "others" for name, p in names.items()
    }
    for name in also_train:
        _known(name, names, "parameter")
        if part_of[name] != "others" and part_of[name] not in parts:
            raise ValueError(
                f"also_train names {name!r}, which belongs to the part {part_of[name]!r}: train that part"
            )
    for name, parameter in names.items():
        parameter.requires_grad_(part_of[name] in parts or name in also_train)
    return [name for name, parameter in names.items() if parameter.requires_grad]


def freeze_all_but_norm_affine(
    model: nn.Module,
    *,
    train_output: bool = False,
    output_layer: str | None = None,
    also_train: Collection[str] = (),
    norm_layers: Kinds = NORM_LAYERS,
) -> list[str]:
    """Train the scale and shift of the norm layers, and with `train_output` the output layer.

    This is the paper's method. Arguments, result and errors are those of `train_only`. The paper draws the
    initial weights with `reinit_norm_affine`, and applies weight decay to them as to any other.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
    >>> reinit_norm_affine(model)
    >>> freeze_all_but_norm_affine(model)
    ['1.weight', '1.bias']
    >>> optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)
    """
    parts: tuple[Part, ...] = ("norm", "output") if train_output else ("norm",)
    return train_only(
        model, *parts, output_layer=output_layer, also_train=also_train, norm_layers=norm_layers
    )


@torch.no_grad()
def reinit_norm_affine(
    model: nn.Module,
    weight: Literal["uniform", "ones", "uniform_pm1"] = "uniform",
    bias: float = 0.0,
    *,
    generator: torch.Generator | None = None,
    norm_layers: Kinds = NORM_LAYERS,
) -> None:
    """Redraw the weights of the norm layers and reset their biases, in place.

    Args:
        model: any module with norm layers that have affine parameters.
        weight: `"uniform"` on [0, 1), as in the paper; `"ones"`, as in torch; `"uniform_pm1"` on [-1, 1).
        bias: the value of every bias.
        generator: the random generator, on the device of the weights. Layers are drawn in order.
        norm_layers: see `train_only`.

    Raises:
        ValueError: `weight` is none of these; no norm layer has affine parameters, or one is parametrised.

    >>> norm = nn.BatchNorm2d(1000)
    >>> reinit_norm_affine(norm, "uniform_pm1")
    >>> bool(norm.weight.min() < -0.9 and norm.weight.max() > 0.9)
    True
    """
    bounds = {"uniform": (0.0, 1.0), "ones": (1.0, 1.0), "uniform_pm1": (-1.0, 1.0)}
    if weight not in bounds:
        raise ValueError(f"weight must be one of {', '.join(map(repr, bounds))}; got {weight!r}")
    for name, layer in _norms(model, norm_layers):
        if parametrize.is_parametrized(layer):
            raise ValueError(
                f"{name or 'the model'} is parametrised: call remove_parametrizations first, and parametrise "
                "it again afterwards"
            )
        if layer.weight is not None:
            layer.weight.uniform_(*bounds[weight], generator=generator)
        if getattr(layer, "bias", None) is not None:
            layer.bias.fill_(bias)


def random_parameter_mask(
    model: nn.Module, per_channel: int = 2, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Choose random weights of each filter, for a control of the same size as the norm layers' parameters.

    Args:
        model: any module with convolutions.
        per_channel: weights to choose per output channel of each convolution, without replacement. A norm
            layer has 2 affine parameters per channel.
        generator: a random generator on the CPU, for a reproducible choice.

    Returns:
        A boolean mask per convolution, by the name of its weight and of the same shape; True where chosen.

    Raises:
        ValueError: the model has no convolution, or one whose filters have fewer than `per_channel` weights.

    Source: section 3 of the paper, "random parameters".

    >>> mask = random_parameter_mask(nn.Conv2d(3, 8, 3))["weight"]
    >>> mask.shape, mask.sum((1, 2, 3)).tolist()
    (torch.Size([8, 3, 3, 3]), [2, 2, 2, 2, 2, 2, 2, 2])
    """
    if per_channel < 1:
        raise ValueError(f"per_channel must be at least 1; got {per_channel}")
    masks = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        filters = layer.weight.flatten(1)
        if filters.shape[1] < per_channel:
            raise ValueError(
                f"each filter of {name or 'the model'} has {filters.shape[1]} weights, fewer than "
                f"per_channel={per_channel}: choose fewer"
            )
        # The positions of the largest of independent draws are a uniform choice without replacement.
        chosen = torch.rand(filters.shape, generator=generator, device="cpu").topk(per_channel).indices
        mask = torch.zeros(filters.shape, dtype=torch.bool, device="cpu").scatter_(1, chosen, True)
        masks[f"{name}.weight".lstrip(".")] = mask.view(layer.weight.shape).to(layer.weight.device)
    if not masks:
        raise ValueError("the model has no Conv1d, Conv2d or Conv3d to draw weights from")
    return masks


def train_masked(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    train_output: bool = False,
    output_layer: str | None = None,
) -> list[str]:
    """Train the entries of some weights where a mask is True, and freeze everything else.

    Each weight is parametrised with `torch.nn.utils.parametrize`: a vector holds the trained entries, and a
    buffer the others. An optimizer, with its momentum and weight decay, sees only the vector, so that the
    other entries stay bit-identical. Build the optimizer afterwards, because the state that one keeps for a
    weight does not fit the vector. `parametrize.remove_parametrizations(layer, "weight")` restores a plain
    weight.

    Args:
        model: any module. Its parametrised layers can be copied, but not pickled as a whole.
        masks: boolean masks by the names of weights and of their shapes, such as `random_parameter_mask`
            returns.
        train_output, output_layer: as in `freeze_all_but_norm_affine`.

    Returns:
        Names of the trainable parameters.

    Raises:
        ValueError: there is no mask; a name is unknown; a mask has another shape than its weight; a weight is
            shared by several layers or parametrised; the output layer is to be trained but not found; the
            model is wrapped for distributed training.
        TypeError: a mask is not boolean.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> names = train_masked(model, random_parameter_mask(model))
    >>> names, model.get_parameter(names[0]).shape
    (['0.parametrizations.weight.original'], torch.Size([16]))
    """
    if not masks:
        raise ValueError("no masks: pass a mask for at least one weight")
    refuse_wrapped(model)
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    names = {name: parameter for parameter, alike in owners.items() for name in alike}
    layers = {}
    parametrised = {
        f"{path}.{tensor}".lstrip(".")
        for path, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for tensor in module.parametrizations
    }
    for name, mask in masks.items():
        if name in parametrised or ".parametrizations." in f".{name}":
            raise ValueError(f"{name} belongs to a parametrised layer: call remove_parametrizations first")
        _known(name, names, "parameter")
        path, _, attribute = name.rpartition(".")
        layer, weight = model.get_submodule(path), names[name]
        if len(owners[weight]) > 1:
            raise ValueError(
                f"{name} is shared, as {' and '.join(owners[weight])}, and masking would untie it"
            )
        if mask.dtype != torch.bool:
            raise TypeError(f"the mask of {name} must be boolean, True where to train; got {mask.dtype}")
        if mask.shape != weight.shape:
            raise ValueError(
                f"the mask of {name} must have the weight's shape {tuple(weight.shape)}; "
                f"got {tuple(mask.shape)}"
            )
        layers[name] = layer, attribute
    output = set(_output(model, output_layer).parameters()) if train_output else set()

    for parameter in model.parameters():
        parameter.requires_grad_(parameter in output)
    for name, (layer, attribute) in layers.items():
        weight = getattr(layer, attribute)
        # The parameter object becomes the vector, and would keep a gradient of the old shape.
        weight.grad = None
        entries = _MaskedEntries(masks[name], weight.detach().clone())
        own_class(layer)
        parametrize.register_parametrization(layer, attribute, entries)
        layer.parametrizations[attribute].original.requires_grad_(True)  # type: ignore[index, union-attr]
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


class _MaskedEntries(nn.Module):
    """A parametrisation that takes the entries of a weight under a mask from the vector `values`."""

    mask: Tensor
    frozen: Tensor

    def __init__(self, mask: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(weight.device))
        self.register_buffer("frozen", weight)

    def forward(self, values: Tensor) -> Tensor:
        return self.frozen.masked_scatter(self.mask, values)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight[self.mask]


class NormAffine(NamedTuple):
    """A row of `norm_affine_report`: the distribution of the absolute weights of a norm layer."""

    layer: str
    features: int
    disabled: float
    q05: float
    median: float
    q95: float


@torch.no_grad()
def norm_affine_report(
    model: nn.Module, threshold: float = 1e-2, *, norm_layers: Kinds = NORM_LAYERS
) -> Table[NormAffine]:
    """Report the share of disabled features and the distribution of absolute weights of each norm layer.

    Args:
        model: any module with norm layers that have affine parameters.
        threshold: a feature is disabled if the absolute value of its weight is below this.
        norm_layers: see `train_only`.

    Returns:
        One row per layer, and a last row `"(all)"` for all layers together: the number of features, the share
        of them that is disabled, in [0, 1], and the 5 %, 50 % and 95 % quantiles of the absolute weights, in
        float32. Prints as a table.

    Raises:
        ValueError: the threshold is negative, or no norm layer has affine parameters.

    Source: section 4 of the paper. About a third of the features is disabled after training only the norm
    layers.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    >>> _ = model[1].weight.data.copy_(torch.tensor([0.0, -1.0, 2.0, 3.0]))
    >>> print(norm_affine_report(model))
    layer  features  disabled  q05   median  q95
    1      4         0.25      0.15  1.5     2.85
    (all)  4         0.25      0.15  1.5     2.85
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative; got {threshold}")
    sizes = {
        name: layer.weight.float().abs().flatten().cpu()
        for name, layer in _norms(model, norm_layers)
        if layer.weight is not None
    }
    sizes["(all)"] = torch.cat(list(sizes.values()))
    return Table(_distribution(name, size, threshold) for name, size in sizes.items())


def _distribution(name: str, size: Float[Tensor, " features"], threshold: float) -> NormAffine:
    disabled = float((size < threshold).float().mean())
    # torch.quantile limits the number of values, numpy does not.
    return NormAffine(name, len(size), disabled, *np.quantile(size.numpy(), (0.05, 0.5, 0.95)).tolist())


def _norms(model: nn.Module, kinds: Kinds) -> list[tuple[str, Any]]:
    """Return the norm layers that have affine parameters, each once."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, kinds) and next(module.parameters(), None) is not None
    ]
    if not found:
        raise ValueError(
            "the model has no norm layer with affine parameters, of the classes "
            f"{', '.join(kind.__name__ for kind in kinds)}: pass norm_layers=(YourNorm,) if it has its own"
        )
    return found


def _output(model: nn.Module, name: str | None) -> nn.Module:
    if name is not None:
        _known(name, dict(model.named_modules()), "module")
        module = model.get_submodule(name)
        if next(module.parameters(), None) is None:
            raise ValueError(f"output_layer={name!r} is a {type(module).__name__}, which has no parameters")
        return module
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("the model has no nn.Linear as its output layer: pass output_layer=NAME")
    return linear[-1]


def _known(name: str, names: Iterable[str], what: str) -> None:
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"the model has no {what} {name!r}{hint}")
