"""`trueup run`: run studies and print their verdicts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from trueup.cli._console import STORE, StoreOption, WorkersOption, console, errors, escape, print_claims
from trueup.cli._report import write_pages
from trueup.studies import _lookup as lookup

if TYPE_CHECKING:
    from trueup.lab._cell import Cell, CellResult
    from trueup.lab._engine import StudyRef
    from trueup.lab._runner import Options


class _Bars:
    """Live progress: one bar per phase."""

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
    workers: WorkersOption = None,
    threads: Annotated[int, typer.Option(help="torch threads per process.")] = 1,
    store: StoreOption = STORE,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every cell again, even those stored.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would run and for how long; run nothing.")
    ] = False,
) -> None:
    """Run studies and print their verdicts.

    Finished cells are kept: a stopped run resumes where it was, and a complete one is only judged again.
    The report is written beside the store, as web pages.
    """
    from trueup.lab._runner import Options

    options = Options(scale, seeds, fresh=fresh, device=_device(device), threads=threads)
    refs = [lookup.reference(target) for target in targets]
    workers = worker_count(workers)
    if plan:
        _print_plans(refs, store, options, workers)
        return
    failed = False
    for outcome in run_all(refs, store, options, workers):
        failed = print_outcome(outcome) or failed
    page = write_pages(store)
    console.print(f"report: [bold]{page}[/] (`trueup report --open` opens it)")
    raise typer.Exit(1 if failed else 0)


def worker_count(requested: int | None) -> int:
    """Return the number of worker processes: as requested, or one per core that this process may use."""
    if requested is not None:
        if requested < 1:
            raise ValueError(f"workers must be at least 1; got {requested}")
        return requested
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
def _resumable() -> Iterator[None]:
    """Turn Ctrl-C into a message and exit code 130: typer would end the process silently."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("\nstopped: every finished cell is kept; the same command resumes from there")
        raise typer.Exit(130) from None


def run_all(refs: Sequence[StudyRef], path: Path, options: Options, workers: int) -> list[dict[str, Any]]:
    from trueup.lab import _runner as runner
    from trueup.lab._engine import LocalEngine
    from trueup.lab._store import Store

    outcomes = []
    for ref in refs:
        lookup.check_data(ref, options.scale)
    with _resumable(), Store(path) as store, LocalEngine(workers) as engine:
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


def print_outcome(outcome: dict[str, Any]) -> bool:
    """Print one outcome and return whether anything failed."""
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
        print_claims(outcome)
    diverged = sum(c["status"] == "diverged" for c in outcome["cells"])
    if diverged:
        note = plural(diverged, "cell diverged and scores its", "cells diverged and score their")
        console.print(f"  [yellow]{note} metric's worst value, as anything worse does[/]")
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
    from trueup.lab import _planning as planning
    from trueup.lab import _sentences as sentences
    from trueup.lab import ledger
    from trueup.lab._formatting import duration, plural
    from trueup.lab._measured import margin_of
    from trueup.lab._outcome_document import unit_of
    from trueup.lab._store import Store

    place = "" if options.device == "cpu" else f", on {options.device}"
    with Store(path, readonly=True) as store:
        for ref in refs:
            study, plan = ref.load(), planning.plan(ref, store, options, workers)
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
                    "shared by the workers; the estimate improves once some cells are stored here"
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
                        effects = (plan.detectable[claim.name], margin_of(claim))
                        found.add_row(claim.name, *(escape(sentences.amount(d, **unit)) for d in effects))
                console.print(found)
            elif study.statistical:
                console.print(
                    "smallest detectable effect: unknown without at least 3 development seeds (`--seeds 3`)"
                )
