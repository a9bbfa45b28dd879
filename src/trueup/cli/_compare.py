"""`trueup compare`: the lab's rule, applied to results of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueup.cli._console import chip, console, escape


def compare(
    results: Annotated[
        Path, typer.Argument(help="CSV with columns arm, seed and the metric; condition if any.")
    ],
    metric: Annotated[str, typer.Option(help="The metric's column.")],
    baseline: Annotated[str, typer.Option(help="The arm to beat.")],
    method: Annotated[str, typer.Option(help="The arm that should beat it.")],
    min_effect: Annotated[float, typer.Option(help="Smallest effect worth having, in the metric's unit.")],
    higher: Annotated[bool, typer.Option("--higher/--lower", help="Is a larger metric better?")] = True,
    control: Annotated[
        list[str] | None, typer.Option(help="The simplest thing that could explain the gain; repeatable.")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="A column whose values are averaged within each seed; repeatable."),
    ] = None,
    worst: Annotated[
        float | None,
        typer.Option(
            help="Score of a diverged run (nan, inf), such as chance accuracy or the log of the class count."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the comparison as a web page.")] = None,
) -> None:
    """Judge your own results by the lab's rule.

    The answer is: better; better, by less than you asked; too small or worse; or cannot tell.

    For example: trueup compare results.csv --metric acc --higher --baseline sgd --method adamp
    --min-effect 0.005

    Decide beforehand how many seeds to run, and compare once. Adding seeds until the answer pleases you finds
    gains that do not exist: about one time in ten instead of one in forty.
    """
    from trueup import lab

    comparison = lab.compare(
        lab.read_results(results),
        metric=metric,
        baseline=baseline,
        method=method,
        higher=higher,
        min_effect=min_effect,
        control=control or None,
        worst=worst,
        conditions=condition or None,
    )
    console.print(f"\n{chip(comparison.word)}\n{escape(str(comparison))}")
    better = "higher is better (else: --lower)" if higher else "lower is better"
    console.print(f"{escape(metric)}: {better}\n", style="dim")
    if html is not None:
        from trueup.lab.report import write_comparison

        console.print(f"page: [bold]{write_comparison(html, comparison.to_dict())}[/]")
