"""Say what a run of a study would do: how many cells and minutes, and the smallest effect it could find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trueup.lab._cell import items
from trueup.lab._engine import StudyRef
from trueup.lab._judging import judge_claims
from trueup.lab._measured import Evidence, measure
from trueup.lab._power import detectable
from trueup.lab._runner import Options, Session, Silent, StageKey
from trueup.lab._seeds import DEVELOPMENT
from trueup.lab._store import Store

_KIND_OF_PHASE = {"exact claims": "exact", "tuning": "tune", "stages": "stage", "cost claims": "cost"}


@dataclass
class Plan:
    """The work of a run, before any time is spent.

    Attributes:
        cells: phase -> number of cells; `stored`: how many of them the store has. A second look is run only
            if the first leaves a primary claim undecided; a widened grid adds trials.
        minutes: expected wall minutes for the rest, from stored cells of the same kind; `None` if there
            are none.
        detectable: claim -> the smallest effect found with 80 % power at the last look, in the contrast's
            unit, from the spread over stored development seeds; empty with fewer than three of them. Claims
            of equivalence are left out.
    """

    cells: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    minutes: float | None = None
    detectable: dict[str, float] = field(default_factory=dict)


def plan(ref: StudyRef, store: Store, options: Options | None = None, workers: int = 1) -> Plan:
    """Plan a run from a study and its stored cells; compute nothing."""
    session, plan = Session(ref, store, None, options or Options(), Silent()), Plan()
    study = session.study
    session.run_exact_claims()
    _add_phase(plan, session, "exact claims", len(session.exact_cells()), ("exact", "exact-control"))
    session.tune()
    keys: set[StageKey] = set()
    if study.tune and session.options.scale != "smoke":
        conditions = {items(study.tuning_condition(dict(c))) for c in session.conditions}
        seeds = session.tuning_seeds
        keys |= {(condition, seed, "tune") for condition in conditions for seed in seeds}
        trials = len(study.grid(study.arms[0])) * len(seeds) * len(study.arms) * len(conditions)
        _add_phase(plan, session, "tuning", trials, ("tune",))
    for number, (alpha, seeds) in enumerate(session.planned_looks(), start=1):
        session.run_look(number, alpha, seeds)
        keys |= {(condition, seed, "") for condition in session.conditions for seed in seeds}
        count = len(study.arms) * len(session.conditions) * len(seeds)
        _add_phase(plan, session, f"look {number}", count, ("report",), seeds)
    built = {session.stage_cell(stage, key) for stage in study.stages for key in keys}
    _add_phase(plan, session, "stages", len(built), ("stage",))
    session.run_cost_claims()
    costs = sum(claim.kind == "cost" for claim in study.claims)
    _add_phase(plan, session, "cost claims", costs, ("cost",))
    plan.minutes = _minutes(plan, session, workers)
    plan.detectable = _detectable(session)
    return plan


def _add_phase(
    plan: Plan,
    session: Session,
    name: str,
    cells: int,
    kinds: Sequence[str],
    seeds: Sequence[int] | None = None,
) -> None:
    if cells:
        done = [cell for cell, result in session.cells.items() if result.status != "failed"]
        found = sum(cell.kind in kinds and (seeds is None or cell.seed in seeds) for cell in done)
        plan.cells[name] = cells
        # a widened grid may hold more stored trials than the plan's own
        plan.stored[name] = 0 if session.options.fresh else min(cells, found)


def _minutes(plan: Plan, session: Session, workers: int) -> float | None:
    """Estimate the wall minutes of the cells not stored, from the mean of the stored ones of their kind."""
    seconds: dict[str, list[float]] = {}
    for _, cell, result in session.store.cells(session.study.slug, session.options.scale):
        kind: str = "exact" if cell.kind.startswith("exact") else cell.kind
        seconds.setdefault(kind, []).append(result.seconds)
    total = 0.0
    for phase, cells in plan.cells.items():
        kind = _KIND_OF_PHASE.get(phase, "report")
        known = seconds.get(kind) or seconds.get("report") or seconds.get("tune")
        left = cells - plan.stored[phase]
        if left and not known:
            return None
        total += left * sum(known or ()) / max(1, len(known or ()))
    return total / 60 / workers


def _detectable(session: Session) -> dict[str, float]:
    """Return, per claim, the threshold of its decision plus what the last look finds with 80 % power."""
    evidence = _development(session)
    development = sorted({s for (_, _, s) in evidence.report})
    if len(development) < 3:
        return {}
    n, alpha = session.study.looks[-1]
    evidence.looks = [(alpha, development)]
    out = {}
    for judged in judge_claims(measure(session.study, evidence), evidence.looks):
        # an equivalence claims that the effect is small, so it has no smallest effect to find
        sign = {"superiority": 1, "non-inferiority": -1}.get(judged.statistical.test)
        if judged.statistical.n == len(development) and sign is not None:
            sd = float(np.std(judged.statistical.d, ddof=1))
            out[judged.claim.name] = sign * judged.statistical.margin + detectable(n, alpha) * sd
    return out


def _development(session: Session) -> Evidence:
    """Return the stored report cells at development seeds, under the current fingerprint."""
    evidence = Evidence(tuned=session.evidence.tuned)
    for fingerprint, cell, result in session.store.cells(session.study.slug, session.options.scale):
        current = cell.seed in DEVELOPMENT and fingerprint == session.fingerprint(cell)
        if cell.kind == "report" and current:
            evidence.report[cell.arm, cell.condition, cell.seed] = result
    return evidence
