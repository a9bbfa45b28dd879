"""Runs kept as files: what they hold, and what is said of a run beside one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import scipy
import torch
from benchmarks import __main__ as command
from benchmarks import kept
from benchmarks.harness import Measured, Result, Row, run


def result(figure: float = 0.5, spread: float | None = 0.01, **options: Any) -> Result:
    quartiles = None if spread is None else (figure - spread, figure + spread)
    fields = {"what": "a step", "peer": "torch", "unit": "x", "bound": 1.0, "holds": True} | options
    return Result(figure=figure, quartiles=quartiles, **fields)


def test_a_kept_run_is_read_as_it_was_and_says_first_what_it_rests_on(tmp_path: Path) -> None:
    rows = iter([Row("sum", "sum", 9.0, lambda: sum(range(9)), lambda: sum(range(9)))])
    measured = iter([Measured("report", "none", 0.3, "s", 5.0)])
    results = [*run(rows, rounds=3), *run(measured)]
    header = kept.header(rounds=3, threads=1)
    kept.save(tmp_path / "run.json", header, results)
    assert kept.load(tmp_path / "run.json") == (header, results)
    assert next(iter(json.loads((tmp_path / "run.json").read_text()))) == "header"

    expected = {"torch": torch.__version__, "numpy": numpy.__version__, "scipy": scipy.__version__}
    assert expected | {"threads": 1, "rounds": 3} == {
        name: header[name] for name in (*expected, "threads", "rounds")
    }
    assert all(header[name] for name in ("commit", "date", "cpu", "cpus", "python", "platform"))


def test_a_commit_outside_of_a_repository_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept, "__file__", str(tmp_path / "kept.py"))
    assert kept.header(rounds=1, threads=1)["commit"] == "unknown"


@pytest.mark.parametrize(
    "text",
    [None, "no JSON", "[]", "{}", '{"header": {}, "results": []}', '{"results": [{"what": "a step"}]}'],
)
def test_what_is_no_kept_run_is_refused_by_name(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no run written by --json"):
        kept.load(path)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (result(0.50), result(0.53), "worse"),
        (result(0.50), result(0.47), "better"),
        (result(0.50), result(0.515), ""),  # the quartiles meet
        (result(0.50), result(0.485), ""),
        (result(0.50, 0.25), result(1.00, 0.25), ""),
        (result(1.00, 0.25), result(0.50, 0.25), ""),
        (result(1.5, at_least=True), result(1.8, at_least=True), "better"),
        (result(1.8, at_least=True), result(1.5, at_least=True), "worse"),
        (result(0.50, None), result(0.9, None), ""),  # measured once
        (result(0.50), result(0.9, None), ""),
        (result(0.50, peer="timm"), result(0.9), "new"),
        (result(0.50, what="a leap"), result(0.9), "new"),
        (result(0.50, unit="ms"), result(0.9), "new"),
    ],
)
def test_a_figure_changed_where_the_quartiles_do_not_meet(
    before: Result, after: Result, verdict: str
) -> None:
    (change,) = kept.changes([before], [after])
    assert change.verdict == verdict
    assert change.factor == (None if verdict == "new" else after.figure / before.figure)


def test_other_machines_and_versions_are_named() -> None:
    before = {"commit": "a", "date": "1", "cpu": "EPYC", "torch": "2.13"}
    assert kept.differences(before, before | {"commit": "b", "date": "2"}) == []
    assert kept.differences(before, before | {"torch": "2.14"}) == ["torch 2.13 -> 2.14"]
    assert kept.differences(before, before | {"threads": 1}) == ["threads None -> 1"]


def test_the_command_keeps_a_run_and_prints_the_next_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = iter([0.5, 0.75])

    def results_of(name: str, rounds: int) -> Iterator[Result]:
        yield result(next(figures))

    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["benchmarks", "evonorm", *arguments])
        return command.main()

    monkeypatch.setattr(command, "results_of", results_of)
    path = str(tmp_path / "run.json")
    assert call("--rounds", "7", "--json", path) == 0
    assert "against" not in capsys.readouterr().out
    assert call("--against", path) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("against", "0.5 x", "0.75 x", "1.5", "worse", "rounds 7 -> 15"))
    for option, place, word in (
        ("--against", tmp_path / "none.json", "none.json is no run"),
        ("--json", tmp_path / "none" / "a.json", "no folder"),
        ("--json", tmp_path, "is a folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            call(option, str(place))
        assert word in capsys.readouterr().err


def test_every_benchmark_has_rows() -> None:
    assert "kept" not in command.NAMES
    for name in command.NAMES:
        source = Path(command.__file__).with_name(f"{name}.py").read_text()
        assert "def rows()" in source, f"{name} is listed as a benchmark"
