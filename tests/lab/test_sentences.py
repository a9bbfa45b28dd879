"""Sentences: the numbers of the judgement, in the unit and direction that people read."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trueup.lab import _formatting as formatting
from trueup.lab import _sentences as sentences
from trueup.lab import _verdict as verdict

CLAIM: dict[str, Any] = {
    "name": "accuracy",
    "kind": "statistical",
    "statement": "AdamP is more accurate than Adam.",
    "primary": True,
    "contrast": "adamp - adam, test_acc",
    "arms": ["adamp", "adam"],
    "metric": "test_acc",
    "scale": "difference",
    "unit": "points",
    "scale_factor": 100,
    "test": "superiority",
    "margin": 0.002,
    "level": 0.95,
    "n": 10,
    "mean": 0.006,
    "low": 0.003,
    "high": 0.009,
    "outcome": "reproduced",
    "note": "",
    "links": [],
    "controls": [],
    "survives": None,
    "more_seeds": None,
}
WORSE = {"mean": -0.006, "low": -0.009, "high": 0.001, "outcome": "contradicted", "note": "opposite"}
PLAIN = {"unit": "", "scale_factor": 1}


def sentence_of(**changes: Any) -> str:
    return sentences.claim_sentence(CLAIM | changes, "desk")


def details_of(**changes: Any) -> list[str]:
    return sentences.claim_details(CLAIM | changes)


STATISTICAL: list[tuple[dict[str, Any], str, list[str]]] = [
    (
        {},
        "adamp beats adam in test acc by 0.6 points (95 % interval 0.3 to 0.9).",
        ["10 seeds; minimum effect 0.2 points."],
    ),
    (
        {"labels": {"adamp": "AdamP", "adam": "Adam"}, "metric": "", "unit": "%", "level": 0.99},
        "AdamP beats Adam by 0.6 points (99 % interval 0.3 to 0.9).",
        ["10 seeds; minimum effect 0.2 points."],
    ),
    (  # a label that begins like its arm gets a capital, the name of an arm does not
        {"labels": {"adamp": "adamp with decay"}, "metric": ""},
        "Adamp with decay beats adam by 0.6 points (95 % interval 0.3 to 0.9).",
        ["10 seeds; minimum effect 0.2 points."],
    ),
    (
        WORSE,
        "Contradicted at desk scale: adamp is behind adam in test acc by 0.6 points "
        "(95 % interval −0.1 to 0.9).",
        ["The effect goes the other way.", "10 seeds; minimum effect 0.2 points."],
    ),
    (
        {"outcome": "contradicted", "mean": 0.001, "low": 0.0, "high": 0.002, "note": verdict.SIGN_OPEN},
        "Contradicted at desk scale: adamp is ahead of adam in test acc by 0.1 points "
        "(95 % interval 0.0 to 0.2).",
        [
            "A gain of the minimum effect or more is excluded, a smaller one is not.",
            "10 seeds; minimum effect 0.2 points.",
        ],
    ),
    (
        {"outcome": "inconclusive", "more_seeds": 14, "level": 0.96},
        "Inconclusive at desk scale: adamp is ahead of adam in test acc by 0.6 points "
        "(96 % interval 0.3 to 0.9).",
        [
            "About 14 more fresh seeds would decide an effect of this size.",
            "10 seeds; minimum effect 0.2 points.",
        ],
    ),
    (
        {"outcome": "inconclusive", "note": "uneven seeds", "more_seeds": 1},
        "Inconclusive at desk scale: adamp is ahead of adam in test acc by 0.6 points "
        "(95 % interval 0.3 to 0.9).",
        [
            "The seeds are uneven, and the two tests disagree.",
            "About 1 more fresh seed would decide an effect of this size.",
            "10 seeds; minimum effect 0.2 points.",
        ],
    ),
    (
        {"mean": 0.0, "low": -0.002, "high": 0.002, "outcome": "inconclusive"},
        "Inconclusive at desk scale: adamp equals adam in test acc on average (95 % interval −0.2 to 0.2).",
        ["10 seeds; minimum effect 0.2 points."],
    ),
    (  # nor is an arm behind by 0.0 points
        {"mean": -0.00001, "low": -0.002, "high": 0.00198, "outcome": "inconclusive"},
        "Inconclusive at desk scale: adamp equals adam in test acc on average (95 % interval −0.2 to 0.2).",
        ["10 seeds; minimum effect 0.2 points."],
    ),
    (
        {"n": 1, "low": None, "high": None, "outcome": "inconclusive", "note": "too few seeds"},
        "Inconclusive at desk scale: adamp is ahead of adam in test acc by 0.6 points.",
        ["So few seeds decide nothing.", "1 seed; minimum effect 0.2 points."],
    ),
    (
        {"mean": None, "outcome": "incomplete", "note": "a cell of adam at seed 3 is failed"},
        "Incomplete at desk scale: a cell of adam at seed 3 is failed.",
        [],
    ),
    # a log ratio: per cent below a factor of two
    (
        PLAIN
        | {"scale": "log", "contrast": "adamp / adam, test_acc"}
        | {"mean": 0.0953, "low": 0.0488, "high": 0.1398, "margin": 0.0488},
        "adamp is 10 % higher than adam in test acc (a factor of 1.1; 95 % interval 5 % to 15 % higher).",
        ["10 seeds; minimum effect a factor of 1.05."],
    ),
    (
        PLAIN
        | {"scale": "log", "contrast": "adamp / adam, test_acc"}
        | {"mean": -1.0986, "low": -1.3863, "high": -0.6931, "margin": 0.0953}
        | {"outcome": "contradicted", "note": "opposite"},
        "Contradicted at desk scale: adamp is 67 % lower than adam in test acc "
        "(a factor of 3; 95 % interval 50 % to 75 % lower).",
        ["The effect goes the other way.", "10 seeds; minimum effect a factor of 1.1."],
    ),
    # an equivalence says how large the difference is, and which way only where that matters
    (
        {"test": "equivalence", "mean": -0.0002, "low": -0.001, "high": 0.0006},
        "adamp and adam differ in test acc by 0.02 points, within the 0.2 points allowed "
        "(95 % interval −0.06 to 0.10).",
        ["10 seeds; up to 0.2 points either way is allowed."],
    ),
    (
        {"test": "equivalence", "outcome": "contradicted", "mean": -0.006, "low": -0.009, "high": -0.003}
        | {"note": "the difference is larger than the margin"},
        "Contradicted at desk scale: adamp and adam differ in test acc by 0.6 points, adam ahead "
        "(95 % interval 0.3 to 0.9).",
        [
            "The difference is larger than the margin.",
            "10 seeds; up to 0.2 points either way is allowed.",
        ],
    ),
    (
        {"test": "equivalence", "outcome": "inconclusive"},
        "Inconclusive at desk scale: adamp and adam differ in test acc by 0.6 points, adamp ahead "
        "(95 % interval 0.3 to 0.9).",
        ["10 seeds; up to 0.2 points either way is allowed."],
    ),
    (
        {"test": "non-inferiority", "mean": -0.001, "low": -0.0015, "high": -0.0005},
        "adamp is behind adam in test acc by 0.10 points, within the 0.2 points allowed "
        "(95 % interval 0.05 to 0.15).",
        ["10 seeds; up to 0.2 points behind is allowed."],
    ),
    (
        {"test": "non-inferiority"},
        "adamp is ahead of adam in test acc by 0.6 points (95 % interval 0.3 to 0.9).",
        ["10 seeds; up to 0.2 points behind is allowed."],
    ),
    # what is no comparison of two arms keeps its sign
    (
        PLAIN
        | {"scale": "correlation", "contrast": "kendall of score and acc, nets", "arms": ["nets"]}
        | {"statement": "Scores rank nets", "mean": 0.62, "low": 0.5, "high": 0.74, "margin": 0.3},
        "Scores rank nets: 0.62 (95 % interval 0.50 to 0.74).",
        ["10 seeds; minimum effect 0.3; measured as kendall of score and acc, nets."],
    ),
    (
        PLAIN
        | {"contrast": "end - start, nets", "arms": ["nets"], "statement": "Nets improve", "higher": False}
        | WORSE,
        "Contradicted at desk scale. Nets improve: −0.006 (95 % interval −0.009 to 0.001).",
        [
            "The effect goes the other way.",
            "10 seeds; minimum effect 0.002; measured as end - start, nets.",
        ],
    ),
    (
        PLAIN
        | {"contrast": "spread over lr: adam - adamp, acc", "statement": "AdamP is steadier"}
        | {"mean": -0.6, "low": -0.9, "high": -0.3, "outcome": "inconclusive"},
        "Inconclusive at desk scale: acc of adamp varies by 0.6 more over lr than that of adam "
        "(95 % interval 0.3 to 0.9).",
        ["10 seeds; minimum effect 0.002."],
    ),
]


@pytest.mark.parametrize(("changes", "sentence", "details"), STATISTICAL, ids=[s for _, s, _ in STATISTICAL])
def test_statistical_claims(changes: dict[str, Any], sentence: str, details: list[str]) -> None:
    assert sentence_of(**changes) == sentence
    assert details_of(**changes) == details


def test_in_one_line_seeds_and_minimum_effect_stand_in_brackets() -> None:
    """As the comparison of a user's own results shows them."""
    assert sentences.body(CLAIM | {"measure": "loss", "higher": False}) == (
        "adamp beats adam in loss (lower is better) by 0.6 points "
        "(95 % interval 0.3 to 0.9, 10 seeds; minimum effect 0.2 points)"
    )
    assert sentences.body(CLAIM | RATIO).endswith("minimum effect a factor of 1.1; lower is better)")


def test_the_rules_notes_are_put_into_words() -> None:
    assert {verdict.OPPOSITE, verdict.SIGN_OPEN} <= set(sentences._NOTES)


def test_an_ordering_lists_every_link() -> None:
    def link(better: str, worse: str, **changes: Any) -> dict[str, Any]:
        keys = ("test", "margin", "level", "n", "mean", "low", "high", "outcome", "note")
        shared = {k: CLAIM[k] for k in keys}
        return shared | {"text": f"{better} - {worse}, acc", "arms": [better, worse]} | changes

    links = [
        link("scaled", "large"),
        link(
            "ghost",
            "scaled",
            test="non-inferiority",
            mean=-0.006,
            low=-0.009,
            high=-0.003,
            outcome="contradicted",
        ),
        link("adapted", "ghost", outcome="inconclusive"),
        link("x", "y", mean=None, outcome="incomplete", note="not run"),
    ]
    ordering: dict[str, Any] = {
        "statement": "Each step helps.",
        "links": links,
        "labels": {"scaled": "+ rate"},
        "outcome": "contradicted",
        "note": "step 2 does not hold",
    }
    assert sentence_of(**ordering) == "Contradicted at desk scale. Each step helps: step 2 does not hold."
    assert details_of(**ordering) == [
        "10 seeds.",
        "Step 1: “+ rate” beats large by 0.6 points (95 % interval 0.3 to 0.9; minimum effect 0.2 points).",
        "Step 2: ghost is behind “+ rate” by 0.6 points (95 % interval 0.3 to 0.9; up to 0.2 points "
        "behind is allowed).",
        "Step 3: adapted is ahead of ghost by 0.6 points (95 % interval 0.3 to 0.9; minimum effect 0.2 "
        "points).",
        "Step 4: x over y: not run.",
    ]


def test_an_ordering_with_one_seed_has_no_intervals() -> None:
    link = {
        "text": "b - a, acc",
        "arms": ["b", "a"],
        "margin": 0.002,
        "level": 0.95,
        "n": 1,
        "mean": 0.006,
        "outcome": "inconclusive",
    }
    ordering = {"links": [link], "statement": "b wins", "outcome": "inconclusive", "n": 1}
    assert sentence_of(**ordering, note="too few seeds") == (
        "Inconclusive at desk scale. B wins: too few seeds."
    )
    assert details_of(**ordering, note="too few seeds") == [
        "1 seed.",
        "Step 1: b is ahead of a by 0.6 points (minimum effect 0.2 points).",
    ]


def exact(*deviations: float | None, broken: bool = True, **changes: Any) -> dict[str, Any]:
    instances = [
        {"name": f"i{i}", "deviation": v, "holds": v is not None and v <= 1e-8}
        for i, v in enumerate(deviations)
    ]
    control = {"label": "raw parts", "instances": [{"name": "i0", "deviation": 1.0, "holds": not broken}]}
    return {
        "name": "free",
        "kind": "exact",
        "primary": True,
        "statement": "No reference changes it.",
        "outcome": "reproduced",
        "tolerance": 1e-8,
        "instances": instances,
        "negative_control": control,
    } | changes


BREAKS = "the negative control (raw parts) breaks it."


@pytest.mark.parametrize(
    ("claim", "sentence", "details"),
    [
        (
            exact(0.0, 4e-14, 1e-15, 0.0),
            "No reference changes it: holds for all 4 instances.",
            [f"Largest deviation 4e-14, tolerance 1e-8; {BREAKS}"],
        ),
        (
            exact(0.0, 0.25, outcome="contradicted", note="does not hold for i1"),
            "Contradicted at desk scale. No reference changes it: fails for 1 of 2 instances.",
            ["Does not hold for i1.", f"Largest deviation 0.25, tolerance 1e-8; {BREAKS}"],
        ),
        (
            exact(None, outcome="contradicted"),
            "Contradicted at desk scale. No reference changes it: fails for 1 of 1 instance.",
            [f"Largest deviation infinity, tolerance 1e-8; {BREAKS}"],
        ),
        (
            exact(0.0, broken=False),
            "No reference changes it: holds for the one instance.",
            ["Largest deviation 0, tolerance 1e-8."],
        ),
        (
            exact(0.0, broken=False, outcome="invalid", note="the negative control does not break the claim"),
            "Invalid at desk scale: the negative control does not break the claim.",
            [],
        ),
        (
            exact(0.0, None, outcome="incomplete", note="instance i1 did not run"),
            "Incomplete at desk scale: instance i1 did not run.",
            [],
        ),
    ],
)
def test_exact_claims(claim: dict[str, Any], sentence: str, details: list[str]) -> None:
    assert sentences.claim_sentence(claim, "desk") == sentence
    assert sentences.claim_details(claim) == details


COST = {
    "name": "cheap",
    "kind": "cost",
    "primary": True,
    "statement": "AdamP is cheap.",
    "at_most": 2.0,
    "n": 21,
    "level": 0.95,
    "note": "",
    "mean": 0.2231,  # log(2 / 1.6)
    "low": 0.1054,
    "high": 0.3567,
    "outcome": "reproduced",
}


def test_cost_claims_are_multiples_of_the_peers_time() -> None:
    measured = "AdamP is cheap: {} times the peer's time (95 % interval {})."
    assert sentences.claim_sentence(COST, "desk") == measured.format("1.6", "1.4 to 1.8")
    assert sentences.claim_details(COST) == ["21 rounds; at most 2 is allowed."]
    slow = COST | {
        "mean": -0.2231,
        "low": -0.3567,
        "high": -0.1054,
        "outcome": "contradicted",
        "note": "opposite",
    }
    assert sentences.claim_sentence(slow, "desk") == (
        "Contradicted at desk scale. " + measured.format("2.50", "2.22 to 2.86")
    )
    assert sentences.claim_details(slow) == ["21 rounds; at most 2 is allowed."]
    open_ = COST | {"outcome": "inconclusive", "note": "uneven seeds"}
    assert sentences.claim_details(open_)[0] == "The rounds are uneven, and the two tests disagree."


def control(arm: str, **changes: Any) -> dict[str, Any]:
    judged = {k: CLAIM[k] for k in ("mean", "low", "high", "level", "outcome", "margin")}
    return judged | {"arm": arm, "d": [{}] * 20} | changes


@pytest.mark.parametrize(
    ("survives", "controls", "sentence"),
    [
        (None, [control("decay")], ""),
        ("survives", [], ""),
        (
            "survives",
            [control("decay")],
            "The gain survives its control: adamp beats decay by 0.6 points "
            "(95 % interval 0.3 to 0.9, 20 seeds; minimum effect 0.2 points).",
        ),
        (
            "explained",
            [
                control("decay"),
                control("noise", mean=-0.006, low=-0.009, high=-0.003, outcome="contradicted"),
            ],
            "A control explains the gain: adamp beats decay by 0.6 points "
            "(95 % interval 0.3 to 0.9, 20 seeds; minimum effect 0.2 points); "
            "adamp is behind noise by 0.6 points "
            "(95 % interval 0.3 to 0.9, 20 seeds; minimum effect 0.2 points).",
        ),
        (
            "undecided",
            [control("decay", mean=None, outcome="incomplete", note="")],
            "Whether the gain survives its control is undecided: decay: incomplete.",
        ),
    ],
)
def test_controls(survives: str | None, controls: list[dict[str, Any]], sentence: str) -> None:
    assert sentences.control_sentence(CLAIM | {"survives": survives, "controls": controls}) == sentence


def test_the_gain_that_a_control_explains_is_that_of_the_arm_claimed() -> None:
    asked = {"survives": "survives", "controls": [control("decay")]}
    links = [{"arms": ["scaled", "large"]}, {"arms": ["ghost", "scaled"]}]
    ordering = CLAIM | asked | {"links": links, "arms": ["large", "scaled", "ghost"]}
    assert "ghost beats decay" in sentences.control_sentence(ordering)
    labels = {"adamp": "AdamP", "decay": "Adam, less decay"}
    assert "AdamP beats “Adam, less decay” by" in sentences.control_sentence(
        CLAIM | asked | {"labels": labels}
    )
    assert "the method beats decay" in sentences.control_sentence(CLAIM | asked | {"arms": []})


def test_a_control_at_the_claims_own_seeds_is_short() -> None:
    asked = {"survives": "survives", "controls": [control("decay", d=[{}] * 10)]}
    short = "The gain survives its control: adamp beats decay by 0.6 points (0.3 to 0.9)."
    assert sentences.control_sentence(CLAIM | asked) == short


def test_the_details_say_where_lower_is_better() -> None:
    loss = {"measure": "test loss", "higher": False}
    assert sentence_of(**loss).startswith("adamp beats adam in test loss by")
    assert details_of(**loss) == ["10 seeds; minimum effect 0.2 points; lower is better."]


@pytest.mark.parametrize(
    ("control", "detail"),
    [
        ("survives", "The gains survive their controls."),
        ("explained", "But a control explains the gain of accuracy."),
        ("undecided", "Whether the gain of accuracy survives its control is undecided."),
    ],
)
def test_several_controlled_gains_share_a_sentence(control: str, detail: str) -> None:
    claims = [CLAIM | {"survives": control}, CLAIM | {"name": "speed", "survives": "survives"}]
    assert detail in sentences.paper_details("reproduced", control, claims, "desk")


@pytest.mark.parametrize(
    ("control", "survives", "detail"),
    [
        ("survives", ["survives"], "The gain of gain-0 survives its control."),
        ("explained", ["explained"], "But a control explains the gain of gain-0."),
        ("explained", ["survives", "explained"], "But a control explains the gain of gain-1."),
        ("explained", ["explained"] * 2, "But controls explain the gains of gain-0 and gain-1."),
        ("undecided", ["undecided"], "Whether the gain of gain-0 survives its control is undecided."),
    ],
)
def test_a_controlled_gain_is_named_if_the_sentence_is_on_another_claim(
    control: str, survives: list[str], detail: str
) -> None:
    gains = [CLAIM | {"name": f"gain-{i}", "survives": word} for i, word in enumerate(survives)]
    details = sentences.paper_details("partly", control, [CLAIM | {"name": "first"}, *gains], "desk")
    assert details[0] == detail
    assert details[-1].endswith("The first sentence is on first.")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("digits", "ImageNet"), "Tested on digits; the paper used ImageNet."),
        (("digits", ""), "Tested on digits."),
        (("", "ImageNet"), "The paper used ImageNet."),
        (("", ""), ""),
    ],
)
def test_scope(given: tuple[str, str], sentence: str) -> None:
    assert sentences.scope_sentence(*given) == sentence


BODY = "adamp beats adam in test acc by 0.6 points (95 % interval 0.3 to 0.9)"
AHEAD = BODY.replace("beats", "is ahead of")
OPEN = CLAIM | {"name": "speed", "outcome": "inconclusive", "more_seeds": 3}
LOST = CLAIM | WORSE
SMALL = CLAIM | {"mean": 0.001, "low": 0.0005, "high": 0.0015, "outcome": "smaller"}
LABELLED = {"arms": ["small", "adam"], "contrast": "small - adam, acc", "labels": {"small": "batch 32"}}


@pytest.mark.parametrize(
    ("outcome", "claims", "sentence", "details"),
    [
        ("reproduced", [CLAIM], f"{BODY}.", []),
        ("reproduced", [CLAIM | LABELLED], BODY.replace("adamp", "Batch 32") + ".", []),
        (
            "inconclusive",
            [OPEN],
            f"Inconclusive at desk scale: {AHEAD}.",
            ["About 3 more fresh seeds would decide an effect of this size."],
        ),
        (
            "inconclusive",
            [OPEN | {"more_seeds": None, "note": "the problem did not arise here (ill)"}],
            f"Inconclusive at desk scale: {AHEAD}.",
            ["The problem did not arise here (ill)."],
        ),
        (
            "contradicted",
            [LOST],
            "Contradicted at desk scale: adamp is behind adam in test acc by 0.6 points "
            "(95 % interval −0.1 to 0.9).",
            ["The effect goes the other way."],
        ),
        (
            "reproduced",
            [CLAIM | {"contrast": "end - start", "arms": ["adamp"]}],
            "AdamP is more accurate than Adam: 0.6 points (95 % interval 0.3 to 0.9).",
            ["Measured as end - start."],
        ),
        (
            "smaller",
            [LOST, SMALL | {"name": "gain"}],
            "Below the minimum effect at desk scale: adamp is ahead of adam in test acc by 0.10 points "
            "(95 % interval 0.05 to 0.15).",
            [
                "The minimum effect is 0.2 points.",
                "1 of 2 primary claims below the minimum effect (gain), 1 contradicted at desk scale "
                "(accuracy). The first sentence is on gain.",
            ],
        ),
        (
            "partly",
            [LOST, CLAIM | {"name": "gain"}, exact(0.0), OPEN],
            f"Partly reproduced at desk scale: {BODY}.",
            [
                "2 of 4 primary claims reproduced (gain, free), 1 inconclusive (speed), "
                "1 contradicted at desk scale (accuracy). The first sentence is on gain."
            ],
        ),
        (
            "partly",
            [exact(0.0, 0.0), LOST],
            "Partly reproduced at desk scale. No reference changes it: holds for all 2 instances.",
            [
                "1 of 2 primary claims reproduced (free), 1 contradicted at desk scale (accuracy). "
                "The first sentence is on free."
            ],
        ),
        (
            "reproduced",
            [exact(0.0), CLAIM, OPEN | {"primary": False}],
            f"{BODY}.",
            ["Both primary claims reproduced (free, accuracy). The first sentence is on accuracy."],
        ),
        (
            "incomplete",
            [CLAIM, exact(0.0, outcome="incomplete", note="instance i0 did not run")],
            "Incomplete at desk scale: instance i0 did not run.",
            [
                "1 of 2 primary claims reproduced (accuracy), 1 incomplete (free). "
                "The first sentence is on free."
            ],
        ),
        ("none", [CLAIM | {"primary": False}], "No verdict: no primary claim was judged.", []),
    ],
)
def test_the_verdict_of_a_paper(
    outcome: str, claims: list[dict[str, Any]], sentence: str, details: list[str]
) -> None:
    assert sentences.paper_sentence(outcome, claims, "desk") == sentence
    assert sentences.paper_details(outcome, None, claims, "desk") == details


def test_a_papers_details_are_its_control_its_scope_and_a_count() -> None:
    scope = sentences.scope_sentence("digits with a 5k-parameter network", "ImageNet")
    claims = [CLAIM | {"survives": "survives"}, exact(0.0)]
    assert sentences.paper_details("reproduced", "survives", claims, "desk", scope) == [
        "The gain survives its control.",
        "Tested on digits with a 5k-parameter network; the paper used ImageNet.",
        "Both primary claims reproduced (accuracy, free). The first sentence is on accuracy.",
    ]


def test_the_first_sentence_of_an_ordering_says_which_steps_hold() -> None:
    links = [{"text": f"{b} - {a}, acc", "arms": [b, a], "outcome": "reproduced"} for a, b in ("ab", "bc")]
    ordering = CLAIM | {"statement": "Each step helps.", "links": links}
    assert sentences.paper_sentence("reproduced", [ordering], "desk") == "Each step helps: both steps hold."
    three = ordering | {"links": [*links, links[0]]}
    assert sentences.claim_sentence(three, "desk") == "Each step helps: all 3 steps hold."
    links[1]["outcome"] = "smaller"
    assert sentences.claim_sentence(ordering, "desk") == "Each step helps: 1 of 2 steps hold."
    noted = ordering | {"note": "step 2 is undecided"}
    assert sentences.claim_sentence(noted, "desk") == "Each step helps: step 2 is undecided."


def test_smoke_has_no_verdict() -> None:
    assert sentences.paper_sentence("none", [], "smoke").startswith("No verdict: smoke scale only shows")
    assert sentences.paper_details("none", None, [], "smoke", "Tested on digits.") == []


@pytest.mark.parametrize("scale", ["desk", "paper"])
def test_contradicted_is_always_followed_by_its_scale(scale: str) -> None:
    texts = [
        sentences.claim_sentence(LOST, scale),
        sentences.claim_sentence(spread_claim(outcome="contradicted", note="step 2 does not hold"), scale),
        sentences.paper_sentence("contradicted", [LOST], scale),
        *sentences.paper_details("contradicted", None, [LOST, LOST], scale)[1:],
        *sentences.paper_details("partly", None, [CLAIM, LOST], scale),
    ]
    for sentence in texts:
        count = sentence.lower().count("contradicted")
        assert count == sentence.lower().count(f"contradicted at {scale} scale") > 0


# -- ratios, where lower is better

RATIO = {
    "scale": "log",
    "unit": "",
    "scale_factor": 1,
    "higher": False,
    "measure": "growth",
    "contrast": "adamp / adamw, growth",
    "arms": ["adamp", "adamw"],
    "labels": {"adamp": "AdamP", "adamw": "AdamW"},
    "margin": 0.0953,
    "level": 0.99,
    "mean": math.log(2.486 / 1.996),
    "low": 0.2107,
    "high": 0.2280,
}


def test_a_gain_where_lower_is_better_is_a_reduction() -> None:
    """Means of 1.996 against 2.486 are 20 % lower, not 24.6 % better."""
    sentence = (
        "AdamP is 19.7 % lower than AdamW in growth (a factor of 1.25; 99 % interval 19.0 % to 20.4 % lower)."
    )
    assert sentence_of(**RATIO) == sentence
    assert details_of(**RATIO) == ["10 seeds; minimum effect a factor of 1.1; lower is better."]
    assert sentences.paper_sentence("reproduced", [CLAIM | RATIO], "desk") == sentence
    worse = {"mean": -0.2231, "low": -0.2624, "high": 0.0488, "outcome": "inconclusive"}
    assert sentence_of(**RATIO | worse) == (
        "Inconclusive at desk scale: AdamP is 25 % higher than AdamW in growth "
        "(a factor of 1.25; 99 % interval 5 % lower to 30 % higher)."
    )


def test_a_gain_over_a_control_is_a_reduction_too() -> None:
    measured = {k: RATIO[k] for k in ("mean", "low", "high", "level")}
    asked = CLAIM | RATIO | {"survives": "survives", "controls": [control("decay", **measured)]}
    assert "AdamP is 19.7 % lower than decay (a factor of 1.25; 99 %" in sentences.control_sentence(asked)


def test_a_large_ratio_is_a_factor() -> None:
    large = {"higher": True, "mean": math.log(3), "low": math.log(2), "high": math.log(4)}
    assert sentence_of(**RATIO | large) == (
        "AdamP is 3 times as high as AdamW in growth (99 % interval 2 to 4 times)."
    )
    equal = {"mean": 0.0, "low": -0.1, "high": 0.1, "outcome": "inconclusive"}
    assert ": AdamP equals AdamW in growth on average (a factor of 1; 99 %" in sentence_of(**RATIO | equal)


@pytest.mark.parametrize(
    ("part", "label"),
    [
        ({"contrast": "a / b, loss", "arms": ["a", "b"], "higher": False}, "b / a, loss"),
        ({"contrast": "a - b, loss", "arms": ["a", "b"], "higher": False}, "b - a, loss"),
        ({"contrast": "a - b, acc", "arms": ["a", "b"], "higher": True}, "a - b, acc"),
        ({"contrast": "a - b, acc", "arms": ["a", "b"]}, "a - b, acc"),
        # a spread is of other - steadier, whatever the metric; an ordering is in order of merit
        (
            {"contrast": "spread over lr: b - a, loss", "arms": ["a", "b"], "higher": False},
            "spread over lr: b - a, loss",
        ),
        ({"contrast": "a < b, loss", "arms": ["a", "b"], "higher": False}, "a < b, loss"),
    ],
)
def test_a_label_has_the_order_of_the_number(part: dict[str, Any], label: str) -> None:
    assert sentences.contrast_label(part) == label


def test_the_label_of_a_link_takes_the_direction_of_its_claim() -> None:
    link = {"text": "a - b, loss", "arms": ["a", "b"]}
    assert sentences.contrast_label(link, higher=False) == "b - a, loss"
    assert sentences.contrast_label(link, higher=True) == "a - b, loss"


# -- a gain below the minimum effect


def test_a_gain_below_the_minimum_says_what_the_minimum_is() -> None:
    assert sentences.claim_sentence(SMALL, "desk") == (
        "Below the minimum effect at desk scale: adamp is ahead of adam in test acc by 0.10 points "
        "(95 % interval 0.05 to 0.15)."
    )
    assert sentences.claim_details(SMALL) == ["10 seeds; minimum effect 0.2 points."]
    ratio = SMALL | RATIO | {"margin": 0.2624}
    assert sentences.paper_details("smaller", None, [ratio], "desk") == [
        "The minimum effect is a factor of 1.3."
    ]
    chain = SMALL | {"links": [{"text": "b - a, acc", "arms": ["b", "a"], "outcome": "smaller", "note": ""}]}
    assert sentences.paper_details("smaller", None, [chain], "desk") == []


@pytest.mark.parametrize("outcome", ["smaller", "inconclusive"])
def test_a_control_of_what_is_not_reproduced(outcome: str) -> None:
    """Asked at margin 0 of a gain below the minimum; shown too where an edge leaves the claim open."""
    asked = SMALL | {"outcome": outcome, "survives": "survives", "controls": [control("decay", margin=0.0)]}
    assert sentences.control_sentence(asked) == (
        "Against its control, the gain holds: adamp beats decay by 0.6 points "
        "(95 % interval 0.3 to 0.9, 20 seeds)."
    )
    asked |= {"survives": "explained", "controls": [*asked["controls"], control("noise", **WORSE)]}
    assert sentences.control_sentence(asked).startswith("Against its controls, the gain does not hold: ")
    asked |= {"survives": "undecided"}
    assert sentences.control_sentence(asked).startswith("Against its controls, the gain is undecided: ")


# -- spreads


def spread_claim(**changes: Any) -> dict[str, Any]:
    shared = {k: CLAIM[k] for k in ("margin", "level", "n", "mean", "low", "high", "outcome", "note")}
    steady = shared | {"text": "spread over lr: bn - ln, nll", "arms": ["ln", "bn"], "test": "superiority"}
    no_worse = shared | {"text": "ln - bn, nll", "arms": ["ln", "bn"], "test": "non-inferiority"}
    no_worse |= {"mean": -0.001, "low": -0.0015, "high": -0.0005}
    known = {"statement": "LN is steadier.", "contrast": steady["text"], "arms": ["ln", "bn"]}
    known |= {"links": [steady, no_worse], "labels": {"ln": "LN", "bn": "BN"}, "measure": "test NLL"}
    return CLAIM | PLAIN | known | {"higher": False} | changes


def test_a_spread_claim_lists_both_its_parts() -> None:
    sentence = "Test NLL of LN varies by 0.006 less over lr than that of BN (95 % interval 0.003 to 0.009)."
    assert sentences.claim_sentence(spread_claim(), "desk") == sentence
    assert sentences.paper_sentence("reproduced", [spread_claim()], "desk") == sentence
    assert sentences.claim_details(spread_claim()) == [
        "10 seeds; lower is better.",
        "Step 1: test NLL of LN varies by 0.006 less over lr than that of BN "
        "(95 % interval 0.003 to 0.009; minimum effect 0.002).",
        "Step 2: at the best setting LN is behind BN by 0.0010 "
        "(95 % interval 0.0005 to 0.0015; up to 0.002 behind is allowed).",
    ]


def test_a_spread_claim_that_its_second_part_decides_says_so() -> None:
    claim = spread_claim(outcome="contradicted", note="step 2 does not hold")
    assert sentences.claim_sentence(claim, "desk") == (
        "Contradicted at desk scale. LN is steadier: step 2 does not hold."
    )
    claim["links"][0]["outcome"] = "contradicted"
    assert "varies by 0.006 less" in sentences.claim_sentence(claim, "desk")


def test_a_gain_over_a_control_of_a_spread_is_a_spread() -> None:
    asked = spread_claim(survives="survives", controls=[control("decay")])
    assert sentences.control_sentence(asked) == (
        "The gain survives its control: test NLL of LN varies by 0.006 less over lr than that of decay "
        "(95 % interval 0.003 to 0.009, 20 seeds; minimum effect 0.002)."
    )


# -- what to keep in mind


def test_strongly_skewed_seeds_are_a_warning() -> None:
    assert (
        sentences.warnings(CLAIM)
        == sentences.warnings({"skew": None})
        == sentences.warnings({"skew": -1.0})
        == []
    )
    for skew in (1.1, -2.0):
        (text,) = sentences.warnings({"skew": skew})
        assert text.startswith("These seeds are strongly skewed")


def test_how_rare_a_divergence_could_have_been_missed() -> None:
    sentence = sentences.divergence_sentence({"n": 20, "missable_divergence": 0.139})
    assert sentence == "20 seeds without a divergence do not exclude one in 8 runs."
    assert (
        sentences.divergence_sentence(CLAIM)
        == sentences.divergence_sentence({"missable_divergence": None})
        == ""
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0123456, "−0.0123"),
        (1234567.0, "1,234,567"),
        (0.5, "0.5"),
        (100.0, "100"),
        (1e-8, "1e-8"),
        (2.5e10, "2.5e10"),
        (float("nan"), "not a number"),
        (float("-inf"), "−infinity"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert formatting.number(value) == text


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (0.61234, 0.3141, 0.9201, "by 0.61 (95 % interval 0.31 to 0.92)."),
        (612.34, 314.1, 920.1, "by 612 (95 % interval 314 to 920)."),
        (6123.4, 3141.0, 9201.0, "by 6,123 (95 % interval 3,141 to 9,201)."),
        (1e-9, 0.5e-9, 1.5e-9, "by 1e-9 (95 % interval 5e-10 to 1.5e-9)."),
        (0.2, 0.2, 0.2, "by 0.2 (95 % interval 0.2 to 0.2)."),
        (0.04, -0.004, 0.084, "by 0.040 (95 % interval −0.004 to 0.084)."),
        (0.4, -0.0001, 0.8001, "by 0.4 (95 % interval 0.0 to 0.8)."),
    ],
)
def test_mean_and_interval_are_rounded_alike(mean: float, low: float, high: float, text: str) -> None:
    assert sentence_of(mean=mean, low=low, high=high, metric="", **PLAIN) == f"adamp beats adam {text}"
