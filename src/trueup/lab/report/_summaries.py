"""Summaries of outcomes for the pages: per-seed values, intervals, the arms' table, the ledger's rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from trueup.lab import _sentences as sentences
from trueup.lab._formatting import fixed, rounded
from trueup.lab.ledger import FALSE_WIN
from trueup.lab.report._phrases import value_text

Doc: TypeAlias = Mapping[str, Any]

LEVEL = 0.95  # of an arm's own interval; a claim's interval has the level of its look

EMPTY: dict[str, Any] = {
    "question": "",
    "scale": "desk",
    "protocol": 1,
    "target": "",
    "tested_on": "",
    "paper_setup": "",
    "scope_sentence": "",
    "published": False,
    "seeds_note": "",
    "protocols": [],
    "verdict": {"outcome": "none", "control": None, "sentence": "", "details": []},
    "claims": [],
    "metrics": [],
    "conditions": [],
    "arms": [],
    "cells": [],
    "series": [],
    "failures": [],
    "tuning": [],
    "figures": [],
    "looks": [],
    "cost": {},
    "provenance": {},
}


def complete(outcome: Doc) -> dict[str, Any]:
    """Fill every part that an outcome lacks with an empty value (a ledger entry has no cells)."""
    filled = EMPTY | {k: v for k, v in outcome.items() if v is not None}
    filled["scope_sentence"] = filled["scope_sentence"] or sentences.scope_sentence(
        filled["tested_on"], filled["paper_setup"]
    )
    return filled | {"verdict": EMPTY["verdict"] | dict(filled["verdict"])}


@dataclass(frozen=True)
class SeedValue:
    """A metric of one arm and seed, averaged over the conditions left open."""

    seed: Any
    value: float
    diverged: bool


def per_seed(outcome: Doc, arm: str, metric: str, condition: Doc | None = None) -> list[SeedValue]:
    """Return a metric's value for every seed of an arm; failed cells have none and are shown elsewhere."""
    found: dict[Any, list[tuple[float, bool]]] = {}
    for cell in outcome["cells"]:
        at = cell.get("condition") or {}
        value = (cell.get("numbers") or {}).get(metric)
        if cell["arm"] != arm or value is None or cell.get("status") == "failed":
            continue
        if all(at.get(k) == v for k, v in (condition or {}).items()):
            found.setdefault(cell["seed"], []).append((float(value), cell.get("status") == "diverged"))
    return [
        SeedValue(seed, float(np.mean([v for v, _ in cells])), any(d for _, d in cells))
        for seed, cells in found.items()
    ]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its t interval; no interval for a single seed."""

    mean: float
    low: float | None
    high: float | None


def intervals(samples: Sequence[Sequence[float]]) -> list[Interval]:
    """Compute mean and 95 % t interval of each sample, in one call per sample size."""
    found: list[Interval | None] = [None] * len(samples)
    sizes = {len(s) for s in samples}
    for size in sizes:
        at = [i for i, s in enumerate(samples) if len(s) == size]
        x = np.array([samples[i] for i in at], dtype=float)
        means = x.mean(axis=1)
        steady = np.ptp(x, axis=1) == 0
        if size > 1 and not steady.all():
            inner = stats.ttest_1samp(x[~steady], 0, axis=1).confidence_interval(LEVEL)
            low, high = means.copy(), means.copy()
            low[~steady], high[~steady] = inner.low, inner.high
        else:
            low = high = means
        for k, i in enumerate(at):
            one = size == 1
            found[i] = Interval(
                float(means[k]), None if one else float(low[k]), None if one else float(high[k])
            )
    return [interval for interval in found if interval is not None]


def condition_text(condition: Doc) -> str:
    """Format a condition: `{"batch": 32}` as "batch 32"."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in condition.items())


def condition_combinations(outcome: Doc) -> list[dict[str, Any]]:
    """List every combination of conditions that has a cell, in the order of the cells."""
    if not outcome.get("conditions"):
        return [{}]
    found: dict[str, dict[str, Any]] = {}
    for cell in outcome.get("cells") or []:
        condition = dict(cell.get("condition") or {})
        found.setdefault(repr(sorted(condition.items())), condition)
    return list(found.values()) or [{}]


def arms_table(outcome: Doc) -> list[dict[str, Any]]:
    """Return one row per arm and condition: seeds, failures, settings, each metric with its interval."""
    groups: dict[tuple[str, str], list[Doc]] = {}
    for cell in outcome["cells"]:
        key = (cell["arm"], repr(list((cell.get("condition") or {}).items())))
        groups.setdefault(key, []).append(cell)
    roles = {arm["name"]: arm for arm in outcome["arms"]}
    order = {name: i for i, name in enumerate(roles)}
    keys = sorted(groups, key=lambda k: order.get(k[0], len(order)))
    factors = {m["name"]: float(m.get("scale_factor") or 1) for m in outcome["metrics"]}
    samples: list[list[float]] = []
    places: list[tuple[tuple[str, str], str]] = []
    for key in keys:
        for name, factor in factors.items():
            values = [
                float(c["numbers"][name]) * factor
                for c in groups[key]
                if c.get("status") != "failed" and (c.get("numbers") or {}).get(name) is not None
            ]
            if values:
                samples.append(values)
                places.append((key, name))
    shown = dict(zip(places, intervals(samples), strict=True))
    decimals = {
        name: _decimals([i for (_, metric), i in shown.items() if metric == name]) for name in factors
    }
    rows = []
    for key in keys:
        cells = groups[key]
        rows.append(
            {
                "arm": key[0],
                "role": roles.get(key[0], {}).get("role", ""),
                "condition": cells[0].get("condition") or {},
                "hyper": _common(cells),
                "seeds": len({c["seed"] for c in cells}),
                "diverged": sum(c.get("status") == "diverged" for c in cells),
                "failed": sum(c.get("status") == "failed" for c in cells),
                "values": {
                    name: _texts(shown[(key, name)], decimals[name])
                    for name in factors
                    if (key, name) in shown
                },
            }
        )
    return rows


def _decimals(column: Sequence[Interval]) -> int | None:
    """Choose decimals that show two digits of a column's narrowest interval; `None` if none fits all."""
    widths = [i.high - i.low for i in column if i.low is not None and i.high is not None and i.high > i.low]
    decimals = 1 - math.floor(math.log10(min(widths))) if widths else None
    return max(0, decimals) if decimals is not None and decimals <= 5 else None


def _texts(interval: Interval, decimals: int | None) -> tuple[str, str, str]:
    """Format a mean and its interval."""
    values = (interval.mean, interval.low, interval.high)
    if decimals is None:
        return rounded(*values)
    mean, low, high = (fixed(v, decimals) for v in values)
    return mean, low, high


def _common(cells: Sequence[Doc]) -> dict[str, Any]:
    """Return the hyperparameters that all of these cells share."""
    first = dict(cells[0].get("hyper") or {})
    return {k: v for k, v in first.items() if all((c.get("hyper") or {}).get(k) == v for c in cells)}


def ledger_rows(
    outcomes: Mapping[str, Doc],
    papers: Sequence[Doc],
    ledger: Mapping[str, Doc],
    q: Mapping[tuple[str, str], float],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the catalogue's papers, and those of other studies.

    Args:
        outcomes: slug -> the outcome on its page.
        papers: the catalogue.
        ledger: slug -> published entry, shown for a paper that was not run here.
        q: (slug, claim) -> false-discovery q-value among the published claims.
    """
    known = [_row(paper, outcomes.get(paper["slug"]), ledger.get(paper["slug"]), q) for paper in papers]
    slugs = {paper["slug"] for paper in papers}
    own = [
        _row({"slug": slug, "title": slug, "problem": outcome.get("question", "")}, outcome, None, {})
        for slug, outcome in outcomes.items()
        if slug not in slugs
    ]
    return known, own


def _row(
    paper: Doc, outcome: Doc | None, entry: Doc | None, q: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    """Make a row: what was run here is shown, unless it is exploratory and a verdict is published."""
    ran = outcome is not None or entry is not None
    published_here = (
        outcome is not None and bool(outcome.get("published")) and outcome.get("scale") != "smoke"
    )
    from_entry = entry is not None and not published_here
    shown = complete((entry if from_entry else outcome) or {})
    state = paper.get("state") or ""
    return dict(paper) | {
        "question": shown["question"],
        "scale": shown["scale"] if ran else "",
        "protocols": max(len(shown["protocols"]), 1) if ran else 0,
        "outcome": shown["verdict"]["outcome"] if ran else "none",
        "control": shown["verdict"]["control"],
        "claims": [
            dict(c) | {"q": q.get((paper["slug"], c["name"]), c.get("q"))}
            for c in shown["claims"]
            if c.get("primary")
        ],
        "stale": (entry or {}).get("standing") == "stale",
        "certified": (entry or {}).get("standing") == "certified",
        "exploratory": ran and not from_entry and not published_here,
        "source": "ledger" if from_entry else "run" if outcome is not None else "",
        "published": entry and complete(entry)["verdict"]["outcome"],
        "anchors": not from_entry or outcome is None,  # whether the study's page has this row's claims
        "state": state,
        "page": f"{paper['slug']}.html" if ran or state == "available" else "",
    }


def head(rows: Sequence[Doc]) -> dict[str, Any]:
    """Count the verdicts of each kind, and the false wins to expect, for the ledger's head."""
    primary = [claim for row in rows for claim in row["claims"]]
    # an exact claim cannot be won by chance
    statistical = [claim for claim in primary if claim.get("kind", "statistical") == "statistical"]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["outcome"]] = counts.get(row["outcome"], 0) + 1
    return {
        "counts": counts,
        "statistical": len(statistical),
        "false_wins": FALSE_WIN * len(statistical),
        "stale": sum(row["stale"] for row in rows),
    }
