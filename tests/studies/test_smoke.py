"""Every paper's study runs at smoke scale, and keeps what the lab asks of a published study."""

import math
from pathlib import Path

import pytest
from toy import InlineEngine

from trueup import papers
from trueup.lab import _runner as runner
from trueup.lab._engine import StudyRef
from trueup.lab._runner import Options
from trueup.lab._store import Store

AVAILABLE = [p for p in papers.CATALOGUE if p.state == "available"]


@pytest.mark.parametrize("paper", AVAILABLE, ids=lambda p: p.slug)
def test_the_study_runs(paper, tmp_path):
    ref = StudyRef("module", paper.study)
    with Store(tmp_path / "store.sqlite") as store:
        outcome = runner.run(ref, store, InlineEngine(), Options("smoke"))
    assert outcome["failures"] == []
    assert [c["error"] for c in outcome["cells"] if c["status"] == "failed"] == []
    study = ref.load()
    ran = {(c["arm"], tuple(c["condition"].items())) for c in outcome["cells"]}
    assert len(ran) == len(study.arms) * len(study.condition_grid())
    for cell in outcome["cells"]:
        assert all(math.isfinite(v) for v in cell["numbers"].values())


@pytest.mark.parametrize("paper", AVAILABLE, ids=lambda p: p.slug)
def test_the_study_is_one_for_people(paper):
    study = StudyRef("module", paper.study).load()
    assert study.slug == paper.slug
    assert study.question.endswith("?")
    assert study.tested_on
    assert study.paper_setup
    assert {"smoke", "desk"} <= set(study.scales)
    assert any(claim.primary and claim.origin == "paper" for claim in study.claims)
    source = Path(__file__).parents[2] / "src" / (paper.study.replace(".", "/") + ".py")
    assert len(source.read_text().splitlines()) <= 150
