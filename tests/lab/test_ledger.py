import copy
import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toy import InlineEngine, write_toy

from trueup.lab import Condition, ledger
from trueup.lab import _evidence as evidence
from trueup.lab import _runner as runner
from trueup.lab import _verdict as verdict
from trueup.lab._cell import CellResult
from trueup.lab._engine import StudyRef
from trueup.lab._runner import Options
from trueup.lab._store import Store

PAPERS = [
    SimpleNamespace(slug="toy", area="nn", state="available", reconstructed=False),
    SimpleNamespace(slug="guess", area="text", state="available", reconstructed=True),
    SimpleNamespace(slug="later", area="nn", state="planned", reconstructed=False),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    ref = StudyRef("file", write_toy(folder, name="toy_ledger.py"))
    with Store(folder / "store.sqlite") as store:
        runner.run(ref, store, InlineEngine())
        published, made = runner.gather(ref, store)
        return {
            "ref": ref,
            "evidence": made,
            "published": published,
            "explored": runner.run(ref, store, InlineEngine(), Options(seeds=6)),
            "smoke": runner.run(ref, store, InlineEngine(), Options("smoke")),
            "replicated": runner.run(ref, store, InlineEngine(), Options(replicate=1)),
        }


@pytest.fixture
def outcomes(runs):
    return {name: copy.deepcopy(run) for name, run in runs.items() if name != "ref"}


@pytest.fixture
def publish(tmp_path, outcomes):
    """Publish the toy's outcome, changed or not, into a ledger of this test's own."""

    def call(outcome=None, made=None, **given):
        return ledger.publish(
            outcome or outcomes["published"],
            made or outcomes["evidence"],
            **{"commit": "c0ffee", "path": tmp_path / "ledger.json", "folder": tmp_path} | given,
        )

    return call


def entry_of(tmp_path):
    return ledger.read(tmp_path / "ledger.json")["toy"]


def test_nothing_is_published_yet(tmp_path):
    assert ledger.read(tmp_path / "ledger.json") == {}


def test_publishing_keeps_verdict_claims_provenance_and_evidence(tmp_path, outcomes, publish):
    path = tmp_path / "ledger.json"
    publish()
    entry = entry_of(tmp_path)
    assert entry["verdict"] == outcomes["published"]["verdict"]
    assert entry["provenance"]["fingerprint"] == outcomes["published"]["provenance"]["fingerprint"]
    assert [c["outcome"] for c in entry["claims"]] == [c["outcome"] for c in outcomes["published"]["claims"]]
    (event,) = entry["history"]
    assert (event["event"], event["commit"], event["protocol"]) == ("published", "c0ffee", 1)
    assert event["outcomes"]["better"] == "reproduced"
    assert evidence.read("toy", tmp_path)["commit"] == "c0ffee"
    before = path.read_text()
    publish()  # the very same verdict: nothing to say
    assert path.read_text() == before
    assert path.stat().st_mode & 0o777 == 0o644  # it ships with the package: everybody may read it


@pytest.mark.parametrize("kind", ["explored", "smoke", "replicated"])
def test_only_desk_verdicts_on_the_protocols_seeds_are_published(tmp_path, outcomes, publish, kind):
    with pytest.raises(ledger.LedgerError, match="only desk verdicts"):
        publish(outcomes[kind])
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_verdict_is_not_published(outcomes, publish):
    outcomes["published"]["claims"][0]["outcome"] = "incomplete"
    with pytest.raises(ledger.LedgerError, match="better is incomplete"):
        publish()


# -- bound to the protocol number ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda s: {"claims": (replace(s.claims[0], min_effect=0.05), *s.claims[1:])},
            "min_effect of better",
        ),
        (lambda s: {"claims": (replace(s.claims[0], controls=()), *s.claims[1:])}, "controls of better"),
        (lambda s: {"looks": ((10, 0.005), (40, 0.02))}, "looks: "),
        (lambda s: {"tune": (replace(s.tune[0], values=(0.01, 0.1, 1.0, 10.0)),)}, "values of lr of"),
        (lambda s: {"conditions": (Condition("size", (1, 2, 4)),)}, "values of size"),
        (lambda s: {"metrics": (replace(s.metrics[0], worst=-5.0),)}, "worst of score"),
    ],
)
def test_other_claims_or_grids_need_another_protocol_number(runs, tmp_path, outcomes, publish, change, named):
    publish()
    before = (tmp_path / "ledger.json").read_text()
    study = runs["ref"].load()
    changed = evidence.changed(replace(study, **change(study)), evidence.read("toy", tmp_path))
    assert named in changed
    outcomes["published"]["provenance"]["fingerprint"] = "of the edited study"
    with pytest.raises(ledger.LedgerError, match=r"(?s)another plan.*Raise the study's protocol number"):
        publish(reason="better so", changed=changed)
    assert (tmp_path / "ledger.json").read_text() == before


def with_claim(study, name, **changes):
    return {"claims": tuple(replace(c, **changes) if c.name == name else c for c in study.claims)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: {"arms": (replace(s.arms[0], settings={"depth": 9}), *s.arms[1:])}, "depth of settings"),
        (lambda s: {"scales": {**s.scales, "desk": {"epochs": 9}}}, "epochs of settings"),
        (lambda s: with_claim(s, "sum", instances={"one": {"a": 2}}), "a of one of instances of sum"),
        (lambda s: with_claim(s, "sum", tolerance=0.1), "tolerance of sum"),
        (lambda s: with_claim(s, "no-loss", requires=("better",)), "requires of no-loss"),
        (lambda s: with_claim(s, "no-loss", origin="post_hoc"), "origin of no-loss"),
        (lambda s: {"stages": (replace(s.stages[0], conditions=("size",)),)}, "conditions of teacher"),
        (lambda s: {"conditions": (replace(s.conditions[0], tuned_at=1),)}, "tuned_at of size"),
        (lambda s: {"tuning_seeds": 5}, "tuning_seeds"),
        (lambda s: {"data": ("digits",)}, "data"),
    ],
)
def test_the_plan_sees_all_that_is_declared(runs, tmp_path, publish, change, named):
    publish()
    study = runs["ref"].load()
    assert named in evidence.changed(replace(study, **change(study)), evidence.read("toy", tmp_path))


def test_publish_compares_the_plans_itself(outcomes, publish):
    publish()
    outcomes["evidence"]["plan"]["claims"][0]["min_effect"] = 0.05
    outcomes["published"]["provenance"]["fingerprint"] = "of the edited study"
    with pytest.raises(ledger.LedgerError, match=r"min_effect of better: 0\.1 published, 0\.05 now"):
        publish(reason="better so")


def test_another_contrast_under_the_same_name_is_seen(runs, tmp_path, publish):
    publish()
    study, shipped = runs["ref"].load(), evidence.read("toy", tmp_path)
    assert evidence.changed(study, shipped) is None
    assert evidence.measured(study, shipped) == shipped["measured"]
    better = study.claims[0]
    half = replace(better.contrast, value=lambda cells: better.contrast.value(cells) / 2)
    other = replace(study, claims=(replace(better, contrast=half), *study.claims[1:]))
    assert "contrast of better" in evidence.changed(other, shipped)


def test_entries_from_before_evidence_shipped_are_held_against_their_claims(tmp_path, outcomes, publish):
    publish()
    (tmp_path / "toy.json.gz").unlink()
    outcomes["published"]["claims"][0]["min_effect"] = 0.05
    with pytest.raises(ledger.LedgerError, match=r"min_effect of better: 0\.1 published, 0\.05 now"):
        publish(reason="to ship evidence")


def test_publishing_a_protocol_again_needs_a_reason_and_leaves_a_trace(tmp_path, outcomes, publish):
    publish()
    outcomes["published"]["provenance"]["fingerprint"] = "of edited code"
    outcomes["published"]["claims"][0]["outcome"] = "inconclusive"
    with pytest.raises(ledger.LedgerError, match="was published before, on the same seeds: say why"):
        publish()
    publish(reason="a bug in the method", commit="beef")
    entry = entry_of(tmp_path)
    assert [e["outcomes"]["better"] for e in entry["history"]] == ["reproduced", "inconclusive"]
    assert [e["reason"] for e in entry["history"]] == ["first published", "a bug in the method"]
    assert ledger.times_published(entry) == 2


def test_a_new_protocol_is_published_and_an_earlier_one_refused(tmp_path, outcomes, publish):
    publish()
    second = copy.deepcopy(outcomes["published"])
    second |= {"protocol": 2, "protocols": [{"protocol": 2, "changed_because": ""}]}
    publish(second)
    entry = entry_of(tmp_path)
    assert [p["protocol"] for p in entry["protocols"]] == [1, 2]
    assert [e["reason"] for e in entry["history"]] == ["first published", "a new protocol"]
    assert ledger.times_published(entry) == 1
    with pytest.raises(ledger.LedgerError, match="this is the earlier protocol 1"):
        publish(reason="the first was nicer")


def test_an_arm_without_a_continuous_number_hides_changes(tmp_path):
    path = write_toy(tmp_path, name="coarse.py").replace("toy.py", "coarse.py")
    text = Path(path).read_text()
    Path(path).write_text(text.replace('"score": score, "curve"', '"score": round(score), "curve"'))
    ref = StudyRef("file", path)
    with Store(tmp_path / "store.sqlite") as store:
        runner.run(ref, store, InlineEngine())
        with pytest.raises(evidence.EvidenceError, match="returns no continuous number"):
            runner.gather(ref, store)


# -- history -------------------------------------------------------------------------------------------------


def event(name, fingerprint, **more):
    return {
        "event": name,
        "date": "2027-01-02",
        "commit": "beef",
        "protocol": 1,
        "fingerprint": fingerprint,
    } | more


def test_events_are_appended_and_change_nothing_else(tmp_path, publish):
    publish()
    before = entry_of(tmp_path)
    ledger.add_event("toy", event("certified", "rewritten"), tmp_path / "ledger.json")
    after = entry_of(tmp_path)
    assert after.pop("history") == [*before.pop("history"), event("certified", "rewritten")]
    assert after == before
    with pytest.raises(ledger.LedgerError, match="toy2 has no published verdict; published: toy"):
        ledger.add_event("toy2", {}, tmp_path / "ledger.json")


def test_code_is_current_if_it_was_published_or_certified_since(publish):
    entry = publish()
    own = entry["provenance"]["fingerprint"]
    assert ledger.standing(entry, own) == "published"
    assert ledger.standing(entry, "rewritten") == "stale"
    entry["history"].append(event("certified", "rewritten"))
    assert ledger.standing(entry, "rewritten") == "certified"
    assert ledger.last_certified(entry) == "2027-01-02"
    entry["history"].append(event("differed", "rewritten"))
    assert ledger.standing(entry, "rewritten") == "stale"
    entry["history"] += [event("certified", "rewritten"), event("published", "of a bug mended")]
    assert ledger.standing(entry, "rewritten") == "stale"
    assert ledger.last_certified(entry) == ""


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"event": "published", "protocol": 1, "commit": "c0ffee", "verdict": "partly", "reason": "first"},
            "protocol 1 published at commit c0ffee: partly reproduced (first)",
        ),
        ({"event": "replicated", "attempt": 2, "agrees": False}, "replication 2: effects differ"),
        ({"event": "replicated", "attempt": 3, "agrees": None}, "replication 3: cells failed"),
        (
            {"event": "certified", "commit": "beef", "cells": 1200, "equal_to_evidence": 1200},
            "certified at commit beef: 1,200 of 1,200 cells equal the published ones",
        ),
        (
            {"event": "differed", "commit": "beef", "cells": 12},
            "differed at commit beef: some of 12 cells differ from the published code's",
        ),
    ],
)
def test_events_in_words(event, words):
    assert ledger.event_words(event) == words


def test_two_writers_lose_nothing(tmp_path, publish):
    publish()
    script = (
        "import sys; from pathlib import Path; from trueup.lab import ledger\n"
        "for i in range(15):\n"
        "    ledger.add_event('toy', {'event': 'certified', 'who': sys.argv[1], 'i': i}, Path(sys.argv[2]))"
    )
    path = str(tmp_path / "ledger.json")
    writers = [subprocess.Popen([sys.executable, "-c", script, who, path]) for who in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    kept = {(e["who"], e["i"]) for e in entry_of(tmp_path)["history"] if e["event"] == "certified"}
    assert kept == {(who, i) for who in "ab" for i in range(15)}


def test_published_code_that_was_found_to_differ_is_stale(publish):
    entry = publish()
    own = entry["provenance"]["fingerprint"]
    entry["history"].append(event("differed", own))
    assert ledger.standing(entry, own) == "stale"


@pytest.mark.parametrize("part", ["protocol", "fingerprint", "commit"])
def test_evidence_of_another_publication_is_refused(tmp_path, publish, part):
    publish()
    evidence.write({**evidence.read("toy", tmp_path), part: "another"}, tmp_path)
    before = (tmp_path / "ledger.json").read_text()
    with pytest.raises(ledger.LedgerError, match=f"its {part} is another, the ledger's"):
        ledger.rejudge("toy", tmp_path / "ledger.json", tmp_path, date="2027-01-02")
    assert (tmp_path / "ledger.json").read_text() == before


# -- evidence ------------------------------------------------------------------------------------------------


def damaged(data):
    half = gzip.compress(b'{"format": 1}')
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 255
    return {
        "truncated": data[: len(data) // 2],
        "flipped": bytes(flipped),
        "no gzip": b"not a file of ours",
        "no JSON": gzip.compress(b"{"),
        "a list": gzip.compress(b"[]"),
        "half": half,
        "format": gzip.compress(b'{"format": "x"}'),
    }


@pytest.mark.parametrize("how", damaged(b"0123456789" * 9))
def test_damaged_evidence_is_an_error_that_names_the_file(tmp_path, publish, how):
    publish()
    path = tmp_path / "toy.json.gz"
    path.write_bytes(damaged(path.read_bytes())[how])
    with pytest.raises(evidence.EvidenceError, match=r"toy\.json\.gz is damaged"):
        evidence.read("toy", tmp_path)


def test_evidence_of_a_newer_trueup_asks_for_an_upgrade(tmp_path):
    (tmp_path / "toy.json.gz").write_bytes(gzip.compress(b'{"format": 99}'))
    with pytest.raises(evidence.EvidenceError, match="upgrade trueup"):
        evidence.read("toy", tmp_path)
    with pytest.raises(evidence.EvidenceError, match="no evidence of tleg"):
        evidence.read("tleg", tmp_path)


def test_a_digest_sees_every_bit_that_a_cell_returns():
    result = CellResult("ok", {"a": 1.0}, {"s": [1.0, float("nan")]}, {"x": np.zeros((2, 3), np.float32)})
    array = np.zeros((2, 3), np.float32)
    array[1, 2] = np.float32(1e-45)
    others = [
        replace(result, status="diverged"),
        replace(result, numbers={"a": 1.0000000000000002}),
        replace(result, numbers={"b": 1.0}),
        replace(result, series={"s": [1.0, 1.0]}),
        replace(result, series={}),
        replace(result, arrays={"x": array}),
        replace(result, arrays={"x": np.zeros((3, 2), np.float32)}),
        replace(result, arrays={"x": np.zeros((2, 3), np.float64)}),
    ]
    assert len({evidence.digest(r) for r in (result, *others)}) == 1 + len(others)
    in_fortran_order = replace(result, arrays={"x": np.zeros((2, 3), np.float32, order="F")}, seconds=9.0)
    assert evidence.digest(in_fortran_order) == evidence.digest(result)


def test_evidence_keeps_the_series_that_contrasts_read_at_any_seed(tmp_path):
    text = Path(write_toy(tmp_path, name="odd.py")).read_text()
    odd = (
        "custom(lambda c: c.mean('ours', 'score') - c.mean('plain', 'score') + 0 * sum(c.series('ours', "
        "'curve' if c.mean('ours', 'score') > 1 else 'alt', {'size': 1})), ('ours', 'plain'), text='odd')"
    )
    text = text.replace('difference("ours", "plain", "score"), min_effect=0.1', f"{odd}, min_effect=0.1", 1)
    text = text.replace("import difference,", "import custom, difference,")
    text = text.replace('"curve": [0.0, score]', '"curve": [0.0, score], "alt": [1.0], "unread": [2.0]')
    (tmp_path / "odd.py").write_text(text)
    ref = StudyRef("file", str(tmp_path / "odd.py"))
    with Store(tmp_path / "store.sqlite") as store:
        runner.run(ref, store, InlineEngine())
        _, made = runner.gather(ref, store)
    kept = {name for cell in made["cells"] for name in cell["series"]}
    assert kept == {"curve", "alt"}
    assert evidence.changed(ref.load(), json.loads(json.dumps(made))) is None


# -- judged again --------------------------------------------------------------------------------------------


def test_judging_again_by_the_same_rule_changes_nothing(tmp_path, outcomes, publish):
    publish()
    before = (tmp_path / "ledger.json").read_text()
    ledger.rejudge("toy", tmp_path / "ledger.json", tmp_path, date="2027-01-02")
    assert (tmp_path / "ledger.json").read_text() == before
    verdict, claims = evidence.rejudge(evidence.read("toy", tmp_path))
    assert verdict == outcomes["published"]["verdict"]
    assert claims == outcomes["published"]["claims"]


def test_a_new_rule_changes_outcomes_and_says_so(tmp_path, publish, monkeypatch):
    publish()
    monkeypatch.setattr(verdict, "above", lambda d, m, alpha: False)
    monkeypatch.setattr(verdict, "pvalues", lambda d, m: (0.5, 0.5))
    entry = ledger.rejudge("toy", tmp_path / "ledger.json", tmp_path, date="2027-01-02")
    assert entry["claims"][0]["outcome"] == "inconclusive"
    assert [e["event"] for e in entry["history"]] == ["published", "rejudged"]
    assert entry["history"][1]["outcomes"]["better"] == "inconclusive"
    assert entry_of(tmp_path) == entry


def test_judging_again_needs_neither_torch_nor_the_study(tmp_path, publish):
    publish()
    script = (
        "import sys; from pathlib import Path; from trueup.lab import _evidence as evidence\n"
        f"verdict, claims = evidence.rejudge(evidence.read('toy', Path({str(tmp_path)!r})))\n"
        "assert claims[0]['outcome'] == 'reproduced'\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_reading_the_ledger_imports_no_scipy():
    script = (
        "import sys; from trueup.lab import ledger; ledger.read()\n"
        "found = {'scipy', 'torch', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# -- q-values, the README ------------------------------------------------------------------------------------


def test_q_values_are_of_primary_statistical_claims(tmp_path, publish):
    publish()
    entries = ledger.read(tmp_path / "ledger.json")
    q = ledger.q_values(entries)
    assert set(q) == {("toy", "better")}
    assert q["toy", "better"] == pytest.approx(entries["toy"]["claims"][0]["pvalue"])
    assert ledger.q_values({}) == {}


@pytest.mark.parametrize(
    "text",
    ["not json", "[]", '{"entries": {}}', '{"format": "2", "entries": {}}', '{"format": 2, "entries": []}'],
)
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


def test_an_unwritable_ledger_says_so(tmp_path, publish):
    (tmp_path / "taken").touch()
    with pytest.raises(ledger.LedgerError, match="cannot write"):
        publish(path=tmp_path / "taken" / "ledger.json")
    with pytest.raises(ledger.LedgerError, match="cannot write the evidence of toy"):
        publish(folder=tmp_path / "taken")


def _full(*paths):
    raise OSError(28, "No space left on device")


def test_the_readmes_summary_is_renewed_between_its_marks(tmp_path, publish, monkeypatch):
    path, readme = tmp_path / "ledger.json", tmp_path / "README.md"
    publish()
    readme.write_text(f"head\n{ledger.MARK}\nold\n{ledger.MARK}\ntail\n")
    ledger.renew_readme(readme, ledger.read(path), PAPERS)
    text = readme.read_text()
    assert text.startswith("head\n")
    assert text.endswith("\ntail\n")
    assert "old" not in text
    assert "2 of 3 papers are available; verdicts: 1 reproduced." in text
    assert "| `nn` | 1 of 2 | 1 reproduced |\n| `text` | 1 of 1 |  |" in text
    monkeypatch.setattr("os.replace", _full)
    with pytest.raises(ledger.LedgerError, match="cannot write"):
        ledger.renew_readme(readme, {}, PAPERS)
    assert readme.read_text() == text
    assert sorted(tmp_path.iterdir()) == [readme, path, tmp_path / "toy.json.gz"]
    readme.write_text("no marks")
    with pytest.raises(ledger.LedgerError, match="twice"):
        ledger.renew_readme(readme, ledger.read(path), PAPERS)


@pytest.mark.parametrize("outcome", ["reproduced", "contradicted"])
def test_the_full_table_has_a_row_per_available_paper(tmp_path, publish, outcome):
    publish()
    entry = entry_of(tmp_path)
    verdict = entry["verdict"] | {"outcome": outcome}
    if outcome == "contradicted":
        verdict["sentence"] = "Contradicted at desk scale: ours | theirs is behind."
    head, rule, toy, guess = ledger.full_table({"toy": entry | {"verdict": verdict}}, PAPERS).splitlines()
    assert head.count("|") == rule.count("|") == guess.count("|") == 5
    if outcome == "reproduced":
        assert toy.startswith("| [toy](methods/toy.md) | **reproduced** | survives | Ours beats plain ")
    else:  # the verdict stands in its own column, not in the sentence
        words = "**contradicted at desk scale** | survives | Ours \\| theirs is behind."
        assert toy == f"| [toy](methods/toy.md) | {words} |"
    assert guess == "| [guess](methods/guess.md), reconstructed | not published yet | | |"


def test_the_shipped_ledger_reads_and_the_readme_shows_it():
    from trueup import papers

    entries = ledger.read()
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert ledger.readme_table(entries, papers.CATALOGUE) in readme
    for slug in entries:
        assert papers.get(slug).state == "available"
