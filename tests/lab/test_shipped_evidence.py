"""The evidence that ships: every published verdict follows from it, by the present rule and contrasts."""

import pytest

from trueup import papers
from trueup.lab import _evidence as evidence
from trueup.lab import ledger
from trueup.lab._engine import StudyRef

ENTRIES = ledger.read()


@pytest.mark.parametrize("slug", ENTRIES)
def test_the_published_verdict_follows_from_its_evidence(slug):
    document = evidence.read(slug)
    verdict, claims = evidence.rejudge(document)
    assert verdict == ENTRIES[slug]["verdict"]
    for claim, kept in zip(claims, ENTRIES[slug]["claims"], strict=True):
        assert kept == {part: claim[part] for part in kept}
    assert document["protocol"] == ENTRIES[slug]["protocol"]
    published = [event for event in ENTRIES[slug]["history"] if event["event"] == "published"]
    assert document["commit"] == published[-1]["commit"]


@pytest.mark.parametrize("slug", ENTRIES)
def test_the_present_study_is_the_published_one(slug):
    """Its plan is the same, and its contrasts make the same of the stored numbers."""
    study = StudyRef("module", papers.get(slug).study).load()
    assert evidence.changed(study, evidence.read(slug)) is None


def test_fifty_studies_stay_below_ten_megabytes():
    sizes = [(evidence.FOLDER / f"{slug}.json.gz").stat().st_size for slug in ENTRIES]
    assert sum(sizes) / len(sizes) < 10e6 / 50
