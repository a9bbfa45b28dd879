"""The harness itself must be able to fail: a comparison that passes anything proves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from golden.reference import Case, Mismatch, Reference, check, difference, kinds, read

TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}


def reference(**expected: object) -> Reference:
    values = {key.replace("_", ".", 1): np.asarray(value) for key, value in expected.items()}
    return Reference(
        "slug", "case", "double", **TOLERANCE, case=Case(inputs={"x": np.ones(2)}), expected=values
    )


@pytest.mark.parametrize("wrong", [2.0001, float("nan"), float("inf")])
def test_a_wrong_value_fails(wrong: float) -> None:
    with pytest.raises(Mismatch, match=r"out\.y: 1 of 2 values differ; worst at \(1,\)"):
        check(reference(out_y=[2.0, 2.0]), {"double": lambda case: {"out.y": torch.tensor([2.0, wrong])}})


def test_a_missing_key_fails_and_is_named() -> None:
    with pytest.raises(Mismatch, match=r"grad\.x: not returned"):
        check(reference(out_y=[2.0], grad_x=[1.0]), {"double": lambda case: {"out.y": np.array([2.0])}})


def test_an_unknown_kind_fails_and_names_the_known_ones() -> None:
    with pytest.raises(Mismatch, match=r"no adapter for kind 'double'.*\['halve'\]"):
        check(reference(out_y=[2.0]), {"halve": lambda case: {}})


def test_a_file_without_adapters_fails(tmp_path: Path) -> None:
    with pytest.raises(Mismatch, match="no adapters: write"):
        kinds("no-such-paper", tmp_path)


def test_a_case_without_reference_values_fails() -> None:
    with pytest.raises(Mismatch, match="holds no reference value"):
        check(reference(), {"double": lambda case: {}})


def test_right_values_pass_and_extra_keys_are_ignored() -> None:
    adapters = {"double": lambda case: {"out.y": torch.from_numpy(case.inputs["x"] * 2), "out.extra": 0}}
    check(reference(out_y=[2.0, 2.0]), adapters)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (torch.ones(2, 1), [1.0, 1.0]),  # a shape that would broadcast
        (np.array([3]), [4]),
        (np.array([3.5]), [3]),
        (np.array([True]), [False]),
        ("keep", "merge"),
        (np.array(["a", "b"]), ["a", "c"]),
        (1.0, float("nan")),
        ("abc", 1.0),
        ({"a": 1.0}, '{"a": 1.1}'),
        ({"a": 1}, '{"a": 2}'),
        ({"a": 1}, '{"a": true}'),
        ({"a": 1.0}, '{"a": 1.0, "b": 2.0}'),
        ([1.0], "[1.0, 2.0]"),
        ('[{"a": "x"}]', '[{"a": "y"}]'),
    ],
)
def test_differences_are_seen(got: object, want: object) -> None:
    assert difference(got, np.asarray(want), **TOLERANCE)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (torch.tensor([1.0], dtype=torch.bfloat16, requires_grad=True), np.float32([1.0])),
        (float("nan"), float("nan")),
        (1.0 + 1e-8, 1.0),
        (7, 7),
        (torch.tensor(True), True),
        ("keep", "keep"),
        ({"a": [1.0 + 1e-8, None, "x"]}, '{"a": [1.0, null, "x"]}'),
        ('{"a": NaN}', '{"a": NaN}'),
    ],
)
def test_equal_values_are_equal(got: object, want: object) -> None:
    assert difference(got, np.asarray(want), **TOLERANCE) == ""


def test_reading_splits_roles_and_unwraps_hyperparameters(tmp_path: Path) -> None:
    cases = {"one": {"kind": "layer", "rtol": 1e-8, "atol": 0.0, "note": ""}}
    arrays = {
        "one.in.x0": np.ones((2, 3)),
        "one.param.0.weight": np.ones(3),
        "one.hyper.steps": np.int64(2),
        "one.hyper.lr": np.float64(0.1),
        "one.hyper.nesterov": np.bool_(True),
        "one.hyper.remainder": np.asarray("keep"),
        "one.hyper.betas": np.array([0.9, 0.99]),
        "one.out.0.weight0": np.zeros(3),
    }
    np.savez(tmp_path / "a-paper.npz", cases=json.dumps(cases), meta="{}", **arrays)

    (one,) = read(tmp_path / "a-paper.npz")

    assert str(one) == "a-paper/one"
    assert (one.kind, one.rtol, one.atol) == ("layer", 1e-8, 0.0)
    assert set(one.case.inputs) == {"x0"}
    assert set(one.case.params) == {"0.weight"}
    assert set(one.expected) == {"out.0.weight0"}
    assert {k: type(v) for k, v in one.case.hyper.items()} == {
        "steps": int,
        "lr": float,
        "nesterov": bool,
        "remainder": str,
        "betas": np.ndarray,
    }


def test_a_key_of_no_case_fails(tmp_path: Path) -> None:
    np.savez(tmp_path / "a-paper.npz", cases="{}", **{"lost.in.x": np.ones(1)})
    with pytest.raises(Mismatch, match=r"lost\.in\.x belongs to no case"):
        read(tmp_path / "a-paper.npz")
