"""The measures of calibration as torchmetrics metrics, which stream over batches and reduce over processes.

`update(preds, target)` takes the shapes of the functions, `(N,)`, `(N, C)` or `(N, C, *positions)`, and
`compute()` gives the function's value for all batches together, as a scalar in float64.

Measures with fixed bins keep sums per bin in float64: a few kilobytes, which processes add up. Measures
that depend on the order of all samples (quantile bins, KS, MMCE, density estimates, rankings) keep a
confidence and a flag per sample, and the classwise ones the predictions. Processes gather them, so that these
measures are exact too.

torchmetrics comes with the extra `trueup[metrics]`; `trueup.calibration` imports this module when one of its
names is used.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from trueup.calibration._binned_measures import (
    classwise_calibration_error,
    scalar,
    thresholded_adaptive_calibration_error,
)
from trueup.calibration._bins import Bins, check_bins, check_option
from trueup.calibration._classwise import ClasswiseHistogram
from trueup.calibration._predictions import Predictions, Reduction
from trueup.calibration._top_label import TopLabel

__all__ = [
    "AURC",
    "MMCE",
    "AdaptiveCalibrationError",
    "AverageCalibrationError",
    "BrierScore",
    "ClasswiseAdaptiveCalibrationError",
    "ClasswiseCalibrationError",
    "ConfidenceGap",
    "CorrectnessAUROC",
    "DebiasedCalibrationError",
    "ExcessAURC",
    "ExpectedCalibrationError",
    "KDECalibrationError",
    "KSError",
    "MaximumCalibrationError",
    "NegativeLogLikelihood",
    "OverconfidenceError",
    "RootMeanSquaredCalibrationError",
    "SweepCalibrationError",
    "ThresholdedAdaptiveCalibrationError",
    "UnderconfidenceError",
]


Level = Literal["top", "positive"]


def _pairs(predictions: Predictions, level: Level) -> TopLabel:
    return predictions.top if level == "top" else predictions.positive


class _CalibrationMetric(Metric):
    """Check the predictions and labels of a batch, of which subclasses keep what they need."""

    is_differentiable = False
    higher_is_better: bool | None = False
    full_state_update = False

    def __init__(self, kept: str, *, from_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = from_logits
        # A MetricCollection updates metrics as one if their states have equal names and, after one batch,
        # values. This name distinguishes those that are equal by chance, as two losses that are still 0.
        self.add_state(f"kept_{kept}_{from_logits}", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch of predictions and labels."""
        self._keep(Predictions(preds, target, from_logits=self.from_logits))

    def _keep(self, predictions: Predictions) -> None:
        raise NotImplementedError

    def _require(self, seen: float) -> None:
        if not seen:
            raise ValueError(f"{type(self).__name__} has seen no samples: call update before compute")


class _SumsMetric(_CalibrationMetric):
    """Keep sums per bin of equal width, of shape `(n_bins,)` or `(num_classes, n_bins)`."""

    count: Tensor
    gap: Tensor
    hits: Tensor

    def __init__(self, kept: str, shape: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(kept, **kwargs)
        for name in ("count", "gap", "hits"):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _keep(self, predictions: Predictions) -> None:
        bins = self._bins(predictions)
        self.count = self.count + torch.from_numpy(bins.count).to(self.count)
        self.gap = self.gap + torch.from_numpy(bins.gap).to(self.gap)
        self.hits = self.hits + torch.from_numpy(bins.hits).to(self.hits)

    def compute(self) -> Tensor:
        """Return the measure of all samples so far."""
        count, gap, hits = (t.cpu().numpy() for t in (self.count, self.gap, self.hits))
        samples = int(count.sum(-1).flat[0])  # every class has all of them
        self._require(samples)
        return scalar(self._measure(Bins(count, gap, hits, samples)))

    def _bins(self, predictions: Predictions) -> Bins:
        raise NotImplementedError

    def _measure(self, bins: Bins) -> float:
        raise NotImplementedError


class _BinsMetric(_SumsMetric):
    """Measure one probability per sample in bins of equal width."""

    def __init__(self, n_bins: int = 15, *, level: Level = "top", **kwargs: Any) -> None:
        check_bins(n_bins)
        super().__init__(level, (n_bins,), **kwargs)
        check_option("level", level, Level)
        self.n_bins = n_bins
        self.level = level

    def _bins(self, predictions: Predictions) -> Bins:
        return _pairs(predictions, self.level).bins(self.n_bins)


class _SamplesMetric(_CalibrationMetric):
    """Keep one probability per sample and whether it came true."""

    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self, *, level: Level = "top", **kwargs: Any) -> None:
        super().__init__(level, **kwargs)
        check_option("level", level, Level)
        self.level = level
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    def _keep(self, predictions: Predictions) -> None:
        pairs = _pairs(predictions, self.level)
        self.confidence.append(torch.from_numpy(pairs.confidence).to(self.device))
        self.correct.append(torch.from_numpy(pairs.correct).to(self.device))

    def compute(self) -> Tensor:
        """Return the measure of all samples so far."""
        self._require(len(self.confidence))
        confidence, correct = (dim_zero_cat(t).cpu().numpy() for t in (self.confidence, self.correct))
        return scalar(self._measure(TopLabel.of(confidence, correct)))

    def _measure(self, pairs: TopLabel) -> float:
        raise NotImplementedError


class _PredictionsMetric(_CalibrationMetric):
    """Keep all predictions and labels."""

    values: list[Tensor]
    target: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("predictions", **kwargs)
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def _keep(self, predictions: Predictions) -> None:
        self.values.append(predictions.values)
        self.target.append(predictions.target)

    def compute(self) -> Tensor:
        """Return the measure of all samples so far."""
        self._require(len(self.values))
        return self._measure(dim_zero_cat(self.values), dim_zero_cat(self.target))

    def _measure(self, values: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


class _MeanMetric(_CalibrationMetric):
    """Keep the sum of a loss, and the number of samples."""

    total: Tensor
    samples: Tensor

    def __init__(self, kept: str, **kwargs: Any) -> None:
        super().__init__(kept, **kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _keep(self, predictions: Predictions) -> None:
        self.total = self.total + self._loss(predictions) * len(predictions)
        self.samples = self.samples + len(predictions)

    def compute(self) -> Tensor:
        """Return the mean over all samples so far."""
        self._require(float(self.samples))
        return self.total / self.samples

    def _loss(self, predictions: Predictions) -> float:
        raise NotImplementedError


class ExpectedCalibrationError(_BinsMetric):
    """Stream `expected_calibration_error`: bins of equal width, weighted by their samples.

    Args:
        n_bins: number of bins.
        level: `"top"` for the predicted class, `"positive"` for class 1 of a binary problem.
        from_logits: `preds` are logits.
        kwargs: those of `torchmetrics.Metric`.

    Example:
        >>> metric = ExpectedCalibrationError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.4
    """

    def _measure(self, bins: Bins) -> float:
        return bins.error("l1")


class MaximumCalibrationError(_BinsMetric):
    """Stream `maximum_calibration_error`: the largest error of a bin of equal width.

    Arguments as in `ExpectedCalibrationError`.

    Example:
        >>> metric = MaximumCalibrationError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.8
    """

    def _measure(self, bins: Bins) -> float:
        return bins.error("max")


class AverageCalibrationError(_BinsMetric):
    """Stream `average_calibration_error`: the unweighted mean over bins of equal width.

    Arguments as in `ExpectedCalibrationError`.

    Example:
        >>> metric = AverageCalibrationError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.4
    """

    def _measure(self, bins: Bins) -> float:
        return bins.error("mean")


class RootMeanSquaredCalibrationError(_BinsMetric):
    """Stream `root_mean_squared_calibration_error`.

    Arguments as in `ExpectedCalibrationError`.

    Example:
        >>> metric = RootMeanSquaredCalibrationError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.4967
    """

    def _measure(self, bins: Bins) -> float:
        return bins.error("l2")


class DebiasedCalibrationError(_BinsMetric):
    """Stream `debiased_calibration_error`: RMSCE without the bias of few samples per bin.

    Arguments as in `ExpectedCalibrationError`.

    Example:
        >>> metric = DebiasedCalibrationError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.0
    """

    def _measure(self, bins: Bins) -> float:
        return bins.error("l2", debias=True)


class OverconfidenceError(_BinsMetric):
    """Stream `overconfidence_error`.

    Arguments as in `ExpectedCalibrationError`.

    Example:
        >>> metric = OverconfidenceError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.2133
    """

    def _measure(self, bins: Bins) -> float:
        return bins.overconfidence()


class UnderconfidenceError(_BinsMetric):
    """Stream `underconfidence_error`.

    Arguments as in `ExpectedCalibrationError`.

    Example:
        >>> metric = UnderconfidenceError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.1333
    """

    def _measure(self, bins: Bins) -> float:
        return bins.underconfidence()


class ClasswiseCalibrationError(_SumsMetric):
    """Stream `classwise_calibration_error` with bins of equal width: the mean over all classes.

    Args:
        num_classes: C; 2 for binary problems.
        n_bins: number of bins.
        from_logits: `preds` are logits.
        kwargs: those of `torchmetrics.Metric`.

    Example:
        >>> metric = ClasswiseCalibrationError(num_classes=2)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.4
    """

    def __init__(self, num_classes: int, n_bins: int = 15, **kwargs: Any) -> None:
        check_bins(n_bins)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1; got {num_classes}: binary problems have 2")
        super().__init__("classes", (num_classes, n_bins), **kwargs)
        self.num_classes = num_classes
        self.n_bins = n_bins

    def _bins(self, predictions: Predictions) -> Bins:
        if predictions.n_classes != self.num_classes:
            raise ValueError(
                f"preds have {predictions.n_classes} classes; this metric was made for "
                f"num_classes={self.num_classes}: make one for these classes"
            )
        p = predictions
        return ClasswiseHistogram(p.chunks, p.n_classes, len(p), self.n_bins).bins(self.n_bins)

    def _measure(self, bins: Bins) -> float:
        return bins.error("l1")


class AdaptiveCalibrationError(_SamplesMetric):
    """Stream `adaptive_calibration_error`: bins of equal mass.

    Arguments as in `ExpectedCalibrationError`.

    Example:
        >>> metric = AdaptiveCalibrationError(n_bins=2)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.2
    """

    def __init__(self, n_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_bins(n_bins)
        self.n_bins = n_bins

    def _measure(self, pairs: TopLabel) -> float:
        return pairs.error(self.n_bins, binning="quantile")


class SweepCalibrationError(_SamplesMetric):
    """Stream `sweep_calibration_error`.

    Arguments as in `ExpectedCalibrationError`, without `n_bins`.

    Example:
        >>> metric = SweepCalibrationError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.2
    """

    def _measure(self, pairs: TopLabel) -> float:
        return pairs.sweep_error()


class KSError(_SamplesMetric):
    """Stream `ks_error`: the largest cumulative difference, free of bins.

    Arguments as in `ExpectedCalibrationError`, without `n_bins`.

    Example:
        >>> metric = KSError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.1667
    """

    def _measure(self, pairs: TopLabel) -> float:
        return pairs.ks_error()


class KDECalibrationError(_SamplesMetric):
    """Stream `kde_calibration_error`: the error of density estimates.

    Arguments as in `ExpectedCalibrationError`, without `n_bins`.

    Example:
        >>> metric = KDECalibrationError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.2147
    """

    def _measure(self, pairs: TopLabel) -> float:
        return pairs.kde_error()


class MMCE(_SamplesMetric):
    """Stream `mmce`: the maximum mean calibration error.

    Args:
        width: of the Laplacian kernel.
        level: `"top"` for the predicted class, `"positive"` for class 1 of a binary problem.
        from_logits: `preds` are logits.
        kwargs: those of `torchmetrics.Metric`.

    Example:
        >>> metric = MMCE()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.1757
    """

    def __init__(self, width: float = 0.4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not width > 0:
            raise ValueError(f"width must be positive; got {width}: 0.4 is usual")
        self.width = width

    def _measure(self, pairs: TopLabel) -> float:
        return pairs.mmce(self.width)


class CorrectnessAUROC(_SamplesMetric):
    """Stream `correctness_auroc`: how well confidence ranks correct above wrong predictions.

    Arguments as in `ExpectedCalibrationError`, without `n_bins`.

    Example:
        >>> metric = CorrectnessAUROC()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.5
    """

    higher_is_better = True

    def _measure(self, pairs: TopLabel) -> float:
        return pairs.auroc()


class AURC(_SamplesMetric):
    """Stream `aurc`: the mean risk over all coverages.

    Arguments as in `ExpectedCalibrationError`, without `n_bins`.

    Example:
        >>> metric = AURC()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.2778
    """

    def _measure(self, pairs: TopLabel) -> float:
        return pairs.aurc()


class ExcessAURC(_SamplesMetric):
    """Stream `excess_aurc`: `aurc` above that of the best ranking.

    Arguments as in `ExpectedCalibrationError`, without `n_bins`.

    Example:
        >>> metric = ExcessAURC()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.1667
    """

    def _measure(self, pairs: TopLabel) -> float:
        return pairs.excess_aurc()


class ConfidenceGap(_BinsMetric):
    """Stream `confidence_gap`: mean confidence minus accuracy, in [-1, 1].

    Arguments as in `ExpectedCalibrationError`, without `n_bins`.

    Example:
        >>> metric = ConfidenceGap()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.1333
    """

    higher_is_better = None  # best at 0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(1, **kwargs)

    def _measure(self, bins: Bins) -> float:
        return float(bins.gap.sum() / bins.total)


class ClasswiseAdaptiveCalibrationError(_PredictionsMetric):
    """Stream `classwise_calibration_error` with bins of equal mass. It keeps all predictions.

    Args:
        n_bins: number of bins.
        from_logits: `preds` are logits.
        kwargs: those of `torchmetrics.Metric`.

    Example:
        >>> metric = ClasswiseAdaptiveCalibrationError(n_bins=2)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.3667
    """

    def __init__(self, n_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_bins(n_bins)
        self.n_bins = n_bins

    def _measure(self, values: Tensor, target: Tensor) -> Tensor:
        return classwise_calibration_error(
            values, target, n_bins=self.n_bins, binning="quantile", from_logits=self.from_logits
        )


class ThresholdedAdaptiveCalibrationError(_PredictionsMetric):
    """Stream `thresholded_adaptive_calibration_error`. It keeps all predictions.

    Args:
        n_bins: number of bins.
        threshold: probabilities up to it are left out.
        from_logits: `preds` are logits.
        kwargs: those of `torchmetrics.Metric`.

    Example:
        >>> metric = ThresholdedAdaptiveCalibrationError(n_bins=2)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.3667
    """

    def __init__(self, n_bins: int = 15, *, threshold: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_bins(n_bins)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be in [0, 1); got {threshold}: 0.01 is usual")
        self.n_bins = n_bins
        self.threshold = threshold

    def _measure(self, values: Tensor, target: Tensor) -> Tensor:
        return thresholded_adaptive_calibration_error(
            values, target, n_bins=self.n_bins, threshold=self.threshold, from_logits=self.from_logits
        )


class NegativeLogLikelihood(_MeanMetric):
    """Stream `negative_log_likelihood`, in nats per sample.

    Args:
        from_logits: `preds` are logits.
        kwargs: those of `torchmetrics.Metric`.

    Example:
        >>> metric = NegativeLogLikelihood()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.6905
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("nll", **kwargs)

    def _loss(self, predictions: Predictions) -> float:
        return predictions.negative_log_likelihood()


class BrierScore(_MeanMetric):
    """Stream `brier_score`.

    Args:
        reduction: over classes, as in the function: `"sum"`, `"mean"` or `"top"`.
        from_logits: `preds` are logits.
        kwargs: those of `torchmetrics.Metric`.

    Example:
        >>> metric = BrierScore()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.4933
    """

    def __init__(self, reduction: Reduction = "sum", **kwargs: Any) -> None:
        super().__init__(f"brier_{reduction}", **kwargs)
        check_option("reduction", reduction, Reduction)
        self.reduction = reduction

    def _loss(self, predictions: Predictions) -> float:
        return predictions.brier_score(self.reduction)
