"""A model and the calibrator of its logits, as one module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from trueup.calibration._correctness_aware import CorrectnessAwareCalibrator, network_of

if TYPE_CHECKING:
    from typing import Self

__all__ = ["CalibratedModel"]


@runtime_checkable
class FittedTransform(Protocol):
    def fit(self, logits: Tensor, y: Tensor) -> object: ...

    def transform(self, logits: Tensor) -> Tensor: ...


class CalibratedModel(nn.Module):
    """Return the calibrated logits of a model.

    The gradient passes through the calibrator to the model, except through `HistogramCalibrator` and
    `IsotonicCalibrator`. The `state_dict` carries what the calibrator has fitted; it can be loaded into a
    model with a calibrator of the same class, fitted or not.

    Args:
        model: maps inputs to logits `(N, C)`, `(N, C, *positions)` or, for two classes, `(N,)`.
        calibrator: a calibrator of this package, fitted or not, or anything with its `fit` and `transform`
            that keeps what it has fitted in numbers and arrays whose names end in an underscore.

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

    def get_extra_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"calibrator": type(self.calibrator).__name__}
        for name, value in self._fitted().items():
            if isinstance(value, nn.Module) and isinstance(self.calibrator, CorrectnessAwareCalibrator):
                state[name] = value.state_dict()
            elif isinstance(value, int | float | list | np.number | np.ndarray):
                array = np.asarray(value)
                if array.dtype.kind in "biuf":  # not the names of a table's columns
                    state[name] = torch.from_numpy(array.copy())  # in double precision
            else:
                raise TypeError(
                    f"{name} of {state['calibrator']} is a {type(value).__name__}, which its state cannot "
                    "hold: keep what was fitted in numbers or NumPy arrays, or pickle the model"
                )
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        name = type(self.calibrator).__name__
        if state["calibrator"] != name:
            raise RuntimeError(
                f"this state is that of a {state['calibrator']}, and the model has a {name}: make the "
                "CalibratedModel with the calibrator that was fitted"
            )
        for attribute in self._fitted():
            delattr(self.calibrator, attribute)
        for attribute, value in state.items():
            if isinstance(value, dict):
                setattr(self.calibrator, attribute, network_of(value))
            elif isinstance(value, Tensor):
                fitted = value.item() if value.dim() == 0 else value.cpu().numpy()
                setattr(self.calibrator, attribute, fitted)

    def _fitted(self) -> dict[str, Any]:
        """Return what `fit` has set: attributes whose names end in one underscore, as in scikit-learn."""
        return {
            name: value
            for name, value in vars(self.calibrator).items()
            if name.endswith("_") and not name.startswith("_")
        }
