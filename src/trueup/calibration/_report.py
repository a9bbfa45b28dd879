"""All measures of calibration of one model in one call, and what the number of samples allows to say.

Calibration errors in many bins of few samples are large for every model, even for a calibrated one. The
report therefore sets values beside their noise floors (see `_columns`), and marks those less than twice as
high: they say more about the number of samples than about the model.

Intervals are percentiles over resamples of the samples (B. Efron, Bootstrap methods: another look at the
jackknife, 1979). A resample repeats samples, which raises these errors once more: the interval of a marked
value can lie above the value itself.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trueup.calibration._binned_measures import ReliabilityCurve, pairs_curve, reliability_curve
from trueup.calibration._bins import DEFAULT_BINS, Binning, check_bins, check_option
from trueup.calibration._columns import measure, observed, resamples
from trueup.calibration._predictions import Level, Predictions
from trueup.calibration._reliability_diagram import draw
from trueup.calibration._validation import ArrayLike, as_rows, check_label_shape, from_numpy, sum_tolerance

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

__all__ = ["CalibrationReport"]

LEVELS: tuple[Level, ...] = ("top", "classwise", "positive")
MIN_SAMPLES = 30  # of a bootstrap
BINNED = re.compile(r"(.+)_(\d+)")


class CalibrationReport:
    """Measure the calibration of a classifier in every way at once.

    Columns carry their number of bins: `ece_15` is the expected calibration error in 15 bins of equal width.

    | column | function |
    | --- | --- |
    | `ece_B`, `mce_B`, `ace_B`, `rmsce_B` | `calibration_error`, `norm` `"l1"`, `"max"`, `"mean"`, `"l2"` |
    | `ece_em_B` | `adaptive_calibration_error`: bins of equal mass |
    | `ece_debiased_B` | `debiased_calibration_error` |
    | `oe_B`, `ue_B` | `overconfidence_error`, `underconfidence_error` |
    | `cwce_B`, `cwce_em_B`, `tace_B` | `classwise_calibration_error`, with quantile bins, with a threshold |
    | `ece_positive_B`, `ece_em_positive_B` | `calibration_error` of P(y = 1), in binary problems |
    | `ece_sweep`, `ks`, `kde`, `mmce` | the functions of these names |
    | `nll`, `brier` | `negative_log_likelihood`, `brier_score` |
    | `auroc`, `aurc`, `excess_aurc` | `correctness_auroc`, `aurc`, `excess_aurc` |
    | `accuracy`, `confidence`, `gap` | means of the predicted class, and `confidence_gap` |
    | `confidence_correct`, `confidence_incorrect` | mean confidence of correct and of incorrect predictions |

    Args:
        logits_or_probs: `(N, C)`, `(N, C, *positions)`, or `(N,)` for class 1 of a binary problem.
        target: class labels `(N,)` or `(N, *positions)`.
        from_logits: the predictions are logits. None decides by the values: those in [0, 1] are
            probabilities, and so are rows that sum to one. The report says which, and invalid ones raise.
        n_bins: one number of bins, or several.
        levels: `"top"` for the predicted class, `"classwise"` for the mean over classes, `"positive"` for
            class 1 of a binary problem. None takes all that apply.
        groups: one value per sample, as in a column of a table, for a report per group in `by_group`.
        n_bootstrap: resamples for `confidence_intervals`; 200 to 1000 are usual.
        confidence_level: of the intervals.
        seed: of the resamples.

    Raises:
        TypeError: predictions that are not floating point, or labels that are not integers.
        ValueError: invalid predictions or labels, `n_bins` that are not positive, `"positive"` for more than
            two classes, or groups that are not one per sample.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> report = CalibrationReport(probs, torch.tensor([0, 0, 1, 1]), n_bins=(5, 15))
        >>> round(report.to_dict()["ece_5"], 3)
        0.15
    """

    def __init__(
        self,
        logits_or_probs: ArrayLike,
        target: ArrayLike,
        *,
        from_logits: bool | None = None,
        n_bins: int | np.integer | Sequence[int] = DEFAULT_BINS,
        levels: Sequence[Level] | None = None,
        groups: Sequence[Any] | Tensor | NDArray[Any] | None = None,
        n_bootstrap: int = 0,
        confidence_level: float = 0.95,
        seed: int = 0,
    ) -> None:
        self.n_bins: tuple[int, ...] = tuple(np.atleast_1d(n_bins).tolist())
        for bins in self.n_bins:
            check_bins(bins)
        if not self.n_bins:
            raise ValueError("n_bins is empty: pass the numbers of bins, as in n_bins=(10, 15)")
        if n_bootstrap < 0:
            raise ValueError(f"n_bootstrap must be at least 0; got {n_bootstrap}: 200 to 1000 are usual")
        if not 0 < confidence_level < 1:
            raise ValueError(
                f"confidence_level must be between 0 and 1; got {confidence_level}: 0.95 is usual"
            )
        self.from_logits = _are_logits(logits_or_probs) if from_logits is None else from_logits
        self.n_bootstrap, self.confidence_level, self.seed = n_bootstrap, confidence_level, seed
        self._predictions = Predictions(logits_or_probs, target, from_logits=self.from_logits)
        binary = self._predictions.n_classes == 2
        self.levels = tuple(level for level in LEVELS if level != "positive" or binary)
        if levels is not None:
            for level in levels:
                check_option("levels", level, Level)
            if "positive" in levels and not binary:
                raise ValueError(
                    f"the positive class needs two classes; got {self._predictions.n_classes}: leave out "
                    "levels, or pass the probability of one class as (N,), with labels 0 and 1"
                )
            self.levels = tuple(level for level in LEVELS if level in levels)
        self._measure()
        self.by_group: dict[Any, CalibrationReport] = {}
        if groups is not None:
            self.by_group = dict(self._split(groups, tuple(np.shape(logits_or_probs))))

    def _measure(self) -> None:
        self._values, self._floors = measure(
            observed(self._predictions, self.levels), self.n_bins, self.levels, with_floors=True
        )

    @property
    def n_samples(self) -> int:
        """Number of samples; positions of a map count as samples."""
        return len(self._predictions)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self._predictions.n_classes

    def to_dict(self) -> dict[str, float]:
        """Return the value of every column.

        A value that the samples do not define is NaN: the AUROC without a wrong prediction, or the error of
        density estimates without two different confidences of correct ones.
        """
        return dict(self._values)

    @property
    def noise_floor(self) -> dict[str, float]:
        """The typical value of a calibrated model with the same confidences and number of samples.

        For the columns that are positive by chance and have a closed form. It is the mean, or the root mean
        square of `rmsce` and `mmce`, and for `mce` the largest of the bins' expected deviations, which is
        usually less than its mean.
        """
        return dict(self._floors)

    @property
    def dominated_by_noise(self) -> tuple[str, ...]:
        """Columns less than twice their noise floor: more samples or fewer bins are needed."""
        return tuple(name for name, floor in self._floors.items() if self._values[name] < 2 * floor)

    @cached_property
    def confidence_intervals(self) -> dict[str, tuple[float, float]]:
        """Percentile intervals of all columns over `n_bootstrap` resamples.

        Raises:
            ValueError: without `n_bootstrap`, or with fewer than 30 samples.
        """
        if self.n_bootstrap == 0:
            raise ValueError("intervals need resamples: pass n_bootstrap=200 or more")
        if self.n_samples < MIN_SAMPLES:
            raise ValueError(
                f"{self.n_samples} samples are too few for bootstrap intervals, which need {MIN_SAMPLES}: "
                "collect more"
            )
        draws = [
            list(measure(sample, self.n_bins, self.levels, with_floors=False)[0].values())
            for sample in resamples(self._predictions, self.levels, self.n_bootstrap, self.seed)
        ]
        tail = (1 - self.confidence_level) / 2
        with warnings.catch_warnings():  # of columns that no resample defines
            warnings.simplefilter("ignore", RuntimeWarning)
            low, high = np.nanquantile(np.array(draws), [tail, 1 - tail], axis=0).tolist()
        return dict(zip(self._values, zip(low, high)))

    def to_frame(self) -> pd.DataFrame:
        """Return a row per column of the report, with its interval and noise floor (NaN where there is none).

        Raises:
            ImportError: pandas is missing; it comes with the extra `trueup[data]`.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install 'trueup[data]'") from error
        frame = pd.DataFrame({"value": self._values})
        intervals = self.confidence_intervals if self._has_intervals else {}
        for side, name in enumerate(("low", "high")):
            frame[name] = pd.Series(
                {c: ends[side] for c, ends in intervals.items()}, frame.index, dtype=float
            )
        frame["noise_floor"] = pd.Series(self._floors, frame.index, dtype=float)
        frame["dominated_by_noise"] = frame.index.isin(self.dominated_by_noise)
        return frame

    def reliability_curve(
        self, *, n_bins: int = 15, binning: Binning = "uniform", level: Literal["top", "positive"] = "top"
    ) -> ReliabilityCurve:
        """Return the data of the reliability diagram, as the function `reliability_curve`."""
        check_bins(n_bins)
        check_option("binning", binning, Binning)
        check_option("level", level, Literal["top", "positive"])
        return pairs_curve(getattr(self._predictions, level), n_bins, binning)

    def figure(
        self,
        *,
        n_bins: int = 15,
        binning: Binning = "uniform",
        level: Level = "top",
        by_group: bool = False,
    ) -> Figure:
        """Draw the reliability diagram as a plotly figure; see `reliability_diagram`.

        Args:
            n_bins: number of bins.
            binning: of equal width or of equal mass.
            level: `"classwise"` draws a curve per class.
            by_group: draw a curve per group.

        Raises:
            ValueError: `by_group` of a report without groups, or together with `"classwise"`.
            ImportError: plotly is missing; it comes with the extra `trueup[plot]`.
        """
        if by_group and (level == "classwise" or not self.by_group):
            raise ValueError(
                "by_group draws one curve per group: make the report with groups, and pass level='top' or "
                "'positive'"
            )
        if level == "classwise":
            p = self._predictions
            probs = torch.cat([chunk for chunk, _ in p.chunks()])
            curves = {
                f"class {k}": reliability_curve(
                    probs[:, k],
                    (p.target == k).long().cpu(),
                    n_bins=n_bins,
                    binning=binning,
                    level="positive",
                )
                for k in range(self.n_classes)
            }
        else:
            reports = self.by_group if by_group else {"all samples": self}
            curves = {
                str(name): report.reliability_curve(n_bins=n_bins, binning=binning, level=level)
                for name, report in reports.items()
            }
        return draw(curves, probability=level != "top")

    def __repr__(self) -> str:
        kind = "logits" if self.from_logits else "probabilities"
        samples = f"{self.n_samples} sample" + "s" * (self.n_samples != 1)
        return f"<CalibrationReport of {samples}, {self.n_classes} classes, read as {kind}>"

    def __str__(self) -> str:
        """Return a table of measures by numbers of bins, with a star at values dominated by noise."""
        lines = [repr(self)[1:-1].replace("CalibrationReport", "Calibration"), ""]
        marked = set(self.dominated_by_noise)
        intervals = self.confidence_intervals if self._has_intervals else {}

        def cell(name: str) -> str:
            return f"{self._values[name]:.4f}" + ("*" if name in marked else " ")

        def interval(name: str) -> str:
            return "[{:.4f}, {:.4f}]".format(*intervals[name]) if name in intervals else ""

        for name in self._values:
            if not BINNED.fullmatch(name):
                lines.append(f"{name:21}{cell(name):>9}  {interval(name)}".rstrip())
        families = list(dict.fromkeys(m[1] for name in self._values if (m := BINNED.fullmatch(name))))
        if families:
            lines += ["", f"{'bins':16}" + "".join(f"{bins:>8} " for bins in self.n_bins)]
            for family in families:
                cells = "".join(f"{cell(f'{family}_{bins}'):>9}" for bins in self.n_bins)
                lines.append(f"{family:16}{cells}")
        if intervals:
            bins = min(self.n_bins, key=lambda b: abs(b - 15))
            lines += ["", f"{self.confidence_level:.0%} intervals, {self.n_bootstrap} resamples, {bins} bins"]
            lines += [f"{family:16}{interval(f'{family}_{bins}')}" for family in families]
        lines += self._remarks()
        if self.by_group:
            lines += ["", *self._group_lines()]
        return "\n".join(lines)

    def _remarks(self) -> Iterator[str]:
        if self.dominated_by_noise:
            yield ""
            yield f"* too few samples: less than twice what a calibrated model would show on {self.n_samples}"
        if self.n_bootstrap and not self._has_intervals:
            yield ""
            yield f"No intervals: {self.n_samples} samples are too few, they need at least {MIN_SAMPLES}."

    def _group_lines(self) -> Iterator[str]:
        bins = min(self.n_bins, key=lambda b: abs(b - 15))
        names = ("accuracy", "confidence", "gap", f"ece_{bins}", f"cwce_{bins}", "ks", "nll", "brier")
        shown = [name for name in names if name in self._values]
        yield f"{'group':16}{'samples':>9}" + "".join(f"{name:>11} " for name in shown)
        for group, report in self.by_group.items():
            noisy = report.dominated_by_noise
            cells = (f"{report._values[c]:.4f}" + ("*" if c in noisy else " ") for c in shown)
            yield f"{str(group)[:15]:16}{report.n_samples:>9}" + "".join(f"{text:>12}" for text in cells)

    @property
    def _has_intervals(self) -> bool:
        return self.n_bootstrap > 0 and self.n_samples >= MIN_SAMPLES

    def _split(self, groups: Any, predictions: tuple[int, ...]) -> Iterator[tuple[Any, CalibrationReport]]:
        values = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
        check_label_shape("groups", values, predictions)
        try:
            names, member = np.unique(values.ravel(), return_inverse=True)
        except TypeError:
            raise TypeError(
                "groups must be values of one kind, such as strings or integers, and none missing: convert "
                "or fill them"
            ) from None
        for i, name in enumerate(names.tolist()):
            report = copy.copy(self)
            report._predictions = self._predictions.select(torch.from_numpy(np.flatnonzero(member == i)))
            report._measure()
            yield name, report


def _are_logits(values: ArrayLike) -> bool:
    """Tell logits from probabilities; what could be either counts as probabilities, which are checked."""
    given = from_numpy(values)
    rows = as_rows(given, "predictions")
    low, high = (float(v) for v in torch.aminmax(rows))
    in_range = low >= 0 and high <= 1
    sum_to_one = rows.dim() == 2 and bool(((rows.sum(1) - 1).abs() < sum_tolerance(given.dtype)).all())
    return not in_range and not sum_to_one
