"""Run a study: stages, tuning, looks, exact and cost claims. Cells that the store has are not run again."""

from __future__ import annotations

import datetime
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from trueup.lab import _evidence as evidence
from trueup.lab._cell import Cell, CellResult, Items, clear_leftovers, environment, items
from trueup.lab._engine import Engine, StudyRef, Task
from trueup.lab._errors import StudyError
from trueup.lab._fingerprint import cell_fingerprint, code_fingerprint, verdict_fingerprint
from trueup.lab._judging import undecided
from trueup.lab._measured import Evidence
from trueup.lab._outcome_document import outcome_document
from trueup.lab._seeds import DEVELOPMENT, published_seeds, replicate_seeds, tuning_seeds
from trueup.lab._spec import SCALES, ExactClaim, Stage, Study, Value
from trueup.lab._store import Store
from trueup.lab._tuning import ArmAt, Trial, Tuned, choose, edges, replicate_tuning_seeds, widened_grids
from trueup.lab._verdict import ALPHA

EXPLORATORY = "development seeds: shown, never published"

StageKey: TypeAlias = tuple[Items, int, str]  # condition, seed, and "tune" for trials


class Progress(Protocol):
    """Receives the progress of a run."""

    def phase(self, name: str, total: int, reused: int) -> None: ...
    def done(self, cell: Cell, result: CellResult) -> None: ...


class Silent:
    """No progress."""

    def phase(self, name: str, total: int, reused: int) -> None: ...
    def done(self, cell: Cell, result: CellResult) -> None: ...


@dataclass(frozen=True)
class Options:
    """How to run a study.

    Attributes:
        scale: `smoke`, `desk` or `paper`.
        seeds: `None` follows the protocol's looks on its published seeds; a number runs that many
            development seeds, which are shown but never published.
        replicate: k > 0 draws the k-th set of fresh seeds for a replication, for its tuning too, and
            computes exact and cost claims again.
        fresh: drop the stored results of these cells first.
    """

    scale: str = "desk"
    seeds: int | None = None
    replicate: int = 0
    fresh: bool = False
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise StudyError(f"unknown scale {self.scale!r}; scales are {', '.join(SCALES)}")
        if self.seeds is not None and self.seeds < 1:
            raise StudyError(
                f"seeds must be at least 1, got {self.seeds}; leave it out to follow the protocol"
            )
        if self.seeds is not None and self.seeds > len(DEVELOPMENT):
            raise StudyError(f"there are {len(DEVELOPMENT)} development seeds; got seeds = {self.seeds}")
        if self.threads < 1:
            raise StudyError(f"threads must be at least 1, got {self.threads}")


def run(
    ref: StudyRef,
    store: Store,
    engine: Engine,
    options: Options | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the cells that the store lacks, and return the outcome document."""
    return Session(ref, store, engine, options or Options(), progress or Silent()).outcome()


def collect(ref: StudyRef, store: Store, options: Options | None = None) -> dict[str, Any]:
    """Return the outcome document from stored cells alone; a claim that lacks cells is `incomplete`.

    Without options, it is the outcome at desk scale on the device of the last run.
    """
    return Session(ref, store, None, options or _last_desk_run(ref, store), Silent()).outcome()


def gather(ref: StudyRef, store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the desk outcome from stored cells alone, and the evidence that it rests on."""
    session = Session(ref, store, None, _last_desk_run(ref, store), Silent())
    outcome = session.outcome()
    return outcome, evidence.document(session.study, session.evidence, session.cells, outcome)


def _last_desk_run(ref: StudyRef, store: Store) -> Options:
    slug = ref.load().slug
    devices = [run["device"] for run in store.runs() if (run["study"], run["scale"]) == (slug, "desk")]
    return Options(device=devices[0] if devices else "cpu")


def recompute(
    ref: StudyRef,
    cells: Sequence[Cell],
    engine: Engine,
    options: Options | None = None,
    progress: Progress | None = None,
) -> dict[Cell, CellResult]:
    """Compute these cells afresh, and the stages that they read, in a temporary store.

    Cells of cost claims come last; each runs alone.
    """
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "cells.sqlite") as store:
        session = Session(ref, store, engine, options or Options(), progress or Silent())
        results = session.results("cells", [cell for cell in cells if cell.kind != "cost"])
        for cell in cells:
            if cell.kind == "cost":
                results |= session.results(f"cost: {cell.arm}", [cell])
        return results


class Session:
    """One run of a study, or one reading of its stored cells if there is no engine."""

    def __init__(
        self, ref: StudyRef, store: Store, engine: Engine | None, options: Options, progress: Progress
    ) -> None:
        self.ref, self.store, self.engine, self.options, self.progress = ref, store, engine, options, progress
        self.study: Study = ref.load()
        if options.scale not in self.study.scales:
            known = ", ".join(self.study.scales)
            raise StudyError(f"{self.study.slug} has no scale {options.scale!r}; it has {known}")
        self.code = code_fingerprint(ref)
        self.data = data_records(self.study.data_at(options.scale))
        self.evidence = Evidence()
        self.conditions = [items(c) for c in self.study.condition_grid()]
        self.cells: dict[Cell, CellResult] = {}  # of this session: a widened grid needs its trials again
        self.computed = self.reused = 0
        self.cpu_seconds = self.stage_seconds = 0.0
        self.peak_memory: int | None = None
        self.environment: dict[str, str] = {}

    # -- one batch of cells --------------------------------------------------------------------------------
    def fingerprint(self, cell: Cell) -> str:
        return cell_fingerprint(self.code, [d["sha256"] for d in self.data], cell, self.options.device)

    def results(self, phase: str, cells: Sequence[Cell]) -> dict[Cell, CellResult]:
        """Return the results of cells, stored or computed now; without an engine some may be missing."""
        inputs, failed = self._build_stages(phase, cells)
        wanted = {cell: inputs.get(_stage_key(cell), {}) for cell in cells if cell not in failed}
        found, tasks = self._look_up(wanted)
        found = failed | found
        if self.engine is not None:
            self.progress.phase(phase, len(cells), len(found))
        return found | self._run(tasks)

    def _look_up(self, wanted: Mapping[Cell, Mapping[str, str]]) -> tuple[dict[Cell, CellResult], list[Task]]:
        """Return the results that need no computing, and the tasks that would compute the others.

        Args:
            wanted: cell -> its stages' artefacts, by stage.
        """
        found: dict[Cell, CellResult] = {}
        tasks: list[Task] = []
        for cell, inputs in wanted.items():
            if cell in self.cells:
                found[cell] = self.cells[cell]
                continue
            fingerprint = self.fingerprint(cell)
            artefact = self.store.artefacts / f"{fingerprint}.npz"
            if self.options.fresh and self.engine is not None:
                self.store.forget(fingerprint)
            stored = None if self._must_repeat(cell) else self.store.get(fingerprint)
            if stored is not None and self._is_usable(cell, stored, artefact):
                found[cell] = stored
                self._account(cell, stored, reused=True)
                continue
            tasks.append(
                Task(
                    self.ref,
                    cell,
                    fingerprint,
                    tuple(inputs.items()),
                    self.options.device,
                    self.options.threads,
                    str(artefact) if cell.kind == "stage" else "",
                    self._timeout,
                )
            )
        return found, tasks

    def _run(self, tasks: Sequence[Task]) -> dict[Cell, CellResult]:
        """Compute tasks and store their results; without an engine there are none."""
        results: dict[Cell, CellResult] = {}
        for task, result in self.engine.map(tasks) if self.engine is not None else ():
            result = self._keep(task, result)
            results[task.cell] = result
            self._account(task.cell, result, reused=False)
            self.progress.done(task.cell, result)
        return results

    def _is_usable(self, cell: Cell, stored: CellResult, artefact: Path) -> bool:
        """Return whether a stored result can be used; of a stage, whether cells can read its artefact."""
        if stored.status == "failed":
            return self.engine is None
        if cell.kind != "stage":
            return True
        return artefact.exists() if self.engine is None else _is_whole(artefact)

    def _must_repeat(self, cell: Cell) -> bool:
        """Return whether a replication computes a cell again because it draws no fresh seeds.

        The store keeps the first result.
        """
        seedless = cell.kind in ("exact", "exact-control", "cost")
        return seedless and self.options.replicate > 0 and self.engine is not None

    def _keep(self, task: Task, result: CellResult) -> CellResult:
        """Store a result; one that cannot be stored fails its cell."""
        # a new worker loads the code as it is now; its result must not be stored as that of the old code
        if code_fingerprint(self.ref) != self.code:
            raise StudyError(f"the code of {self.study.slug} changed while it ran: run it again")
        # an error may quote a file name that is not valid Unicode
        result = replace(result, error=result.error.encode("utf-8", "backslashreplace").decode())
        try:
            self.store.put(task.fingerprint, task.cell, result)
        except (OverflowError, TypeError, ValueError) as error:
            result = CellResult("failed", error=f"the cell's result cannot be stored: {error}")
            self.store.put(task.fingerprint, task.cell, result)
        return result

    @property
    def _timeout(self) -> float | None:
        no_limit = self.options.scale == "paper" and self.study.timeout == Study.timeout
        return None if no_limit else self.study.timeout

    @property
    def tuning_seeds(self) -> list[int]:
        study, attempt = self.study, self.options.replicate
        if attempt:
            return replicate_tuning_seeds(study.slug, study.protocol, attempt, study.tuning_seeds)
        return tuning_seeds(study.tuning_seeds)

    def _account(self, cell: Cell, result: CellResult, *, reused: bool) -> None:
        self.cells[cell] = result
        self.reused += reused
        self.computed += not reused
        # rows of older versions have wall time only, which is close on one thread
        cpu_seconds = result.cpu_seconds or result.seconds
        if cell.kind == "stage":
            self.stage_seconds += cpu_seconds
            return
        self.cpu_seconds += cpu_seconds
        if result.peak_memory is not None:
            self.peak_memory = max(self.peak_memory or 0, result.peak_memory)
        if result.environment:
            self.environment = dict(result.environment)

    def _build_stages(
        self, phase: str, cells: Sequence[Cell]
    ) -> tuple[dict[StageKey, dict[str, str]], dict[Cell, CellResult]]:
        """Return the artefacts of the stages by name, and the cells that fail because a stage did."""
        readers = [c for c in cells if c.kind in ("tune", "report")]
        paths: dict[StageKey, dict[str, str]] = {_stage_key(c): {} for c in readers}
        errors: dict[StageKey, str] = {}
        for stage in self.study.stages:
            keys_of: dict[Cell, list[StageKey]] = {}
            for key in paths:
                if key in errors or any(name not in paths[key] for name in stage.inputs):
                    continue
                keys_of.setdefault(self.stage_cell(stage, key), []).append(key)
            wanted = {c: {name: paths[keys[0]][name] for name in stage.inputs} for c, keys in keys_of.items()}
            built, tasks = self._look_up(wanted)
            if tasks and self.engine is not None:
                self.progress.phase(f"{phase}: {stage.name}", len(wanted), len(built))
            for cell, result in (built | self._run(tasks)).items():
                for key in keys_of[cell]:
                    if result.status == "failed":
                        errors[key] = f"stage {stage.name} failed:\n{result.error}"
                        self.evidence.failures[f"stage {cell}"] = result.error
                    else:
                        paths[key][stage.name] = result.path
        failed = {
            cell: CellResult("failed", error=error)
            for cell in readers
            if (error := errors.get(_stage_key(cell)))
        }
        return {key: dict(sorted(of.items())) for key, of in paths.items()}, failed

    def stage_cell(self, stage: Stage, key: StageKey) -> Cell:
        """Return the cell of a stage, which knows only the conditions that the stage depends on."""
        condition, seed, tuning = key
        own = tuple((k, v) for k, v in condition if k in stage.conditions)
        return self._cell("stage", stage.name, own, seed=seed, instance=tuning)

    def _cell(self, kind: Any, arm: str, condition: Items = (), **rest: Any) -> Cell:
        return Cell(self.study.slug, self.options.scale, self.study.protocol, kind, arm, condition, **rest)

    # -- phases --------------------------------------------------------------------------------------------
    def outcome(self) -> dict[str, Any]:
        """Run all phases, and return the outcome document."""
        started = time.perf_counter()
        if self.engine is not None:
            clear_leftovers(self.store.artefacts)
            self.store.note_protocol(self.study.slug, self.options.scale, self.study.protocol)
        self.run_exact_claims()
        if self.study.arms:
            self.tune()
            self._run_looks()
        self.run_cost_claims()
        return outcome_document(
            self.study,
            self.evidence,
            scale=self.options.scale,
            target=self.ref.name if self.ref.kind == "file" else self.study.slug,
            published=self._published,
            seeds_note=self._seeds_note(),
            protocols=self.store.protocols(self.study.slug, self.options.scale),
            cost={
                "cells": self.computed + self.reused,
                "reused": self.reused,
                "cpu_seconds": self.cpu_seconds,
                "stage_seconds": self.stage_seconds,
                "wall_seconds": time.perf_counter() - started,
                "peak_memory": self.peak_memory,
            },
            provenance={
                **(self.environment or environment(self.options.threads, self.options.device)),
                "date": datetime.date.today().isoformat(),
                "fingerprint": verdict_fingerprint(self.ref, [d["sha256"] for d in self.data]),
                "data": self.data,
            },
        )

    @property
    def _published(self) -> bool:
        return self.options.scale != "smoke" and self.options.seeds is None and not self.options.replicate

    def _seeds_note(self) -> str:
        if self.options.scale == "smoke":
            return "one seed, no verdict: a check that everything runs"
        if not self.study.arms:
            return "no seeds are drawn: nothing here is random"
        if self.options.seeds is not None:
            return EXPLORATORY
        if self.options.replicate:
            return f"fresh seeds of replication {self.options.replicate}"
        return f"seeds drawn from the study's name, protocol {self.study.protocol} and the look"

    def exact_cells(self) -> list[Cell]:
        # a smoke run only checks that everything runs: the first instance is enough
        few = 1 if self.options.scale == "smoke" else None
        return [
            self._cell(kind, claim.name, instance=name)
            for claim in self.study.claims
            if isinstance(claim, ExactClaim)
            for name in list(claim.instances)[:few]
            for kind in ("exact", "exact-control")
        ]

    def run_exact_claims(self) -> None:
        if not (cells := self.exact_cells()):
            return
        for cell, result in self.results("exact claims", cells).items():
            into = self.evidence.exact if cell.kind == "exact" else self.evidence.control
            into.setdefault(cell.arm, {})[cell.instance] = result
            if result.status == "failed":
                self.evidence.failures[str(cell)] = result.error

    def run_cost_claims(self) -> None:
        for claim in self.study.claims:
            if claim.kind != "cost":
                continue
            # a batch of one cell, so that nothing else runs beside it
            cell = self._cell("cost", claim.name)
            results = self.results(f"cost: {claim.name}", [cell])
            if cell in results:
                self.evidence.cost[claim.name] = results[cell]
                if results[cell].status == "failed":
                    self.evidence.failures[str(cell)] = results[cell].error

    def tune(self) -> None:
        if not self.study.tune or self.options.scale == "smoke":
            for arm in self.study.arms:
                first = self.study.grid(arm)[0]
                for condition in self.conditions:
                    self.evidence.tuned[arm.name, condition] = Tuned((), first)
            return
        tuned_at = {c: items(self.study.tuning_condition(dict(c))) for c in self.conditions}
        axes = {(arm.name, c): self.study.axes(arm) for arm in self.study.arms for c in tuned_at.values()}
        grids = {key: self.study.grid(self.study.arm(key[0]), own) for key, own in axes.items()}
        first_round = self._trials("tuning", grids)
        widened, wider = widened_grids(self.study, axes, first_round)
        second_round = self._trials("tuning, wider grid", wider) if wider != grids else first_round
        found: dict[ArmAt, Tuned | None] = {}
        for key, trials in second_round.items():
            if not trials:
                found[key] = None
                continue
            winner = choose(trials, self.study.metrics[0])
            edge = tuple(edges(widened[key], winner.hyper))
            grew = widened[key] != axes[key]
            found[key] = Tuned(tuple(trials), winner.hyper, edge, grew)
        for arm in self.study.arms:
            for condition, where in tuned_at.items():
                self.evidence.tuned[arm.name, condition] = found[arm.name, where]

    def _trials(
        self, phase: str, grids: Mapping[ArmAt, Sequence[Mapping[str, Value]]]
    ) -> dict[ArmAt, list[Trial] | None]:
        """Return every trial with its scores; `None` where one failed."""
        seeds = self.tuning_seeds
        cells = [
            self._cell("tune", arm, condition, hyper=items(hyper), seed=seed)
            for (arm, condition), grid in grids.items()
            for hyper in grid
            for seed in seeds
        ]
        results = self.results(phase, cells)
        metric = self.study.metrics[0].name
        out: dict[ArmAt, list[Trial] | None] = {}
        for (arm, condition), grid in grids.items():
            trials: list[Trial] | None = []
            for hyper in grid:
                done = [
                    results.get(self._cell("tune", arm, condition, hyper=items(hyper), seed=s)) for s in seeds
                ]
                for result in done:
                    if result is not None and result.status == "failed":
                        self.evidence.failures[f"tuning {arm} {dict(condition)} {hyper}"] = result.error
                if any(r is None or r.status == "failed" for r in done):
                    trials = None
                    break
                assert trials is not None
                trials.append(Trial(hyper, tuple(r.numbers[metric] for r in done if r is not None)))
            out[arm, condition] = trials
        return out

    def _run_looks(self) -> None:
        for number, (alpha, seeds) in enumerate(self.planned_looks(), start=1):
            self.run_look(number, alpha, seeds)
            if self.options.scale == "smoke" or not undecided(self.study, self.evidence):
                break

    def run_look(self, number: int, alpha: float, seeds: list[int]) -> None:
        self.evidence.looks.append((alpha, seeds))
        cells = [
            self._cell("report", arm.name, condition, hyper=items(tuned.winner), seed=seed)
            for arm in self.study.arms
            for condition in self.conditions
            if (tuned := self.evidence.tuned.get((arm.name, condition))) is not None
            for seed in seeds
        ]
        for cell, result in self.results(f"look {number}", cells).items():
            self.evidence.report[cell.arm, cell.condition, cell.seed] = result

    def planned_looks(self) -> Iterable[tuple[float, list[int]]]:
        """Yield `(alpha, new seeds)` of every look that may be run."""
        study, options = self.study, self.options
        if options.scale == "smoke":
            yield ALPHA, [0]
            return
        if options.seeds is not None:
            yield ALPHA, list(range(options.seeds))
            return
        draw: Callable[[int, int], list[int]] = (
            (lambda look, n: replicate_seeds(study.slug, study.protocol, options.replicate, look, n))
            if options.replicate
            else (lambda look, n: published_seeds(study.slug, study.protocol, look, n))
        )
        before = 0
        for number, (n, alpha) in enumerate(study.looks, start=1):
            yield alpha, draw(number, n - before)
            before = n


def _is_whole(artefact: Path) -> bool:
    """Return whether an `.npz` file exists and its content matches its checksums."""
    try:
        with zipfile.ZipFile(artefact) as file:
            return file.testzip() is None
    except Exception:  # a damaged archive may raise anything
        return False


def _stage_key(cell: Cell) -> StageKey:
    """Return what the stages of a cell depend on."""
    return cell.condition, cell.seed, "tune" if cell.kind == "tune" else ""


def data_records(names: Sequence[str]) -> list[dict[str, str]]:
    """Return name, sha256 and licence of the data sets that a study declares."""
    if not names:
        return []
    from trueup.data._sets import find

    return [{"name": n, "sha256": find(n).sha256, "licence": find(n).licence} for n in names]
