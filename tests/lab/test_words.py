"""Sentences: the numbers of the judgement, in the unit and direction that people read."""

from __future__ import annotations

from typing import Any

import pytest

from trueup.lab import numerals, words

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


def told(**changes: Any) -> str:
    return words.claim_sentence(CLAIM | changes, "desk")


STATISTICAL: list[tuple[dict[str, Any], str]] = [
    (
        {},
        "adamp beats adam in test acc by 0.6 points "
        "(95 % interval 0.3 to 0.9, 10 seeds; 0.2 was asked for): reproduced.",
    ),
    (
        {"labels": {"adamp": "AdamP", "adam": "Adam"}, "metric": "", "unit": "%", "level": 0.99},
        "AdamP beats Adam by 0.6 points (99 % interval 0.3 to 0.9, 10 seeds; 0.2 was asked for): reproduced.",
    ),
    (
        WORSE,
        "adamp is behind adam in test acc by 0.6 points (95 % interval −0.1 to 0.9, 10 seeds; "
        "a gain of 0.2 was asked for): contradicted at desk scale: opposite.",
    ),
    (
        {"outcome": "inconclusive", "more_seeds": 14, "level": 0.96},
        "adamp is ahead of adam in test acc by 0.6 points (96 % interval 0.3 to 0.9, 10 seeds; 0.2 was asked "
        "for): inconclusive; about 14 more fresh seeds would decide an effect of this size.",
    ),
    (
        {"outcome": "inconclusive", "note": "uneven seeds", "more_seeds": 1},
        "adamp is ahead of adam in test acc by 0.6 points (95 % interval 0.3 to 0.9, 10 seeds; 0.2 was asked "
        "for): inconclusive: uneven seeds; about 1 more fresh seed would decide an effect of this size.",
    ),
    (
        {"mean": 0.0, "low": -0.002, "high": 0.002, "outcome": "inconclusive"},
        "adamp equals adam in test acc on average, a difference of 0.0 points "
        "(95 % interval −0.2 to 0.2, 10 seeds; 0.2 was asked for): inconclusive.",
    ),
    (
        {"n": 1, "low": None, "high": None, "outcome": "inconclusive", "note": "too few seeds"},
        "adamp is ahead of adam in test acc by 0.6 points (1 seed; 0.2 was asked for): "
        "inconclusive: too few seeds.",
    ),
    (
        {"mean": None, "outcome": "incomplete", "note": "a cell of adam at seed 3 is failed"},
        "AdamP is more accurate than Adam: incomplete: a cell of adam at seed 3 is failed.",
    ),
    # a log ratio: per cent below a factor of two
    (
        PLAIN
        | {"scale": "log", "contrast": "adamp / adam, test_acc"}
        | {"mean": 0.0953, "low": 0.0488, "high": 0.1398, "margin": 0.0488},
        "adamp beats adam in test acc by 10 % (95 % interval 5 to 15, 10 seeds; 5 % was asked for): "
        "reproduced.",
    ),
    (
        PLAIN
        | {"scale": "log", "contrast": "adamp / adam, test_acc"}
        | {"mean": -1.0986, "low": -1.3863, "high": -0.6931, "margin": 0.0953}
        | {"outcome": "contradicted", "note": "opposite"},
        "adamp is behind adam in test acc by a factor of 3 (95 % interval 2 to 4, 10 seeds; "
        "a gain of 1.1 was asked for): contradicted at desk scale: opposite.",
    ),
    # no direction, or no margin to beat
    (
        {"test": "equivalence", "mean": -0.0002, "low": -0.001, "high": 0.0006},
        "adamp and adam differ in test acc by −0.02 points (95 % interval −0.10 to 0.06, 10 seeds; "
        "at most 0.2 either way was asked for): reproduced.",
    ),
    (
        {"test": "non-inferiority", "mean": -0.001, "low": -0.0015, "high": -0.0005},
        "adamp is behind adam in test acc by 0.10 points (95 % interval 0.05 to 0.15, 10 seeds; "
        "at most 0.2 behind was asked for): reproduced.",
    ),
    # what is no comparison of two arms keeps its sign
    (
        PLAIN
        | {"scale": "correlation", "contrast": "kendall of score and acc, nets", "arms": ["nets"]}
        | {"statement": "Scores rank nets", "mean": 0.62, "low": 0.5, "high": 0.74, "margin": 0.3},
        "Scores rank nets: kendall of score and acc, nets is 0.62 "
        "(95 % interval 0.50 to 0.74, 10 seeds; 0.3 was asked for): reproduced.",
    ),
    (
        PLAIN
        | {"contrast": "spread over lr: adam - adamp, acc", "statement": "AdamP is steadier"}
        | {"mean": -0.6, "low": -0.9, "high": -0.3, "outcome": "inconclusive"},
        "AdamP is steadier: spread over lr: adam - adamp, acc is −0.6 "
        "(95 % interval −0.9 to −0.3, 10 seeds; 0.002 was asked for): inconclusive.",
    ),
    (
        PLAIN | {"contrast": "", "arms": [], "test": "equivalence", "margin": 1.0},
        "AdamP is more accurate than Adam: the contrast is 0.006 "
        "(95 % interval 0.003 to 0.009, 10 seeds; equivalence within 1 was asked for): reproduced.",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), STATISTICAL, ids=[s for _, s in STATISTICAL])
def test_statistical_claims(changes: dict[str, Any], sentence: str) -> None:
    assert told(**changes) == sentence


def test_an_ordering_tells_every_link() -> None:
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
    sentence = told(
        statement="Each step helps.",
        links=links,
        labels={"scaled": "+ rate"},
        outcome="contradicted",
        note="step 2 does not hold",
    )
    assert sentence == (
        "Each step helps (95 % intervals, 10 seeds): "
        "(1) “+ rate” over large 0.6 points (0.3 to 0.9; 0.2 was asked for); "
        "(2) ghost over “+ rate” −0.6 points (−0.9 to −0.3; −0.2 was asked for); "
        "(3) adapted over ghost 0.6 points (0.3 to 0.9; 0.2 was asked for); "
        "(4) x over y: not run: contradicted at desk scale: step 2 does not hold."
    )


def test_an_ordering_with_one_seed_has_no_intervals() -> None:
    link = {
        "arms": ["b", "a"],
        "margin": 0.002,
        "level": 0.95,
        "n": 1,
        "mean": 0.006,
        "outcome": "inconclusive",
    }
    sentence = told(links=[link], statement="b wins", outcome="inconclusive", note="too few seeds")
    assert sentence == (
        "b wins (1 seed): (1) b over a 0.6 points (0.2 was asked for): inconclusive: too few seeds."
    )


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


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        (
            exact(0.0, 4e-14, 1e-15, 0.0),
            "No reference changes it: holds for all 4 instances (largest deviation 4e-14, tolerance 1e-8); "
            "the negative control (raw parts) breaks it: reproduced.",
        ),
        (
            exact(0.0, 0.25, outcome="contradicted", note="does not hold for i1"),
            "No reference changes it: fails for 1 of 2 instances (largest deviation 0.25, tolerance 1e-8); "
            "the negative control (raw parts) breaks it: contradicted at desk scale: does not hold for i1.",
        ),
        (
            exact(None, outcome="contradicted"),
            "No reference changes it: fails for 1 of 1 instance (largest deviation infinity, "
            "tolerance 1e-8); the negative control (raw parts) breaks it: contradicted at desk scale.",
        ),
        (
            exact(0.0, broken=False, outcome="invalid", note="the negative control does not break the claim"),
            "No reference changes it: holds for the one instance (largest deviation 0, tolerance 1e-8): "
            "invalid: the negative control does not break the claim.",
        ),
        (
            exact(0.0, None, outcome="incomplete", note="instance i1 did not run"),
            "No reference changes it: incomplete: instance i1 did not run.",
        ),
    ],
)
def test_exact_claims(claim: dict[str, Any], sentence: str) -> None:
    assert words.claim_sentence(claim, "desk") == sentence


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


def test_cost_claims_are_told_as_times_of_the_peer() -> None:
    measured = (
        "AdamP is cheap: {} times the peer's time (95 % interval {}, 21 rounds; at most 2 was asked for)"
    )
    assert words.claim_sentence(COST, "desk") == measured.format("1.6", "1.4 to 1.8") + ": reproduced."
    slow = COST | {
        "mean": -0.2231,
        "low": -0.3567,
        "high": -0.1054,
        "outcome": "contradicted",
        "note": "opposite",
    }
    assert words.claim_sentence(slow, "desk") == (
        measured.format("2.50", "2.22 to 2.86") + ": contradicted at desk scale."
    )
    open_ = COST | {"outcome": "inconclusive", "note": "uneven seeds"}
    assert words.claim_sentence(open_, "desk").endswith("inconclusive: uneven rounds.")


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
            "(95 % interval 0.3 to 0.9, 20 seeds; 0.2 was asked for).",
        ),
        (
            "explained",
            [
                control("decay"),
                control("noise", mean=-0.006, low=-0.009, high=-0.003, outcome="contradicted"),
            ],
            "A control explains the gain: adamp beats decay by 0.6 points "
            "(95 % interval 0.3 to 0.9, 20 seeds; 0.2 was asked for); adamp is behind noise by 0.6 points "
            "(95 % interval 0.3 to 0.9, 20 seeds; a gain of 0.2 was asked for).",
        ),
        (
            "undecided",
            [control("decay", mean=None, outcome="incomplete", note="")],
            "Whether the gain survives its control is undecided: decay: incomplete.",
        ),
    ],
)
def test_controls(survives: str | None, controls: list[dict[str, Any]], sentence: str) -> None:
    assert words.control_sentence(CLAIM | {"survives": survives, "controls": controls}) == sentence


def test_the_gain_that_a_control_explains_is_that_of_the_arm_claimed() -> None:
    asked = {"survives": "survives", "controls": [control("decay")]}
    links = [{"arms": ["scaled", "large"]}, {"arms": ["ghost", "scaled"]}]
    ordering = CLAIM | asked | {"links": links, "arms": ["large", "scaled", "ghost"]}
    assert "ghost beats decay" in words.control_sentence(ordering)
    labels = {"adamp": "AdamP", "decay": "Adam, less decay"}
    assert "AdamP beats “Adam, less decay” by" in words.control_sentence(CLAIM | asked | {"labels": labels})
    assert "the method beats decay" in words.control_sentence(CLAIM | asked | {"arms": []})


def test_a_control_at_the_claims_own_seeds_is_told_briefly() -> None:
    asked = {"survives": "survives", "controls": [control("decay", d=[{}] * 10)]}
    told_briefly = "The gain survives its control: adamp beats decay by 0.6 points (0.3 to 0.9)."
    assert words.control_sentence(CLAIM | asked) == told_briefly


def test_the_measure_says_which_direction_is_better_where_it_is_not_more() -> None:
    loss = {"measure": "test loss", "higher": False}
    assert told(**loss).startswith("adamp beats adam in test loss (lower is better) by")
    assert told(measure="test accuracy", higher=True).startswith("adamp beats adam in test accuracy by")


@pytest.mark.parametrize(
    ("control", "ending"),
    [
        ("survives", "; the gains survive their controls."),
        ("explained", "; but a control explains the gain of accuracy."),
        ("undecided", "; whether the gain of accuracy survives its control is undecided."),
    ],
)
def test_several_controlled_gains_are_told_together(control: str, ending: str) -> None:
    claims = [CLAIM | {"survives": control}, CLAIM | {"name": "speed", "survives": "survives"}]
    assert words.paper_sentence("reproduced", control, claims, "desk").endswith(ending)


@pytest.mark.parametrize(
    ("control", "survives", "ending"),
    [
        ("survives", ["survives"], "; the gain of gain-0 survives its control."),
        ("explained", ["explained"], "; but a control explains the gain of gain-0."),
        ("explained", ["survives", "explained"], "; but a control explains the gain of gain-1."),
        ("explained", ["explained"] * 2, "; but controls explain the gains of gain-0 and gain-1."),
        ("undecided", ["undecided"], "; whether the gain of gain-0 survives its control is undecided."),
    ],
)
def test_a_controlled_gain_is_named_if_the_sentence_is_on_another_claim(
    control: str, survives: list[str], ending: str
) -> None:
    gains = [CLAIM | {"name": f"gain-{i}", "survives": word} for i, word in enumerate(survives)]
    told = words.paper_sentence("partly", control, [LOST, *gains], "desk")
    assert "Of these, accuracy: " in told
    assert told.endswith(ending)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("digits", "ImageNet"), "tested on digits; the paper: ImageNet"),
        (("digits", ""), "tested on digits"),
        (("", "ImageNet"), "the paper: ImageNet"),
        (("", ""), ""),
    ],
)
def test_scope(given: tuple[str, str], sentence: str) -> None:
    assert words.scope_sentence(*given) == sentence


BODY = "adamp beats adam in test acc by 0.6 points (95 % interval 0.3 to 0.9, 10 seeds; 0.2 was asked for)"
BEHIND = (
    "adamp is behind adam in test acc by 0.6 points "
    "(95 % interval −0.1 to 0.9, 10 seeds; a gain of 0.2 was asked for)"
)
AHEAD = BODY.replace("beats", "is ahead of")
OPEN = CLAIM | {"name": "speed", "outcome": "inconclusive", "more_seeds": 3}
LOST = CLAIM | WORSE


@pytest.mark.parametrize(
    ("outcome", "control", "claims", "sentence"),
    [
        (
            "reproduced",
            "survives",
            [CLAIM | {"survives": "survives"}],
            f"Reproduced at desk scale: {BODY}; the gain survives its control.",
        ),
        (
            "reproduced",
            "explained",
            [CLAIM | {"survives": "explained"}],
            f"Reproduced at desk scale: {BODY}; but a control explains the gain.",
        ),
        (
            "reproduced",
            "undecided",
            [CLAIM | {"survives": "undecided"}],
            f"Reproduced at desk scale: {BODY}; whether the gain survives its control is undecided.",
        ),
        (
            "inconclusive",
            None,
            [OPEN],
            f"Inconclusive at desk scale: {AHEAD}; "
            "about 3 more fresh seeds would decide an effect of this size.",
        ),
        (
            "contradicted",
            None,
            [LOST],
            f"Contradicted at desk scale: {BEHIND}; opposite.",
        ),
        (
            "partly",
            None,
            [exact(0.0), LOST, OPEN],
            "Partly reproduced at desk scale: 1 of 3 primary claims reproduced (free), "
            "1 inconclusive (speed), 1 contradicted at desk scale (accuracy). "
            f"Of these, accuracy: {BEHIND}: contradicted at desk scale: opposite.",
        ),
        (
            "reproduced",
            None,
            [exact(0.0), CLAIM, OPEN | {"primary": False}],
            f"Reproduced at desk scale: both primary claims (free, accuracy). Of these, accuracy: {BODY}.",
        ),
        (
            "incomplete",
            None,
            [CLAIM, exact(0.0, outcome="incomplete", note="instance i0 did not run")],
            "Incomplete at desk scale: 1 of 2 primary claims reproduced (accuracy), 1 incomplete (free). "
            "Of these, free: No reference changes it: incomplete: instance i0 did not run.",
        ),
        ("none", None, [CLAIM | {"primary": False}], "No verdict: no primary claim was judged."),
    ],
)
def test_the_verdict_of_a_paper(
    outcome: str, control: str | None, claims: list[dict[str, Any]], sentence: str
) -> None:
    assert words.paper_sentence(outcome, control, claims, "desk") == sentence


def test_smoke_has_no_verdict() -> None:
    assert words.paper_sentence("none", None, [], "smoke").startswith("No verdict: smoke scale only shows")


@pytest.mark.parametrize("scale", ["desk", "paper"])
def test_contradicted_is_always_followed_by_its_scale(scale: str) -> None:
    sentences = [
        words.claim_sentence(LOST, scale),
        words.paper_sentence("contradicted", None, [LOST], scale),
        words.paper_sentence("contradicted", None, [LOST, LOST], scale),
        words.paper_sentence("partly", None, [CLAIM, LOST], scale),
    ]
    for sentence in sentences:
        count = sentence.lower().count("contradicted")
        assert count == sentence.lower().count(f"contradicted at {scale} scale") > 0


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
    assert numerals.number(value) == text


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (0.61234, 0.3141, 0.9201, "by 0.61 (95 % interval 0.31 to 0.92,"),
        (612.34, 314.1, 920.1, "by 612 (95 % interval 314 to 920,"),
        (6123.4, 3141.0, 9201.0, "by 6,123 (95 % interval 3,141 to 9,201,"),
        (1e-9, 0.5e-9, 1.5e-9, "by 1e-9 (95 % interval 5e-10 to 1.5e-9,"),
        (0.2, 0.2, 0.2, "by 0.2 (95 % interval 0.2 to 0.2,"),
        (0.04, -0.004, 0.084, "by 0.040 (95 % interval −0.004 to 0.084,"),
        (0.4, -0.0001, 0.8001, "by 0.4 (95 % interval 0.0 to 0.8,"),
    ],
)
def test_mean_and_interval_are_rounded_alike(mean: float, low: float, high: float, text: str) -> None:
    assert words.effect(mean, low, high, level=0.95, n=10, margin=0.1).startswith(text)
