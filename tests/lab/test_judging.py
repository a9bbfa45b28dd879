"""From cells to verdicts: which cells and edges count, looks, controls, and the claim's document."""

import json

import numpy as np
import pytest
from toy import InlineEngine

from trueup.lab import Arm, Axis, Claim, Condition, Metric, Study, ledger
from trueup.lab import _contrasts as contrasts
from trueup.lab import _runner as runner
from trueup.lab._cell import CellResult, items
from trueup.lab._engine import StudyRef
from trueup.lab._judging import judge_claims, undecided
from trueup.lab._measured import Evidence, MeasuredClaim, measure
from trueup.lab._outcome_document import outcome_document
from trueup.lab._store import Store
from trueup.lab._tuning import Tuned


def judged(study, evidence):
    """Judge every claim, and check that its measurements survive being written as JSON."""
    measured = measure(study, evidence)
    assert [MeasuredClaim.from_json(json.loads(json.dumps(m.to_json()))) for m in measured] == measured
    return judge_claims(measured, evidence.looks)


COST = """
import time
from trueup.lab import CostClaim, Study

def prepare():
    return (lambda: time.sleep({ours})), (lambda: time.sleep({peer}))

study = Study(
    slug="cost", question="Is it quicker?",
    claims=[CostClaim("quicker", "It takes half the time.", prepare, at_most=0.5, rounds=9, primary=True)],
)
"""

CUSTOM = """
from trueup.lab import Arm, Claim, Metric, Study, custom, log_ratio

def cell(run):
    return {{"score": run.rng(run.arm).normal() + {shift}}}

study = Study(
    slug="custom", question="Can it be computed?", cell=cell,
    metrics=[Metric("score", higher=True, worst=-99.0)],
    arms=[Arm("a", "baseline"), Arm("b", "method"), Arm("c", "control")],
    claims=[Claim("ratio", "b is larger.", {contrast}, min_effect=0.1, why="a tenth", primary=True)],
)
"""


def outcome(tmp_path, text, name):
    path = tmp_path / name
    path.write_text(text)
    with Store(tmp_path / "store.sqlite") as store:
        document = runner.run(StudyRef("file", str(path)), store, InlineEngine())
    json.dumps(document, allow_nan=False)
    return document


@pytest.mark.parametrize(
    ("ours", "peer", "expected"), [(0.001, 0.01, "reproduced"), (0.01, 0.001, "contradicted")]
)
def test_a_cost_claim_is_judged_by_its_interleaved_rounds(tmp_path, ours, peer, expected):
    claim = outcome(tmp_path, COST.format(ours=ours, peer=peer), f"cost_{expected}.py")["claims"][0]
    assert claim["outcome"] == expected
    assert claim["n"] == 9
    assert len(claim["d"]) == 9


def test_a_cost_claim_that_crashes_is_a_failure(tmp_path):
    text = COST.format(ours=0, peer=0).replace("    return (lambda", "    1 / 0\n    return (lambda")
    document = outcome(tmp_path, text, "cost_crash.py")
    assert document["claims"][0]["outcome"] == "incomplete"
    (failure,) = document["failures"]
    assert "ZeroDivisionError" in failure["error"]


def test_a_log_ratio_of_negative_numbers_is_invalid_and_says_why(tmp_path):
    text = CUSTOM.format(shift=-5, contrast='log_ratio("b", "a", "score")')
    claim = outcome(tmp_path, text, "negative.py")["claims"][0]
    assert claim["outcome"] == "invalid"
    assert "use difference" in claim["note"]


def test_a_contrast_that_is_not_finite_is_invalid(tmp_path):
    text = CUSTOM.format(shift=0, contrast='custom(lambda cells: 1 / 0, ("a", "b"), text="broken")')
    claim = outcome(tmp_path, text, "broken.py")["claims"][0]
    assert claim["outcome"] == "invalid"
    assert "cannot be computed: ZeroDivisionError: division by zero" in claim["note"]
    text = CUSTOM.format(shift=0, contrast='custom(lambda cells: float("nan"), ("a", "b"), text="nan")')
    claim = outcome(tmp_path, text, "nan.py")["claims"][0]
    assert claim["outcome"] == "invalid"
    assert "not a finite number" in claim["note"]


def test_seeds_that_change_nothing_ask_for_an_exact_claim(tmp_path):
    text = CUSTOM.format(shift=0, contrast='difference("b", "a", "score")')
    text = text.replace("run.rng(run.arm).normal()", 'float(run.arm == "b")').replace(
        "log_ratio", "difference"
    )
    claim = outcome(tmp_path, text, "constant.py")["claims"][0]
    assert claim["outcome"] == "invalid"
    assert "exact claim" in claim["note"]


REQUIRED = """
from trueup.lab import Arm, Claim, Metric, Study, difference, equivalence

GAIN = {{"plain": 0.0, "ours": 1.0, "control": 0.0}}

def cell(run):
    if run.arm == "control" and {crash}:
        raise RuntimeError("no control today")
    return {{"score": GAIN[run.arm] + {noise} * run.rng(run.arm).normal()}}

study = Study(
    slug="required", question="Is it so?", cell=cell, metrics=[Metric("score", higher=True, worst=-99.0)],
    arms=[Arm("plain", "baseline"), Arm("ours", "method"), Arm("control", "control")],
    claims=[
        Claim("base", "As good.", equivalence("control", "plain", "score"), min_effect=0.3, why="so"),
        Claim("middle", "Better.", difference("ours", "plain", "score"), min_effect=0.1, why="a tenth",
              requires=["base"]),
        Claim("top", "Better.", difference("ours", "plain", "score"), min_effect=0.1, why="a tenth",
              requires=["middle"], primary=True),
    ],
)
"""


def test_a_claim_waits_for_all_that_what_it_requires_requires(tmp_path):
    document = outcome(tmp_path, REQUIRED.format(crash=False, noise=0.3), "chain.py")
    # at ten seeds the gain is plain, and the equivalence below it open
    assert {cell["seed"] for cell in document["cells"]} == {
        seed for look in document["looks"] for seed in look["seeds"]
    }
    assert len({cell["seed"] for cell in document["cells"]}) == 20


def test_a_control_that_crashed_leaves_the_claim_incomplete_and_unpublished(tmp_path):
    text = REQUIRED.format(crash=True, noise=0.1).replace('requires=["base"]', "requires=[]")
    document = outcome(tmp_path, text, "crashed.py")
    middle = next(claim for claim in document["claims"] if claim["name"] == "middle")
    assert middle["outcome"] == "incomplete"
    assert "control control" in middle["note"]
    assert len({cell["seed"] for cell in document["cells"]}) == 10  # more seeds do not mend a crash
    with pytest.raises(ledger.LedgerError, match="is incomplete"):
        ledger.publish(document, {}, commit="c0ffee", path=tmp_path / "ledger.json")


# -- by hand: a study without a run, and the evidence that a run would have gathered -------------------------

ARMS = (Arm("plain", "baseline"), Arm("mid", "ablation"), Arm("ours", "method"), Arm("twin", "control"))
MEND = "widen the grid and raise the protocol number"
NOISE = np.random.default_rng(1).normal(0, 0.05, (4, 20))
NOISE -= NOISE[:, :10].mean(axis=1, keepdims=True)  # the first ten seeds show the gains as they are given


def study(*claims, c=("good", "bad"), tuned_at=None):
    return Study(
        slug="hand", question="Is it so?", cell=lambda run: {}, arms=ARMS, claims=claims,
        metrics=[Metric("score", higher=True, worst=-9.0), Metric("loss", higher=False, worst=9.0)],
        conditions=[Condition("c", c, tuned_at=tuned_at)], tune=[Axis("lr", (0.001, 0.01))],
    )  # fmt: skip


def claim(contrast, name="gain", *, primary=True, **changes):
    given = {"min_effect": 0.5, "why": "so", "primary": primary, "controls": ()} | changes
    return Claim(name, "It is so.", contrast, **given)


def evidence(made, gains, *, looks=1, edges=(), broken=(), diverged=(), noise=NOISE):
    """Report cells with these gains per arm, or per arm and condition.

    `edges`, `broken` and `diverged` name arms with a condition: at the grid's edge; left out; diverged at the
    first seed.
    """
    found = Evidence(looks=[(0.005, list(range(10))), (0.02, list(range(10, 20)))][:looks])
    for i, arm in enumerate(made.arms):
        for condition in made.condition_grid():
            c, key = condition["c"], items(condition)
            edge = ("lr",) if (arm.name, c) in edges else ()
            found.tuned[arm.name, key] = Tuned((), {"lr": 0.001}, edge)
            if (arm.name, c) in broken:
                continue
            gain = gains.get((arm.name, c), gains.get(arm.name, 0.0))
            for seed in found.seeds(looks):
                score = gain + float(noise[i, seed])
                status = "diverged" if seed == 0 and (arm.name, c) in diverged else "ok"
                numbers = {"score": score, "loss": -score}
                found.report[arm.name, key, seed] = CellResult(status, numbers, {"curve": [score, 1.0]})
    return found


def as_document(made, found):
    """Return the outcome document."""
    return outcome_document(
        made, found, scale="desk", target="hand", published=False, seeds_note="", protocols=[1], cost={},
        provenance={},
    )  # fmt: skip


def said(made, found):
    """Return outcome and note of the last claim."""
    judgement = judged(made, found)[-1].judgement
    return judgement.outcome, judgement.note


GAIN = {"ours": 1.0}


def gain(better="ours", worse="plain", at=None):
    return contrasts.difference(better, worse, "score", at)


# -- which cells and edges count -----------------------------------------------------------------------------


def test_an_edge_counts_only_in_the_conditions_that_the_claim_is_about():
    made = study(claim(gain(at={"c": "good"})))
    assert said(made, evidence(made, GAIN, edges=[("plain", "bad")])) == ("reproduced", "")
    at_edge = f"the best setting of the rival plain is at its grid's edge: lr 0.001 at c good; {MEND}"
    assert said(made, evidence(made, GAIN, edges=[("plain", "good")])) == ("inconclusive", at_edge)
    everywhere = study(claim(gain()))
    both = evidence(everywhere, GAIN, edges=[("plain", "good"), ("plain", "bad")])
    assert said(everywhere, both)[1] == at_edge.replace("c good", "c good and lr 0.001 at c bad")


def test_a_claim_about_one_condition_needs_no_cells_of_the_others():
    pinned, everywhere = study(claim(gain(at={"c": "good"}))), study(claim(gain()))
    found = evidence(pinned, GAIN, broken=[("plain", "bad"), ("twin", "good")])
    assert said(pinned, found) == ("reproduced", "")
    assert said(everywhere, found) == ("incomplete", "a cell of plain at seed 0 is missing")
    found.report["plain", (("c", "bad"),), 0] = CellResult("failed")
    assert said(pinned, found) == ("reproduced", "")
    assert said(everywhere, found) == ("incomplete", "a cell of plain at seed 0 is failed")


def test_a_custom_contrast_reads_only_where_it_is_pinned():
    def value(cells):
        return cells.mean("ours", "score") - cells.mean("plain", "score")

    found = evidence(study(claim(gain())), {("ours", "good"): 1.0}, broken=[("ours", "bad")])
    pinned = contrasts.custom(value, ("ours", "plain"), text="gain", at={"c": "good"})
    assert said(study(claim(pinned)), found) == ("reproduced", "")
    assert (
        said(study(claim(contrasts.custom(value, ("ours", "plain"), text="gain"))), found)[0] == "incomplete"
    )


def test_a_control_counts_in_the_conditions_of_its_own_contrast():
    pinned = contrasts.custom(
        lambda cells: cells.mean("ours", "score") - cells.mean("plain", "score"),
        ("ours", "plain"), text="gain", at={"c": "good"}, against=lambda arm: gain("ours", arm, {"c": "bad"}),
    )  # fmt: skip
    made = study(claim(pinned, controls=("twin",)))
    elsewhere = evidence(made, GAIN, broken=[("twin", "good")], edges=[("twin", "good")])
    assert said(made, elsewhere) == ("reproduced", "")
    assert judged(made, elsewhere)[0].survives == "survives"
    here = evidence(made, GAIN, edges=[("twin", "bad")])
    at_edge = f"the best setting of the control twin is at its grid's edge: lr 0.001 at c bad; {MEND}"
    assert said(made, here) == ("inconclusive", at_edge)


@pytest.mark.parametrize(
    ("better", "worse", "gains", "edge", "expected"),
    [
        ("ours", "mid", GAIN, "mid", "inconclusive"),  # a rival that is declared an ablation
        ("ours", "twin", GAIN, "twin", "inconclusive"),
        ("plain", "ours", {"plain": 1.0}, "ours", "inconclusive"),  # a rival that is declared the method
        ("plain", "ours", {"plain": 1.0}, "plain", "reproduced"),
        ("plain", "ours", {"plain": -1.0}, "plain", "inconclusive"),  # and the other way round
        ("plain", "ours", {"plain": -1.0}, "ours", "contradicted"),
        ("plain", "ours", {"plain": 0.2}, "ours", "inconclusive"),
        ("plain", "ours", {"plain": 0.2}, "plain", "inconclusive"),
    ],
)
def test_an_edge_goes_by_the_place_in_the_claim_and_not_by_the_role(better, worse, gains, edge, expected):
    made = study(claim(gain(better, worse)))
    assert said(made, evidence(made, gains, edges=[(edge, "good")]))[0] == expected


def test_two_arms_that_are_called_equal_are_both_in_doubt_at_an_edge():
    made = study(claim(contrasts.equivalence("ours", "plain", "score")))
    for arm in ("ours", "plain"):
        for gains in ({}, GAIN):
            outcome, note = said(made, evidence(made, gains, edges=[(arm, "bad")]))
            assert outcome == "inconclusive"
            assert note.startswith(f"the best setting of {arm} is at its grid's edge: lr 0.001 at c bad;")


def test_an_arm_compared_with_itself_is_in_doubt_at_an_edge():
    made = study(claim(contrasts.monotone("ours", "score", "c")), c=(1, 2))
    assert said(made, evidence(made, {("ours", 2): 1.0}))[0] == "reproduced"
    for gain_ in (1.0, -1.0):
        assert said(made, evidence(made, {("ours", 2): gain_}, edges=[("ours", 1)]))[0] == "inconclusive"


@pytest.mark.parametrize(
    ("gains", "edge", "expected", "whose"),
    [
        ({"mid": 1.0, "ours": 2.0}, "plain", "inconclusive", "the rival "),
        ({"mid": 1.0, "ours": 2.0}, "mid", "inconclusive", "the rival "),  # of the second step
        ({"mid": 1.0, "ours": 2.0}, "ours", "reproduced", ""),
        ({"mid": 1.0, "ours": 0.0}, "ours", "inconclusive", "the method "),
        ({"mid": 1.0, "ours": 0.0}, "mid", "contradicted", ""),  # better still, it beats ours by more
        ({"mid": -1.0, "ours": 1.0}, "mid", "inconclusive", "the method "),  # of the first step
        ({"mid": -1.0, "ours": 1.0}, "ours", "contradicted", ""),
    ],
)
def test_an_edge_in_an_ordering_counts_in_its_step(gains, edge, expected, whose):
    made = study(claim(contrasts.ordering("plain < mid <= ours", "score")))
    assert said(made, evidence(made, gains))[0] in ("reproduced", "contradicted")
    outcome, note = said(made, evidence(made, gains, edges=[(edge, "good")]))
    assert outcome == expected
    assert not whose or note.startswith(f"the best setting of {whose}{edge} is at its grid's edge")


def test_what_is_tuned_once_for_a_sweep_is_named_where_it_was_tuned():
    made = study(claim(gain(at={"c": 3})), c=(1, 3), tuned_at=1)
    found = evidence(made, GAIN, edges=[("plain", 1), ("plain", 3)])
    assert said(made, found)[1].startswith(
        "the best setting of the rival plain is at its grid's edge: lr 0.001 at c 1;"
    )


def test_a_control_is_judged_and_shown_beside_an_edge_and_a_missing_problem():
    base = claim(gain("plain", "mid"), "ill", primary=False)
    for made, found in (
        (study(claim(gain(), controls=None)), {"edges": [("plain", "bad")]}),
        (study(base, claim(gain(), controls=None, requires=("ill",))), {}),
    ):
        document_ = as_document(made, evidence(made, GAIN, **found))
        claim_ = document_["claims"][-1]
        assert (claim_["outcome"], claim_["survives"]) == ("inconclusive", "survives")
        assert [(c["arm"], c["outcome"]) for c in claim_["controls"]] == [("twin", "reproduced")]
        assert claim_["more_seeds"] is None


# -- constant differences ------------------------------------------------------------------------------------

ALIKE = np.tile(NOISE[:1], (4, 1))  # the same noise for every arm, as with a discrete metric by chance


def test_constant_differences_of_values_that_vary_are_judged():
    made = study(claim(gain()))
    assert said(made, evidence(made, GAIN, noise=ALIKE)) == ("reproduced", "")
    assert said(made, evidence(made, {"ours": 0.2}, noise=ALIKE)) == ("smaller", "")
    assert said(made, evidence(made, {"ours": -0.2}, noise=ALIKE)) == ("contradicted", "opposite")


@pytest.mark.parametrize(
    "contrast",
    [
        gain(),
        contrasts.log_ratio("ours", "plain", "score"),
        contrasts.ordering("plain < mid < ours", "score"),
        contrasts.rank_correlation("ours", "c", "score"),
        contrasts.rank_correlation("ours", "curve", "curve", at={"c": 1}),
        contrasts.custom(lambda cells: 1.0, ["ours"], text="one"),
        contrasts.custom(lambda cells: 1.0, ["ours"], text="one", metrics=["loss"]),
    ],
    ids=lambda contrast: contrast.text,
)
def test_values_that_no_seed_changes_ask_for_an_exact_claim(contrast):
    made = study(claim(contrast, min_effect=0.1), c=(1, 2))
    gains = {"plain": 1.0, "mid": 2.0, "ours": 3.0}
    note = "seeds change nothing here: make it an exact claim"
    assert said(made, evidence(made, gains, noise=0 * NOISE)) == ("invalid", note)
    assert said(made, evidence(made, gains, noise=ALIKE))[1] != note


def test_one_step_that_seeds_do_not_change_is_judged_where_the_rest_varies():
    made = study(claim(contrasts.ordering("plain < mid < ours", "score")))
    noise = NOISE * np.array([[0], [0], [1], [1]])
    assert said(made, evidence(made, {"mid": 1.0, "ours": 2.0}, noise=noise)) == ("reproduced", "")


# -- spreads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({("plain", 3): -2.0}, ("reproduced", "")),
        ({("plain", 3): -2.0, "ours": -1.9}, ("contradicted", "step 2 does not hold")),  # evenly bad
        ({("plain", 3): -2.0, ("ours", 3): -2.0}, ("contradicted", "step 1 does not hold")),
        ({("plain", 3): -2.0, "ours": -0.5}, ("inconclusive", "step 2 is undecided")),
        ({("plain", 3): -0.3}, ("smaller", "")),
    ],
)
def test_being_evenly_bad_is_not_being_robust(gains, expected):
    made = study(claim(contrasts.spread("ours", "plain", "score", "c", best=1)), c=(1, 3), tuned_at=1)
    assert said(made, evidence(made, gains)) == expected


def test_a_control_of_a_spread_explains_the_smaller_spread_alone():
    made = study(claim(contrasts.spread("ours", "plain", "score", "c", best=1), controls=None), c=(1, 3))
    (result,) = judged(made, evidence(made, {("plain", 3): -2.0, "twin": -5.0}))
    assert (result.judgement.outcome, result.survives) == ("reproduced", "explained")
    (claim_,) = as_document(made, evidence(made, {("plain", 3): -2.0}))["claims"]
    assert [link["n"] for link in claim_["links"]] == [10, 10]
    assert claim_["links"][1]["test"] == "non-inferiority"
    assert len(claim_["links"][1]["d"]) == len(claim_["controls"][0]["d"]) == 10


# -- controls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "twin", "outcome", "expected"),
    [
        (1.0, 0.0, "reproduced", "survives"),
        (1.0, 0.5, "reproduced", "undecided"),
        (1.0, 0.8, "reproduced", "explained"),
        (1.0, 1.0, "reproduced", "explained"),
        (0.25, 0.0, "smaller", "survives"),
        (0.25, 0.25, "smaller", "undecided"),
        (0.25, 0.5, "smaller", "explained"),
        (0.0, 0.0, "contradicted", None),
    ],
)
def test_controls_are_asked_of_every_gain(ours, twin, outcome, expected):
    made = study(claim(gain(), controls=("twin",)))
    found = evidence(made, {"ours": ours, "twin": twin})
    (result,) = judged(made, found)
    assert (result.judgement.outcome, result.survives) == (outcome, expected)
    assert undecided(made, found) == (expected == "undecided" or outcome == "contradicted")


@pytest.mark.parametrize("ours", [1.0, 0.25])
def test_a_control_that_equals_the_method_bit_for_bit_explains_its_gain(ours):
    noise = NOISE[[0, 1, 2, 2]]
    made = study(claim(gain(), controls=("twin",)))
    (result,) = judged(made, evidence(made, {"ours": ours, "twin": ours}, noise=noise))
    assert result.survives == "explained"


def test_every_control_stands_beside_the_seeds_that_it_rests_on():
    made = study(claim(gain(), controls=("twin",)))
    found = evidence(made, {"ours": 1.0, "twin": 0.5}, looks=2)
    (claim_,) = as_document(made, found)["claims"]
    assert (claim_["look"], [x["seed"] for x in claim_["d"]]) == (1, list(range(10)))
    (control,) = claim_["controls"]
    assert (control["look"], [x["seed"] for x in control["d"]]) == (2, list(range(20)))
    decided = as_document(made, evidence(made, GAIN, looks=2))["claims"][0]["controls"][0]
    assert (decided["look"], [x["seed"] for x in decided["d"]]) == (1, list(range(10)))


def test_no_more_seeds_for_a_control_that_crashed():
    made = study(claim(gain(), controls=("twin",)))
    found = evidence(made, GAIN, broken=[("twin", "bad")])
    assert said(made, found) == ("incomplete", "control twin: a cell of twin at seed 0 is missing")
    assert not undecided(made, found)


# -- what a claim requires -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ill", "broken", "expected"),
    [
        (1.0, [], ("reproduced", "")),
        (0.2, [], ("inconclusive", "the problem is too small here (ill)")),
        (-1.0, [], ("inconclusive", "the problem did not arise here (ill)")),
        (1.0, [("mid", "bad")], ("incomplete", "the claim it requires, ill, is incomplete")),
    ],
)
def test_a_claim_says_what_became_of_the_one_that_it_requires(ill, broken, expected):
    made = study(claim(gain("plain", "mid"), "ill", primary=False), claim(gain(), requires=("ill",)))
    found = evidence(made, {"ours": 1.0, "mid": -ill}, broken=broken)
    assert said(made, found) == expected


# -- looks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(0.0, "contradicted"), (0.4, "smaller"), (-0.4, "contradicted"), (3.0, "smaller")],
)
def test_a_second_look_settles_the_sign_of_a_contradiction(shift, expected):
    made = study(claim(gain()))
    assert judged(made, evidence(made, {}))[0].wants_more_seeds
    assert undecided(made, evidence(made, {}))
    noise = NOISE.copy()
    noise[2, 10:] += shift  # at the second look ours is better
    found = evidence(made, {}, looks=2, noise=noise)
    (claim_,) = as_document(made, found)["claims"]
    assert (claim_["outcome"], claim_["look"], claim_["n"], claim_["level"]) == (expected, 2, 20, 0.96)
    assert (claim_["note"] == "opposite") == (shift < 0)


def test_a_secondary_claim_is_judged_on_the_looks_that_a_primary_one_needed():
    headline = claim(gain("mid", "plain"))
    aside = claim(gain(), "aside", primary=False)
    made = study(headline, aside)
    # the headline is clear and the other open: one look, at which the other stays open
    one = evidence(made, {"mid": 2.0, "ours": 0.5})
    assert not undecided(made, one)
    assert [(c["outcome"], c["look"]) for c in as_document(made, one)["claims"]] == [
        ("reproduced", 1),
        ("inconclusive", 1),
    ]
    # the headline is open: both go on, and what the first look had decided stands
    two = {"mid": 0.5, "ours": 1.0}
    assert undecided(made, evidence(made, two))
    assert [c["look"] for c in as_document(made, evidence(made, two, looks=2))["claims"]] == [2, 1]
    both = {"mid": 0.5, "ours": 0.5}
    assert [c["look"] for c in as_document(made, evidence(made, both, looks=2))["claims"]] == [2, 2]


def test_papers_whose_gains_are_all_smaller_say_so():
    made = study(claim(gain()), claim(gain("mid", "plain"), "middle"))
    verdicts = [
        as_document(made, evidence(made, {"ours": ours, "mid": mid}))["verdict"]["outcome"]
        for ours, mid in [(0.25, 0.25), (0.25, -1.0), (0.25, 1.0)]
    ]
    assert verdicts == ["smaller", "smaller", "partly"]


# -- what n seeds may have missed ----------------------------------------------------------------------------


def test_a_claim_says_how_skewed_its_seeds_are_and_which_divergence_they_may_miss():
    made = study(claim(gain(at={"c": "good"})))
    (clean,) = as_document(made, evidence(made, GAIN, diverged=[("plain", "bad"), ("mid", "good")]))["claims"]
    assert clean["diverged"] == {}
    assert clean["missable_divergence"] == pytest.approx(1 - 0.05**0.1)
    assert -2 < clean["skew"] < 2
    (dirty,) = as_document(made, evidence(made, GAIN, diverged=[("plain", "good")]))["claims"]
    assert (dirty["diverged"], dirty["missable_divergence"]) == ({"plain": 1}, None)
    (constant,) = as_document(made, evidence(made, GAIN, noise=ALIKE))["claims"]
    assert constant["skew"] is None
    (none,) = as_document(made, evidence(made, GAIN, broken=[("ours", "good")]))["claims"]
    assert (none["skew"], none["missable_divergence"]) == (None, None)
