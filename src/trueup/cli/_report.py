"""`trueup report`: the ledger and the studies of a store, as web pages."""

from __future__ import annotations

import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from trueup import papers
from trueup.cli._console import STORE, StoreOption, console, errors, escape
from trueup.studies import _lookup as lookup


def report(
    store: StoreOption = STORE,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the pages; beside the store if left out.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the ledger and a page per study in the store, as web pages that open from disk."""
    if not store.exists():
        console.print(f"no store at {store} yet: the report shows published verdicts only", style="yellow")
    page = write_pages(store, output)
    console.print(f"report: [bold]{page}[/]")
    if open_:
        webbrowser.open(page.resolve().as_uri())


def write_pages(path: Path, output: Path | None = None) -> Path:
    from trueup.lab import ledger
    from trueup.lab._engine import StudyRef
    from trueup.lab._runner import Options, collect
    from trueup.lab._store import Store
    from trueup.lab.report import write_report

    outcomes: list[dict[str, Any]] = []
    if path.exists():
        with Store(path, readonly=True) as store:
            for record in store.runs():
                ref = StudyRef(record["kind"], record["name"])
                try:
                    options = Options(record["scale"], record["seeds"], device=record["device"])
                    outcomes.append(collect(ref, store, options))
                except (OSError, ImportError, ValueError) as error:
                    errors.print(f"[yellow]left out {escape(record['study'])}:[/] {escape(str(error))}")
    entries = ledger.read()
    catalogue = [
        asdict(p) | {"state": p.state, "url": p.url, "reconstructed": p.reconstructed}
        for p in papers.CATALOGUE
    ]
    marked = {
        p.slug: _with_seeds(entries[p.slug]) | {"standing": lookup.standing(p, entries)}
        for p in papers.CATALOGUE
        if p.slug in entries
    }
    return write_report(output or path.parent / "report", outcomes, catalogue, marked)


def _with_seeds(published: dict[str, Any]) -> dict[str, Any]:
    """Return a ledger entry with every seed's contrast, read from its evidence."""
    from trueup.lab import _evidence as evidence
    from trueup.lab import ledger
    from trueup.lab._errors import StudyError

    try:
        verdict, claims = evidence.rejudge(ledger.evidence_of(published))
    except StudyError as error:
        errors.print(f"[yellow]without every seed's dot:[/] {escape(str(error))}")
        return published
    return published | {"verdict": verdict, "claims": claims}
