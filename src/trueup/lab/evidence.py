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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.lab.errors import StudyError
from trueup.whole_file import write_whole

if TYPE_CHECKING:
    from trueup.lab.cell import Cell, CellResult
    from trueup.lab.spec import Study

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


# -- what was declared, and what was judged ------------------------------------------------------------------


def plan(study: Study) -> dict[str, Any]:
    """Everything that a study declares and that decides its verdict, as plain JSON."""
    return {
        "protocol": study.protocol,
        "metrics": [{"name": m.name, "higher": m.higher, "worst": m.worst} for m in study.metrics],
        "arms": [{"name": a.name, "role": a.role} for a in study.arms],
        "conditions": [
            {"name": c.name, "values": list(c.values), "tuned_at": c.tuned_at} for c in study.conditions
        ],
        "tune": [{"name": a.name, "values": list(a.values)} for a in study.tune],
        "looks": [list(look) for look in study.looks],
        "tuning_seeds": study.tuning_seeds,
        "claims": [
            {
                "name": c.name,
                "kind": c.kind,
                "primary": c.primary,
                "requires": list(c.requires),
                "contrast": getattr(getattr(c, "contrast", None), "text", None),
                "min_effect": getattr(c, "min_effect", None),
                "controls": list(study.controls(c)) if c.kind == "statistical" else None,  # type: ignore[arg-type]
                "instances": list(getattr(c, "instances", ())),
                "tolerance": getattr(c, "tolerance", None),
                "at_most": getattr(c, "at_most", None),
            }
            for c in study.claims
        ],
    }


def contrasts(study: Study, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The contrasts of every statistical claim, its links and its controls, from the evidence's cells."""
    from trueup.lab.contrasts import Contrast, SeedCells

    higher = {m.name: m.higher for m in study.metrics}
    by_seed: dict[int, list[Any]] = {}
    for record in document["cells"]:
        if record["kind"] == "report":
            row = (record["arm"], record["condition"], record["numbers"], record["series"])
            by_seed.setdefault(record["seed"], []).append(row)

    def of(contrast: Contrast) -> list[dict[str, Any]]:
        return [
            {"seed": seed, "d": float(contrast.value(SeedCells(cells, higher)))}
            for seed, cells in sorted(by_seed.items())
        ]

    out = []
    for claim in study.statistical:
        record = {
            "name": claim.name,
            "d": of(claim.contrast),
            "links": [{"text": link.text, "d": of(link)} for link in claim.contrast.links],
            "controls": [],
        }
        if claim.contrast.against is not None:
            record["controls"] = [
                {"arm": arm, "d": of(claim.contrast.against(arm))} for arm in study.controls(claim)
            ]
        out.append(record)
    return out
