"""Compare a replication with what was published: effects with their intervals, not outcomes.

Two runs of one study may have different outcomes at almost the same effect, and the same outcome at different
effects. So the mean of every claim, and of every control, is compared with the published one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95  # of all comparisons together


def compare_effects(
    published: Sequence[Mapping[str, Any]], replicated: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return one row per claim, and per control of both runs: the two effects, and whether they agree.

    Effects agree if the interval of their difference (Welch's t, unequal variances) contains 0. A Bonferroni
    correction gives all intervals together 95 % confidence. Claims without seeds (exact, cost) agree if their
    outcomes are the same. A claim or control that the replication lacks does not agree.

    Args:
        published, replicated: claims' documents, with every seed's contrast in `d`.
    """
    after = {claim["name"]: claim for claim in replicated}
    pairs: list[tuple[Mapping[str, Any], str, Mapping[str, Any], Mapping[str, Any]]] = []
    for before in published:
        now = after.get(before["name"], {})
        pairs.append((before, "", before, now))
        pairs += [
            (before, control["arm"], _control(before, control["arm"]), _control(now, control["arm"]))
            for control in before.get("controls") or ()
        ]
    level = 1 - (1 - LEVEL) / max(1, sum(_has_spread(a) and _has_spread(b) for _, _, a, b in pairs))
    return [
        {
            "claim": claim["name"],
            "control": arm,
            "primary": claim["primary"],
            "published": _effect(before),
            "replicated": _effect(now),
            **_difference(before, now, level, statistical=claim["kind"] == "statistical"),
        }
        for claim, arm, before, now in pairs
    ]


def _control(claim: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
    """Return the claim's contrast with a control, whether or not the control was judged."""
    asked = {control["arm"]: control for control in claim.get("controls") or ()}
    measured = {control["arm"]: control for control in claim.get("against") or ()}
    return {**measured.get(arm, {}), **asked.get(arm, {})}


def agrees(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the effects of all primary claims and of their controls agree."""
    return bool(rows) and all(row["agrees"] for row in rows if row["primary"])


def replication_event(
    outcome: Mapping[str, Any],
    protocol: int,
    attempt: int,
    rows: Sequence[Mapping[str, Any]],
    agreed: bool | None,
) -> dict[str, Any]:
    """Return the history event that records a replication; `agreed` is None if cells failed."""
    return {
        "event": "replicated",
        "date": outcome["provenance"]["date"],
        "protocol": protocol,
        "fingerprint": outcome["provenance"]["fingerprint"],
        "attempt": attempt,
        "verdict": outcome["verdict"]["outcome"],
        "agrees": agreed,
        "effects": rows,
    }


def _effect(judged: Mapping[str, Any]) -> dict[str, Any]:
    effect = {key: judged.get(key) for key in ("outcome", "mean", "low", "high", "n")}
    if effect["mean"] is None and (d := _contrasts(judged)):
        effect |= {"mean": float(np.mean(d)), "n": len(d)}
    return effect | ({"survives": judged["survives"]} if judged.get("survives") else {})


def _contrasts(judged: Mapping[str, Any]) -> list[float]:
    return [item["d"] for item in judged.get("d") or ()]


def _has_spread(judged: Mapping[str, Any]) -> bool:
    return len(_contrasts(judged)) > 1


def _difference(
    before: Mapping[str, Any], now: Mapping[str, Any], level: float, *, statistical: bool
) -> dict[str, Any]:
    """Return the difference of two effects, its interval, and whether that contains 0."""
    old, new = _contrasts(before), _contrasts(now)
    if not statistical or len(old) < 2 or len(new) < 2:
        same = not statistical and before["outcome"] == now.get("outcome")
        return {"difference": None, "low": None, "high": None, "level": None, "agrees": same}
    difference = float(np.mean(new) - np.mean(old))
    if np.ptp(old) == np.ptp(new) == 0:
        low = high = difference
    else:
        interval = stats.ttest_ind(new, old, equal_var=False).confidence_interval(level)
        low, high = float(interval.low), float(interval.high)
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "level": level,
        "agrees": low <= 0 <= high,
    }
