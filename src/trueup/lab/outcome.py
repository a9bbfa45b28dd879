"""From cells to an outcome: every claim judged, and everything a reader needs, as one JSON document.

The document is what the terminal, the report, the ledger and the CSV files read. It is computed from stored
cells each time; no verdict is stored as truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from trueup.lab import verdict, words
from trueup.lab.cell import CellResult, Items
from trueup.lab.contrasts import Contrast, SeedCells
from trueup.lab.power import more_seeds
from trueup.lab.spec import AnyClaim, Claim, CostClaim, ExactClaim, Figure, Study
from trueup.lab.tuning import Tuned
from trueup.lab.verdict import Judgement

FORMAT = 1
ReportKey: TypeAlias = tuple[str, Items, int]  # arm, condition, seed


@dataclass
class Evidence:
    """What a run of a study has gathered.

    Attributes:
        report: results of the report cells.
        looks: ``(alpha, seeds)`` of each look begun; the seeds of earlier looks are not repeated.
        tuned: per (arm, condition); ``None`` where a trial failed.
        exact: ``claim -> instance -> result``; ``control``: the same for its negative control.
        cost: ``claim -> result``.
        failures: tracebacks of what failed beside report cells, by name.
    """

    report: dict[ReportKey, CellResult] = field(default_factory=dict)
    looks: list[tuple[float, list[int]]] = field(default_factory=list)
    tuned: dict[tuple[str, Items], Tuned | None] = field(default_factory=dict)
    exact: dict[str, dict[str, CellResult]] = field(default_factory=dict)
    control: dict[str, dict[str, CellResult]] = field(default_factory=dict)
    cost: dict[str, CellResult] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def seeds(self, look: int) -> list[int]:
        """All seeds of the first ``look`` looks."""
        return [seed for _, seeds in self.looks[:look] for seed in seeds]


@dataclass(frozen=True)
class Judged:
    """One claim's judgement, with what it rests on.

    ``statistical`` is the judgement before requirements and edges are looked at.
    """

    claim: AnyClaim
    judgement: Judgement
    statistical: Judgement
    look: int = 0
    seeds: tuple[int, ...] = ()
    links: tuple[tuple[Contrast, Judgement], ...] = ()
    controls: Mapping[str, Judgement] = field(default_factory=dict)

    @property
    def survives(self) -> verdict.Survival | None:
        return verdict.survival(list(self.controls.values()))

    @property
    def wants_more_seeds(self) -> bool:
        """Would another look help? Only what seeds can mend counts."""
        if self.claim.kind != "statistical":
            return False
        return self.statistical.outcome == "inconclusive" or self.survives == "undecided"


def judge_claims(study: Study, evidence: Evidence) -> list[Judged]:
    """Every claim of the study by the verdict rule, in order."""
    judged: dict[str, Judged] = {}
    for claim in study.claims:
        if isinstance(claim, Claim):
            result = _statistical(study, claim, evidence)
        elif isinstance(claim, ExactClaim):
            result = _exact(claim, evidence)
        else:
            result = _cost(claim, evidence)
        required = {name: judged[name].judgement.outcome for name in claim.requires}
        judgement = verdict.with_requirements(result.judgement, required)
        if isinstance(claim, Claim):
            judgement = verdict.with_edges(judgement, _edge_roles(study, claim, evidence))
        if judgement.outcome == "reproduced":
            judgement = verdict.with_controls(judgement, result.controls)
        controls = result.controls if judgement.outcome == "reproduced" else {}
        judged[claim.name] = replace(result, judgement=judgement, controls=controls)
    return list(judged.values())


def undecided(study: Study, evidence: Evidence) -> bool:
    """Does a primary claim, or one that a primary claim requires, want the next look?"""
    judged = {j.claim.name: j for j in judge_claims(study, evidence)}
    wanted: set[str] = set()
    for claim in reversed(study.claims):  # a claim requires earlier ones only
        if claim.primary or claim.name in wanted:
            wanted |= {claim.name, *claim.requires}
    return any(judged[name].wants_more_seeds for name in wanted)


def _margin(claim: Claim, contrast: Contrast) -> float:
    return math.log1p(claim.min_effect) if contrast.scale == "log" else claim.min_effect


def _statistical(study: Study, claim: Claim, evidence: Evidence) -> Judged:
    decided = _first_decision(study, claim, claim.contrast, evidence)
    controls: dict[str, Judgement] = {}
    if decided.judgement.outcome == "reproduced" and claim.contrast.against is not None:
        for arm in study.controls(claim):
            contrast = claim.contrast.against(arm)
            controls[arm] = _first_decision(study, claim, contrast, evidence).judgement
    return replace(decided, controls=controls)


def _first_decision(study: Study, claim: Claim, contrast: Contrast, evidence: Evidence) -> Judged:
    """The judgement at the first look that decides; what a look has decided, later seeds do not change."""
    not_run = Judgement("incomplete", note="not run")
    result = Judged(claim, not_run, not_run)
    for look, (alpha, _) in enumerate(evidence.looks, start=1):
        seeds = evidence.seeds(look)
        judgement, links = _judge_contrast(study, claim, contrast, evidence, seeds, alpha)
        result = Judged(claim, judgement, judgement, look, tuple(seeds), links)
        if judgement.outcome != "inconclusive":
            break
    return result


def _judge_contrast(
    study: Study, claim: Claim, contrast: Contrast, evidence: Evidence, seeds: Sequence[int], alpha: float
) -> tuple[Judgement, tuple[tuple[Contrast, Judgement], ...]]:
    margin = _margin(claim, contrast)
    grid = [tuple(sorted(c.items())) for c in study.condition_grid()]
    d: list[float] = []
    linked: list[list[float]] = [[] for _ in contrast.links]
    higher = {m.name: m.higher for m in study.metrics}
    for seed in seeds:
        cells = []
        for arm in dict.fromkeys(contrast.arms):
            for condition in grid:
                result = evidence.report.get((arm, condition, seed))
                if result is None or result.status == "failed":
                    what = "failed" if result is not None else "missing"
                    return Judgement(
                        "incomplete", f"a cell of {arm} at seed {seed} is {what}", alpha=alpha
                    ), ()
                cells.append((arm, dict(condition), result.numbers, result.series))
        try:
            d.append(float(contrast.value(SeedCells(cells, higher))))
            for link, values in zip(contrast.links, linked, strict=True):
                values.append(float(link.value(SeedCells(cells, higher))))
        except Exception as error:  # a user's own contrast may raise anything
            why = f"{type(error).__name__}: {error}"
            return Judgement("invalid", f"the contrast cannot be computed: {why}", alpha=alpha), ()
    if not all(map(math.isfinite, d)):
        return Judgement("invalid", "the contrast is not a finite number", alpha=alpha), ()
    whole = verdict.judge(d, margin, alpha, contrast.test)
    if not contrast.links:
        return whole, ()
    links = tuple(
        (link, verdict.judge(values, margin, alpha, link.test))
        for link, values in zip(contrast.links, linked, strict=True)
    )
    return verdict.of_links([j for _, j in links], whole), links


def _edge_roles(study: Study, claim: Claim, evidence: Evidence) -> set[str]:
    needed = {*claim.contrast.arms}
    if claim.contrast.against is not None:
        needed |= {*study.controls(claim)}
    return {
        study.arm(arm).role
        for (arm, _), tuned in evidence.tuned.items()
        if arm in needed and tuned is not None and tuned.edge
    }


def _exact(claim: ExactClaim, evidence: Evidence) -> Judged:
    done, control = evidence.exact.get(claim.name, {}), evidence.control.get(claim.name, {})
    missing = [n for n in claim.instances if _failed(done.get(n)) or _failed(control.get(n))]
    if missing:
        judgement = Judgement("incomplete", f"instance {missing[0]} did not run")
    else:
        outcome, note = verdict.exact(
            {n: done[n].numbers.get("deviation") for n in claim.instances},
            {n: control[n].numbers.get("deviation") for n in claim.instances},
            claim.tolerance,
        )
        judgement = Judgement(outcome, note)
    return Judged(claim, judgement, judgement)


def _cost(claim: CostClaim, evidence: Evidence) -> Judged:
    result = evidence.cost.get(claim.name)
    if result is None or _failed(result):
        judgement = Judgement("incomplete", "the rounds did not run")
    else:
        # each round's log(at_most * peer / ours): positive where ours keeps the bound
        d = math.log(claim.at_most) - np.asarray(result.series["log_ratio"])
        judgement = verdict.judge(d.tolist(), 0.0)
    # rounds stand where seeds stand elsewhere
    return Judged(claim, judgement, judgement, seeds=tuple(range(1, 1 + judgement.n)))


def _failed(result: CellResult | None) -> bool:
    return result is None or result.status == "failed"


# -- the document --------------------------------------------------------------------------------------------


def document(
    study: Study,
    evidence: Evidence,
    *,
    scale: str,
    target: str,
    published: bool,
    seeds_note: str,
    protocols: Sequence[int],
    cost: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """The outcome document of one study at one scale; every value is plain JSON.

    Args:
        target: what `trueup run` takes to run the study: its slug, or the file it was read from.
        published: were the seeds those of the protocol (so that the verdict may enter the ledger)?
        seeds_note: which seeds they were, in words.
        protocols: protocol numbers run so far at this scale.
        cost, provenance: filled by the runner.
    """
    judged = judge_claims(study, evidence) if scale != "smoke" else []
    claims = [_claim_document(study, j, evidence, scale) for j in judged]
    primary = [j for j in judged if j.claim.primary]
    outcome = verdict.of_paper([j.judgement.outcome for j in primary])
    survivals = [j.survives for j in primary if j.survives is not None]
    control = (
        None
        if not survivals
        else "explained"
        if "explained" in survivals
        else "survives"
        if set(survivals) == {"survives"}
        else "undecided"
    )
    for claim in claims:
        claim["sentence"] = words.claim_sentence(claim, scale)
        claim["control_sentence"] = words.control_sentence(claim)
    scope = words.scope_sentence(study.tested_on, study.paper_setup)
    return {
        "format": FORMAT,
        "slug": study.slug,
        "question": study.question,
        "scale": scale,
        "target": target,
        "protocol": study.protocol,
        "tested_on": study.tested_on,
        "paper_setup": study.paper_setup,
        "scope_sentence": scope,
        "published": published,
        "seeds_note": seeds_note,
        "protocols": [
            {"protocol": n, "changed_because": study.protocols.get(n, "")}
            for n in sorted({*protocols, *range(1, study.protocol + 1)})  # this store may be younger
        ],
        "verdict": {
            "outcome": outcome,
            "control": control,
            "sentence": words.paper_sentence(outcome, claims, scale),
            "details": words.paper_details(outcome, control, claims, scale, scope),
        },
        "claims": claims,
        "metrics": [
            {
                "name": m.name,
                "label": m.label or m.name.replace("_", " "),
                "higher": m.higher,
                "worst": m.worst,
                "unit": m.unit,
                "scale_factor": 100 if m.unit == "%" else 1,
            }
            for m in study.metrics
        ],
        "conditions": [
            {"name": c.name, "values": list(c.values), "tuned_at": c.tuned_at} for c in study.conditions
        ],
        "arms": [
            {"name": a.name, "label": a.label or a.name, "role": a.role, "settings": _plain(a.settings)}
            for a in study.arms
        ],
        "cells": [_cell_document(key, result, evidence) for key, result in sorted(evidence.report.items())],
        "series": _series(study, evidence),
        "tuning": [
            _tuning_document((arm, condition), tuned)
            for (arm, condition), tuned in sorted(evidence.tuned.items())
            if dict(condition) == study.tuning_condition(dict(condition))
        ],
        "failures": [{"name": name, "error": error} for name, error in sorted(evidence.failures.items())],
        "figures": [_figure_document(f) for f in study.figures],
        "looks": [
            {"n": len(s), "alpha": None if scale == "smoke" else a, "seeds": list(s)}
            for a, s in evidence.looks
        ],
        "cost": dict(cost),
        "provenance": dict(provenance),
    }


def _claim_document(study: Study, judged: Judged, evidence: Evidence, scale: str) -> dict[str, Any]:
    claim, judgement = judged.claim, judged.judgement
    out: dict[str, Any] = {
        "name": claim.name,
        "statement": claim.statement,
        "origin": claim.origin,
        "primary": claim.primary,
        "kind": claim.kind,
        "requires": list(claim.requires),
        **judgement.to_dict(judged.seeds),
    }
    if isinstance(claim, Claim):
        contrast = claim.contrast
        metric = study.metric(contrast.metric) if contrast.metric else None
        out |= {
            "contrast": contrast.text,
            "arms": list(contrast.arms),
            "labels": {arm: study.arm(arm).label or arm for arm in (*contrast.arms, *judged.controls)},
            "metric": contrast.metric,
            "measure": metric.label or metric.name.replace("_", " ") if metric else "",
            "higher": metric.higher if metric else None,
            **unit_of(study, contrast),
            "min_effect": claim.min_effect,
            "why": claim.why,
            "look": judged.look,
            "diverged": _diverged(contrast.arms, judged.seeds, evidence),
            "links": [
                {"text": link.text, "arms": list(link.arms), **j.to_dict(judged.seeds)}
                for link, j in judged.links
            ],
            "controls": [
                {"arm": arm, **j.to_dict([s for _, seeds in evidence.looks for s in seeds])}
                for arm, j in judged.controls.items()
            ],
            "survives": judged.survives,
            "more_seeds": more_seeds(judgement, [j for _, j in judged.links]),
        }
    elif isinstance(claim, ExactClaim):
        out |= {
            "tolerance": claim.tolerance,
            "instances": _instances(claim, evidence.exact),
            "negative_control": {
                "label": claim.control_label,
                "instances": _instances(claim, evidence.control),
            },
        }
    else:
        out |= {"at_most": claim.at_most, "rounds": claim.rounds}
    return out


def unit_of(study: Study, contrast: Contrast) -> dict[str, Any]:
    """How people read a contrast's numbers: ``scale``, ``unit``, and the ``scale_factor`` to multiply by."""
    unit = study.metric(contrast.metric).unit if contrast.metric and contrast.scale == "difference" else ""
    percent = unit == "%"
    return {
        "scale": contrast.scale,
        "unit": "points" if percent else unit,
        "scale_factor": 100 if percent else 1,
    }


def _instances(claim: ExactClaim, results: Mapping[str, Mapping[str, CellResult]]) -> list[dict[str, Any]]:
    out = []
    for name in claim.instances:
        result = results.get(claim.name, {}).get(name)
        value = None if result is None else result.numbers.get("deviation")
        out.append(
            {"name": name, "deviation": value, "holds": value is not None and value <= claim.tolerance}
        )
    return out


def _diverged(arms: Sequence[str], seeds: Sequence[int], evidence: Evidence) -> dict[str, int]:
    counts = {
        arm: sum(
            1
            for (a, _, s), r in evidence.report.items()
            if a == arm and s in seeds and r.status == "diverged"
        )
        for arm in dict.fromkeys(arms)
    }
    return {arm: n for arm, n in counts.items() if n}


def _cell_document(key: ReportKey, result: CellResult, evidence: Evidence) -> dict[str, Any]:
    arm, condition, seed = key
    tuned = evidence.tuned.get((arm, condition))
    return {
        "arm": arm,
        "condition": dict(condition),
        "hyper": dict(tuned.winner) if tuned else {},
        "seed": seed,
        "status": result.status,
        "numbers": result.numbers,
        "seconds": result.seconds,
        "peak_memory": result.peak_memory,
        "error": result.error,
    }


def _series(study: Study, evidence: Evidence) -> list[dict[str, Any]]:
    wanted = {name for f in study.figures for name in (f.x, f.y) if name is not None}
    return [
        {"arm": arm, "condition": dict(condition), "seed": seed, "name": name, "values": values}
        for (arm, condition, seed), result in sorted(evidence.report.items())
        for name, values in result.series.items()
        if name in wanted
    ]


def _tuning_document(key: tuple[str, Items], tuned: Tuned | None) -> dict[str, Any]:
    arm, condition = key
    out: dict[str, Any] = {
        "arm": arm,
        "condition": dict(condition),
        "trials": [],
        "edge": [],
        "widened": False,
    }
    if tuned is not None:
        out["trials"] = [
            {
                "hyper": dict(t.hyper),
                "scores": list(t.scores),
                "mean": t.mean,
                "winner": dict(t.hyper) == dict(tuned.winner),
            }
            for t in tuned.trials
        ]
        out["edge"], out["widened"] = list(tuned.edge), tuned.widened
    return out


def _figure_document(figure: Figure) -> dict[str, Any]:
    return {
        "title": figure.title,
        "caption": figure.caption,
        "x": figure.x,
        "y": figure.y,
        "arms": list(figure.arms) if figure.arms else None,
        "log_x": figure.log_x,
        "log_y": figure.log_y,
    }


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: v if isinstance(v, (int, float, str, bool, type(None))) else str(v) for k, v in settings.items()
    }
