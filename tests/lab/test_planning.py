"""Plans: cells, minutes and the smallest effect, from the study and the stored cells alone."""

import numpy as np
import pytest
from toy import InlineEngine, write_toy

from trueup.lab import _planning as planning
from trueup.lab import _runner as runner
from trueup.lab._engine import StudyRef
from trueup.lab._power import detectable
from trueup.lab._runner import Options
from trueup.lab._store import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def test_a_plan_counts_cells_minutes_and_the_smallest_effect(tmp_path, store):
    ref = StudyRef("file", write_toy(tmp_path))
    before = planning.plan(ref, store)
    assert before.cells == {"exact claims": 2, "tuning": 54, "look 1": 60, "look 2": 60, "stages": 3 + 20}
    assert set(before.stored.values()) == {0}
    assert before.minutes is None
    assert before.detectable == {}
    runner.run(ref, store, InlineEngine(), Options(seeds=8))
    after = planning.plan(ref, store)
    assert after.stored == {"exact claims": 2, "tuning": 54, "look 1": 0, "look 2": 0, "stages": 3}
    assert after.minutes is not None
    d: dict[int, list[float]] = {}
    for _, cell, result in store.cells("toy"):
        if cell.kind == "report" and cell.arm != "control":
            sign = 1 if cell.arm == "ours" else -1
            d.setdefault(cell.seed, []).append(sign * result.numbers["score"])
    assert {len(scores) for scores in d.values()} == {4}  # two arms, two conditions
    per_seed = [sum(scores) / 2 for scores in d.values()]
    above = detectable(20, 0.02) * np.std(per_seed, ddof=1)
    # beyond the minimum effect of .1, or a loss of .1; an equivalence has no smallest effect
    assert after.detectable == pytest.approx({"better": 0.1 + above, "no-loss": -0.1 + above})
    runner.run(ref, store, InlineEngine())
    assert planning.plan(ref, store).stored["look 1"] == 60
    anew = planning.plan(ref, store, Options(fresh=True))
    assert set(anew.stored.values()) == {0}
    assert anew.minutes is not None
    assert planning.plan(ref, store, Options("smoke")).cells == {"exact claims": 2, "look 1": 6, "stages": 1}


def test_a_plan_does_not_count_what_failed_and_is_run_again(tmp_path, store):
    ref = StudyRef("file", write_toy(tmp_path, trouble='assert run.arm != "ours", "a bug"'))
    runner.run(ref, store, InlineEngine())
    assert planning.plan(ref, store).stored["tuning"] == 36
