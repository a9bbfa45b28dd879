"""`python -m benchmarks [NAME...] [--rounds N] [--json FILE] [--against FILE]`: run benchmarks, print them.

`--json` keeps the run in a file; `--against` prints a kept run beside this one. The exit code is 0 when every
bound holds, 1 when one does not or a benchmark could not run, 2 for bad usage. No comparison changes it.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks import kept
from benchmarks.harness import Result, run

NAMES = sorted(
    m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in ("harness", "kept", "__main__")
)
THREADS = 1


def results_of(name: str, rounds: int) -> Iterator[Result]:
    module = importlib.import_module(f"benchmarks.{name}")
    yield from run(module.rows(), rounds=rounds, threads=THREADS)


def table_of(results: list[Result]) -> Table:
    table = Table(
        "what",
        title=f"torch {torch.__version__}, {THREADS} thread, {platform.machine()}",
        title_justify="left",
    )
    for column in ("ours ms", "peer", "peer ms", "figure", "quartiles", "bound", "holds"):
        table.add_column(column, justify="left" if column == "peer" else "right")
    for result in results:
        table.add_row(
            result.what,
            _number(result.ours_ms),
            result.peer,
            _number(result.theirs_ms),
            f"{_number(result.figure)} {result.unit}",
            _range(result),
            f"{'>=' if result.at_least else '<='} {_number(result.bound)} {result.unit}",
            "[green]yes[/]" if result.holds else "[red]no[/]",
        )
    return table


def comparison_of(header: kept.Header, changes: list[kept.Change]) -> Table:
    table = Table(
        "what",
        "peer",
        title=f"against {header['commit']} of {header['date']}, {header['cpu']}",
        title_justify="left",
    )
    for column in ("kept", "quartiles", "now", "quartiles", "now / kept"):
        table.add_column(column, justify="right")
    table.add_column()
    for change in changes:
        now, before = change.now, change.kept
        table.add_row(
            now.what,
            now.peer,
            f"{_number(before.figure)} {before.unit}" if before else "",
            _range(before),
            f"{_number(now.figure)} {now.unit}",
            _range(now),
            _number(change.factor),
            change.verdict,
        )
    return table


def _range(result: Result | None) -> str:
    if result is None or result.quartiles is None:
        return ""
    return f"{_number(result.quartiles[0])} to {_number(result.quartiles[1])}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed and memory against peers."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds a row (default 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep this run here")
    parser.add_argument("--against", type=Path, metavar="FILE", help="also print the run kept here beside it")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {arguments.rounds}")

    # Before the hour that the run takes: the commit may change meanwhile, and a wrong path should fail now.
    header = kept.header(rounds=arguments.rounds, threads=THREADS)
    before = None
    if arguments.against:
        try:
            before = kept.load(arguments.against)
        except ValueError as error:
            parser.error(f"--against: {error}")
    if arguments.json and not arguments.json.parent.is_dir():
        parser.error(f"--json: there is no folder {arguments.json.parent}")
    if arguments.json and arguments.json.is_dir():
        parser.error(f"--json: {arguments.json} is a folder; pass the name of a file in it")

    progress, results, failures = Console(stderr=True), [], 0
    for name in arguments.names or NAMES:
        count = len(results)
        try:
            with progress.status(f"{name} ..."):
                for result in results_of(name, arguments.rounds):
                    results.append(result)
                    progress.print(
                        f"{name}: {result.what}, {result.figure:.3g} {result.unit} ({result.peer})"
                    )
        except Exception:  # one broken benchmark must not hide the others' figures
            failures += 1
            progress.print(f"[red]{name} could not run[/]")
            progress.print_exception()
        else:
            if len(results) == count:
                progress.print(f"{name}: nothing to measure on this machine")
    # Piped into a file, the table keeps its full width instead of an 80-column guess.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table_of(results))
    if before:
        console.print(comparison_of(before[0], kept.changes(before[1], results)))
        for difference in kept.differences(before[0], header):
            console.print(f"differs: {difference}")
    if arguments.json:
        kept.save(arguments.json, header, results)
    return 1 if failures or not all(result.holds for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
