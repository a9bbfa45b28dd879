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
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from trueup._numerics.chunking import sample_chunks
from trueup._numerics.upcasting import upcast
from trueup.calibration._calibrator import Array, Calibrator, check_labels, check_weight, to_rows
from trueup.calibration._validation import ArrayLike, check_logits, from_numpy
from trueup.training import minibatches

if TYPE_CHECKING:
    from typing import Self

Loss: TypeAlias = Literal["mse", "abs"]
Variant: TypeAlias = Literal["paper", "official"]


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
    loss: Tensor = (confidence - correct.to(confidence.dtype)).square().mean()
    return loss


def view_features(
    logits: Float[Tensor, "rows classes"], view_logits: Float[Tensor, "views rows classes"], topk: int = 4
) -> Float[Tensor, "rows features"]:
    """Compute the probabilities that each view gives to the `topk` best classes of the original.

    Args:
        logits: of the original inputs.
        view_logits: of transformed views of the same inputs.
        topk: number of classes, in descending order of the original's logits.

    Returns:
        View by view, `views * topk` features in [0, 1]; float32 for half types. No other probabilities are
        stored on the way.

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
    return torch.cat([_probabilities(view, answers) for view in view_logits], 1)


def _probabilities(logits: Tensor, classes: Tensor) -> Tensor:
    """Compute the probabilities of some classes per row, a few rows at a time."""
    chunks = ((upcast(z), index) for z, index in sample_chunks(logits, classes))
    return torch.cat([(z.gather(1, index) - z.logsumexp(1, keepdim=True)).exp() for z, index in chunks])


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
    return _average(_errors(confidence, correct, loss), correct, torch.ones_like(correct), variant)


def _errors(confidence: Tensor, correct: Tensor, loss: Loss) -> Tensor:
    distance = confidence - correct
    return distance.square() if loss == "mse" else distance.abs()


def _average(errors: Tensor, correct: Tensor, weight: Tensor, variant: Variant) -> Tensor:
    if variant == "official":
        accuracy = (weight * correct).sum() / weight.sum()
        balanced = weight * torch.where(correct == 1, 1 - accuracy, accuracy)
        # All rows right, or all wrong: every balanced weight is 0.
        weight = torch.where(balanced.any(), balanced, weight)
    return (weight * errors).sum() / weight.sum()


class CorrectnessAwareCalibrator(Calibrator):
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
    most temperatures have reached a bound, which happens when few answers are wrong, or the views show which.

    Views are converted to the type of the logits. `fit` and `transform` raise TypeError for tensors that are
    not floating point, and ValueError for NaN, +inf, shapes that do not fit, labels out of range, too few
    classes for `topk`, and another number of views than in `fit`; `fit` also for parameters out of range.

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

    def fit(
        self,
        logits: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        view_logits: ArrayLike | None = None,
    ) -> Self:
        """Learn the network from held-out data.

        Args:
            logits: of the original inputs, `(N, C)`, `(N, C, *positions)`, or `(N,)` for the logit of class 1
                of two.
            y: class indices in `[0, C)`, `(N,)` or `(N, *positions)`.
            sample_weight: one non-negative weight per label; a weight of 2 counts as two equal samples.
            view_logits: of the views of the same inputs, `(views, *logits.shape)`; None fits without views.

        Raises:
            TypeError, ValueError: see the class.
        """
        self._check_parameters()
        if y is None:
            raise ValueError(
                "CorrectnessAwareCalibrator requires y to be passed, but the target y is None: pass labels"
            )
        tensor = self._tensor(logits, reset=True)
        rows = to_rows(tensor.detach())
        labels = check_labels(y, tensor)
        weight = check_weight(sample_weight, tensor)
        weight = torch.ones_like(labels) if weight is None else weight
        self.n_views_: int = 0 if view_logits is None else len(view_logits)
        data = self._features(rows, logits, view_logits), rows, labels, weight.to(rows.dtype)
        features, rows, labels, weight = (t[weight > 0] for t in data)

        correct = (rows.argmax(1) == labels).to(rows.dtype)
        random_state = check_random_state(self.random_state)
        generator = torch.Generator().manual_seed(int(random_state.randint(2**31)))
        self.network_: nn.Sequential = new_network(features, self.hidden, generator)
        if correct.min() == correct.max():
            _warn(
                f"all {len(correct)} answers are {'right' if correct[0] else 'wrong'}, which says nothing "
                "about confidence: all temperatures are 1. Fit on more data, on which the classifier was not "
                "trained"
            )
            for parameter in self.network_[2].parameters():
                parameter.data.fill_(parameter.dim() == 1)
            self.n_iter_, self.loss_curve_ = 0, []
            return self
        self.n_iter_ = self.max_iter
        self.loss_curve_ = train_network(
            self.network_,
            (features, rows, labels, correct, weight),
            loss=self.loss,
            variant=self.variant,
            t_bounds=self.t_bounds,
            lr=self.lr,
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            generator=generator,
        )
        with torch.no_grad():
            temperature = temperatures(self.network_, features, self.t_bounds)
        low, high = self.t_bounds
        at_bound = float(((temperature == low) | (temperature == high)).double().mean())
        if at_bound > 0.5:
            _warn(
                f"{at_bound:.0%} of the temperatures have reached t_bounds={self.t_bounds}; "
                f"{int((correct == 0).sum())} of {len(correct)} answers are wrong. Unless views tell right "
                "from wrong as well on new data, fit on more data, or lower max_iter"
            )
        return self

    def temperature(self, logits: Array, *, view_logits: ArrayLike | None = None) -> Array:
        """Return the temperature of each sample, `(N,)` or `(N, *positions)`.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: see the class.
        """
        check_is_fitted(self)
        tensor = self._tensor(logits, reset=False)
        temperature = self._temperature(to_rows(tensor.detach()), logits, view_logits)
        return _like(temperature.view(tensor.shape[:1] + tensor.shape[2:]), logits)

    def transform(self, logits: Array, *, view_logits: ArrayLike | None = None) -> Array:
        """Return the logits divided by each sample's temperature, in their shape and type.

        Half precision becomes float32.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: see the class.
        """
        temperature = from_numpy(self.temperature(logits, view_logits=view_logits))
        tensor = upcast(self._tensor(logits, reset=False))
        return _like(tensor / (temperature if tensor.dim() == 1 else temperature.unsqueeze(1)), logits)

    def predict_proba(self, logits: Array, *, view_logits: ArrayLike | None = None) -> Array:
        """Return the calibrated probabilities in the shape of `logits`; `(N,)` is that of class 1.

        Raises:
            NotFittedError: before `fit`.
            TypeError, ValueError: see the class.
        """
        calibrated = from_numpy(self.transform(logits, view_logits=view_logits))
        return _like(calibrated.sigmoid() if calibrated.dim() == 1 else calibrated.softmax(1), logits)

    def _map(self, rows: Tensor) -> Tensor:
        return rows / self._temperature(rows, rows, None)[:, None]

    @torch.no_grad()
    def _temperature(self, rows: Tensor, logits: ArrayLike, view_logits: ArrayLike | None) -> Tensor:
        views = 0 if view_logits is None else len(view_logits)
        if views != self.n_views_:
            raise ValueError(
                f"the calibrator was fitted with {self.n_views_} views; got {views}: pass view_logits of the "
                "same transformations as to fit"
            )
        features = self._features(rows, logits, view_logits)
        network = self.network_.to(rows.device)
        dtype = next(network.parameters()).dtype
        return temperatures(network, features.to(dtype), self.t_bounds).to(rows.dtype)

    def _features(self, rows: Tensor, logits: ArrayLike, view_logits: ArrayLike | None) -> Tensor:
        if view_logits is None:
            return view_features(rows, rows[None], self.topk)
        views = from_numpy(view_logits)
        if views.dim() == 0 or views.shape[1:] != np.shape(logits) or len(views) == 0:
            raise ValueError(
                f"view_logits must be (views, *logits.shape), with one view or more; got "
                f"{tuple(views.shape)} for logits of shape {tuple(np.shape(logits))}: stack the views along "
                "dimension 0"
            )
        check_logits(views.flatten(0, 1))
        return view_features(
            rows, torch.stack([to_rows(view.detach()).to(rows) for view in views]), self.topk
        )

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


def network_of(state: dict[str, Tensor]) -> nn.Sequential:
    """Make a network from its `state_dict`."""
    weight = state["0.weight"]
    network = new_network(weight, len(weight), torch.Generator())
    network.load_state_dict(state)
    return network


def temperatures(network: nn.Module, features: Tensor, t_bounds: tuple[float, float]) -> Tensor:
    temperature: Tensor = network(features).squeeze(1).clamp(*t_bounds)
    return temperature


def train_network(
    network: nn.Module,
    data: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    *,
    loss: Literal["mse", "abs", "cross_entropy"],
    variant: Variant,
    t_bounds: tuple[float, float],
    lr: float,
    max_iter: int,
    batch_size: int,
    generator: torch.Generator,
) -> list[float]:
    """Train on features, logits, labels, correctness and weights; return the loss before each update."""
    features, logits, target, correct, weight = data
    margins = logits - logits.amax(1, keepdim=True)
    margins.clamp_(min=-1e30)  # a logit of -inf would have a gradient of 0 * inf
    rows: Iterable[Tensor | slice] = repeat(slice(None), max_iter)
    if len(features) > batch_size:
        epochs = math.ceil(max_iter / (len(features) // batch_size))
        rows = islice(minibatches(len(features), batch_size, epochs, generator), max_iter)
    optimizer = torch.optim.Adam(network.parameters(), lr, fused=True)
    losses = []
    for batch in rows:
        scaled = margins[batch] / temperatures(network, features[batch], t_bounds)[:, None]
        normalizer = scaled.exp().sum(1)  # the answer's margin is 0, so its probability is 1 / normalizer
        if loss == "cross_entropy":
            errors = normalizer.log() - scaled.gather(1, target[batch, None]).squeeze(1)
        else:
            errors = _errors(1 / normalizer, correct[batch], loss)
        value = _average(errors, correct[batch], weight[batch], variant)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return [float(value) for value in torch.stack(losses)]


def _like(values: Tensor, like: Array) -> Array:
    return values if isinstance(like, Tensor) else values.numpy()


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)


def _check_shapes(logits: Tensor, view_logits: Tensor) -> None:
    if logits.dim() != 2 or view_logits.shape[1:] != logits.shape or len(view_logits) == 0:
        raise ValueError(
            "logits must be (rows, classes) and view_logits (views, rows, classes), with at least one view; "
            f"got {tuple(logits.shape)} and {tuple(view_logits.shape)}: stack the views along dimension 0"
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")
