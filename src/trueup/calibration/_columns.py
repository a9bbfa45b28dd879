"""The columns of a calibration report, their noise floors, and their values on resamples.

All columns follow from confidences in ascending order (`TopLabel`), of the top class and of each class, and
from two losses per sample. A resample with replacement is a number of repeats per sample. Repeating the
entries of a sorted array leaves it sorted, so that resamples are measured without sorting again.

**Noise floor.** A binned measure is positive for a calibrated model too: by chance, the accuracy in a bin of
n samples differs from the confidence p by the mean absolute deviation of a binomial variable X (de Moivre),

$$\\mathbb{E}\\,|X/n - p| = 2 k (1 - p) P(X = k) / n, \\quad k = \\lfloor n p \\rfloor + 1,$$

about $\\sqrt{2 p (1 - p) / (\\pi n)}$. ECE in B bins of N samples therefore starts near $\\sqrt{B / N}$. The
partial sums behind the KS error are a random walk of variance $V = \\sum_i c_i (1 - c_i)$, whose largest
absolute value is about $\\sqrt{\\pi V / 2}$; the square of N times MMCE has the expectation V.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import stats

from trueup.calibration._bins import Binning, Bins
from trueup.calibration._predictions import Level, Predictions
from trueup.calibration._top_label import TopLabel

__all__ = ["measure", "observed", "resamples"]

Values = Float[NDArray[np.floating], " samples"]
PerBin = Float[NDArray[np.float64], " bins"]

MEASURES: dict[str, tuple[Binning, Callable[[Bins], float]]] = {
    "ece": ("uniform", lambda bins: bins.error("l1")),
    "ece_em": ("quantile", lambda bins: bins.error("l1")),
    "ece_debiased": ("uniform", lambda bins: bins.error("l2", debias=True)),
    "rmsce": ("uniform", lambda bins: bins.error("l2")),
    "ace": ("uniform", lambda bins: bins.error("mean")),
    "mce": ("uniform", lambda bins: bins.error("max")),
    "oe": ("uniform", Bins.overconfidence),
    "ue": ("uniform", Bins.underconfidence),
}
# The columns of each level, and the measure each is.
TOP = {name: name for name in MEASURES}
CLASSWISE = {"cwce": "ece", "cwce_em": "ece_em"}
POSITIVE = {"ece_positive": "ece", "ece_em_positive": "ece_em"}

TACE_THRESHOLD = 0.01


# ---- the equation ----
def binomial_deviation(p: PerBin, n: PerBin) -> PerBin:
    """Return E|X/n - p| for X ~ Binomial(n, p)."""
    k = np.floor(n * p) + 1
    chance: PerBin = stats.binom.pmf(k, n, p)
    return 2 * k * (1 - p) * chance / n


def binomial_std(p: PerBin, n: PerBin) -> PerBin:
    """Return the standard deviation of X/n."""
    return np.sqrt(p * (1 - p) / n)


# The measures that are positive by chance, and the deviation of a bin that belongs to their norm.
DEVIATIONS = dict.fromkeys(("ece", "ece_em", "ace", "mce"), binomial_deviation) | {"rmsce": binomial_std}


@dataclass(frozen=True)
class Sample:
    """A sample, or a resample of it.

    Attributes:
        top: confidences of the top class.
        classes: probabilities of each class, sorted when iterated over.
        positive: those of class 1, in binary problems.
        nll, brier: loss of each sample.
    """

    top: TopLabel
    classes: Iterable[TopLabel]
    positive: TopLabel | None
    nll: Values
    brier: Values


def measure(
    sample: Sample, n_bins: tuple[int, ...], levels: tuple[Level, ...], *, with_floors: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the value of every column, and the noise floors."""
    top = sample.top
    floors: dict[str, float] = {}
    values = {
        "accuracy": top.accuracy,
        "confidence": top.mean_confidence,
        "gap": top.confidence_gap(),
        "confidence_correct": _mean(top.confidence[top.correct]),
        "confidence_incorrect": _mean(top.confidence[~top.correct]),
        "nll": float(sample.nll.mean()),
        "brier": float(sample.brier.mean()),
        "auroc": top.auroc(),
        "aurc": top.aurc(),
        "excess_aurc": top.excess_aurc(),
    }
    if "top" in levels:
        values |= {
            "ks": top.ks_error(),
            "mmce": top.mmce(),
            "kde": top.kde_error(),
            "ece_sweep": top.sweep_error(),
        }
        variance = float((top.confidence * (1 - top.confidence)).sum(dtype=np.float64))
        if with_floors:
            floors["ks"] = math.sqrt(math.pi * variance / 2) / len(top)
            floors["mmce"] = math.sqrt(variance) / len(top)
        _binned(top, n_bins, TOP, values, floors if with_floors else None)
    if "classwise" in levels:
        rows = [_of_class(pairs, n_bins, with_floors) for pairs in sample.classes]
        for into, per_class in zip((values, floors), zip(*rows)):
            into |= {name: _mean([row[name] for row in per_class]) for name in per_class[0]}
    if sample.positive is not None:
        _binned(sample.positive, n_bins, POSITIVE, values, floors if with_floors else None)
    return values, floors


def _binned(
    pairs: TopLabel,
    n_bins: tuple[int, ...],
    columns: Mapping[str, str],
    values: dict[str, float],
    floors: dict[str, float] | None,
) -> None:
    """Add the binned columns, which are given with the measure that each is."""
    bins = {(b, binning): pairs.bins(b, binning) for b in n_bins for binning in get_args(Binning)}
    for column, name in columns.items():
        binning, error = MEASURES[name]
        for b in n_bins:
            values[f"{column}_{b}"] = error(bins[b, binning])
            if floors is not None and name in DEVIATIONS:
                floors[f"{column}_{b}"] = error(_by_chance(bins[b, binning], DEVIATIONS[name]))


def _by_chance(bins: Bins, deviation: Callable[[PerBin, PerBin], PerBin]) -> Bins:
    """Return bins whose accuracy is as far from the confidence as a calibrated model's is on average."""
    filled = bins.count > 0
    count = bins.count[filled]
    gap = np.zeros_like(bins.gap)
    gap[filled] = count * deviation(bins.confidence[filled].clip(0, 1), count)
    return replace(bins, gap=gap)


def _of_class(
    pairs: TopLabel, n_bins: tuple[int, ...], with_floors: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the class-wise columns of one class, and their noise floors."""
    values: dict[str, float] = {}
    floors: dict[str, float] = {}
    _binned(pairs, n_bins, CLASSWISE, values, floors if with_floors else None)
    first = int(np.searchsorted(pairs.confidence, TACE_THRESHOLD, side="right"))
    kept = TopLabel(pairs.confidence[first:], pairs.correct[first:])
    if len(kept):
        _binned(kept, n_bins, {"tace": "ece_em"}, values, None)
    else:
        values |= {f"tace_{b}": 0.0 for b in n_bins}
    return values, floors


def _mean(numbers: Sequence[float] | Values) -> float:
    return float(np.mean(numbers)) if len(numbers) else math.nan


@dataclass(frozen=True)
class Sortable:
    """Probabilities in ascending order, with the order, for resamples without sorting."""

    confidence: Values
    correct: Bool[NDArray[np.bool_], " samples"]
    order: Int[NDArray[np.integer], " samples"]

    @classmethod
    def of(cls, confidence: Values, correct: Bool[NDArray[np.bool_], " samples"]) -> Sortable:
        order = np.argsort(confidence, kind="stable")
        return cls(confidence[order], correct[order], order)

    def repeat(self, repeats: Int[NDArray[np.integer], " samples"]) -> TopLabel:
        """Return each sample as many times as `repeats` says; it has an entry per sample, in no order."""
        times = repeats[self.order]
        return TopLabel(np.repeat(self.confidence, times), np.repeat(self.correct, times))


def resamples(
    predictions: Predictions, levels: tuple[Level, ...], number: int, seed: int
) -> Iterator[Sample]:
    """Yield `number` resamples with replacement."""
    p = predictions
    probs = torch.cat([chunk for chunk, _ in p.chunks()]).numpy()
    target, nll, brier = p.target.cpu().numpy(), *losses(p)
    top = Sortable.of(probs.max(1), p.correct.cpu().numpy())
    classes = [Sortable.of(probs[:, k], target == k) for k in range(p.n_classes)]
    generator = np.random.default_rng(seed)
    for _ in range(number):
        repeats = np.bincount(generator.integers(len(p), size=len(p)), minlength=len(p))
        yield Sample(
            top.repeat(repeats),
            (k.repeat(repeats) for k in classes) if "classwise" in levels else (),
            classes[1].repeat(repeats) if "positive" in levels else None,
            np.repeat(nll, repeats),
            np.repeat(brier, repeats),
        )


def observed(predictions: Predictions, levels: tuple[Level, ...]) -> Sample:
    """Return the samples as they are."""
    p = predictions
    return Sample(
        p.top,
        (p.of_class(k) for k in range(p.n_classes)) if "classwise" in levels else (),
        p.positive if "positive" in levels else None,
        *losses(p),
    )


def losses(predictions: Predictions) -> tuple[Values, Values]:
    """Return the negative log-likelihood and the Brier score of each sample."""
    values, target = predictions.values.double(), predictions.target
    if predictions.from_logits:
        nll = F.cross_entropy(values, target, reduction="none")
    else:
        nll = F.nll_loss(values.clamp_min(torch.finfo(torch.float64).tiny).log(), target, reduction="none")
    brier = [
        (probs.double() - F.one_hot(labels, predictions.n_classes)).square().sum(1)
        for probs, labels in predictions.chunks()
    ]
    return nll.cpu().numpy(), torch.cat(brier).numpy()
