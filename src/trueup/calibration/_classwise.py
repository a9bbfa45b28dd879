"""Calibration of every class: one histogram for all numbers of bins that divide its resolution.

A sample contributes one pair per class: the class's probability, and whether the class is the true one. All
nine usual numbers of bins divide 3000, so that their bins are sums of neighbours in one histogram of 3000.

A bin is (k/3000, (k+1)/3000], found by one multiplication in float64. That product is exact for float32, and
float32 values keep a distance from the float64 edges they are not equal to. Float64 values do not; those
within rounding of an edge are put aside and compared with the edges themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from trueup.calibration._bins import Bins, Norm

__all__ = ["ClasswiseHistogram"]

Chunks = Callable[[], Iterator[tuple[Tensor, Tensor]]]
Sums = Float[NDArray[np.float64], "classes bins"]

ON_EDGE = 1e-12


@dataclass(frozen=True)
class OnEdge:
    """Pairs within rounding of an edge, which no histogram holds."""

    label: Tensor
    prob: Tensor
    hit: Tensor

    def add(self, sums: Sums, weights: Tensor) -> Sums:
        """Add a weight per pair to sums over bins (lo, hi] of these pairs."""
        edges = torch.from_numpy(np.linspace(0, 1, sums.shape[-1] + 1))
        place = torch.searchsorted(edges, self.prob) - 1 + sums.shape[-1] * self.label
        return sums + np.bincount(place, weights, sums.size).reshape(sums.shape)


class ClasswiseHistogram:
    """Histograms of the probability of each class.

    Args:
        chunks: returns an iterator over all samples, in chunks of probabilities `(n, C)` and labels `(n,)`.
        n_classes: C.
        total: number of samples.
        resolution: bins of the histogram, which are summed to any number of bins that divides it.
    """

    def __init__(self, chunks: Chunks, n_classes: int, total: int, resolution: int = 3000) -> None:
        self.chunks = chunks
        self.n_classes = n_classes
        self.total = total
        self.resolution = resolution

    def error(self, n_bins: int, norm: Norm = "l1", debias: bool = False) -> float:
        """Return the mean over classes of a calibration error with uniform bins."""
        if norm == "l1":  # needs no counts, which saves one pass
            return float(np.abs(self.gap(n_bins)).sum(-1).mean() / self.total)
        return self.bins(n_bins).error(norm, debias)

    def bins(self, n_bins: int) -> Bins:
        """Return the sums of each bin, `(C, n_bins)`."""
        pairs = self._sums[2]
        count = pairs.add(self._coarse(self._counts, n_bins), torch.ones_like(pairs.prob))
        hits = pairs.add(self._coarse(self._sums[1], n_bins), pairs.hit)
        return Bins(count, self.gap(n_bins), hits, self.total)

    def gap(self, n_bins: int) -> Sums:
        """Return the sums of probability minus outcome in each bin, `(C, n_bins)`."""
        probs, hits, pairs = self._sums
        return pairs.add(self._coarse(probs, n_bins) - self._coarse(hits, n_bins), pairs.prob - pairs.hit)

    def _coarse(self, fine: NDArray[np.float64], n_bins: int) -> Sums:
        return np.asarray(np.sum(fine.reshape(self.n_classes, n_bins, -1), -1))

    @cached_property
    def _sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64], OnEdge]:
        """Sums of probabilities and of outcomes, and the pairs that are in neither."""
        probs, hits = torch.zeros(2, self._size + 1, dtype=torch.float64)
        aside = []
        for chunk, target in self.chunks():
            values, place = self._place(chunk)
            probs.index_add_(0, place.flatten(), values.flatten())
            at_label = place.gather(1, target[:, None]).flatten()
            hits.index_add_(0, at_label, torch.ones_like(at_label, dtype=hits.dtype))
            if chunk.dtype == torch.float64:
                row, label = (place == self._size).nonzero(as_tuple=True)
                aside.append((label, values[row, label], (target[row] == label).double()))
        empty = torch.zeros(0, dtype=torch.float64)
        columns = [torch.cat(column) for column in zip(*aside)] if aside else [empty.long(), empty, empty]
        return probs[:-1].numpy(), hits[:-1].numpy(), OnEdge(*columns)

    @cached_property
    def _counts(self) -> NDArray[np.float64]:
        count = torch.zeros(self._size + 1, dtype=torch.float64)
        for chunk, _ in self.chunks():
            place = self._place(chunk)[1].flatten()
            count.index_add_(0, place, torch.ones_like(place, dtype=count.dtype))
        return count[:-1].numpy()

    @property
    def _size(self) -> int:
        return self.n_classes * self.resolution

    def _place(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities in float64, and their places: the end of the histogram if on an edge."""
        values = probs.to("cpu", torch.float64)
        scaled = values * self.resolution
        place = scaled.ceil().long().sub_(1).clamp_(0)
        place += torch.arange(0, self._size, self.resolution)
        if probs.dtype == torch.float64:
            edge = scaled.round()
            near = (scaled - edge).abs() < ON_EDGE * self.resolution
            place[near & (edge > 0) & (edge < self.resolution)] = self._size
        return values, place
