"""The command line: `trueup list`, `show`, `run`, `compare`, `report`, `ledger`, `data`.

Exit codes: 0 it ran, 1 cells failed, 2 the command cannot be carried out as given, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import datetime
import math
import os
import re
import sys
import webbrowser
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
    from rich import box
    from rich.console import Console
    from rich.markup import escape as escape_markup
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.syntax import Syntax
    from rich.table import Table
except ModuleNotFoundError as error:  # pragma: no cover
    sys.exit(f"the command line needs the cli extra ({error.name} is missing): pip install 'trueup[cli]'")

from trueup import papers

if TYPE_CHECKING:
    from trueup.lab._cell import Cell, CellResult
    from trueup.lab._engine import StudyRef
    from trueup.lab._runner import Options
    from trueup.lab.ledger import Standing

app = typer.Typer(
    name="trueup",
    help="Methods that keep training level, and the lab that tests their claims.\n\n"
    "Start with `trueup list`, then `trueup show adamp`, then `trueup run ghost-batch-norm`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
ledger_app = typer.Typer(help="Published verdicts: look, publish, replicate, certify.", no_args_is_help=False)
data_app = typer.Typer(help="Real data sets: list them, fetch the larger ones once.", no_args_is_help=False)
app.add_typer(ledger_app, name="ledger")
app.add_typer(data_app, name="data")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

StoreOption = Annotated[
    Path,
    typer.Option("--store", envvar="TRUEUP_STORE", help="Where cells are kept; the report is beside it."),
]
STORE = Path("trueup-lab/store.sqlite")


def main() -> None:
    """Entry point: errors that a user can mend are one message and exit code 2, never a traceback."""
    from trueup.data import FetchError
    from trueup.lab._engine import EngineError
    from trueup.lab._store import StoreError
    from trueup.lab.report import ReportError

    try:
        app()
    except (EngineError, FetchError, FileNotFoundError, ReportError, StoreError, ValueError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)


# whole escape sequences (colours, titles, cursor moves), then every control character but newline and tab
_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def escape(text: str) -> str:
    """Text of a study or an error, made inert: no markup and nothing that would steer the terminal."""
    return escape_markup(_CONTROL.sub("", text))


def _print_indented(text: str, by: int = 4) -> None:
    console.print(Padding(text, (0, 0, 0, by)))


def _chip(word: str, standing: Standing = "published", scale: str = "desk") -> str:
    from trueup.lab._outcomes import outcome_words, shown

    note = "" if standing == "published" else f" [dim]({standing})[/]"
    return f"[{shown(word).colour}]{outcome_words(word, scale)}[/]{note}"


STANDINGS = {
    "certified": "the code was rewritten since it was published, and computes the same to the last bit",
    "stale": "the code has changed since the verdict was published",
}


# -- list and show -------------------------------------------------------------------------------------------


@app.command("list")
def list_papers(
    area: Annotated[str | None, typer.Option(help="Only papers of this area, e.g. optim.")] = None,
    available: Annotated[
        bool, typer.Option("--available", help="Only papers whose method is there.")
    ] = False,
) -> None:
    """The fifty papers: what each treats, and what came of testing it."""
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
            standing = _standing(paper, entries)
            state = _chip(entries[paper.slug]["verdict"]["outcome"])
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
    console.print("`trueup show SLUG` tells more; `trueup run SLUG` tests it here.", style="dim")


@app.command()
def show(slug: Annotated[str, typer.Argument(help="A paper's slug, as `trueup list` prints it.")]) -> None:
    """One paper: its problem, how to use the method in three lines, its claims and their verdicts."""
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
        console.print("\nThis method is planned, not written yet.\n")
        return
    console.print("\n[bold]how to use it[/]")
    usage = f"import torch, trueup\n{paper.usage}"
    console.print(Syntax(usage, "python", background_color="default", word_wrap=True, padding=1))
    entries = ledger.read()
    if slug in entries:
        _print_claims(entries[slug], standing=_standing(paper, entries))
        _print_history(entries[slug])
    else:
        from trueup.lab._engine import StudyRef

        table = Table(box=box.SIMPLE_HEAD, title="claims, not judged yet", title_justify="left")
        table.add_column("claim", style="bold")
        table.add_column("what it says")
        for claim in StudyRef("module", paper.study).load().claims:
            table.add_row(claim.name, escape(claim.statement))
        console.print(table)
    console.print(f"`trueup run {slug}` tests it here.\n", style="dim")


def _standing(paper: papers.Paper, entries: dict[str, Any]) -> Standing:
    """Is the present code the published one, certified since, or neither?"""
    from trueup.data._sets import find
    from trueup.lab import ledger
    from trueup.lab._engine import StudyRef
    from trueup.lab._fingerprint import verdict_fingerprint

    published = entries[paper.slug]
    hashes = [find(data["name"]).sha256 for data in published["provenance"].get("data", ())]
    return ledger.standing(published, verdict_fingerprint(StudyRef("module", paper.study), hashes))


def _print_claims(outcome: dict[str, Any], *, standing: Standing = "published") -> None:
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
        console.print(f"  {_chip(claim['outcome'], scale=outcome['scale'])}  [bold]{claim['name']}[/]{mark}")
        for text in (claim["sentence"], claim["control_sentence"], " ".join(claim["details"])):
            if text:
                _print_indented(escape(text))
        for text in warnings(claim):
            _print_indented(f"[dim]{escape(text)}[/]")
    console.print()


def _print_history(published: dict[str, Any]) -> None:
    """Print the history of a published verdict, oldest event first."""
    from trueup.lab.ledger import event_words

    for event in published.get("history", ()):
        console.print(f"[dim]{event['date']}  {escape(event_words(event))}[/]")
    console.print()


# -- run -----------------------------------------------------------------------------------------------------


class _Bars:
    """Live progress: one bar a phase."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.task: Any = None
        self.failed = 0

    def phase(self, name: str, total: int, reused: int) -> None:
        note = f"[dim]{reused} stored[/]" if reused else ""
        self.task = self.bars.add_task(name, total=total, completed=reused, note=note)

    def done(self, cell: Cell, result: CellResult) -> None:
        if result.status == "failed":
            self.failed += 1
        note = f"[red]{self.failed} failed[/]" if self.failed else f"[dim]{escape(str(cell))}[/]"
        self.bars.update(self.task, advance=1, note=note)


@app.command()
def run(
    targets: Annotated[
        list[str], typer.Argument(help="Papers' slugs, or files that hold a study of your own.")
    ],
    scale: Annotated[
        str, typer.Option(help="smoke (seconds), desk (minutes, gives verdicts) or paper.")
    ] = "desk",
    seeds: Annotated[
        int | None, typer.Option(help="Explore with this many development seeds; never published.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core if left out.")] = None,
    threads: Annotated[int, typer.Option(help="torch threads in each process.")] = 1,
    store: StoreOption = STORE,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every cell again, even those stored.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would run and how long; run nothing.")
    ] = False,
) -> None:
    """Run studies and say what came out.

    Finished cells are kept: a run that was stopped goes on where it was, and one that is complete is only
    judged again. Writes the report as web pages beside the store.
    """
    from trueup.lab._runner import Options

    options = Options(scale, seeds, fresh=fresh, device=_device(device), threads=threads)
    refs = [_reference(target) for target in targets]
    workers = _workers(workers)
    if plan:
        _print_plans(refs, store, options, workers)
        return
    failed = False
    for outcome in _run_all(refs, store, options, workers):
        failed = _print_outcome(outcome) or failed
    page = _write_report(store)
    console.print(f"report: [bold]{page}[/] (`trueup report --open` opens it)")
    raise typer.Exit(1 if failed else 0)


def _workers(asked: int | None) -> int:
    """Worker processes: as many as asked for, or one a core that this process may use."""
    if asked is not None:
        if asked < 1:
            raise ValueError(f"workers must be at least 1, got {asked}")
        return asked
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _reference(target: str) -> StudyRef:
    from trueup.lab._engine import StudyRef

    known = {paper.slug for paper in papers.CATALOGUE}
    if target.endswith(".py"):
        path = Path(target).resolve()
        if not path.is_file():
            raise FileNotFoundError(f"no study file {target}")
        ref = StudyRef("file", str(path))
        if ref.load().slug in known:
            raise ValueError(
                f"{target}: the slug {ref.load().slug!r} is a paper's, whose results it would be taken for: "
                "give your study another"
            )
        return ref
    if target not in known and (Path(target).is_file() or Path(f"{target}.py").is_file()):
        raise ValueError(
            f"{target} is neither a paper nor a study file, whose name ends in .py; "
            "`trueup compare` judges a table of results"
        )
    paper = papers.get(target)
    if paper.state == "planned":
        raise ValueError(
            f"{target} is planned, not written yet; `trueup list --available` shows what is there"
        )
    return StudyRef("module", paper.study)


def _device(name: str) -> str:
    if name != "cpu":
        import torch

        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"device {name!r} cannot be used here: {reason}; leave --device out for cpu"
            ) from None
    return name


@contextmanager
def _stopped_in_words() -> Iterator[None]:
    """Here, because typer would end the process without a word."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("\nstopped: every finished cell is kept; the same command goes on from there")
        raise typer.Exit(130) from None


def _run_all(refs: Sequence[StudyRef], path: Path, options: Options, workers: int) -> list[dict[str, Any]]:
    from trueup.lab import _runner as runner
    from trueup.lab._engine import LocalEngine
    from trueup.lab._store import Store

    outcomes = []
    for ref in refs:
        _check_data(ref, options.scale)
    with _stopped_in_words(), Store(path) as store, LocalEngine(workers) as engine:
        for ref in refs:
            study = ref.load()
            console.print(f"[bold]{study.slug}[/]  {escape(study.question)}")
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=console) as bars:
                outcomes.append(runner.run(ref, store, engine, options, _Bars(bars)))
            if not options.replicate:
                store.note_run(study.slug, options.scale, ref.kind, ref.name, options.seeds, options.device)
    return outcomes


def _check_data(ref: StudyRef, scale: str) -> None:
    """Every data set that a study declares is there, before time is spent."""
    from trueup import data

    missing = [name for name in ref.load().data_at(scale) if not data.is_ready(name)]
    if missing:
        raise FileNotFoundError(
            f"{ref.load().slug} needs data that is not here yet: run `trueup data fetch {' '.join(missing)}`"
        )


def _print_outcome(outcome: dict[str, Any]) -> bool:
    """Print one outcome; True if anything failed."""
    from trueup.lab._formatting import duration, plural

    broken = [c for c in outcome["cells"] if c["status"] == "failed"]
    failures = [*outcome["failures"], *({"name": c["arm"], "error": c["error"]} for c in broken)]
    cost = outcome["cost"]
    console.print()
    if outcome["scale"] == "smoke":
        console.print(
            "Everything ran; a smoke run gives no verdict." if not failures else "Some cells failed."
        )
    else:
        _print_claims(outcome)
    diverged = sum(c["status"] == "diverged" for c in outcome["cells"])
    if diverged:
        told = plural(diverged, "cell diverged and scores its", "cells diverged and score their")
        console.print(f"  [yellow]{told} metric's worst value, as anything worse does[/]")
    if not outcome["published"]:
        console.print(f"  [yellow]{escape(outcome['seeds_note'])}[/]")
    for failure in failures[:3]:
        console.print(
            Panel(escape(failure["error"].strip()), title=escape(failure["name"]), border_style="red")
        )
    if len(failures) > 3:
        console.print(f"  [red]and {len(failures) - 3} more failed[/]")
    device = outcome["provenance"]["device"]
    place = "" if device == "cpu" else f", on {escape(device)}"
    console.print(
        f"  [dim]{plural(cost['cells'], 'cell')}, {cost['reused']} of them stored before; "
        f"{duration(cost['cpu_seconds'])} of CPU time, {duration(cost['wall_seconds'])} of waiting{place}[/]"
    )
    return bool(failures)


def _print_plans(refs: Sequence[StudyRef], path: Path, options: Options, workers: int) -> None:
    from trueup.lab import _runner as runner
    from trueup.lab import _sentences as sentences
    from trueup.lab import ledger
    from trueup.lab._formatting import duration, plural
    from trueup.lab._outcome import unit_of
    from trueup.lab._store import Store

    place = "" if options.device == "cpu" else f", on {options.device}"
    with Store(path, readonly=True) as store:
        for ref in refs:
            study, plan = ref.load(), runner.plan(ref, store, options, workers)
            table = Table(
                box=box.SIMPLE_HEAD,
                title=f"{study.slug}, {options.scale} scale{place}",
                title_justify="left",
            )
            for column in ("phase", "cells", "stored"):
                table.add_column(column, justify="left" if column == "phase" else "right")
            for phase, count in plan.cells.items():
                table.add_row(phase, str(count), str(plan.stored[phase]))
            console.print(table)
            published = ledger.read().get(study.slug) if options.scale == "desk" else None
            if plan.minutes is None and published is not None and options.seeds is None:
                cost, before = published["cost"], plural(published["cost"]["cells"], "cell")
                took = duration(cost["cpu_seconds"] + cost["stage_seconds"])
                console.print(
                    f"time: when it was published it ran {before} in {took} of computing, "
                    "which the workers share; known better once some cells are stored here"
                )
            elif plan.minutes is None:
                console.print("minutes: unknown until some cells are stored (`--seeds 3` explores cheaply)")
            else:
                console.print(
                    f"about {duration(60 * plan.minutes)} with {plural(workers, 'worker')}, "
                    "if every look is needed"
                )
            if plan.detectable:
                found = Table(box=box.SIMPLE_HEAD)
                found.add_column("claim")
                found.add_column("smallest effect found with 80 % power at the last look", justify="right")
                found.add_column("minimum effect", justify="right")
                for claim in study.statistical:
                    if claim.name in plan.detectable:
                        metric = claim.contrast.metric
                        higher = study.metric(metric).higher if metric else None
                        unit = unit_of(study, claim.contrast) | {"higher": higher}
                        asked = math.log1p(claim.min_effect) if unit["scale"] == "log" else claim.min_effect
                        least = plan.detectable[claim.name]
                        effects = (escape(sentences.amount(value, **unit)) for value in (least, asked))
                        found.add_row(claim.name, *effects)
                console.print(found)
            elif study.statistical:
                console.print(
                    "smallest detectable effect: unknown without at least 3 development seeds (`--seeds 3`)"
                )


# -- report --------------------------------------------------------------------------------------------------


@app.command()
def report(
    store: StoreOption = STORE,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the pages; beside the store if left out.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the ledger and a page for every study in the store, as web pages that open from disk."""
    if not store.exists():
        console.print(f"no store at {store} yet: the report shows published verdicts only", style="yellow")
    page = _write_report(store, output)
    console.print(f"report: [bold]{page}[/]")
    if open_:
        webbrowser.open(page.resolve().as_uri())


def _write_report(path: Path, output: Path | None = None) -> Path:
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
        p.slug: _with_seeds(entries[p.slug]) | {"standing": _standing(p, entries)}
        for p in papers.CATALOGUE
        if p.slug in entries
    }
    return write_report(output or path.parent / "report", outcomes, catalogue, marked)


def _with_seeds(published: dict[str, Any]) -> dict[str, Any]:
    """A ledger entry with every seed's contrast, from its evidence."""
    from trueup.lab import _evidence as evidence
    from trueup.lab import ledger
    from trueup.lab._errors import StudyError

    try:
        verdict, claims = evidence.rejudge(ledger.evidence_of(published))
    except StudyError as error:
        errors.print(f"[yellow]without every seed's dot:[/] {escape(str(error))}")
        return published
    return published | {"verdict": verdict, "claims": claims}


# -- compare -------------------------------------------------------------------------------------------------


@app.command()
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
        typer.Option(help="A column whose values are averaged over in each seed; repeatable."),
    ] = None,
    worst: Annotated[
        float | None,
        typer.Option(help="What a diverged run (nan, inf) scores: chance accuracy, log of the classes."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the comparison as a web page.")] = None,
) -> None:
    """Judge results of your own by the lab's rule.

    The answer is: better; better, by less than you asked; too small or worse; or cannot tell.

    For example: trueup compare results.csv --metric acc --higher --baseline sgd --method adamp
    --min-effect 0.005

    Decide beforehand how many seeds to run, and ask once. Adding seeds until the answer pleases finds gains
    that are none: about one time in ten instead of one in forty.
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
    console.print(f"\n{_chip(comparison.word)}\n{escape(str(comparison))}")
    better = "higher is better (else: --lower)" if higher else "lower is better"
    console.print(f"{escape(metric)}: {better}\n", style="dim")
    if html is not None:
        from trueup.lab.report import write_comparison

        console.print(f"page: [bold]{write_comparison(html, comparison.to_dict())}[/]")


# -- ledger --------------------------------------------------------------------------------------------------


@ledger_app.callback(invoke_without_command=True)
def ledger_show(context: typer.Context) -> None:
    """Published verdicts: look, publish, replicate, certify."""
    if context.invoked_subcommand is not None:
        return
    from trueup.lab import ledger

    entries = ledger.read()
    if not entries:
        console.print("nothing is published yet; `trueup run SLUG`, then `trueup ledger publish SLUG`")
        return
    primary = sum(c["primary"] and c["kind"] == "statistical" for e in entries.values() for c in e["claims"])
    console.print(
        f"{primary} primary statistical claims, each a false win with a chance of 0.025 at most: "
        f"{primary * 0.025:.2f} to expect.\n"
        "q: the share of false wins to expect among the published claims that do as well as this one."
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
        chip = _chip(verdict["outcome"], _standing(paper, entries))
        chip += "  [yellow]reconstructed[/]" if paper.reconstructed else ""
        console.print(f"\n[bold]{slug}[/]  {chip}")
        _print_indented(escape(verdict["sentence"]), 2)
        _print_indented(f"[dim]{'; '.join(facts)}[/]", 2)
    console.print()
    console.print("`trueup show SLUG` prints every claim and the history of its verdict.", style="dim")


@ledger_app.command("publish")
def ledger_publish(
    slugs: Annotated[list[str], typer.Argument(help="Papers whose stored desk verdict is to be published.")],
    reason: Annotated[
        str, typer.Option(help="Why a protocol that was published before is published again.")
    ] = "",
    store: StoreOption = STORE,
    readme: Annotated[Path, typer.Option(help="The README whose table is renewed.")] = Path("README.md"),
) -> None:
    """Write stored desk verdicts into the ledger that ships with the package. For maintainers.

    The evidence is written beside it: every cell's numbers, and every seed's contrast. Nothing is overwritten
    silently: the entry's history keeps what was published before, and publishing one protocol twice needs a
    reason. Claims or grids that changed need a new protocol number, which draws fresh seeds. If only code was
    rewritten, certify it instead.
    """
    from trueup.lab import _evidence as evidence
    from trueup.lab import ledger
    from trueup.lab._certify import Repository
    from trueup.lab._runner import gather
    from trueup.lab._store import Store

    with Store(store, create=False) as opened:
        commit = Repository().require_clean()
        for slug in slugs:
            ref = _reference(slug)
            outcome, made = gather(ref, opened)
            changed = evidence.changed(ref.load(), evidence.read(slug)) if evidence.exists(slug) else None
            entry = ledger.publish(outcome, made, commit=commit, changed=changed, reason=reason)
            console.print(f"[bold]{slug}[/]: {_chip(entry['verdict']['outcome'])}")
            _renew(readme)


def _renew(readme: Path) -> None:
    from trueup.lab import ledger

    if readme.exists():
        ledger.renew_readme(readme, ledger.read(), papers.CATALOGUE)


@ledger_app.command("rejudge")
def ledger_rejudge(
    slugs: Annotated[
        list[str] | None, typer.Argument(help="Published papers; all of them if left out.")
    ] = None,
    readme: Annotated[Path, typer.Option(help="The README whose table is renewed.")] = Path("README.md"),
) -> None:
    """Apply the present verdict rule to the stored contrasts of published verdicts. For maintainers.

    Nothing is trained or computed again, and torch is not needed. An outcome that changes enters the history.
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
        table.add_row(slug, *map(_chip, outcomes), "; ".join(changed) or "none")
    console.print(table)
    _renew(readme)


@ledger_app.command("evidence")
def ledger_evidence(
    slug: Annotated[str, typer.Argument(help="A paper with a published verdict.")],
    csv: Annotated[bool, typer.Option("--csv", help="Print every cell as comma-separated values.")] = False,
) -> None:
    """Show what a published verdict rests on: its cells, its seeds and where it was computed.

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


@ledger_app.command("replicate")
def ledger_replicate(
    slug: Annotated[str, typer.Argument(help="A paper with a published verdict.")],
    workers: Annotated[int | None, typer.Option(help="Processes; one a core if left out.")] = None,
    store: StoreOption = STORE,
) -> None:
    """Run a published study again on fresh seeds, tuning seeds too: do the effects agree?

    Effects are compared with their intervals, and those of the controls; two runs may differ in a word at
    almost the same effect. Exact and cost claims, which draw no seeds, are computed again. The published
    verdict stays as it is. In a checkout of the repository every attempt is recorded, whatever it says.
    """
    from trueup.lab import _evidence as evidence
    from trueup.lab import ledger
    from trueup.lab._replication import agrees, compare_effects
    from trueup.lab._runner import Options

    entries = ledger.read()
    if slug not in entries:
        raise ValueError(f"{slug} has no published verdict; published: {', '.join(entries) or 'none'}")
    published = entries[slug]
    _, before = evidence.rejudge(ledger.evidence_of(published))
    if _standing(papers.get(slug), entries) == "stale":
        raise ValueError(
            f"the code of {slug} has changed since its verdict was published: certify or publish it first, "
            "so that the replication is one of the published code"
        )
    attempt = 1 + len(ledger.replications(published))
    outcome = _run_all([_reference(slug)], store, Options(replicate=attempt), _workers(workers))[0]
    failed = _print_outcome(outcome)
    rows = compare_effects(before, outcome["claims"])
    _print_replication(rows)
    agreed = None if failed else agrees(rows)
    console.print(
        {
            None: "[red]Cells failed, so the replication says nothing.[/]",
            True: "[green]The replication agrees with the published effects.[/]",
            False: "[red]The replication differs from the published effects.[/]",
        }[agreed]
    )
    if ledger.checkout() is not None:
        ledger.add_event(
            slug,
            {
                "event": "replicated",
                "date": outcome["provenance"]["date"],
                "protocol": published["protocol"],
                "fingerprint": outcome["provenance"]["fingerprint"],
                "attempt": attempt,
                "verdict": outcome["verdict"]["outcome"],
                "agrees": agreed,
                "effects": rows,
            },
        )
        console.print(f"recorded in the ledger as replication {attempt}")
    raise typer.Exit(1 if failed else 0)


def _print_replication(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, title="against the published effects", title_justify="left")
    for name in ("claim", "published", "replication", "difference (interval)", "agree?"):
        table.add_column(name)
    for row in rows:
        old, new = (
            (_chip(row[run]["outcome"]) if row[run]["outcome"] else "not asked")
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
    """Live progress: one bar a study, over the cells of both codes."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.task: Any = None

    def begin(self, slug: str, cells: int) -> None:
        self.task = self.bars.add_task(slug, total=cells)

    def done(self, cells: int) -> None:
        self.bars.update(self.task, advance=cells)


@ledger_app.command("certify")
def ledger_certify(
    slugs: Annotated[
        list[str] | None,
        typer.Argument(help="Papers with a published verdict; all whose code has changed if left out."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core if left out.")] = None,
    readme: Annotated[Path, typer.Option(help="The README whose table is renewed.")] = Path("README.md"),
) -> None:
    """Show that changed code computes what was published, so that no study is run anew. For maintainers.

    Run it after refactoring, in a git checkout, with everything under src/ committed. A sample of each
    study's cells is computed twice on this machine, by the published commit and by the present code: two
    seeds of each look, every trial at one seed, the best two trials at all, and every exact claim. Cost
    claims are measured again. Which seeds are drawn depends on the commit.

    certified: equal in every bit. The ledger notes the present code, and the verdict is current again.

    differs: the cells are named here and in the ledger; the exit code is 1. Mend the code, or publish anew.

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
        dict.fromkeys(slugs or [s for s in entries if _standing(papers.get(s), entries) == "stale"])
    )
    if not chosen:
        console.print("nothing to certify: every verdict's code is what was published, or certified since")
        return
    repository = Repository()
    repository.require_clean()
    refs = {slug: _reference(slug) for slug in chosen}
    for slug, ref in refs.items():
        _check_data(ref, entries[slug]["scale"])
    workers = _workers(workers)
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
        errors.print("\nstopped: what was certified before is noted; the same command does the rest")
        raise typer.Exit(130) from None
    _print_certifications(found)
    _renew(readme)
    raise typer.Exit(0 if all(getattr(f, "outcome", "") == "certified" for f in found.values()) else 1)


def _print_certifications(found: Mapping[str, Any]) -> None:
    """A table of what came out, and below it why a study was refused or where it differs."""
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
                _print_indented(escape(str(difference)))
            if len(result.differences) > 10:
                _print_indented(f"and {len(result.differences) - 10} more numbers")


# -- data ----------------------------------------------------------------------------------------------------


@data_app.callback(invoke_without_command=True)
def data_list(context: typer.Context) -> None:
    """Real data sets: list them, fetch the larger ones once."""
    if context.invoked_subcommand is not None:
        return
    from trueup import data

    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    for column in ("name", "what", "rows", "licence", "here?"):
        table.add_column(
            column,
            no_wrap=column in ("name", "here?"),
            ratio=1 if column == "what" else None,
            width=14 if column == "licence" else None,
            justify="right" if column == "rows" else "left",
        )
    for name, pin in data.SETS.items():
        ready = "[green]yes[/]" if data.is_ready(name) else f"fetch, {pin.sources[0].megabytes:.0f} MB"
        table.add_row(name, escape(pin.title), f"{pin.n:,}", escape(pin.licence), ready)
    console.print(table)


@data_app.command("fetch")
def data_fetch(
    names: Annotated[list[str], typer.Argument(help="Names, as `trueup data` lists them.")],
) -> None:
    """Download data sets, check them, and keep them decoded in the cache."""
    from trueup import data

    for name in names:
        dataset = data.fetch(name)
        console.print(f"[bold]{name}[/] is ready: {dataset.X.shape}, licence: {escape(dataset.licence)}")


if __name__ == "__main__":
    main()
