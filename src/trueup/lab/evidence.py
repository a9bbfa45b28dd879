"""Evidence: what a published verdict rests on, cell by cell, as a file that ships with the package.

A file holds every cell's key, numbers and a sha256 of all that it returned, and for every claim and seed the
contrast that was judged. From it a verdict is judged again without training anything, and a later version of
the code is held against what the published one computed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.lab.errors import StudyError
from trueup.whole_file import write_whole

if TYPE_CHECKING:
    from trueup.lab.cell import Cell, CellResult
    from trueup.lab.contrasts import Contrast
    from trueup.lab.spec import AnyClaim, Axis, Study

FORMAT = 1
FOLDER = Path(__file__).parent.parent / "evidence"


class EvidenceError(StudyError):
    """Evidence that is missing, damaged, or of a newer trueup."""


def read(slug: str, folder: Path | None = None) -> dict[str, Any]:
    """The evidence of a published verdict.

    Raises:
        EvidenceError: if there is none, or it cannot be read.
    """
    path = (folder or FOLDER) / f"{slug}.json.gz"
    if not path.exists():
        raise EvidenceError(f"no evidence of {slug} ships with this trueup: publish its verdict again")
    try:
        document: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        found = document["format"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise EvidenceError(f"{path} is damaged: {error}; restore it from the repository") from None
    if found > FORMAT:
        raise EvidenceError(f"{path} is of format {found}, this trueup reads {FORMAT}: upgrade trueup")
    return document


def write(document: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write the evidence of a study; equal evidence makes equal files."""
    path = (folder or FOLDER) / f"{document['slug']}.json.gz"
    text = json.dumps({"format": FORMAT, **document}, separators=(",", ":"), ensure_ascii=False)
    data = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    write_whole(path, lambda file: file.write(data))
    return path


# -- cells ---------------------------------------------------------------------------------------------------


def digest(result: CellResult) -> str:
    """The sha256 of everything a cell returned: status, numbers, series and arrays, to the last bit.

    >>> from trueup.lab.cell import CellResult
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
        sha.update(array.tobytes())  # in C order, however it lies in memory
    return sha.hexdigest()


def cell_record(cell: Cell, result: CellResult, series: Iterable[str] = ()) -> dict[str, Any]:
    """What the evidence keeps of a cell; of its series those that a contrast reads."""
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
    """The cell that a record of this evidence is of."""
    from trueup.lab.cell import Cell, items

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


# -- what was declared ---------------------------------------------------------------------------------------


def plan(study: Study) -> dict[str, Any]:
    """Everything a study declares that its verdict rests on, as plain JSON; words for people are left out.

    Two studies of equal plans run the same cells and judge the same claims, as far as can be seen without
    computing a contrast.
    """
    return {
        "slug": study.slug,
        "protocol": study.protocol,
        "metrics": [{"name": m.name, "higher": m.higher, "worst": m.worst} for m in study.metrics],
        "arms": [
            {"name": arm.name, "role": arm.role, "tune": [_axis(axis) for axis in study.axes(arm)]}
            for arm in study.arms
        ],
        "conditions": [
            {"name": c.name, "values": list(c.values), "tuned_at": c.tuned_at} for c in study.conditions
        ],
        "tuning_seeds": study.tuning_seeds,
        "looks": [{"n": n, "alpha": alpha} for n, alpha in study.looks],
        "data": list(study.data_at("desk")),
        "claims": [_declared(study, claim) for claim in study.claims],
    }


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Where two plans differ, in words: "claims, better, min_effect: 0.002 published, 0.001 now".

    >>> differences({"looks": [{"n": 10}], "data": ["digits"]}, {"looks": [{"n": 12}], "data": ["digits"]})
    ['looks, 1, n: 10 published, 12 now']
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [
            line
            for key in keys
            for line in differences(before.get(key), now.get(key), f"{where}, {key}" if where else str(key))
        ]
    if isinstance(before, list) and isinstance(now, list):
        olds, news = _by_name(before), _by_name(now)
        if olds.keys() == news.keys():
            return differences(olds, news, where)
    if before == now:
        return []
    return [f"{where}: {_short(before)} published, {_short(now)} now"]


def _by_name(items: Sequence[Any]) -> dict[str, Any]:
    return {
        str(item["name"]) if isinstance(item, Mapping) and "name" in item else str(i): item
        for i, item in enumerate(items, start=1)
    }


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value):
        value = [item["name"] for item in value]
    return "none" if value is None else json.dumps(value)


def _axis(axis: Axis) -> dict[str, Any]:
    low, high = (limit if math.isfinite(limit) else None for limit in (axis.low, axis.high))
    return {"name": axis.name, "values": list(axis.values), "low": low, "high": high}


def _declared(study: Study, claim: AnyClaim) -> dict[str, Any]:
    from trueup.lab.spec import Claim, ExactClaim

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
        return out | {"tolerance": claim.tolerance, "instances": sorted(claim.instances)}
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
