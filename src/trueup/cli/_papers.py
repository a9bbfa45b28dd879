"""`trueup list` and `trueup show`: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.syntax import Syntax
from rich.table import Table

from trueup import papers
from trueup.cli._console import STANDINGS, chip, console, escape, print_claims, print_history
from trueup.studies import _lookup as lookup


def list_papers(
    area: Annotated[str | None, typer.Option(help="Only papers of this area, e.g. optim.")] = None,
    available: Annotated[
        bool, typer.Option("--available", help="Only papers whose method is available.")
    ] = False,
) -> None:
    """List the fifty papers: the problem each one treats, and its verdict."""
    from trueup.lab import ledger

    areas = sorted({p.area for p in papers.CATALOGUE})
    if area is not None and area not in areas:
        raise ValueError(f"no area is called {area!r}; areas are {', '.join(areas)}")
    entries = ledger.read()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("paper, and the problem it treats", ratio=1)
    table.add_column("area", style="cyan")
    table.add_column("verdict", min_width=14, max_width=17)
    reconstructed, standings = False, set[str]()
    for paper in papers.CATALOGUE:
        if (area and paper.area != area) or (available and paper.state != "available"):
            continue
        if paper.slug in entries:
            standing = lookup.standing(paper, entries)
            state = chip(entries[paper.slug]["verdict"]["outcome"])
            state += "" if standing == "published" else f"\n[dim]{standing}[/]"
            standings.add(standing)
        else:
            state = "not published yet" if paper.state == "available" else "[dim]planned[/]"
        state += "\n[dim]reconstructed[/]" if paper.reconstructed else ""
        reconstructed = reconstructed or paper.reconstructed
        table.add_row(f"[bold]{paper.slug}[/]\n  {escape(paper.problem)}", paper.area, state)
    console.print(table)
    for name, meaning in STANDINGS.items():
        if name in standings:
            console.print(f"{name}: {meaning}", style="dim")
    if reconstructed:
        console.print("reconstructed: the paper's equations could not be confirmed", style="dim")
    console.print("`trueup show SLUG` shows more; `trueup run SLUG` tests the claims here.", style="dim")


def show(slug: Annotated[str, typer.Argument(help="A paper's slug, as `trueup list` prints it.")]) -> None:
    """Show one paper: its problem, how to use the method in three lines, its claims and their verdicts."""
    from trueup.lab import ledger

    paper = papers.get(slug)
    console.print(f"\n[bold]{escape(paper.title)}[/]")
    where = f"{paper.venue}, {paper.year}" if paper.venue else str(paper.year)
    console.print(f"{escape(paper.authors)}. {where}. {paper.url}\n", style="dim")
    facts = Table.grid(padding=(0, 2))
    facts.add_row("[bold]problem[/]", escape(paper.problem))
    if paper.state == "available":
        facts.add_row("[bold]names[/]", ", ".join(paper.names))
        facts.add_row("[bold]fidelity[/]", f"{paper.fidelity}: {escape(paper.reference)}")
    console.print(facts)
    if paper.state == "planned":
        console.print("\nThis method is planned and not written yet.\n")
        return
    console.print("\n[bold]how to use it[/]")
    usage = f"import torch, trueup\n{paper.usage}"
    console.print(Syntax(usage, "python", background_color="default", word_wrap=True, padding=1))
    entries = ledger.read()
    if slug in entries:
        print_claims(entries[slug], standing=lookup.standing(paper, entries))
        print_history(entries[slug])
    else:
        from trueup.lab._engine import StudyRef

        table = Table(box=box.SIMPLE_HEAD, title="claims, not judged yet", title_justify="left")
        table.add_column("claim", style="bold")
        table.add_column("statement")
        for claim in StudyRef("module", paper.study).load().claims:
            table.add_row(claim.name, escape(claim.statement))
        console.print(table)
    console.print(f"`trueup run {slug}` tests the claims here.\n", style="dim")
