"""Certification: the changes of code that pass, those that are found, and that nothing is left behind.

Most tests run a stand-in for `trueup.lab.recompute` in a small repository, which answers at once; those at
the end run the whole package.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from toy import InlineEngine, write_toy

import trueup
from trueup import cli, papers
from trueup.lab import _certify as certify
from trueup.lab import _evidence as evidence
from trueup.lab import _runner as runner
from trueup.lab import ledger, recompute
from trueup.lab._certify import CertifyError, Repository
from trueup.lab._engine import StudyRef
from trueup.lab._seeds import published_seeds
from trueup.lab._store import Store
from trueup.studies import _lookup as lookup

STUDY = """
import numpy as np
from trueup.lab import Arm, Axis, Claim, CostClaim, ExactClaim, Metric, Stage, Study, difference

LR = {"plain": 0.1, "ours": 0.2, "control": 0.1}

def teacher(run):
    return {"shift": np.array([run.rng("stage").normal()])}

def cell(run):
    from trueup.optim.tiny_step import step
    weight = run.rng("weight").normal(size=4) + run.inputs["teacher"]["shift"][0]
    for _ in range(3):
        weight = step(weight, 2 * weight, run["scale"] * LR[run.arm])
    loss = float((weight**2).sum())
    return {"accuracy": float(loss < 4), "loss": loss}

study = Study(
    slug="adamp",
    question="Is ours better than plain?",
    cell=cell,
    metrics=[Metric("accuracy", higher=True, worst=0.0)],
    arms=[Arm("plain", "baseline"), Arm("ours", "method"), Arm("control", "control")],
    tune=[Axis("scale", (0.5, 1.0, 2.0))],
    stages=[Stage("teacher", teacher)],
    looks=[(8, 0.005), (16, 0.02)],
    claims=[
        Claim("better", "Ours is better.", difference("ours", "plain", "accuracy"), min_effect=0.002,
              why="two of a thousand", primary=True),
        ExactClaim("sum", "One and one are two.", deviation=lambda a: abs(1 + a - 2),
                   negative_control=lambda a: abs(1 + a - 3), control_label="three",
                   instances={"one": {"a": 1}}, tolerance=0.0),
        CostClaim("cheap", "Ours is cheaper.", at_most=1.0, rounds=8,
                  prepare=lambda: (lambda: sum(range(10)), lambda: sum(range(100000)))),
    ],
)
"""

STEP = '''
"""A step of descent."""

def _sign(g, eps):
    return g / (abs(g) + eps)

def step(w, g, lr, eps=1e-8):
    if lr <= 0:
        raise ValueError("lr must be > 0")
    return w - lr * _sign(g, eps)
'''

# answers a request as trueup.lab.recompute does, by the function `compute` of a file
STAND_IN = """
import json, sys
from pathlib import Path

package = Path(__file__).parents[1]
request = json.loads(Path(sys.argv[1]).read_text())
code = {}
exec((package / "method.py").read_text(), code)
cells = []
for cell in request["cells"]:
    cells.append({"error": "", **cell, **code["compute"](cell)})
    print("cell ok", cell["arm"], flush=True)
document = {"package": str(package), "fingerprint": code["FINGERPRINT"], "environment": {}, "cells": cells}
Path(sys.argv[2]).write_text(json.dumps(document))
"""

METHOD = """
import hashlib

FINGERPRINT = "published"
LR = {"plain": 0.5, "ours": 0.25, "control": 0.5}

def compute(cell):
    loss = cell["seed"] % 97 / 3 + LR.get(cell["arm"], 0.0)
    numbers = {"accuracy": float(cell["arm"] == "ours"), "loss": loss}
    result = {"status": "ok", "numbers": numbers, "series": {}}
    if cell["kind"] == "cost":
        result["series"] = {"log_ratio": [-1.0 - i / 10 for i in range(8)]}
    return {**result, "sha256": hashlib.sha256(repr(result).encode()).hexdigest()}
"""


CODE = "src/trueup/method.py"


def git(folder, *arguments):
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder, files=()):
    """Write files, given by path, and commit everything."""
    for name, text in dict(files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "a change")
    return git(folder, "rev-parse", "HEAD")


def edited(text, *changes):
    """Replace each `(before, after)` in a text; `before` must occur."""
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return text


def worktrees(folder):
    return git(folder, "worktree", "list", "--porcelain").count("worktree ")


def records(compute=None):
    """Return every cell of the study as in evidence: two looks, three tuning seeds, two trials and so on."""
    plain = {"condition": {}, "hyper": {}, "seed": 0, "instance": ""}
    arms, scales = ("plain", "ours", "control"), (0.5, 1.0, 2.0)
    seeds = [s for look in (1, 2) for s in published_seeds("adamp", 1, look, 8)]
    cells = [
        *(
            {"kind": "tune", "arm": a, "hyper": {"scale": v}, "seed": s}
            for a in arms
            for v in scales
            for s in range(3)
        ),
        *({"kind": "report", "arm": a, "hyper": {"scale": 1.0}, "seed": s} for a in arms for s in seeds),
        {"kind": "exact", "arm": "sum", "instance": "one"},
        {"kind": "exact-control", "arm": "sum", "instance": "one"},
        {"kind": "cost", "arm": "cheap"},
    ]
    keys = [{**plain, **cell} for cell in cells]
    return [{**key, **compute(key)} for key in keys] if compute else keys


def evidence_document(study, cells, commit, fingerprint):
    trials = {0.5: 0.1, 1.0: 0.9, 2.0: 0.7}
    document = {
        "slug": "adamp",
        "scale": "desk",
        "protocol": 1,
        "commit": commit,
        "fingerprint": fingerprint,
        "plan": evidence.plan(study),
        "looks": [
            {"alpha": a, "seeds": published_seeds("adamp", 1, k, 8)} for k, a in ((1, 0.005), (2, 0.02))
        ],
        "tuning": [
            {
                "arm": arm,
                "condition": {},
                "edge": [],
                "trials": [
                    {"hyper": {"scale": v}, "scores": [m] * 3, "mean": m, "winner": v == 1.0}
                    for v, m in trials.items()
                ],
            }
            for arm in ("plain", "ours", "control")
        ],
        "cells": cells,
        "environment": {"threads": "1", "device": "cpu"},
        "claims": [],
    }
    document["measured"] = evidence.measured(study, document)
    return json.loads(json.dumps(document))


def publish(folder, document):
    evidence.write(document, folder)
    entry = {
        "slug": "adamp",
        "scale": "desk",
        "provenance": {"fingerprint": document["fingerprint"]},
        "history": [],
    }
    (folder / "ledger.json").write_text(json.dumps({"format": 1, "entries": {"adamp": entry}}))


class Published:
    """A repository with a published verdict, and the certification of what is committed after it."""

    def __init__(self, folder, files):
        self.root, self.shipped = folder / "repository", folder / "shipped"
        self.root.mkdir()
        self.shipped.mkdir()
        git(self.root, "init", "--quiet")
        self.commit = commit(self.root, {"study.py": STUDY, **files})
        self.ref = StudyRef("file", str(self.root / "study.py"))

    def publish(self, cells, fingerprint):
        publish(self.shipped, evidence_document(self.ref.load(), cells, self.commit, fingerprint))

    def certify(self, **options):
        return certify.certify(
            "adamp",
            self.ref,
            Repository(self.root),
            ledger_path=self.shipped / "ledger.json",
            folder=self.shipped,
            **options,
        )

    def entry(self):
        return ledger.read(self.shipped / "ledger.json")["adamp"]


@pytest.fixture
def published(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where a certification has its folder
    lab = {"src/trueup/lab/__init__.py": "", "src/trueup/lab/recompute.py": STAND_IN}
    made = Published(tmp_path, {"src/trueup/__init__.py": "", **lab, CODE: METHOD})
    code = {}
    exec(METHOD, code)
    made.publish(records(code["compute"]), "published")
    return made


# -- the sample ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.py"
    path.write_text(STUDY)
    code = {}
    exec(METHOD, code)
    return evidence_document(
        StudyRef("file", str(path)).load(), records(code["compute"]), "c0ffee", "published"
    )


def seeds_of(cells, kind, **wanted):
    return {c["seed"] for c in cells if c["kind"] == kind and all(c[k] == v for k, v in wanted.items())}


def test_two_seeds_of_each_look_are_drawn_for_every_arm(document):
    cells = certify.sample(document, "adamp c0ffee")
    for look in document["looks"]:
        drawn = seeds_of(cells, "report") & set(look["seeds"])
        assert len(drawn) == 2
        assert all(drawn <= seeds_of(cells, "report", arm=arm) for arm in ("plain", "ours", "control"))


def test_every_trial_is_drawn_at_one_seed_and_the_best_two_at_all(document):
    cells = certify.sample(document, "adamp c0ffee")
    for arm in ("plain", "ours", "control"):
        assert seeds_of(cells, "tune", arm=arm, hyper={"scale": 1.0}) == {0, 1, 2}
        assert seeds_of(cells, "tune", arm=arm, hyper={"scale": 2.0}) == {0, 1, 2}
    others = [seeds_of(cells, "tune", arm=arm, hyper={"scale": 0.5}) for arm in ("plain", "ours", "control")]
    assert len(others[0]) == 1
    assert others == [others[0]] * 3


def test_exact_claims_are_drawn_with_their_controls_and_cost_claims_come_last(document):
    kinds = [c["kind"] for c in certify.sample(document, "adamp c0ffee")]
    assert kinds.count("exact") == kinds.count("exact-control") == kinds.count("cost") == 1
    assert kinds[-1] == "cost"


def test_another_commit_draws_other_seeds_and_the_same_the_same(document):
    first, second, again = (certify.sample(document, draw) for draw in ("adamp a", "adamp b", "adamp a"))
    assert first == again
    assert seeds_of(first, "report") != seeds_of(second, "report")


def test_cells_that_once_differed_stay_in_the_sample(document):
    drawn = certify.sample(document, "adamp c0ffee")
    missed = [c for c in document["cells"] if c not in drawn][:2]
    gone = {**missed[0], "seed": 7}  # of an earlier protocol
    again = certify.sample(document, "adamp c0ffee", [*missed, gone])
    assert len(again) == len(drawn) + 2
    assert all(cell in again for cell in missed)


def test_of_a_study_without_seeds_all_is_drawn(document):
    exact = [c for c in document["cells"] if c["kind"].startswith("exact")]
    seedless = {**document, "cells": exact, "looks": [], "tuning": []}
    assert certify.sample(seedless, "adamp c0ffee") == exact


# -- what may be certified -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("min_effect=0.002", "min_effect=0.001", "min_effect of better: 0.002 published, 0.001 now"),
        (
            "primary=True",
            "primary=True, controls=()",
            r'controls of better: \["control"\] published, \[\] now',
        ),
        ('"plain", "accuracy")', '"control", "accuracy")', "contrast of better: "),
        ("(8, 0.005), (16, 0.02)", "(8, 0.005)", "looks"),
        ("(0.5, 1.0, 2.0)", "(0.5, 1.0)", "scale"),
        ("at_most=1.0", "at_most=2.0", "at_most of cheap: 1.0 published, 2.0 now"),
        ("rounds=8", "rounds=9", "rounds of cheap: 8 published, 9 now"),
    ],
)
def test_another_protocol_is_refused_and_named(tmp_path, document, before, after, named):
    path = tmp_path / "study.py"
    path.write_text(edited(STUDY, (before, after)))
    with pytest.raises(CertifyError, match=named) as caught:
        certify.check_plan(StudyRef("file", str(path)).load(), document)
    assert "Raise its protocol number and publish it again" in str(caught.value)


def test_a_contrast_that_computes_something_else_is_refused_and_the_seed_named(tmp_path, document):
    path = tmp_path / "study.py"
    custom = (
        "custom(lambda c: 2 * (c.mean('ours', 'accuracy') - c.mean('plain', 'accuracy')), ('ours', 'plain'), "
        "metrics=('accuracy',), text='ours - plain, accuracy', "
        "against=lambda a: difference('ours', a, 'accuracy'))"
    )
    call = ('difference("ours", "plain", "accuracy")', custom)
    path.write_text(edited(STUDY, call, ("Study, difference", "Study, custom, difference")))
    with pytest.raises(CertifyError, match=r"d of seed \d+ of .*contrast of better: 1.0 published, 2.0 now"):
        certify.check_plan(StudyRef("file", str(path)).load(), document)


def test_a_study_that_is_the_published_one_is_not_refused(tmp_path, document):
    path = tmp_path / "study.py"
    path.write_text(edited(STUDY, ("Ours is better.", "Ours wins."), ("two of a thousand", "two")))
    certify.check_plan(StudyRef("file", str(path)).load(), document)


@pytest.mark.parametrize(
    ("published", "now", "said"),
    [
        ({"a": [1, 2]}, {"a": (1, 2)}, None),
        ({"a": [1, 2]}, {"a": [2, 1]}, "a: [1, 2] published, [2, 1] now"),
        ({"arms": [{"name": "x"}]}, {"arms": []}, "x: published, but not there now"),
        ({"arms": []}, {"arms": [{"name": "x"}]}, "x: there now, but not published"),
        ({"arms": [{"name": "x"}, {"name": "y"}]}, {"arms": [{"name": "y"}, {"name": "x"}]}, "order of arms"),
        ({"arms": [{"name": "x"}, {"name": "x", "a": 1}]}, {"arms": [{"name": "x"}]}, "arms: "),
        ({"d": [{"seed": 7, "d": 0.5}]}, {"d": [{"seed": 7, "d": 0.25}]}, "d of seed 7: 0.5 published"),
        ({"a": 1}, {}, "a: published, but not there now"),
        ({"a": None}, {"a": 0}, "a: null published, 0 now"),
    ],
)
def test_a_difference_is_named_where_it_is(published, now, said):
    found = evidence.difference(published, now)
    assert found == said if said is None else found.startswith(said)


# -- comparing and recording ---------------------------------------------------------------------------------


def test_equal_numbers_certify_and_the_history_grows(published):
    later = commit(published.root, {CODE: METHOD.replace('"published"', '"refactored"')})
    first = published.certify()
    assert (first.outcome, first.differences) == ("certified", ())
    assert (
        first.equal_to_evidence == first.compared == first.cells - 1
    )  # the cost claim is measured, not compared
    assert first.agreement == f"{first.compared} of {first.compared} cells equal the stored ones"
    (event,) = published.entry()["history"]
    assert event == {
        "event": "certified",
        "date": event["date"],
        "commit": later,
        "protocol": 1,
        "fingerprint": "refactored",
        "cells": first.cells,
        "equal_to_evidence": first.compared,
        "seconds": event["seconds"],
    }
    assert ledger.current_fingerprints(published.entry()) == {"published", "refactored"}
    published.certify()
    assert published.entry()["history"][0] == event
    assert len(published.entry()["history"]) == 2
    assert worktrees(published.root) == 1


def test_one_arms_rate_differs_is_named_and_stays_in_the_sample(published):
    slower = ('"ours": 0.25', '"ours": 0.2500000001')
    commit(published.root, {CODE: edited(METHOD, slower, ('"published"', '"edited"'))})
    found = published.certify()
    assert found.outcome == "differs"
    assert {d.key["arm"] for d in found.differences} == {"ours"}
    assert {d.number for d in found.differences} == {"loss"}
    report = next(d for d in found.differences if d.key["kind"] == "report")
    seed = report.key["seed"]
    loss = seed % 97 / 3
    numbers = f"{loss + 0.25} by the published code, {loss + 0.2500000001} now"
    assert str(report) == f"report ours scale=1.0 seed {seed}: loss is {numbers}"
    (event,) = published.entry()["history"]
    assert event["event"] == "differed"
    assert {key["arm"] for key in event["differing"]} == {"ours"}
    assert len(event["differing"]) == len(found.differences)
    assert ledger.current_fingerprints(published.entry()) == {"published"}
    assert worktrees(published.root) == 1

    commit(published.root, {CODE: METHOD})  # mended: other seeds are drawn, and the old ones again
    mended = published.certify()
    assert mended.outcome == "certified"
    assert mended.cells > found.cells
    assert [e["event"] for e in published.entry()["history"]] == ["differed", "certified"]


@pytest.mark.parametrize(
    ("result", "number"),
    [
        ({"status": "diverged"}, "status"),
        ({"sha256": "another"}, "series or arrays"),
        ({"status": "failed", "error": "Traceback\nValueError: no"}, "status"),
    ],
)
def test_a_status_a_series_and_a_failure_differ_too(published, result, number):
    other = f".hexdigest(), **({result} if cell['kind'] == 'exact' else {{}})}}"
    commit(published.root, {CODE: edited(METHOD, (".hexdigest()}", other))})
    found = published.certify()
    assert found.outcome == "differs"
    (only,) = found.differences
    assert (only.cell, only.number) == ("exact sum one", number)
    if result.get("status") == "failed":
        assert only.present == "failed (ValueError: no)"


def test_a_cell_that_the_published_code_cannot_compute_here_fails_without_a_record(published):
    broken = '.hexdigest(), "status": "failed", "error": "MemoryError"}'
    broken_commit = commit(published.root, {CODE: edited(METHOD, (".hexdigest()}", broken))})
    document = of_another_processor(published)
    evidence.write({**document, "commit": broken_commit}, published.shipped)
    commit(published.root, {CODE: METHOD})
    found = published.certify()
    assert found.outcome == "failed"
    assert "status is failed (MemoryError) by the published code, ok now" in str(found.differences[0])
    assert published.entry()["history"] == []


def of_another_processor(published):
    """Give the published cells of one arm other last bits, so that the published code runs too."""
    document = evidence.read("adamp", published.shipped)
    for record in document["cells"]:
        if record["arm"] == "ours":
            record["sha256"] = "of another processor"
    evidence.write(document, published.shipped)
    return document


def test_cells_that_equal_the_published_ones_do_not_run_the_published_code(published):
    document = evidence.read("adamp", published.shipped)
    broken = commit(
        published.root, {CODE: edited(METHOD, (".hexdigest()}", ".hexdigest(), 'status': 1 / 0}"))}
    )
    evidence.write({**document, "commit": broken}, published.shipped)
    commit(published.root, {CODE: METHOD})
    found = published.certify()
    assert found.outcome == "certified"
    assert found.equal_to_evidence == found.compared > 0


def test_other_last_bits_on_this_processor_are_counted_and_certified(published):
    of_another_processor(published)
    found = published.certify()
    assert found.outcome == "certified"
    other = found.compared - found.equal_to_evidence
    assert other > 0
    assert found.agreement == (
        f"on this processor {other} of {found.compared} differ from the published ones; "
        "both codes agree with each other"
    )


def test_a_cost_claim_must_come_out_as_published(published):
    commit(published.root, {CODE: edited(METHOD, ("-1.0 - i / 10", "1.0 + i / 10"))})
    found = published.certify()
    assert found.outcome == "differs"
    assert [str(d) for d in found.differences] == [
        "cost cheap: outcome is reproduced by the published code, contradicted now"
    ]


def test_code_that_is_not_what_was_published_is_refused(published):
    document = evidence.read("adamp", published.shipped)
    publish(published.shipped, {**of_another_processor(published), "fingerprint": "another"})
    with pytest.raises(CertifyError, match="is not the code that was published"):
        published.certify()
    evidence.write({**document, "protocol": 7}, published.shipped)  # of another publication
    with pytest.raises(ledger.LedgerError, match="that of another publication"):
        published.certify()


@pytest.mark.parametrize("how", ["untracked", "ignored", "taken for unchanged"])
def test_code_that_git_does_not_show_is_refused(published, how):
    source = published.root / "src"
    commit(published.root, {"src/seen.py": "x = 1"})
    Repository(published.root).require_clean()
    if how == "taken for unchanged":
        git(published.root, "update-index", "--assume-unchanged", "src/seen.py")
    else:
        (source / "new.py").write_text("x = 2")
    if how == "untracked":
        git(published.root, "config", "status.showUntrackedFiles", "no")
    if how == "ignored":
        (published.root / ".git" / "info" / "exclude").write_text("new.py\n")
    with pytest.raises(CertifyError, match="not committed: src/"):
        Repository(published.root).require_clean()


class Editor(certify.Silent):
    """A progress that changes the code while a verdict is certified."""

    def __init__(self, edit):
        self.edit = edit

    def begin(self, slug, cells):
        self.edit()


@pytest.mark.parametrize("committed", [False, True])
def test_code_that_changes_while_it_is_certified_is_refused(published, committed):
    def edit():
        (published.root / CODE).write_text(METHOD + "\n")
        if committed:
            commit(published.root)

    with pytest.raises(CertifyError, match="the code changed while" if committed else "not committed"):
        published.certify(progress=Editor(edit))
    assert published.entry()["history"] == []


def test_a_package_from_elsewhere_is_refused(published):
    package = ("package = Path(__file__).parents[1]", "package = Path('/elsewhere/trueup')")
    read = ('(package / "method.py")', '(Path(__file__).parents[1] / "method.py")')
    commit(published.root, {"src/trueup/lab/recompute.py": edited(STAND_IN, package, read)})
    with pytest.raises(CertifyError, match=r"but /elsewhere/trueup ran: remove what comes before PYTHONPATH"):
        published.certify()
    assert published.entry()["history"] == []


def test_a_study_that_is_no_longer_the_published_one_is_refused_before_anything_runs(published):
    easier = edited(STUDY, ("min_effect=0.002", "min_effect=0.001"))
    commit(published.root, {"study.py": easier, CODE: "raise ValueError('this is not run')"})
    with pytest.raises(CertifyError, match=r"min_effect of better: 0.002 published, 0.001 now"):
        published.certify()
    assert published.entry()["history"] == []


# -- git -----------------------------------------------------------------------------------------------------


class Interrupted:
    def begin(self, slug, cells):
        pass

    def done(self, *cells):
        raise KeyboardInterrupt


def test_after_ctrl_c_nothing_is_left(published, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        published.certify(progress=Interrupted())
    assert sorted(tmp_path.iterdir()) == before
    assert worktrees(published.root) == 1
    assert published.entry()["history"] == []


def test_code_that_cannot_be_run_is_said_with_its_words_and_nothing_is_left(published, tmp_path):
    before = sorted(tmp_path.iterdir())
    commit(published.root, {CODE: "raise ValueError('broken here')"})
    with pytest.raises(CertifyError, match=r"(?s)the present code could not be run: .*broken here"):
        published.certify()
    assert sorted(tmp_path.iterdir()) == before
    assert worktrees(published.root) == 1


def test_what_a_killed_certification_left_is_removed_and_a_running_one_kept(published, tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    dead, alive = (tmp_path / f"trueup-certify-{pid}-abc" for pid in (finished.pid, os.getppid()))
    for folder in (dead, alive):
        git(published.root, "worktree", "add", "--detach", str(folder / "tree"))
    published.certify()
    assert (dead.exists(), alive.exists()) == (False, True)
    assert worktrees(published.root) == 2


def test_a_missing_worktree_of_the_users_own_stays_registered(published, tmp_path):
    git(published.root, "worktree", "add", "--detach", str(tmp_path / "mine"))
    shutil.rmtree(tmp_path / "mine")  # it may lie on a disk that is not mounted now
    published.certify()
    assert worktrees(published.root) == 2


def test_what_is_not_committed_is_refused_except_the_ledger(published):
    (published.root / "src/trueup/ledger.json").write_text("{}")
    (published.root / "notes.txt").write_text("anything")
    assert published.certify().outcome == "certified"
    (published.root / "src/trueup/method.py").write_text(METHOD + "\n")
    with pytest.raises(CertifyError, match=r"not committed: src/trueup/method.py; commit first"):
        published.certify()


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(CertifyError, match="clone the repository"):
        Repository(tmp_path)


def test_a_folder_inside_another_checkout_is_refused(published):
    with pytest.raises(CertifyError, match="is not the top of a git checkout"):
        Repository(published.root / "src")


def test_a_commit_that_is_not_here_is_refused_with_what_to_do(published, tmp_path):
    with pytest.raises(CertifyError, match="git fetch --all"):
        Repository(published.root).require("c0ffee" * 6 + "c0ff")
    commit(published.root)
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{published.root}", "shallow")
    with pytest.raises(CertifyError, match="shallow clone: run `git fetch --unshallow`"):
        Repository(tmp_path / "shallow").require(published.commit)


def test_a_commit_older_than_certification_is_refused(published):
    (published.root / "src/trueup/lab/recompute.py").unlink()
    older = commit(published.root)
    with pytest.raises(CertifyError, match="publish the verdict again"):
        Repository(published.root).require(older)


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def command(published, monkeypatch, capsys):
    """Run `trueup ledger certify` on the published verdict: `code, output = command("adamp")`."""
    here = Repository(published.root)
    monkeypatch.setattr(certify, "Repository", lambda: here)
    monkeypatch.setattr(ledger, "SHIPPED", published.shipped / "ledger.json")
    monkeypatch.setattr(evidence, "FOLDER", published.shipped)
    monkeypatch.setattr(lookup, "reference", lambda slug: published.ref)
    monkeypatch.setattr(cli._console.console, "width", 200, raising=False)
    monkeypatch.setattr(cli._ledger, "_renew", lambda readme: call.renewed.append(readme))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["trueup", "ledger", "certify", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out + said.err

    call.renewed = []
    return call


def test_the_command_certifies_what_is_stale_and_then_has_nothing_to_do(published, command, monkeypatch):
    commit(published.root, {CODE: edited(METHOD, ('"published"', '"refactored"'))})
    monkeypatch.setattr("trueup.lab._fingerprint.verdict_fingerprint", lambda ref, hashes=(): "refactored")
    code, out = command("--workers", "1")
    assert code == 0
    assert re.search(r"adamp +\d+ +certified +(\d+) of \1 cells equal the stored ones", out)
    assert command.renewed == [Path("README.md")]
    code, out = command()
    assert (code, len(published.entry()["history"])) == (0, 1)
    assert "nothing to certify" in out
    assert command("adamp")[0] == 0  # named, it is certified in any case
    assert len(published.entry()["history"]) == 2


def test_the_command_names_what_differs(published, command):
    commit(published.root, {CODE: edited(METHOD, ('"ours": 0.25', '"ours": 0.5'))})
    code, out = command("adamp")
    assert code == 1
    assert re.search(r"adamp +\d+ +differs +(\d+) of \1 cells by the published code equal the stored", out)
    assert "cells differ or failed" in out
    assert re.search(r"tune ours scale=0.5 seed \d: loss is \S+ by the published code, \S+ now", out)
    assert re.search(r"and \d+ more numbers", out)


def test_the_command_refuses_and_says_why(published, command):
    commit(published.root, {"study.py": edited(STUDY, ("min_effect=0.002", "min_effect=0.001"))})
    code, out = command("adamp")
    assert code == 1
    assert re.search("adamp +refused", out)
    assert "min_effect of better: 0.002 published, 0.001 now" in out
    code, out = command("evonorm")
    assert code == 2
    assert "evonorm has no published verdict; published: adamp" in out
    (published.root / CODE).write_text("")
    code, out = command("adamp")
    assert code == 2
    assert "commit first" in out


def test_the_command_stops_in_words(command, monkeypatch):
    monkeypatch.setattr(cli._ledger._CertifyBar, "done", Interrupted().done)
    code, out = command("adamp")
    assert code == 130
    assert "stopped" in out


# -- the ledger's history ------------------------------------------------------------------------------------


def test_an_event_of_an_unpublished_study_is_refused(tmp_path):
    with pytest.raises(ledger.LedgerError, match="no published verdict"):
        ledger.add_event("adamp", {"event": "certified"}, tmp_path / "ledger.json")


def test_a_fingerprint_is_current_if_published_or_certified_and_not_found_to_differ_since():
    def event(kind, fingerprint):
        return {"event": kind, "fingerprint": fingerprint}

    entry = {
        "provenance": {"fingerprint": "b"},
        "history": [event("published", "a"), event("certified", "x")],
    }
    assert ledger.current_fingerprints(entry) == {"a", "x"}
    entry["history"] += [event("published", "b"), event("certified", "c"), event("certified", "d")]
    assert ledger.current_fingerprints(entry) == {"b", "c", "d"}
    entry["history"] += [event("differed", "c"), {"event": "replicated"}]
    assert ledger.current_fingerprints(entry) == {"b", "d"}
    assert ledger.current_fingerprints({"provenance": {"fingerprint": "b"}}) == {"b"}


# -- computing cells anew ------------------------------------------------------------------------------------


@pytest.fixture
def inline(monkeypatch):
    """Collect the engines that recompute creates, each of which runs its cells in this process."""
    made = []

    def engine(workers):
        made.append(InlineEngine())
        return made[-1]

    monkeypatch.setattr(recompute, "LocalEngine", engine)
    return made


def test_cells_and_their_stages_are_computed_each_time_and_equal_those_of_a_run(tmp_path, inline, capsys):
    path = write_toy(tmp_path, name="toy_recomputed.py")
    with Store(tmp_path / "store.sqlite") as store:
        runner.run(StudyRef("file", path), store, InlineEngine())
        stored = {c: r for _, c, r in store.cells("toy") if c.kind != "stage"}
    cells = [c for c in stored if c.kind.startswith("exact") or c.seed < 1 or c.arm == "ours"]
    asked = [evidence.cell_record(c, stored[c]) for c in cells]
    request = {"slug": "toy", "file": path, "scale": "desk", "threads": 1, "device": "cpu", "workers": 1}
    (tmp_path / "request.json").write_text(json.dumps({**request, "cells": asked}))
    for _ in range(2):
        recompute.main(str(tmp_path / "request.json"), str(tmp_path / "response.json"))
    response = json.loads((tmp_path / "response.json").read_text())
    assert [c["sha256"] for c in response["cells"]] == [c["sha256"] for c in asked]
    assert [c["numbers"] for c in response["cells"]] == [c["numbers"] for c in asked]
    assert Path(response["package"]) == Path(trueup.__file__).parent
    first, second = ([c for c in engine.done if c.kind == "stage"] for engine in inline)
    assert first == second
    assert len(first) > 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("cell ok ") for line in lines) == 2 * len(asked)
    assert sum(line.startswith("stage ok teacher ") for line in lines) == 2 * len(first)


def test_a_paper_is_found_by_its_slug(inline):
    study = StudyRef("module", papers.get("adamp").study).load()
    claim = next(c for c in study.claims if c.kind == "exact")
    where = {"condition": {}, "hyper": {}, "seed": 0, "instance": next(iter(claim.instances))}
    request = {"slug": "adamp", "scale": "desk", "threads": 1, "device": "cpu", "workers": 1}
    cells = [{"kind": "exact", "arm": claim.name, **where}]
    (answered,) = recompute.answer({**request, "cells": cells})["cells"]
    assert answered["status"] == "ok"
    assert answered["numbers"]["deviation"] <= claim.tolerance


def test_a_cost_claim_is_measured_last_and_alone(tmp_path):
    path = tmp_path / "study_of_cost.py"
    path.write_text(STUDY)
    ref, maps = StudyRef("file", str(path)), []

    class Watched(InlineEngine):
        def map(self, tasks):
            maps.extend([[task.cell.kind for task in tasks]] if tasks else [])
            return super().map(tasks)

    origin = {"slug": "adamp", "scale": "desk", "protocol": 1}
    cells = [evidence.cell_of(origin, r) for r in reversed(records()) if r["kind"] in ("exact", "cost")]
    results = runner.recompute(ref, cells, Watched())
    assert maps == [["exact"], ["cost"]]
    assert len(results[cells[0]].series["log_ratio"]) == 8


# -- the whole package ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A published verdict in a repository that holds this package."""
    folder = tmp_path_factory.mktemp("whole")
    source = folder / "repository/src/trueup"
    made = Published.__new__(Published)
    made.root, made.shipped = folder / "repository", folder / "shipped"
    made.shipped.mkdir()
    shutil.copytree(Path(trueup.__file__).parent, source, ignore=shutil.ignore_patterns("__pycache__"))
    git(made.root, "init", "--quiet")
    made.commit = commit(made.root, {"study.py": STUDY, "src/trueup/optim/tiny_step.py": STEP})
    made.ref = StudyRef("file", str(made.root / "study.py"))
    request = {"file": made.ref.name, "scale": "desk", "threads": 1, "device": "cpu", "workers": 1}
    (folder / "request.json").write_text(json.dumps({**request, "cells": records()}))
    subprocess.run(
        [sys.executable, "-m", "trueup.lab.recompute", "request.json", "response.json"],
        env={**os.environ, "PYTHONPATH": str(made.root / "src")},
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    response = json.loads((folder / "response.json").read_text())
    assert {c["status"] for c in response["cells"]} == {"ok"}
    made.publish(response["cells"], response["fingerprint"])
    return made


@pytest.mark.slow
def test_a_rename_a_moved_helper_and_a_reworded_error_are_certified(whole):
    helper = re.search(r"def _sign.*?eps\)\n", STEP, re.DOTALL)[0]
    moved = (helper, "from trueup.optim.sign_of import sign\n")
    git(whole.root, "rm", "--quiet", "src/trueup/optim/tiny_step.py")
    commit(
        whole.root,
        {
            "study.py": edited(STUDY, ("tiny_step", "small_step")),
            "src/trueup/optim/small_step.py": edited(
                STEP, moved, ("_sign(g", "sign(g"), ("must be > 0", "must be positive")
            ),
            "src/trueup/optim/sign_of.py": edited(helper, ("_sign", "sign")),
        },
    )
    found = whole.certify()
    assert (found.outcome, found.differences) == ("certified", ())
    assert found.equal_to_evidence == found.compared
    assert len(ledger.current_fingerprints(whole.entry())) == 2


@pytest.mark.slow
def test_an_epsilon_under_a_claim_on_accuracy_alone_is_found(whole):
    smaller = edited(STEP, ("1e-8", "1e-7"))
    commit(whole.root, {"study.py": STUDY, "src/trueup/optim/tiny_step.py": smaller})
    found = whole.certify()
    assert found.outcome == "differs"
    assert {d.number for d in found.differences} == {"loss"}
    assert {d.key["arm"] for d in found.differences} == {"plain", "ours", "control"}
