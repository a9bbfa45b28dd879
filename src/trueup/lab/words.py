"""Judgements as sentences: what came out, by how much, how sure, and on what.

Every function takes plain values or a claim of the outcome document (a dictionary) and returns a string; no
number is computed here that the verdict rule has not produced. Intervals carry their true level, and
"contradicted" always carries the scale, because a small study speaks for small studies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

ClaimDocument: TypeAlias = Mapping[str, Any]

MINUS = "−"

_TIED_TO_THE_GAIN = {  # what became of a reproduced gain when its control was asked
    "survives": "the gain survives its control",
    "explained": "but a control explains the gain",
    "undecided": "whether the gain survives its control is undecided",
}

_LINK_WORDS = {
    "reproduced": "",
    "contradicted": "which does not hold",
    "inconclusive": "which is undecided",
}


def number(value: float, digits: int = 3) -> str:
    """A number in at most ``digits`` significant digits.

    >>> number(0.20000001), number(-1234.5), number(4e-14), number(float("inf"))
    ('0.2', '−1,234', '4e-14', 'infinity')
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("infinity" if value > 0 else MINUS + "infinity")
    size = abs(value)
    if size == 0 or 1e-4 <= size < 1e7:
        decimals = max(0, digits - 1 - math.floor(math.log10(size))) if size else 0
        text = f"{size:,.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return (MINUS if value < 0 else "") + text


def plural(count: int, noun: str) -> str:
    """
    >>> plural(1, "seed"), plural(10, "seed")
    ('1 seed', '10 seeds')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


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
    return _compared(*pair, claim, claim.get("metric") or "")


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


def outcome_words(outcome: str, scale: str) -> str:
    """
    >>> outcome_words("contradicted", "desk"), outcome_words("partly", "desk")
    ('contradicted at desk scale', 'partly reproduced')
    """
    if outcome == "contradicted":
        return f"contradicted at {scale} scale"
    return {"partly": "partly reproduced", "none": "no verdict"}.get(outcome, outcome)


def control_sentence(claim: ClaimDocument) -> str:
    """What the controls say of a reproduced gain; empty where none was asked."""
    controls = claim.get("controls") or []
    if claim.get("survives") is None or not controls:
        return ""
    subject = _subject(claim)
    told = "; ".join(_control(subject, control, claim) for control in controls)
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
    head = head[0].upper() + head[1:] + ("" if outcome == "contradicted" else f" at {scale} scale")
    parts = []
    if len(primary) > 1:
        parts.append(_tally(primary, scale))
    headline = next((c for c in primary if c["kind"] == "statistical"), primary[0])
    if outcome == "incomplete":
        headline = next(c for c in primary if c["outcome"] in ("incomplete", "invalid"))
    told = body(headline)
    if len(primary) == 1:  # the head has said the outcome
        said, why = outcome_words(headline["outcome"], scale), ending(headline, scale)
        told += "; " + rest if (rest := why.removeprefix(said).lstrip(":; ")) else ""
    elif headline["outcome"] != "reproduced":
        told += f": {ending(headline, scale)}"
    parts.append(told)
    if control is not None:
        parts.append(_TIED_TO_THE_GAIN[control])
    return f"{head}: {'; '.join(parts)}."


# -- parts of sentences --------------------------------------------------------------------------------------


def _compared(better: str, worse: str, judged: Mapping[str, Any], metric: str = "") -> str:
    """Two arms side by side: "adamp beats adam in accuracy by 0.6 points (...)"."""
    where = f" in {metric.replace('_', ' ')}" if metric else ""
    sized = effect(**_effect_arguments(judged))
    if judged["mean"] == 0 and judged.get("test") != "equivalence":
        return f"{better} equals {worse}{where} on average, {sized.replace('by 0', 'a difference of 0', 1)}"
    if judged.get("test") == "equivalence":
        return f"{better} and {worse} differ{where} {sized}"
    if judged["mean"] < 0:
        return f"{better} is behind {worse}{where} {sized}"
    won = judged["outcome"] == "reproduced" and judged.get("test") != "non-inferiority"
    return f"{better} {'beats' if won else 'is ahead of'} {worse}{where} {sized}"


def _ordering(claim: ClaimDocument) -> str:
    """Every link of an ordering; the interval's level and the seeds are said once."""
    unit = {key: claim.get(key) for key in ("unit", "scale_factor", "scale") if claim.get(key) is not None}
    told = []
    for link in claim["links"]:
        judged = {**unit, **link}
        pair = _pair(judged)
        if link.get("mean") is None or pair is None:
            told.append(f"{link['text']}: {link.get('note') or link['outcome']}")
            continue
        doubt = _LINK_WORDS.get(link["outcome"], link["outcome"])
        told.append(_compared(*pair, judged) + (f", {doubt}" if doubt else ""))
    return f"{_statement(claim)}: {'; '.join(told)}"


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
    size, interval = _rounded(*ratios)
    told = f"{_interval(interval, claim['level'])}{plural(claim['n'], 'round')}; at most {number(bound)}"
    return f"{size} times the peer's time ({told} was asked for)"


def _control(subject: str, control: Mapping[str, Any], claim: ClaimDocument) -> str:
    if control.get("mean") is None:
        return f"{control['arm']}: {control.get('note') or control['outcome']}"
    shared = {key: claim[key] for key in ("unit", "scale_factor", "scale", "margin") if key in claim}
    judged = {"test": "superiority", "n": len(control.get("d") or []), **shared, **control}
    return _compared(subject, control["arm"], judged)


def _tally(primary: Sequence[ClaimDocument], scale: str) -> str:
    """ "2 of 3 primary claims reproduced (a, b), 1 inconclusive (c)"."""
    groups: dict[str, list[str]] = {}
    parts: list[str] = []
    for claim in primary:
        groups.setdefault(claim["outcome"], []).append(claim["name"])
    for outcome in ("reproduced", "inconclusive", "contradicted", "incomplete", "invalid"):
        if names := groups.get(outcome):
            count = f"{len(names)}" + ("" if parts else f" of {len(primary)} primary claims")
            parts.append(f"{count} {outcome_words(outcome, scale)} ({', '.join(names)})")
    return ", ".join(parts)


def _pair(claim: Mapping[str, Any]) -> tuple[str, str] | None:
    """The two arms, by label if there is one, of a contrast that simply compares two."""
    text, arms = claim.get("contrast") or claim.get("text") or "", claim.get("arms") or []
    if len(arms) != 2:
        return None
    better, worse = arms
    if not text.startswith((f"{better} - {worse}, ", f"{better} / {worse}, ")):
        return None
    return claim.get("better") or better, claim.get("worse") or worse


def _subject(claim: ClaimDocument) -> str:
    """The arm whose gain is claimed: the better of two, the last of an ordering."""
    arms = list(claim.get("arms") or [])
    if claim.get("better"):
        return str(claim["better"])
    if claim.get("links"):
        return str(claim["links"][-1]["arms"][0])
    return str(arms[0]) if arms else "the method"


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
    size, interval = _rounded(*shown[:3])
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


def _rounded(mean: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """Mean and interval, rounded alike: two digits of the interval's width, where that is readable."""
    assert mean is not None
    if low is None or high is None:
        return number(mean), ""
    width = high - low
    digits = 1 - math.floor(math.log10(width)) if width > 0 else 7
    if not 0 <= digits <= 6:
        return number(mean), f"{number(low)} to {number(high)}"

    def text(value: float) -> str:
        rounded = f"{abs(value):,.{digits}f}"
        return (MINUS if value < 0 and float(rounded.replace(",", "")) else "") + rounded

    texts = [text(v) for v in (mean, low, high)]
    while "." in texts[0] and all(t.endswith(("0", ".")) for t in texts):  # 0.60, 0.30, 0.90 -> 0.6, 0.3, 0.9
        texts = [t[:-1] for t in texts]
    return texts[0], f"{texts[1]} to {texts[2]}"


def _interval(interval: str, level: float) -> str:
    return f"{number(100 * level, 4)} % interval {interval}, " if interval else ""


def _statement(claim: ClaimDocument) -> str:
    return str(claim["statement"]).strip().rstrip(".")


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
