"""The base of all calibrators: scikit-learn's interface, checks, and conversion of shapes and types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import _check_feature_names, check_array, check_is_fitted
from torch import Tensor

from trueup._numerics.upcasting import upcast
from trueup.calibration._validation import (
    ArrayLike,
    check_label_shape,
    check_logits,
    check_target,
    from_numpy,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Array", "Calibrator", "check_labels", "check_weight", "to_rows"]

Array = TypeVar("Array", Tensor, NDArray[Any])


class Calibrator(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A map of logits to calibrated logits, fitted on held-out data.

    A subclass sets its attributes in `_fit(rows, labels, weight)` and maps in `_map(rows)`, both on rows of
    at least two logits. Binary logits `(N,)` become the rows `(0, logit)`; positions become rows.
    """

    def fit(self, logits: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to held-out logits and labels.

        Args:
            logits: `(N, C)`, `(N, C, *positions)`, or `(N,)` for the logit of class 1 of two; a tensor, or
                what scikit-learn takes as an array. Log-probabilities are logits.
            y: class indices in `[0, C)`, `(N,)` or `(N, *positions)`.
            sample_weight: one non-negative weight per label; a weight of 2 counts as two equal samples.

        Raises:
            TypeError: labels are not integers.
            ValueError: NaN or +inf in logits, a single class, labels out of range, another number of labels
                than rows, negative weights or weights that are all zero.
        """
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None: pass labels"
            )
        tensor = self._tensor(logits, reset=True)
        rows = to_rows(tensor)
        labels = check_labels(y, tensor)
        self._fit(rows.detach(), labels, check_weight(sample_weight, tensor))
        return self

    def transform(self, logits: Array) -> Array:
        """Return calibrated logits, in the shape and type of `logits` (half precision becomes float32).

        Raises:
            ValueError: NaN or +inf in logits, or another number of classes than in `fit`.
            NotFittedError: before `fit`.
        """
        check_is_fitted(self)
        tensor = self._tensor(logits, reset=False)
        calibrated = self._map(to_rows(tensor))
        if tensor.dim() == 1:
            calibrated = calibrated[:, 1] - calibrated[:, 0]
        else:
            positions = tensor.shape[:1] + tensor.shape[2:]
            calibrated = calibrated.unflatten(0, positions).movedim(-1, 1)
        calibrated = calibrated.to(upcast(tensor[:0]).dtype)
        return calibrated if isinstance(logits, Tensor) else calibrated.numpy()

    def predict_proba(self, logits: Array) -> Array:
        """Return calibrated probabilities in the shape of `logits`; `(N,)` is the probability of class 1.

        There is no `predict`: the predicted class is the largest probability.

        Raises:
            ValueError: NaN or +inf in logits, or another number of classes than in `fit`.
            NotFittedError: before `fit`.
        """
        calibrated = self.transform(logits)
        tensor = calibrated if isinstance(calibrated, Tensor) else torch.from_numpy(calibrated)
        probs = tensor.sigmoid() if tensor.dim() == 1 else tensor.softmax(1)
        return probs if isinstance(logits, Tensor) else probs.numpy()

    def score(self, logits: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the mean log-likelihood of the labels, which is higher for better calibrators.

        Probabilities are clipped at the machine epsilon of float64, as in `sklearn.metrics.log_loss`.

        Raises:
            TypeError, ValueError: as in `fit`.
            NotFittedError: before `fit`.
        """
        check_is_fitted(self)
        tensor = self._tensor(logits, reset=False)
        rows = self._map(to_rows(tensor)).detach().double()
        labels = check_labels(y, tensor)
        likelihood = rows.log_softmax(1).gather(1, labels[:, None])[:, 0]
        likelihood = likelihood.clamp_min(float(np.log(np.finfo(np.float64).eps)))
        weight = check_weight(sample_weight, tensor)
        return float(likelihood.mean() if weight is None else weight @ likelihood / weight.sum())

    def _fit(self, rows: Tensor, labels: Tensor, weight: Tensor | None) -> None:
        raise NotImplementedError

    def _map(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def _tensor(self, logits: ArrayLike, *, reset: bool) -> Tensor:
        """Check the logits; return them as a tensor of the shape they came in."""
        if isinstance(logits, Tensor):
            tensor = logits
        else:
            _check_feature_names(self, logits, reset=reset)
            tensor = from_numpy(
                check_array(
                    logits,
                    dtype=[np.float64, np.float32, np.float16],
                    ensure_all_finite=False,
                    ensure_2d=False,
                    allow_nd=True,
                    estimator=self,
                )
            )
        classes = tensor.shape[1] if tensor.dim() > 1 else 1
        if reset:
            self.n_features_in_ = classes
        elif classes != self.n_features_in_:
            if tensor.dim() == 1:
                raise ValueError(
                    f"Expected 2D array of logits (N, {self.n_features_in_}), got 1D array instead. "
                    "Reshape your data with logits.reshape(1, -1) if it is a single sample"
                )
            raise ValueError(
                f"X has {classes} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input: pass logits of the classes that it was fitted on"
            )
        check_logits(tensor)
        return tensor

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def to_rows(tensor: Tensor) -> Tensor:
    """Return `(rows, classes)` in float32 or better; a single logit becomes the two logits (0, logit)."""
    values = upcast(tensor)
    if values.dim() == 1:
        return torch.stack([torch.zeros_like(values), values], 1)
    if values.shape[1] == 1:
        raise ValueError(
            "logits must be of two classes or more; got n_features=1: pass the logits of class 1 of a binary "
            "problem as (N,)"
        )
    return values.movedim(1, -1).flatten(0, -2)


def check_labels(y: ArrayLike, logits: Tensor) -> Tensor:
    """Return one class index per row of logits; arrays may hold them as floats, as in scikit-learn."""
    if not isinstance(y, Tensor):
        array = np.asarray(y)
        if array.dtype == object:
            array = np.array(array.tolist())
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"Unknown label type: y must be class indices; got {array.dtype}: encode the labels with "
                "sklearn.preprocessing.LabelEncoder"
            )
        if array.dtype.kind == "f" and (array == np.rint(array)).all():
            array = array.astype(np.int64)
        y = from_numpy(array)
    classes = logits.shape[1] if logits.dim() > 1 else 2
    return check_target(y, tuple(logits.shape), classes).to(logits.device)


def check_weight(sample_weight: ArrayLike | None, logits: Tensor) -> Tensor | None:
    """Return one float64 weight per row of logits, or None."""
    if sample_weight is None:
        return None
    weight = from_numpy(sample_weight).to(logits.device, torch.float64)
    check_label_shape("sample_weight", weight, tuple(logits.shape))
    weight = weight.flatten()
    if not (weight.isfinite() & (weight >= 0)).all():
        raise ValueError(
            "Negative values in data passed as `sample_weight`, or NaN or infinity: "
            "weights must be finite and 0 or more"
        )
    if not weight.any():
        raise ValueError("sample_weight is zero for all samples: give at least one sample a positive weight")
    return weight
