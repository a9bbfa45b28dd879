"""The results that a cell may return, and how its metrics are scored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from trueup.lab._errors import StudyError
from trueup.lab._scoring import MAX_RESULT_BYTES, Metric, score

ACC = Metric("acc", higher=True, worst=0.1)


def test_what_a_cell_returns_is_sorted_by_kind() -> None:
    result = score(
        [ACC],
        {
            "acc": torch.tensor(0.5),
            "steps": np.int64(3),
            "curve": [1, 2],
            "tensor": torch.ones(2, requires_grad=True),
            "image": np.zeros((2, 2), dtype=np.uint8),
        },
    )
    assert not result.diverged
    assert result.numbers == {"acc": 0.5, "steps": 3.0}
    assert result.series == {"curve": [1.0, 2.0], "tensor": [1.0, 1.0]}
    assert list(result.arrays) == ["image"]
    assert result.arrays["image"].dtype == np.uint8


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.05])
def test_a_diverged_cell_scores_worst(value: float) -> None:
    result = score([ACC], {"acc": value})
    assert (result.diverged, result.numbers) == (True, {"acc": 0.1})


def test_one_diverged_metric_of_several_is_enough() -> None:
    two = [Metric("loss", higher=False, worst=2.3), ACC]
    result = score(two, {"loss": math.nan, "acc": 0.5})
    assert (result.diverged, result.numbers) == (True, {"loss": 2.3, "acc": 0.5})


def test_other_numbers_that_are_not_finite_are_left_out() -> None:
    result = score([ACC], {"acc": 0.5, "norm": math.inf})
    assert (result.diverged, result.numbers) == (False, {"acc": 0.5})


def test_a_series_has_gaps_where_it_is_not_finite() -> None:
    """The store has no infinity, so a series must read alike before and after it is stored."""
    result = score([ACC], {"acc": 0.5, "curve": [1.0, math.inf, math.nan]})
    np.testing.assert_array_equal(result.series["curve"], [1.0, math.nan, math.nan])


def test_a_result_has_a_size() -> None:
    fits = (MAX_RESULT_BYTES - 8) // 8
    assert score([ACC], {"acc": 0.5, "curve": np.zeros(fits)}).diverged is False
    assert score([ACC], {"acc": 0.5, "image": np.zeros((1, fits))}).diverged is False
    for large in ({"curve": np.zeros(fits + 1)}, {"image": np.zeros((1, fits + 1))}):
        with pytest.raises(StudyError, match=r"the cell returned 256 KB; at most 256 KB: .* make .* a Stage"):
            score([ACC], {"acc": 0.5, **large})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"loss": 1.0}, r"the cell function returned no number 'acc'; got \['loss'\]"),
        ({"acc": [0.5]}, "no number 'acc'"),
        ({"acc": 0.5, "name": "x"}, "cell returned 'name' of str; return numbers, series or arrays"),
        ({"acc": 0.5, ("a", "b"): 1.0}, r"the key \('a', 'b'\) of tuple; name results by text"),
        ({"acc": 0.5, "net": torch.nn.Linear(1, 1)}, "cell returned 'net' of Linear"),
    ],
)
def test_what_a_cell_may_not_return(returned: Mapping[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        score([ACC], returned)
