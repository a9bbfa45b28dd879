"""`trueup ledger`: show, publish, replicate and certify verdicts."""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from trueup import papers
from trueup.cli._console import (
    README,
    STORE,
    ReadmeOption,
    StoreOption,
    WorkersOption,
    chip,
    console,
    errors,
    escape,
    print_indented,
)
from trueup.cli._run import print_outcome, run_all, worker_count
from trueup.studies import _lookup as lookup


def show(context: typer.Context) -> None:
    """Show, publish, replicate and certify verdicts."""
    if context.invoked_subcommand is not None:
        return
    from trueup.lab import ledger

    entries = ledger.read()
    if not entries:
        console.print("nothing is published yet; `trueup run SLUG`, then `trueup ledger publish SLUG`")
        return
    primary, false_wins = ledger.expected_false_wins(entries)
    console.print(
        f"{primary} primary statistical claims, each a false win with a chance of at most "
        f"{ledger.FALSE_WIN}: expect {false_wins:.2f} false wins.\n"
        "q: the expected share of false wins among the published claims that do at least as well."
    )
    q = ledger.q_values(entries)
    for slug, published in entries.items():
        verdict, tried = published["verdict"], len(published["protocols"])
        times = ledger.times_published(published)
        facts = [
            f"its control: {verdict['control'] or 'not asked'}",
            f"protocol {published['protocol']}" + (f" of {tried} tried" if tried > 1 else ""),
            f"published {published['provenance']['date']}" + (f", {times} times" if times > 1 else ""),
        ]
        facts += [f"{ledger.event_words(r)} ({r['date']})" for r in ledger.replications(published)]
        values = [f"{name} {value:.2g}" for (paper, name), value in q.items() if paper == slug]
        facts += [f"q: {', '.join(values)}"] if values else []
        paper = papers.get(slug)
        state = chip(verdict["outcome"], lookup.standing(paper, entries))
        state += "  [yellow]reconstructed[/]" if paper.reconstructed else ""
        console.print(f"\n[bold]{slug}[/]  {state}")
        print_indented(escape(verdict["sentence"]), 2)
        print_indented(f"[dim]{'; '.join(facts)}[/]", 2)
    console.print()
    console.print("`trueup show SLUG` prints every claim and the history of its verdict.", style="dim")


def publish(
    slugs: Annotated[list[str], typer.Argument(help="Papers whose stored desk verdict to publish.")],
    reason: Annotated[str, typer.Option(help="Why the same protocol is published again.")] = "",
    store: StoreOption = STORE,
    readme: ReadmeOption = README,
) -> None:
    """Write stored desk verdicts into the ledger that ships with the package. For maintainers.

    The evidence goes beside it: the numbers of every cell and the contrast of every seed. The entry's history
    keeps what was published before, and publishing the same protocol twice needs a reason. Changed claims or
    grids need a new protocol number, which draws fresh seeds. If only code was rewritten, certify it instead.
    """
    from trueup.lab import _evidence as evidence
    from trueup.lab import ledger
    from trueup.lab._certify import Repository
    from trueup.lab._runner import gather
    from trueup.lab._store import Store

    with Store(store, create=False) as opened:
        commit = Repository().require_clean()
        for slug in slugs:
            ref = lookup.reference(slug)
            outcome, made = gather(ref, opened)
            changed = evidence.changed(ref.load(), evidence.read(slug)) if evidence.exists(slug) else None
            entry = ledger.publish(outcome, made, commit=commit, changed=changed, reason=reason)
            console.print(f"[bold]{slug}[/]: {chip(entry['verdict']['outcome'])}")
            _renew(readme)


def _renew(readme: Path) -> None:
    from trueup.lab import ledger

    if readme.exists():
        ledger.renew_readme(readme, ledger.read(), papers.CATALOGUE)


def rejudge(
    slugs: Annotated[list[str] | None, typer.Argument(help="Published papers; all if left out.")] = None,
    readme: ReadmeOption = README,
) -> None:
    """Apply the present verdict rule to the stored contrasts of published verdicts. For maintainers.

    Nothing is trained again, and torch is not needed. A changed outcome enters the history.
    """
    from trueup.lab import _evidence as evidence
    from trueup.lab import ledger

    entries = ledger.read()
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("paper", "published", "by the present rule", "claims that changed"):
        table.add_column(name)
    for slug in slugs or [slug for slug in entries if evidence.exists(slug)]:
        if slug not in entries:
            raise ValueError(f"{slug} has no published verdict; published: {', '.join(entries) or 'none'}")
        before = entries[slug]
        now = ledger.rejudge(slug, date=datetime.date.today().isoformat())
        old = {claim["name"]: claim["outcome"] for claim in before["claims"]}
        changed = [
            f"{claim['name']}: {old.get(claim['name'], 'new')}, now {claim['outcome']}"
            for claim in now["claims"]
            if old.get(claim["name"]) != claim["outcome"]
        ]
        outcomes = (before["verdict"]["outcome"], now["verdict"]["outcome"])
        table.add_row(slug, *map(chip, outcomes), "; ".join(changed) or "none")
    console.print(table)
    _renew(readme)


def evidence(
    slug: Annotated[str, typer.Argument(help="A paper with a published verdict.")],
    csv: Annotated[bool, typer.Option("--csv", help="Print every cell as comma-separated values.")] = False,
) -> None:
    """Show the evidence of a published verdict: its cells, its seeds and where it was computed.

    For example: trueup ledger evidence adamp --csv > adamp.csv
    """
    from trueup.lab import _evidence as evidence
    from trueup.lab import _sentences as sentences

    document = evidence.read(slug)
    if csv:
        sys.stdout.write(evidence.to_csv(document))
        return
    kinds = Counter(cell["kind"] for cell in document["cells"])
    facts = Table.grid(padding=(0, 2))
    facts.add_row("[bold]commit[/]", document["commit"])
    facts.add_row("[bold]protocol[/]", str(document["protocol"]))
    for number, look in enumerate(document["looks"], start=1):
        facts.add_row(f"[bold]look {number}[/]", f"{len(look['seeds'])} seeds at alpha {look['alpha']}")
    facts.add_row("[bold]cells[/]", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    for name, value in document["environment"].items():
        facts.add_row(f"[bold]{name}[/]", escape(value or "not set"))
    console.print(facts)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("claim", "seeds", "mean contrast", "contrast of every seed"):
        table.add_column(name)
    _, claims = evidence.rejudge(document)
    for claim in claims:
        d = [item["d"] for item in claim.get("d") or ()]
        factor = claim.get("scale_factor") or 1
        if claim["kind"] == "statistical":
            texts = (f"{factor * value:.3g}" for value in d)
            unit = {key: claim[key] for key in ("scale", "unit", "scale_factor")}
            mean = sentences.amount(claim["mean"], **unit)
            table.add_row(claim["name"], str(len(d)), mean, " ".join(texts))
    console.print(table)
    console.print(f"`trueup ledger evidence {slug} --csv` prints every cell.", style="dim")


def replicate(
    slug: Annotated[str, typer.Argument(help="A paper with a published verdict.")],
    workers: WorkersOption = None,
    store: StoreOption = STORE,
) -> None:
    """Run a published study again on fresh seeds, tuning seeds included, and compare the effects.

    Effects, those of the controls too, are compared with their intervals: two verdicts may differ at almost
    the same effect. Exact and cost claims draw no seeds and are computed again. The published verdict stays.
    In a checkout of the repository every attempt is recorded, whatever its result.
    """
    from trueup.lab import _evidence as evidence
    from trueup.lab import ledger
    from trueup.lab._replication import agrees, compare_effects, replication_event
    from trueup.lab._runner import Options

    entries = ledger.read()
    if slug not in entries:
        raise ValueError(f"{slug} has no published verdict; published: {', '.join(entries) or 'none'}")
    published = entries[slug]
    _, before = evidence.rejudge(ledger.evidence_of(published))
    if lookup.standing(papers.get(slug), entries) == "stale":
        raise ValueError(
            f"the code of {slug} has changed since its verdict was published: certify or publish it first, "
            "so that the replication is one of the published code"
        )
    attempt = 1 + len(ledger.replications(published))
    outcome = run_all([lookup.reference(slug)], store, Options(replicate=attempt), worker_count(workers))[0]
    failed = print_outcome(outcome)
    rows = compare_effects(before, outcome["claims"])
    _print_replication(rows)
    agreed = None if failed else agrees(rows)
    console.print(
        {
            None: "[red]Cells failed, so the replication is not conclusive.[/]",
            True: "[green]The replication agrees with the published effects.[/]",
            False: "[red]The replication differs from the published effects.[/]",
        }[agreed]
    )
    if ledger.checkout() is not None:
        ledger.add_event(slug, replication_event(outcome, published["protocol"], attempt, rows, agreed))
        console.print(f"recorded in the ledger as replication {attempt}")
    raise typer.Exit(1 if failed else 0)


def _print_replication(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, title="against the published effects", title_justify="left")
    for name in ("claim", "published", "replication", "difference (interval)", "agree?"):
        table.add_column(name)
    for row in rows:
        old, new = (
            (chip(row[run]["outcome"]) if row[run]["outcome"] else "not asked")
            + ("" if row[run]["mean"] is None else f" {row[run]['mean']:.3g}")
            for run in ("published", "replicated")
        )
        apart = ""
        if row["difference"] is not None:
            apart = f"{row['difference']:.2g} ({row['low']:.2g} to {row['high']:.2g})"
        name = row["claim"] + (f", control {row['control']}" if row["control"] else "")
        table.add_row(name, old, new, apart, "[green]yes[/]" if row["agrees"] else "[red]no[/]")
    console.print(table)


class _CertifyBar:
    """Live progress: one bar per study, over the cells of both versions of the code."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.task: Any = None

    def begin(self, slug: str, cells: int) -> None:
        self.task = self.bars.add_task(slug, total=cells)

    def done(self, cells: int) -> None:
        self.bars.update(self.task, advance=cells)


def certify(
    slugs: Annotated[
        list[str] | None,
        typer.Argument(help="Papers with a published verdict; if left out, all whose code has changed."),
    ] = None,
    workers: WorkersOption = None,
    readme: ReadmeOption = README,
) -> None:
    """Show that refactored code computes what was published, without a full run. For maintainers.

    Run it in a git checkout with everything under src/ committed. A sample of each study's cells is computed
    again: two seeds of each look, every trial at one seed, the best two trials at all seeds, and every exact
    claim. Cells that differ from the published ones are computed by the published commit too, since another
    processor may differ in the last bits. Cost claims are measured again. The seeds depend on the commit.

    certified: equal in every bit. The ledger notes the present code, and the verdict is current again.

    differs: the cells are named here and in the ledger; the exit code is 1. Fix the code, or publish again.

    refused: claims, arms or grids have changed. That is another protocol: publish it under a new number.
    """
    from trueup.lab import ledger
    from trueup.lab._certify import Repository, certify
    from trueup.lab._errors import StudyError

    entries = ledger.read()
    for slug in slugs or ():
        if slug not in entries:
            raise ValueError(f"{slug} has no published verdict; published: {', '.join(entries) or 'none'}")
    chosen = list(
        dict.fromkeys(slugs or [s for s in entries if lookup.standing(papers.get(s), entries) == "stale"])
    )
    if not chosen:
        console.print("nothing to certify: every verdict's code is what was published, or certified since")
        return
    repository = Repository()
    repository.require_clean()
    refs = {slug: lookup.reference(slug) for slug in chosen}
    for slug, ref in refs.items():
        lookup.check_data(ref, entries[slug]["scale"])
    workers = worker_count(workers)
    found: dict[str, Any] = {}
    columns = (TextColumn("  {task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as bars:
            for slug, ref in refs.items():
                try:
                    found[slug] = certify(slug, ref, repository, workers=workers, progress=_CertifyBar(bars))
                except StudyError as error:
                    found[slug] = error
    except KeyboardInterrupt:
        errors.print("\nstopped: finished certifications are kept; the same command does the rest")
        raise typer.Exit(130) from None
    _print_certifications(found)
    _renew(readme)
    raise typer.Exit(0 if all(getattr(f, "outcome", "") == "certified" for f in found.values()) else 1)


def _print_certifications(found: Mapping[str, Any]) -> None:
    """Print a table of the results, and below it why a study was refused or where it differs."""
    from trueup.lab._certify import Certification
    from trueup.lab._formatting import duration, plural

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("study", "cells", "verdict", "against the published numbers", "time"):
        table.add_column(column, justify="right" if column == "cells" else "left")
    for slug, result in found.items():
        if isinstance(result, Certification):
            colour = "green" if result.outcome == "certified" else "red"
            word = f"[{colour}]{result.outcome}[/]"
            row = [f"{result.cells:,}", word, result.agreement, duration(result.seconds)]
        else:
            row = ["", "[magenta]refused[/]", "", ""]
        table.add_row(slug, *row)
    console.print(table)
    for slug, result in found.items():
        if not isinstance(result, Certification):
            console.print(f"[bold]{slug}[/]: {escape(str(result))}")
        elif result.differences:
            cells = plural(len({d.cell for d in result.differences}), "cell")
            console.print(f"[bold]{slug}[/]: {cells} differ or failed")
            for difference in result.differences[:10]:
                print_indented(escape(str(difference)))
            if len(result.differences) > 10:
                print_indented(f"and {len(result.differences) - 10} more numbers")
