"""Reduce cells to contrasts: the numbers by which every claim of a study is judged, as plain data.

Nothing is judged here. `_judging` applies the verdict rule to these numbers, whether they come from stored
cells or from the evidence of a published verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from trueup.lab import _verdict as verdict
from trueup.lab._cell import CellResult, Items, items
from trueup.lab._contrasts import Contrast, SeedCells, Test
from trueup.lab._spec import AnyClaim, Claim, ExactClaim, Study
from trueup.lab._tuning import Tuned
from trueup.lab._verdict import Edges, Outcome

ReportKey: TypeAlias = tuple[str, Items, int]  # arm, condition, seed
Looks: TypeAlias = Sequence[tuple[float, Sequence[int]]]  # alpha, and the seeds that the look adds


@dataclass
class Evidence:
    """The results that a run of a study has gathered.

    Attributes:
        report: results of the report cells.
        looks: `(alpha, seeds)` of each look begun; the seeds of earlier looks are not repeated.
        tuned: by (arm, condition); `None` where a trial failed.
        exact: `claim -> instance -> result`; `control`: the same for its negative control.
        cost: `claim -> result`.
        failures: tracebacks of all failures other than report cells, by name.
    """

    report: dict[ReportKey, CellResult] = field(default_factory=dict)
    looks: list[tuple[float, list[int]]] = field(default_factory=list)
    tuned: dict[tuple[str, Items], Tuned | None] = field(default_factory=dict)
    exact: dict[str, dict[str, CellResult]] = field(default_factory=dict)
    control: dict[str, dict[str, CellResult]] = field(default_factory=dict)
    cost: dict[str, CellResult] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def seeds(self, look: int) -> list[int]:
        """Return all seeds of the first `look` looks."""
        return [seed for _, seeds in self.looks[:look] for seed in seeds]


@dataclass(frozen=True)
class MeasuredContrast:
    """A contrast and its links over the seeds, with everything else that their judgement needs.

    Attributes:
        tests: how the contrast and then each link is judged.
        d: of the contrast and then of each link, one number per seed, up to the first seed without one.
        trouble: `(outcome, note)` of that seed; `None` if every seed has its number.
        values_vary: for each look, whether the arms' own values vary over its seeds.
        edges: for each link, or for the contrast if it has none, the arms whose best setting is at the
            edge of their grid.
        diverged: arm -> the seeds of its diverged cells, one entry per cell.
    """

    tests: tuple[Test, ...]
    d: tuple[tuple[float, ...], ...]
    trouble: tuple[Outcome, str] | None = None
    values_vary: tuple[bool, ...] = ()
    edges: tuple[Edges, ...] = ()
    diverged: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> MeasuredContrast:
        """Rebuild a contrast from the JSON of `MeasuredClaim.to_json`."""
        return cls(
            tests=tuple(document["tests"]),
            d=tuple(map(tuple, document["d"])),
            trouble=tuple(document["trouble"]) if document["trouble"] else None,
            values_vary=tuple(document["values_vary"]),
            edges=tuple(Edges(tuple(e["methods"]), tuple(e["rivals"])) for e in document["edges"]),
            diverged={arm: tuple(seeds) for arm, seeds in document["diverged"].items()},
        )


@dataclass(frozen=True)
class MeasuredClaim:
    """Everything that the verdict rule needs to know about a claim.

    Attributes:
        margin: the minimum effect on the contrast's scale; of an exact claim the tolerance.
        contrast, controls: of a statistical claim; `controls` has each control in the rival's place.
        deviations, negative: of an exact claim, by instance; `None` where the deviation was not finite.
        missing: the first instance of an exact claim that did not run, or "".
        rounds: of a cost claim, log(bound x peer / ours) of every round; `None` if they did not run.
    """

    name: str
    kind: str
    primary: bool
    requires: tuple[str, ...]
    margin: float = 0.0
    contrast: MeasuredContrast | None = None
    controls: Mapping[str, MeasuredContrast] = field(default_factory=dict)
    deviations: Mapping[str, float | None] = field(default_factory=dict)
    negative: Mapping[str, float | None] = field(default_factory=dict)
    missing: str = ""
    rounds: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, from which `from_json` makes an equal claim."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> MeasuredClaim:
        """Rebuild a claim from the JSON of `to_json`."""
        contrast, rounds = document["contrast"], document["rounds"]
        return cls(
            **{
                **document,
                "requires": tuple(document["requires"]),
                "contrast": MeasuredContrast.from_json(contrast) if contrast else None,
                "controls": {a: MeasuredContrast.from_json(c) for a, c in document["controls"].items()},
                "rounds": None if rounds is None else tuple(rounds),
            }
        )


def measure(study: Study, evidence: Evidence) -> list[MeasuredClaim]:
    """Measure every claim of a study, in the study's order."""
    return [_measure(study, claim, evidence) for claim in study.claims]


def margin_of(claim: Claim) -> float:
    """Return the minimum effect on the scale of the claim's contrast; for a log ratio, log(1 + gain)."""
    return math.log1p(claim.min_effect) if claim.contrast.scale == "log" else claim.min_effect


def _measure(study: Study, claim: AnyClaim, evidence: Evidence) -> MeasuredClaim:
    measured: dict[str, Any] = {
        "name": claim.name,
        "kind": claim.kind,
        "primary": claim.primary,
        "requires": claim.requires,
    }
    if isinstance(claim, Claim):
        contrast, against = claim.contrast, claim.contrast.against
        asked = study.controls(claim) if against is not None and contrast.test == "superiority" else ()
        controls = {}
        for arm in asked:
            assert against is not None
            named = {} if arm in contrast.rivals else {arm: "the control "}
            controls[arm] = _contrast(study, against(arm), evidence, named)
        return MeasuredClaim(
            **measured,
            margin=margin_of(claim),
            contrast=_contrast(study, contrast, evidence),
            controls=controls,
        )
    if isinstance(claim, ExactClaim):
        done, control = evidence.exact.get(claim.name, {}), evidence.control.get(claim.name, {})
        missing = [n for n in claim.instances if _failed(done.get(n)) or _failed(control.get(n))]
        ran = {} if missing else claim.instances
        return MeasuredClaim(
            **measured,
            margin=claim.tolerance,
            deviations={n: done[n].numbers.get("deviation") for n in ran},
            negative={n: control[n].numbers.get("deviation") for n in ran},
            missing=missing[0] if missing else "",
        )
    result = evidence.cost.get(claim.name)
    rounds = None
    if result is not None and result.status != "failed":
        # positive where ours stays within the bound
        rounds = tuple((math.log(claim.at_most) - np.asarray(result.series["log_ratio"])).tolist())
    return MeasuredClaim(**measured, rounds=rounds)


def _failed(result: CellResult | None) -> bool:
    return result is None or result.status == "failed"


def _contrast(
    study: Study, contrast: Contrast, evidence: Evidence, named: Mapping[str, str] | None = None
) -> MeasuredContrast:
    """Measure a contrast over all seeds of the looks begun.

    Args:
        named: arm -> its role in the text of an edge; other arms have no edges. By default all arms of the
            contrast, by their roles in it.
    """
    conditions = _conditions(study, contrast)
    seeds = evidence.seeds(len(evidence.looks))
    parts = (contrast, *contrast.links)
    d: list[list[float]] = [[] for _ in parts]
    trouble: tuple[Outcome, str] | None = None
    for seed in seeds:
        values, trouble = _of_seed(study, parts, conditions, evidence, seed)
        if trouble:
            break
        for each, value in zip(d, values, strict=True):
            each.append(value)
    return MeasuredContrast(
        tests=tuple(part.test for part in parts),
        d=tuple(map(tuple, d)),
        trouble=trouble,
        values_vary=_values_vary(contrast, conditions, evidence, len(d[0])),
        edges=tuple(_edges(study, part, evidence, named) for part in contrast.links or (contrast,)),
        diverged=_diverged(contrast, conditions, evidence, seeds),
    )


def _of_seed(
    study: Study, parts: Sequence[Contrast], conditions: Sequence[Items], evidence: Evidence, seed: int
) -> tuple[list[float], tuple[Outcome, str] | None]:
    """Return the numbers of a contrast and its links at one seed, or the reason why there are none."""
    cells = []
    for arm in dict.fromkeys(parts[0].arms):
        for condition in conditions:
            result = evidence.report.get((arm, condition, seed))
            if result is None or result.status == "failed":
                what = "failed" if result is not None else "missing"
                return [], ("incomplete", f"a cell of {arm} at seed {seed} is {what}")
            cells.append((arm, dict(condition), result.numbers, result.series))
    of_seed = SeedCells(cells, {m.name: m.higher for m in study.metrics})
    try:
        values = [float(part.value(of_seed)) for part in parts]
    except Exception as error:  # a user's own contrast may raise anything
        return [], ("invalid", f"the contrast cannot be computed: {type(error).__name__}: {error}")
    if not all(map(math.isfinite, values)):
        return [], ("invalid", "the contrast is not a finite number")
    return values, None


def _conditions(study: Study, contrast: Contrast) -> list[Items]:
    """Return the conditions that a contrast or one of its links reads."""
    read = (contrast, *contrast.links)
    return [
        items(condition)
        for condition in study.condition_grid()
        if any(all(condition.get(name) == value for name, value in each.at.items()) for each in read)
    ]


def _values_vary(
    contrast: Contrast, conditions: Sequence[Items], evidence: Evidence, measured: int
) -> tuple[bool, ...]:
    """Return, for each look whose seeds are all measured, whether a value that the contrast reads varies."""
    looks = [evidence.seeds(look) for look in range(1, 1 + len(evidence.looks))]
    return tuple(_vary(contrast, conditions, evidence, seeds) for seeds in looks if len(seeds) <= measured)


def _vary(contrast: Contrast, conditions: Sequence[Items], evidence: Evidence, seeds: Sequence[int]) -> bool:
    named = {*contrast.metrics, *contrast.series}
    for arm in dict.fromkeys(contrast.arms):
        for condition in conditions:
            results = [evidence.report[arm, condition, seed] for seed in seeds]
            for name in named or {*results[0].numbers, *results[0].series}:
                read = [r.series.get(name, [r.numbers[name]] if name in r.numbers else []) for r in results]
                if len({len(values) for values in read}) > 1 or not all(map(verdict.constant, zip(*read))):
                    return True
    return False


def _edges(study: Study, contrast: Contrast, evidence: Evidence, named: Mapping[str, str] | None) -> Edges:
    if named is None:
        named = {
            arm: "" if arm in contrast.methods and arm in contrast.rivals else whose
            for arms, whose in ((contrast.methods, "the method "), (contrast.rivals, "the rival "))
            for arm in arms
        }
    methods, rivals = (
        tuple(
            clause
            for arm in arms
            if arm in named
            for clause in _edge(study, contrast, arm, named[arm], evidence)
        )
        for arms in (contrast.methods, contrast.rivals)
    )
    return Edges(methods, rivals)


def _edge(study: Study, contrast: Contrast, arm: str, whose: str, evidence: Evidence) -> list[str]:
    """Return one clause if the arm's best setting is at an edge where the contrast reads it, else none."""
    places: dict[str, None] = {}
    for condition in _conditions(study, contrast):
        tuned = evidence.tuned.get((arm, condition))
        where = ", ".join(f"{k} {v}" for k, v in study.tuning_condition(dict(condition)).items())
        for axis in tuned.edge if tuned is not None else ():
            place = f"{axis} {tuned.winner[axis]:g}"  # type: ignore[union-attr]
            places[f"{place} at {where}" if where else place] = None
    if not places:
        return []
    return [f"the best setting of {whose}{arm} is at its grid's edge: {' and '.join(places)}"]


def _diverged(
    contrast: Contrast, conditions: Sequence[Items], evidence: Evidence, seeds: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    found = {
        arm: tuple(
            seed
            for seed in seeds
            for condition in conditions
            if (result := evidence.report.get((arm, condition, seed))) is not None
            and result.status == "diverged"
        )
        for arm in dict.fromkeys(contrast.arms)
    }
    return {arm: diverged for arm, diverged in found.items() if diverged}
