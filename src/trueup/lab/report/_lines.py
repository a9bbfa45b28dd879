"""Lines: the figures that a study declares (a sweep, a series), and the trials of its tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueup.lab.report._dots import arms_figure
from trueup.lab.report._phrases import value_text
from trueup.lab.report._plotly import Doc, Figure, arm_styles, compact, label, metric_title
from trueup.lab.report._summaries import (
    Interval,
    condition_combinations,
    condition_text,
    intervals,
    per_seed,
)

LONGEST_SERIES = 300  # points drawn per line; the data files hold all of them
MOST_THIN_LINES = 40  # with more seeds than this, only their mean is drawn


@dataclass(frozen=True)
class Panel:
    """One part of a figure: its heading (a condition, or nothing) and plotly's JSON."""

    heading: str
    figure: Figure
    note: str = ""


def figure_panels(spec: Doc, outcome: Doc) -> list[Panel]:
    """Draw a declared figure: one panel, or for a series one per condition."""
    arms = [a for a in outcome["arms"] if not spec.get("arms") or a["name"] in spec["arms"]]
    metrics = {m["name"]: m for m in outcome["metrics"]}
    x, y = spec.get("x"), spec["y"]
    if any(c["name"] == x for c in outcome["conditions"]):
        figure = _sweep(spec, outcome, arms, metrics.get(y, {"name": y}))
        return [Panel("", figure)] if figure else []
    if x is None:
        figure = arms_figure({**outcome, "arms": arms, "conditions": []}, metrics.get(y, {"name": y}))
        averaged = len(condition_combinations(outcome)) > 1
        note = "averaged over the conditions within each seed" if averaged else ""
        return [Panel("", figure, note)] if figure else []
    return _series(spec, outcome, arms)


def _sweep(spec: Doc, outcome: Doc, arms: Sequence[Doc], metric: Doc) -> Figure | None:
    """Draw a metric over a condition's values: the mean with its interval, and every seed's dot."""
    over, factor = spec["x"], float(metric.get("scale_factor") or 1)
    values = next(c["values"] for c in outcome["conditions"] if c["name"] == over)
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    data: list[Figure] = []
    styles = arm_styles(outcome["arms"])
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
                "y": compact(s for _, seeds in points for s in seeds), "hoverinfo": "skip",
                "marker": {"symbol": symbol, "size": 6, "color": color, "opacity": 0.3},
            }
        )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": name, "legendgroup": name,
                "x": xs, "y": compact(i.mean for i in shown),
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
        "array": compact((i.high - i.mean) if i.high is not None else 0.0 for i in shown),
        "arrayminus": compact((i.mean - i.low) if i.low is not None else 0.0 for i in shown),
    }  # fmt: skip


def _series(spec: Doc, outcome: Doc, arms: Sequence[Doc]) -> list[Panel]:
    """Draw a series against its index or another series: one line per seed, and their mean."""
    styles = arm_styles(outcome["arms"])
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
    """Pair each cell's series `y` with its x values: another series of that cell, or the index."""
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
    """Keep every `stride`-th point of long lines, and always the last."""
    longest, shortest = (most(len(ys) for _, ys in seeds) for most in (max, min))
    stride = math.ceil(longest / LONGEST_SERIES)
    if stride == 1:
        return list(seeds), 1
    kept = []
    for xs, ys in seeds:
        # The last point of the shortest line too: the mean needs points of the same step at each index.
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
                "x": compact(x for xs, _ in seeds for x in xs),
                "y": compact(y for _, ys in seeds for y in ys),
                "marker": {"symbol": symbol, "size": 7, "color": color, "opacity": 0.6},
                "hovertemplate": f"{name}: %{{x:.4g}}, %{{y:.4g}}<extra></extra>",
            }
        ]  # fmt: skip
    traces: list[Figure] = []
    if 1 < len(seeds) <= MOST_THIN_LINES:
        # One trace for all seeds: a null interrupts the line.
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": name, "legendgroup": name, "showlegend": False,
                "x": [v for xs, _ in seeds for v in [*compact(xs), None]],
                "y": [v for _, ys in seeds for v in [*compact(ys), None]],
                "line": {"color": color, "width": 1}, "opacity": 0.22, "hoverinfo": "skip",
            }
        )  # fmt: skip
    length = min(len(ys) for _, ys in seeds)
    together = np.array([ys[:length] for _, ys in seeds], dtype=float)
    traces.append(
        {
            "type": "scatter", "mode": "lines", "name": name, "legendgroup": name,
            "x": compact(seeds[0][0][:length]), "y": compact(together.mean(axis=0).tolist()),
            "line": {"color": color, "width": 2.5, "dash": dash},
            "hovertemplate": f"{name}: %{{y:.4g}}<extra></extra>",
        }
    )  # fmt: skip
    return traces


def tuning_figure(outcome: Doc) -> Figure | None:
    """Draw the validation score of every trial over the only tuned number, one line per arm."""
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
    styles = arm_styles(outcome["arms"])
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
                "x": [t["hyper"][axis] for t in trials], "y": compact(t["mean"] for t in trials),
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
    if len(data) > 12:  # a legend of all arms and conditions would be larger than the figure
        figure["layout"]["showlegend"] = False
    return figure


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
