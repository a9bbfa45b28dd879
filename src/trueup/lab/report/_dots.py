"""Rows of dots, one per seed: a claim's contrasts, an exact claim's deviations, the arms' metrics."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from trueup.lab._formatting import number
from trueup.lab._outcomes import outcome_words
from trueup.lab._sentences import contrast_label
from trueup.lab.report._phrases import displayed, interval, is_ratio
from trueup.lab.report._plotly import (
    ROLES,
    Doc,
    Figure,
    arm_styles,
    compact,
    label,
    metric_title,
    vertical_line,
)
from trueup.lab.report._summaries import condition_combinations, condition_text, intervals, per_seed

LABEL = 50  # characters per line of a row's label: as many as fit on a phone
ROW = 62  # pixels per row


@dataclass(frozen=True)
class Row:
    """One row of dots: every seed's value, the mean and its interval, and lines to compare them with.

    Attributes:
        dots, crosses: `(x, hover text)` per seed; a cross is a seed that diverged.
        marks: where dashed lines stand, such as the minimum effect.
        band: the range that counts as no difference.
    """

    label: str
    dots: Sequence[tuple[float, str]]
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    color: str = "var(--method)"
    symbol: str = "circle"
    marks: Sequence[float] = ()
    band: tuple[float, float] | None = None
    crosses: Sequence[tuple[float, str]] = ()


def claim_figure(claim: Doc, scale: str = "desk") -> Figure | None:
    """Draw every seed's contrast with its interval, zero and the margin; or an exact claim's deviations.

    `scale` is the study's (`desk`), which the words for a contradiction include.
    """
    if claim.get("kind") == "exact":
        return _exact(claim)
    if links := claim.get("links") or []:
        rows = [
            _contrast(contrast_label(link, claim.get("higher")) or f"part {i}", link, claim, scale)
            for i, link in enumerate(links, 1)
        ]
    else:
        rows = [_contrast(contrast_label(claim) or claim["name"], claim, claim, scale)]
    for control in claim.get("controls") or []:
        against = {"margin": claim.get("margin"), "test": "superiority"} | dict(control)
        rows.append(_contrast(f"against the control {control['arm']}", against, claim, scale, control=True))
    rows = [row for row in rows if row.dots or row.mean is not None]
    if not rows:
        return None
    if claim.get("kind") == "cost":
        return dot_rows(rows, "times the peer's time (left of the dashed line: holds)", zero=None)
    ratio = is_ratio(claim)
    if ratio:
        title = "ratio (right of 1: as claimed)"
    elif claim.get("scale") == "correlation":
        title = "correlation within the seed"
    else:
        unit = claim.get("unit")
        title = f"difference{f' in {label(unit)}' if unit else ''} (right of 0: as claimed)"
    return dot_rows(rows, title, log=ratio, zero=1.0 if ratio else 0.0)


def _contrast(text: str, part: Doc, claim: Doc, scale: str, *, control: bool = False) -> Row:
    unit = " " + str(claim["unit"]) if claim.get("unit") and not is_ratio(claim) else ""
    shape = {k: claim.get(k) for k in ("kind", "scale", "unit", "scale_factor", "at_most")}
    part = dict(part) | shape
    dots = [
        (displayed(item["d"], part), item.get("seed"))
        for item in part.get("d") or []
        if item.get("d") is not None
    ]
    margin, test = part.get("margin"), part.get("test")
    marks: list[float | None] = []
    band = None
    if margin is not None and test == "equivalence":
        band = (displayed(-margin, part) or 0.0, displayed(margin, part) or 0.0)
    elif margin is not None:
        marks = [displayed(-margin if test == "non-inferiority" else margin, part)]
    mean, low, high = interval(part)
    outcome = part.get("word") or part.get("outcome")  # `word`: the answer about a user's own results
    return Row(
        label=f"{text}: {outcome_words(outcome, scale)}" if outcome else text,
        dots=[(x, f"seed {seed}: {number(x)}{unit}") for x, seed in dots if x is not None],
        mean=mean,
        low=low,
        high=high,
        color="var(--control)" if control else "var(--method)",
        symbol=ROLES["control" if control else "method"][1],
        marks=[m for m in marks if m is not None],
        band=band,
    )


def _exact(claim: Doc) -> Figure | None:
    groups = [("the claim", claim.get("instances") or [], "var(--method)", "diamond")]
    broken = claim.get("negative_control")
    if broken:
        name = f"negative control: {broken.get('label') or 'must break the claim'}"
        groups.append((name, broken.get("instances") or [], "var(--control)", "triangle-up"))
    values = [i.get("deviation") for _, items, _, _ in groups for i in items]
    tolerance = claim.get("tolerance")
    positive = [v for v in [*values, tolerance] if v is not None and math.isfinite(v) and v > 0]
    if not values or not positive:
        return None
    # A logarithmic axis has no place for 0, NaN and infinity: they stand at its ends and show their value.
    low, high = min(positive) / 10, max(positive) * 10

    def place(value: float | None) -> float:
        return high if value is None or not math.isfinite(value) else float(min(max(value, low), high))

    rows = [
        Row(
            label=name,
            dots=[
                (place(i.get("deviation")), f"{label(i['name'])}: {number(i.get('deviation'))}")
                for i in items
            ],
            color=color,
            symbol=symbol,
            marks=[tolerance] if tolerance else [],
        )
        for name, items, color, symbol in groups
        if items
    ]
    title = f"deviation ({'left of the dashed line: holds' if tolerance else 'only 0 holds: far left'})"
    return dot_rows(rows, title, log=True, zero=None)


def arms_figure(outcome: Doc, metric: Doc) -> Figure | None:
    """Draw every seed's metric, one row per arm, or per arm and condition while these fit on a screen."""
    styles = arm_styles(outcome["arms"])
    conditions = condition_combinations(outcome)
    apart = len(conditions) > 1 and len(conditions) * len(styles) <= 18
    factor = float(metric.get("scale_factor") or 1)
    found = [
        (name, condition, values)
        for name in styles
        for condition in (conditions if apart else [{}])
        if (values := per_seed(outcome, name, metric["name"], condition))
    ]
    if not found:
        return None
    rows: list[Row] = []
    shown = intervals([[v.value * factor for v in values] for _, _, values in found])
    for (name, condition, values), average in zip(found, shown, strict=True):
        color, symbol, _ = styles[name]
        dots = [
            (v.value * factor, f"seed {v.seed}: {number(v.value * factor, 4)}", v.diverged) for v in values
        ]
        rows.append(
            Row(
                label=", ".join(filter(None, [name, condition_text(condition)])),
                dots=[(x, text) for x, text, diverged in dots if not diverged],
                crosses=[(x, f"{text}, diverged") for x, text, diverged in dots if diverged],
                mean=average.mean,
                low=average.low,
                high=average.high,
                color=color,
                symbol=symbol,
            )
        )
    return dot_rows(rows, metric_title(metric), zero=None)


def dot_rows(rows: Sequence[Row], title: str, *, log: bool = False, zero: float | None = 0.0) -> Figure:
    """Draw rows of dots below each other, on one x axis."""
    data: list[Figure] = []
    shapes: list[Figure] = []
    notes: list[Figure] = []
    if zero is not None:
        shapes.append(vertical_line(zero, -len(rows) + 0.4, 0.5, "var(--ink-soft)", "solid"))
    for index, row in enumerate(rows):
        y = -index
        if row.band:
            shapes.append(
                {
                    "type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": "var(--band)",
                    "x0": row.band[0], "x1": row.band[1], "y0": y - 0.46, "y1": y + 0.22,
                }
            )  # fmt: skip
        shapes += [vertical_line(m, y - 0.46, y + 0.22, "var(--margin)", "dash") for m in row.marks]
        notes.append(
            {
                "text": label(row.label, LABEL), "font": {"size": 12, "color": "var(--ink)"}, "align": "left",
                "xref": "paper", "x": 0, "xanchor": "left", "y": y + 0.56, "yanchor": "top",
                "showarrow": False, "bgcolor": "var(--page)", "borderpad": 1,
            }
        )  # fmt: skip
        dot = {"symbol": row.symbol, "size": 8, "color": row.color, "opacity": 0.55}
        cross = {"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": row.color}}
        data.append(_points(row, row.dots, y, dot))
        if row.crosses:
            data.append(_points(row, row.crosses, y, cross))
        if row.mean is not None and len(row.dots) + len(row.crosses) != 1:
            data.append(_mean(row, y))
    tallest = max(len(textwrap.wrap(row.label, LABEL)) for row in rows)
    extent = _extent(rows, zero, log)
    axis: Figure = {"title": {"text": title}, "range": extent, "zeroline": False}
    if log:
        axis |= {"type": "log"} | _ticks(*extent)
    return {
        "data": data,
        "layout": {
            "height": (ROW + 15 * (tallest - 1)) * len(rows) + 62,
            "xaxis": axis,
            "yaxis": {"visible": False, "range": [-len(rows) + 0.4, 0.62], "fixedrange": True},
            "shapes": shapes,
            "annotations": notes,
            "hovermode": "closest",
        },
    }


def _points(row: Row, points: Sequence[tuple[float, str]], y: float, marker: Figure) -> Figure:
    return {
        "type": "scatter", "mode": "markers", "showlegend": False, "name": label(row.label),
        "x": compact(x for x, _ in points),
        # heights that keep neighbouring dots apart
        "y": [round(y + 0.06 * (i % 5 - 2), 3) for i in range(len(points))],
        "text": [label(text) for _, text in points], "hovertemplate": "%{text}<extra></extra>",
        "marker": marker,
    }  # fmt: skip


def _mean(row: Row, y: float) -> Figure:
    assert row.mean is not None
    trace: Figure = {
        "type": "scatter", "mode": "markers", "showlegend": False, "x": compact([row.mean]), "y": [y - 0.32],
        "name": label(row.label), "hovertemplate": f"mean {number(row.mean, 4)}<extra></extra>",
        "marker": {"symbol": "line-ns", "size": 12, "line": {"width": 3, "color": "var(--ink)"}},
    }  # fmt: skip
    if row.low is not None and row.high is not None:
        trace["error_x"] = {
            "type": "data", "symmetric": False, "array": compact([row.high - row.mean]),
            "arrayminus": compact([row.mean - row.low]), "thickness": 2.5, "width": 5, "color": "var(--ink)",
        }  # fmt: skip
        ends = f"{number(row.low, 4)} to {number(row.high, 4)}"
        trace["hovertemplate"] = f"mean {number(row.mean, 4)}, interval {ends}<extra></extra>"
    return trace


def _extent(rows: Sequence[Row], zero: float | None, log: bool) -> list[float]:
    values = [x for row in rows for x, _ in [*row.dots, *row.crosses]]
    values += [v for row in rows for v in (row.low, row.high, row.mean, *row.marks) if v is not None]
    values += [v for row in rows if row.band for v in row.band]
    values += [zero] if zero is not None else []
    if log:
        values = [math.log10(v) for v in values if v > 0]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.1 * abs(low) or 1.0
    return [low - pad, high + pad]


def _ticks(low: float, high: float) -> Figure:
    """Choose ticks; on a logarithmic axis this short, plotly would label hardly a power of ten."""
    if high - low > 1.3:
        return {"nticks": 8}
    first, last = 10**low, 10**high
    step = 10 ** math.floor(math.log10(last - first))
    step = next(step * f for f in (0.1, 0.2, 0.5, 1, 2) if (last - first) / (step * f) <= 8)
    values = [k * step for k in range(math.ceil(first / step), math.floor(last / step) + 1)]
    return {"tickvals": compact(values), "ticktext": [number(v) for v in values]}
