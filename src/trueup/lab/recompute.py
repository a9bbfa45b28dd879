"""Compute given cells of a study again: `python -m trueup.lab.recompute REQUEST.json RESPONSE.json`.

`certify` runs this module twice, in a checkout of the published commit and in the present one, and compares
the two responses. It is therefore an interface between commits: fields may be added to it, but none may
change its meaning.

The request is an object with

- `slug` of a paper, or `file`, the path of a user's own study;
- `scale`, `threads`, `device`, `workers`;
- `cells`: objects with `kind`, `arm`, `condition`, `hyper`, `seed` and `instance`, as in the evidence.

The response is an object with

- `package`: the folder of the trueup that computed the cells; `fingerprint`: that of the study's code;
- `environment`: what decides the last bits;
- `cells`: in the order of the request, the fields of each and `status`, `numbers`, `series` (of cost claims),
  `sha256` of everything that the cell returned, `error` and `seconds`.

For every finished cell, the module prints a line: `cell` or `stage`, the status, and a description. If
nothing can be run, it prints the reason to standard error and exits with code 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from trueup import papers
from trueup._atomic_write import atomic_write
from trueup.lab import _evidence as evidence
from trueup.lab import _runner as runner
from trueup.lab._cell import Cell, CellResult
from trueup.lab._engine import EngineError, LocalEngine, StudyRef
from trueup.lab._fingerprint import verdict_fingerprint
from trueup.lab._runner import Options


class _Lines:
    """Progress as lines for a program to read."""

    def phase(self, name: str, total: int, reused: int) -> None:
        pass

    def done(self, cell: Cell, result: CellResult) -> None:
        kind = "stage" if cell.kind == "stage" else "cell"
        print(kind, result.status, " ".join(str(cell).split()), flush=True)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the response to a request."""
    ref = (
        StudyRef("file", request["file"])
        if "file" in request
        else StudyRef("module", papers.get(request["slug"]).study)
    )
    study = ref.load()
    origin = {"slug": study.slug, "scale": request["scale"], "protocol": study.protocol}
    cells = [evidence.cell_of(origin, record) for record in request["cells"]]
    options = Options(request["scale"], device=request["device"], threads=request["threads"])
    with LocalEngine(request["workers"]) as engine:
        results = runner.recompute(ref, cells, engine, options, _Lines())
    environments = [r.environment for r in results.values() if r.environment]
    return {
        "package": str(Path(__file__).parents[1]),
        "fingerprint": verdict_fingerprint(
            ref, [data["sha256"] for data in runner.data_records(study.data_at(request["scale"]))]
        ),
        "environment": environments[0] if environments else {},
        "cells": [_record(cell, results[cell]) for cell in cells],
    }


def _record(cell: Cell, result: CellResult) -> dict[str, Any]:
    series = result.series if cell.kind == "cost" else ()
    record = evidence.cell_record(cell, result, series)
    return {**record, "error": result.error, "seconds": result.seconds}


def main(request: str, response: str) -> None:
    """Answer the request in one file by a response in another, which is written atomically."""
    document = answer(json.loads(Path(request).read_text(encoding="utf-8")))
    atomic_write(Path(response), lambda file: file.write(json.dumps(document).encode()))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (EngineError, FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
