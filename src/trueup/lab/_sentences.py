"""Judgements as sentences: what came out, by how much, how sure, and on what.

Every function takes plain values or a claim of the outcome document (a dictionary) and returns text; no
number is computed here that the verdict rule has not produced. Intervals carry their true level, and
"contradicted" always carries the scale, because a small study speaks for small studies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from trueup.lab._formatting import MINUS, number, percent, plural, rounded
from trueup.lab._outcomes import OUTCOMES, outcome_words

ClaimDocument: TypeAlias = Mapping[str, Any]

SKEWED = 1.0  # beyond it, a page warns
_SPREAD = re.compile(r"spread over (?P<over>.+): (?P<other>.+) - (?P<steadier>.+), (?P<metric>.+)")


# -- numbers -------------------------------------------------------------------------------------------------


def ratio(mean: float, low: float | None, high: float | None, *, higher: bool | None) -> tuple[str, str, str]:
    """Say a log ratio: its size, its interval, and the factor that goes beside a percentage.

    Args:
        mean, low, high: log ratios, positive where the claimed arm is better.
        higher: is larger better? If not, a positive log ratio is a reduction.

    >>> ratio(math.log(2.486 / 1.996), 0.2107, 0.2280, higher=False)
    ('19.7 % lower', '19.0 % to 20.4 % lower', '1.25')
    >>> ratio(math.log(1.25), None, None, higher=True)
    ('25 % higher', '', '1.25')
    >>> ratio(math.log(3), math.log(2), math.log(4), higher=True)
    ('3 times as high', '2 to 4 times', '')
    """
    turn = -1 if higher is False else 1
    sign = -1 if turn * mean < 0 else 1
    # in the direction of the mean, the interval's ends from the least to the most
    ends = [] if low is None or high is None else sorted(sign * turn * v for v in (low, high))
    values = [min(max(v, -700.0), 700.0) for v in (abs(mean), *ends)]
    if sign > 0 and max(values) >= math.log(2):
        size, *texts = _rounded([math.exp(v) for v in values])
        return f"{size} times as high", f"{' to '.join(texts)} times" if texts else "", ""
    size, *texts = _rounded([sign * 100 * math.expm1(sign * v) for v in values])
    way = {1: "higher", -1: "lower"}
    interval = ""
    if texts:
        least, most = (text.removeprefix(MINUS) for text in texts)
        ways = [way[-sign if text.startswith(MINUS) else sign] for text in texts]
        interval = f"{least} %{'' if ways[0] == ways[1] else ' ' + ways[0]} to {most} % {ways[1]}"
    factor = math.exp(values[0])
    return f"{size} % {way[sign]}", interval, number(factor, 3 if factor >= 1.1 else 4)


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
    """Name a contrast in the order of the number drawn, which is positive where the claim holds.

    Args:
        part: a claim, or a link of one; ``higher``: of the metric, where ``part`` does not say.

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
    """One claim of an outcome document as a sentence: what was measured, then the verdict.

    >>> claim = {"kind": "exact", "statement": "Rows add up", "outcome": "reproduced", "tolerance": 1e-8,
    ...     "instances": [{"name": "a", "deviation": 4e-14, "holds": True}],
    ...     "negative_control": {"label": "raw rows", "instances": [{"deviation": 2.0, "holds": False}]}}
    >>> print(claim_sentence(claim, "desk").replace("; ", ";\\n"))
    Rows add up: holds for the one instance (largest deviation 4e-14, tolerance 1e-8);
    the negative control (raw rows) breaks it: reproduced.
    """
    return f"{body(claim)}: {ending(claim, scale)}."


def body(claim: ClaimDocument, *, short: bool = False) -> str:
    """The measured half of a claim's sentence; ``short``: without seeds and minimum effect."""
    if claim["kind"] == "exact":
        return f"{_statement(claim)}{_exact(claim, short)}"
    if claim.get("mean") is None:
        return _statement(claim)
    if claim["kind"] == "cost":
        return f"{_statement(claim)}: {_cost(claim, short)}"
    if claim.get("links"):
        return _chain(claim, short)
    shown = {"seeds", "wish"} - ({"seeds", "wish"} if short else {"wish"} if _says_minimum(claim) else set())
    if _pair(claim) is None:
        return f"{_statement(claim)}: {_measured(claim, claim, {'level', *shown})}"
    return _measured(claim, claim, {"level", "measure", *shown})


def ending(claim: ClaimDocument, scale: str) -> str:
    """The verdict half: the outcome, why, and what would decide it."""
    outcome, note = claim["outcome"], claim.get("note") or ""
    if claim["kind"] == "cost":
        note = {"uneven seeds": "uneven rounds"}.get(note, note)
        note = "" if outcome == "contradicted" else note
    said = outcome_words(outcome, scale)
    if outcome == "smaller":
        said = "a real gain, but smaller than asked for"
        if _says_minimum(claim):
            said = f"smaller than the {_minimum(claim)} asked for"
    text = said + (f": {note}" if note else "")
    if outcome == "inconclusive" and claim.get("more_seeds"):
        text += "; " + more_seeds_sentence(claim["more_seeds"])
    return text


def control_sentence(claim: ClaimDocument) -> str:
    """What the controls say of a gain; empty where none was asked."""
    controls = claim.get("controls") or []
    if claim.get("survives") is None or not controls:
        return ""
    told = "; ".join(_control(control, claim) for control in controls)
    if claim["outcome"] == "reproduced":
        head = {
            "survives": "The gain survives its control",
            "explained": "A control explains the gain",
            "undecided": "Whether the gain survives its control is undecided",
        }[claim["survives"]]
    else:  # no gain was established that could survive, or one smaller than asked for
        head = f"Against its control{'' if len(controls) == 1 else 's'}, the gain "
        head += {"survives": "holds", "explained": "does not hold", "undecided": "is undecided"}[
            claim["survives"]
        ]
    return f"{head}: {told}."


def warnings(claim: ClaimDocument) -> list[str]:
    """What to keep in mind when reading a claim's numbers.

    >>> warnings({"skew": 0.3}), len(warnings({"skew": -1.4}))
    ([], 1)
    """
    skew = claim.get("skew")
    if skew is None or abs(skew) <= SKEWED:
        return []
    return [
        "These seeds are strongly skewed; the rule's false wins rise to about 9 % where one arm alone is "
        "skewed (exponential), 16 to 30 % (lognormal). Look at the dots."
    ]


def divergence_sentence(claim: ClaimDocument) -> str:
    """How rare a divergence the seeds could have missed; empty where that is not known.

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
    """The paper's verdict in one short sentence: what won, by how much, how sure.

    Args:
        outcome: of ``verdict.of_paper``.
        claims: all claims of the outcome document; the primary ones make the verdict.
    """
    headline = _headline(outcome, claims)
    if headline is None:
        return (
            "No verdict: smoke scale only shows that the study runs."
            if scale == "smoke"
            else "No verdict: no primary claim was judged."
        )
    told = body(headline, short=True)
    if headline.get("mean") is None and headline["kind"] != "exact" and headline.get("note"):
        told = headline["note"]
    if outcome == "incomplete":
        told = headline.get("note") or told
    if outcome == "reproduced":
        return f"{_started(told, headline)}."
    return f"{paper_head(outcome, scale)}: {told}."


def paper_head(outcome: str, scale: str) -> str:
    """The words that a paper's sentence begins with, unless everything was reproduced.

    >>> paper_head("smaller", "desk"), paper_head("contradicted", "desk")
    ('Smaller than asked for at desk scale', 'Contradicted at desk scale')
    """
    words = outcome_words(outcome, scale)
    at = f" at {scale} scale"
    return _capital(words.removesuffix(at)) + at


def paper_details(
    outcome: str, control: str | None, claims: Sequence[ClaimDocument], scale: str, scope: str = ""
) -> list[str]:
    """The sentences after a paper's first: why, its control, its scope, and how many claims came out how.

    Args:
        outcome, claims, scale: as for :func:`paper_sentence`.
        control: ``survives``, ``explained``, ``undecided`` or ``None``; ``scope``: of :func:`scope_sentence`.
    """
    headline = _headline(outcome, claims)
    if headline is None:
        return []
    primary = [claim for claim in claims if claim["primary"]]
    details = []
    note = headline.get("note") or ""
    if note and note not in paper_sentence(outcome, claims, scale) and headline["outcome"] != "reproduced":
        details.append(f"{_capital(_NOTES.get(note, note))}.")
    if headline["outcome"] == "smaller" and _says_minimum(headline):
        details.append(f"The minimum effect is {_minimum(headline, article=True)}.")
    if headline["outcome"] == "inconclusive" and headline.get("more_seeds"):
        details.append(_capital(more_seeds_sentence(headline["more_seeds"])) + ".")
    if control is not None and any(claim.get("survives") == control for claim in primary):
        details.append(_controlled(primary, headline, control))
    if scope:
        details.append(scope)
    if len(primary) > 1:
        details.append(f"{_tally(primary, scale)}. The first sentence is on {headline['name']}.")
    return details


def scope_sentence(tested_on: str, paper_setup: str) -> str:
    """
    >>> scope_sentence("digits with a 5k-parameter network", "ImageNet")
    'Tested on digits with a 5k-parameter network; the paper used ImageNet.'
    """
    parts = [f"tested on {tested_on}"] if tested_on else []
    parts += [f"the paper used {paper_setup}"] if paper_setup else []
    return f"{_capital('; '.join(parts))}." if parts else ""


def more_seeds_sentence(more: int) -> str:
    """
    >>> more_seeds_sentence(14)
    'about 14 more fresh seeds would decide an effect of this size'
    """
    return f"about {more:,} more fresh seed{'' if more == 1 else 's'} would decide an effect of this size"


# -- parts of sentences --------------------------------------------------------------------------------------

_NOTES = {"opposite": "the effect goes the other way"}


def _headline(outcome: str, claims: Sequence[ClaimDocument]) -> ClaimDocument | None:
    """The primary claim that the paper's sentence is on: one with its outcome, statistical if possible."""
    primary = [claim for claim in claims if claim["primary"]]
    if not primary:
        return None
    wanted = ["reproduced"] if outcome == "partly" else [outcome]
    if outcome == "incomplete":
        wanted.append("invalid")
    fitting = [claim for claim in primary if claim["outcome"] in wanted] or primary
    return next((claim for claim in fitting if claim["kind"] == "statistical"), fitting[0])


def _controlled(primary: Sequence[ClaimDocument], headline: ClaimDocument, control: str) -> str:
    """What the controls made of the gains, which are named unless the first sentence is on them."""
    asked = [claim for claim in primary if claim.get("survives") is not None]
    found = [claim for claim in asked if claim["survives"] == control]
    several = len(found) > 1
    gain = "the gains" if several else "the gain"
    if found != asked or headline not in found:
        gain += f" of {' and '.join(claim['name'] for claim in found)}"
    survive = "survive their controls" if several else "survives its control"
    if any(claim["outcome"] not in ("reproduced", "smaller") for claim in found):
        # found, and then left open for another reason, such as an arm at its grid's edge
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
    """A contrast in words: two arms side by side, two spreads, or the contrast's name and its number.

    Args:
        judged: what was measured: the claim itself, a link of it, or a control.
        claim: whose labels, metric and unit it has.
        shown: ``measure``, and in brackets ``level``, ``seeds`` and ``wish``: what is to be said.
        rival: the control that stands where the claim's other arm stood.
    """
    scale = judged.get("scale") or claim.get("scale") or "difference"
    test = judged.get("test") or "superiority"
    mean, low, high = judged["mean"], judged.get("low"), judged.get("high")
    spread = _SPREAD.fullmatch(judged.get("text") or judged.get("contrast") or claim.get("contrast") or "")
    pair = _pair(judged) or (_pair(claim) if judged is claim else None)
    if rival:
        pair = (_subject(claim), rival)
    elif pair is not None:
        pair = (_label(claim, pair[0]), _label(claim, pair[1]))

    if scale == "log":
        size, interval, factor = ratio(mean, low, high, higher=claim.get("higher", True))
    else:
        if mean < 0 and test != "equivalence" and (pair or spread):
            mean, low, high = -mean, _negative(high), _negative(low)
        size, interval = _scaled(mean, low, high, claim)
        factor = ""
    brackets = [f"a factor of {factor}"] if factor else []
    middle = []
    if interval:
        middle.append(f"{percent(judged['level'])} interval {interval}" if "level" in shown else interval)
    if "seeds" in shown:
        middle.append(plural(judged["n"], "seed"))
    brackets += [", ".join(middle)] if middle else []
    if "wish" in shown and (wish := _wish(judged, claim, scale)):
        brackets.append(wish)
    if scale == "log" and "measure" in shown and claim.get("higher") is False:
        brackets.append("lower is better")
    inside = f" ({'; '.join(brackets)})" if brackets else ""

    if spread:
        steadier, other = (_label(claim, spread[name]) for name in ("steadier", "other"))
        measure = claim.get("measure") or spread["metric"].replace("_", " ")
        way = "less" if judged["mean"] >= 0 else "more"
        varies = f"varies by {size} {way} over {spread['over']}"
        return f"{measure} of {steadier} {varies} than that of {rival or other}{inside}"
    if pair is None:
        name = contrast_label(judged, claim.get("higher")) or "the contrast"
        return f"{name}{' is' if judged is claim else ':'} {size}{inside}"
    better, worse = pair
    where = _measure(claim, direction=scale != "log") if "measure" in shown else ""
    if judged["mean"] == 0 and test != "equivalence":
        return f"{better} equals {worse}{where} on average{inside}"
    if scale == "log":
        return f"{better} is {size} {'than' if factor else 'as'} {worse}{where}{inside}"
    if test == "equivalence":
        return f"{better} and {worse} differ{where} by {size}{inside}"
    return f"{better} {_relation(judged)} {worse}{where} by {size}{inside}"


def _relation(judged: ClaimDocument) -> str:
    """What stands between two arms: "beats" is kept for what the rule has found."""
    if judged["mean"] < 0:
        return "is behind"
    won = judged["outcome"] == "reproduced" and judged.get("test") != "non-inferiority"
    return "beats" if won else "is ahead of"


def _wish(judged: ClaimDocument, claim: ClaimDocument, scale: str) -> str:
    """The margin in words; nothing where any gain counts."""
    margin, test = judged.get("margin", claim.get("margin")), judged.get("test") or "superiority"
    if not margin:
        return ""
    if scale == "log":
        asked = f"a factor of {number(math.exp(min(margin, 700.0)))}"
    else:
        asked = number(margin * (1 if scale == "correlation" else claim.get("scale_factor") or 1))
    return {
        "superiority": f"minimum effect {asked}",
        "equivalence": f"up to {asked} either way is allowed",
        "non-inferiority": f"up to {asked} behind is allowed",
    }[test]


def _says_minimum(claim: ClaimDocument) -> bool:
    """Does the sentence's end say the minimum effect, so that the brackets need not?"""
    own = claim.get("word") is not None  # other words end the sentence on a user's own results
    return claim["outcome"] == "smaller" and not claim.get("links") and bool(claim.get("margin")) and not own


def _minimum(claim: ClaimDocument, *, article: bool = False) -> str:
    """The minimum effect with its unit: "0.2 points", "factor of 1.1"."""
    if claim.get("scale") == "log":
        return f"{'a ' if article else ''}factor of {number(math.exp(min(claim['margin'], 700.0)))}"
    shape = {k: claim[k] for k in ("scale", "unit", "scale_factor") if claim.get(k)}
    return amount(claim["margin"], **shape)


def _chain(claim: ClaimDocument, short: bool) -> str:
    """Every step of an ordering, numbered; the interval's level and the seeds are said once, at the head."""
    links = claim["links"]
    if short:
        first, spread = links[0], _SPREAD.fullmatch(links[0].get("text") or "") is not None
        if spread and first.get("mean") is not None and first["outcome"] == claim["outcome"]:
            return f"{_statement(claim)}: {_measured(first, claim, {'level'})}"
        if claim.get("note"):
            return f"{_statement(claim)}: {claim['note']}"
        holding = sum(link["outcome"] == "reproduced" for link in links)
        held = f"all {len(links)}" if holding == len(links) else f"{holding} of {len(links)}"
        return f"{_statement(claim)}: {held} steps hold"
    measured = [link for link in links if link.get("mean") is not None]
    shared = ""
    if measured:
        interval = any(link.get("low") is not None for link in measured)
        level = f"{percent(measured[0]['level'])} intervals, " if interval else ""
        shared = f" ({level}{plural(measured[0]['n'], 'seed')})"
    beside_spread = _SPREAD.fullmatch(links[0].get("text") or "") is not None
    told = []
    for step, link in enumerate(links, start=1):
        if link.get("mean") is None:
            pair = _pair(link)
            name = " over ".join(_label(claim, arm) for arm in pair) if pair else link["text"]
            told.append(f"({step}) {name}: {link.get('note') or outcome_words(link['outcome'])}")
        else:
            # beside a spread stands how the two arms do where they are tuned
            where = "at the best setting " if beside_spread and step > 1 else ""
            told.append(f"({step}) {where}{_measured(link, claim, {'wish'})}")
    return f"{_statement(claim)}{shared}: {'; '.join(told)}"


def _exact(claim: ClaimDocument, short: bool) -> str:
    instances = claim.get("instances") or []
    if claim["outcome"] == "incomplete" or not instances:
        return ""
    failing = [i["name"] for i in instances if not i["holds"]]
    count = len(instances)
    if failing:
        head = f"fails for {len(failing)} of {plural(count, 'instance')}"
    else:
        head = f"holds for {f'all {count} instances' if count > 1 else 'the one instance'}"
    if short:
        return f": {head}"
    worst = max(math.inf if i["deviation"] is None else float(i["deviation"]) for i in instances)
    text = f": {head} (largest deviation {number(worst, 2)}, tolerance {number(claim['tolerance'], 2)})"
    control = claim.get("negative_control")
    if control and not all(i["holds"] for i in control["instances"]):
        label = f" ({control['label']})" if control.get("label") else ""
        text += f"; the negative control{label} breaks it"
    return text


def _cost(claim: ClaimDocument, short: bool) -> str:
    """The contrast of a cost claim is log(bound x peer / ours); people want ours / peer."""
    bound = claim["at_most"]
    values = [v for v in (claim["mean"], claim.get("high"), claim.get("low")) if v is not None]
    size, *ends = _rounded([bound * math.exp(-v) for v in values])
    told = [f"{percent(claim['level'])} interval {' to '.join(ends)}"] if ends else []
    told += [] if short else [f"{plural(claim['n'], 'round')}; at most {number(bound)} allowed"]
    return f"{size} times the peer's time" + (f" ({', '.join(told)})" if told else "")


def _control(control: ClaimDocument, claim: ClaimDocument) -> str:
    """One control: size and interval alone where it was asked at the seeds that the claim rests on."""
    rival = _label(claim, control["arm"])
    if control.get("mean") is None:
        return f"{rival}: {control.get('note') or control['outcome']}"
    judged = {"test": "superiority", "n": len(control.get("d") or []), **control}
    brief = judged["n"] == claim.get("n") and judged["mean"] > 0
    return _measured(judged, claim, set() if brief else {"level", "seeds", "wish"}, rival)


def _tally(primary: Sequence[ClaimDocument], scale: str) -> str:
    """How many claims came out how: "2 of 3 primary claims reproduced (a, b), 1 inconclusive (c)"."""
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
    """The two arms of a contrast that simply compares two."""
    text, arms = part.get("contrast") or part.get("text") or "", part.get("arms") or []
    if len(arms) != 2 or not text.startswith((f"{arms[0]} - {arms[1]}, ", f"{arms[0]} / {arms[1]}, ")):
        return None
    return arms[0], arms[1]


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


def _measure(claim: ClaimDocument, *, direction: bool = True) -> str:
    """What two arms are compared in: " in loss (lower is better)"."""
    measure = claim.get("measure") or (claim.get("metric") or "").replace("_", " ")
    if not measure:
        return ""
    return f" in {measure}" + (" (lower is better)" if direction and claim.get("higher") is False else "")


def _scaled(mean: float, low: float | None, high: float | None, claim: ClaimDocument) -> tuple[str, str]:
    """``("0.6 points", "0.3 to 0.9")``; the interval is "" if there is none."""
    factor = 1 if claim.get("scale") == "correlation" else claim.get("scale_factor") or 1
    values = [v * factor for v in (mean, low, high) if v is not None]
    size, *ends = _rounded(values)
    unit = "" if claim.get("scale") == "correlation" else _unit(size, claim.get("unit") or "")
    return f"{size}{unit}", " to ".join(ends)


def _rounded(values: Sequence[float]) -> list[str]:
    """A mean, and the two ends of its interval if it has one, rounded alike."""
    mean, low, high = values if len(values) == 3 else (values[0], None, None)
    return list(rounded(mean, low, high))[: len(values)]


def _unit(size: str, unit: str) -> str:
    """The unit after a number: " points" ("%" means percentage points), " point" after 1."""
    unit = "points" if unit == "%" else unit
    return f" {'point' if (size, unit) == ('1', 'points') else unit}" if unit else ""


def _statement(claim: ClaimDocument) -> str:
    return str(claim["statement"]).strip().rstrip(".")


def _started(text: str, claim: ClaimDocument) -> str:
    """A sentence's capital, unless it begins with the name of an arm, which is spelt as it is."""
    return text if any(text.startswith(arm) for arm in claim.get("arms") or []) else _capital(text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
