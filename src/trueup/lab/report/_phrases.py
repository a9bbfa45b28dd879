"""Phrases of the report: effects, intervals, settings, and the words for controls, tests and fidelity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trueup.lab import _sentences as sentences
from trueup.lab._formatting import number, rounded

CONTROLS: dict[str, str] = {
    "survives": "survives its control",
    "explained": "explained by its control",
    "undecided": "control undecided",
}

FIDELITY: dict[str, str] = {
    "official": "equal to the values of the official code",
    "independent": "equal to another trusted implementation",
    "derived": "equal to a closed form or brute force of the paper's equations",
    "reconstructed": "the paper's equations could not be confirmed",
}

ORIGIN: dict[str, str] = {
    "paper": "claimed by the paper",
    "interpretation": "our reading of the paper",
    "post_hoc": "added after seeing the data",
}

TESTS: dict[str, str] = {
    "superiority": "superiority: the gain exceeds the minimum effect",
    "equivalence": "equivalence: the difference stays within the minimum effect, either way",
    "non-inferiority": "non-inferiority: not worse by as much as the minimum effect",
}


def displayed(value: float | None, claim: Mapping[str, Any]) -> float | None:
    """Convert a contrast to the unit people read: a log ratio to a ratio, a fraction to points."""
    if value is None:
        return None
    if claim.get("kind") == "cost":  # the contrast is log(bound x peer / ours); people want ours / peer
        return float(claim["at_most"]) * math.exp(min(-value, 700.0))
    if is_ratio(claim):
        return math.exp(min(value, 700.0))
    return value * float(claim.get("scale_factor") or 1)


def is_ratio(claim: Mapping[str, Any]) -> bool:
    """Return whether the claim's values are shown as multiples."""
    return claim.get("scale") == "log" or claim.get("kind") == "cost"


def interval(claim: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Return the mean and the lower and upper end of the interval, in the unit people read."""
    mean, low, high = (displayed(claim.get(key), claim) for key in ("mean", "low", "high"))
    return (mean, high, low) if claim.get("kind") == "cost" else (mean, low, high)


def effect(claim: Mapping[str, Any]) -> dict[str, str] | None:
    """Format a claim's mean, interval and unit; `None` if nothing was measured."""
    mean, low, high = interval(claim)
    if mean is None:
        return None
    if claim.get("scale") == "log" and claim.get("higher") is not None:
        size, ends, factor = sentences.ratio(
            claim["mean"], claim.get("low"), claim.get("high"), higher=claim["higher"]
        )
        beside = [ends, f"×{factor}" if factor else ""]
        return {"mean": size, "interval": "; ".join(filter(None, beside)), "unit": ""}
    texts = rounded(mean, low, high)
    ratio = is_ratio(claim)
    sign = "×" if ratio else "+" if mean > 0 else ""
    return {
        "mean": sign + texts[0],
        "interval": "" if low is None else f"{texts[1]} to {texts[2]}",
        "unit": "" if ratio else str(claim.get("unit") or ""),
    }


def margin_text(claim: Mapping[str, Any]) -> str:
    """Format the minimum effect, or the bound of a cost claim, in the unit people read."""
    if claim.get("margin") is None:
        return "–"
    text, unit = number(displayed(claim["margin"], claim)), str(claim.get("unit") or "")
    if is_ratio(claim):
        return f"×{text}"
    return f"{text} {'point' if (text, unit) == ('1', 'points') else unit}".strip()


def worst_deviation(instances: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the largest deviation of an exact claim's instances; NaN counts as infinite."""
    values = [_deviation(i) for i in instances]
    return max(values) if values else None


def _deviation(instance: Mapping[str, Any]) -> float:
    value = instance.get("deviation")
    return math.inf if value is None or math.isnan(float(value)) else float(value)


def exact_summary(claim: Mapping[str, Any]) -> str:
    """Sum up an exact claim: "12 of 12 instances hold; worst deviation 3e-7, tolerance 1e-5"."""
    instances = claim.get("instances") or []
    holding = sum(bool(i.get("holds")) for i in instances)
    if not instances:
        return ""
    worst = number(worst_deviation(instances), 2)
    tolerance = number(claim.get("tolerance"), 2)
    return f"{holding} of {len(instances)} instances hold; worst deviation {worst}, tolerance {tolerance}"


def pairs(settings: Mapping[str, Any] | None) -> str:
    """Format settings: `{"lr": 0.1, "batch": 32}` as "lr 0.1, batch 32"."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in (settings or {}).items())


def value_text(value: Any) -> str:
    """Format the value of a setting."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return number(float(value), 6)
