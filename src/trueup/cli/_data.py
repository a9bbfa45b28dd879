"""`trueup data`: list the data sets and fetch the larger ones."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.table import Table

from trueup.cli._console import console, escape


def show(context: typer.Context) -> None:
    """List the real data sets; `fetch` downloads the larger ones once."""
    if context.invoked_subcommand is not None:
        return
    from trueup import data

    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    for column in ("name", "title", "rows", "licence", "available"):
        table.add_column(
            column,
            no_wrap=column in ("name", "available"),
            ratio=1 if column == "title" else None,
            width=14 if column == "licence" else None,
            justify="right" if column == "rows" else "left",
        )
    for name, pin in data.SETS.items():
        ready = "[green]yes[/]" if data.is_ready(name) else f"fetch, {pin.sources[0].megabytes:.0f} MB"
        table.add_row(name, escape(pin.title), f"{pin.n:,}", escape(pin.licence), ready)
    console.print(table)


def fetch(
    names: Annotated[list[str], typer.Argument(help="Names, as `trueup data` lists them.")],
) -> None:
    """Download data sets, check them, and keep them decoded in the cache."""
    from trueup import data

    for name in names:
        dataset = data.fetch(name)
        console.print(f"[bold]{name}[/] is ready: {dataset.X.shape}, licence: {escape(dataset.licence)}")
