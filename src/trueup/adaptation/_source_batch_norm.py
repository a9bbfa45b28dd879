"""The base of layers that take the place of a trained batch norm: they keep its values and can restore it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trueup.nn._estimated_batch_norm import BatchPart
from trueup.nn._module_references import MODULE_ATTRIBUTES
from trueup.nn._validation import check_eps, check_momentum

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Group", "SourceBatchNorm"]

Group = dist.ProcessGroup | Literal["world"] | None

_AFFINE = ("weight", "bias")


@dataclass(frozen=True)
class _Record:
    """Class, attributes and `requires_grad` of the parameters of the batch norm."""

    kind: type[nn.Module]
    attributes: dict[str, Any]
    requires_grad: tuple[bool, bool] = (True, True)


class SourceBatchNorm(BatchPart):
    """Parameters and statistics of a batch norm under torch's names, and its affine part at conversion.

    The statistics never change. The affine part may be trained; `initial_weight` and `initial_bias` keep what
    it was. A state dict of a batch norm can be loaded, and becomes the source.
    """

    _ranks: ClassVar[tuple[int, ...]] = (2, 3, 4, 5)
    _shape: ClassVar[str] = "(N, C) or (N, C, ...)"
    _source: ClassVar[type[nn.Module]] = nn.SyncBatchNorm
    initial_weight: Tensor | None
    initial_bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        process_group: Group,
    ) -> None:
        check_eps(eps)
        check_momentum(momentum)
        super().__init__(num_features, affine, track_running_stats, device, dtype)
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.process_group = process_group
        self._keep_affine()
        names = ("num_features", "eps", "momentum", "affine", "track_running_stats")
        self._record = _Record(self._source, {name: getattr(self, name) for name in names})

    def reset(self) -> None:
        """Forget the stream: restore the buffers as they were at conversion. The affine part stays."""

    @classmethod
    def from_module(cls, module: nn.Module, **options: Any) -> Self:
        """Build the layer from a trained batch norm, whose values are copied; `convert` calls this.

        A `SyncBatchNorm` is accepted, and its layer shares statistics as it would.

        Raises:
            TypeError: the module is not a batch norm.
            ValueError: an option is out of range, or does not fit the module.
        """
        if not isinstance(module, _BatchNorm):
            raise TypeError(
                f"{cls.__name__} takes the place of a batch norm; got {type(module).__name__}: pass a "
                f"torch.nn.{cls._source.__name__}"
            )
        settings: dict[str, Any] = {
            "num_features": module.num_features,
            "eps": module.eps,
            "momentum": module.momentum,
            "affine": module.weight is not None,
            "track_running_stats": module.running_mean is not None,
        }
        if isinstance(module, nn.SyncBatchNorm):
            settings["process_group"] = module.process_group or "world"
        like = module.running_mean if module.weight is None else module.weight
        if like is not None:
            settings |= {"device": like.device, "dtype": like.dtype}
        layer = cls(**(settings | options))
        with torch.no_grad():
            for name in (*_AFFINE, "running_mean", "running_var", "num_batches_tracked"):
                value = getattr(module, name)
                if value is not None:
                    getattr(layer, name).copy_(value)
                    if name in _AFFINE:
                        getattr(layer, name).requires_grad_(value.requires_grad)
                elif name == "bias":  # BatchNorm2d(..., bias=False)
                    layer.bias = None
        layer._keep_affine()
        layer._record = _Record(
            type(module),
            {name: value for name, value in vars(module).items() if name not in MODULE_ATTRIBUTES},
            (_requires_grad(module.weight), _requires_grad(module.bias)),
        )
        layer.reset()
        return layer.train(module.training)

    def source(self) -> nn.Module:
        """Return the batch norm that this layer came from, with this layer's tensors and hooks.

        The affine parameters get the values that they had. The training mode is the layer's.
        """
        record = self._record
        module = record.kind.__new__(record.kind)
        nn.Module.__init__(module)
        vars(module).update(copy.copy(record.attributes))
        for name, requires_grad in zip(_AFFINE, record.requires_grad, strict=True):
            parameter = getattr(self, name)
            if parameter is not None:
                with torch.no_grad():
                    parameter.copy_(getattr(self, f"initial_{name}"))
                parameter.requires_grad_(requires_grad).grad = None
            module.register_parameter(name, parameter)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            persistent = name not in self._non_persistent_buffers_set
            module.register_buffer(name, getattr(self, name), persistent)
        vars(module).update({name: vars(self)[name] for name in MODULE_ATTRIBUTES if "_hook" in name})
        return module.train(self.training)

    def _keep_affine(self) -> None:
        """Remember the affine part as it is now."""
        for name in _AFFINE:
            parameter = getattr(self, name)
            if parameter is None:
                # An attribute: torch.export miscounts buffers after one that is None.
                self._buffers.pop(f"initial_{name}", None)
                vars(self)[f"initial_{name}"] = None
            else:
                self._buffers[f"initial_{name}"] = parameter.detach().clone()

    def _group(self) -> dist.ProcessGroup | None:
        if isinstance(self.process_group, str):
            shared = dist.is_available() and dist.is_initialized()
            return dist.group.WORLD if shared else None
        return self.process_group

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in _AFFINE:
            if f"{prefix}{name}" in state_dict and getattr(self, name) is not None:
                state_dict.setdefault(f"{prefix}initial_{name}", state_dict[f"{prefix}{name}"])
        super()._load_from_state_dict(state_dict, prefix, *args)


def _requires_grad(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.requires_grad
