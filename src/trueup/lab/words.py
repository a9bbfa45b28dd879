"""Judgements as sentences: what came out, by how much, how sure, and on what.

Every function takes plain values or a claim of the outcome document (a dictionary) and returns a string; no
number is computed here that the verdict rule has not produced. Intervals carry their true level, and
"contradicted" always carries the scale, because a small study speaks for small studies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from trueup.lab.numerals import number, percent, plural, rounded
from trueup.lab.outcomes import OUTCOMES, outcome_words

ClaimDocument: TypeAlias = Mapping[str, Any]


def effect(
    mean: float,
    low: float | None,
    high: float | None,
    *,
    scale: str = "difference",
    unit: str = "",
    scale_factor: float = 1,
    level: float,
    n: int,
    margin: float,
    test: str = "superiority",
) -> str:
    """The size of a difference in words, its interval, the seeds and what was asked for.

    Args:
        mean, low, high: of the contrast; ``low`` and ``high`` are ``None`` where there is no interval. A
            negative mean is told the other way round ("is behind by 0.3"): mean and interval change sign,
            except for an equivalence, which has no direction.
        scale: ``difference``, or ``log`` (shown as per cent below a factor of two, else as a factor), or
            ``correlation`` (shown as it is).
        unit, scale_factor: shown after and multiplied into a difference; ``"%"`` means percentage points.
        level: the interval's confidence level, 1 - 2 alpha.
        margin: minimum effect, on the contrast's scale.

    >>> effect(0.006, 0.003, 0.009, unit="%", scale_factor=100, level=0.95, n=10, margin=0.002)
    'by 0.6 points (95 % interval 0.3 to 0.9, 10 seeds; 0.2 was asked for)'
    >>> effect(-0.006, -0.009, -0.003, unit="%", scale_factor=100, level=0.95, n=10, margin=0.002)
    'by 0.6 points (95 % interval 0.3 to 0.9, 10 seeds; a gain of 0.2 was asked for)'
    """
    flip = mean < 0 and test != "equivalence" and scale != "correlation"
    if flip:
        mean, low, high = -mean, _negative(high), _negative(low)
    wish = {
        "superiority": "a gain of {} was asked for" if flip else "{} was asked for",
        "equivalence": "at most {} either way was asked for",
        "non-inferiority": "at most {} behind was asked for",
    }[test]
    return _measured(mean, low, high, margin, wish, scale, unit, scale_factor, level, n)


def amount(value: float, *, scale: str = "difference", unit: str = "", scale_factor: float = 1) -> str:
    """One effect in the unit that people read.

    >>> amount(0.0071, unit="points", scale_factor=100), amount(0.0953, scale="log"), amount(0.3)
    ('0.71 points', '10 %', '0.3')
    """
    lead, tail, (shown,) = _scaled([value], scale, unit, scale_factor)
    return f"{lead.removeprefix('by ')}{number(shown)}{tail}"


def claim_sentence(claim: ClaimDocument, scale: str) -> str:
    """One claim of an outcome document as a sentence: what was measured, then the verdict.

    >>> claim = {"kind": "exact", "statement": "Rows add up", "outcome": "reproduced", "tolerance": 1e-8,
    ...     "instances": [{"name": "a", "deviation": 4e-14, "holds": True}],
    ...     "negative_control": {"label": "raw rows", "instances": [{"deviation": 2.0, "holds": False}]}}
    >>> print(claim_sentence(claim, "desk").replace("; ", ";\\n"))
    Rows add up: holds for the one instance (largest deviation 4e-14, tolerance 1e-8);
    the negative control (raw rows) breaks it: reproduced.
    """
    return f"{body(claim)}: {ending(claim, scale)}."


def body(claim: ClaimDocument) -> str:
    """The measured half of a claim's sentence, without the verdict."""
    if claim["kind"] == "exact":
        return f"{_statement(claim)}{_exact(claim)}"
    if claim.get("mean") is None:
        return _statement(claim)
    if claim["kind"] == "cost":
        return f"{_statement(claim)}: {_cost(claim)}"
    if claim.get("links"):
        return _ordering(claim)
    pair = _pair(claim)
    if pair is None:  # a slope, a correlation, ...: told with its sign, for it has no "behind"
        arguments = _effect_arguments(claim)
        test = arguments.pop("test")
        wish = "{} was asked for" if test == "superiority" else f"{test} within {{}} was asked for"
        contrast = claim.get("contrast") or "the contrast"
        return f"{_statement(claim)}: {contrast} is {_measured(wish=wish, **arguments).removeprefix('by ')}"
    return _compared(*pair, claim, where=_measure(claim))


def ending(claim: ClaimDocument, scale: str) -> str:
    """The verdict half: the outcome, why, and what would decide it."""
    outcome, note = claim["outcome"], claim.get("note") or ""
    if claim["kind"] == "cost":
        note = {"uneven seeds": "uneven rounds"}.get(note, note)
        note = "" if outcome == "contradicted" else note
    text = outcome_words(outcome, scale) + (f": {note}" if note else "")
    if outcome == "inconclusive" and claim.get("more_seeds"):
        text += "; " + more_seeds_sentence(claim["more_seeds"])
    return text


def control_sentence(claim: ClaimDocument) -> str:
    """What the controls say of a reproduced gain; empty where none was asked."""
    controls = claim.get("controls") or []
    if claim.get("survives") is None or not controls:
        return ""
    told = "; ".join(_control(control, claim) for control in controls)
    head = {
        "survives": "The gain survives its control",
        "explained": "A control explains the gain",
        "undecided": "Whether the gain survives its control is undecided",
    }[claim["survives"]]
    return f"{head}: {told}."


def scope_sentence(tested_on: str, paper_setup: str) -> str:
    """
    >>> scope_sentence("digits with 20k parameters", "ImageNet")
    'tested on digits with 20k parameters; the paper: ImageNet'
    """
    parts = [f"tested on {tested_on}"] if tested_on else []
    parts += [f"the paper: {paper_setup}"] if paper_setup else []
    return "; ".join(parts)


def more_seeds_sentence(more: int) -> str:
    """
    >>> more_seeds_sentence(14)
    'about 14 more fresh seeds would decide an effect of this size'
    """
    return f"about {more:,} more fresh seed{'' if more == 1 else 's'} would decide an effect of this size"


def paper_sentence(outcome: str, control: str | None, claims: Sequence[ClaimDocument], scale: str) -> str:
    """The paper's verdict in one sentence: what came out, on what evidence, and what its control says.

    Args:
        outcome: of ``verdict.of_paper``; ``control``: ``survives``, ``explained``, ``undecided`` or ``None``.
        claims: all claims of the outcome document; the primary ones make the verdict.
    """
    primary = [claim for claim in claims if claim["primary"]]
    if not primary:
        return (
            "No verdict: smoke scale only shows that the study runs."
            if scale == "smoke"
            else "No verdict: no primary claim was judged."
        )
    head = outcome_words(outcome, scale)
    head = _capital(head) + ("" if outcome == "contradicted" else f" at {scale} scale")
    headline = next((c for c in primary if c["kind"] == "statistical"), primary[0])
    if outcome == "incomplete":
        headline = next(c for c in primary if c["outcome"] in ("incomplete", "invalid"))
    told = body(headline)
    if len(primary) == 1:  # the head has said the outcome
        said, why = outcome_words(headline["outcome"], scale), ending(headline, scale)
        told += "; " + rest if (rest := why.removeprefix(said).lstrip(":; ")) else ""
    else:
        head += f": {_tally(primary, scale)}. Of these, {headline['name']}"
        if headline["outcome"] != "reproduced":
            told += f": {ending(headline, scale)}"
    if control is not None:
        told += "; " + _controlled(primary, headline, control)
    return f"{head}: {told}."


def _controlled(primary: Sequence[ClaimDocument], headline: ClaimDocument, control: str) -> str:
    """What the controls made of the reproduced gains, which are named unless the sentence is on them."""
    asked = [claim for claim in primary if claim.get("survives") is not None]
    found = [claim for claim in asked if claim["survives"] == control]
    several = len(found) > 1
    gain = "the gains" if several else "the gain"
    if found != asked or headline not in found:
        gain += f" of {' and '.join(claim['name'] for claim in found)}"
    survive = "survive their controls" if several else "survives its control"
    return {
        "survives": f"{gain} {survive}",
        "explained": f"but {'controls explain' if several else 'a control explains'} {gain}",
        "undecided": f"whether {gain} {survive} is undecided",
    }[control]


# -- parts of sentences --------------------------------------------------------------------------------------


def _compared(better: str, worse: str, judged: Mapping[str, Any], *, where: str = "") -> str:
    """Two arms side by side: "AdamP beats Adam in test accuracy by 0.6 points (...)"."""
    sized = effect(**_effect_arguments(judged))
    if judged["mean"] == 0 and judged.get("test") != "equivalence":
        return f"{better} equals {worse}{where} on average, {sized.replace('by 0', 'a difference of 0', 1)}"
    if judged.get("test") == "equivalence":
        return f"{better} and {worse} differ{where} {sized}"
    return f"{better} {_relation(judged)} {worse}{where} {sized}"


def _relation(judged: Mapping[str, Any]) -> str:
    """What stands between two arms: "beats" is kept for what the rule has found."""
    if judged["mean"] < 0:
        return "is behind"
    won = judged["outcome"] == "reproduced" and judged.get("test") != "non-inferiority"
    return "beats" if won else "is ahead of"


def _ordering(claim: ClaimDocument) -> str:
    """Every step of an ordering, numbered; the interval's level and the seeds are said once, at the head."""
    measured = next((link for link in claim["links"] if link.get("mean") is not None), None)
    shared = ""
    if measured is not None:
        level = "" if measured.get("low") is None else f"{percent(measured['level'])} intervals, "
        shared = f" ({level}{plural(measured['n'], 'seed')})"
    told = []
    for step, link in enumerate(claim["links"], start=1):
        better, worse = (_label(claim, arm) for arm in link["arms"])
        if link.get("mean") is None:
            told.append(f"({step}) {better} over {worse}: {link.get('note') or link['outcome']}")
            continue
        least = -link["margin"] if link.get("test") == "non-inferiority" else link["margin"]
        values = [link["mean"], link.get("low"), link.get("high"), least]
        unit, factor = claim.get("unit") or "", claim.get("scale_factor") or 1
        _, tail, (mean, low, high, least) = _scaled(values, "difference", unit, factor)
        size, interval = _with_interval(mean, low, high)
        inside = f"{interval}; " if interval else ""
        told.append(f"({step}) {better} over {worse} {size}{tail} ({inside}{number(least)} was asked for)")
    return f"{_statement(claim)}{shared}: {'; '.join(told)}"


def _exact(claim: ClaimDocument) -> str:
    instances = claim.get("instances") or []
    if claim["outcome"] == "incomplete" or not instances:
        return ""
    failing = [i["name"] for i in instances if not i["holds"]]
    count = len(instances)
    if failing:
        head = f"fails for {len(failing)} of {plural(count, 'instance')}"
    else:
        head = f"holds for {f'all {count} instances' if count > 1 else 'the one instance'}"
    worst = max(math.inf if i["deviation"] is None else float(i["deviation"]) for i in instances)
    text = f": {head} (largest deviation {number(worst, 2)}, tolerance {number(claim['tolerance'], 2)})"
    control = claim.get("negative_control")
    if control and not all(i["holds"] for i in control["instances"]):
        label = f" ({control['label']})" if control.get("label") else ""
        text += f"; the negative control{label} breaks it"
    return text


def _cost(claim: ClaimDocument) -> str:
    """The contrast of a cost claim is log(bound x peer / ours); people want ours / peer."""
    bound = claim["at_most"]
    ratios = [
        None if v is None else bound * math.exp(-v)
        for v in (claim["mean"], claim.get("high"), claim.get("low"))
    ]
    size, interval = _with_interval(*ratios)
    told = f"{_interval(interval, claim['level'])}{plural(claim['n'], 'round')}; at most {number(bound)}"
    return f"{size} times the peer's time ({told} was asked for)"


def _control(control: Mapping[str, Any], claim: ClaimDocument) -> str:
    """One control: size and interval alone where it was asked at the seeds that the claim rests on."""
    rival = _label(claim, control["arm"])
    if control.get("mean") is None:
        return f"{rival}: {control.get('note') or control['outcome']}"
    shared = {key: claim[key] for key in ("unit", "scale_factor", "scale", "margin") if key in claim}
    judged = {"test": "superiority", "n": len(control.get("d") or []), **shared, **control}
    if judged["n"] == claim.get("n") and judged["mean"] > 0:
        known = _effect_arguments(judged)
        values = [known["mean"], known["low"], known["high"]]
        lead, tail, shown = _scaled(values, known["scale"], known["unit"], known["scale_factor"])
        size, interval = _with_interval(*shown)
        inside = f" ({interval})" if interval else ""
        return f"{_subject(claim)} {_relation(judged)} {rival} {lead}{size}{tail}{inside}"
    return _compared(_subject(claim), rival, judged)


def _tally(primary: Sequence[ClaimDocument], scale: str) -> str:
    """ "2 of 3 primary claims reproduced (a, b), 1 inconclusive (c)", or "all 3 primary claims (a, b, c)"."""
    groups: dict[str, list[str]] = {}
    parts: list[str] = []
    for claim in primary:
        groups.setdefault(claim["outcome"], []).append(claim["name"])
    if len(groups) == 1:
        count = "both" if len(primary) == 2 else f"all {len(primary)}"
        return f"{count} primary claims ({', '.join(c['name'] for c in primary)})"
    for outcome in OUTCOMES:
        if names := groups.get(outcome):
            count = f"{len(names)}" + ("" if parts else f" of {len(primary)} primary claims")
            parts.append(f"{count} {outcome_words(outcome, scale)} ({', '.join(names)})")
    return ", ".join(parts)


def _pair(claim: ClaimDocument) -> tuple[str, str] | None:
    """The labels of the two arms of a contrast that simply compares two."""
    text, arms = claim.get("contrast") or "", claim.get("arms") or []
    if len(arms) != 2:
        return None
    better, worse = arms
    if not text.startswith((f"{better} - {worse}, ", f"{better} / {worse}, ")):
        return None
    return _label(claim, better), _label(claim, worse)


def _subject(claim: ClaimDocument) -> str:
    """The arm whose gain is claimed: the better of two, the last of an ordering."""
    arms = list(claim.get("arms") or [])
    if claim.get("links"):
        return _label(claim, claim["links"][-1]["arms"][0])
    return _label(claim, arms[0]) if arms else "the method"


def _label(claim: ClaimDocument, arm: str) -> str:
    """An arm by its label, in quotation marks where it holds more than words."""
    label = (claim.get("labels") or {}).get(arm) or arm
    return label if re.fullmatch(r"\w[\w .+/-]*", label) else f"“{label}”"


def _measure(claim: ClaimDocument) -> str:
    """What two arms are compared in: " in loss (lower is better)"."""
    measure = claim.get("measure") or (claim.get("metric") or "").replace("_", " ")
    if not measure:
        return ""
    return f" in {measure}" + (" (lower is better)" if claim.get("higher") is False else "")


def _measured(
    mean: float,
    low: float | None,
    high: float | None,
    margin: float,
    wish: str,
    scale: str,
    unit: str,
    scale_factor: float,
    level: float,
    n: int,
) -> str:
    """Size, interval, seeds and wish, with the signs as they come."""
    lead, tail, shown = _scaled([mean, low, high, margin], scale, unit, scale_factor)
    size, interval = _with_interval(*shown[:3])
    asked = number(shown[3] if shown[3] is not None else math.nan) + (tail if tail == " %" else "")
    return f"{lead}{size}{tail} ({_interval(interval, level)}{plural(n, 'seed')}; {wish.format(asked)})"


def _effect_arguments(judged: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mean": judged["mean"],
        "low": judged.get("low"),
        "high": judged.get("high"),
        "scale": judged.get("scale") or "difference",
        "unit": judged.get("unit") or "",
        "scale_factor": judged.get("scale_factor") or 1,
        "level": judged["level"],
        "n": judged["n"],
        "margin": judged["margin"],
        "test": judged.get("test") or "superiority",
    }


def _scaled(
    values: Sequence[float | None], scale: str, unit: str, scale_factor: float
) -> tuple[str, str, list[float | None]]:
    """``(words before, words after, values as people read them)``."""
    if scale == "correlation":
        return "", "", list(values)
    if scale == "log":
        if all(v is None or abs(v) < math.log(2) for v in values):
            return "by ", " %", [None if v is None else 100 * math.expm1(v) for v in values]
        return "by a factor of ", "", [None if v is None else math.exp(min(v, 700.0)) for v in values]
    unit = "points" if unit == "%" else unit
    return "by ", f" {unit}" if unit else "", [None if v is None else v * scale_factor for v in values]


def _with_interval(mean: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """Mean, and interval as "0.3 to 0.9" ("" if there is none)."""
    assert mean is not None
    size, *ends = rounded(mean, low, high)
    return size, "" if low is None or high is None else " to ".join(ends)


def _interval(interval: str, level: float) -> str:
    return f"{percent(level)} interval {interval}, " if interval else ""


def _statement(claim: ClaimDocument) -> str:
    return str(claim["statement"]).strip().rstrip(".")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
