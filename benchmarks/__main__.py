"""`python -m benchmarks [NAME...] [--rounds N] [--json FILE]`: run benchmarks, print one table.

The exit code is 0 when every bound holds, 1 when one does not or a benchmark could not run, 2 for bad usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import pkgutil
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks.harness import Result, run

NAMES = sorted(
    m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in ("harness", "__main__")
)


def results_of(name: str, rounds: int) -> Iterator[Result]:
    module = importlib.import_module(f"benchmarks.{name}")
    yield from run(module.rows(), rounds=rounds)


def table_of(results: list[Result]) -> Table:
    table = Table(
        "what", title=f"torch {torch.__version__}, 1 thread, {platform.machine()}", title_justify="left"
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
            f"{_number(result.quartiles[0])} to {_number(result.quartiles[1])}" if result.quartiles else "",
            f"{'>=' if result.at_least else '<='} {_number(result.bound)} {result.unit}",
            "[green]yes[/]" if result.holds else "[red]no[/]",
        )
    return table


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {arguments.rounds}")

    progress, results, failures = Console(stderr=True), [], 0
    for name in arguments.names or NAMES:
        before = len(results)
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
            if len(results) == before:
                progress.print(f"{name}: nothing to measure on this machine")
    # Piped into a file, the table keeps its full width instead of an 80-column guess.
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(results))
    if arguments.json:
        machine = {"torch": torch.__version__, "python": platform.python_version(), "cpus": os.cpu_count()}
        document = {"machine": machine, "results": [dataclasses.asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failures or not all(result.holds for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
