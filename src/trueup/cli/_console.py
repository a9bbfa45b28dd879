"""The console that the commands share, and how a verdict is printed on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.padding import Padding

if TYPE_CHECKING:
    from trueup.lab.ledger import Standing

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

StoreOption = Annotated[
    Path,
    typer.Option(
        "--store", envvar="TRUEUP_STORE", help="File that keeps the cells; the report is beside it."
    ),
]
WorkersOption = Annotated[int | None, typer.Option(help="Processes; one per core if left out.")]
ReadmeOption = Annotated[Path, typer.Option(help="The README whose table is renewed.")]
STORE = Path("trueup-lab/store.sqlite")
README = Path("README.md")

STANDINGS = {
    "certified": "the code was rewritten since it was published, and computes the same to the last bit",
    "stale": "the code has changed since the verdict was published",
}

# whole escape sequences (colours, titles, cursor moves), then every control character but newline and tab
_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def escape(text: str) -> str:
    """Strip markup and control characters from the text of a study or an error before it is printed."""
    return escape_markup(_CONTROL.sub("", text))


def print_indented(text: str, by: int = 4) -> None:
    console.print(Padding(text, (0, 0, 0, by)))


def chip(word: str, standing: Standing = "published", scale: str = "desk") -> str:
    from trueup.lab._outcomes import outcome_words, shown

    note = "" if standing == "published" else f" [dim]({standing})[/]"
    return f"[{shown(word).colour}]{outcome_words(word, scale)}[/]{note}"


def print_claims(outcome: dict[str, Any], *, standing: Standing = "published") -> None:
    from trueup.lab._sentences import warnings

    verdict = outcome["verdict"]
    console.print(f"[bold]{escape(verdict['sentence'])}[/]")
    details = verdict.get("details") or [outcome.get("scope_sentence") or ""]
    for text in filter(None, details):
        console.print(escape(text))
    if standing in STANDINGS:
        console.print(f"{standing}: {STANDINGS[standing]}", style="magenta" if standing == "stale" else "dim")
    console.print()
    for claim in outcome["claims"]:
        mark = "" if claim["primary"] else " [dim](secondary)[/]"
        console.print(f"  {chip(claim['outcome'], scale=outcome['scale'])}  [bold]{claim['name']}[/]{mark}")
        for text in (claim["sentence"], claim["control_sentence"], " ".join(claim["details"])):
            if text:
                print_indented(escape(text))
        for text in warnings(claim):
            print_indented(f"[dim]{escape(text)}[/]")
    console.print()


def print_history(published: dict[str, Any]) -> None:
    """Print the history of a published verdict, oldest event first."""
    from trueup.lab.ledger import event_words

    for event in published.get("history", ()):
        console.print(f"[dim]{event['date']}  {escape(event_words(event))}[/]")
    console.print()
