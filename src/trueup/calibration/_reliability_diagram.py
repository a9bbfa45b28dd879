"""Reliability diagrams: the accuracy that a model reaches at each confidence that it claims.

A calibrated model lies on the diagonal. How far from it is still chance depends on the number of samples in a
bin, so each point has a vertical band: where 95% of the accuracies of a calibrated model fall, with this
confidence and this number of samples (quantiles of the binomial distribution). Below is the share of the
samples in each bin.

M. H. DeGroot, S. E. Fienberg, The comparison and evaluation of forecasters (1983); for the bands, J. Bröcker,
L. A. Smith, Increasing the reliability of reliability diagrams (2007).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from scipy import stats

from trueup.calibration._binned_measures import ReliabilityCurve, reliability_curve
from trueup.calibration._bins import Binning
from trueup.calibration._validation import ArrayLike

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["draw", "reliability_diagram"]

COLORS = ("#3b6fb6", "#d1793b", "#4a9a6a", "#a94f6d", "#7d6bb0", "#8a7a3c", "#3f9aa3", "#777777")


def reliability_diagram(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    n_bins: int = 15,
    binning: Binning = "uniform",
    level: Literal["top", "positive"] = "top",
    from_logits: bool = False,
) -> Figure:
    """Draw the accuracy against the confidence, bin by bin, as a plotly figure.

    The arguments are those of `reliability_curve`, which returns the numbers. The band at each point holds
    95% of what a calibrated model with as many samples would show: a point inside its band is no evidence of
    miscalibration.

    Raises:
        ImportError: plotly is missing; it comes with the extra `trueup[plot]`.
        ValueError: as `reliability_curve`.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> figure = reliability_diagram(probs, torch.tensor([0, 1, 1]), n_bins=5)
        >>> [trace.name for trace in figure.data if trace.name]
        ['calibrated', 'model', 'model']
    """
    curve = reliability_curve(
        probs, target, n_bins=n_bins, binning=binning, level=level, from_logits=from_logits
    )
    return draw({"model": curve}, probability=level == "positive")


def draw(curves: Mapping[str, ReliabilityCurve], *, probability: bool = False) -> Figure:
    """Draw reliability curves, by name, over the share of samples in their bins."""
    try:
        from plotly.graph_objects import Bar, Figure, Scatter
    except ImportError as error:
        raise ImportError("reliability diagrams need plotly: pip install 'trueup[plot]'") from error

    figure = Figure()
    figure.add_trace(
        Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            name="calibrated",
            line={"color": "#999999", "dash": "dash"},
            hoverinfo="skip",
        )
    )
    for i, (name, curve) in enumerate(curves.items()):
        filled = curve.count > 0
        count, confidence, accuracy = (
            t[filled].double().cpu().numpy() for t in (curve.count, curve.confidence, curve.accuracy)
        )
        edges = curve.edges.double().cpu().numpy()
        low, high = (q / count for q in stats.binom.interval(0.95, count.astype(int), confidence))
        color = COLORS[i % len(COLORS)]
        figure.add_trace(
            Scatter(
                x=confidence,
                y=accuracy,
                mode="lines+markers",
                name=name,
                legendgroup=name,
                line={"color": color},
                customdata=list(zip(count.astype(int), low, high)),
                hovertemplate=(
                    "confidence %{x:.3f}<br>accuracy %{y:.3f}<br>%{customdata[0]} samples<br>"
                    "95% if calibrated: %{customdata[1]:.3f} to %{customdata[2]:.3f}"
                ),
            )
        )
        figure.add_trace(
            Scatter(  # the band as a bar of its own at each point, which error bars from the accuracy are not
                x=[x for c in confidence for x in (c, c, None)],
                y=[y for ends in zip(low, high) for y in (*ends, None)],
                mode="lines",
                legendgroup=name,
                showlegend=False,
                opacity=0.35,
                line={"color": color, "width": 7},
                hoverinfo="skip",
            )
        )
        share = curve.count.double().cpu().numpy() / max(float(curve.count.sum()), 1)
        figure.add_trace(
            Bar(
                x=(edges[1:] + edges[:-1]) / 2,
                y=share,
                width=edges[1:] - edges[:-1],
                name=name,
                legendgroup=name,
                showlegend=False,
                marker={"color": color, "opacity": 0.6},
                yaxis="y2",
                hovertemplate="%{y:.1%} of the samples",
            )
        )
    figure.update_layout(
        template="plotly_white",
        barmode="overlay",
        width=560,
        height=640,
        xaxis={
            "title": {"text": "predicted probability" if probability else "confidence"},
            "range": [0, 1],
            "anchor": "y2",
        },
        yaxis={
            "title": {"text": "frequency" if probability else "accuracy"},
            "range": [0, 1],
            "domain": [0.27, 1],
        },
        yaxis2={"title": {"text": "share"}, "domain": [0, 0.2], "tickformat": ".0%"},
    )
    return figure
