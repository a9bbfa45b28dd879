"""Adapt the batch norms of a trained model to test data, and give back the model as it was.

`convert_alpha_bn`, `convert_test_batch_norm` and `convert_unmix_tns` replace every batch norm, and `restore`
is their inverse. A model that is converted already is restored first.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn

from trueup.adaptation._alpha_batch_norm import (
    AlphaBatchNorm,
    AlphaBatchNorm1d,
    AlphaBatchNorm2d,
    AlphaBatchNorm3d,
)
from trueup.adaptation._online_adapter import OnlineAdapter
from trueup.adaptation._source_batch_norm import SourceBatchNorm
from trueup.adaptation._unmix_tns import UnMixTNS, UnMixTNS1d, UnMixTNS2d, UnMixTNS3d
from trueup.nn import convert
from trueup.nn._module_references import find_references, updates

__all__ = ["convert_alpha_bn", "convert_test_batch_norm", "convert_unmix_tns", "restore"]

_Targets = dict[type[nn.Module], type[nn.Module]]

_ALPHA: _Targets = {
    nn.BatchNorm1d: AlphaBatchNorm1d,
    nn.BatchNorm2d: AlphaBatchNorm2d,
    nn.BatchNorm3d: AlphaBatchNorm3d,
    nn.SyncBatchNorm: AlphaBatchNorm,
}
_UNMIX: _Targets = {
    nn.BatchNorm1d: UnMixTNS1d,
    nn.BatchNorm2d: UnMixTNS2d,
    nn.BatchNorm3d: UnMixTNS3d,
    nn.SyncBatchNorm: UnMixTNS,
}


def convert_alpha_bn(
    model: nn.Module,
    source_weight: float = 0.5,
    *,
    prior_strength: float | None = None,
    unbiased: bool = False,
    detach_stats: bool = False,
    inplace: bool = False,
) -> nn.Module:
    """Replace every batch norm by one that mixes its statistics with those of the batch.

    `SyncBatchNorm` is replaced too, by a layer that shares statistics between processes if
    `torch.distributed` is initialized. A model without batch norm is returned as it is, with a warning.

    Args:
        model: a trained model. One that is converted already is restored first.
        source_weight: in [0, 1], the weight of the source's statistics.
        prior_strength, unbiased, detach_stats: see `AlphaBatchNorm1d`.
        inplace: change `model` rather than a copy.

    Returns:
        The converted model, which `restore` turns back.

    Raises:
        ValueError: an option is out of range, a batch norm without running statistics and a source weight
            above 0, or an error of `trueup.nn.convert`.

    Source: You et al. 2021 (arXiv 2110.04065).

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    >>> convert_alpha_bn(model, 0.7)[1]
    AlphaBatchNorm2d(8, eps=1e-05, affine=True, source_weight=0.7)
    """
    return _convert(
        model,
        _ALPHA,
        inplace,
        source_weight=source_weight,
        prior_strength=prior_strength,
        unbiased=unbiased,
        detach_stats=detach_stats,
    )


def convert_test_batch_norm(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Replace every batch norm by one that uses the statistics of the batch, in evaluation too.

    This is `convert_alpha_bn` with a source weight of 0, the usual baseline of test-time adaptation (TBN).

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()
    >>> convert_test_batch_norm(model)(torch.randn(16, 4)).mean().abs() < 1e-6
    tensor(True)
    """
    return _convert(model, _ALPHA, inplace, source_weight=0.0)


def convert_unmix_tns(
    model: nn.Module,
    num_components: int = 16,
    *,
    batch_size: int = 64,
    max_batch_size: int = 64,
    temperature: float = 0.07,
    init_coeff: float = 0.5,
    exact_variance: bool = False,
    momentum: float | None = None,
    generator: torch.Generator | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Replace every batch norm by one that normalizes each instance by components of the test stream.

    Every forward pass moves the components, in evaluation too, unless a layer's `frozen` is set. Layers with
    `(N, C)` inputs keep to the source statistics. `SyncBatchNorm` is replaced too, by a layer that moves its
    components by the batches of all processes if `torch.distributed` is initialized. A model without batch
    norm is returned as it is, with a warning.

    Args:
        model: a trained model. One that is converted already is restored first.
        num_components: K; 16 for one domain at a time, 128 for mixed ones in the official runs.
        batch_size, max_batch_size, temperature, init_coeff, exact_variance: see `UnMixTNS1d`.
        momentum: replaces the batch norms' own, which is used if None.
        generator: for the noise around the source statistics.
        inplace: change `model` rather than a copy.

    Returns:
        The converted model, which `restore` turns back.

    Raises:
        ValueError: an option is out of range, a batch norm without running statistics or without momentum,
            or an error of `trueup.nn.convert`.

    Source: Tomar et al. 2024 (arXiv 2401.08328).

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    >>> convert_unmix_tns(model, 4, generator=torch.Generator().manual_seed(0))[1].means.shape
    torch.Size([4, 8])
    """
    return _convert(
        model,
        _UNMIX,
        inplace,
        num_components=num_components,
        batch_size=batch_size,
        max_batch_size=max_batch_size,
        temperature=temperature,
        init_coeff=init_coeff,
        exact_variance=exact_variance,
        generator=generator,
        **({} if momentum is None else {"momentum": momentum}),
    )


def restore(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Give back the model that was converted, bit for bit.

    Every layer becomes the batch norm that it was: its class, its statistics, its affine parameters, also if
    an adapter trained them, and whether they require a gradient. Hooks and training mode are those of the
    layer. Other parts of the model stay as they are.

    Args:
        model: a model that one of the `convert_` functions returned, or an `OnlineAdapter`, whose other
            trained parameters, such as those of layer norms, are given back too. Any other is returned as it
            is.
        inplace: change `model` rather than a copy. The parameters are then the same objects.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    >>> restore(convert_unmix_tns(model))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    )
    """
    if not inplace:
        model = copy.deepcopy(model)
    if isinstance(model, OnlineAdapter):
        model.reset()
        model = model.model
    references = find_references(model)
    parents = [*model.modules()]
    replaced: dict[nn.Module, nn.Module] = {
        layer: layer.source() for layer in parents if isinstance(layer, SourceBatchNorm)
    }
    for update in updates(replaced, references):
        update()
    for parent in parents:
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    return replaced.get(model, model)


def _convert(model: nn.Module, targets: _Targets, inplace: bool, **options: Any) -> nn.Module:
    kinds = tuple(targets)
    if any(isinstance(module, SourceBatchNorm) for module in model.modules()):
        model, inplace = restore(model, inplace=inplace), True
    if not any(isinstance(module, kinds) for module in model.modules()):
        _check(targets, options)
        warnings.warn(_nothing_to_adapt(model), UserWarning, stacklevel=3)
        return model if inplace else copy.deepcopy(model)
    return convert(model, targets, inplace=inplace, **options)


def _check(targets: _Targets, options: dict[str, Any]) -> None:
    """Raise for options that are out of range, also where there is nothing to convert."""
    targets[nn.BatchNorm1d](1, device="meta", **options)


def _nothing_to_adapt(model: nn.Module) -> str:
    norms = sorted({type(m).__name__ for m in model.modules() if "norm" in type(m).__name__.lower()})
    if not norms:
        return "the model has no batch norm, so that there is nothing to adapt: it is returned as it is"
    return (
        f"the model has no batch norm; its norms are {', '.join(norms)}, which have no batch statistics to "
        "adapt: it is returned as it is. An OnlineAdapter can still train their affine parameters"
    )
