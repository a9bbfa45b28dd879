"""Runs a study: stages, tuning, looks, exact and cost claims; whatever the store has is not run again."""

from __future__ import annotations

import datetime
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trueup.lab import _evidence as evidence
from trueup.lab._cell import Cell, CellResult, Items, clear_leftovers, environment, items
from trueup.lab._engine import Engine, StudyRef, Task
from trueup.lab._errors import StudyError
from trueup.lab._fingerprint import cell_fingerprint, code_fingerprint, verdict_fingerprint
from trueup.lab._measured import Evidence, measure
from trueup.lab._outcome import document, judge_claims, undecided
from trueup.lab._power import detectable
from trueup.lab._seeds import DEVELOPMENT, published_seeds, replicate_seeds, tuning_seeds
from trueup.lab._spec import SCALES, Axis, ExactClaim, Stage, Study, Value
from trueup.lab._store import Store
from trueup.lab._tuning import (
    Side,
    Trial,
    Tuned,
    choose,
    edges,
    extra_trials,
    replicate_tuning_seeds,
    widen,
)
from trueup.lab._verdict import ALPHA

EXPLORATORY = "development seeds: shown, never published"


class Progress(Protocol):
    """What a caller may show while a study runs."""

    def phase(self, name: str, total: int, reused: int) -> None: ...
    def done(self, cell: Cell, result: CellResult) -> None: ...


class Silent:
    """No progress."""

    def phase(self, name: str, total: int, reused: int) -> None: ...
    def done(self, cell: Cell, result: CellResult) -> None: ...


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        scale: smoke, desk or paper.
        seeds: ``None`` follows the protocol's looks on its published seeds; a number runs that many
            development seeds, which are shown but never published.
        replicate: k > 0 draws the k-th set of fresh seeds for a replication, for its tuning too, and
            computes exact and cost claims again.
        fresh: forget what the store has.
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
    """Run what is missing, and return the outcome document (see ``outcome``)."""
    return _Session(ref, store, engine, options or Options(), progress or Silent()).outcome()


def collect(ref: StudyRef, store: Store, options: Options | None = None) -> dict[str, Any]:
    """The outcome document from stored cells alone; what is missing is ``incomplete``.

    Without options, it is that of the desk scale on the device of its last run.
    """
    return _Session(ref, store, None, options or _last_desk_run(ref, store), Silent()).outcome()


def gather(ref: StudyRef, store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    """The desk outcome from stored cells alone, and the evidence that it rests on."""
    session = _Session(ref, store, None, _last_desk_run(ref, store), Silent())
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
    """Compute these cells anew, and the stages that they read, in a store that is then deleted.

    Cells of cost claims come last, each with nothing beside it.
    """
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "cells.sqlite") as store:
        session = _Session(ref, store, engine, options or Options(), progress or Silent())
        results = session.need("cells", [cell for cell in cells if cell.kind != "cost"])
        for cell in cells:
            if cell.kind == "cost":
                results |= session.need(f"cost: {cell.arm}", [cell])
        return results


@dataclass
class Plan:
    """What a run would do, before any time is spent.

    Attributes:
        cells: phase -> cells; ``stored``: how many of them the store has. A second look is run only if the
            first leaves a primary claim undecided; a widened grid adds trials.
        minutes: expected wall minutes for the rest, from stored cells of the same kind; ``None`` if there
            are none to go by.
        detectable: claim -> the smallest effect found with 80 % power at the last look, in the contrast's
            unit, from the spread over stored development seeds; empty without at least three, and without
            the claims of equivalence.
    """

    cells: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    minutes: float | None = None
    detectable: dict[str, float] = field(default_factory=dict)


class _Session:
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
        self.cells: dict[Cell, CellResult] = {}  # in this session: a widened grid asks for its trials again
        self.computed = self.reused = 0
        self.cpu_seconds = self.stage_seconds = 0.0
        self.peak_memory: int | None = None
        self.environment: dict[str, str] = {}

    # -- one batch of cells --------------------------------------------------------------------------------
    def fingerprint(self, cell: Cell) -> str:
        return cell_fingerprint(self.code, [d["sha256"] for d in self.data], cell, self.options.device)

    def need(self, phase: str, cells: Sequence[Cell]) -> dict[Cell, CellResult]:
        """Results of these cells, stored or computed now; without an engine some may be missing."""
        inputs, broken = self._stages(phase, cells)
        results: dict[Cell, CellResult] = dict(broken)
        tasks: list[Task] = []
        for cell in cells:
            if cell in results:
                continue
            if cell in self.cells:
                results[cell] = self.cells[cell]
                continue
            fingerprint = self.fingerprint(cell)
            if self.options.fresh and self.engine is not None:
                self.store.forget(fingerprint)
            stored = None if self._again(cell) else self.store.get(fingerprint)
            if stored is not None and (stored.status != "failed" or self.engine is None):
                results[cell] = stored
                self._account(cell, stored, reused=True)
            else:
                tasks.append(self._task(cell, fingerprint, inputs))
        if self.engine is None:
            return results
        self.progress.phase(phase, len(cells), len(results))
        for task, result in self.engine.map(tasks):
            result = self._keep(task, result)
            results[task.cell] = result
            self._account(task.cell, result, reused=False)
            self.progress.done(task.cell, result)
        return results

    def _again(self, cell: Cell) -> bool:
        """A replication computes anew what draws no fresh seeds; what is stored stays the first result."""
        seedless = cell.kind in ("exact", "exact-control", "cost")
        return seedless and self.options.replicate > 0 and self.engine is not None

    def _keep(self, task: Task, result: CellResult) -> CellResult:
        """Store a result; what cannot be stored is a failure of its cell."""
        # a replaced worker loads the code as it is now; its result must not pass for the old code's
        if code_fingerprint(self.ref) != self.code:
            raise StudyError(f"the code of {self.study.slug} changed while it ran: run it again")
        # an error may quote a file's name that is no valid Unicode
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
    def _tuning_seeds(self) -> list[int]:
        study, attempt = self.study, self.options.replicate
        if attempt:
            return replicate_tuning_seeds(study.slug, study.protocol, attempt, study.tuning_seeds)
        return tuning_seeds(study.tuning_seeds)

    def _task(
        self, cell: Cell, fingerprint: str, inputs: Mapping[tuple[Items, int, str], dict[str, str]]
    ) -> Task:
        paths = inputs.get((cell.condition, cell.seed, _tuning(cell)), {})
        return Task(
            self.ref,
            cell,
            fingerprint,
            tuple(sorted(paths.items())),
            self.options.device,
            self.options.threads,
            timeout=self._timeout,
        )

    def _account(self, cell: Cell, result: CellResult, *, reused: bool) -> None:
        self.cells[cell] = result
        self.reused += reused
        self.computed += not reused
        # rows of older versions have wall time only, which on one thread is much the same
        cpu_seconds = result.cpu_seconds or result.seconds
        if cell.kind == "stage":
            self.stage_seconds += cpu_seconds
            return
        self.cpu_seconds += cpu_seconds
        if result.peak_memory is not None:
            self.peak_memory = max(self.peak_memory or 0, result.peak_memory)
        if result.environment:
            self.environment = dict(result.environment)

    def _stages(
        self, phase: str, cells: Sequence[Cell]
    ) -> tuple[dict[tuple[Items, int, str], dict[str, str]], dict[Cell, CellResult]]:
        """Artefact paths by (condition, seed, tuning), and the cells that a failed stage takes along."""
        users = [c for c in cells if c.kind in ("tune", "report")]
        paths: dict[tuple[Items, int, str], dict[str, str]] = {
            (c.condition, c.seed, _tuning(c)): {} for c in users
        }
        errors: dict[tuple[Items, int, str], str] = {}
        for stage in self.study.stages:
            wanted: dict[Cell, list[tuple[Items, int, str]]] = {}
            for key in paths:
                if key in errors or any(name not in paths[key] for name in stage.inputs):
                    continue
                wanted.setdefault(self._stage_cell(stage, key), []).append(key)
            for cell, result in self._build(f"{phase}: {stage.name}", stage.inputs, wanted, paths).items():
                for key in wanted[cell]:
                    if result.status == "failed":
                        errors[key] = f"stage {stage.name} failed:\n{result.error}"
                        self.evidence.failures[f"stage {cell}"] = result.error
                    else:
                        paths[key][stage.name] = result.path
        broken = {}
        for cell in users:
            if error := errors.get((cell.condition, cell.seed, _tuning(cell))):
                broken[cell] = CellResult("failed", error=error)
        return paths, broken

    def _build(
        self,
        phase: str,
        inputs: Sequence[str],
        wanted: Mapping[Cell, Sequence[tuple[Items, int, str]]],
        paths: Mapping[tuple[Items, int, str], Mapping[str, str]],
    ) -> dict[Cell, CellResult]:
        results: dict[Cell, CellResult] = {}
        tasks = []
        for cell, keys in wanted.items():
            if cell in self.cells:
                results[cell] = self.cells[cell]
                continue
            fingerprint = self.fingerprint(cell)
            artefact = self.store.artefacts / f"{fingerprint}.npz"
            if self.options.fresh and self.engine is not None:
                self.store.forget(fingerprint)
            stored = self.store.get(fingerprint)
            if stored is not None and self._is_usable(stored, artefact):
                results[cell] = stored
                self._account(cell, stored, reused=True)
                continue
            read = tuple((name, paths[keys[0]][name]) for name in inputs)
            tasks.append(
                Task(
                    self.ref,
                    cell,
                    fingerprint,
                    read,
                    self.options.device,
                    self.options.threads,
                    str(artefact),
                    self._timeout,
                )
            )
        if self.engine is None:
            return results
        if tasks:
            self.progress.phase(phase, len(wanted), len(results))
        for task, result in self.engine.map(tasks):
            result = self._keep(task, result)
            results[task.cell] = result
            self._account(task.cell, result, reused=False)
            self.progress.done(task.cell, result)
        return results

    def _is_usable(self, stored: CellResult, artefact: Path) -> bool:
        """Can cells read what a stage left? Without an engine none will."""
        if self.engine is None:
            return stored.status == "failed" or artefact.exists()
        return stored.status == "ok" and _is_whole(artefact)

    def _stage_cell(self, stage: Stage, key: tuple[Items, int, str]) -> Cell:
        condition, seed, tuning = key
        own = tuple((k, v) for k, v in condition if k in stage.conditions)
        return self._cell("stage", stage.name, own, seed=seed, instance=tuning)

    def _cell(self, kind: Any, arm: str, condition: Items = (), **rest: Any) -> Cell:
        return Cell(self.study.slug, self.options.scale, self.study.protocol, kind, arm, condition, **rest)

    # -- phases --------------------------------------------------------------------------------------------
    def outcome(self) -> dict[str, Any]:
        started = time.perf_counter()
        if self.engine is not None:
            clear_leftovers(self.store.artefacts)
            self.store.note_protocol(self.study.slug, self.options.scale, self.study.protocol)
        self.exact()
        if self.study.arms:
            self.tune()
            self.looks()
        self.cost()
        return document(
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

    def _exact_cells(self) -> list[Cell]:
        # a smoke run checks that everything runs: the first instance does
        few = 1 if self.options.scale == "smoke" else None
        return [
            self._cell(kind, claim.name, instance=name)
            for claim in self.study.claims
            if isinstance(claim, ExactClaim)
            for name in list(claim.instances)[:few]
            for kind in ("exact", "exact-control")
        ]

    def exact(self) -> None:
        if not (cells := self._exact_cells()):
            return
        for cell, result in self.need("exact claims", cells).items():
            into = self.evidence.exact if cell.kind == "exact" else self.evidence.control
            into.setdefault(cell.arm, {})[cell.instance] = result
            if result.status == "failed":
                self.evidence.failures[str(cell)] = result.error

    def cost(self) -> None:
        for claim in self.study.claims:
            if claim.kind != "cost":
                continue
            # one task a map: nothing else runs beside it
            cell = self._cell("cost", claim.name)
            results = self.need(f"cost: {claim.name}", [cell])
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
        widened, wider = self._widened(axes, first_round)
        second_round = self._trials("tuning, wider grid", wider) if wider != grids else first_round
        found: dict[tuple[str, Items], Tuned | None] = {}
        for key, trials in second_round.items():
            if trials is None or not trials:
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
        self, phase: str, grids: Mapping[tuple[str, Items], Sequence[Mapping[str, Value]]]
    ) -> dict[tuple[str, Items], list[Trial] | None]:
        """Scores of every trial; ``None`` where one failed."""
        seeds = self._tuning_seeds
        cells = [
            self._cell("tune", arm, condition, hyper=items(hyper), seed=seed)
            for (arm, condition), grid in grids.items()
            for hyper in grid
            for seed in seeds
        ]
        results = self.need(phase, cells)
        metric = self.study.metrics[0].name
        out: dict[tuple[str, Items], list[Trial] | None] = {}
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

    def _widened(
        self,
        axes: Mapping[tuple[str, Items], tuple[Axis, ...]],
        trials: Mapping[tuple[str, Items], list[Trial] | None],
    ) -> tuple[dict[tuple[str, Items], tuple[Axis, ...]], dict[tuple[str, Items], list[dict[str, Value]]]]:
        """Axes and trials after a shared axis has grown for each arm of a condition, on the sides hit."""
        study = self.study
        shared = {axis.name for axis in study.tune}
        hit: dict[tuple[Items, str], set[Side]] = {}
        for (arm, condition), own in trials.items():
            if own:
                winner = choose(own, study.metrics[0])
                for name, side in edges(axes[arm, condition], winner.hyper).items():
                    if name in shared:
                        hit.setdefault((condition, name), set()).add(side)

        def grow(own: Sequence[Axis], condition: Items) -> tuple[Axis, ...]:
            return tuple(
                widen(axis, hit[condition, axis.name])
                if (condition, axis.name) in hit and axis.ordered
                else axis
                for axis in own
            )

        wider = {(arm, condition): grow(own, condition) for (arm, condition), own in axes.items()}
        grids = {key: study.grid(study.arm(key[0]), own) for key, own in wider.items()}
        for condition in {condition for _, condition in axes}:
            if len({len(grids[arm.name, condition]) for arm in study.arms}) == 1:
                continue
            # an arm with axes of its own would get another number of trials
            grown = grow(study.tune, condition)
            for own_arm in (arm for arm in study.arms if arm.tune is not None):
                key = own_arm.name, condition
                wider[key], extra = extra_trials(
                    axes[key], trials[key] or (), study.tune, grown, study.metrics[0]
                )
                grids[key] = study.grid(own_arm) + extra
        return wider, grids

    def plan(self, workers: int) -> Plan:
        study, plan = self.study, Plan()
        self.exact()
        self._plan_phase(plan, "exact claims", len(self._exact_cells()), ("exact", "exact-control"))
        self.tune()
        keys: set[tuple[Items, int, str]] = set()
        if study.tune and self.options.scale != "smoke":
            places = {items(study.tuning_condition(dict(c))) for c in self.conditions}
            seeds = self._tuning_seeds
            keys |= {(place, seed, "tune") for place in places for seed in seeds}
            trials = len(study.grid(study.arms[0])) * len(seeds) * len(study.arms) * len(places)
            self._plan_phase(plan, "tuning", trials, ("tune",))
        for number, (alpha, seeds) in enumerate(self._planned_looks(), start=1):
            self._look(number, alpha, seeds)
            keys |= {(condition, seed, "") for condition in self.conditions for seed in seeds}
            count = len(study.arms) * len(self.conditions) * len(seeds)
            self._plan_phase(plan, f"look {number}", count, ("report",), seeds)
        built = {self._stage_cell(stage, key) for stage in study.stages for key in keys}
        self._plan_phase(plan, "stages", len(built), ("stage",))
        self.cost()
        costs = sum(claim.kind == "cost" for claim in study.claims)
        self._plan_phase(plan, "cost claims", costs, ("cost",))
        plan.minutes = self._minutes(plan, workers)
        plan.detectable = self._detectable()
        return plan

    def _plan_phase(
        self, plan: Plan, name: str, cells: int, kinds: Sequence[str], seeds: Sequence[int] | None = None
    ) -> None:
        if cells:
            done = [cell for cell, result in self.cells.items() if result.status != "failed"]
            found = sum(cell.kind in kinds and (seeds is None or cell.seed in seeds) for cell in done)
            plan.cells[name] = cells
            # a widened grid may hold more stored trials than the plan's own
            plan.stored[name] = 0 if self.options.fresh else min(cells, found)

    def _minutes(self, plan: Plan, workers: int) -> float | None:
        """Expected wall minutes of the cells not stored, by the mean of stored ones of their phase."""
        seconds: dict[str, list[float]] = {}
        for _, cell, result in self.store.cells(self.study.slug, self.options.scale):
            seconds.setdefault("exact" if cell.kind.startswith("exact") else cell.kind, []).append(
                result.seconds
            )
        total = 0.0
        for phase, cells in plan.cells.items():
            kinds = {"exact claims": "exact", "tuning": "tune", "stages": "stage", "cost claims": "cost"}
            kind = kinds.get(phase, "report")
            known = seconds.get(kind) or seconds.get("report") or seconds.get("tune")
            left = cells - plan.stored[phase]
            if left and not known:
                return None
            total += left * sum(known or ()) / max(1, len(known or ()))
        return total / 60 / workers

    def _detectable(self) -> dict[str, float]:
        """Per claim its line of decision plus what the last look finds above it with 80 % power."""
        evidence = self._development()
        development = sorted({s for (_, _, s) in evidence.report})
        if len(development) < 3:
            return {}
        n, alpha = self.study.looks[-1]
        evidence.looks = [(alpha, development)]
        out = {}
        for judged in judge_claims(measure(self.study, evidence), evidence.looks):
            # an equivalence asks for an effect that is small, so none is the smallest to be found
            line = {"superiority": 1, "non-inferiority": -1}.get(judged.statistical.test)
            if judged.statistical.n == len(development) and line is not None:
                sd = float(np.std(judged.statistical.d, ddof=1))
                out[judged.claim.name] = line * judged.statistical.margin + detectable(n, alpha) * sd
        return out

    def _development(self) -> Evidence:
        """Stored report cells at development seeds, under the current fingerprint."""
        evidence = Evidence(tuned=self.evidence.tuned)
        for fingerprint, cell, result in self.store.cells(self.study.slug, self.options.scale):
            if cell.kind == "report" and cell.seed in DEVELOPMENT and fingerprint == self.fingerprint(cell):
                evidence.report[cell.arm, cell.condition, cell.seed] = result
        return evidence

    def looks(self) -> None:
        for number, (alpha, seeds) in enumerate(self._planned_looks(), start=1):
            self._look(number, alpha, seeds)
            if self.options.scale == "smoke" or not undecided(self.study, self.evidence):
                break

    def _look(self, number: int, alpha: float, seeds: list[int]) -> None:
        self.evidence.looks.append((alpha, seeds))
        cells = [
            self._cell("report", arm.name, condition, hyper=items(tuned.winner), seed=seed)
            for arm in self.study.arms
            for condition in self.conditions
            if (tuned := self.evidence.tuned.get((arm.name, condition))) is not None
            for seed in seeds
        ]
        for cell, result in self.need(f"look {number}", cells).items():
            self.evidence.report[cell.arm, cell.condition, cell.seed] = result

    def _planned_looks(self) -> Iterable[tuple[float, list[int]]]:
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


def plan(ref: StudyRef, store: Store, options: Options | None = None, workers: int = 1) -> Plan:
    """What a run would do: cells, minutes, and the smallest effect it could find. Nothing is computed."""
    return _Session(ref, store, None, options or Options(), Silent()).plan(workers)


def _is_whole(artefact: Path) -> bool:
    """Is the ``.npz`` file there, with content that matches its own checksums?"""
    try:
        with zipfile.ZipFile(artefact) as file:
            return file.testzip() is None
    except Exception:  # a damaged archive raises whatever its bytes happen to mean
        return False


def _tuning(cell: Cell) -> str:
    return "tune" if cell.kind == "tune" else ""


def data_records(names: Sequence[str]) -> list[dict[str, str]]:
    """Name, sha256 and licence of the data sets a study declares."""
    if not names:
        return []
    from trueup.data._sets import find

    return [{"name": n, "sha256": find(n).sha256, "licence": find(n).licence} for n in names]
