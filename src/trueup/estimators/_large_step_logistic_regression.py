"""Logistic regression that looks for a separating hyperplane, with arbitrarily large steps.

Many problems are linearly separable today: they have more features than samples, or features that a large
network computed. Any step size then finds a hyperplane without training errors, large ones find it soonest,
and the loss on the way, at times in the thousands, says nothing about progress. Plain gradient descent slows
down when few samples are left, as with a rare class. Dividing the gradient by the mean misclassification
weight avoids that; `trueup.optim.large_step_descent` has the equations.

Alexander Tyurin, From Logistic Regression to the Perceptron Algorithm, AAAI 2025, arXiv 2412.08424; there is
no official code. Here the intercept is the weight of a constant feature of 1. Where no hyperplane separates
the classes, the iterate with the fewest training errors is kept: the last one is no better than any other.
"""

from __future__ import annotations

import math
import numbers
import warnings
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch.nn import functional as F

from trueup.optim._large_step_descent import Mode, large_step_descent

if TYPE_CHECKING:
    from typing import Self


class LargeStepLogisticRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Binary linear classifier for separable data, fitted by full-batch descent with large steps.

    A larger `lr` needs fewer steps, almost without limit; scale samples to norms of about 1. The scale of
    `coef_` follows that of the steps and has no meaning, so there are no probabilities: wrap the estimator
    in `sklearn.calibration.CalibratedClassifierCV` to get them.

    Args:
        lr: step size, finite and above 0; the perceptrons ignore it.
        max_iter: largest number of steps, at least 1.
        fit_intercept: append a constant feature of 1 to the data, whose weight is the intercept.
        mode: `"normalized"`, the paper's method; `"lrgd"`, plain gradient descent;
            `"normalized_batch_perceptron"` and `"batch_perceptron"`, the limits of these two for infinite
            steps; for comparison `"inverse_loss"` and `"unit_gradient"`, which divide the gradient by the
            loss and by its norm.
        warm_start: start at the coefficients of the last fit instead of at zero.

    Attributes:
        classes_: the two labels, sorted; a positive score means the second.
        coef_: of shape `(1, features)`.
        intercept_: of shape `(1,)`; 0 without `fit_intercept`.
        n_iter_: number of steps taken.
        separated_: whether all training samples of positive weight are classified correctly.
        loss_curve_: mean logistic loss after each step.
        error_curve_: share of training samples that are misclassified or on the boundary, after each step.
        n_features_in_: number of features.
        feature_names_in_: names of features, if the input had names.

    Raises (`fit`): ValueError for a parameter out of range, labels that are not of two classes, NaN or
    infinity in X or in the scores (from huge features and steps), and negative weights. It warns with
    ConvergenceWarning if `max_iter` steps do not separate the classes.

    Source: section 8 and table 1 of the paper.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> rows = (y == 3) | (y == 8)
        >>> model = LargeStepLogisticRegression(lr=1000).fit(X[rows] / 16, y[rows])
        >>> model.separated_, model.score(X[rows] / 16, y[rows])
        (True, 1.0)
        >>> bool(max(model.loss_curve_) > 1000 and model.n_iter_ < 100)
        True
    """

    def __init__(
        self,
        lr: float = 100.0,
        *,
        max_iter: int = 10_000,
        fit_intercept: bool = True,
        mode: Mode = "normalized",
        warm_start: bool = False,
    ) -> None:
        self.lr = lr
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept
        self.mode = mode
        self.warm_start = warm_start

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Step until all samples are classified correctly.

        Args:
            X: of shape `(samples, features)`.
            y: labels of two classes, of shape `(samples,)`.
            sample_weight: one non-negative weight per sample; a sample of weight 2 counts as two equal
                samples, one of weight 0 is ignored.

        Raises:
            ValueError: see the class.
        """
        self._check_parameters()
        features, labels = validate_data(self, X, y, dtype=np.float64)
        weight = _check_sample_weight(sample_weight, features, dtype=np.float64, ensure_non_negative=True)
        counted = weight > 0
        sign = self._signs(labels, counted)
        Z = np.ones((int(counted.sum()), features.shape[1] + bool(self.fit_intercept)))
        Z[:, : features.shape[1]] = features[counted]
        Z *= sign[:, None]

        theta = self._descend(torch.from_numpy(Z), torch.from_numpy(weight[counted])).numpy()
        self.coef_: NDArray[np.float64] = theta[None, : features.shape[1]]
        self.intercept_: NDArray[np.float64] = (
            theta[features.shape[1] :] if self.fit_intercept else np.zeros(1)
        )
        return self

    def decision_function(self, X: ArrayLike) -> Float[NDArray[np.float64], " samples"]:
        """Return the scores `X @ coef_ + intercept_`; positive means `classes_[1]`."""
        check_is_fitted(self, "coef_")
        features = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(features @ self.coef_[0] + self.intercept_[0])

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the label of each sample."""
        positive = self.decision_function(X) > 0
        return np.asarray(self.classes_[positive.astype(np.intp)])

    def _descend(self, Z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Run the descent and set the curves and counts; return the iterate to keep."""
        weight = weight / weight.max()  # their sum may overflow
        weight = weight / weight.sum()
        start = None
        if self.warm_start and hasattr(self, "coef_"):
            before = np.concatenate([self.coef_[0], self.intercept_])
            features = Z.shape[1] - bool(self.fit_intercept)
            if len(before) != features + 1:
                raise ValueError(
                    f"warm_start continues from {len(before) - 1} coefficients, but X has {features} "
                    "features: fit a new estimator, or set warm_start=False"
                )
            start = torch.from_numpy(before[: Z.shape[1]])
        self.loss_curve_: list[float] = []
        self.error_curve_: list[float] = []
        best, fewest = Z.new_zeros(Z.shape[1]), math.inf
        descent = large_step_descent(Z, self.lr, self.mode, weight=weight, start=start)
        for step, (theta, margins) in enumerate(descent):
            if not (theta.isfinite().all() and margins.isfinite().all()):
                raise ValueError(
                    f"scores are beyond float64 after {step} steps of lr={self.lr:g}: scale the features, or "
                    "lower lr"
                )
            errors = float(weight @ (margins <= 0).to(weight.dtype))
            if step > 0:
                self.error_curve_.append(errors)
                self.loss_curve_.append(float(weight @ F.softplus(-margins)))
            if errors < fewest:
                best, fewest = theta, errors
            if errors == 0 or step == self.max_iter:
                break
        self.n_iter_ = step
        self.separated_ = fewest == 0
        if not self.separated_:
            warnings.warn(
                f"{self.max_iter} steps did not separate the classes: coef_ is the best iterate, wrong on a "
                f"share of {fewest:.3g} of the training samples. Raise max_iter or scale the features; if no "
                "hyperplane separates the data, use sklearn.linear_model.LogisticRegression",
                ConvergenceWarning,
                stacklevel=3,
            )
        return best

    def _signs(self, labels: NDArray[np.generic], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return -1 or +1 for each sample of positive weight."""
        check_classification_targets(labels)
        self.classes_: NDArray[np.generic] = np.unique(labels)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f"{type_of_target(labels)}; got {len(self.classes_)} classes: wrap the estimator in "
                "sklearn.multiclass.OneVsRestClassifier"
            )
        if len(np.unique(labels[counted])) < 2:
            raise ValueError(
                "LargeStepLogisticRegression needs samples of two classes with positive weight; got one "
                f"class, {labels[counted][:1]}"
            )
        return np.asarray(np.where(labels[counted] == self.classes_[1], 1.0, -1.0))

    def _check_parameters(self) -> None:
        if not isinstance(self.lr, numbers.Real) or not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a finite number above 0; got {self.lr!r}")
        if not isinstance(self.max_iter, numbers.Integral) or self.max_iter < 1:
            raise ValueError(f"max_iter must be an integer, 1 or more; got {self.max_iter!r}")
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {get_args(Mode)}; got {self.mode!r}")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
