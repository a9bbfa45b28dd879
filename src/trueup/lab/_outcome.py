"""From cells to an outcome: every claim judged, and everything a reader needs, as one JSON document.

The document is what the terminal, the report, the ledger and the CSV files read. It is computed from stored
cells each time; no verdict is stored as truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from trueup.lab import _sentences as sentences
from trueup.lab import _verdict as verdict
from trueup.lab._cell import CellResult, Items
from trueup.lab._contrasts import Contrast
from trueup.lab._measured import Evidence, Looks, MeasuredClaim, MeasuredContrast, ReportKey, measure
from trueup.lab._power import more_seeds
from trueup.lab._scoring import Metric
from trueup.lab._spec import AnyClaim, Claim, ExactClaim, Figure, Study
from trueup.lab._tuning import Tuned, runner_up
from trueup.lab._verdict import Judgement

FORMAT = 1


@dataclass(frozen=True)
class Judged:
    """One claim's judgement, or a control's, with what it rests on.

    ``statistical`` is the judgement before controls, requirements and edges are looked at.
    """

    claim: MeasuredClaim
    judgement: Judgement
    statistical: Judgement
    look: int = 0
    seeds: tuple[int, ...] = ()
    links: tuple[Judgement, ...] = ()
    controls: Mapping[str, Judged] = field(default_factory=dict)

    @property
    def survives(self) -> verdict.Survival | None:
        return verdict.survival([control.judgement for control in self.controls.values()])

    @property
    def wants_more_seeds(self) -> bool:
        """Would another look help? Only what seeds can mend counts."""
        if self.claim.kind != "statistical" or self.judgement.outcome in ("incomplete", "invalid"):
            return False
        return verdict.wants_look(self.statistical, self.links) or self.survives == "undecided"


def judge_claims(claims: Sequence[MeasuredClaim], looks: Looks) -> list[Judged]:
    """Judge every claim of a study by the verdict rule, in order."""
    judged: dict[str, Judged] = {}
    for claim in claims:
        result = _JUDGES[claim.kind](claim, looks)
        judgement = verdict.with_controls(
            result.judgement, {arm: control.judgement for arm, control in result.controls.items()}
        )
        required = {name: judged[name].judgement.outcome for name in claim.requires}
        judgement = verdict.with_requirements(judgement, required)
        if claim.contrast is not None:
            judgement = verdict.with_edges(
                judgement, _edges(claim.contrast, replace(result, judgement=judgement))
            )
        judged[claim.name] = replace(result, judgement=judgement)
    return list(judged.values())


def undecided(study: Study, evidence: Evidence) -> bool:
    """Does a primary claim, or one that a primary claim requires, want the next look?"""
    judged = {j.claim.name: j for j in judge_claims(measure(study, evidence), evidence.looks)}
    wanted: set[str] = set()
    for claim in reversed(study.claims):  # a claim requires earlier ones only
        if claim.primary or claim.name in wanted:
            wanted |= {claim.name, *claim.requires}
    return any(judged[name].wants_more_seeds for name in wanted)


def _statistical(claim: MeasuredClaim, looks: Looks) -> Judged:
    assert claim.contrast is not None
    decided = _over_looks(claim, claim.contrast, claim.margin, looks)
    outcome = decided.judgement.outcome
    if outcome not in ("reproduced", "smaller"):
        return decided
    # a gain below the minimum effect need only be one over its controls too
    margin = 0.0 if outcome == "smaller" else claim.margin
    controls = {
        arm: _over_looks(claim, contrast, margin, looks, control=True)
        for arm, contrast in claim.controls.items()
    }
    return replace(decided, controls=controls)


def _over_looks(
    claim: MeasuredClaim, contrast: MeasuredContrast, margin: float, looks: Looks, control: bool = False
) -> Judged:
    """Judge over the looks begun, with the seeds of the last look that was needed."""
    each = (_at_look(contrast, margin, looks, number, control) for number in range(1, 1 + len(looks)))
    look, judgement, links = verdict.over_looks(each)
    return Judged(claim, judgement, judgement, look, _seeds(looks, look), links)


def _at_look(
    contrast: MeasuredContrast, margin: float, looks: Looks, look: int, control: bool
) -> tuple[Judgement, tuple[Judgement, ...]]:
    """The judgements of a contrast and of its links at one look; only a claim's own can be refused."""
    alpha, n = looks[look - 1][0], len(_seeds(looks, look))
    if len(contrast.d[0]) < n:
        assert contrast.trouble is not None
        outcome, note = contrast.trouble
        return Judgement(outcome, note, margin=margin, alpha=alpha), ()
    vary = control or contrast.values_vary[look - 1]
    whole, *links = (
        verdict.judge(d[:n], margin, alpha, test, values_vary=vary)
        for d, test in zip(contrast.d, contrast.tests, strict=True)
    )
    return (verdict.of_links(links, whole) if links else whole), tuple(links)


def _seeds(looks: Looks, look: int) -> tuple[int, ...]:
    """All seeds of the first ``look`` looks."""
    return tuple(seed for _, seeds in looks[:look] for seed in seeds)


def _edges(contrast: MeasuredContrast, judged: Judged) -> list[tuple[verdict.Outcome, verdict.Edges]]:
    """The arms at an edge for every link, or for the claim itself; the controls asked count as rivals."""
    controls = tuple(
        clause
        for arm in judged.controls
        for edges in judged.claim.controls[arm].edges
        for clause in edges.rivals
    )
    outcomes = [link.outcome for link in judged.links] or [judged.judgement.outcome]
    return [
        (outcome, verdict.Edges(edges.methods, edges.rivals + controls))
        for outcome, edges in zip(outcomes, contrast.edges, strict=False)
    ]


def _exact(claim: MeasuredClaim, looks: Looks) -> Judged:
    if claim.missing:
        judgement = Judgement("incomplete", f"instance {claim.missing} did not run")
    else:
        judgement = Judgement(*verdict.exact(claim.deviations, claim.negative, claim.margin))
    return Judged(claim, judgement, judgement)


def _cost(claim: MeasuredClaim, looks: Looks) -> Judged:
    if claim.rounds is None:
        judgement = Judgement("incomplete", "the rounds did not run")
    else:
        judgement = verdict.judge(claim.rounds, claim.margin)
    # rounds stand where seeds stand elsewhere
    return Judged(claim, judgement, judgement, seeds=tuple(range(1, 1 + judgement.n)))


_JUDGES = {"statistical": _statistical, "exact": _exact, "cost": _cost}


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
            for n in sorted({*protocols, *range(1, study.protocol + 1)})  # this store may be younger
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
    """A paper's verdict, from its claims as judged and as documents."""
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
    """Describe a claim, before anything is judged."""
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
    """A claim's document: what it says, what was measured, what the rule makes of it, and the sentences."""
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
            # of every control, asked or not: a replication may ask others
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
    """How people read a contrast's numbers: ``scale``, ``unit``, and the ``scale_factor`` to multiply by."""
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
