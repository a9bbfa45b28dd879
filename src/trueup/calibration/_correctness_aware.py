"""Correctness-aware calibration: a temperature for each sample, learned from whether the answer is right.

A single temperature fitted by cross entropy pushes up the true class even where the answer stays wrong. Here
the confidence `c` of the answer, the largest probability, is driven towards 1 where the answer is right
(`r = 1`) and towards 0 where it is wrong (`r = 0`). A small network reads the temperature `T` of a sample
from the probabilities that transformed views of the same input give to the classes that look best in the
original: a net that changes its mind when the image is rotated is likely to be wrong. All classes share `T`,
so that the answer never changes. The classifier is frozen.

Yuchi Liu, Lei Wang, Yuli Zou, James Zou, Liang Zheng, Optimizing Calibration by Gaining Aware of Prediction
Correctness, 2024, arXiv 2404.13016. Departures from the official code:

- It weights the loss so that right and wrong answers count alike, batch by batch, which calibrates to an
  accuracy of one half: better where accuracy falls by much, at a price where it does not. This is
  `variant="official"`; a batch of right answers only, where it gives NaN, has the plain mean.
- The last bias starts at 1 instead of near 0, where many temperatures lie below the lower bound of 0.1 and
  have no gradient. Its head that predicts correctness gets no gradient from its loss and is left out.
- It trains for 10 epochs at a learning rate of 1e-4, which is far from convergence.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Iterable
from itertools import islice, repeat
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_n_features, check_is_fitted, validate_data
from torch import Tensor, nn

from trueup._numerics.upcasting import upcast
from trueup.calibration._validation import ArrayLike, check_logits, check_target
from trueup.training import minibatches

if TYPE_CHECKING:
    from typing import Self

Loss: TypeAlias = Literal["mse", "abs"]
Variant: TypeAlias = Literal["paper", "official"]

_FLOAT = (np.float64, np.float32, np.float16)


# ---- the equation ----
def objective(
    network: nn.Module,
    logits: Float[Tensor, "rows classes"],
    view_logits: Float[Tensor, "views rows classes"],
    target: Int[Tensor, " rows"],
    topk: int,
    t_bounds: tuple[float, float],
) -> Float[Tensor, ""]:
    """Compute the mean squared distance of confidence and correctness, step by step."""
    answers = logits.topk(topk).indices
    features = torch.cat([view.softmax(1).gather(1, answers) for view in view_logits], 1)
    temperature = network(features).squeeze(1).clamp(*t_bounds)
    confidence = (logits / temperature[:, None]).softmax(1).amax(1)
    correct = logits.argmax(1) == target
    return (confidence - correct.to(confidence.dtype)).square().mean()


def view_features(
    logits: Float[Tensor, "rows classes"], view_logits: Float[Tensor, "views rows classes"], topk: int = 4
) -> Float[Tensor, "rows features"]:
    """Compute the probabilities that each view gives to the `topk` best classes of the original.

    Args:
        logits: of the original inputs.
        view_logits: of transformed views of the same inputs.
        topk: number of classes, in descending order of the original's logits.

    Returns:
        View by view, `views * topk` features in [0, 1]; float32 for half types. Nothing larger than the
        probabilities of one view is stored on the way.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes do not fit, or `topk` is not between 1 and the number of classes.

    Source: the official code.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> view = torch.tensor([[0.0, 3.0, 0.0]])  # prefers the second class
        >>> view_features(logits, view[None], topk=2).round(decimals=2)
        tensor([[0.0500, 0.9100]])
    """
    for name, value in (("logits", logits), ("view_logits", view_logits)):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point; got {value.dtype}: convert with .float()")
    _check_shapes(logits, view_logits)
    if not 1 <= topk <= logits.shape[1]:
        raise ValueError(
            f"topk must be between 1 and the {logits.shape[1]} classes; got {topk}: pass "
            f"topk={min(4, logits.shape[1])}"
        )
    answers = logits.topk(topk).indices
    views = [upcast(view) for view in view_logits]
    return torch.cat([(v.gather(1, answers) - v.logsumexp(1, keepdim=True)).exp() for v in views], 1)


def correctness_aware_loss(
    confidence: Float[Tensor, " rows"],
    correct: Bool[Tensor, " rows"] | Int[Tensor, " rows"] | Float[Tensor, " rows"],
    *,
    loss: Loss = "mse",
    variant: Variant = "paper",
) -> Float[Tensor, ""]:
    """Compute the distance of confidence from correctness, averaged over the rows.

    Args:
        confidence: probability of the answer, in [0, 1].
        correct: 1 or True where the answer is right, else 0.
        loss: `"mse"` squares the distance; `"abs"` takes its absolute value, which is no proper score: it
            pulls confidences to 0 or 1.
        variant: `"official"` weights the rows so that right and wrong answers count alike. If all rows are
            right, or all wrong, it is the plain mean.

    Returns:
        A scalar in [0, 1]; in float32 for half types.

    Raises:
        TypeError: `confidence` is not floating point.
        ValueError: shapes differ or are not `(rows,)`, there are no rows, or a choice is unknown.

    Source: equation 7; the weights are those of the official code.

    Example:
        >>> confidence, correct = torch.tensor([0.9, 0.9, 0.9, 0.6]), torch.tensor([1, 1, 1, 0])
        >>> round(float(correctness_aware_loss(confidence, correct)), 4)
        0.0975
        >>> round(float(correctness_aware_loss(confidence, correct, variant="official")), 4)
        0.185
    """
    _check_choice("loss", loss, ("mse", "abs"))
    _check_choice("variant", variant, ("paper", "official"))
    if not confidence.is_floating_point():
        raise TypeError(f"confidence must be floating point; got {confidence.dtype}: convert with .float()")
    if confidence.shape != correct.shape or confidence.dim() != 1 or len(confidence) == 0:
        raise ValueError(
            "confidence and correct must both be (rows,), with at least one row; got "
            f"{tuple(confidence.shape)} and {tuple(correct.shape)}: flatten them"
        )
    confidence = upcast(confidence)
    correct = correct.to(confidence.dtype)
    distance = confidence - correct
    return _mean(distance.square() if loss == "mse" else distance.abs(), correct, variant)


def _mean(errors: Tensor, correct: Tensor, variant: Variant) -> Tensor:
    if variant == "paper":
        return errors.mean()
    accuracy = correct.mean()
    weights = torch.where(correct == 1, 1 - accuracy, accuracy)
    # All rows right or all wrong: every weight is 0.
    weights = torch.where(weights.any(), weights, torch.ones_like(weights))
    return (weights * errors).sum() / weights.sum()


class CorrectnessAwareCalibrator(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Scale each sample's logits by a temperature that a small network reads from transformed views.

    The network, `Linear(views * topk, hidden) - ReLU - Linear(hidden, 1)`, reads `view_features`; Adam
    minimizes `correctness_aware_loss`. Views are the frozen classifier's logits of the same inputs,
    transformed (rotated, with less colour or contrast, with noise), so that calibrating a sample costs one
    pass of the classifier per view. Choose transformations that change the input: greyscale does nothing to
    a grey image. Without views the network reads the original's own probabilities.

    Args:
        topk: number of classes that the features look at, at most the number of classes.
        hidden: width of the network.
        t_bounds: lowest and highest temperature; 1 lies between them.
        loss: `"mse"` or `"abs"`, as in `correctness_aware_loss`; `"cross_entropy"`, for comparison, fits the
            labels instead of correctness.
        variant: `"official"` weights right and wrong answers alike, batch by batch. This lowers confidence
            to that of a classifier of accuracy 0.5: it helps if accuracy falls about that far, and spoils
            calibration on data like those of the fit.
        lr: learning rate of Adam.
        max_iter: number of updates.
        batch_size: rows per update, or all rows if they are fewer.
        random_state: seed of the network's initial weights and of the batches; None draws one.

    Attributes:
        network_: the fitted network, from features `(rows, views * topk)` to `(rows, 1)`.
        n_views_: number of views that `fit` saw, 0 if it had none.
        n_features_in_: number of classes.
        n_iter_: number of updates.
        loss_curve_: training loss before each update.

    Where all answers in `fit` are right, or all wrong, correctness holds no information, and the loss
    would drive every temperature to a bound: `fit` warns and sets all temperatures to 1. It also warns if
    most temperatures have reached a bound, which happens when few answers are wrong.

    `fit` and `transform` take logits of shape `(rows, classes)`, as tensors or arrays, and return the same
    kind; half types become float32, and views are converted to the type of the logits. Both raise TypeError
    for logits that are not floating point, and ValueError for NaN, infinity, shapes that do not fit, labels
    out of range, and views that `fit` did not have.

    Source: section 3 and the official code, whose 10 epochs at `lr=1e-4` do not converge.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> target = torch.randint(0, 5, (500,), generator=generator)
        >>> signal = 3 * torch.nn.functional.one_hot(target, 5)
        >>> noise = torch.randn(4, 500, 5, generator=generator)
        >>> logits, *views = 3 * (signal + 1.5 * noise)  # overconfident
        >>> calibrator = CorrectnessAwareCalibrator(max_iter=100, random_state=0)
        >>> _ = calibrator.fit(logits, target, view_logits=torch.stack(views))
        >>> calibrated = calibrator.transform(logits, view_logits=torch.stack(views))
        >>> bool((calibrated.argmax(1) == logits.argmax(1)).all())
        True
        >>> bool(calibrated.softmax(1).amax(1).mean() < logits.softmax(1).amax(1).mean())
        True
    """

    def __init__(
        self,
        *,
        topk: int = 4,
        hidden: int = 5,
        t_bounds: tuple[float, float] = (0.1, 10.0),
        loss: Literal["mse", "abs", "cross_entropy"] = "mse",
        variant: Variant = "paper",
        lr: float = 5e-3,
        max_iter: int = 600,
        batch_size: int = 1000,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.topk = topk
        self.hidden = hidden
        self.t_bounds = t_bounds
        self.loss = loss
        self.variant = variant
        self.lr = lr
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, logits: ArrayLike, y: ArrayLike, *, view_logits: ArrayLike | None = None) -> Self:
        """Learn the network from held-out data.

        Args:
            logits: of the original inputs, `(rows, classes)`.
            y: class indices, `(rows,)`.
            view_logits: of the views of the same inputs, `(views, rows, classes)`; None fits without views.

        Raises:
            TypeError, ValueError: see the class.
        """
        self._check_parameters()
        values = self._read(logits, reset=True)
        labels = check_target(_labels(y), *values.shape).to(values.device)
        self.n_views_: int = 0 if view_logits is None else len(view_logits)
        features = self._features(values, view_logits)
        correct = (values.argmax(1) == labels).to(values.dtype)
        random_state = check_random_state(self.random_state)
        generator = torch.Generator().manual_seed(int(random_state.randint(2**31)))

        self.network_: nn.Sequential = new_network(features, self.hidden, generator)
        self.loss_curve_: list[float] = []
        if correct.min() == correct.max():
            warnings.warn(
                f"all {len(correct)} answers are {'right' if correct[0] else 'wrong'}, which says nothing "
                "about confidence: all temperatures are 1. Fit on more data, which the classifier was not "
                "trained on",
                UserWarning,
                stacklevel=2,
            )
            nn.init.zeros_(self.network_[2].weight)
            self.n_iter_ = 0
            return self
        self.loss_curve_ = train_network(
            self.network_,
            (features, values, labels, correct),
            loss=self.loss,
            variant=self.variant,
            t_bounds=self.t_bounds,
            lr=self.lr,
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            generator=generator,
        )
        self.n_iter_ = self.max_iter
        temperature = self._temperature(features)
        at_bound = float(
            ((temperature == self.t_bounds[0]) | (temperature == self.t_bounds[1])).float().mean()
        )
        if at_bound > 0.5:
            warnings.warn(
                f"{at_bound:.0%} of the temperatures have reached t_bounds={self.t_bounds}, where they stay: "
                f"{int((1 - correct).sum())} of {len(correct)} answers are wrong, which may be too few to "
                "learn from. Fit on more data, or lower lr or max_iter",
                UserWarning,
                stacklevel=2,
            )
        return self

    def temperature(self, logits: ArrayLike, *, view_logits: ArrayLike | None = None) -> ArrayLike:
        """Return the temperature of each sample, `(rows,)`.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: see the class.
        """
        return _like(self._temperatures(logits, view_logits)[1], logits)

    def transform(self, logits: ArrayLike, *, view_logits: ArrayLike | None = None) -> ArrayLike:
        """Return the logits divided by each sample's temperature, `(rows, classes)`.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: see the class.
        """
        values, temperature = self._temperatures(logits, view_logits)
        return _like(values / temperature[:, None], logits)

    def predict_proba(self, logits: ArrayLike, *, view_logits: ArrayLike | None = None) -> ArrayLike:
        """Return the calibrated probabilities, `(rows, classes)`.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: see the class.
        """
        values, temperature = self._temperatures(logits, view_logits)
        return _like((values / temperature[:, None]).softmax(1), logits)

    def _temperatures(self, logits: ArrayLike, view_logits: ArrayLike | None) -> tuple[Tensor, Tensor]:
        """Return the logits as a tensor, and their temperatures."""
        check_is_fitted(self)
        values = self._read(logits, reset=False)
        views = 0 if view_logits is None else len(view_logits)
        if views != self.n_views_:
            raise ValueError(
                f"the calibrator was fitted with {self.n_views_} views; got {views}: pass view_logits of the "
                "same transformations as to fit"
            )
        return values, self._temperature(self._features(values, view_logits))

    @torch.no_grad()
    def _temperature(self, features: Tensor) -> Tensor:
        network = self.network_.to(features.device)
        return temperatures(network, features.to(network[0].weight.dtype), self.t_bounds).to(features.dtype)

    def _features(self, values: Tensor, view_logits: ArrayLike | None) -> Tensor:
        if view_logits is None:
            return view_features(values, values[None], self.topk)
        views = _tensor(view_logits)
        _check_shapes(values, views)
        checked = check_logits(views.flatten(0, 1)).view_as(views)
        return view_features(values, checked.to(values), self.topk)

    def _read(self, logits: ArrayLike, *, reset: bool) -> Tensor:
        """Return the logits as a tensor; check their number of columns."""
        if not isinstance(logits, Tensor):
            # Infinity is checked below.
            logits = validate_data(self, logits, dtype=_FLOAT, ensure_all_finite=False, reset=reset)
        elif logits.dim() == 2:
            _check_n_features(self, logits, reset=reset)
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(
                f"logits must be (rows, classes) of two or more classes; got shape {tuple(logits.shape)}, "
                f"n_features = {logits.shape[-1]}: move positions to the rows, and write a binary score s as "
                "the two columns (0, s)"
            )
        return check_logits(_tensor(logits))

    def _check_parameters(self) -> None:
        _check_choice("loss", self.loss, ("mse", "abs", "cross_entropy"))
        _check_choice("variant", self.variant, ("paper", "official"))
        for name in ("topk", "hidden", "max_iter", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
        low, high = self.t_bounds
        if not 0 < low < 1 < high < math.inf:
            raise ValueError(
                f"t_bounds must be 0 < lowest < 1 < highest, finite; got {self.t_bounds}: the default is "
                "(0.1, 10.0)"
            )
        if not isinstance(self.lr, numbers.Real) or not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a finite number above 0; got {self.lr!r}")


def new_network(features: Tensor, hidden: int, generator: torch.Generator) -> nn.Sequential:
    """Make the network with torch's initial weights, drawn from the generator, and temperatures near 1."""
    options = {"device": features.device, "dtype": features.dtype}
    linear = [
        nn.utils.skip_init(nn.Linear, features.shape[1], hidden, **options),
        nn.utils.skip_init(nn.Linear, hidden, 1, **options),
    ]
    for layer in linear:
        bound = layer.in_features**-0.5
        for parameter in layer.parameters():
            drawn = torch.empty(parameter.shape, dtype=parameter.dtype).uniform_(
                -bound, bound, generator=generator
            )
            parameter.data.copy_(drawn)
    nn.init.ones_(linear[1].bias)
    return nn.Sequential(linear[0], nn.ReLU(), linear[1])


def temperatures(network: nn.Module, features: Tensor, t_bounds: tuple[float, float]) -> Tensor:
    temperature: Tensor = network(features).squeeze(1).clamp(*t_bounds)
    return temperature


def train_network(
    network: nn.Module,
    data: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    loss: Literal["mse", "abs", "cross_entropy"],
    variant: Variant,
    t_bounds: tuple[float, float],
    lr: float,
    max_iter: int,
    batch_size: int,
    generator: torch.Generator,
) -> list[float]:
    """Train in place on features, logits, target and correctness; return the loss before each update."""
    features, logits, target, correct = data
    margins = logits - logits.amax(1, keepdim=True)
    margins.clamp_(min=-1e30)  # a logit of -inf would have a gradient of 0 * inf
    rows: Iterable[Tensor | slice] = repeat(slice(None), max_iter)
    if len(features) > batch_size:
        epochs = math.ceil(max_iter / (len(features) // batch_size))
        rows = islice(minibatches(len(features), batch_size, epochs, generator), max_iter)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    losses = []
    for batch in rows:
        scaled = margins[batch] / temperatures(network, features[batch], t_bounds)[:, None]
        normalizer = scaled.exp().sum(1)  # the answer's margin is 0, so its probability is 1 / normalizer
        if loss == "cross_entropy":
            errors = normalizer.log() - scaled.gather(1, target[batch, None]).squeeze(1)
            value = _mean(errors, correct[batch], variant)
        else:
            value = correctness_aware_loss(1 / normalizer, correct[batch], loss=loss, variant=variant)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return [float(value) for value in torch.stack(losses)]


def _tensor(values: ArrayLike) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    # torch warns about read-only memory, although nothing here writes to it.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _labels(y: ArrayLike) -> Tensor:
    """Return labels as a tensor; whole numbers in an array of floats, as scikit-learn allows, as integers."""
    if isinstance(y, Tensor):
        return y
    check_classification_targets(y)
    array = np.asarray(y)
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "f" else array.copy())


def _like(values: Tensor, like: ArrayLike) -> ArrayLike:
    return values if isinstance(like, Tensor) else values.cpu().numpy()


def _check_shapes(logits: Tensor, view_logits: Tensor) -> None:
    if logits.dim() != 2 or view_logits.shape[1:] != logits.shape or len(view_logits) == 0:
        raise ValueError(
            "logits must be (rows, classes) and view_logits (views, rows, classes), with at least one view; "
            f"got {tuple(logits.shape)} and {tuple(view_logits.shape)}: stack the views along dimension 0"
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")
