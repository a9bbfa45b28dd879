"""Partial correlations of the parts of a whole: which of them go together, given all others.

Closure makes ordinary correlations of proportions spurious (what one part gains, the others lose), and
correlations of log-ratios depend on the choice of a reference part. Partial correlations have neither
problem: given all other parts, the correlation of two parts is the same for every reference, lies in [-1, 1]
and may be negative. It comes from the pseudo-inverse of the covariance of the centred log-ratios (see
`_compositions`). Like ordinary partial correlations it is not subcompositionally coherent: if a part is
left out, the others are no longer given that part.

Ionas Erb, Partial correlations in compositional data analysis, Applied Computing and Geosciences 6 (2020),
arXiv 1904.09480; basis shrinkage by Jin et al. (2023). There is no official code. The R package propr, by the
same group, replaces zeros silently; here zeros are an error unless you choose a replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from trueup.estimators import _compositions as compositions
from trueup.estimators._compositions import Shrinkage
from trueup.estimators._part_network import Edge, draw

if TYPE_CHECKING:
    from typing import Self

    from plotly.graph_objects import Figure

_CORRECTIONS = ("fdr_bh", "fdr_by", "bonferroni", None)
_ZERO_RULES = ("error", "min", "multiplicative")


@dataclass(frozen=True)
class PairTest:
    """Tests for zero partial correlation, one matrix entry per pair; NaN on the diagonals.

    Attributes:
        statistic: Fisher's z over its standard error; standard normal if the partial correlation is zero.
        pvalue: two-sided.
        adjusted_pvalue: corrected for the number of pairs.
    """

    statistic: Float[NDArray[np.float64], "parts parts"]
    pvalue: Float[NDArray[np.float64], "parts parts"]
    adjusted_pvalue: Float[NDArray[np.float64], "parts parts"]


class CompositionalPartialCorrelation(BaseEstimator):  # type: ignore[misc]
    """Partial correlations of the parts of compositions, free of any reference part.

    Args:
        shrinkage: None, which needs as many samples as parts; `"basis"` (recommended for few samples),
            which shrinks the covariance of the log proportions, then takes log-ratios; `"clr"`, which
            shrinks the covariance of the centred log-ratios and gives up the equivalence of references; a
            number from 0 (as None) to 1: basis shrinkage with that intensity for correlations and variances.
        zero_replace: `"error"`; `"min"`, every zero becomes the smallest non-zero entry of the matrix
            (this depends on the row sums); `"multiplicative"`, every zero becomes the share ``1 /
            parts**2`` and the other shares of that sample shrink in proportion (Martin-Fernandez et al.
            2003). To use a pseudo-count, add it to the counts.
        ddof: 0 or 1; covariances are divided by `samples - ddof`. Partial correlations do not depend on it.
        assume_centered: treat the log-ratios (for basis shrinkage, the log proportions) as having mean zero.

    Attributes:
        covariance_: covariance of the centred log-ratios, shrunk with `shrinkage`, `(parts, parts)`.
        precision_: its pseudo-inverse, `(parts, parts)`; computed from the next two when read.
        partial_correlation_: `(parts, parts)`, 1 on the diagonal.
        partial_variance_: `(parts,)`, the residual variance of the log of a part over any reference,
            regressed on all other log-ratios to that reference: the same for every reference.
        shrinkage_: the intensities used, of correlations and of variances, `(2,)`.
        condition_number_: of the covariance in the 1-norm, without its structural zero. When parts are
            nearly proportional, `precision_` loses at least half as many digits as this number has.
        n_samples_: number of samples.
        n_features_in_: number of parts.
        feature_names_in_: names of parts, if the input had names.

    `fit` raises ValueError for zeros (unless replaced), negative numbers, NaN, infinity, fewer than three
    parts or samples, fewer samples than parts without shrinkage, and linearly dependent log-ratios (two parts
    in a constant ratio, for example). Rows need not sum to a constant: multiplying a sample by a positive
    number changes nothing.

    Example:
        >>> from trueup import data
        >>> cups = data.load("roman-cups")
        >>> model = CompositionalPartialCorrelation().fit(cups.X)
        >>> iron, alumina = cups.feature_names.index("Fe"), cups.feature_names.index("Al")
        >>> round(float(model.partial_correlation_[iron, alumina]), 3)
        0.727
        >>> [(cups.feature_names[i], cups.feature_names[j]) for i, j, _ in model.edges(0.65)]
        [('Al', 'Fe'), ('Si', 'Al'), ('Si', 'Fe')]
    """

    def __init__(
        self,
        *,
        shrinkage: Shrinkage = None,
        zero_replace: Literal["error", "min", "multiplicative"] = "error",
        ddof: int = 1,
        assume_centered: bool = False,
    ) -> None:
        self.shrinkage = shrinkage
        self.zero_replace = zero_replace
        self.ddof = ddof
        self.assume_centered = assume_centered

    def fit(self, X: ArrayLike, y: None = None) -> Self:
        """Estimate from samples in rows and positive parts in columns; `y` is ignored.

        Raises:
            ValueError: see the class.
        """
        self._check_parameters()
        parts = validate_data(self, X, dtype=np.float64, ensure_min_samples=3, ensure_min_features=2)
        samples, n_parts = parts.shape
        if n_parts == 2:
            raise ValueError(
                "CompositionalPartialCorrelation needs at least 3 parts; got n_features = 2: two parts have "
                "one log-ratio, and their partial correlation is +1 by construction"
            )
        if self.shrinkage is None and samples < n_parts:
            raise ValueError(
                f"CompositionalPartialCorrelation without shrinkage needs as many samples as parts; got "
                f"n_samples = {samples}, n_features = {n_parts}: pass shrinkage='basis', or leave parts out"
            )
        parts = self._without_zeros(parts)
        # torch warns about read-only memory, although nothing here writes to it.
        values = torch.from_numpy(parts if parts.flags.writeable else parts.copy())
        with torch.no_grad():
            covariance, intensities = compositions.log_ratio_covariance(
                values, shrinkage=self.shrinkage, ddof=self.ddof, assume_centered=self.assume_centered
            )
            del parts, values
            self._set(covariance, samples, intensities.numpy())
        return self

    @property
    def precision_(self) -> Float[NDArray[np.float64], "parts parts"]:
        check_is_fitted(self)
        scale = self.partial_variance_**-0.5
        precision = np.outer(-scale, scale)
        precision *= self.partial_correlation_
        np.fill_diagonal(precision, 1 / self.partial_variance_)
        return precision

    def conditional(self, parts: Sequence[str | int]) -> CompositionalPartialCorrelation:
        """Condition on chosen parts only; return a fitted estimator of the subcomposition of `parts`.

        Its partial correlation of two parts is that of their log-ratios given the log-ratios among the
        remaining `parts`, and is as free of a reference as the full one. Parts that are left out are
        neither given nor a reference. All methods work on the result.

        Args:
            parts: at least three names or indices, without repetition.

        Raises:
            ValueError: for fewer than three, unknown or repeated parts, and after shrinkage in clr space,
                whose covariance is not one of log-ratios.

        Example:
            >>> from trueup import data
            >>> model = CompositionalPartialCorrelation().fit(data.load("roman-cups").X)
            >>> given_calcium = model.conditional([1, 2, 4])  # alumina and iron, given no other log-ratio
            >>> round(float(given_calcium.partial_correlation_[0, 1]), 3)
            0.367
        """
        check_is_fitted(self)
        if isinstance(self.shrinkage, str) and self.shrinkage == "clr":
            raise ValueError("conditional needs a covariance of log-ratios: fit with shrinkage='basis'")
        index = [self._index(part) for part in parts]
        if len(index) < 3 or len(set(index)) < len(index):
            raise ValueError(f"conditional needs three or more different parts; got {list(parts)}")
        part_of_self = CompositionalPartialCorrelation(**self.get_params())
        part_of_self.n_features_in_ = len(index)
        if hasattr(self, "feature_names_in_"):
            part_of_self.feature_names_in_ = self.feature_names_in_[index]
        covariance = compositions.centre(torch.from_numpy(self.covariance_[np.ix_(index, index)]))
        part_of_self._set(covariance, self.n_samples_, self.shrinkage_)
        return part_of_self

    def multiple_r2(self, reference: str | int) -> Float[NDArray[np.float64], " parts"]:
        """Return the share of the variance of log(part / reference) that all other log-ratios explain.

        Unlike partial variances, it depends on the reference: report the reference with it.

        Returns:
            One number per part, 0 at the reference itself.

        Raises:
            ValueError: for an unknown part.

        Example:
            >>> from trueup import data
            >>> model = CompositionalPartialCorrelation().fit(data.load("roman-cups").X)
            >>> model.multiple_r2(0).round(2)[:3]
            array([0.  , 0.9 , 0.93])
        """
        check_is_fitted(self)
        r = self._index(reference)
        variance = self.covariance_.diagonal()
        of_log_ratio = variance + variance[r] - 2 * self.covariance_[r]
        of_log_ratio[r] = self.partial_variance_[r]
        return np.asarray(1 - self.partial_variance_ / of_log_ratio)

    def edges(self, threshold: float) -> list[Edge]:
        """Return the pairs with `|partial correlation| >= threshold`, the strongest first.

        Raises:
            ValueError: for a threshold outside [0, 1].
        """
        check_is_fitted(self)
        if not 0 <= threshold <= 1:
            raise ValueError(f"edges needs a threshold from 0 to 1; got {threshold}")
        correlation = self.partial_correlation_
        first, second = np.triu_indices_from(correlation, k=1)
        strength = np.abs(correlation[first, second])
        order = np.argsort(-strength, kind="stable")
        order = order[strength[order] >= threshold]
        names = self._names()
        return [
            Edge(names[i], names[j], float(correlation[i, j]))
            for i, j in zip(first[order], second[order], strict=True)
        ]

    def test(self, correction: Literal["fdr_bh", "fdr_by", "bonferroni"] | None = "fdr_bh") -> PairTest:
        """Test every pair for zero partial correlation, by Fisher's z with variance 1 / (samples - parts).

        Args:
            correction: for the number of pairs: false discovery rate by Benjamini-Hochberg (`"fdr_bh"`) or,
                for any dependence, Benjamini-Yekutieli (`"fdr_by"`); family-wise error by `"bonferroni"`;
                None.

        Raises:
            ValueError: for an unknown correction, after shrinkage (which biases towards zero, so that the
                null distribution does not hold), and unless there are more samples than parts.

        Example:
            >>> from trueup import data
            >>> model = CompositionalPartialCorrelation().fit(data.load("roman-cups").X)
            >>> int((model.test().adjusted_pvalue < 0.05).sum() // 2)  # of 55 pairs
            4
        """
        if correction not in _CORRECTIONS:
            raise ValueError(f"test needs a correction among {_CORRECTIONS}; got {correction!r}")
        z, error = self._fisher_z("test")
        statistic = z / error
        np.fill_diagonal(statistic, np.nan)
        pvalue = 2 * stats.norm.sf(np.abs(statistic))
        pair = np.triu_indices_from(pvalue, k=1)
        adjusted = np.full_like(pvalue, np.nan)
        if correction is None:
            adjusted[pair] = pvalue[pair]
        elif correction == "bonferroni":
            adjusted[pair] = np.minimum(1, pvalue[pair] * len(pair[0]))
        else:
            adjusted[pair] = stats.false_discovery_control(
                pvalue[pair], method=correction.removeprefix("fdr_")
            )
        adjusted.T[pair] = adjusted[pair]
        return PairTest(statistic, pvalue, adjusted)

    def confidence_interval(
        self, level: float = 0.95
    ) -> tuple[Float[NDArray[np.float64], "parts parts"], Float[NDArray[np.float64], "parts parts"]]:
        """Return lower and upper limits of every partial correlation, by Fisher's z; 1 on the diagonals.

        Raises:
            ValueError: for a level outside (0, 1), after shrinkage, and unless there are more samples than
                parts.
        """
        if not 0 < level < 1:
            raise ValueError(f"confidence_interval needs a level between 0 and 1; got {level}")
        z, error = self._fisher_z("confidence_interval")
        half = stats.norm.ppf((1 + level) / 2) * error
        low, high = np.tanh(z - half), np.tanh(z + half)
        np.fill_diagonal(low, 1.0)
        np.fill_diagonal(high, 1.0)
        return low, high

    def plot(self, threshold: float = 0.3) -> Figure:
        """Draw the network of parts: an edge wherever `|partial correlation| >= threshold`.

        Wider edges are stronger; solid blue edges join parts that go together, dotted red ones parts that go
        apart. Strongly linked parts are drawn close to each other; positions have no other meaning.

        Returns:
            A plotly figure: `.show()` opens it, `.write_html(path)` saves it.

        Raises:
            ValueError: for a threshold outside [0, 1].
            ImportError: without the `plot` extra.
        """
        check_is_fitted(self)

        return draw(self._names(), self.edges(threshold), self.partial_variance_, threshold)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.target_tags.required = False
        return tags

    def _check_parameters(self) -> None:
        number = isinstance(self.shrinkage, (int, float)) and not isinstance(self.shrinkage, bool)
        if not (
            self.shrinkage is None
            or (isinstance(self.shrinkage, str) and self.shrinkage in ("clr", "basis"))
            or (number and 0 <= self.shrinkage <= 1)  # type: ignore[operator]
        ):
            raise ValueError(
                f"shrinkage must be None, 'clr', 'basis' or a number from 0 to 1; got {self.shrinkage!r}"
            )
        if self.zero_replace not in _ZERO_RULES:
            raise ValueError(f"zero_replace must be one of {_ZERO_RULES}; got {self.zero_replace!r}")
        if self.ddof not in (0, 1):
            raise ValueError(f"ddof must be 0 or 1; got {self.ddof!r}")

    def _without_zeros(self, parts: NDArray[np.float64]) -> NDArray[np.float64]:
        low = parts.min()
        if low > 0:
            return parts
        if low < 0:
            where = self._names()[int(np.unravel_index(parts.argmin(), parts.shape)[1])]
            raise ValueError(
                f"Negative values in data passed to CompositionalPartialCorrelation: parts are amounts, so "
                f"they must be positive; got {low:g} in part {where!r}"
            )
        zero = parts == 0
        if self.zero_replace == "error":
            columns = [self._names()[j] for j in np.flatnonzero(zero.any(axis=0))]
            raise ValueError(
                f"CompositionalPartialCorrelation needs positive parts; got {int(zero.sum())} zeros, in "
                f"parts {columns}: pass zero_replace='multiplicative' or 'min', or leave these parts out"
            )
        if (empty := np.flatnonzero(zero.all(axis=1))).size:
            raise ValueError(f"samples {empty.tolist()} are all zeros: leave them out")
        if self.zero_replace == "min":
            return np.asarray(np.where(zero, parts[~zero].min(), parts))
        share = 1 / parts.shape[1] ** 2
        proportions = parts / parts.sum(axis=1, keepdims=True)
        return np.asarray(np.where(zero, share, proportions * (1 - share * zero.sum(axis=1, keepdims=True))))

    def _set(self, covariance: torch.Tensor, samples: int, intensities: NDArray[np.float64]) -> None:
        try:
            precision, condition = compositions.log_ratio_precision(covariance, shrinkage=self.shrinkage)
        except compositions.RankLossError as error:
            raise compositions.RankLossError(f"{error}.{self._constant_ratios(covariance)}") from error
        self.covariance_: NDArray[np.float64] = covariance.numpy()
        self.partial_variance_: NDArray[np.float64] = 1 / precision.numpy().diagonal()
        # Overwrites the precision: one matrix is kept, and the precision can be computed from it.
        correlation = compositions.precision_to_correlation(precision)
        self.partial_correlation_: NDArray[np.float64] = correlation.numpy()
        self.condition_number_ = float(condition)
        self.shrinkage_ = intensities
        self.n_samples_ = samples

    def _constant_ratios(self, covariance: torch.Tensor) -> str:
        """Name the pair whose ratio varies least, if it hardly varies at all."""
        variance = covariance.diagonal()
        of_ratio = (variance[:, None] + variance - 2 * covariance).numpy()
        np.fill_diagonal(of_ratio, np.inf)
        i, j = np.unravel_index(of_ratio.argmin(), of_ratio.shape)
        if of_ratio[i, j] > 1e-12 * float(variance.max()):
            return ""
        return f" The ratio of parts {self._names()[i]!r} and {self._names()[j]!r} is constant."

    def _fisher_z(self, method: str) -> tuple[NDArray[np.float64], float]:
        check_is_fitted(self)
        if self.shrinkage_.any():
            raise ValueError(
                f"{method} needs a fit without shrinkage (this one has shrinkage={self.shrinkage!r}): shrunk "
                "partial correlations are biased towards zero, so their null distribution is not known"
            )
        freedom = self.n_samples_ - self.n_features_in_
        if freedom <= 0:
            raise ValueError(
                f"{method} needs more samples than parts; got {self.n_samples_} samples of "
                f"{self.n_features_in_} parts"
            )
        correlation = self.partial_correlation_.copy()
        np.fill_diagonal(correlation, 0.0)
        # z is infinite at exactly +-1, and rounding must not go beyond.
        bound = np.nextafter(1.0, 0.0)
        return np.arctanh(np.clip(correlation, -bound, bound)), freedom**-0.5

    def _names(self) -> list[Any]:
        names = getattr(self, "feature_names_in_", None)
        return list(range(self.n_features_in_)) if names is None else list(names)

    def _index(self, part: str | int) -> int:
        names = self._names()
        if isinstance(part, str) and part in names:
            return names.index(part)
        if isinstance(part, (int, np.integer)) and not isinstance(part, bool) and 0 <= part < len(names):
            return int(part)
        raise ValueError(f"unknown part {part!r}: pass an index below {len(names)} or one of {names}")
