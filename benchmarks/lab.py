"""Measure the lab: the cost of a cell that does nothing, and the gain from a second worker.

The first figure includes everything that a run does: fingerprints, starting a worker, sending each cell and
receiving its result, one transaction per cell, and the outcome document. The second is the desk study of
ghost-batch-norm, run with one worker and with two, each with a new store; it takes several minutes and needs
two idle cores.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Measured
from trueup.lab import _runner as runner
from trueup.lab._engine import LocalEngine, StudyRef
from trueup.lab._runner import Options
from trueup.lab._store import Store

CELLS = 1000
NO_OP = """
from trueup.lab import Arm, Condition, Metric, Study

study = Study(
    slug="no-op",
    question="What does an empty cell cost?",
    cell=lambda run: {"score": 1.0},
    metrics=[Metric("score", higher=True, worst=0.0)],
    arms=[Arm("a", "baseline"), Arm("b", "method")],
    conditions=[Condition("level", tuple(range(10)))],
)
"""


def seconds(ref: StudyRef, options: Options, workers: int) -> float:
    """Return the wall seconds of a complete run with a new store and new workers."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with Store(Path(folder) / "cells.sqlite") as store, LocalEngine(workers) as engine:
            outcome = runner.run(ref, store, engine, options)
        elapsed = time.perf_counter() - start
    assert outcome["cost"]["reused"] == 0
    assert all(cell["status"] != "failed" for cell in outcome["cells"])
    return elapsed


def rows() -> Iterator[Measured]:
    """Measure the milliseconds per cell, and the gain from a second worker."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "no_op.py"
        study.write_text(NO_OP)
        ref = StudyRef("file", str(study))
        per_cell = 1e3 * seconds(ref, Options(seeds=CELLS // 20), workers=1) / CELLS
    yield Measured(f"lab overhead, {CELLS} no-op cells", "none", per_cell, "ms per cell", 30.0)

    ghost = StudyRef("module", "trueup.studies.ghost_batch_norm")
    gain = seconds(ghost, Options(), workers=1) / seconds(ghost, Options(), workers=2)
    yield Measured("ghost-batch-norm at desk scale", "1 worker", gain, "x with 2", 1.8, at_least=True)
