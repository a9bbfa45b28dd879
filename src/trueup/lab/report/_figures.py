"""Figures of the report as plotly's own JSON: plain dictionaries, drawn in the reader's browser.

Building dictionaries rather than ``plotly.graph_objects`` keeps fifty pages within seconds. A colour is the
name of a CSS variable (``"var(--method)"``), which the page resolves when it draws, so that a figure follows
light and dark. Plotly reads a little HTML in labels: every text that came from a study goes through
:func:`label`.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from trueup.lab._formatting import number
from trueup.lab._outcomes import OUTCOMES, outcome_words
from trueup.lab._sentences import contrast_label
from trueup.lab.report._phrases import displayed, interval, is_ratio, value_text
from trueup.lab.report._summaries import Interval, condition_text, intervals, per_seed

Figure: TypeAlias = dict[str, Any]
Doc: TypeAlias = Mapping[str, Any]

ROLES: dict[str, tuple[str, str]] = {  # role -> (CSS colour, plotly symbol): never told by colour alone
    "baseline": ("baseline", "circle"),
    "method": ("method", "diamond"),
    "ablation": ("ablation", "square"),
    "control": ("control", "triangle-up"),
}
DASHES = ("solid", "dash", "dot", "dashdot")
LONGEST_SERIES = 300  # points of a line that are drawn; the data files hold all of them
MOST_THIN_LINES = 40  # seeds' own lines are left out beyond this
LABEL = 50  # characters of a line of a row's label: what a phone has room for
ROW = 62  # pixels a row of dots


@dataclass(frozen=True)
class Row:
    """One row of dots: every seed's value, the mean and its interval, and what it is held against."""

    label: str
    dots: Sequence[tuple[float, str]]
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    color: str = "var(--method)"
    symbol: str = "circle"
    marks: Sequence[float] = ()
    band: tuple[float, float] | None = None
    crosses: Sequence[tuple[float, str]] = field(default_factory=tuple)


def label(text: Any, width: int = 0) -> str:
    """A study's text, made inert for plotly and wrapped to ``width`` characters."""
    lines = textwrap.wrap(str(text), width) if width else [str(text)]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def style(arms: Sequence[Doc]) -> dict[str, tuple[str, str, str]]:
    """Arm -> (colour, symbol, dash): the role's own, shaded and dashed after its first, every second open."""
    seen: dict[str, int] = {}
    styles: dict[str, tuple[str, str, str]] = {}
    for arm in arms:
        role = str(arm.get("role", "method"))
        color, symbol = ROLES.get(role, ROLES["method"])
        nth = seen[role] = seen.get(role, -1) + 1
        shade = f"-{nth % 3 + 1}" if nth else ""
        styles[str(arm["name"])] = (
            f"var(--{color}{shade})",
            symbol + ("-open" if nth % 2 else ""),
            DASHES[min(nth, len(DASHES) - 1)],
        )
    return styles


# -- a claim ------------------------------------------------------------------------------------------------
def of_claim(claim: Doc, scale: str = "desk") -> Figure | None:
    """Every seed's contrast with its interval, zero and the margin; an exact claim's deviations.

    ``scale`` is the study's, which a contradiction carries.
    """
    if claim.get("kind") == "exact":
        return _exact(claim)
    rows = []
    links = claim.get("links") or []
    if links:
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
    told = part.get("word") or part.get("outcome")  # a comparison of a user's own has other words
    told = told and outcome_words(told, scale)
    return Row(
        label=f"{text}: {told}" if told else text,
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
    # a logarithmic axis has no place for 0, NaN and infinity: they stand at its ends, with their value shown
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
    title = (
        "deviation (left of the dashed line: holds)" if tolerance else "deviation (only 0 holds: far left)"
    )
    return dot_rows(rows, title, log=True, zero=None)


# -- arms ---------------------------------------------------------------------------------------------------
def of_arms(outcome: Doc, metric: Doc) -> Figure | None:
    """Every seed's metric, a row an arm (an arm and condition, while they fit on a screen)."""
    styles = style(outcome["arms"])
    conditions = _combinations(outcome)
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
    spreads = intervals([[v.value * factor for v in values] for _, _, values in found])
    for (name, condition, values), spread in zip(found, spreads, strict=True):
        color, symbol, _ = styles[name]
        dots = [
            (v.value * factor, f"seed {v.seed}: {number(v.value * factor, 4)}", v.diverged) for v in values
        ]
        rows.append(
            Row(
                label=", ".join(filter(None, [name, condition_text(condition)])),
                dots=[(x, text) for x, text, diverged in dots if not diverged],
                crosses=[(x, f"{text}, diverged") for x, text, diverged in dots if diverged],
                mean=spread.mean,
                low=spread.low,
                high=spread.high,
                color=color,
                symbol=symbol,
            )
        )
    return dot_rows(rows, metric_title(metric), zero=None)


def metric_title(metric: Doc) -> str:
    """The metric's name, unit and direction."""
    unit = f" ({metric['unit']})" if metric.get("unit") else ""
    text = f"{metric.get('label') or metric['name']}{unit}"
    if metric.get("higher") is None:  # a number that cells return beside the metrics has no direction
        return label(text)
    return label(f"{text}, {'higher' if metric['higher'] else 'lower'} is better")


def dot_rows(rows: Sequence[Row], title: str, *, log: bool = False, zero: float | None = 0.0) -> Figure:
    """Rows of dots under each other, on one x axis."""
    data: list[Figure] = []
    shapes: list[Figure] = []
    notes: list[Figure] = []
    if zero is not None:
        shapes.append(_line(zero, zero, -len(rows) + 0.4, 0.5, "var(--ink-soft)", "solid"))
    for index, row in enumerate(rows):
        y = -index
        if row.band:
            shapes.append(
                {
                    "type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": "var(--band)",
                    "x0": row.band[0], "x1": row.band[1], "y0": y - 0.46, "y1": y + 0.22,
                }
            )  # fmt: skip
        shapes += [_line(m, m, y - 0.46, y + 0.22, "var(--margin)", "dash") for m in row.marks]
        notes.append(
            {
                "text": label(row.label, LABEL), "font": {"size": 12, "color": "var(--ink)"}, "align": "left",
                "xref": "paper", "x": 0, "xanchor": "left", "y": y + 0.56, "yanchor": "top",
                "showarrow": False, "bgcolor": "var(--page)", "borderpad": 1,
            }
        )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "markers", "showlegend": False, "name": label(row.label),
                "x": _short(x for x, _ in row.dots),
                "y": _heap(y, len(row.dots)),
                "text": [label(t) for _, t in row.dots], "hovertemplate": "%{text}<extra></extra>",
                "marker": {
                    "symbol": row.symbol, "size": 8, "color": row.color, "opacity": 0.55,
                },
            }
        )  # fmt: skip
        if row.crosses:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "showlegend": False, "name": label(row.label),
                    "x": _short(x for x, _ in row.crosses),
                    "y": _heap(y, len(row.crosses)),
                    "text": [label(t) for _, t in row.crosses], "hovertemplate": "%{text}<extra></extra>",
                    "marker": {"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": row.color}},
                }
            )  # fmt: skip
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


def _heap(y: float, count: int) -> list[float]:
    """Heights that keep neighbouring dots of a row apart."""
    return [round(y + 0.06 * (i % 5 - 2), 3) for i in range(count)]


def _mean(row: Row, y: float) -> Figure:
    assert row.mean is not None
    trace: Figure = {
        "type": "scatter", "mode": "markers", "showlegend": False, "x": _short([row.mean]), "y": [y - 0.32],
        "name": label(row.label), "hovertemplate": f"mean {number(row.mean, 4)}<extra></extra>",
        "marker": {"symbol": "line-ns", "size": 12, "line": {"width": 3, "color": "var(--ink)"}},
    }  # fmt: skip
    if row.low is not None and row.high is not None:
        trace["error_x"] = {
            "type": "data", "symmetric": False, "array": _short([row.high - row.mean]),
            "arrayminus": _short([row.mean - row.low]), "thickness": 2.5, "width": 5, "color": "var(--ink)",
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
    """Round numbers for a logarithmic axis so short that plotly would label hardly a power of ten."""
    if high - low > 1.3:
        return {"nticks": 8}
    first, last = 10**low, 10**high
    step = 10 ** math.floor(math.log10(last - first))
    step = next(step * f for f in (0.1, 0.2, 0.5, 1, 2) if (last - first) / (step * f) <= 8)
    values = [k * step for k in range(math.ceil(first / step), math.floor(last / step) + 1)]
    return {"tickvals": _short(values), "ticktext": [number(v) for v in values]}


def _line(x0: float, x1: float, y0: float, y1: float, color: str, dash: str) -> Figure:
    line = {"color": color, "width": 1.5, "dash": dash}
    return {"type": "line", "layer": "between", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "line": line}


# -- a study's own figures ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Panel:
    """One drawing of a figure: its heading (a condition, or nothing) and plotly's JSON."""

    heading: str
    figure: Figure
    note: str = ""


def of_spec(spec: Doc, outcome: Doc) -> list[Panel]:
    """The panels of a declared figure: one, or for a series one a condition."""
    arms = [a for a in outcome["arms"] if not spec.get("arms") or a["name"] in spec["arms"]]
    metrics = {m["name"]: m for m in outcome["metrics"]}
    x, y = spec.get("x"), spec["y"]
    if any(c["name"] == x for c in outcome["conditions"]):
        figure = _sweep(spec, outcome, arms, metrics.get(y, {"name": y}))
        return [Panel("", figure)] if figure else []
    if x is None:
        figure = of_arms({**outcome, "arms": arms, "conditions": []}, metrics.get(y, {"name": y}))
        note = "averaged over the conditions within each seed" if len(_combinations(outcome)) > 1 else ""
        return [Panel("", figure, note)] if figure else []
    return _series(spec, outcome, arms)


def _combinations(outcome: Doc) -> list[dict[str, Any]]:
    """Every combination of conditions that has a cell, in the order of the cells."""
    if not outcome.get("conditions"):
        return [{}]
    found: dict[str, dict[str, Any]] = {}
    for cell in outcome.get("cells") or []:
        condition = dict(cell.get("condition") or {})
        found.setdefault(repr(sorted(condition.items())), condition)
    return list(found.values()) or [{}]


def _sweep(spec: Doc, outcome: Doc, arms: Sequence[Doc], metric: Doc) -> Figure | None:
    """A metric over a condition's values: mean with interval, and every seed's dot."""
    over, factor = spec["x"], float(metric.get("scale_factor") or 1)
    values = next(c["values"] for c in outcome["conditions"] if c["name"] == over)
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    data: list[Figure] = []
    styles = style(outcome["arms"])
    for arm in arms:
        color, symbol, dash = styles[arm["name"]]
        points = [
            (v, [s.value * factor for s in per_seed(outcome, arm["name"], metric["name"], {over: v})])
            for v in values
        ]
        points = [(v, seeds) for v, seeds in points if seeds]
        if not points:
            continue
        shown = intervals([seeds for _, seeds in points])
        xs = [v if numeric else label(value_text(v)) for v, _ in points]
        name = label(arm["name"])
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": name, "legendgroup": name, "showlegend": False,
                "x": [x for x, (_, seeds) in zip(xs, points, strict=True) for _ in seeds],
                "y": _short(s for _, seeds in points for s in seeds), "hoverinfo": "skip",
                "marker": {"symbol": symbol, "size": 6, "color": color, "opacity": 0.3},
            }
        )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": name, "legendgroup": name,
                "x": xs, "y": _short(i.mean for i in shown),
                "error_y": _error(shown, color),
                "line": {"color": color, "dash": dash, "width": 2},
                "marker": {"symbol": symbol, "size": 9, "color": color},
                "hovertemplate": f"{name}: %{{y:.4g}}<extra></extra>",
            }
        )  # fmt: skip
    if not data:
        return None
    figure = _plot(
        data, label(over), metric_title(metric) if "higher" in metric else label(metric["name"]), spec
    )
    if not numeric:
        figure["layout"]["xaxis"]["type"] = "category"
    elif len(values) <= 8:
        figure["layout"]["xaxis"] |= {"tickvals": list(values), "ticktext": [value_text(v) for v in values]}
    return figure


def _error(shown: Sequence[Interval], color: str) -> Figure:
    return {
        "type": "data", "symmetric": False, "color": color, "thickness": 1.5, "width": 5,
        "array": _short((i.high - i.mean) if i.high is not None else 0.0 for i in shown),
        "arrayminus": _short((i.mean - i.low) if i.low is not None else 0.0 for i in shown),
    }  # fmt: skip


def _series(spec: Doc, outcome: Doc, arms: Sequence[Doc]) -> list[Panel]:
    """A series against its index, or against another: a line a seed, and their mean."""
    styles = style(outcome["arms"])
    groups: dict[str, tuple[dict[str, Any], dict[str, list[tuple[list[float], list[float]]]]]] = {}
    found = _pairs(spec, outcome)
    for entry, xs, ys in found:
        condition = dict(entry.get("condition") or {})
        _, lines = groups.setdefault(repr(sorted(condition.items())), (condition, {}))
        lines.setdefault(entry["arm"], []).append((xs, ys))
    panels: list[Panel] = []
    scatter = spec["x"] != "step"
    for condition, lines in groups.values():
        data: list[Figure] = []
        stride = 1
        for arm in arms:
            seeds = lines.get(arm["name"])
            if not seeds:
                continue
            drawn, step = _thin(seeds)
            stride = max(stride, step)
            data += _lines(label(arm["name"]), drawn, styles[arm["name"]], scatter)
        if not data:
            continue
        title = "step" if not scatter else label(spec["x"])
        note = f"one point in {stride} drawn" if stride > 1 else ""
        panels.append(Panel(condition_text(condition), _plot(data, title, label(spec["y"]), spec), note))
    return panels


def _pairs(spec: Doc, outcome: Doc) -> list[tuple[Doc, list[float], list[float]]]:
    """Each cell's series ``y`` with its x values: another series of that cell, or the index."""
    entries = outcome.get("series") or []
    ys = [e for e in entries if e["name"] == spec["y"]]
    if spec["x"] == "step":
        return [(e, list(range(len(e["values"]))), list(e["values"])) for e in ys]

    def cell(e: Doc) -> tuple[Any, ...]:
        return e["arm"], repr(sorted((e.get("condition") or {}).items())), e["seed"]

    xs = {cell(e): e["values"] for e in entries if e["name"] == spec["x"]}
    return [(e, list(xs[cell(e)]), list(e["values"])) for e in ys if cell(e) in xs]


def _thin(
    seeds: Sequence[tuple[list[float], list[float]]],
) -> tuple[list[tuple[list[float], list[float]]], int]:
    """Long lines, every ``stride``-th point of them and always the last."""
    longest, shortest = (most(len(ys) for _, ys in seeds) for most in (max, min))
    stride = math.ceil(longest / LONGEST_SERIES)
    if stride == 1:
        return list(seeds), 1
    kept = []
    for xs, ys in seeds:
        # The last point of the shortest line too: points of one place are of one step, for their mean.
        picks = sorted({*range(0, len(ys), stride), shortest - 1, len(ys) - 1})
        kept.append(([xs[i] for i in picks], [ys[i] for i in picks]))
    return kept, stride


def _lines(
    name: str, seeds: Sequence[tuple[list[float], list[float]]], look: tuple[str, str, str], scatter: bool
) -> list[Figure]:
    color, symbol, dash = look
    if scatter:
        return [
            {
                "type": "scatter", "mode": "markers", "name": name,
                "x": _short(x for xs, _ in seeds for x in xs), "y": _short(y for _, ys in seeds for y in ys),
                "marker": {"symbol": symbol, "size": 7, "color": color, "opacity": 0.6},
                "hovertemplate": f"{name}: %{{x:.4g}}, %{{y:.4g}}<extra></extra>",
            }
        ]  # fmt: skip
    traces: list[Figure] = []
    if 1 < len(seeds) <= MOST_THIN_LINES:
        # one trace for all seeds: a null lifts the pen
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": name, "legendgroup": name, "showlegend": False,
                "x": [v for xs, _ in seeds for v in [*_short(xs), None]],
                "y": [v for _, ys in seeds for v in [*_short(ys), None]],
                "line": {"color": color, "width": 1}, "opacity": 0.22, "hoverinfo": "skip",
            }
        )  # fmt: skip
    length = min(len(ys) for _, ys in seeds)
    together = np.array([ys[:length] for _, ys in seeds], dtype=float)
    traces.append(
        {
            "type": "scatter", "mode": "lines", "name": name, "legendgroup": name,
            "x": _short(seeds[0][0][:length]), "y": _short(together.mean(axis=0).tolist()),
            "line": {"color": color, "width": 2.5, "dash": dash},
            "hovertemplate": f"{name}: %{{y:.4g}}<extra></extra>",
        }
    )  # fmt: skip
    return traces


def of_tuning(outcome: Doc) -> Figure | None:
    """The validation score of every trial over a single numeric hyperparameter, a line an arm."""
    tuning = outcome.get("tuning") or []
    axes = {name for t in tuning for trial in t["trials"] for name in trial["hyper"]}
    if len(axes) != 1:
        return None
    (axis,) = axes
    values = [trial["hyper"].get(axis) for t in tuning for trial in t["trials"]]
    if len(set(values)) < 2 or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    ):
        return None
    styles = style(outcome["arms"])
    data: list[Figure] = []
    for entry in tuning:
        color, symbol, dash = styles.get(entry["arm"], ("var(--method)", "circle", "solid"))
        trials = sorted(
            (t for t in entry["trials"] if axis in t["hyper"] and t.get("mean") is not None),
            key=lambda t: float(t["hyper"][axis]),
        )
        name = label(", ".join(filter(None, [entry["arm"], condition_text(entry.get("condition") or {})])))
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": name,
                "x": [t["hyper"][axis] for t in trials], "y": _short(t["mean"] for t in trials),
                "line": {"color": color, "dash": dash, "width": 1.5},
                "marker": {
                    "symbol": symbol, "color": color, "size": [13 if t.get("winner") else 6 for t in trials],
                },
                "hovertemplate": f"{name}: %{{y:.4g}} at {label(axis)} %{{x:.4g}}<extra></extra>",
            }
        )  # fmt: skip
    low, high = min(values), max(values)
    marks = sorted(set(values))
    figure = _plot(data, label(axis), "mean validation score", {"log_x": low > 0 and high / low >= 8})
    figure["layout"]["xaxis"] |= {"tickvals": marks, "ticktext": [value_text(v) for v in marks]}
    if len(data) > 12:  # a legend of every arm and condition would be larger than the figure
        figure["layout"]["showlegend"] = False
    return figure


# -- the ledger ---------------------------------------------------------------------------------------------
def of_ledger(rows: Sequence[Doc]) -> Figure | None:
    """Every primary gain in units of its minimum effect, on one page."""
    points = []
    for row in rows:
        for claim in row["claims"]:
            margin = claim.get("margin")
            if not margin or claim.get("mean") is None or claim.get("low") is None:
                continue
            if not claim.get("primary") or claim.get("test") != "superiority":
                continue
            points.append((row, claim, [claim[k] / margin for k in ("mean", "low", "high")]))
    if not points:
        return None
    limit = 8.0  # beyond, a mark stands at the edge: one huge effect must not flatten all the others

    def clip(x: float) -> float:
        return min(max(x, -limit), limit)

    points.reverse()
    data = []
    for kind in OUTCOMES.values():
        chosen = [(i, r, c, e) for i, (r, c, e) in enumerate(points) if c.get("outcome") == kind.key]
        if not kind.mark or not chosen:
            continue
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": outcome_words(kind.key),
                "x": _short(clip(e[0]) for _, _, _, e in chosen), "y": [i for i, *_ in chosen],
                "text": [
                    label(f"{r['slug']}, {c['name']}: {number(m, 2)} ({number(low, 2)} to {number(high, 2)})")
                    for _, r, c, (m, low, high) in chosen
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "error_x": {
                    "type": "data", "symmetric": False, "thickness": 2, "width": 0,
                    "color": f"var(--{kind.icon})",
                    "array": _short(clip(e[2]) - clip(e[0]) for _, _, _, e in chosen),
                    "arrayminus": _short(clip(e[0]) - clip(e[1]) for _, _, _, e in chosen),
                },
                "marker": {"symbol": kind.mark, "size": 9, "color": f"var(--{kind.icon})"},
            }
        )  # fmt: skip
    top = len(points) - 0.4
    widest = [clip(v) for _, _, e in points for v in e]
    return {
        "data": data,
        "layout": {
            "height": 22 * len(points) + 120,
            "xaxis": {
                "title": {"text": "effect ÷ minimum effect"}, "zeroline": False,
                "range": [min(-1.2, *widest) - 0.2, max(2.2, *widest) + 0.2],
            },
            "yaxis": {
                "range": [-0.8, top + 0.4], "fixedrange": True, "automargin": True,
                "tickvals": list(range(len(points))),
                "ticktext": [label(f"{r['slug']} · {c['name']}"[:44]) for r, c, _ in points],
            },
            "shapes": [
                _line(0, 0, -0.8, top, "var(--ink-soft)", "solid"),
                _line(1, 1, -0.8, top, "var(--margin)", "dash"),
            ],
            "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
            "hovermode": "closest",
        },
    }  # fmt: skip


def _plot(data: list[Figure], x: str, y: str, spec: Doc) -> Figure:
    axes: dict[str, Figure] = {
        "xaxis": {"title": {"text": x}, "zeroline": False},
        "yaxis": {"title": {"text": y}, "zeroline": False, "automargin": True},
    }
    for axis, log in (("xaxis", spec.get("log_x")), ("yaxis", spec.get("log_y"))):
        if log:
            axes[axis] |= {"type": "log", "nticks": 6}
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    return {"data": data, "layout": {"height": 380, **axes, "legend": legend, "hovermode": "closest"}}


def _short(values: Iterable[float | None]) -> list[float | None]:
    """Six significant digits: a figure needs no more, and pages stay small."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.6g}") for v in values]
