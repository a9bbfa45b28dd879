"""Cells: the run they get, the results they may return, and how they fail."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueup.lab import _cell as module
from trueup.lab._cell import (
    INSTRUCTION_VARIABLES,
    Cell,
    CellResult,
    environment,
    execute,
    items,
    pinned_instructions,
)
from trueup.lab._errors import StudyError
from trueup.lab._run import Run, run_of
from trueup.lab._scoring import Metric
from trueup.lab._spec import Arm, CostClaim, ExactClaim, Stage, Study


def study(function: Callable[[Run], Any] = lambda run: {"acc": 0.5}, **changes: Any) -> Study:
    given: dict[str, Any] = {
        "slug": "demo",
        "question": "Does it?",
        "metrics": [Metric("acc", higher=True, worst=0.1)],
        "arms": [Arm("plain", "baseline", {"lr": 1, "depth": 3}), Arm("ours", "method", {"depth": 4})],
        "scales": {"smoke": {"lr": 0, "epochs": 2}, "desk": {"epochs": 9}},
        "cell": function,
    }
    return Study(**given | changes)


CELL = Cell("demo", "smoke", 1, "report", "plain", seed=3)


# -- identity ------------------------------------------------------------------------------------------------


def test_equal_cells_have_equal_keys_and_others_do_not() -> None:
    cell = replace(CELL, condition=items({"b": 1, "a": 2}), hyper=items({"lr": 0.1}))
    assert cell.key() == replace(cell, condition=items({"a": 2, "b": 1})).key()
    others = [
        replace(cell, **change)
        for change in (
            {"study": "x"},
            {"scale": "desk"},
            {"protocol": 2},
            {"kind": "tune"},
            {"arm": "ours"},
            {"condition": ()},
            {"hyper": ()},
            {"seed": 4},
            {"instance": "i"},
        )
    ]
    assert len({c.key() for c in [cell, *others]}) == 10
    assert json.loads(cell.key())["seed"] == 3


def test_a_cell_says_what_it_is() -> None:
    assert str(replace(CELL, hyper=items({"lr": 0.1}))) == "plain lr=0.1 seed 3"
    assert str(Cell("demo", "desk", 1, "exact", "sum", instance="a")) == "sum a"


# -- what a cell function gets -------------------------------------------------------------------------------


def test_settings_in_their_order() -> None:
    cell = replace(CELL, condition=items({"depth": 5, "noise": 1}), hyper=items({"noise": 2}))
    run = run_of(study(), cell, {}, "cpu")
    assert (run["epochs"], run["lr"], run["depth"], run["noise"]) == (2, 1, 5, 2)
    assert run.get("missing", 7) == 7
    with pytest.raises(
        StudyError, match="no setting 'epoch' for arm 'plain' at scale 'smoke'; known: depth, ep"
    ):
        run["epoch"]


Y = np.repeat([0, 1, 2], [60, 30, 10])


def split(kind: str, arm: str = "plain", seed: int = 3, **sizes: int) -> tuple[np.ndarray, np.ndarray]:
    run = Run("demo", "smoke", kind, arm, {}, seed)  # type: ignore[arg-type]
    return run.split(Y, **{"train": 60, "test": 40} | sizes)


def test_tuning_never_sees_the_test_rows() -> None:
    fit, test = split("report")
    for validation in (None, 20):
        extra = {} if validation is None else {"validation": validation}
        inner_fit, held_out = split("tune", **extra)
        assert not set(test) & (set(inner_fit) | set(held_out))
        assert set(inner_fit) | set(held_out) == set(fit)
        assert not set(inner_fit) & set(held_out)
        assert len(held_out) == (15 if validation is None else 20)


def test_a_split_uses_each_row_once_and_is_stratified() -> None:
    fit, test = split("report")
    assert sorted([*fit, *test]) == list(range(100))
    assert Counter(Y[fit].tolist()) == {0: 36, 1: 18, 2: 6}
    inner, held_out = split("tune")
    counts = Counter(Y[held_out].tolist())
    assert counts[0] == 9
    assert counts[1] in (4, 5)
    assert counts[2] in (1, 2)
    assert len(inner) == 45


@pytest.mark.parametrize("kind", ["report", "tune"])
def test_a_split_is_equal_across_arms_and_fresh_for_each_seed(kind: str) -> None:
    for ours, theirs in zip(split(kind, "ours"), split(kind, "plain"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(split(kind, seed=4)[1], split(kind, seed=3)[1])


@pytest.mark.parametrize("sizes", [{"train": 61}, {"train": 1}, {"test": 0}])
def test_a_split_that_cannot_be(sizes: dict[str, int]) -> None:
    with pytest.raises(StudyError, match="split of 100 rows into"):
        split("report", **sizes)


# -- execution -----------------------------------------------------------------------------------------------


def test_a_report_cell() -> None:
    def cell(run: Run) -> dict[str, float]:
        return {"acc": 0.5 + run["depth"], "draw": torch.rand(1).item(), "device": float(run.device == "cpu")}

    result = execute(study(cell), CELL)
    assert result.status == "ok"
    assert result.numbers["acc"] == 3.5
    assert result.numbers["device"] == 1.0
    assert result.seconds > 0
    # torch's global generator is seeded, equally in every arm
    torch.manual_seed(123)
    other = execute(study(cell), replace(CELL, arm="ours"))
    assert other.numbers["draw"] == result.numbers["draw"]
    assert execute(study(cell), replace(CELL, seed=4)).numbers["draw"] != result.numbers["draw"]


def test_a_crash_is_no_divergence() -> None:
    def cell(run: Run) -> dict[str, float]:
        raise FloatingPointError("overflow in layer 3")

    result = execute(study(cell), CELL)
    assert result.status == "failed"
    assert result.numbers == {}
    assert "overflow in layer 3" in result.error
    assert "Traceback" in result.error
    assert "test_cell.py" in result.error  # the user's own line is in it


def test_a_cell_must_return_a_dictionary() -> None:
    result = execute(study(lambda run: 0.5), CELL)
    assert result.status == "failed"
    assert "the cell function must return a dictionary, got float" in result.error


def test_ctrl_c_is_not_swallowed() -> None:
    def cell(run: Run) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(study(cell), CELL)


def test_a_missing_artefact_fails_the_cell(tmp_path: Path) -> None:
    result = execute(study(), CELL, inputs={"teacher": str(tmp_path / "gone.npz")})
    assert result.status == "failed"
    assert "gone.npz" in result.error


# -- stages --------------------------------------------------------------------------------------------------


def test_a_stage_reaches_the_cells_that_read_it(tmp_path: Path) -> None:
    def build(run: Run) -> dict[str, Any]:
        return {"w": torch.full((2,), float(run.seed), requires_grad=True), "names": np.array(["a"]), "n": 3}

    def cell(run: Run) -> dict[str, float]:
        return {"acc": run.inputs["teacher"]["w"].sum() + run.inputs["teacher"]["n"]}

    artefact = str(tmp_path / "deep" / "teacher.npz")
    staged = study(cell, stages=[Stage("teacher", build)])
    made = execute(staged, replace(CELL, kind="stage", arm="teacher"), artefact=artefact)
    assert (made.status, made.path) == ("ok", artefact)
    assert execute(staged, CELL, inputs={"teacher": artefact}).numbers["acc"] == 9.0
    assert os.listdir(tmp_path / "deep") == ["teacher.npz"]


def test_a_stage_draws_from_its_own_seeded_generator(tmp_path: Path) -> None:
    staged = study(stages=[Stage("teacher", lambda run: {"w": torch.rand(3)})])

    def draw(seed: int) -> np.ndarray:
        cell = replace(CELL, kind="stage", arm="teacher", seed=seed)
        return np.load(execute(staged, cell, artefact=str(tmp_path / "a.npz")).path)["w"]

    np.testing.assert_array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


def test_a_stage_writes_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "teacher.npz"
    target.write_bytes(b"older artefact")
    staged = study(stages=[Stage("teacher", lambda run: {"w": np.ones(3)})])

    def half(stream: Any, **arrays: np.ndarray) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "savez", half)
    result = execute(staged, replace(CELL, kind="stage", arm="teacher"), artefact=str(target))
    assert result.status == "failed"
    assert "No space left" in result.error
    assert target.read_bytes() == b"older artefact"
    assert os.listdir(tmp_path) == ["teacher.npz"]


def test_leftovers_of_killed_writers_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    """Files of a killed writer, of a live one, of one on another machine, and other files."""
    staged = study(stages=[Stage("teacher", lambda run: {"w": np.ones(3)})])
    child = os.fork()
    if child == 0:  # dies in the middle of writing, as by kill -9
        module.np.savez = lambda stream, **arrays: os._exit(0)
        execute(staged, replace(CELL, kind="stage", arm="teacher"), artefact=str(tmp_path / "a.npz"))
    os.waitpid(child, 0)
    (left,) = os.listdir(tmp_path)
    assert left.endswith(".part")
    alive = left.replace(f"-{child}-", f"-{os.getpid()}-")
    others = {alive, f"elsewhere-{child}-abc.part", "results.part", "b.npz"}
    for name in others:
        (tmp_path / name).write_bytes(b"half")
    module.clear_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == others
    module.clear_leftovers(tmp_path / "no such folder")


def test_a_stage_returns_arrays_only(tmp_path: Path) -> None:
    staged = study(stages=[Stage("teacher", lambda run: {"net": object()})])
    result = execute(staged, replace(CELL, kind="stage", arm="teacher"), artefact=str(tmp_path / "a.npz"))
    assert "stage 'teacher' returned 'net' of object; return arrays" in result.error
    assert os.listdir(tmp_path) == []


# -- exact and cost claims -----------------------------------------------------------------------------------


def test_exact_claims_and_their_negative_control() -> None:
    claim = ExactClaim(
        "sum",
        "Adds up.",
        deviation=lambda a: a - 1,
        instances={"one": {"a": 1.0}, "nan": {"a": math.nan}, "signed": {"a": 0.5}},
        tolerance=0.0,
        negative_control=lambda a: a + 1,
        control_label="plus",
        primary=True,
    )
    exact = study(claims=[claim], arms=[], metrics=[], cell=None)
    cell = Cell("demo", "smoke", 1, "exact", "sum", instance="one")
    assert execute(exact, cell).numbers == {"deviation": 0.0}
    assert execute(exact, replace(cell, kind="exact-control")).numbers == {"deviation": 2.0}
    not_a_number = execute(exact, replace(cell, instance="nan"))
    assert (not_a_number.status, not_a_number.numbers) == ("ok", {})
    signed = execute(exact, replace(cell, instance="signed"))
    assert signed.status == "failed"
    assert "'sum', instance 'signed': a deviation must be >= 0, got -0.5, which would pass" in signed.error


def test_cost_claims_interleave_their_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def taking(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            clock[0] += seconds

        return call

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    claim = CostClaim(
        "cheap",
        "Is cheap.",
        lambda: (taking("ours", 1.0), taking("peer", 2.0)),
        at_most=1.0,
        rounds=8,
        primary=True,
    )
    made = study(claims=[claim], arms=[], metrics=[], cell=None)
    result = execute(made, Cell("demo", "smoke", 1, "cost", "cheap"))
    assert result.series["log_ratio"] == pytest.approx([math.log(0.5)] * 8)
    assert calls[:2] == ["ours", "peer"]  # warming up
    assert calls[2:8] == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert Counter(calls) == {"ours": 9, "peer": 9}


def test_the_environment_of_a_verdict() -> None:
    found = environment(2, "cpu")
    assert found["threads"] == "2"
    assert found["device"] == "cpu"
    assert found["torch"] == str(torch.__version__)
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert {"scipy", "scikit-learn", "cpu_family", *INSTRUCTION_VARIABLES} <= set(found)
    assert all(isinstance(v, str) for v in found.values())
    json.dumps(found)


def test_instruction_sets_are_pinned_where_the_processor_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "flags\t\t: fpu {} sse2\n"
    monkeypatch.setattr(Path, "read_text", lambda self: flags.format("avx avx2"))
    assert set(pinned_instructions()) == set(INSTRUCTION_VARIABLES)
    monkeypatch.setattr(Path, "read_text", lambda self: flags.format("avx"))
    assert pinned_instructions() == {}


def test_a_cell_draws_alike_whatever_ran_before_it() -> None:
    """Also from the global generators, which all cells of a worker share."""

    def cell(run: Run) -> dict[str, float]:
        numpys = np.random.rand()  # noqa: NPY002
        return {"acc": 0.5, "draws": 4 * numpys + 2 * random.random() + float(torch.rand(()))}

    first = execute(study(cell), CELL)
    assert execute(study(cell), CELL).numbers == first.numbers
    assert execute(study(cell), replace(CELL, seed=4)).numbers != first.numbers


def test_the_cpu_has_a_name_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", missing)
    assert environment(1, "cpu")["cpu"]


def test_results_are_plain_values() -> None:
    assert CellResult("ok").peak_memory is None  # not measured, which is not zero
