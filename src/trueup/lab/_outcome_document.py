"""Write what a run of a study found as one JSON document: the outcome document.

The terminal, the report, the ledger and the CSV files read this document. It is computed from stored cells
each time; no verdict is stored as truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from trueup.lab import _sentences as sentences
from trueup.lab import _verdict as verdict
from trueup.lab._cell import CellResult, Items
from trueup.lab._contrasts import Contrast
from trueup.lab._judging import Judged, judge_claims
from trueup.lab._measured import Evidence, ReportKey, measure
from trueup.lab._power import more_seeds
from trueup.lab._scoring import Metric
from trueup.lab._spec import AnyClaim, Claim, ExactClaim, Figure, Study
from trueup.lab._tuning import Tuned, runner_up

FORMAT = 1


def outcome_document(
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
    """Write the outcome document of one study at one scale, in plain JSON.

    Args:
        target: the argument of `trueup run` for this study: its slug, or the file it was read from.
        published: True if the seeds are the protocol's, so that the verdict may enter the ledger.
        seeds_note: a phrase that says which seeds were used.
        protocols: protocol numbers run so far at this scale.
        cost, provenance: counts, times and environment of the run.
    """
    judged = judge_claims(measure(study, evidence), evidence.looks) if scale != "smoke" else []
    claims = [
        claim_document(describe(study, claim), j, scale)
        for claim, j in zip(study.claims, judged, strict=False)
    ]
    scope = sentences.scope_sentence(study.tested_on, study.paper_setup)
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
            for n in sorted({*protocols, *range(1, study.protocol + 1)})  # run elsewhere too
        ],
        "verdict": verdict_document(judged, claims, scale, scope),
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
            _tuning_document((arm, condition), tuned, study.metrics[0])
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


def verdict_document(
    judged: Sequence[Judged], claims: Sequence[Mapping[str, Any]], scale: str, scope: str
) -> dict[str, Any]:
    """Write a paper's verdict, from its claims as judged and as documents."""
    primary = [j for j in judged if j.claim.primary]
    outcome = verdict.of_paper([j.judgement.outcome for j in primary])
    survivals = {j.survives for j in primary if j.survives is not None}
    control = next((s for s in ("explained", "undecided", "survives") if s in survivals), None)
    return {
        "outcome": outcome,
        "control": control,
        "sentence": sentences.paper_sentence(outcome, claims, scale),
        "details": sentences.paper_details(outcome, control, claims, scale, scope),
    }


def describe(study: Study, claim: AnyClaim) -> dict[str, Any]:
    """Write the part of a claim's document that its declaration determines."""
    out: dict[str, Any] = {
        "name": claim.name,
        "statement": claim.statement,
        "origin": claim.origin,
        "primary": claim.primary,
        "kind": claim.kind,
        "requires": list(claim.requires),
    }
    if isinstance(claim, Claim):
        contrast = claim.contrast
        metric = study.metric(contrast.metric) if contrast.metric else None
        arms = dict.fromkeys((*contrast.arms, *study.controls(claim)))
        return out | {
            "contrast": contrast.text,
            "arms": list(contrast.arms),
            "labels": {arm: study.arm(arm).label or arm for arm in arms},
            "metric": contrast.metric,
            "measure": metric.label or metric.name.replace("_", " ") if metric else "",
            "higher": metric.higher if metric else None,
            **unit_of(study, contrast),
            "min_effect": claim.min_effect,
            "why": claim.why,
            "links": [{"text": link.text, "arms": list(link.arms)} for link in contrast.links],
        }
    if isinstance(claim, ExactClaim):
        return out | {"tolerance": claim.tolerance, "negative_control": {"label": claim.control_label}}
    return out | {"at_most": claim.at_most, "rounds": claim.rounds}


def claim_document(described: Mapping[str, Any], judged: Judged, scale: str) -> dict[str, Any]:
    """Write a claim's document: its declaration, its measurements, its judgement and its sentences."""
    claim, judgement = judged.claim, judged.judgement
    out = dict(described) | judgement.to_dict(judged.seeds)
    if claim.contrast is not None:
        diverged = {
            arm: count
            for arm, seeds in claim.contrast.diverged.items()
            if (count := sum(seed in judged.seeds for seed in seeds))
        }
        out |= {
            "look": judged.look,
            "diverged": diverged,
            "skew": verdict.skewness(judgement.d),
            "missable_divergence": None if diverged else verdict.missable_divergence(judgement.n),
            "links": [
                dict(link) | j.to_dict(judged.seeds)
                for link, j in zip(described["links"], judged.links, strict=False)
            ],
            "controls": [
                {"arm": arm, "look": control.look, **control.judgement.to_dict(control.seeds)}
                for arm, control in judged.controls.items()
            ],
            # every control, judged or not: a replication may judge others
            "against": [
                {"arm": arm, "d": [{"seed": s, "d": x} for s, x in zip(judged.seeds, c.d[0], strict=False)]}
                for arm, c in claim.controls.items()
            ],
            "survives": judged.survives,
            "more_seeds": more_seeds(judgement, judged.links) if judgement == judged.statistical else None,
        }
    elif claim.kind == "exact":
        out |= {
            "instances": _instances(claim.deviations, claim.margin),
            "negative_control": {
                **described["negative_control"],
                "instances": _instances(claim.negative, claim.margin),
            },
        }
    out["sentence"], out["details"] = sentences.claim_sentence(out, scale), sentences.claim_details(out)
    out["control_sentence"] = sentences.control_sentence(out)
    return out


def unit_of(study: Study, contrast: Contrast) -> dict[str, Any]:
    """Return how to show a contrast's numbers: `scale`, `unit`, and the `scale_factor` to multiply by."""
    unit = study.metric(contrast.metric).unit if contrast.metric and contrast.scale == "difference" else ""
    percent = unit == "%"
    return {
        "scale": contrast.scale,
        "unit": "points" if percent else unit,
        "scale_factor": 100 if percent else 1,
    }


def _instances(deviations: Mapping[str, float | None], tolerance: float) -> list[dict[str, Any]]:
    return [
        {"name": name, "deviation": value, "holds": value is not None and value <= tolerance}
        for name, value in deviations.items()
    ]


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


def _tuning_document(key: tuple[str, Items], tuned: Tuned | None, metric: Metric) -> dict[str, Any]:
    arm, condition = key
    out: dict[str, Any] = {
        "arm": arm,
        "condition": dict(condition),
        "trials": [],
        "edge": [],
        "widened": False,
        "runner_up": None,
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
        second = runner_up(tuned, metric)
        out["runner_up"] = second and asdict(second)
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
