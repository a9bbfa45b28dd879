"""Evidence: the cells behind a published verdict, as a file that ships with the package.

A file holds every cell's key, numbers and a sha256 of all that it returned, and for every claim and seed the
contrast that was judged. With it a verdict can be judged again without training anything, and a later version
of the code compared with what the published one computed.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup._atomic_write import atomic_write
from trueup.lab._errors import StudyError

if TYPE_CHECKING:
    from trueup.lab._cell import Cell, CellResult
    from trueup.lab._contrasts import Contrast
    from trueup.lab._measured import Evidence
    from trueup.lab._spec import AnyClaim, Axis, Study

FORMAT = 1
FOLDER = Path(__file__).parent.parent / "evidence"
_PARTS = ("slug", "scale", "protocol", "commit", "plan", "looks", "tuning", "claims", "measured", "cells")


class EvidenceError(StudyError):
    """Raised for evidence that is missing, damaged, or written by a newer trueup."""


def read(slug: str, folder: Path | None = None) -> dict[str, Any]:
    """Read the evidence of a published verdict.

    Raises:
        EvidenceError: if there is none, or it cannot be read.
    """
    path = (folder or FOLDER) / f"{slug}.json.gz"
    if not path.exists():
        raise EvidenceError(
            f"no evidence of {slug} ships with this version of trueup: publish its verdict again"
        )
    try:
        document: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        found = document["format"]
        missing = [part for part in _PARTS if part not in document] if found == FORMAT else []
        if not isinstance(found, int) or missing:
            raise ValueError(f"no {missing[0]}" if missing else f"format {found!r}")
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise EvidenceError(f"{path} is damaged: {error}; restore it from the repository") from None
    if found > FORMAT:
        raise EvidenceError(f"{path} has format {found}; this trueup reads {FORMAT}: upgrade trueup")
    return document


def exists(slug: str, folder: Path | None = None) -> bool:
    """Return whether there is evidence of this study."""
    return ((folder or FOLDER) / f"{slug}.json.gz").exists()


def write(document: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write the evidence of a study; equal evidence gives equal files."""
    path = (folder or FOLDER) / f"{document['slug']}.json.gz"
    text = json.dumps({"format": FORMAT, **document}, separators=(",", ":"), ensure_ascii=False)
    data = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    atomic_write(path, lambda file: file.write(data))
    return path


# -- making and judging --------------------------------------------------------------------------------------


def document(
    study: Study, gathered: Evidence, cells: Mapping[Cell, CellResult], outcome: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect the evidence of a run: its declarations, every cell, and the contrasts of each claim.

    Args:
        cells: all cells of the run; stages are left out, as their outputs show in the cells that read them.
        outcome: the run's outcome document, for its tuning table, provenance and scope.

    Raises:
        EvidenceError: if an arm returns no continuous number, so that an edited epsilon could go unseen.
    """
    from trueup.lab._measured import measure
    from trueup.lab._outcome_document import describe

    kept = {cell: result for cell, result in cells.items() if cell.kind != "stage"}
    _check_continuous(study, kept)
    series = _series_read(study, gathered)
    environments: dict[str, dict[str, str]] = {}
    records = []
    for cell, result in sorted(kept.items(), key=lambda pair: pair[0].key()):
        text = json.dumps(result.environment, sort_keys=True)
        environments.setdefault(text, dict(result.environment))
        of_cost = ("log_ratio",) if cell.kind == "cost" else ()
        record = cell_record(cell, result, (*series, *of_cost))
        records.append(record | {"environment": list(environments).index(text)})
    return {
        "slug": study.slug,
        "scale": outcome["scale"],
        "protocol": study.protocol,
        "fingerprint": outcome["provenance"]["fingerprint"],
        "data": outcome["provenance"]["data"],
        "environment": max(
            environments.values(), key=lambda e: sum(c.environment == e for c in kept.values()), default={}
        ),
        "environments": list(environments.values()),
        "scope_sentence": outcome["scope_sentence"],
        "plan": plan(study),
        "looks": [{"alpha": alpha, "seeds": list(seeds)} for alpha, seeds in gathered.looks],
        "tuning": outcome["tuning"],
        "claims": [describe(study, claim) for claim in study.claims],
        "measured": [claim.to_json() for claim in measure(study, gathered)],
        "cells": records,
    }


def measured(study: Study, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure the claims anew from the stored numbers; the result is as stored if no contrast changed."""
    from trueup.lab._measured import measure

    made = [claim.to_json() for claim in measure(study, _gathered(study, document))]
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]


def rejudge(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Apply the present rule to the stored contrasts; return the paper's verdict and its claims' documents.

    Neither torch nor the study is imported.
    """
    from trueup.lab._judging import judge_claims
    from trueup.lab._measured import MeasuredClaim
    from trueup.lab._outcome_document import claim_document, verdict_document

    claims = [MeasuredClaim.from_json(claim) for claim in document["measured"]]
    judged = judge_claims(claims, [(look["alpha"], look["seeds"]) for look in document["looks"]])
    documents = [
        claim_document(described, j, document["scale"])
        for described, j in zip(document["claims"], judged, strict=True)
    ]
    verdict = verdict_document(judged, documents, document["scale"], document["scope_sentence"])
    return verdict, documents


def _gathered(study: Study, document: Mapping[str, Any]) -> Evidence:
    """Rebuild what the run had gathered, as far as contrasts can read it."""
    from trueup.lab._cell import CellResult, items
    from trueup.lab._measured import Evidence
    from trueup.lab._tuning import Tuned

    gathered = Evidence(looks=[(look["alpha"], look["seeds"]) for look in document["looks"]])
    places = {
        (tuning["arm"], items(tuning["condition"])): Tuned(
            (), next((t["hyper"] for t in tuning["trials"] if t["winner"]), {}), tuple(tuning["edge"])
        )
        for tuning in document["tuning"]
    }
    for arm in study.arms:
        for condition in study.condition_grid():
            place = arm.name, items(study.tuning_condition(condition))
            gathered.tuned[arm.name, items(condition)] = places.get(place)
    for record in document["cells"]:
        series = {
            name: [math.nan if v is None else v for v in values] for name, values in record["series"].items()
        }
        result = CellResult(record["status"], record["numbers"], series)
        if record["kind"] == "report":
            gathered.report[record["arm"], items(record["condition"]), record["seed"]] = result
        elif record["kind"] == "exact":
            gathered.exact.setdefault(record["arm"], {})[record["instance"]] = result
        elif record["kind"] == "exact-control":
            gathered.control.setdefault(record["arm"], {})[record["instance"]] = result
        elif record["kind"] == "cost":
            gathered.cost[record["arm"]] = result
    return gathered


class _Recording(dict[str, Any]):
    """A cell's series that records which of them are read."""

    read: set[str]

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def _series_read(study: Study, gathered: Evidence) -> tuple[str, ...]:
    """Find the series that the study's contrasts read, by computing them."""
    from trueup.lab._contrasts import SeedCells

    read: set[str] = set()
    for seed in gathered.seeds(len(gathered.looks)):
        cells = []
        for (arm, condition, cell_seed), result in gathered.report.items():
            if cell_seed == seed:
                series = _Recording(result.series)
                series.read = read
                cells.append((arm, dict(condition), result.numbers, series))
        of_seed = SeedCells(cells, {m.name: m.higher for m in study.metrics})
        for claim in study.statistical:
            against = claim.contrast.against
            controls = [against(arm) for arm in study.controls(claim)] if against else []
            for contrast in (claim.contrast, *claim.contrast.links, *controls):
                with contextlib.suppress(Exception):  # such a claim is invalid, and its note says why
                    contrast.value(of_seed)
    return tuple(sorted(read))


def _check_continuous(study: Study, cells: Mapping[Cell, CellResult]) -> None:
    """Refuse an arm without a number that differs between seeds: a coarse accuracy hides small changes."""
    results: defaultdict[tuple[str, Any], list[Mapping[str, float]]] = defaultdict(list)
    for cell, result in cells.items():
        if cell.kind == "report" and result.status == "ok":
            results[cell.arm, cell.condition].append(result.numbers)
    for (arm, _), numbers in results.items():
        names = {name for of_seed in numbers for name in of_seed}
        distinct = max((len({n[name] for n in numbers if name in n}) for name in names), default=0)
        if len(numbers) > 1 and distinct < 0.9 * len(numbers):
            raise EvidenceError(
                f"{study.slug}: arm {arm!r} returns no continuous number, so a small change of its code "
                "would go unseen: return a loss or the norm of the weights as well"
            )


def to_csv(document: Mapping[str, Any]) -> str:
    """Format every cell as comma-separated values: its key, status, numbers and sha256."""
    cells = document["cells"]
    columns = {
        part: list(dict.fromkeys(name for cell in cells for name in cell[part]))
        for part in ("condition", "hyper", "numbers")
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *("kind", "arm", *columns["condition"], *columns["hyper"], "seed", "instance", "status"),
            *(*columns["numbers"], "sha256"),
        ]
    )
    for cell in cells:
        settings = [cell[part].get(name) for part in ("condition", "hyper") for name in columns[part]]
        numbers = [cell["numbers"].get(name) for name in columns["numbers"]]
        key = [cell["kind"], cell["arm"], *settings, cell["seed"], cell["instance"], cell["status"]]
        writer.writerow([*key, *numbers, cell["sha256"]])
    return text.getvalue()


# -- cells ---------------------------------------------------------------------------------------------------


def digest(result: CellResult) -> str:
    """Hash everything that a cell returned: status, numbers, series and arrays, to the last bit.

    >>> from trueup.lab._cell import CellResult
    >>> digest(CellResult("ok", {"loss": 0.1})) == digest(CellResult("ok", {"loss": 0.1 + 1e-18}))
    True
    >>> digest(CellResult("ok", {"loss": 0.1})) == digest(CellResult("ok", {"loss": 0.1 + 1e-16}))
    False
    """
    sha = hashlib.sha256(result.status.encode())
    for kind, values in (("number", result.numbers), ("series", result.series)):
        for name, value in sorted(values.items()):
            sha.update(f"\n{kind} {name} {json.dumps(value)}".encode("utf-8", "surrogatepass"))
    for name, array in sorted(result.arrays.items()):
        sha.update(f"\narray {name} {array.dtype.str} {array.shape}\n".encode("utf-8", "surrogatepass"))
        sha.update(array.tobytes())  # in C order, whatever the memory layout
    return sha.hexdigest()


def cell_record(cell: Cell, result: CellResult, series: Iterable[str] = ()) -> dict[str, Any]:
    """Record a cell, with those of its series that a contrast reads."""
    return {
        "kind": cell.kind,
        "arm": cell.arm,
        "condition": dict(cell.condition),
        "hyper": dict(cell.hyper),
        "seed": cell.seed,
        "instance": cell.instance,
        "status": result.status,
        "numbers": result.numbers,
        "series": {
            name: [v if math.isfinite(v) else None for v in result.series[name]]
            for name in series
            if name in result.series
        },
        "sha256": digest(result),
    }


def cell_of(document: Mapping[str, Any], record: Mapping[str, Any]) -> Cell:
    """Rebuild the cell of a record."""
    from trueup.lab._cell import Cell, items

    return Cell(
        document["slug"],
        document["scale"],
        document["protocol"],
        record["kind"],
        record["arm"],
        items(record["condition"]),
        items(record["hyper"]),
        record["seed"],
        record["instance"],
    )


# -- declarations --------------------------------------------------------------------------------------------


def plan(study: Study) -> dict[str, Any]:
    """Return what a study declares and its verdict depends on, as plain JSON without labels and titles.

    Two studies with equal plans run the same cells and judge the same claims, as far as can be known without
    computing a contrast.
    """
    return {
        "slug": study.slug,
        "protocol": study.protocol,
        "metrics": [{"name": m.name, "higher": m.higher, "worst": m.worst} for m in study.metrics],
        "arms": [
            {
                "name": arm.name,
                "role": arm.role,
                "settings": _settings(arm.settings),
                "tune": [_axis(axis) for axis in study.axes(arm)],
            }
            for arm in study.arms
        ],
        "settings": _settings(study.scales.get("desk", {})),
        "stages": [
            {"name": s.name, "inputs": list(s.inputs), "conditions": list(s.conditions)} for s in study.stages
        ],
        "conditions": [
            {"name": c.name, "values": list(c.values), "tuned_at": c.tuned_at} for c in study.conditions
        ],
        "tuning_seeds": study.tuning_seeds,
        "looks": [{"n": n, "alpha": alpha} for n, alpha in study.looks],
        "data": list(study.data_at("desk")),
        "claims": [_declared(study, claim) for claim in study.claims],
    }


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings to JSON; a value without a JSON form is replaced by its name or type."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _settings(value)
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (int, float, str, bool, type(None))):
            return value
        return getattr(value, "__qualname__", type(value).__qualname__)

    return {str(name): plain(value) for name, value in settings.items()}


def _axis(axis: Axis) -> dict[str, Any]:
    low, high = (limit if math.isfinite(limit) else None for limit in (axis.low, axis.high))
    return {"name": axis.name, "values": list(axis.values), "low": low, "high": high}


def _declared(study: Study, claim: AnyClaim) -> dict[str, Any]:
    from trueup.lab._spec import Claim, ExactClaim

    out: dict[str, Any] = {
        "name": claim.name,
        "kind": claim.kind,
        "origin": claim.origin,
        "primary": claim.primary,
        "requires": list(claim.requires),
    }
    if isinstance(claim, Claim):
        return out | {
            "min_effect": claim.min_effect,
            "controls": list(study.controls(claim)),
            "contrast": _contrast(claim.contrast),
        }
    if isinstance(claim, ExactClaim):
        instances = {name: _settings(arguments) for name, arguments in claim.instances.items()}
        return out | {"tolerance": claim.tolerance, "instances": instances}
    return out | {"at_most": claim.at_most, "rounds": claim.rounds}


def _contrast(contrast: Contrast) -> dict[str, Any]:
    return {
        "test": contrast.test,
        "scale": contrast.scale,
        "arms": list(contrast.arms),
        "metrics": list(contrast.metrics),
        "conditions": list(contrast.conditions),
        "at": dict(contrast.at),
        "links": [_contrast(link) for link in contrast.links],
    }


# -- comparing -----------------------------------------------------------------------------------------------


def changed(study: Study, document: Mapping[str, Any]) -> str | None:
    """Describe how a study differs from what was published; `None` if its plan and contrasts are the same.

    The contrasts are computed anew from the stored numbers.
    """
    seeds = [seed for look in document["looks"] for seed in look["seeds"]]
    return difference(document["plan"], plan(study)) or difference(
        _numbers(document["measured"], seeds), _numbers(measured(study, document), seeds)
    )


def _numbers(measured: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the numbers of measured claims, without the texts on edges and failures."""

    def of(contrast: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        d = contrast["d"] if contrast else []
        steps = [[{"seed": seed, "d": x} for seed, x in zip(seeds, values, strict=False)] for values in d]
        return [{"name": "contrast" if i == 0 else f"step {i}", "of": step} for i, step in enumerate(steps)]

    return [
        {
            "name": claim["name"],
            "contrast": of(claim["contrast"]),
            "controls": [{"arm": arm, "contrast": of(control)} for arm, control in claim["controls"].items()],
            **{part: claim[part] for part in ("deviations", "negative", "rounds")},
        }
        for claim in measured
    ]


def difference(published: Any, now: Any) -> str | None:
    """Describe the first place where two plain-JSON values differ; `None` if they are equal.

    >>> difference({"claims": [{"name": "better", "min_effect": 0.002}]},
    ...            {"claims": [{"name": "better", "min_effect": 0.001}]})
    'min_effect of better: 0.002 published, 0.001 now'
    """
    return next(_differences(_plain(published), _plain(now), ()), None)


def _plain(value: object) -> Any:
    """Return the value after a JSON round trip: tuples become lists."""
    return json.loads(json.dumps(value))


def _differences(published: Any, now: Any, path: tuple[str, ...]) -> Iterator[str]:
    if published == now:
        return
    if isinstance(published, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*published, *now]):
            if name not in now:
                yield f"{_place((*path, name))}: published, but not there now"
            elif name not in published:
                yield f"{_place((*path, name))}: there now, but not published"
            else:
                yield from _differences(published[name], now[name], (*path, name))
        return
    if isinstance(published, list) and isinstance(now, list):
        before, after = _by_label(published), _by_label(now)
        if before is not None and after is not None:
            if list(before) != list(after) and set(before) == set(after):
                yield f"order of {_place(path)}: {list(before)} published, {list(after)} now"
            # a name says where: "min_effect of better", not "min_effect of better of claims"
            yield from _differences(before, after, path[:-1])
            return
    yield f"{_place(path)}: {json.dumps(published)} published, {json.dumps(now)} now"


def _by_label(items: Sequence[Any]) -> dict[str, Any] | None:
    """Index a list by its items' names; `None` if one has none, or two have the same."""
    named = {_label(item): item for item in items}
    return None if None in named or len(named) < len(items) else named  # type: ignore[return-value]


def _label(item: Any) -> str | None:
    """Return the name of a list item, if it has one."""
    if isinstance(item, dict):
        for name in ("name", "arm", "text"):
            if name in item:
                return str(item[name])
        if "seed" in item:
            return f"seed {item['seed']}"
    return None


def _place(path: Sequence[str]) -> str:
    return " of ".join(reversed(path)) or "everything"
