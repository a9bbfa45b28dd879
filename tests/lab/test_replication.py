"""Replications: effects and their intervals decide, not outcomes."""

import numpy as np
import pytest
from toy import InlineEngine, write_toy

from trueup.lab import _runner as runner
from trueup.lab._engine import StudyRef
from trueup.lab._replication import agrees, compare_effects
from trueup.lab._store import Store
from trueup.lab._verdict import judge

NOISE = np.array([-0.13, 0.06, 0.02, -0.05, 0.11, -0.08, 0.09, -0.02, 0.04, -0.04])


def claim(mean, *, spread=1.0, controls=(), survives=None, margin=0.1, name="better", primary=True):
    """A claim's document with ten seeds around a mean."""
    d = mean + spread * NOISE
    judged = judge(d.tolist(), margin).to_dict(range(10))
    arms = [
        {"arm": arm, **judge((m + spread * NOISE).tolist(), margin).to_dict(range(10))} for arm, m in controls
    ]
    against = [{"arm": arm["arm"], "d": arm["d"]} for arm in arms]
    arms = arms if judged["outcome"] in ("reproduced", "smaller") else []
    return {
        "against": against,
        "name": name,
        "kind": "statistical",
        "primary": primary,
        "controls": arms,
        "survives": survives,
    } | judged


def test_one_effect_with_two_words_agrees():
    """Two effects just above and just below the threshold of a decision."""
    before, now = claim(0.17), claim(0.14)
    assert before["outcome"] != now["outcome"]
    (row,) = compare_effects([before], [now])
    assert row["agrees"]
    assert row["difference"] == pytest.approx(-0.03)
    assert row["low"] < 0 < row["high"]


def test_two_effects_with_one_word_differ():
    before, now = claim(0.5), claim(1.5)
    assert before["outcome"] == now["outcome"] == "reproduced"
    (row,) = compare_effects([before], [now])
    assert not row["agrees"]
    assert row["low"] > 0


def test_controls_are_compared_too():
    before = claim(0.5, controls=[("light", 0.5)], survives="survives")
    now = claim(0.5, controls=[("light", 0.05)], survives="undecided")
    rows = compare_effects([before], [now])
    assert [(row["control"], row["agrees"]) for row in rows] == [("", True), ("light", False)]
    assert rows[0]["published"]["survives"] == "survives"
    assert rows[0]["replicated"]["survives"] == "undecided"
    assert not agrees(rows)
    close = claim(0.5, controls=[("light", 0.45)], survives="survives")
    assert agrees(compare_effects([before], [close]))


def test_a_control_that_the_replication_does_not_ask_is_compared_all_the_same():
    before = claim(0.17, controls=[("light", 0.5)], survives="survives")
    now = claim(0.14, controls=[("light", -0.5)])
    assert (before["outcome"], now["outcome"], now["controls"]) == ("reproduced", "inconclusive", [])
    rows = compare_effects([before], [now])
    assert [(row["control"], row["agrees"]) for row in rows] == [("", True), ("light", False)]


def test_a_run_measures_its_controls_whether_asked_or_not(tmp_path):
    with Store(tmp_path / "store.sqlite") as store:
        study = StudyRef("file", write_toy(tmp_path, gain=0.0))
        better = runner.run(study, store, InlineEngine())["claims"][0]
    assert better["outcome"] not in ("reproduced", "smaller")
    assert better["controls"] == []
    (control,) = better["against"]
    assert control["arm"] == "control"
    assert [one["seed"] for one in control["d"]] == [one["seed"] for one in better["d"]]
    assert {one["d"] for one in control["d"]} != {one["d"] for one in better["d"]}


def test_what_is_missing_in_the_replication_does_not_agree():
    assert not agrees(compare_effects([claim(0.5)], []))
    assert not agrees(compare_effects([], []))
    without = claim(0.5) | {"against": [], "controls": []}
    assert not agrees(compare_effects([claim(0.5, controls=[("light", 0.5)])], [without]))


def test_secondary_claims_are_shown_and_do_not_decide():
    before = [claim(0.5), claim(0.5, name="also", primary=False)]
    now = [claim(0.5), claim(1.5, name="also", primary=False)]
    rows = compare_effects(before, now)
    assert [row["agrees"] for row in rows] == [True, False]
    assert agrees(rows)


def test_all_comparisons_together_hold_their_level():
    rng = np.random.default_rng(0)

    def study():
        return [
            {"name": str(i), "kind": "statistical", "primary": True}
            | judge(rng.normal(0.5, 1, 10).tolist(), 0.1).to_dict(range(10))
            for i in range(6)
        ]

    found = [agrees(compare_effects(study(), study())) for _ in range(300)]
    assert 0.90 <= np.mean(found) <= 0.99


def test_claims_without_seeds_agree_if_their_outcomes_do():
    exact = {"name": "sum", "kind": "exact", "primary": True, "outcome": "reproduced", "mean": None, "d": []}
    (row,) = compare_effects([exact], [exact])
    assert row["agrees"]
    assert row["difference"] is None
    assert not agrees(compare_effects([exact], [exact | {"outcome": "contradicted"}]))


def test_constant_differences_are_compared_as_they_are():
    constant = claim(0.5, spread=0.0)
    assert agrees(compare_effects([constant], [claim(0.5, spread=0.0)]))
    assert not agrees(compare_effects([constant], [claim(0.6, spread=0.0)]))
