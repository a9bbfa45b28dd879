"""The command line as a user meets it: output, errors that teach, exit codes."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from trueup import cli, papers
from trueup.lab import ledger
from trueup.studies import _lookup as lookup

STUDY = """
from trueup.lab import Arm, Claim, ExactClaim, Metric, Study, difference

def cell(run):
    {trouble}
    return {{"score": {{"a": 0.0, "b": 1.0, "c": 0.0}}[run.arm] + run.rng(run.arm).normal() / 10}}

study = Study(
    slug="tiny", question="Is b better than a?", cell=cell,
    metrics=[Metric("score", higher=True, worst=-9.0)],
    arms=[Arm("a", "baseline"), Arm("b", "method"), Arm("c", "control")],
    claims=[
        Claim("better", "b wins.", difference("b", "a", "score"), min_effect=0.1, why="a tenth", primary=True)
    ],
)
"""


@pytest.fixture
def trueup(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder: ``code, out, err = trueup("list")``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trueup", *arguments])
        monkeypatch.setattr(cli._console.console, "width", 200, raising=False)
        monkeypatch.setattr(cli.errors, "width", 200, raising=False)
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def write_study(trouble: str = "pass") -> str:
    Path("tiny.py").write_text(STUDY.format(trouble=trouble))
    return "tiny.py"


def test_list_shows_all_fifty_and_filters(trueup, monkeypatch):
    code, out, _ = trueup("list")
    assert code == 0
    assert all(p.slug in out for p in papers.CATALOGUE)
    _, out, _ = trueup("list", "--area", "optim")
    assert "adamp" in out
    assert "evonorm" not in out
    for standing in ("published", "certified", "stale"):
        monkeypatch.setattr(lookup, "standing", lambda paper, entries, standing=standing: standing)
        out = trueup("list", "--area", "optim")[1]
        assert ("stale: the code has changed since" in out) == (standing == "stale")
        assert ("certified: the code was rewritten since" in out) == (standing == "certified")
    _, out, _ = trueup("list", "--available")
    assert "adamp" in out
    assert "reconstructed: the paper's equations could not be confirmed" in out  # weight-compander's
    assert "reconstructed" not in trueup("list", "--area", "optim")[1]
    assert "reconstructed" not in trueup("list", "--area", "audio")[1]  # soundscape: no method yet
    assert "tleg" not in out


@pytest.mark.parametrize("slug", ["adamp", "partial-correlation", "ghost-batch-norm"])
def test_show_says_how_to_use_it_and_what_is_claimed(trueup, slug):
    code, out, _ = trueup("show", slug)
    assert code == 0
    paper = papers.get(slug)
    assert paper.names[0] in out
    assert "import torch, trueup" in out
    assert paper.url in out
    assert "trueup run" in out


def test_show_of_a_planned_paper_says_so(trueup):
    code, out, _ = trueup("show", "tleg")
    assert code == 0
    assert "planned" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "adammp"], "did you mean 'adamp'"),
        (["run", "adammp"], "did you mean 'adamp'"),
        (["run", "tleg"], "is planned, not written yet"),
        (["run", "no_such_file.py"], "no study file no_such_file.py"),
        (["run", "adamp", "--scale", "desktop"], "unknown scale 'desktop'"),
        (["run", "adamp", "--seeds", "0"], "seeds must be at least 1"),
        (["run", "adamp", "--workers", "0"], "workers must be at least 1"),
        (["run", "adamp", "--device", "cuda:77"], "leave --device out for cpu"),
        (["list", "--area", "kitchen"], "no area is called 'kitchen'"),
        (["data", "fetch", "digit"], "digits"),
        (["ledger", "publish", "adamp"], "no store"),
        (["ledger", "replicate", "tleg"], "no published verdict"),
        (
            [
                "compare",
                "nothing.csv",
                "--metric",
                "m",
                "--baseline",
                "a",
                "--method",
                "b",
                "--min-effect",
                "1",
            ],
            "nothing",
        ),
    ],
)
def test_what_cannot_be_done_is_one_message_and_code_2(trueup, arguments, message):
    code, _, err = trueup(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_study_file_that_raises_on_import_names_the_line(trueup):
    Path("broken.py").write_text("x = 1\nraise RuntimeError('not today')\n")
    code, _, err = trueup("run", "broken.py")
    assert code == 2
    assert "broken.py" in err
    assert "line 2" in err
    assert "not today" in err


def test_a_study_of_ones_own_does_not_take_a_papers_name(trueup):
    Path(write_study()).write_text(Path("tiny.py").read_text().replace('"tiny"', '"adamp"'))
    code, _, err = trueup("run", "tiny.py", "--workers", "1")
    assert code == 2
    assert "give your study another" in err
    assert not Path("trueup-lab").exists()


def test_a_study_of_ones_own_runs_resumes_and_is_reported(trueup):
    code, out, _ = trueup("run", write_study(), "--workers", "1")
    assert code == 0
    assert "b is ahead of a" in out or "b beats a" in out
    assert "reproduced" in out
    assert Path("trueup-lab/report/index.html").is_file()
    assert Path("trueup-lab/report/tiny.html").is_file()
    code, out, _ = trueup("run", "tiny.py", "--workers", "1")
    assert code == 0
    assert "30 cells, 30 of them stored before" in out
    code, out, _ = trueup("run", "tiny.py", "--plan")
    assert code == 0
    assert "look 1" in out
    code, out, _ = trueup("report")
    assert code == 0
    outcome = json.loads(Path("trueup-lab/report/data/tiny.json").read_text())
    assert outcome["verdict"]["outcome"] == "reproduced"
    page = Path("trueup-lab/report/tiny.html").read_text()
    assert f"trueup run {Path('tiny.py').resolve()}" in page
    assert "trueup run tiny<" not in page
    assert "claimed by the paper" not in page


def test_failed_cells_are_shown_and_exit_1(trueup):
    code, out, _ = trueup(
        "run", write_study("assert run.arm != 'b', 'a bug of mine'"), "--workers", "1", "--seeds", "6"
    )
    assert code == 1
    assert "a bug of mine" in out
    assert "incomplete" in out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \ttext\n", "plain \ttext\n"),
        ("\x1b[31mred\x1b[0m \x9b1mbold", "red bold"),
        ("\x1b]0;title\x07a\x1b]8;;https://x.org\x1b\\link\x9d0;t\x9c", "alink"),
        ("\x1bPq#0\x1b\\a\x1bcb\x1b(Bc\x1b", "abc"),
        ("a\rb\x08c\x00\x7f\x85", "abc"),
        ("[bold]", "\\[bold]"),
    ],
)
def test_text_of_a_study_cannot_steer_the_terminal(text, shown):
    assert cli.escape(text) == shown


def test_labels_and_errors_of_a_study_reach_the_terminal_without_control_characters(trueup):
    attack = "\\x1b]0;owned\\x07\\x1b[31m[red]"
    text = write_study(f"assert run.arm != 'c' or run.seed < 3, '{attack} a bug'")
    path = Path(text)
    path.write_text(
        path.read_text()
        .replace('Arm("b", "method")', f'Arm("b", "method", label="{attack} mine")')
        .replace('"Is b better', f'"{attack} is b better')
    )
    for seeds in ("6", "3"):
        _, out, _ = trueup("run", "tiny.py", "--workers", "1", "--seeds", seeds)
        assert "[red]" in out
        assert not {"\x1b", "\x07"} & set(out)
        assert "a bug" in out if seeds == "6" else "mine" in out


def test_strongly_skewed_seeds_are_a_warning_in_the_terminal(trueup, monkeypatch):
    entry = ledger.read()["adamp"]
    entry["claims"][2]["skew"] = 1.7
    monkeypatch.setattr(ledger, "read", lambda: {"adamp": entry})
    monkeypatch.setattr(lookup, "standing", lambda paper, entries: "published")
    assert trueup("show", "adamp")[1].count("These seeds are strongly skewed") == 1


def test_diverged_cells_are_counted_where_the_verdict_is_told(trueup):
    trouble = "if run.arm == 'a': return {'score': float('nan')}"
    _, out, _ = trueup("run", write_study(trouble), "--workers", "1", "--seeds", "6")
    assert "6 cells diverged and score their metric's worst value" in out
    code, out, _ = trueup("run", "tiny.py", "--plan")
    assert code == 0
    assert "smallest effect found with 80 % power" in out


def test_a_file_that_is_no_study_is_told_from_a_misspelt_paper(trueup):
    write_study()
    for target in ("tiny", "results.csv"):
        results("results.csv", 0.0)
        code, _, err = trueup("run", target)
        assert code == 2
        assert "whose name ends in .py" in err
    Path("adamp.py").write_text("")  # a paper is a paper, whatever lies beside it
    assert trueup("run", "adamp", "--plan")[0] == 0


def test_a_plan_makes_no_store_and_no_folder(trueup):
    code, out, _ = trueup("run", write_study(), "--plan")
    assert code == 0
    assert "look 1" in out
    assert [path.name for path in Path().iterdir() if path.name != "__pycache__"] == ["tiny.py"]


def test_a_run_on_another_device_says_so_and_is_reported(trueup, monkeypatch):
    """The meta device stands for one: this study makes no tensors."""
    code, out, _ = trueup("run", write_study(), "--workers", "1", "--device", "meta")
    assert code == 0
    assert "of waiting, on meta" in out
    _, out, _ = trueup("run", "tiny.py", "--plan", "--device", "meta")
    assert "tiny, desk scale, on meta" in out
    assert out.split("look 1")[1].split()[:2] == ["30", "30"]
    trueup("report", "--output", "pages")
    outcome = json.loads(Path("pages/data/tiny.json").read_text())
    assert outcome["verdict"]["outcome"] == "reproduced"


@pytest.fixture
def read_only_disk():
    """Makes a folder read-only as a disk is: for root too, whom permissions do not stop."""
    mounted = []

    def make(folder: str) -> None:
        for options in (["--bind", folder], ["-o", "remount,ro,bind"]):
            if subprocess.run(["mount", *options, folder], capture_output=True).returncode:
                pytest.skip("only root can mount; the tests of the store take permissions away instead")
            mounted.append(folder)

    yield make
    if mounted:
        subprocess.run(["umount", "--lazy", mounted[0]], check=True)


def test_a_finished_store_on_a_read_only_disk_is_reported_and_planned(trueup, read_only_disk):
    assert trueup("run", write_study(), "--workers", "1")[0] == 0
    read_only_disk("trueup-lab")
    with pytest.raises(OSError, match="Read-only"):
        Path("trueup-lab/new").touch()
    code, out, _ = trueup("run", "tiny.py", "--plan")
    assert (code, out.split("look 1")[1].split()[:2]) == (0, ["30", "30"])
    assert trueup("report", "--output", "pages")[0] == 0
    assert json.loads(Path("pages/data/tiny.json").read_text())["verdict"]["outcome"] == "reproduced"
    code, _, err = trueup("report")
    assert (code, "Traceback" in err) == (2, False)


def test_a_plan_tells_what_the_published_run_took(trueup, monkeypatch):
    cost = {"cells": 500, "cpu_seconds": 240.0, "stage_seconds": 6.0}
    monkeypatch.setattr(ledger, "read", lambda: {"adamp": {"cost": cost}})
    _, out, _ = trueup("run", "adamp", "--plan")
    assert "500 cells in 4 min 6 s of computing" in out
    for arguments in (["--scale", "smoke"], ["--seeds", "3"]):
        assert "minutes: unknown" in trueup("run", "adamp", "--plan", *arguments)[1]


def test_a_plan_tells_effects_in_the_unit_of_the_metric(trueup):
    path = Path(write_study())
    text = path.read_text().replace("worst=-9.0", 'worst=-9.0, unit="%"')
    path.write_text(text)
    trueup("run", "tiny.py", "--workers", "1", "--seeds", "6")
    _, out, _ = trueup("run", "tiny.py", "--plan")
    assert "10 points" in out  # asked for: 0.1


def test_a_smoke_run_gives_no_verdict(trueup):
    code, out, _ = trueup("run", write_study(), "--workers", "1", "--scale", "smoke")
    assert code == 0
    assert "no verdict" in out


def results(path: str, gain: float) -> None:
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["arm", "seed", "acc"])
        for seed in range(10):
            writer.writerow(["sgd", seed, 0.9 + 0.001 * (seed % 3)])
            writer.writerow(["adamp", seed, 0.9 + gain + 0.001 * (seed % 4)])


@pytest.mark.parametrize(("gain", "word"), [(0.05, "better"), (0.0, "too small or worse")])
def test_compare_judges_results_of_ones_own(trueup, gain, word):
    results("results.csv", gain)
    arguments = [
        "--metric",
        "acc",
        "--higher",
        "--baseline",
        "sgd",
        "--method",
        "adamp",
        "--min-effect",
        "0.01",
    ]
    code, out, _ = trueup("compare", "results.csv", *arguments, "--html", "page.html")
    assert code == 0
    assert word in out
    assert word in Path("page.html").read_text()


def test_compare_counts_a_diverged_run_at_the_worst_value(trueup):
    results("results.csv", 0.05)
    path = Path("results.csv")
    path.write_text(path.read_text().replace("sgd,3,0.9\n", "sgd,3,nan\n"))
    arguments = ["--metric", "acc", "--baseline", "sgd", "--method", "adamp", "--min-effect", "0.01"]
    code, _, err = trueup("compare", "results.csv", *arguments)
    assert code == 2
    assert "--worst" in err
    code, out, _ = trueup("compare", "results.csv", *arguments, "--worst", "0.1")
    assert code == 0
    assert "by 0.13" in out  # one of ten seeds is better by 0.85, not by 0.05
    assert "Diverged or worse, and so counted as 0.1: 1 of sgd." in " ".join(out.split())


def test_compare_says_which_way_is_better(trueup):
    results("results.csv", 0.05)
    arguments = ["--metric", "acc", "--baseline", "sgd", "--method", "adamp", "--min-effect", "0.01"]
    assert "acc: higher is better (else: --lower)" in trueup("compare", "results.csv", *arguments)[1]
    assert "acc: lower is better" in trueup("compare", "results.csv", *arguments, "--lower")[1]


def test_compare_averages_over_the_columns_named(trueup):
    rows = [
        f"{arm},{seed},{place},{0.9 + (0.05 if arm == 'adamp' else 0) + seed / 1000 * (arm == 'sgd')}"
        for arm in ("sgd", "adamp")
        for seed in range(8)
        for place in ("a", "b")
    ]
    Path("results.csv").write_text("\n".join(["arm,seed,dataset,acc", *rows]) + "\n")
    arguments = ["--metric", "acc", "--baseline", "sgd", "--method", "adamp", "--min-effect", "0.01"]
    code, _, err = trueup("compare", "results.csv", *arguments)
    assert code == 2
    assert "(--condition): dataset" in err
    code, out, _ = trueup("compare", "results.csv", *arguments, "--condition", "dataset")
    assert code == 0
    assert "8 seeds" in out


def test_a_run_that_is_interrupted_says_that_nothing_is_lost(trueup):
    code, _, err = trueup("run", write_study("raise KeyboardInterrupt"), "--store", "s.sqlite")
    assert code in (1, 130)  # in a worker it is that cell's failure
    with mock.patch("trueup.lab._runner.run", side_effect=KeyboardInterrupt):
        code, _, err = trueup("run", "tiny.py", "--store", "s.sqlite")
    assert code == 130
    assert "every finished cell is kept; the same command resumes from there" in err


def test_compare_names_the_column_that_is_missing(trueup):
    results("results.csv", 0.0)
    arguments = ["--metric", "accuracy", "--baseline", "sgd", "--method", "adamp", "--min-effect", "0.01"]
    code, _, err = trueup("compare", "results.csv", *arguments)
    assert code == 2
    assert "accuracy" in err


def test_a_report_over_nothing_teaches_the_command(trueup, monkeypatch):
    monkeypatch.setattr(ledger, "read", lambda: {})
    code, _, _ = trueup("report")
    assert code == 0
    assert "trueup run" in Path("trueup-lab/report/index.html").read_text()
    _, out, _ = trueup("report", "--store", "elsewhere.sqlite", "--output", "pages")
    assert "no store at elsewhere.sqlite yet" in out
    assert not Path("elsewhere.sqlite").exists()


def test_data_lists_what_is_here(trueup):
    code, out, _ = trueup("data")
    assert code == 0
    assert "fashion-mnist" in out
    assert "MIT" in out


def test_ledger_without_entries_says_how_to_get_some(trueup, monkeypatch):
    monkeypatch.setattr(ledger, "read", lambda: {})
    code, out, _ = trueup("ledger")
    assert code == 0
    assert "trueup ledger publish" in out


@pytest.fixture
def published(trueup, monkeypatch, tmp_path):
    """A paper of one's own whose verdict is published in a ledger of one's own; its standing, to be set."""
    from dataclasses import replace

    from trueup.lab import _evidence as evidence
    from trueup.lab._certify import Repository
    from trueup.lab._engine import StudyRef

    path = Path(write_study()).resolve()
    ref = StudyRef("file", str(path))
    monkeypatch.setattr(ledger, "SHIPPED", tmp_path / "ledger.json")
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "evidence")
    monkeypatch.setattr(ledger, "checkout", lambda: tmp_path)
    monkeypatch.setattr(Repository, "__init__", lambda self: None)
    monkeypatch.setattr(Repository, "require_clean", lambda self: "c0ffee")
    paper = replace(papers.get("adamp"), slug="tiny")
    monkeypatch.setattr(papers, "get", lambda slug: paper)
    monkeypatch.setattr(lookup, "reference", lambda target: ref)
    monkeypatch.setattr(lookup, "standing", lambda paper, entries: standing[0])
    standing = ["published"]
    assert trueup("run", "tiny.py", "--workers", "1")[0] == 0
    code, out, err = trueup("ledger", "publish", "tiny")
    assert (code, "tiny: reproduced" in out) == (0, True), out + err
    return standing


def test_replications_are_compared_recorded_and_shown(trueup, published):
    before = ledger.read()["tiny"]
    code, out, _ = trueup("ledger", "replicate", "tiny", "--workers", "1")
    assert code == 0
    assert "The replication agrees with the published effects." in out
    assert "recorded in the ledger as replication 1" in out
    after = ledger.read()["tiny"]
    (event,) = ledger.replications(after)
    assert event["agrees"]
    assert event["effects"][0]["published"]["mean"] != event["effects"][0]["replicated"]["mean"]
    assert after | {"history": before["history"]} == before
    code, out, _ = trueup("ledger", "replicate", "tiny", "--workers", "1")
    assert "recorded in the ledger as replication 2" in out  # on fresh seeds again, and whatever it says
    assert ledger.replications(ledger.read()["tiny"])[0] == event
    _, out, _ = trueup("ledger")
    assert "replication 1: effects agree (" in " ".join(out.split())
    assert "reconstructed" not in out


def test_an_installed_package_records_no_replication(trueup, published, monkeypatch):
    monkeypatch.setattr(ledger, "checkout", lambda: None)
    before = ledger.read()
    code, out, _ = trueup("ledger", "replicate", "tiny", "--workers", "1")
    assert (code, "recorded" in out) == (0, False)
    assert ledger.read() == before


def test_the_ledger_says_which_method_is_reconstructed(trueup, published, monkeypatch):
    from dataclasses import replace

    paper = replace(papers.get("tiny"), fidelity="reconstructed")
    monkeypatch.setattr(papers, "get", lambda slug: paper)
    assert "reconstructed" in trueup("ledger")[1]


def test_only_the_published_code_is_replicated(trueup, published):
    published[0] = "stale"
    code, _, err = trueup("ledger", "replicate", "tiny", "--workers", "1")
    assert code == 2
    assert "certify or publish it first" in " ".join(err.split())
    published[0] = "certified"
    assert trueup("ledger", "replicate", "tiny", "--workers", "1")[0] == 0


def test_a_verdict_stands_on_the_data_it_names(monkeypatch):
    from trueup.data._sets import find

    hashed = []
    monkeypatch.setattr(
        "trueup.lab._fingerprint.verdict_fingerprint", lambda ref, hashes=(): hashed.append(list(hashes))
    )
    entry = ledger.read()["adamp"]
    assert lookup.standing(papers.get("adamp"), {"adamp": entry}) == "stale"
    assert hashed == [[find("digits").sha256]]


def test_a_verdict_without_its_evidence_is_shown_without_dots(published, trueup, tmp_path, monkeypatch):
    monkeypatch.setattr(papers, "CATALOGUE", [papers.get("tiny")])
    (tmp_path / "evidence" / "tiny.json.gz").write_bytes(b"damaged")
    code, _, err = trueup("report")
    assert code == 0
    assert "without every seed's dot: " in " ".join(err.split())
    assert "is damaged" in " ".join(err.split())


def test_publishing_again_needs_a_reason(trueup, published):
    assert trueup("ledger", "publish", "tiny")[0] == 0  # the same: nothing to do
    path = Path("tiny.py")
    path.write_text(path.read_text() + "\nUNUSED = 1\n")
    assert trueup("run", "tiny.py", "--workers", "1")[0] == 0
    code, _, err = trueup("ledger", "publish", "tiny")
    assert (code, "say why it is published again" in " ".join(err.split())) == (2, True)
    assert trueup("ledger", "publish", "tiny", "--reason", "to see")[0] == 0
    _, out, _ = trueup("show", "tiny")
    assert "protocol 1 published at commit c0ffee: reproduced (to see)" in " ".join(out.split())


def test_verdicts_are_judged_again_and_their_evidence_shown(trueup, published):
    before = Path(ledger.SHIPPED).read_text()
    code, out, err = trueup("ledger", "rejudge")
    assert (code, "none" in out) == (0, True), err
    assert Path(ledger.SHIPPED).read_text() == before
    code, out, err = trueup("ledger", "evidence", "tiny")
    assert (code, "c0ffee" in out, "--csv" in out) == (0, True, True), err
    code, out, _ = trueup("ledger", "evidence", "tiny", "--csv")
    header, *rows = csv.reader(out.splitlines())
    assert header[:2] == ["kind", "arm"]
    assert header[-1] == "sha256"
    assert len(rows) > 20
    assert trueup("ledger", "evidence", "tleg")[0] == 2


def test_no_arguments_teach(trueup):
    code, out, err = trueup()
    assert "ghost-batch-norm" in out + err
    assert code in (0, 2)


# ---- calibrate ----


@pytest.fixture(scope="module")
def overconfident():
    """Logits of three classes, three times too large, and labels drawn from the right probabilities."""
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.normal(size=(600, 3))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return 3 * logits, np.array([rng.choice(3, p=p) for p in probs])


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_calibrate_judges_on_other_rows_and_keeps_the_best(trueup, overconfident):
    logits, y = overconfident
    np.savez("model.npz", logits=logits, labels=y)
    code, out, err = trueup("calibrate", "model.npz", "--output", "made")
    assert (code, err) == (0, "")
    assert "fitted on 300 rows, judged on 300 others" in out
    table = {words[0]: words[1:] for line in out.splitlines() if len(words := line.split()) == 6}
    assert set(table) == {
        "uncalibrated", "temperature", "vector", "histogram", "beta", "isotonic", "platt"
    }  # fmt: skip
    with np.load("made/model.calibrated.npz") as saved:
        assert sorted(saved.files) == ["fitted_on", "labels", "probs"]
        judged = ~saved["fitted_on"]
        assert judged.sum() == 300
        assert (saved["labels"] == y).all()
        nll = -np.log(saved["probs"][judged, y[judged]]).mean()
        before = -np.log(softmax(logits)[judged, y[judged]]).mean()
    chosen = re.search(r"calibrated by (\w+):", out)[1]
    assert float(table[chosen][1]) == pytest.approx(nll, abs=1e-4)
    assert float(table["uncalibrated"][1]) == pytest.approx(before, abs=1e-4)
    assert nll < 0.8 * before
    page = Path("made/model.calibration.html").read_text()
    assert page.count('class="plot"') == 7
    assert f"Chosen: {chosen} calibration." in page


def test_calibrate_reads_the_same_from_every_format(trueup, overconfident):
    logits, y = overconfident
    probs = softmax(logits)
    table = pd.DataFrame(probs, columns=["prob_a", "prob_b", "prob_c"]).assign(
        label=y, id=[f"r{i}" for i in y]
    )
    table.to_csv("table.csv", index=False)
    table.to_parquet("table.parquet")
    np.savez("arrays.npz", probs=probs, target=y)
    np.save("probs.npy", probs)
    np.save("y.npy", y)
    tables = []
    for arguments in (["table.csv"], ["table.parquet"], ["arrays.npz"], ["probs.npy", "--labels", "y.npy"]):
        code, out, err = trueup("calibrate", *arguments, "--method", "temperature")
        assert (code, err) == (0, "")
        tables.append(out[out.index("fitted on") :].split("page:")[0])
    assert len(set(tables)) == 1
    code, out, _ = trueup("calibrate", "table.csv", "--kind", "logits", "--method", "temperature")
    assert code == 0
    assert out[out.index("fitted on") :].split("page:")[0] != tables[0]


def test_calibrate_a_binary_score(trueup, overconfident):
    logits, y = overconfident
    pd.DataFrame({"score": softmax(logits)[:, 1], "y": (y == 1).astype(int)}).to_csv(
        "binary.csv", index=False
    )
    code, _, err = trueup("calibrate", "binary.csv", "--method", "isotonic", "--method", "temperature")
    assert (code, err) == (0, "")
    with np.load("binary.calibrated.npz") as saved:
        assert saved["probs"].shape == (600,)


def test_calibrate_says_when_there_are_too_few_rows(trueup, overconfident):
    logits, y = overconfident
    np.savez("few.npz", logits=logits[:60], labels=y[:60])
    code, out, _ = trueup("calibrate", "few.npz", "--method", "temperature")
    assert code == 0
    assert "take more rows or fewer bins" in out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda z, y: np.savez("bad.npz", scores=z, labels=y), "an array `logits` or `probs`; got scores"),
        (lambda z, y: np.savez("bad.npz", logits=z), "bad.npz has no labels"),
        (lambda z, y: np.savez("bad.npz", logits=z, labels=y[:-1]), "600 predictions, but there are 599"),
        (lambda z, y: np.savez("bad.npz", logits=z, labels=y + 0.5), "labels must be integers"),
        (lambda z, y: np.savez("bad.npz", logits=z, labels=y + 1), r"target must be in \[0, 3\)"),
        (lambda z, y: np.savez("bad.npz", probs=z, labels=y), "if these are logits"),
        (lambda z, y: np.savez("bad.npz", logits=z * np.nan, labels=y), "NaN"),
        (lambda z, y: np.savez("bad.npz", logits=z[:1], labels=y[:1]), "cannot be split"),
        (lambda z, y: Path("bad.npz").write_text("no archive"), "cannot be read as a NumPy file"),
    ],
)  # fmt: skip
def test_calibrate_refuses_what_it_cannot_measure(trueup, overconfident, make, message):
    make(*overconfident)
    code, _, err = trueup("calibrate", "bad.npz")
    assert code == 2
    assert re.search(message, " ".join(err.split()))
    assert [path.name for path in Path().iterdir()] == ["bad.npz"]


def test_calibrate_names_the_columns_of_a_table(trueup):
    pd.DataFrame({"a": [0.1, 0.9], "name": ["x", "y"], "label": [0, 1]}).to_csv("bad.csv", index=False)
    code, _, err = trueup("calibrate", "bad.csv")
    assert code == 2
    assert "column 'name' is not numeric" in " ".join(err.split())
    code, _, err = trueup("calibrate", "model.pkl")
    assert code == 2
    assert "predictions are read from .npz, .npy, .csv, .parquet" in " ".join(err.split())


def test_calibrate_takes_numbered_columns_in_their_order(trueup, overconfident):
    logits, y = overconfident
    table = pd.DataFrame(logits, columns=["logit_9", "logit_10", "logit_11"]).assign(label=y)
    table.to_csv("ordered.csv", index=False)
    table[["logit_10", "label", "logit_11", "logit_9"]].to_csv("shuffled.csv")  # with pandas' index
    outputs = [
        trueup("calibrate", name, "--method", "temperature")[1].split("page:")[0]
        for name in ("ordered.csv", "shuffled.csv")
    ]
    assert outputs[0] == outputs[1]
    assert "classes: logit_9, logit_10, logit_11" in outputs[0]


def test_calibrate_does_not_take_an_index_for_a_class(trueup, overconfident):
    logits, y = overconfident
    table = pd.DataFrame(logits, columns=["0", "1", "2"]).assign(label=y)
    table.to_csv("index.csv")
    code, out, _ = trueup("calibrate", "index.csv", "--method", "temperature")
    assert code == 0
    assert "classes: 0, 1, 2\n" in out
    table.assign(id=range(len(y))).to_csv("id.csv", index=False)
    code, _, err = trueup("calibrate", "id.csv")
    assert code == 2
    assert "not numbered one after the other" in " ".join(err.split())


def test_calibrate_refuses_maps_and_a_file_as_folder_at_once(trueup):
    np.savez("maps.npz", probs=np.full((4, 2, 3, 3), 0.5), labels=np.zeros((4, 3, 3), int))
    code, _, err = trueup("calibrate", "maps.npz")
    assert code == 2
    assert "flatten the positions" in " ".join(err.split())
    code, _, err = trueup("calibrate", "maps.npz", "--output", "maps.npz")
    assert code == 2
    assert "is a file: name a folder" in " ".join(err.split())
