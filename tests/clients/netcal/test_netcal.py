"""`convention="netcal"` against netcal itself: on tables without ties, and with probabilities on edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from netcal.metrics import ACE, ECE, MCE
from numpy.typing import NDArray

from trueup.calibration import calibration_error

MEASURES = {"l1": ECE, "mean": ACE, "max": MCE}


def continuous(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Four classes."""
    probs = rng.dirichlet([0.5] * 4, 500)
    return probs, rng.integers(0, 4, 500)


def on_edges(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Binary probabilities that are edges of 10 or of 15 bins, exact zeros and ones among them."""
    edges = np.concatenate([np.linspace(0, 1, 11), np.linspace(0, 1, 16), np.arange(11) / 10])
    return rng.choice(edges, 500), rng.integers(0, 2, 500)


@pytest.mark.parametrize("n_bins", [1, 5, 10, 15, 100])
@pytest.mark.parametrize("norm", MEASURES)
@pytest.mark.parametrize("binning", ["uniform", "quantile"])
@pytest.mark.parametrize(
    ("make", "dtype"),
    # Not float32 on edges: there netcal counts a probability in one bin, and takes its mean in another.
    [(continuous, "float32"), (continuous, "float64"), (on_edges, "float64")],
)
def test_equal_to_netcal(make: Any, dtype: str, binning: Any, norm: Any, n_bins: int) -> None:
    probs, target = make(np.random.default_rng(n_bins))
    probs = probs.astype(dtype)
    peer = MEASURES[norm](n_bins, equal_intervals=binning == "uniform")
    options = {
        "n_bins": n_bins, "binning": binning, "norm": norm,
        "level": "positive" if probs.ndim == 1 else "top",
    }  # fmt: skip
    try:
        want = peer.measure(probs, target)
    except ValueError:  # from numpy: the quantiles of tied probabilities are no edges
        assert binning == "quantile"
        assert make is on_edges
        with pytest.raises(ValueError, match="netcal refuses quantile bins of tied confidences"):
            calibration_error(probs, target, convention="netcal", **options)
        return
    got = calibration_error(probs, target, convention="netcal", **options).item()
    assert got == pytest.approx(want, abs=1e-6 if dtype == "float32" else 1e-12)
