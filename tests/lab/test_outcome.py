"""Cost claims, custom contrasts that cannot be computed, and the document's small promises."""

import json

import pytest
from toy import InlineEngine

from trueup.lab import ledger, runner
from trueup.lab.engine import StudyRef
from trueup.lab.store import Store

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
        ledger.publish(document, tmp_path / "ledger.json")
