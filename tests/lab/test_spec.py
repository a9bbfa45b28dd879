"""Invalid declarations are refused when they are made, with the rule that they break."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trueup.lab import _contrasts as contrasts
from trueup.lab._errors import StudyError
from trueup.lab._scoring import Metric, as_number
from trueup.lab._spec import Arm, Axis, Claim, Condition, CostClaim, ExactClaim, Stage, Study

ACC = Metric("acc", higher=True, worst=0.1)


def claim(name: str = "gain", **changes: Any) -> Claim:
    given: dict[str, Any] = {
        "statement": "Ghost beats large.",
        "contrast": contrasts.difference("ghost", "large", "acc"),
        "min_effect": 0.01,
        "why": "a point",
        "primary": True,
    }
    return Claim(name, **given | changes)


def exact(name: str = "sum", **changes: Any) -> ExactClaim:
    given: dict[str, Any] = {
        "statement": "Adds up.",
        "deviation": abs,
        "instances": {"a": {}},
        "tolerance": 0.0,
        "negative_control": abs,
        "control_label": "raw",
        "primary": True,
    }
    return ExactClaim(name, **given | changes)


def cost(**changes: Any) -> CostClaim:
    return CostClaim("cheap", "Is cheap.", prepare=lambda: (int, int), **{"at_most": 1.0} | changes)


def study(**changes: Any) -> Study:
    given: dict[str, Any] = {
        "slug": "demo",
        "question": "Does it?",
        "metrics": [ACC],
        "arms": [Arm("large", "baseline"), Arm("ghost", "method"), Arm("same-updates", "control")],
        "cell": lambda run: {"acc": 0.5},
        "claims": [claim()],
    }
    return Study(**given | changes)


def test_a_study_that_keeps_the_rules() -> None:
    made = study(
        conditions=[Condition("noise", (0, 1)), Condition("size", ("s", "l"))],
        tune=[Axis("lr", (0.1, 0.3))],
        stages=[Stage("teacher", dict, conditions=["size"]), Stage("logits", dict, inputs=["teacher"])],
    )
    assert made.condition_grid()[1] == {"noise": 0, "size": "l"}
    assert len(made.condition_grid()) == 4
    assert made.grid(made.arm("large")) == [{"lr": 0.1}, {"lr": 0.3}]
    assert made.statistical == made.claims
    assert made.controls(made.statistical[0]) == ("same-updates",)
    assert made.metric("acc") is ACC
    assert study().grid(Arm("x", "method")) == study().condition_grid() == [{}]


def test_numpy_s_numbers_are_python_s() -> None:
    for made in (Axis("n", np.array([1, 2])), Condition("n", np.array([1, 2]), tuned_at=np.int64(2))):
        assert json.dumps(made.values) == "[1, 2]"
    assert type(made.tuned_at) is int


def test_a_claim_may_name_its_controls() -> None:
    one = study(claims=[claim(controls=())])
    assert one.controls(one.statistical[0]) == ()


def test_a_claim_about_a_control_does_not_ask_it_to_beat_itself() -> None:
    one = study(claims=[claim(contrast=contrasts.difference("same-updates", "large", "acc"))])
    assert one.controls(one.statistical[0]) == ()


REFUSED: list[tuple[Callable[[], Any], str]] = [
    # metrics, axes, conditions
    (lambda: Metric("acc", higher=True, worst=math.nan), "metric 'acc': worst must be finite, got nan"),
    (lambda: Metric("loss", higher=False, worst=math.inf), "metric 'loss': worst must be finite"),
    (lambda: Axis("lr", ()), "axis 'lr' has no values"),
    (lambda: Axis("lr", (0.1, 0.1)), "axis 'lr' lists a value twice"),
    (lambda: Axis("lr", (0.3, 0.1)), "axis 'lr': list the numbers in increasing order"),
    (lambda: Condition("noise", ()), "condition 'noise' needs values, each once"),
    (lambda: Condition("noise", (1, 1)), "condition 'noise' needs values, each once"),
    (lambda: Condition("noise", (1, 2), tuned_at=3), "is tuned at one of its values (1, 2); got 3"),
    # arms
    (lambda: Arm("a", "rival"), "arm 'a': role must be baseline, method, ablation or control; got 'rival'"),  # type: ignore[arg-type]
    (lambda: Arm("a<b", "method"), "arm name 'a<b': use letters"),
    (lambda: Arm("", "method"), "arm name '': use letters"),
    (lambda: Arm(" a", "method"), "arm name ' a': use letters"),
    # claims
    (lambda: claim("Gain"), "claim name 'Gain': use lower-case words joined by hyphens"),
    (
        lambda: claim(origin="guess"),
        "claim 'gain': origin must be paper, interpretation or post_hoc; got 'guess'",
    ),
    (lambda: claim(origin="post_hoc"), "claim 'gain': a post-hoc claim is never primary"),
    (
        lambda: claim(min_effect=0.0),
        "claim 'gain': min_effect must be > 0, got 0.0; for accuracy at least two",
    ),
    (lambda: claim(min_effect=-0.1), "claim 'gain': min_effect must be > 0"),
    (lambda: claim(min_effect=math.inf), "claim 'gain': min_effect must be > 0"),
    (lambda: claim(min_effect=math.nan), "claim 'gain': min_effect must be > 0"),
    (lambda: claim(why="  "), "claim 'gain': say why this min_effect"),
    (lambda: exact(instances={}), "exact claim 'sum' lists no instances"),
    (lambda: exact("a b"), "claim name 'a b'"),
    (lambda: cost(at_most=0.0), "cost claim 'cheap': at_most must be > 0 and rounds >= 8"),
    (lambda: cost(rounds=7), "cost claim 'cheap': at_most must be > 0 and rounds >= 8"),
    # names in a study
    (lambda: study(slug="My Study"), "slug 'My Study': use lower-case words joined by hyphens"),
    (lambda: study(metrics=[ACC, ACC]), "demo: metric 'acc' is declared twice"),
    (lambda: study(arms=[Arm("a", "method"), Arm("a", "control")]), "demo: arm 'a' is declared twice"),
    (lambda: study(claims=[claim(), claim()]), "demo: claim 'gain' is declared twice"),
    (
        lambda: study(conditions=[Condition("k", (1,)), Condition("k", (2,))]),
        "demo: condition 'k' is declared",
    ),
    (lambda: study(stages=[Stage("t", dict), Stage("t", dict)]), "demo: stage 't' is declared twice"),
    (
        lambda: study(tune=[Axis("k", (0.1, 0.2))], conditions=[Condition("k", (1, 2))]),
        "demo: arm 'large' has 'k' twice among its axes, its settings and the study's conditions",
    ),
    (lambda: study(tune=[Axis("k", (1,)), Axis("k", (2,))]), "demo: arm 'large' has 'k' twice"),
    (
        lambda: study(
            arms=[Arm("large", "baseline"), Arm("ghost", "method", {"k": 1}), Arm("same-updates", "control")],
            conditions=[Condition("k", (1, 2))],
        ),
        "demo: arm 'ghost' has 'k' twice",
    ),
    (
        lambda: study(
            claims=[
                claim(
                    contrast=contrasts.difference("same-updates", "large", "acc"), controls=["same-updates"]
                )
            ]
        ),
        "claim 'gain': arm 'same-updates' cannot be its own control",
    ),
    (lambda: study(scales={"tiny": {}}), "demo: unknown scale 'tiny'; scales are smoke, desk, paper"),
    (lambda: study(cell=None), "demo: arms need a cell function and at least one metric"),
    (lambda: study(metrics=[]), "demo: arms need a cell function and at least one metric"),
    (
        lambda: study(arms=[Arm("ghost", "method")]),
        "demo: one arm has nothing to compare with; add a baseline",
    ),
    (lambda: study(arms=[]), "demo: claim 'gain' is statistical but there are no arms"),
    (
        lambda: study(stages=[Stage("logits", dict, inputs=["teacher"]), Stage("teacher", dict)]),
        "stage 'logits' reads 'teacher', which is not an earlier stage",
    ),
    (lambda: study(stages=[Stage("t", dict, conditions=["k"])]), "unknown condition 'k'; declared: none"),
    # tuning and looks
    (
        lambda: study(tune=[Axis("lr", (0.1, 0.3))], tuning_seeds=2),
        "demo: tuning needs at least 3 seeds, got 2",
    ),
    (
        lambda: study(
            tune=[Axis("lr", (0.1, 0.3))],
            arms=[
                Arm("large", "baseline"),
                Arm("ghost", "method", tune=[Axis("lr", (0.1, 0.3)), Axis("size", (8, 16))]),
            ],
        ),
        "demo: arm 'ghost' is tuned with 4 trials, the study's grid has 2: every arm gets the same number",
    ),
    (
        lambda: study(
            tune=[Axis("lr", (0.1, 0.3))],
            arms=[Arm("large", "baseline"), Arm("ghost", "method", tune=[Axis("lr", (0.1, 0.2))])],
        ),
        "demo: arm 'ghost' tries lr=0.2, which the others do not",
    ),
    (lambda: study(looks=[(0, 0.025)]), "demo: a look is"),
    (lambda: study(looks=[(10, 0.5)]), "demo: a look is"),
    (
        lambda: study(looks=[(5, 0.025)]),
        "demo: a look at 5 seeds cannot decide anything at alpha = 0.025: give it",
    ),
    (lambda: study(looks=[]), "demo: looks need increasing numbers of seeds"),
    (lambda: study(looks=[(20, 0.005), (10, 0.02)]), "demo: looks need increasing numbers of seeds"),
    (lambda: study(looks=[(10, 0.005), (10, 0.02)]), "demo: looks need increasing numbers of seeds"),
    (
        lambda: study(protocol=3, protocols={1: "x"}),
        "protocol 3: say in `protocols` why protocol 2 was changed",
    ),
    # claims in a study
    (lambda: study(claims=[claim(f"c{i}") for i in range(4)]), "demo: 4 primary claims; at most 3"),
    (lambda: study(claims=[claim(primary=False)]), "demo: mark at least one claim primary"),
    (
        lambda: study(claims=[claim(requires=["ill"]), claim("ill")]),
        "claim 'gain' requires 'ill', which is not an earlier claim",
    ),
    (
        lambda: study(claims=[claim(contrast=contrasts.difference("gost", "large", "acc"))]),
        "unknown arm 'gost'; declared: 'large', 'ghost', 'same-updates'",
    ),
    (
        lambda: study(claims=[claim(contrast=contrasts.difference("ghost", "large", "loss"))]),
        "unknown metric 'loss'; declared: 'acc'",
    ),
    (
        lambda: study(claims=[claim(contrast=contrasts.difference("ghost", "large", "acc", at={"k": 1}))]),
        "unknown condition 'k'; declared: none",
    ),
    (
        lambda: study(
            conditions=[Condition("k", (2, 3))],
            claims=[claim(contrast=contrasts.monotone("ghost", "acc", "j"))],
        ),
        "unknown condition 'j'; declared: 'k'",
    ),
    (lambda: study(claims=[claim(controls=["large"])]), "claim 'gain': arm 'large' is not a control"),
    (lambda: study(claims=[claim(controls=["nobody"])]), "unknown arm 'nobody'"),
    (
        lambda: study(arms=[Arm("large", "baseline"), Arm("ghost", "method")]),
        "demo: a training claim needs a control arm: the simplest thing",
    ),
    (lambda: study().claim("loss"), "unknown claim 'loss'; declared: 'gain'"),
]


@pytest.mark.parametrize(("declare", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(declare: Callable[[], Any], message: str) -> None:
    with pytest.raises(StudyError) as caught:
        declare()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "contrast",
    [
        contrasts.difference("ghost", "large", "acc", at={"k": 1}),
        contrasts.log_ratio("ghost", "large", "acc", at={"k": 1}),
        contrasts.ordering("large < ghost", "acc", at={"k": 1}),
        contrasts.monotone("ghost", "acc", "j", at={"k": 1}),
        contrasts.rank_correlation("ghost", "j", "acc", at={"k": 1}),
        contrasts.spread("ghost", "large", "acc", "j", best=0, at={"k": 1}),
        contrasts.spread("ghost", "large", "acc", "k", best=1),
    ],
    ids=lambda contrast: f"{contrast.text} {dict(contrast.at)}",
)
def test_a_claim_about_what_no_cell_runs_is_refused(contrast: contrasts.Contrast) -> None:
    study(conditions=[Condition("j", (0, 1)), Condition("k", (1, 2))], claims=[claim(contrast=contrast)])
    with pytest.raises(StudyError, match=r"k=1, which no cell runs; condition 'k' has the values \(2, 3\)"):
        study(conditions=[Condition("j", (0, 1)), Condition("k", (2, 3))], claims=[claim(contrast=contrast)])


def test_an_arm_that_is_a_control_is_never_its_own() -> None:
    chain = contrasts.ordering("large < ghost < same-updates", "acc")
    assert study(claims=[made := claim(contrast=chain)]).controls(made) == ()  # the last arm makes the claim
    turned = contrasts.ordering("same-updates < large < ghost", "acc")
    assert study(claims=[made := claim(contrast=turned)]).controls(made) == ("same-updates",)


def test_what_comes_close_to_a_rule_and_keeps_it() -> None:
    study(claims=[claim(f"c{i}") for i in range(3)])
    study(claims=[claim("post", origin="post_hoc", primary=False), claim()])
    study(arms=[], metrics=[], cell=None, claims=[exact(), cost()])  # exact claims need no arms
    study(protocol=2, protocols={1: "the grid was too narrow"})
    cost(rounds=8)
    Axis("mode", ("b", "a"))  # names have no order
    own = Arm(
        "ghost", "method", tune=[Axis("lr", (0.1,)), Axis("size", (8, 16))]
    )  # as many trials as the others
    made = study(
        tune=[Axis("lr", (0.1, 0.3))], arms=[Arm("large", "baseline"), own, Arm("same-updates", "control")]
    )
    assert made.grid(own) == [{"lr": 0.1, "size": 8}, {"lr": 0.1, "size": 16}]


def test_axes_know_whether_they_have_a_direction() -> None:
    assert Axis("lr", (0.1, 0.3)).ordered
    assert not Axis("lr", (0.1,)).ordered
    assert not Axis("flag", (False, True)).ordered
    assert not Axis("mode", ("a", "b")).ordered


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        (ACC, 0.5, (0.5, False)),
        (ACC, 0.1, (0.1, False)),
        (ACC, 0.05, (0.1, True)),
        (ACC, math.nan, (0.1, True)),
        (ACC, math.inf, (0.1, True)),
        (Metric("loss", higher=False, worst=2.3), 2.2, (2.2, False)),
        (Metric("loss", higher=False, worst=2.3), 2.4, (2.3, True)),
        (Metric("loss", higher=False, worst=2.3), -math.inf, (2.3, True)),
    ],
)
def test_divergence_scores_worst(metric: Metric, value: float, expected: tuple[float, bool]) -> None:
    assert metric.score(value) == expected


def test_lists_are_frozen_into_tuples() -> None:
    made = study()
    assert isinstance(made.arms, tuple)
    assert isinstance(Arm("a", "method", tune=[Axis("lr", [0.1])]).tune, tuple)  # type: ignore[arg-type]
    assert replace(made, slug="other").arms == made.arms


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (2, 2.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (np.bool_(True), 1.0),
        (np.array(1.5), 1.5),
        (torch.tensor(2.5), 2.5),
        ("2", None),
        ([1.0], None),
        (np.ones(1), None),
        (None, None),
    ],
)
def test_numbers_of_every_kind(value: object, number: float | None) -> None:
    assert as_number(value) == number
