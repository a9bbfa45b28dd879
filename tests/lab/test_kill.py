"""Runs that are killed, share a store or run out of disk resume, and end with the same results."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from toy import InlineEngine, write_toy

from trueup.lab import _runner as runner
from trueup.lab._engine import StudyRef
from trueup.lab._store import Store

pytestmark = pytest.mark.slow  # each test starts several Pythons with torch

WORKERS = 2
RUN = f"""
import json, sys
from pathlib import Path
from trueup.lab import _runner as runner
from trueup.lab._engine import LocalEngine, StudyRef
from trueup.lab._store import Store
if __name__ == "__main__":
    with Store(sys.argv[2]) as store, LocalEngine({WORKERS}) as engine:
        outcome = runner.run(StudyRef("file", sys.argv[1]), store, engine)
    Path(sys.argv[3]).write_text(json.dumps(outcome))
"""
# each cell logs its start and process, takes long enough to be killed, and waits while it is held
TROUBLE = """import os, time
    log = os.open({log!r}, os.O_WRONLY | os.O_APPEND)
    os.write(log, b"%d\\n" % os.getpid())
    os.close(log)
    time.sleep(0.03)
    while os.path.exists({hold!r}):
        time.sleep(0.01)
"""


class Case:
    """One toy study, its store, and runs of it in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store" / "cells.sqlite"
        self.log = folder / "started"
        self.log.touch()
        self._hold = folder / "hold"
        self.study = write_toy(folder, trouble=TROUBLE.format(log=str(self.log), hold=str(self._hold)))
        self._script = folder / "run.py"
        self._script.write_text(RUN)
        self._processes: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        out = self.store.parent.parent / f"outcome-{len(self._processes)}.json"
        process = subprocess.Popen(
            [sys.executable, self._script, self.study, self.store, out],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        return process

    def outcome(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Return the outcome of a run that must succeed."""
        said = process.communicate(timeout=300)[0]
        assert (process.returncode, said) == (0, "")
        out = f"outcome-{self._processes.index(process)}.json"
        return json.loads((self.store.parent.parent / out).read_text())  # type: ignore[no-any-return]

    def stored(self) -> int:
        try:
            with sqlite3.connect(f"file:{self.store}?mode=ro", uri=True) as connection:
                return int(connection.execute("SELECT count(*) FROM cells").fetchone()[0])
        except sqlite3.OperationalError:  # not made yet
            return 0

    def pids(self) -> list[int]:
        """Return the worker of every start of a cell, oldest first."""
        return [int(line) for line in self.log.read_text().splitlines()]

    def until(self, process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
        while not condition():
            assert process.poll() is None, "the run ended before its moment came"
            time.sleep(0.005)

    @contextmanager
    def held(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Keep at least one cell running and let none finish, however slow the machine."""
        self._hold.touch()
        started = len(self.pids())
        try:
            self.until(process, lambda: len(self.pids()) > started)
            yield
        finally:
            self._hold.unlink()

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    case = Case(tmp_path)
    yield case
    case.end()


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The study run in this process, without workers and without trouble."""
    folder = tmp_path_factory.mktemp("truth")
    with Store(folder / "cells.sqlite") as store:
        outcome = runner.run(StudyRef("file", write_toy(folder, name="truth.py")), store, InlineEngine())
        outcome["stored"] = sum(1 for _ in store.cells("toy"))
    return outcome


def findings(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return all of an outcome that does not depend on time and place."""
    cells = [
        {key: cell[key] for key in ("arm", "condition", "hyper", "seed", "status", "numbers")}
        for cell in outcome["cells"]
    ]
    kept = ("verdict", "claims", "tuning", "looks", "series", "arms", "published")
    return {"cells": cells, **{key: outcome[key] for key in kept}}


def assert_same(outcome: dict[str, Any], case: Case, truth: dict[str, Any]) -> None:
    """Check that the findings are the same, and that every cell is stored once."""
    outcome, expected = json.loads(json.dumps(outcome)), json.loads(json.dumps(truth))
    assert findings(outcome) == findings(expected)
    assert outcome["verdict"]["outcome"] == "reproduced"
    with Store(case.store) as store:
        cells = [(cell.key(), result.status) for _, cell, result in store.cells("toy")]
    assert {status for _, status in cells} == {"ok"}
    assert len(cells) == len(set(cells)) == truth["stored"]


def training_cells(truth: dict[str, Any]) -> int:
    """Return the number of cells that write to the log: neither stages nor exact claims."""
    trials = sum(len(trial["scores"]) for tuned in truth["tuning"] for trial in tuned["trials"])
    return trials + len(truth["cells"])


def test_a_run_killed_at_random_moments_resumes_where_it_stopped(case: Case, truth: dict[str, Any]) -> None:
    moments = sorted(random.Random(1).sample(range(3, truth["stored"] - 8), 3))
    for moment in moments:
        process = case.start()
        case.until(process, lambda at=moment: case.stored() >= at)  # type: ignore[misc]
        process.kill()
        process.wait()
    process = case.start()
    with case.held(process):
        process.kill()
        process.wait()
    done = case.stored()
    outcome = case.outcome(case.start())
    assert_same(outcome, case, truth)
    assert outcome["cost"]["reused"] >= done
    # lost are the cells that were running, and at most as many that had just ended
    again = len(case.pids()) - training_cells(truth)
    assert 0 < again <= (len(moments) + 1) * 2 * WORKERS


def test_workers_killed_at_random_moments_are_not_noticed(case: Case, truth: dict[str, Any]) -> None:
    process = case.start()
    rng = random.Random(2)
    starts = 0
    for _ in range(4):
        # far enough apart that no cell is hit three times, and no worker that has already exited
        starts = max(starts + rng.randint(6, 16), len(case.pids()) + 1)
        case.until(process, lambda at=starts: len(case.pids()) >= at)  # type: ignore[misc]
        time.sleep(rng.random() * 0.04)
        os.kill(case.pids()[-1], signal.SIGKILL)
    with case.held(process):
        os.kill(case.pids()[-1], signal.SIGKILL)
    assert_same(case.outcome(process), case, truth)
    assert training_cells(truth) < len(case.pids()) <= training_cells(truth) + 5
    assert len(set(case.pids())) >= WORKERS + 3


def test_two_runs_on_one_store_do_no_harm(case: Case, truth: dict[str, Any]) -> None:
    both = [case.start(), case.start()]
    for process in both:
        assert_same(case.outcome(process), case, truth)
    # a third has nothing left to do
    started = len(case.pids())
    outcome = case.outcome(case.start())
    assert len(case.pids()) == started
    assert outcome["cost"]["reused"] == outcome["cost"]["cells"]


def test_a_run_out_of_disk_says_so_and_resumes(case: Case, truth: dict[str, Any]) -> None:
    case.store.parent.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(case.store.parent)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk; the store's own test covers a full one")
    try:
        process = case.start()
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 1
        assert "the disk is full; cells stored before are safe: free some space and run again" in said
        done = case.stored()
        assert 3 < done < truth["stored"]
        subprocess.run(["mount", "-o", "remount,size=20m", str(case.store.parent)], check=True)
        outcome = case.outcome(case.start())
        assert_same(outcome, case, truth)
        assert outcome["cost"]["reused"] >= done
    finally:
        case.end()
        subprocess.run(["umount", "--lazy", str(case.store.parent)], check=True)
