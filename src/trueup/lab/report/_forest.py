"""The ledger's figure: every primary gain in units of its minimum effect."""

from __future__ import annotations

from collections.abc import Sequence

from trueup.lab._formatting import number
from trueup.lab._outcomes import OUTCOMES, outcome_words
from trueup.lab.report._plotly import Doc, Figure, compact, label, vertical_line


def ledger_figure(rows: Sequence[Doc]) -> Figure | None:
    """Draw every primary gain with its interval, in units of its minimum effect."""
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
    limit = 8.0  # marks beyond stand at the edge: one huge effect must not flatten all others

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
                "x": compact(clip(e[0]) for _, _, _, e in chosen), "y": [i for i, *_ in chosen],
                "text": [
                    label(f"{r['slug']}, {c['name']}: {number(m, 2)} ({number(low, 2)} to {number(high, 2)})")
                    for _, r, c, (m, low, high) in chosen
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "error_x": {
                    "type": "data", "symmetric": False, "thickness": 2, "width": 0,
                    "color": f"var(--{kind.icon})",
                    "array": compact(clip(e[2]) - clip(e[0]) for _, _, _, e in chosen),
                    "arrayminus": compact(clip(e[0]) - clip(e[1]) for _, _, _, e in chosen),
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
                "range": [-0.8, top + 0.4], "fixedrange": True, "automargin": True, "zeroline": False,
                "tickvals": list(range(len(points))),
                "ticktext": [label(f"{r['slug']} · {c['name']}"[:44]) for r, c, _ in points],
            },
            "shapes": [
                vertical_line(0, -0.8, top, "var(--ink-soft)", "solid"),
                vertical_line(1, -0.8, top, "var(--margin)", "dash"),
            ],
            "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
            "hovermode": "closest",
        },
    }  # fmt: skip
