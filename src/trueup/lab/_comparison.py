"""Compare two arms of a user's own results by the verdict rule of studies.

Results are rows of arm, seed and metric, with a condition if there are several. Conditions are averaged
within each seed, the seeds are paired, and the rule decides. No result is dropped or filled in: results that
cannot be paired are an error. Choose the number of seeds beforehand: adding seeds until the answer is
pleasing finds false gains.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from trueup.lab import _formatting as formatting
from trueup.lab import _sentences as sentences
from trueup.lab import _verdict as verdict
from trueup.lab._contrasts import Contrast, SeedCells, difference, log_ratio
from trueup.lab._outcomes import own_words
from trueup.lab._power import more_seeds
from trueup.lab._scoring import Metric, as_number, plain
from trueup.lab._verdict import ALPHA, Judgement, Survival

if TYPE_CHECKING:
    import pandas as pd

Frame: TypeAlias = "pd.DataFrame | Mapping[str, Sequence[Any]]"


@dataclass(frozen=True)
class Row:
    """One result: an arm at a seed and a condition, with its scored metric."""

    arm: str
    seed: Hashable
    condition: tuple[tuple[str, Any], ...]
    value: float
    diverged: bool = False


@dataclass(frozen=True)
class Comparison:
    """The judgement of a user's own results.

    Attributes:
        judgement: of method against baseline.
        controls: the judgement of method against each control, if there is a gain. The margin is the same, or
            0 if the gain is smaller than the margin.
        seeds: the paired seeds, in the order of `judgement.d`.
        rows: the results that were used.
    """

    metric: str
    higher: bool
    baseline: str
    method: str
    min_effect: float
    contrast: Contrast
    judgement: Judgement
    seeds: tuple[Hashable, ...]
    rows: tuple[Row, ...]
    controls: Mapping[str, Judgement]
    worst: float | None = None

    @property
    def word(self) -> str:
        """The outcome as text for own results, for example `better`."""
        return own_words(self.judgement.outcome)

    @property
    def control(self) -> Survival | None:
        """Whether the gain survives its controls; `None` if there is no gain, or no control."""
        return verdict.survival(list(self.controls.values()))

    @property
    def sentence(self) -> str:
        """The outcome, the effect and its interval, in one sentence."""
        text = f"{sentences.body(self._claim())}: {self.word}"
        if self.judgement.note:
            text += f": {self.judgement.note}"
        if fresh := self.fresh_seeds:
            text += f"; about {fresh:,} fresh seeds, judged on their own, would decide an effect of this size"
        elif self.judgement.n == 1:
            text += (
                f"; {verdict.fewest_seeds(self.judgement.alpha)} fresh seeds are the fewest that can decide"
            )
        text += "."
        if diverged := Counter(row.arm for row in self.rows if row.diverged):
            runs = ", ".join(f"{count} of {arm}" for arm, count in diverged.items())
            text += f" Diverged or worse, and so counted as {formatting.number(self.worst)}: {runs}."
        return text

    @property
    def fresh_seeds(self) -> int | None:
        """The approximate number of seeds that a new comparison needs.

        `None` if seeds do not help or are not needed, or for a single seed, which shows no spread. The seeds
        already seen do not count: adding to them until the answer is pleasing finds false gains.
        """
        more = more_seeds(self.judgement)
        return None if more is None else self.judgement.n + more

    @property
    def control_sentence(self) -> str:
        """One sentence on whether a control explains the gain; empty if there is no gain, or no control."""
        return sentences.control_sentence(self._claim())

    def to_dict(self) -> dict[str, Any]:
        """Return a claim as in the outcome document, with `word` and everything else that a page shows."""
        roles = {self.method: "method", self.baseline: "baseline"}
        grid: dict[str, dict[Any, None]] = {}
        for row in self.rows:
            for name, value in row.condition:
                grid.setdefault(name, {})[value] = None
        claim = self._claim()
        return claim | {
            "contrast": sentences.contrast_label(claim),
            "title": f"{self.method} against {self.baseline}",
            "words": self.word,
            "arms": [
                {"name": arm, "label": arm, "role": roles.get(arm, "control"), "settings": {}}
                for arm in dict.fromkeys(row.arm for row in self.rows)
            ],
            "metrics": [
                {
                    "name": self.metric,
                    "label": self.metric,
                    "higher": self.higher,
                    "worst": self.worst,
                    "unit": "",
                    "scale_factor": 1,
                }
            ],
            "conditions": [{"name": name, "values": list(values)} for name, values in grid.items()],
            "sentence": self.sentence,
            "control_sentence": self.control_sentence,
            "cells": [
                {
                    "arm": row.arm,
                    "seed": row.seed,
                    "condition": dict(row.condition),
                    "status": "diverged" if row.diverged else "ok",
                    "numbers": {self.metric: row.value},
                }
                for row in self.rows
            ],
        }

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.sentence, self.control_sentence)))

    def _claim(self) -> dict[str, Any]:
        diverged = Counter(row.arm for row in self.rows if row.diverged)
        return {
            "name": "comparison",
            "statement": f"{self.method} is better than {self.baseline} in {self.metric}",
            "origin": "user",
            "primary": True,
            "kind": "statistical",
            "requires": [],
            "why": "",
            "word": self.word,
            "contrast": self.contrast.text,
            "arms": [self.method, self.baseline],
            "metric": self.metric,
            "higher": self.higher,
            "scale": self.contrast.scale,
            "unit": "",
            "scale_factor": 1,
            "min_effect": self.min_effect,
            "diverged": dict(diverged),
            "links": [],
            "controls": [{"arm": arm, **self._judged(j)} for arm, j in self.controls.items()],
            "survives": self.control,
            "fresh_seeds": self.fresh_seeds,
            **self._judged(self.judgement),
        }

    def _judged(self, judgement: Judgement) -> dict[str, Any]:
        return judgement.to_dict(self.seeds) | {"word": own_words(judgement.outcome)}


def compare(
    frame: Frame,
    *,
    metric: str,
    baseline: str,
    method: str,
    higher: bool,
    min_effect: float,
    control: str | Sequence[str] | None = None,
    alpha: float = ALPHA,
    gain: Literal["difference", "ratio"] = "difference",
    conditions: str | Sequence[str] | None = None,
    worst: float | None = None,
) -> Comparison:
    """Judge whether a method is better than a baseline by at least `min_effect`, paired by seed.

    Args:
        frame: a pandas `DataFrame` or a mapping of columns: `arm`, `seed`, the metric and, if there are
            several, conditions. Other columns are ignored.
        metric: the column to compare.
        baseline, method: two values of the column `arm`, or their text.
        higher: True if a larger metric is better.
        min_effect: the smallest gain worth having, > 0, in the unit of the metric; with `gain="ratio"` a
            fraction: 0.1 is 10 %.
        control: one or several arms that could explain a gain without the method's idea.
        alpha: one-sided level; the interval's level is `1 - 2 * alpha`.
        gain: `difference` or `ratio` (of values > 0).
        conditions: columns that distinguish the results of one arm and seed; by default the column
            `condition`, if there is one.
        worst: the score of a diverged run (NaN, an infinity or anything worse): chance accuracy, log of the
            number of classes. Without it such a row is an error.

    Raises:
        ValueError: if columns are missing, arms are unknown, results are duplicated, unpaired or missing,
            values are not finite numbers, results are the same for every seed, or `min_effect` is not > 0.

    >>> runs = {
    ...     "arm": ["sgd"] * 6 + ["adamp"] * 6,
    ...     "seed": [0, 1, 2, 3, 4, 5] * 2,
    ...     "acc": [0.90, 0.91, 0.89, 0.92, 0.90, 0.91, 0.93, 0.95, 0.92, 0.94, 0.94, 0.95],
    ... }
    >>> result = compare(runs, metric="acc", baseline="sgd", method="adamp", higher=True, min_effect=0.01)
    >>> print(result)
    adamp beats sgd in acc by 0.033 (95 % interval 0.025 to 0.042, 6 seeds; minimum effect 0.01): better.
    """
    baseline, method, controls = str(baseline), str(method), [str(arm) for arm in _names(control)]
    _check_request(baseline, method, controls, min_effect, alpha, gain)
    columns = _columns(frame)
    over = _names(conditions) if conditions is not None else [c for c in ("condition",) if c in columns]
    _check_columns(columns, ["arm", "seed", metric, *over])
    rows = _rows(columns, metric, [baseline, method, *controls], over, higher, worst)
    seeds = _check_pairs(rows, [baseline, method, *controls], columns, metric, over)

    build = difference if gain == "difference" else log_ratio
    margin = min_effect if gain == "difference" else math.log1p(min_effect)
    contrast = build(method, baseline, metric)
    judgement = _judge(contrast, rows, seeds, metric, higher, margin, alpha)
    if judgement.outcome == "invalid":
        raise ValueError(
            f"{contrast.text}: every seed gives the same results, so seeds change nothing and there is no "
            "spread to judge by: check that the rows come from different seeds, not copies"
        )
    judged = {}
    if judgement.outcome in ("reproduced", "smaller"):
        margin = margin if judgement.outcome == "reproduced" else 0.0
        judged = {
            arm: _judge(build(method, arm, metric), rows, seeds, metric, higher, margin, alpha, control=True)
            for arm in controls
        }
    return Comparison(
        metric, higher, baseline, method, min_effect, contrast, judgement, seeds, rows, judged, worst
    )


def read_results(path: str | Path) -> pd.DataFrame:
    """Read a CSV file of results, one row per run: columns `arm`, `seed`, a metric and perhaps conditions.

    Raises:
        ValueError: if the file cannot be read, is not CSV, has no rows, lacks the column `arm` or `seed`, or
            has two columns of one name; the message names the file.
        ImportError: if pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ImportError("reading results needs pandas: pip install 'trueup[cli]'") from None
    path = Path(path)
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skipinitialspace": True}
    if not path.is_file():
        raise ValueError(
            f"no results file {str(path)!r}: give a CSV file with columns arm, seed and a metric"
        )
    try:
        with warnings.catch_warnings():
            # a row with more values than columns would lose some
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # as text first: an arm may be called "None" or "1e3"; without an index column
            frame: pd.DataFrame = pd.read_csv(path, index_col=False, **options)
            # separately, since pandas renames columns of the same name
            header = pd.read_csv(path, header=None, nrows=1, **options).iloc[0].str.strip()
    except pd.errors.ParserWarning:
        raise ValueError(
            f"{path}: some rows have more values than the header has columns; use a decimal point, and quote "
            "text that contains commas"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV file with a header line: {error}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    frame.columns = [str(c).strip() for c in frame.columns]
    if len(frame.columns) == 1 and (sign := next((s for s in ";\t" if s in frame.columns[0]), "")):
        raise ValueError(f"{path}: values are separated by {sign!r}; separate them by commas")
    try:
        _check_once([name for name in header if name])  # columns without a name are ignored
        _check_columns(_columns(frame), ["arm", "seed"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if frame.empty:
        raise ValueError(f"{path}: a header but no rows; give one row per run")
    for column in frame.columns.drop("arm"):
        for kind in (int, float):  # else it stays text, as in a condition; compare() refuses text in a metric
            try:
                values = [kind(text) if text else None for text in frame[column]]
            except ValueError:
                continue
            # else pandas turns None into NaN, and a missing run would count as diverged
            frame[column] = pd.Series(values, dtype=object if None in values else None)
            break
    return frame


def _judge(
    contrast: Contrast,
    rows: Sequence[Row],
    seeds: Sequence[Hashable],
    metric: str,
    higher: bool,
    margin: float,
    alpha: float,
    control: bool = False,
) -> Judgement:
    by_seed: dict[Hashable, list[tuple[str, dict[str, Any], dict[str, float], dict[str, list[float]]]]] = {}
    for row in rows:
        cell = (row.arm, dict(row.condition), {metric: row.value}, dict[str, list[float]]())
        by_seed.setdefault(row.seed, []).append(cell)
    d = [contrast.value(SeedCells(by_seed[seed], {metric: higher})) for seed in seeds]
    values: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row.arm in contrast.arms:
            values.setdefault((row.arm, row.condition), []).append(row.value)
    vary = control or not all(map(verdict.constant, values.values()))
    return verdict.judge(d, margin, alpha, values_vary=vary)


# -- checks: each error says what was expected, what came and how to fix it ----------------------------------


def _check_request(
    baseline: str, method: str, controls: Sequence[str], min_effect: float, alpha: float, gain: str
) -> None:
    if baseline == method:
        raise ValueError(f"baseline and method are both {method!r}: name two different arms")
    for arm in controls:
        if arm in (baseline, method) or controls.count(arm) > 1:
            raise ValueError(f"control {arm!r} is already named: a control is a third arm")
    if not (min_effect > 0 and math.isfinite(min_effect)):
        raise ValueError(
            f"min_effect must be > 0, got {min_effect}: it is the smallest gain worth having, "
            "for accuracy at least two test items, 2 / n_test"
        )
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}: 0.025 gives a 95 % interval")
    if gain not in ("difference", "ratio"):
        raise ValueError(f"gain must be 'difference' or 'ratio', got {gain!r}")


def _columns(frame: Frame) -> dict[str, list[Any]]:
    _check_once([str(name) for name in frame])
    columns = {str(name): list(column) for name, column in frame.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be of one length, one entry per run; got {lengths}")
    return columns


def _check_once(names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two columns are called {twice[0]!r}: rename or remove one")


def _check_columns(columns: Mapping[str, Sequence[Any]], needed: Sequence[str]) -> None:
    for name in needed:
        if name not in columns:
            raise ValueError(
                f"no column {name!r}{_nearest(name, columns)}; columns here: {_listed(columns)}; "
                "needed: arm, seed and the metric, one row per run"
            )


def _rows(
    columns: Mapping[str, Sequence[Any]],
    metric: str,
    arms: Sequence[str],
    over: Sequence[str],
    higher: bool,
    worst: float | None,
) -> tuple[Row, ...]:
    """Return the scored rows of the arms compared; other rows are not read."""
    known = dict.fromkeys(map(str, columns["arm"]))
    for arm in arms:
        if arm not in known:
            raise ValueError(f"no rows of arm {arm!r}{_nearest(arm, known)}; arms here: {_listed(known)}")
    rows, not_finite = [], []
    for i, name in enumerate(map(str, columns["arm"])):
        if name not in arms:
            continue
        seed, value = columns["seed"][i], _number(columns[metric][i])
        where = f"row {i + 1} (arm {name}, seed {seed})"
        if value is None:
            given = columns[metric][i]
            what = "missing" if given is None or given == "" else f"{given!r}, not a number"
            raise ValueError(
                f"{where}: {metric} is {what}; write nan for a run that diverged, repeat one that crashed"
            )
        diverged = False
        if worst is not None:
            value, diverged = Metric(metric, higher=higher, worst=worst).score(value)
        elif not math.isfinite(value):
            not_finite.append(where)
        condition = tuple((c, plain(columns[c][i])) for c in over)
        if missing := [c for c, v in condition if v is None or v != v]:
            raise ValueError(f"{where}: {missing[0]} is missing: every run needs its condition")
        rows.append(Row(name, _seed(seed, i), condition, value, diverged))
    if not_finite:
        raise ValueError(
            f"{metric} is not finite in {_listed(not_finite)}. A run that diverged is a result, not a gap: "
            "pass worst= (--worst), its score (chance accuracy, log of the number of classes); "
            "if a run crashed, repeat it"
        )
    return tuple(rows)


def _seed(seed: Any, i: int) -> Hashable:
    if isinstance(seed, (int, np.integer)):
        return int(seed)  # not through a float, which has 53 bits
    number = as_number(seed)
    if seed is None or (number is not None and not math.isfinite(number)):
        raise ValueError(
            f"row {i + 1} has no seed: every run needs the seed that pairs it with the other arm's"
        )
    return int(number) if number is not None and number.is_integer() else seed


def _number(value: Any) -> float | None:
    """Convert a value, possibly the text of a CSV file, to a number; return `None` for anything else."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return as_number(value)


def _check_pairs(
    rows: Sequence[Row],
    arms: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    metric: str,
    over: Sequence[str],
) -> tuple[Hashable, ...]:
    """Check that every arm has every seed at every condition once; return the seeds in order."""
    counts = Counter((row.arm, row.seed, row.condition) for row in rows)
    for (arm, seed, condition), count in counts.items():
        if count > 1:
            others = [c for c in columns if c not in ("arm", "seed", metric, *over)]
            remedy = (
                f"; if a column distinguishes them, pass conditions= (--condition): {_listed(others)}"
                if others
                else ""
            )
            raise ValueError(
                f"expected one row of arm {arm!r}, {_place(seed, condition)}; got {count}{remedy}; "
                "if one is a repeat, keep the first run of each seed"
            )
    seeds = tuple(dict.fromkeys(row.seed for row in rows))
    for arm in arms:
        have = {row.seed for row in rows if row.arm == arm}
        if lacking := [seed for seed in seeds if seed not in have]:
            raise ValueError(
                f"arm {arm!r} has no row for seed{'s' if len(lacking) > 1 else ''} {_listed(lacking)}, which "
                "another arm has. Arms are compared seed by seed and no seed is dropped: run the missing ones"
            )
    grid = dict.fromkeys(row.condition for row in rows)
    for arm in arms:
        for seed in seeds:
            for condition in grid:
                if (arm, seed, condition) not in counts:
                    raise ValueError(
                        f"arm {arm!r} has no row for {_place(seed, condition)}: every arm needs every "
                        "condition at every seed, or means compare different things; run the missing ones"
                    )
    return seeds


def _place(seed: Hashable, condition: Iterable[tuple[str, Any]]) -> str:
    return ", ".join([f"seed {seed}", *(f"{name} {value}" for name, value in condition)])


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(names: Iterable[Any], most: int = 8) -> str:
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def _names(given: str | Sequence[str] | None) -> list[str]:
    if given is None:
        return []
    return [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
