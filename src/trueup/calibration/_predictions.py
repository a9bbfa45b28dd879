"""Predictions and labels, checked in one pass, from which every measure is computed.

The top class costs one pass over cache-sized chunks, which also checks the values: from logits, its
probability is the reciprocal of the sum of `exp(logit - largest)`, so there is no softmax to store.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from trueup._numerics.chunking import chunk_size
from trueup.calibration._bins import Binning, Convention, Norm, Variant
from trueup.calibration._classwise import ClasswiseHistogram
from trueup.calibration._top_label import TopLabel
from trueup.calibration._validation import (
    ArrayLike,
    as_rows,
    check_logits,
    check_probs,
    check_target,
    from_numpy,
    sum_tolerance,
)

__all__ = ["Level", "Predictions", "Reduction"]

Level = Literal["top", "classwise", "positive"]
Reduction = Literal["sum", "mean", "top"]
RESOLUTION = 3000


class Predictions:
    """Probabilities or logits and labels, checked, with the top class found.

    Args:
        predictions: `(N,)` for class 1 of a binary problem, or `(N, C, *positions)`.
        target: class indices, `(N, *positions)`.
        from_logits: predictions are logits.
        tolerance: how far from 1 a row of probabilities may sum; by default `sum_tolerance` of their dtype.

    Attributes:
        values: predictions `(N, C)` in float32 or better; a binary problem has two columns.
        target: `(N,)`, int64.
        n_classes: C.

    Raises:
        TypeError, ValueError: see `_validation`.
    """

    def __init__(
        self,
        predictions: ArrayLike,
        target: ArrayLike,
        *,
        from_logits: bool = False,
        tolerance: float | None = None,
    ) -> None:
        given = from_numpy(predictions)
        rows = as_rows(given, "logits" if from_logits else "probabilities")
        if from_logits and rows.dim() == 2 and rows.shape[1] == 1:
            raise ValueError(
                f"logits of one class say nothing; got shape {tuple(given.shape)}: pass those of class 1 "
                "of a binary problem as (N,)"
            )
        if rows.dim() == 1:
            if not from_logits:
                check_probs(rows)
            rows = torch.stack([torch.zeros_like(rows) if from_logits else 1 - rows, rows], 1)
        self.values: Float[Tensor, "samples classes"] = rows
        self.from_logits = from_logits
        self.n_classes = rows.shape[1]
        self._rows = chunk_size(rows, self.n_classes, len(rows))
        self._tolerance = sum_tolerance(given.dtype) if tolerance is None else tolerance
        labels = check_target(target, tuple(given.shape), self.n_classes)
        self.target: Int[Tensor, " samples"] = labels.to(rows.device)
        self._largest, self._confidence, self._at_label = self.values.new_empty(3, len(rows))
        for start in range(0, len(rows), self._rows):
            self._find_top(slice(start, start + self._rows))
        if not from_logits:
            self._confidence = self._largest
        elif self._confidence.reciprocal_().isnan().any():  # NaN, +inf, or a row of -inf: this says which
            check_logits(rows)

    def select(self, rows: Int[Tensor, " selected"]) -> Predictions:
        """Return some of the samples."""
        values, target = self.values[rows], self.target[rows]
        return Predictions(values, target, from_logits=self.from_logits, tolerance=self._tolerance)

    def __len__(self) -> int:
        return len(self.values)

    def _find_top(self, rows: slice) -> None:
        chunk = self.values[rows]
        if not self.from_logits:
            check_probs(chunk, self._tolerance)
        largest = torch.amax(chunk, 1, out=self._largest[rows])
        torch.gather(chunk, 1, self.target[rows, None], out=self._at_label[rows, None])
        if self.from_logits:
            torch.sum((chunk - largest[:, None]).exp_(), 1, out=self._confidence[rows])

    @cached_property
    def correct(self) -> Tensor:
        """Flags `(N,)`: the label is the top class, the first of tied ones."""
        correct = torch.eq(self._at_label, self._largest)
        # Ties are looked for among few rows, which is cheaper than argmax of all; numpy finds these faster.
        maybe = np.flatnonzero((correct & (self._confidence <= (1 + self._tolerance) / 2)).cpu().numpy())
        tied = torch.from_numpy(maybe).to(correct.device)
        rows = self.values.index_select(0, tied)
        if (rows == self._largest[tied, None]).count_nonzero() > len(tied):
            correct[tied] = rows.argmax(1) == self.target[tied]
        return correct

    @cached_property
    def top(self) -> TopLabel:
        """The confidence of the top class."""
        return TopLabel.of(self._confidence.cpu().numpy(), self.correct.cpu().numpy())

    @cached_property
    def positive(self) -> TopLabel:
        """The probability of class 1 of two."""
        if self.n_classes != 2:
            raise ValueError(
                f"level='positive' needs a binary problem; got {self.n_classes} classes: pass the "
                "probability of one class as (N,), with labels 0 and 1"
            )
        return self.of_class(1)

    def of_class(self, label: int) -> TopLabel:
        """Return the probability of one class, and whether it is the true one."""
        column = self.values[:, label]
        if self.from_logits:
            column = (column - self._largest).exp() * self._confidence
        return TopLabel.of(column.cpu().numpy(), (self.target == label).cpu().numpy())

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return chunks of probabilities `(n, C)` and labels `(n,)`."""
        for start in range(0, len(self), self._rows):
            rows = slice(start, start + self._rows)
            probs = self.values[rows]
            if self.from_logits:
                probs = (probs - self._largest[rows, None]).exp_().mul_(self._confidence[rows, None])
            yield probs.cpu(), self.target[rows].cpu()

    @cached_property
    def classwise(self) -> ClasswiseHistogram:
        """Histograms of all classes, for the numbers of bins that divide 3000."""
        return ClasswiseHistogram(self.chunks, self.n_classes, len(self), RESOLUTION)

    def error(
        self,
        n_bins: int = 15,
        *,
        binning: Binning = "uniform",
        norm: Norm = "l1",
        level: Level = "top",
        debias: bool = False,
        convention: Convention | None = None,
        variant: Variant = "paper",
    ) -> float:
        """Return a binned calibration error at one level."""
        if level == "top":
            pairs = self.top
        elif level == "positive":
            pairs = self.positive
        elif binning == "uniform" and convention is None and variant == "paper":
            fits = RESOLUTION % n_bins == 0
            histogram = (
                self.classwise if fits else ClasswiseHistogram(self.chunks, self.n_classes, len(self), n_bins)
            )
            return histogram.error(n_bins, norm, debias)
        else:
            return self.sorted_classwise_error(n_bins, binning, norm, debias, convention, variant)
        return pairs.error(
            n_bins, binning=binning, norm=norm, debias=debias, convention=convention, variant=variant
        )

    def sorted_classwise_error(
        self,
        n_bins: int,
        binning: Binning = "quantile",
        norm: Norm = "l1",
        debias: bool = False,
        convention: Convention | None = None,
        variant: Variant = "paper",
    ) -> float:
        """Return the mean over classes of an error that needs the sorted probabilities of each class."""
        # The published code knows only the classes up to the largest label.
        classes = int(self.target.max()) + 1 if variant == "official" else self.n_classes
        errors = [
            self.of_class(k).error(
                n_bins, binning=binning, norm=norm, debias=debias, convention=convention, variant=variant
            )
            for k in range(classes)
        ]
        return float(np.mean(errors))

    def classwise_quantile_errors(self, n_bins: tuple[int, ...]) -> dict[int, float]:
        """Return the l1 error with quantile bins for several numbers of bins, from one sort of each class."""
        errors = np.zeros(len(n_bins))
        for k in range(self.n_classes):
            pairs = self.of_class(k)
            errors += [pairs.error(n, binning="quantile") for n in n_bins]
        return dict(zip(n_bins, (errors / self.n_classes).tolist()))

    def negative_log_likelihood(self) -> float:
        """Return the mean of -log p of the label; a probability of 0 counts as 2.2e-308."""
        at_label = self._at_label.double()
        if self.from_logits:
            return float((self._largest.double() - at_label - self._confidence.double().log()).mean())
        return float(-at_label.clamp_min(torch.finfo(torch.float64).tiny).log().mean())

    def brier_score(self, reduction: Reduction = "sum") -> float:
        """Return the mean squared distance of probabilities and outcomes."""
        if reduction == "top":
            return self.top.brier_score()
        total = 0.0
        for probs, target in self.chunks():
            residual = probs.to(torch.float64, copy=True)
            residual[torch.arange(len(target)), target] -= 1
            total += float(residual.square_().sum())
        return total / len(self) / (self.n_classes if reduction == "mean" else 1)
