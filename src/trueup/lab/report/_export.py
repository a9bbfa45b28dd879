"""The report's numbers as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trueup.lab.report._phrases import interval, is_ratio


def finite(value: Any) -> Any:
    """Replace every NaN and infinity by `None`: strict JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def _strict(document: Any, *, ensure_ascii: bool) -> str:
    def dumps(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, allow_nan=False, separators=(",", ":"))

    try:
        return dumps(document)
    except ValueError:  # NaN is rare: most documents need no copy
        return dumps(finite(document))


def to_json(document: Any) -> str:
    """Return strict JSON for a file."""
    # without indentation, Python encodes in C, ten times as fast
    return _strict(document, ensure_ascii=False) + "\n"


def script_json(document: Any) -> str:
    """Return strict JSON that is safe inside a `<script>` element, whatever the strings contain.

    >>> script_json({"name": "</script>&"})
    '{"name":"\\\\u003c/script\\\\u003e\\\\u0026"}'
    """
    # ensure_ascii also writes U+2028 and U+2029, which end a line in JavaScript, as escapes
    text = _strict(document, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def cells_csv(outcome: Mapping[str, Any]) -> str:
    """Format the report cells, one row each: arm, conditions, hyperparameters, seed, status, metrics."""
    cells: Sequence[Mapping[str, Any]] = outcome.get("cells") or []
    names = {p: _keys(cell.get(p) or {} for cell in cells) for p in ("condition", "hyper", "numbers")}
    header = ["arm", *names["condition"], *names["hyper"], "seed", "status", *names["numbers"], "seconds"]

    def row(cell: Mapping[str, Any]) -> list[Any]:
        found = {p: [(cell.get(p) or {}).get(name) for name in names[p]] for p in names}
        settings, outcome = [*found["condition"], *found["hyper"]], [cell.get("seed"), cell.get("status")]
        return [cell.get("arm"), *settings, *outcome, *found["numbers"], cell.get("seconds")]

    return _csv(header, map(row, cells))


LEDGER_COLUMNS = (
    "slug", "title", "year", "arxiv", "area", "state", "fidelity", "scale", "protocols", "verdict",
    "control", "stale", "certified", "claim", "statement", "primary", "kind", "outcome", "effect", "low",
    "high", "level", "unit", "n", "q",
)  # fmt: skip

CLAIM_FIELDS = ("statement", "primary", "kind", "outcome", "level", "n", "q")


def ledger_records(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the ledger as one record per claim; a paper without claims has one without a claim."""
    records: list[dict[str, Any]] = []
    for row in rows:
        paper = {
            k: row.get(k) for k in ("slug", "title", "year", "arxiv", "area", "state", "fidelity", "scale")
        }
        paper |= {
            "protocols": row["protocols"],
            "verdict": row["outcome"],
            "control": row["control"],
            "stale": row["stale"],
            "certified": row["certified"],
        }
        for claim in row["claims"] or [{}]:
            mean, low, high = interval(claim) if claim else (None, None, None)
            records.append(
                paper
                | {k: claim.get(k) for k in CLAIM_FIELDS}
                | {"claim": claim.get("name"), "effect": mean, "low": low, "high": high}
                | {"unit": "ratio" if is_ratio(claim) else claim.get("unit")}
            )
    return records


def ledger_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the ledger with one row per claim."""
    records = ledger_records(rows)
    return _csv(LEDGER_COLUMNS, ([record.get(c) for c in LEDGER_COLUMNS] for record in records))


def _keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """List every key, in the order first seen."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_inert(name) for name in header])
    writer.writerows([["" if v is None else _inert(v) for v in row] for row in rows])
    return out.getvalue()


def _inert(value: Any) -> Any:
    # a spreadsheet would run text that begins like a formula; a leading apostrophe keeps it text
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
