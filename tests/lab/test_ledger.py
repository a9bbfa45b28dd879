import json
from types import SimpleNamespace

import pytest
from toy import InlineEngine, write_toy

from trueup.lab import ledger, runner
from trueup.lab.engine import StudyRef
from trueup.lab.runner import Options
from trueup.lab.store import Store

PAPERS = [
    SimpleNamespace(slug="toy", state="available", reconstructed=False),
    SimpleNamespace(slug="guess", state="available", reconstructed=True),
    SimpleNamespace(slug="later", state="planned", reconstructed=False),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    ref = StudyRef("file", write_toy(folder, name="toy_ledger.py"))
    with Store(folder / "store.sqlite") as store:
        return {
            "published": runner.run(ref, store, InlineEngine()),
            "explored": runner.run(ref, store, InlineEngine(), Options(seeds=6)),
            "smoke": runner.run(ref, store, InlineEngine(), Options("smoke")),
            "replicated": runner.run(ref, store, InlineEngine(), Options(replicate=1)),
        }


def test_nothing_is_published_yet(tmp_path):
    assert ledger.read(tmp_path / "ledger.json") == {}


def test_publishing_keeps_verdict_claims_and_provenance(tmp_path, outcomes):
    path = tmp_path / "ledger.json"
    ledger.publish(outcomes["published"], path)
    entry = ledger.read(path)["toy"]
    assert entry["verdict"] == outcomes["published"]["verdict"]
    assert entry["provenance"]["fingerprint"] == outcomes["published"]["provenance"]["fingerprint"]
    assert [c["outcome"] for c in entry["claims"]] == [c["outcome"] for c in outcomes["published"]["claims"]]
    before = path.read_text()
    ledger.publish(outcomes["published"], path)
    assert path.read_text() == before
    assert path.stat().st_mode & 0o777 == 0o644  # it ships with the package: everybody may read it


@pytest.mark.parametrize("kind", ["explored", "smoke", "replicated"])
def test_only_desk_verdicts_on_the_protocols_seeds_are_published(tmp_path, outcomes, kind):
    with pytest.raises(ledger.LedgerError, match="only desk verdicts"):
        ledger.publish(outcomes[kind], tmp_path / "ledger.json")
    assert not (tmp_path / "ledger.json").exists()


def test_an_incomplete_verdict_is_not_published(tmp_path, outcomes):
    broken = json.loads(json.dumps(outcomes["published"]))
    broken["claims"][0]["outcome"] = "incomplete"
    with pytest.raises(ledger.LedgerError, match="better is incomplete"):
        ledger.publish(broken, tmp_path / "ledger.json")


def test_a_replication_is_noted_with_whether_it_agrees(tmp_path, outcomes):
    path = tmp_path / "ledger.json"
    ledger.publish(outcomes["published"], path)
    assert ledger.add_replication(outcomes["replicated"], 1, path)
    other = json.loads(json.dumps(outcomes["replicated"]))
    other["claims"][0]["outcome"] = "contradicted"
    assert not ledger.add_replication(other, 2, path)
    assert [r["agrees"] for r in ledger.read(path)["toy"]["replications"]] == [True, False]


def test_a_replication_changes_nothing_else_of_the_entry(tmp_path, outcomes):
    path = tmp_path / "ledger.json"
    ledger.publish(outcomes["published"], path)
    before = ledger.read(path)["toy"]
    ledger.add_replication(outcomes["replicated"], 1, path)
    after = ledger.read(path)["toy"]
    assert len(after.pop("replications")) == 1
    assert after == {k: v for k, v in before.items() if k != "replications"}


def test_a_replication_of_other_code_is_not_recorded(tmp_path, outcomes):
    path = tmp_path / "ledger.json"
    ledger.publish(outcomes["published"], path)
    other = json.loads(json.dumps(outcomes["replicated"]))
    other["provenance"]["fingerprint"] = "of an edited study"
    with pytest.raises(ledger.LedgerError, match="publish it again first"):
        ledger.add_replication(other, 1, path)
    assert ledger.read(path)["toy"]["replications"] == []


def test_agreement_sets_the_primary_claims_side_by_side(outcomes):
    other = json.loads(json.dumps(outcomes["replicated"]))
    other["claims"][0]["outcome"] = "contradicted"
    assert ledger.agreement(outcomes["published"], other) == {"better": ("reproduced", "contradicted")}


def test_protocols_tried_are_kept(tmp_path, outcomes):
    path = tmp_path / "ledger.json"
    ledger.publish(outcomes["published"], path)
    second = json.loads(json.dumps(outcomes["published"]))
    second |= {"protocol": 2, "protocols": [{"protocol": 2, "changed_because": ""}]}
    ledger.publish(second, path)
    assert [p["protocol"] for p in ledger.read(path)["toy"]["protocols"]] == [1, 2]


def test_q_values_are_of_primary_statistical_claims(tmp_path, outcomes):
    path = tmp_path / "ledger.json"
    ledger.publish(outcomes["published"], path)
    entries = ledger.read(path)
    q = ledger.q_values(entries)
    assert set(q) == {("toy", "better")}
    assert q["toy", "better"] == pytest.approx(entries["toy"]["claims"][0]["pvalue"])
    assert ledger.q_values({}) == {}


@pytest.mark.parametrize("text", ["not json", "[]", '{"entries": {}}'])
def test_a_damaged_ledger_is_named(tmp_path, text):
    path = tmp_path / "ledger.json"
    path.write_text(text)
    with pytest.raises(ledger.LedgerError, match="is not a ledger"):
        ledger.read(path)


def test_a_newer_ledger_asks_for_an_upgrade(tmp_path):
    path = tmp_path / "ledger.json"
    path.write_text('{"format": 99, "entries": {}}')
    with pytest.raises(ledger.LedgerError, match="upgrade trueup"):
        ledger.read(path)


def test_an_unwritable_ledger_says_so(tmp_path, outcomes):
    (tmp_path / "taken").touch()
    with pytest.raises(ledger.LedgerError, match="cannot write"):
        ledger.publish(outcomes["published"], tmp_path / "taken" / "ledger.json")


def _full(*paths):
    raise OSError(28, "No space left on device")


def test_the_readme_table_is_renewed_between_its_marks(tmp_path, outcomes, monkeypatch):
    path, readme = tmp_path / "ledger.json", tmp_path / "README.md"
    ledger.publish(outcomes["published"], path)
    readme.write_text(f"head\n{ledger.MARK}\nold\n{ledger.MARK}\ntail\n")
    ledger.renew_readme(readme, ledger.read(path), PAPERS)
    text = readme.read_text()
    assert text.startswith("head\n")
    assert text.endswith("\ntail\n")
    assert "old" not in text
    assert "| `toy` | **reproduced** | survives |" in text
    assert "| `guess`, reconstructed | not published yet | | |" in text
    assert "| All " not in text  # one primary claim: its own sentence, without the verdict's head
    assert "| Ours beats" in text or "| ours beats" in text or "| Ours " in text
    assert "1 more" in text
    monkeypatch.setattr("os.replace", _full)
    with pytest.raises(ledger.LedgerError, match="cannot write"):
        ledger.renew_readme(readme, {}, PAPERS)
    assert readme.read_text() == text
    assert sorted(tmp_path.iterdir()) == [readme, path]
    readme.write_text("no marks")
    with pytest.raises(ledger.LedgerError, match="twice"):
        ledger.renew_readme(readme, ledger.read(path), PAPERS)


def test_the_shipped_ledger_reads_and_the_readme_shows_it():
    from pathlib import Path

    from trueup import papers

    entries = ledger.read()
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert ledger.readme_table(entries, papers.CATALOGUE) in readme
    for slug in entries:
        assert papers.get(slug).state == "available"
