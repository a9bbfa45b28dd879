"""Figures as plotly's own JSON: plain dictionaries, drawn in the reader's browser.

Plain dictionaries rather than `plotly.graph_objects` keep fifty pages within seconds. A colour is the name of
a CSS variable (`"var(--method)"`), which the page resolves when it draws, so that a figure follows the light
and dark themes. Plotly reads some HTML in labels: every text that came from a study goes through `label`.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Figure: TypeAlias = dict[str, Any]
Doc: TypeAlias = Mapping[str, Any]

ROLES: dict[str, tuple[str, str]] = {  # role -> (CSS colour, plotly symbol): colour alone would not do
    "baseline": ("baseline", "circle"),
    "method": ("method", "diamond"),
    "ablation": ("ablation", "square"),
    "control": ("control", "triangle-up"),
}
DASHES = ("solid", "dash", "dot", "dashdot")


def label(text: Any, width: int = 0) -> str:
    """Make a study's text inert for plotly and wrap it to `width` characters."""
    lines = textwrap.wrap(str(text), width) if width else [str(text)]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def arm_styles(arms: Sequence[Doc]) -> dict[str, tuple[str, str, str]]:
    """Map each arm to its colour, symbol and dash.

    The first arm of a role has the role's own; later ones have other shades and dashes, and every second one
    an open symbol.
    """
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


def metric_title(metric: Doc) -> str:
    """Return a metric's name, unit and direction as an axis title."""
    unit = f" ({metric['unit']})" if metric.get("unit") else ""
    text = f"{metric.get('label') or metric['name']}{unit}"
    if metric.get("higher") is None:  # a number that cells return beside the metrics has no direction
        return label(text)
    return label(f"{text}, {'higher' if metric['higher'] else 'lower'} is better")


def vertical_line(x: float, y0: float, y1: float, color: str, dash: str) -> Figure:
    """Draw a line of reference at `x`."""
    line = {"color": color, "width": 1.5, "dash": dash}
    return {"type": "line", "layer": "between", "x0": x, "x1": x, "y0": y0, "y1": y1, "line": line}


def compact(values: Iterable[float | None]) -> list[float | None]:
    """Round to six significant digits: a figure needs no more, and pages stay small."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.6g}") for v in values]
