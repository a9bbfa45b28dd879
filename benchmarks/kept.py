"""A run kept as a file, and another run beside it.

Before the figures the file says what they depend on: commit, date, processor, versions, threads and rounds.
Ratios last from day to day on one machine; another processor has its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Result

Header = dict[str, Any]


def header(*, rounds: int, threads: int) -> Header:
    """Describe this run. The commit ends in ``-dirty`` where tracked files have uncommitted changes."""
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scipy")},
        "threads": threads,
        "rounds": rounds,
    }


def save(path: Path, header: Header, results: list[Result]) -> None:
    """Write a run as JSON, the header first."""
    document = {"header": header, "results": [dataclasses.asdict(result) for result in results]}
    path.write_text(json.dumps(document, indent=1) + "\n")


def load(path: Path) -> tuple[Header, list[Result]]:
    """Read what `save` wrote.

    Raises:
        ValueError: the file is missing, or something else.
    """
    try:
        document = json.loads(path.read_text())
        results = [
            Result(**entry | {"quartiles": _pair(entry["quartiles"])}) for entry in document["results"]
        ]
        header = dict(document["header"])
        if missing := {"commit", "date", "cpu"} - header.keys():
            raise ValueError(f"its header lacks {', '.join(sorted(missing))}")
        return header, results
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no run written by --json ({error}): pass one of those") from error


@dataclasses.dataclass(frozen=True)
class Change:
    """A figure of this run beside the kept one, which is None for a row that the kept run lacks."""

    now: Result
    kept: Result | None

    @property
    def factor(self) -> float | None:
        """How many times the kept figure this one is."""
        return self.now.figure / self.kept.figure if self.kept and self.kept.figure else None

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the quartiles of the two runs do not meet, else empty.

        Empty also for a figure measured once: nothing says how much it varies.
        """
        if self.kept is None:
            return "new"
        if not self.now.quartiles or not self.kept.quartiles:
            return ""
        (low, high), (kept_low, kept_high) = self.now.quartiles, self.kept.quartiles
        if low <= kept_high and kept_low <= high:
            return ""
        return "better" if (low > kept_high) == self.now.at_least else "worse"


def changes(kept: list[Result], now: list[Result]) -> list[Change]:
    """Pair each result of this run with the kept one of the same comparison."""
    known = {(r.what, r.peer, r.unit): r for r in kept}
    return [Change(r, known.get((r.what, r.peer, r.unit))) for r in now]


def differences(kept: Header, now: Header) -> list[str]:
    """Name what else changed: each field of the headers that differs, commit and date aside."""
    return [
        f"{name} {kept.get(name)} -> {now.get(name)}"
        for name in now
        if name not in ("commit", "date") and kept.get(name) != now.get(name)
    ]


def _commit() -> str:
    """The commit that this code is from, or ``unknown``."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _cpu() -> str:
    """The processor's name and, since generations share it, its family, model and vector instructions."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:  # Linux alone has it
        first = ""
    fields = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in first.splitlines())}
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [
        f"{key.removeprefix('cpu ')} {fields[key]}" for key in ("cpu family", "model") if key in fields
    ]
    return ", ".join([name, *numbers, torch.backends.cpu.get_cpu_capability()])


def _pair(values: list[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])
