"""Judge the measured claims of a study by the verdict rule, with their looks, controls and requirements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from trueup.lab import _verdict as verdict
from trueup.lab._measured import Evidence, Looks, MeasuredClaim, MeasuredContrast, measure
from trueup.lab._spec import Study
from trueup.lab._verdict import Judgement


@dataclass(frozen=True)
class Judged:
    """The judgement of one claim, or of one of its controls, with what it rests on.

    `statistical` is the judgement before controls, requirements and edges are taken into account.
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
        """Return whether more seeds could change the judgement."""
        if self.claim.kind != "statistical" or self.judgement.outcome in ("incomplete", "invalid"):
            return False
        return verdict.wants_look(self.statistical, self.links) or self.survives == "undecided"


def judge_claims(claims: Sequence[MeasuredClaim], looks: Looks) -> list[Judged]:
    """Judge every claim of a study, in order."""
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
    """Return whether a primary claim, or a claim that it requires, needs the next look."""
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
    # a gain below the minimum effect need only exceed zero over its controls too
    margin = 0.0 if outcome == "smaller" else claim.margin
    controls = {
        arm: _over_looks(claim, contrast, margin, looks, control=True)
        for arm, contrast in claim.controls.items()
    }
    return replace(decided, controls=controls)


def _over_looks(
    claim: MeasuredClaim, contrast: MeasuredContrast, margin: float, looks: Looks, control: bool = False
) -> Judged:
    """Judge a contrast over the looks begun, with the seeds of the last look that was needed."""
    each = (_at_look(contrast, margin, looks, number, control) for number in range(1, 1 + len(looks)))
    look, judgement, links = verdict.over_looks(each)
    return Judged(claim, judgement, judgement, look, _seeds(looks, look), links)


def _at_look(
    contrast: MeasuredContrast, margin: float, looks: Looks, look: int, control: bool
) -> tuple[Judgement, tuple[Judgement, ...]]:
    """Judge a contrast and its links at one look.

    Constant values make only the contrast of the claim itself invalid, not that of a control.
    """
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
    """Return all seeds of the first `look` looks."""
    return tuple(seed for _, seeds in looks[:look] for seed in seeds)


def _edges(contrast: MeasuredContrast, judged: Judged) -> list[tuple[verdict.Outcome, verdict.Edges]]:
    """Return the arms at an edge for every link, or for the claim itself; controls judged count as rivals."""
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
    # the rounds take the place of the seeds
    return Judged(claim, judgement, judgement, seeds=tuple(range(1, 1 + judgement.n)))


_JUDGES = {"statistical": _statistical, "exact": _exact, "cost": _cost}
