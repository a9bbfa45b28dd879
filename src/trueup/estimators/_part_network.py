"""The network of parts: its edges, and its drawing, which needs the `plot` extra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# The line style repeats the meaning of the colour, for readers who do not see it.
_TOGETHER, _APART, _INK = "#2166ac", "#b2182b", "#4a4a4a"


class Edge(NamedTuple):
    """Two parts, by name if the input had names and else by index, and their partial correlation."""

    first: str | int
    second: str | int
    partial_correlation: float


def draw(
    names: list[Any], edges: list[Edge], partial_variance: NDArray[np.float64], threshold: float
) -> Figure:
    """Make the figure of `CompositionalPartialCorrelation.plot`."""
    try:
        import networkx as nx
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError("plotting needs plotly and networkx: run `pip install 'trueup[plot]'`") from error

    graph = nx.Graph()
    graph.add_nodes_from(names)
    graph.add_weighted_edges_from((edge.first, edge.second, abs(edge.partial_correlation)) for edge in edges)
    # A circle keeps labels apart; walking the strong edges first makes strongly linked parts neighbours.
    order = list(nx.dfs_preorder_nodes(_strongest_first(graph)))
    place = nx.circular_layout(order)

    figure = go.Figure()
    for label, colour, dash, sign in (("together", _TOGETHER, "solid", 1), ("apart", _APART, "dot", -1)):
        mine = [edge for edge in edges if edge.partial_correlation * sign > 0]
        for number, edge in enumerate(mine):
            ends = np.array([place[edge.first], place[edge.second]])
            strength = abs(edge.partial_correlation)
            figure.add_scatter(
                x=ends[:, 0],
                y=ends[:, 1],
                mode="lines",
                line={"color": colour, "width": 1 + 9 * strength, "dash": dash},
                opacity=0.35 + 0.65 * strength,
                name=label,
                legendgroup=label,
                showlegend=number == 0,
                hoverinfo="skip",
            )
        middle = np.array([(place[edge.first] + place[edge.second]) / 2 for edge in mine]).reshape(-1, 2)
        figure.add_scatter(
            x=middle[:, 0],
            y=middle[:, 1],
            mode="markers",
            marker={"color": colour, "size": 14, "opacity": 0},
            hovertext=[f"{edge.first} - {edge.second}: {edge.partial_correlation:+.2f}" for edge in mine],
            hoverinfo="text",
            legendgroup=label,
            showlegend=False,
        )
    spots = np.array([place[name] for name in names])
    figure.add_scatter(
        x=spots[:, 0],
        y=spots[:, 1],
        mode="markers+text",
        marker={"color": "white", "size": 38, "line": {"color": _INK, "width": 1.5}},
        text=[str(name) for name in names],
        textfont={"color": "#1a1a1a"},
        hovertext=[
            f"{name}: partial variance {v:.3g}" for name, v in zip(names, partial_variance, strict=True)
        ],
        hoverinfo="text",
        showlegend=False,
    )
    hidden = {"visible": False, "range": [-1.2, 1.2]}
    figure.update_layout(
        title=f"Partial correlations of parts, |r| at least {threshold:g}",
        xaxis=hidden,
        yaxis={**hidden, "scaleanchor": "x"},
        template="simple_white",
        legend={"orientation": "h", "x": 0, "y": 0},
        margin={"l": 20, "r": 20, "t": 60, "b": 20},
    )
    return figure


def _strongest_first(graph: Any) -> Any:
    ordered = type(graph)()
    ordered.add_nodes_from(graph)
    strongest = sorted(graph.edges(data="weight"), key=lambda edge: edge[2], reverse=True)
    ordered.add_weighted_edges_from(strongest)
    return ordered
