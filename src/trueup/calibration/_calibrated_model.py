"""A model and the calibrator of its logits, as one module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import Self

__all__ = ["CalibratedModel"]


class FittedTransform(Protocol):
    def fit(self, logits: Tensor, y: Tensor) -> object: ...

    def transform(self, logits: Tensor) -> Tensor: ...


class CalibratedModel(nn.Module):
    """Return the calibrated logits of a model.

    The gradient passes through the calibrator to the model. The `state_dict` carries what the calibrator has
    fitted.

    Args:
        model: maps inputs to logits `(N, C)`, `(N, C, *positions)` or, for two classes, `(N,)`.
        calibrator: a calibrator of this package, fitted or not, or anything with its `fit` and `transform`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from trueup.calibration import TemperatureScaler
        >>> net = nn.Linear(4, 3)
        >>> x = torch.randn(100, 4)
        >>> y = net(x).softmax(1).multinomial(1)[:, 0]
        >>> model = CalibratedModel(net, TemperatureScaler()).fit([(x, y)])
        >>> torch.equal(model(x), net(x) / model.calibrator.temperature_)
        True
    """

    def __init__(self, model: nn.Module, calibrator: FittedTransform) -> None:
        super().__init__()
        self.model = model
        self.calibrator = calibrator

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Fit the calibrator to held-out batches `(x, y)`; the model itself does not change.

        The model is in evaluation mode meanwhile; inputs go to the device of its parameters.

        Raises:
            ValueError: no batches, and what the calibrator's `fit` raises.
        """
        modes = {module: module.training for module in self.model.modules()}
        parameter = next(self.model.parameters(), None)
        logits, labels = [], []
        self.model.eval()
        try:
            with torch.no_grad():
                for x, y in batches:
                    logits.append(self.model(x if parameter is None else x.to(parameter.device)))
                    labels.append(y)
        finally:
            for module, training in modes.items():
                module.training = training
        if not logits:
            raise ValueError(
                "CalibratedModel.fit needs at least one batch (x, y); got none: check the loader"
            )
        self.calibrator.fit(torch.cat(logits), torch.cat(labels))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.calibrator.transform(self.model(x))

    def get_extra_state(self) -> dict[str, Tensor]:
        return {
            name: torch.as_tensor(value)
            for name, value in vars(self.calibrator).items()
            if name.endswith("_") and isinstance(value, int | float | np.ndarray)
        }

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            setattr(self.calibrator, name, value.item() if value.dim() == 0 else value.cpu().numpy())
