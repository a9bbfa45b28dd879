"""Judgements as sentences: the finding, its size, its interval, and what it was tested on.

Every function takes plain values or a claim of the outcome document (a dictionary) and returns text; it shows
only numbers of the verdict rule. Intervals come with their true level, and a contradiction with the scale of
the study, because a small study speaks for small studies only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from trueup.lab._formatting import MINUS, number, percent, plural, rounded
from trueup.lab._outcomes import OUTCOMES, outcome_words

ClaimDocument: TypeAlias = Mapping[str, Any]

SKEWED = 1.0  # a page warns of larger skewness
_SPREAD = re.compile(r"spread over (?P<over>.+): (?P<other>.+) - (?P<steadier>.+), (?P<metric>.+)")


# -- numbers -------------------------------------------------------------------------------------------------


def ratio(mean: float, low: float | None, high: float | None, *, higher: bool | None) -> tuple[str, str, str]:
    """Say a log ratio: its size, its interval, and the factor that goes beside a percentage.

    Args:
        mean, low, high: log ratios, positive if the claimed arm is better.
        higher: whether larger is better. If not, a positive log ratio is a reduction.

    >>> ratio(math.log(2.486 / 1.996), 0.2107, 0.2280, higher=False)
    ('19.7 % lower', '19.0 % to 20.4 % lower', '1.25')
    >>> ratio(math.log(1.25), None, None, higher=True)
    ('25 % higher', '', '1.25')
    >>> ratio(math.log(3), math.log(2), math.log(4), higher=True)
    ('3 times as high', '2 to 4 times', '')
    """
    direction = -1 if higher is False else 1
    sign = -1 if direction * mean < 0 else 1
    # the interval's ends, from the smaller to the larger change in the direction of the mean
    ends = [] if low is None or high is None else sorted(sign * direction * v for v in (low, high))
    values = [min(max(v, -700.0), 700.0) for v in (abs(mean), *ends)]
    if sign > 0 and max(values) >= math.log(2):
        size, *texts = _rounded([math.exp(v) for v in values])
        return f"{size} times as high", f"{' to '.join(texts)} times" if texts else "", ""
    size, *texts = _rounded([sign * 100 * math.expm1(sign * v) for v in values])
    words = {1: "higher", -1: "lower"}
    interval = ""
    if texts:
        least, most = (text.removeprefix(MINUS) for text in texts)
        first, last = (words[-sign if text.startswith(MINUS) else sign] for text in texts)
        interval = f"{least} %{'' if first == last else ' ' + first} to {most} % {last}"
    factor = math.exp(values[0])
    return f"{size} % {words[sign]}", interval, number(factor, 3 if factor >= 1.1 else 4)


def amount(
    value: float,
    *,
    scale: str = "difference",
    unit: str = "",
    scale_factor: float = 1,
    higher: bool | None = True,
) -> str:
    """Say one effect in the unit that people read.

    >>> amount(0.0071, unit="points", scale_factor=100), amount(0.0953, scale="log"), amount(0.3)
    ('0.71 points', '10 % higher (a factor of 1.1)', '0.3')
    >>> amount(0.0953, scale="log", higher=False)
    '9.09 % lower (a factor of 1.1)'
    """
    if scale == "log":
        size, _, factor = ratio(value, None, None, higher=higher)
        return f"{size} (a factor of {factor})" if factor else size
    text = number(value if scale == "correlation" else value * scale_factor)
    return f"{text}{_unit(text, unit)}"


def contrast_label(part: ClaimDocument, higher: bool | None = None) -> str:
    """Name a contrast in the order of the number drawn, which is positive if the claim holds.

    Args:
        part: a claim, or a link of one.
        higher: of the metric, if `part` does not say.

    >>> contrast_label({"contrast": "adamp / adamw, growth", "arms": ["adamp", "adamw"], "higher": False})
    'adamw / adamp, growth'
    """
    text = str(part.get("contrast") or part.get("text") or "")
    arms = part.get("arms") or []
    if part.get("higher", higher) is False and len(arms) == 2:
        a, b = arms
        for sign in "-/":
            if text.startswith(start := f"{a} {sign} {b}, "):
                return f"{b} {sign} {a}, {text.removeprefix(start)}"
    return text


# -- a claim -------------------------------------------------------------------------------------------------


def claim_sentence(claim: ClaimDocument, scale: str) -> str:
    """State the finding of a claim in one short sentence, with its size and its interval.

    >>> claim = {"kind": "exact", "statement": "Rows add up", "outcome": "reproduced", "tolerance": 1e-8,
    ...     "instances": [{"name": "a", "deviation": 4e-14, "holds": True}],
    ...     "negative_control": {"label": "raw rows", "instances": [{"deviation": 2.0, "holds": False}]}}
    >>> claim_sentence(claim, "desk")
    'Rows add up: holds for the one instance.'
    >>> claim_details(claim)
    ['Largest deviation 4e-14, tolerance 1e-8; the negative control (raw rows) breaks it.']
    """
    return _with_head(claim["outcome"], claim, scale)


def claim_details(claim: ClaimDocument) -> list[str]:
    """List the sentences after a claim's first: why, what would decide it, seeds, minimum effect, steps."""
    if _without_result(claim):
        return []
    details = _reasons(claim, _finding(claim))
    if claim["kind"] == "exact":
        return [*details, f"{_capital(_deviations(claim))}."]
    if claim["kind"] == "cost":
        return [*details, f"{plural(claim['n'], 'round')}; at most {number(claim['at_most'])} is allowed."]
    facts = [plural(claim["n"], "seed")]
    if not claim.get("links"):
        facts.append(_margin(claim, claim))
    facts.append(_measured_as(claim) or ("lower is better" if claim.get("higher") is False else ""))
    return [*details, f"{'; '.join(filter(None, facts))}.", *(f"{text}." for text in _steps(claim))]


def body(claim: ClaimDocument) -> str:
    """Compare two arms in one line, with the seeds and the minimum effect in brackets."""
    return _measured(claim, claim, {"measure", "direction", "level", "seeds", "margin"})


def control_sentence(claim: ClaimDocument) -> str:
    """Say whether a gain survives its controls; empty if no control was compared."""
    controls = claim.get("controls") or []
    if claim.get("survives") is None or not controls:
        return ""
    if claim["outcome"] == "reproduced":
        head = {
            "survives": "The gain survives its control",
            "explained": "A control explains the gain",
            "undecided": "Whether the gain survives its control is undecided",
        }[claim["survives"]]
    else:  # a gain below the minimum effect, or one that was found and then left open
        head = f"Against its control{'' if len(controls) == 1 else 's'}, the gain "
        head += {"survives": "holds", "explained": "does not hold", "undecided": "is undecided"}[
            claim["survives"]
        ]
    return f"{head}: {'; '.join(_control(control, claim) for control in controls)}."


def warnings(claim: ClaimDocument) -> list[str]:
    """List what to keep in mind when reading a claim's numbers.

    >>> warnings({"skew": 0.3}), len(warnings({"skew": -1.4}))
    ([], 1)
    """
    skew = claim.get("skew")
    if skew is None or abs(skew) <= SKEWED:
        return []
    return [
        "These seeds are strongly skewed. If one arm alone is skewed, the rule's false wins rise to about "
        "9 % (exponential) or 16 to 30 % (lognormal). Look at the dots."
    ]


def divergence_sentence(claim: ClaimDocument) -> str:
    """Say how rare a divergence the seeds could have missed; empty if that is not known.

    >>> divergence_sentence({"n": 10, "missable_divergence": 0.2589})
    '10 seeds without a divergence do not exclude one in 4 runs.'
    >>> divergence_sentence({"n": 20, "missable_divergence": 0.1391})
    '20 seeds without a divergence do not exclude one in 8 runs.'
    """
    rate = claim.get("missable_divergence")
    if not rate or claim["n"] < 2:
        return ""
    return f"{claim['n']:,} seeds without a divergence do not exclude one in {math.ceil(1 / rate):,} runs."


# -- a paper -------------------------------------------------------------------------------------------------


def paper_sentence(outcome: str, claims: Sequence[ClaimDocument], scale: str) -> str:
    """Say a paper's verdict in one short sentence: what won, by how much, how sure.

    Args:
        outcome: of `verdict.of_paper`.
        claims: all claims of the outcome document; the primary ones make the verdict.
    """
    headline = _headline(outcome, claims)
    if headline is None:
        return (
            "No verdict: smoke scale only shows that the study runs."
            if scale == "smoke"
            else "No verdict: no primary claim was judged."
        )
    return _with_head(outcome, headline, scale)


def verdict_head(outcome: str, scale: str) -> str:
    """Return the words that a sentence begins with, unless all it is on was reproduced.

    >>> verdict_head("smaller", "desk"), verdict_head("contradicted", "desk")
    ('Below the minimum effect at desk scale', 'Contradicted at desk scale')
    """
    at = f" at {scale} scale"
    return _capital(outcome_words(outcome, scale).removesuffix(at)) + at


def without_head(sentence: str, outcome: str, scale: str) -> str:
    """Leave the verdict's words out of a sentence that stands beside them.

    >>> without_head("Contradicted at desk scale: ours is behind.", "contradicted", "desk")
    'Ours is behind.'
    """
    return _capital(sentence.removeprefix(verdict_head(outcome, scale)).lstrip(".: "))


def paper_details(
    outcome: str, control: str | None, claims: Sequence[ClaimDocument], scale: str, scope: str = ""
) -> list[str]:
    """List the sentences after a paper's first: why, its control, its scope, and how every claim came out.

    Args:
        outcome, claims, scale: as for `paper_sentence`.
        control: `survives`, `explained`, `undecided` or `None`; `scope`: of `scope_sentence`.
    """
    headline = _headline(outcome, claims)
    if headline is None:
        return []
    primary = [claim for claim in claims if claim["primary"]]
    details = _reasons(headline, paper_sentence(outcome, claims, scale))
    if (measured_as := _measured_as(headline)) and not _without_result(headline):
        details.append(f"{_capital(measured_as)}.")
    if headline["outcome"] == "smaller" and not headline.get("links"):
        details.append(f"The minimum effect is {_size(headline['margin'], headline)}.")
    if control is not None and any(claim.get("survives") == control for claim in primary):
        details.append(_controlled(primary, headline, control))
    if scope:
        details.append(scope)
    if len(primary) > 1:
        details.append(f"{_tally(primary, scale)}. The first sentence is on {headline['name']}.")
    return details


def scope_sentence(tested_on: str, paper_setup: str) -> str:
    """Say what a study was tested on, and what the paper used.

    >>> scope_sentence("digits with a 5k-parameter network", "ImageNet")
    'Tested on digits with a 5k-parameter network; the paper used ImageNet.'
    """
    parts = [f"tested on {tested_on}"] if tested_on else []
    parts += [f"the paper used {paper_setup}"] if paper_setup else []
    return f"{_capital('; '.join(parts))}." if parts else ""


def more_seeds_sentence(more: int) -> str:
    """Say how many seeds would decide a claim.

    >>> more_seeds_sentence(14)
    'about 14 more fresh seeds would decide an effect of this size'
    """
    return f"about {more:,} more fresh seed{'' if more == 1 else 's'} would decide an effect of this size"


# -- parts of sentences --------------------------------------------------------------------------------------

_NOTES = {  # the verdict rule's notes, as people read them
    "opposite": "the effect goes the other way",
    "no gain of the minimum effect or more; a smaller one is not excluded": (
        "a gain of the minimum effect or more is excluded, a smaller one is not"
    ),
    "uneven seeds": "the seeds are uneven, and the two tests disagree",
    "too few seeds": "so few seeds decide nothing",
}


def _with_head(outcome: str, claim: ClaimDocument, scale: str) -> str:
    """Put the verdict before the finding, unless the claim is reproduced."""
    found = _finding(claim)
    unlabelled = [f"{arm} " for arm in claim.get("arms") or [] if _label(claim, arm) == arm]
    started = found if found.startswith(tuple(unlabelled)) else _capital(found)
    if outcome == "reproduced":
        return f"{started}."
    head = verdict_head(outcome, scale)
    return f"{head}. {started}." if ": " in found else f"{head}: {found}."


def _without_result(claim: ClaimDocument) -> bool:
    measured = claim["kind"] == "exact" or claim.get("mean") is not None
    return not measured or claim["outcome"] in ("incomplete", "invalid")


def _finding(claim: ClaimDocument) -> str:
    """State the finding in short, without seeds and minimum effect."""
    statement = str(claim["statement"]).strip().rstrip(".")
    if _without_result(claim):
        return claim.get("note") or statement
    if claim["kind"] == "exact":
        return f"{statement}: {_instances(claim)}"
    if claim["kind"] == "cost":
        return f"{statement}: {_cost(claim)}"
    if links := claim.get("links"):
        first = links[0]
        decides = first.get("mean") is not None and first["outcome"] == claim["outcome"]
        if decides and _SPREAD.fullmatch(first["text"]):
            return _measured(first, claim, {"level"})
        if claim.get("note"):
            return f"{statement}: {claim['note']}"
        holding = sum(link["outcome"] == "reproduced" for link in links)
        if holding == len(links) == 2:
            return f"{statement}: both steps hold"
        held = f"all {len(links)}" if holding == len(links) else f"{holding} of {len(links)}"
        return f"{statement}: {held} steps hold"
    found = _measured(claim, claim, {"measure", "level", "allowed"})
    return f"{statement}: {found}" if _measured_as(claim) else found


def _measured_as(claim: ClaimDocument) -> str:
    """Name the number of a claim that compares neither two arms nor two spreads, and has no steps."""
    contrast = claim.get("contrast") or ""
    if claim["kind"] != "statistical" or claim.get("links") or _pair(claim) or _SPREAD.fullmatch(contrast):
        return ""
    return f"measured as {contrast_label(claim)}"


def _reasons(claim: ClaimDocument, sentence: str) -> list[str]:
    """Say why a claim is not reproduced, unless its sentence does, and what would decide it."""
    note = claim.get("note") or ""
    reasons = []
    if claim["outcome"] != "reproduced" and note and note not in sentence:
        reason = _NOTES.get(note, note)
        if claim["kind"] == "cost":
            reason = "" if claim["outcome"] == "contradicted" else reason.replace("seeds", "rounds")
        reasons = [f"{_capital(reason)}."] if reason else []
    if claim["outcome"] == "inconclusive" and claim.get("more_seeds"):
        reasons.append(f"{_capital(more_seeds_sentence(claim['more_seeds']))}.")
    return reasons


def _headline(outcome: str, claims: Sequence[ClaimDocument]) -> ClaimDocument | None:
    """Choose the primary claim for the paper's sentence: one with its outcome, statistical if possible."""
    primary = [claim for claim in claims if claim["primary"]]
    if not primary:
        return None
    wanted = ["reproduced"] if outcome == "partly" else [outcome]
    if outcome == "incomplete":
        wanted.append("invalid")
    fitting = [claim for claim in primary if claim["outcome"] in wanted] or primary
    return next((claim for claim in fitting if claim["kind"] == "statistical"), fitting[0])


def _controlled(primary: Sequence[ClaimDocument], headline: ClaimDocument, control: str) -> str:
    """Say whether the gains survive, and name them unless the first sentence is on them."""
    asked = [claim for claim in primary if claim.get("survives") is not None]
    found = [claim for claim in asked if claim["survives"] == control]
    several = len(found) > 1
    gain = "the gains" if several else "the gain"
    if found != asked or headline not in found:
        gain += f" of {' and '.join(claim['name'] for claim in found)}"
    survive = "survive their controls" if several else "survives its control"
    if any(claim["outcome"] not in ("reproduced", "smaller") for claim in found):
        # the gain was found and then left open for another reason, such as an arm at its grid's edge
        lead = f"Against {'their controls' if several else 'its control'}, {gain}"
        verb = {
            "survives": "hold" if several else "holds",
            "explained": "do not hold" if several else "does not hold",
            "undecided": "are undecided" if several else "is undecided",
        }
        return f"{lead} {verb[control]}."
    return {
        "survives": f"{_capital(gain)} {survive}.",
        "explained": f"But {'controls explain' if several else 'a control explains'} {gain}.",
        "undecided": f"Whether {gain} {survive} is undecided.",
    }[control]


def _measured(judged: ClaimDocument, claim: ClaimDocument, shown: set[str], rival: str = "") -> str:
    """Say a contrast: two arms side by side, two spreads, or a number (of a link, with its name).

    Args:
        judged: what was measured: the claim itself, a link of it, or a control.
        claim: whose labels, metric and unit it has.
        shown: of `measure`, `direction`, `allowed`, and in brackets `level`, `seeds` and `margin`.
        rival: the control that replaces the claim's other arm.
    """
    kind = judged.get("scale") or claim.get("scale") or "difference"
    equivalence = judged.get("test") == "equivalence"
    mean, low, high = judged["mean"], judged.get("low"), judged.get("high")
    spread = _SPREAD.fullmatch(judged.get("text") or judged.get("contrast") or claim.get("contrast") or "")
    pair = _pair(judged) or (_pair(claim) if judged is claim else None)
    if rival:
        pair = (_subject(claim), rival)
    elif pair is not None:
        pair = (_label(claim, pair[0]), _label(claim, pair[1]))

    factor = ""
    if kind == "log":
        size, interval, factor = ratio(mean, low, high, higher=claim.get("higher", True))
    else:
        size, interval = _scaled(mean, low, high, claim)
        if mean < 0 and (pair or spread) and not _is_zero(size):  # the words say which way
            size, interval = _scaled(-mean, _negative(high), _negative(low), claim)
    brackets = [f"a factor of {factor}"] if factor else []
    middle = []
    if interval:
        middle.append(f"{percent(judged['level'])} interval {interval}" if "level" in shown else interval)
    if "seeds" in shown:
        middle.append(plural(judged["n"], "seed"))
    brackets += [", ".join(middle)] if middle else []
    if "margin" in shown and (margin := _margin(judged, claim)):
        brackets.append(margin)
    lower = "direction" in shown and claim.get("higher") is False
    if lower and kind == "log":
        brackets.append("lower is better")
    inside = f" ({'; '.join(brackets)})" if brackets else ""

    if spread:
        steadier, other = (_label(claim, spread[arm]) for arm in ("steadier", "other"))
        measure = claim.get("measure") or spread["metric"].replace("_", " ")
        way = "less" if judged["mean"] >= 0 else "more"
        varies = f"varies by {size} {way} over {spread['over']}"
        return f"{measure} of {steadier} {varies} than that of {rival or other}{inside}"
    if pair is None:
        name = "" if judged is claim else f"{contrast_label(judged, claim.get('higher'))}: "
        return f"{name}{size}{inside}"
    better, worse = pair
    measure = claim.get("measure") or (claim.get("metric") or "").replace("_", " ")
    where = f" in {measure}" if measure and "measure" in shown else ""
    where += " (lower is better)" if where and lower and kind != "log" else ""
    if kind == "log" and mean != 0:
        return f"{better} is {size} {'than' if factor else 'as'} {worse}{where}{inside}"
    ok = judged["outcome"] == "reproduced"
    allowed = ""
    if "allowed" in shown and ok and (equivalence or (mean < 0 and judged["test"] == "non-inferiority")):
        allowed = f", within the {_size(judged['margin'], claim)} allowed"
    if equivalence:
        ahead = "" if ok or _is_zero(size) else f", {better if mean > 0 else worse} ahead"
        return f"{better} and {worse} differ{where} by {size}{allowed or ahead}{inside}"
    if mean == 0 or (kind != "log" and _is_zero(size)):
        return f"{better} equals {worse}{where} on average{inside}"
    return f"{better} {_relation(judged)} {worse}{where} by {size}{allowed}{inside}"


def _relation(judged: ClaimDocument) -> str:
    """Choose the words between two arms; "beats" is only for a gain that the rule has found."""
    if judged["mean"] < 0:
        return "is behind"
    won = judged["outcome"] == "reproduced" and judged.get("test") != "non-inferiority"
    return "beats" if won else "is ahead of"


def _margin(judged: ClaimDocument, claim: ClaimDocument) -> str:
    """Say the margin: "minimum effect 0.2 points"; empty if any gain counts."""
    margin, test = judged.get("margin", claim.get("margin")), judged.get("test") or "superiority"
    if not margin:
        return ""
    size = _size(margin, claim)
    return {
        "superiority": f"minimum effect {size}",
        "equivalence": f"up to {size} either way is allowed",
        "non-inferiority": f"up to {size} behind is allowed",
    }[test]


def _size(margin: float, claim: ClaimDocument) -> str:
    """Format a margin with its unit: "0.2 points", "a factor of 1.1"."""
    if claim.get("scale") == "log":
        return f"a factor of {number(math.exp(min(margin, 700.0)))}"
    return amount(margin, **{k: claim[k] for k in ("scale", "unit", "scale_factor") if claim.get(k)})


def _steps(claim: ClaimDocument) -> list[str]:
    """List the steps of an ordering, or both parts of a spread claim, numbered."""
    links = claim.get("links") or []
    beside_spread = bool(links) and _SPREAD.fullmatch(links[0].get("text") or "") is not None
    steps = []
    for step, link in enumerate(links, start=1):
        if link.get("mean") is None:
            pair = _pair(link)
            name = " over ".join(_label(claim, arm) for arm in pair) if pair else link["text"]
            steps.append(f"Step {step}: {name}: {link.get('note') or outcome_words(link['outcome'])}")
        else:
            # the second part of a spread claim compares the arms where they are tuned
            where = "at the best setting " if beside_spread and step > 1 else ""
            steps.append(f"Step {step}: {where}{_measured(link, claim, {'level', 'margin'})}")
    return steps


def _instances(claim: ClaimDocument) -> str:
    """Count the instances of an exact claim that hold."""
    count, failing = len(claim["instances"]), sum(not i["holds"] for i in claim["instances"])
    if failing:
        return f"fails for {failing} of {plural(count, 'instance')}"
    return f"holds for {f'all {count} instances' if count > 1 else 'the one instance'}"


def _deviations(claim: ClaimDocument) -> str:
    """Say how far an exact claim's instances are off, and whether its negative control breaks it."""
    worst = max(math.inf if i["deviation"] is None else float(i["deviation"]) for i in claim["instances"])
    text = f"largest deviation {number(worst, 2)}, tolerance {number(claim['tolerance'], 2)}"
    control = claim.get("negative_control")
    if control and not all(i["holds"] for i in control["instances"]):
        label = f" ({control['label']})" if control.get("label") else ""
        text += f"; the negative control{label} breaks it"
    return text


def _cost(claim: ClaimDocument) -> str:
    """Say our time as a multiple of the peer's; the contrast is log(bound x peer / ours)."""
    values = [v for v in (claim["mean"], claim.get("high"), claim.get("low")) if v is not None]
    size, *ends = _rounded([claim["at_most"] * math.exp(-v) for v in values])
    interval = f" ({percent(claim['level'])} interval {' to '.join(ends)})" if ends else ""
    return f"{size} times the peer's time{interval}"


def _control(control: ClaimDocument, claim: ClaimDocument) -> str:
    """Compare with one control; briefly if the claim and the control have the same seeds."""
    rival = _label(claim, control["arm"])
    if control.get("mean") is None:
        return f"{rival}: {control.get('note') or control['outcome']}"
    judged = {"test": "superiority", "n": len(control.get("d") or []), **control}
    brief = judged["n"] == claim.get("n") and judged["mean"] > 0
    return _measured(judged, claim, set() if brief else {"level", "seeds", "margin"}, rival)


def _tally(primary: Sequence[ClaimDocument], scale: str) -> str:
    """Count the outcomes: "2 of 3 primary claims reproduced (a, b), 1 inconclusive (c)"."""
    groups: dict[str, list[str]] = {}
    for claim in primary:
        groups.setdefault(claim["outcome"], []).append(claim["name"])
    parts: list[str] = []
    for outcome in OUTCOMES:
        if names := groups.get(outcome):
            count = f"{len(names)}"
            if len(groups) == 1:
                count = "Both" if len(names) == 2 else f"All {len(names)}"
                count += " primary claims"
            elif not parts:
                count += f" of {len(primary)} primary claims"
            parts.append(f"{count} {outcome_words(outcome, scale)} ({', '.join(names)})")
    return ", ".join(parts)


def _pair(part: ClaimDocument) -> tuple[str, str] | None:
    """Return the two arms of a contrast that simply compares two."""
    text, arms = part.get("contrast") or part.get("text") or "", part.get("arms") or []
    if len(arms) != 2 or not text.startswith((f"{arms[0]} - {arms[1]}, ", f"{arms[0]} / {arms[1]}, ")):
        return None
    return arms[0], arms[1]


def _subject(claim: ClaimDocument) -> str:
    """Return the arm whose gain is claimed: the better of two, the last of an ordering."""
    arms = list(claim.get("arms") or [])
    if claim.get("links"):
        return _label(claim, claim["links"][-1]["arms"][0])
    return _label(claim, arms[0]) if arms else "the method"


def _label(claim: ClaimDocument, arm: str) -> str:
    """Return an arm's label, in quotation marks if it contains more than words."""
    label = (claim.get("labels") or {}).get(arm) or arm
    return label if re.fullmatch(r"\w[\w .+/-]*", label) else f"“{label}”"


def _scaled(mean: float, low: float | None, high: float | None, claim: ClaimDocument) -> tuple[str, str]:
    """Format an effect and its interval: `("0.6 points", "0.3 to 0.9")`; no interval is ""."""
    factor = 1 if claim.get("scale") == "correlation" else claim.get("scale_factor") or 1
    values = [v * factor for v in (mean, low, high) if v is not None]
    size, *ends = _rounded(values)
    unit = "" if claim.get("scale") == "correlation" else _unit(size, claim.get("unit") or "")
    return f"{size}{unit}", " to ".join(ends)


def _rounded(values: Sequence[float]) -> list[str]:
    """Format a mean, and the two ends of its interval if there is one, with the same number of decimals."""
    mean, low, high = values if len(values) == 3 else (values[0], None, None)
    return list(rounded(mean, low, high))[: len(values)]


def _unit(size: str, unit: str) -> str:
    """Return the unit after a number: " points" ("%" means percentage points), " point" after 1."""
    unit = "points" if unit == "%" else unit
    return f" {'point' if (size, unit) == ('1', 'points') else unit}" if unit else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _is_zero(size: str) -> bool:
    """Return whether a rounded size shows nothing but zeros."""
    return set("123456789").isdisjoint(size.split()[0])


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
