"""Measures of calibration against loops over samples and bins, at edges, ties and degenerate sizes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from trueup import calibration
from trueup.calibration._kernel_sums import density_error, laplacian_sum, mmce_all_pairs
from trueup.calibration._predictions import Predictions
from trueup.calibration._top_label import TopLabel, sort_pairs

GOLDEN = Path(__file__).parents[1] / "golden" / "calibration-benchmark.npz"
MEASURES = [
    calibration.calibration_error,
    calibration.classwise_calibration_error,
    calibration.thresholded_adaptive_calibration_error,
    calibration.sweep_calibration_error,
    calibration.overconfidence_error,
    calibration.confidence_gap,
    calibration.ks_error,
    calibration.kde_calibration_error,
    calibration.mmce,
    calibration.negative_log_likelihood,
    calibration.brier_score,
    calibration.correctness_auroc,
    calibration.aurc,
]
BINARY = [0.0, 0.2, 0.5, 0.5, 0.6, 0.6, 0.9, 1.0]
LABELS = [0, 1, 1, 0, 1, 0, 1, 1]


def table(n: int = 300, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overconfident probabilities and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    labels = [rng.choice(classes, p=row / row.sum()) for row in np.exp(logits / 2)]
    return torch.tensor(logits).softmax(1), torch.tensor(labels)


def on_edges() -> tuple[Tensor, Tensor]:
    """Multiples of 1/10 and 1/15, as division and as `linspace` round them."""
    rng = np.random.default_rng(1)
    edges = [
        f(n) for n in (10, 15) for f in (lambda n: np.linspace(0, 1, n + 1), lambda n: np.arange(n + 1) / n)
    ]
    first = rng.choice(np.concatenate(edges), 400)
    return torch.tensor(np.stack([first, 1 - first], 1)), torch.tensor(rng.integers(0, 2, 400))


def pairs(probs: Tensor, target: Tensor, level: str = "top") -> list[tuple[np.ndarray, np.ndarray]]:
    """The probability and outcome of each sample, or of each sample and class."""
    p, y = probs.numpy(), target.numpy()
    if level == "top":
        return [(p.max(1), p.argmax(1) == y)]
    return [(p[:, k], y == k) for k in range(p.shape[1])]


def members(c: np.ndarray, n_bins: int, binning: str) -> list[np.ndarray]:
    """The samples of each non-empty bin, found one by one."""
    if binning == "quantile":
        parts = np.array_split(np.argsort(c, kind="stable"), n_bins)
    else:
        edges = np.linspace(0, 1, n_bins + 1)
        place = np.array([next(b for b in range(n_bins) if value <= edges[b + 1]) for value in c])
        parts = [np.flatnonzero(place == b) for b in range(n_bins)]
    return [part for part in parts if len(part)]


def oracle(c: np.ndarray, a: np.ndarray, n_bins: int, binning: str, norm: str) -> float:
    c = c.astype(np.float64)
    parts = members(c, n_bins, binning)
    difference = np.array([abs(a[m].mean() - c[m].mean()) for m in parts])
    weight = np.array([len(m) / len(c) for m in parts])
    if norm == "debiased":
        square = [
            gap**2 - a[m].mean() * (1 - a[m].mean()) / (len(m) - 1) if len(m) > 1 else 0.0
            for m, gap in zip(parts, difference)
        ]
        return float(np.sqrt(max((weight * square).sum(), 0)))
    if norm == "l1":
        return float((weight * difference).sum())
    if norm == "l2":
        return float(np.sqrt((weight * difference**2).sum()))
    return float(difference.max() if norm == "max" else difference.mean())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("data", [table, on_edges])
@pytest.mark.parametrize("level", ["top", "classwise"])
@pytest.mark.parametrize("binning", ["uniform", "quantile"])
def test_binned_errors_are_those_of_a_loop(
    data: Callable[[], tuple[Tensor, Tensor]], dtype: torch.dtype, level: Any, binning: Any
) -> None:
    probs, target = data()
    probs = probs.to(dtype)
    for n_bins, norm in itertools.product((1, 7, 10, 15), ("l1", "l2", "max", "mean", "debiased")):
        want = np.mean([oracle(c, a, n_bins, binning, norm) for c, a in pairs(probs, target, level)])
        options: dict[str, Any] = {"norm": "l2", "debias": True} if norm == "debiased" else {"norm": norm}
        got = calibration.calibration_error(
            probs, target, n_bins=n_bins, binning=binning, level=level, **options
        )
        assert got.dtype == torch.float64
        assert got.item() == pytest.approx(want, rel=1e-9, abs=1e-12), (n_bins, norm)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        st.integers(1, 20),
        elements=st.one_of(st.floats(0, 1), st.integers(0, 30).map(lambda k: k / 30), st.just(1 - 2**-53)),
    ),
    st.sampled_from([1, 3, 5, 10, 15, 20, 25, 500]),
    st.integers(0, 2**20 - 1),
)
def test_every_sample_is_in_the_bin_of_its_edges(p: np.ndarray, n_bins: int, bits: int) -> None:
    y = np.array([bits >> i & 1 for i in range(len(p))])
    errors = [oracle(c, y == k, n_bins, "uniform", "l1") for k, c in enumerate((1 - p, p))]
    positive = calibration.calibration_error(p, y, n_bins=n_bins, level="positive")
    classwise = calibration.calibration_error(p, y, n_bins=n_bins, level="classwise")
    assert positive.item() == pytest.approx(errors[1], abs=1e-12)
    assert classwise.item() == pytest.approx(np.mean(errors), abs=1e-12)


def test_aliases_set_the_norm() -> None:
    probs, target = table()
    (c, a) = pairs(probs, target)[0]
    for name, norm in (
        ("expected", "l1"),
        ("maximum", "max"),
        ("average", "mean"),
        ("root_mean_squared", "l2"),
        ("debiased", "debiased"),
    ):
        got = getattr(calibration, f"{name}_calibration_error")(probs, target, n_bins=9)
        assert got.item() == pytest.approx(oracle(c, a, 9, "uniform", norm))


def test_over_and_underconfidence_are_those_of_a_loop() -> None:
    probs, target = table()
    c, a = pairs(probs, target)[0]
    bins = [(len(m) / len(c), c[m].mean(), a[m].mean()) for m in members(c, 15, "uniform")]
    over = sum(w * conf * max(conf - acc, 0) for w, conf, acc in bins)
    under = sum(w * max(acc - conf, 0) for w, conf, acc in bins)
    assert min(over, under) > 0
    assert calibration.overconfidence_error(probs, target).item() == pytest.approx(over)
    assert calibration.underconfidence_error(probs, target).item() == pytest.approx(under)
    assert calibration.confidence_gap(probs, target).item() == pytest.approx(c.mean() - a.mean())


def test_tace_leaves_out_small_probabilities() -> None:
    probs, target = table()
    for threshold in (0.01, 0.2, 0.99999):
        errors = []
        for c, a in pairs(probs, target, "classwise"):
            kept = c > threshold
            errors.append(oracle(c[kept], a[kept], 15, "quantile", "l1") if kept.any() else 0)
        got = calibration.thresholded_adaptive_calibration_error(probs, target, threshold=threshold)
        assert got.item() == pytest.approx(np.mean(errors), abs=1e-12)


# ---- the rules of other libraries, whose values the reference file keeps ----
PEERS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "cwce": (calibration.classwise_calibration_error, {"variant": "official"}),
    "ece_em_focal_impl": (calibration.adaptive_calibration_error, {"variant": "official"}),
    "torchmetrics_l1": (calibration.calibration_error, {"convention": "torchmetrics"}),
    "torchmetrics_l2": (calibration.calibration_error, {"norm": "l2", "convention": "torchmetrics"}),
    "torchmetrics_max": (calibration.calibration_error, {"norm": "max", "convention": "torchmetrics"}),
    "netcal_ece": (calibration.calibration_error, {"convention": "netcal"}),
    "netcal_ace": (calibration.calibration_error, {"norm": "mean", "convention": "netcal"}),
    "netcal_mce": (calibration.calibration_error, {"norm": "max", "convention": "netcal"}),
    "netcal_ece_equal_mass": (
        calibration.calibration_error,
        {"binning": "quantile", "convention": "netcal"},
    ),
}


@pytest.mark.parametrize("case", ["over", "calibrated", "under", "edges", "binary"])
def test_peers_values_follow_from_their_conventions(case: str) -> None:
    file = np.load(GOLDEN)
    binary = case == "binary"
    probs, target = file[f"{case}.in.p1" if binary else f"{case}.in.probs"], file[f"{case}.in.labels"]
    compared = 0
    for key, value in json.loads(str(file["cases"]))[case]["peers"].items():
        name, _, n_bins = key.rpartition("_")
        if name in PEERS:
            measure, options = PEERS[name]
            level = {"level": "positive"} if binary else {}
            got = measure(probs, target, n_bins=int(n_bins), **options, **level)
            assert got.item() == pytest.approx(value, abs=1e-6), key  # some compute in float32
            compared += 1
    assert compared >= 4


def test_conventions_differ_on_edges_and_only_there() -> None:
    p, y = torch.tensor([0.2, 0.4, 0.5, 1.0, 1.0]).double(), torch.tensor([0, 0, 1, 1, 1])
    for convention, want in (
        (None, 0.1 / 3),  # 0.5 is in the lower bin
        ("torchmetrics", 0.5),  # it is alone in the upper one: exact ones have a bin of their own
        ("netcal", 0.3),  # it is with the ones, and the lower bin has 0.2 and 0.4
    ):
        got = calibration.calibration_error(
            p, y, n_bins=2, level="positive", norm="max", convention=convention
        )
        assert got.item() == pytest.approx(want)
    for seed in range(3):
        values = [
            calibration.calibration_error(*table(seed=seed), convention=c).item()
            for c in (None, "torchmetrics", "netcal")
        ]
        assert values == pytest.approx([values[0]] * 3, abs=1e-6)


def test_the_published_bins_drop_zeros_and_the_smallest_confidence() -> None:
    p, y = np.array([0.0, 0.0, 0.2, 0.8]), np.array([1, 0, 0, 1])
    for variant, uniform, quantile in (("paper", 1.0, 1.0), ("official", 0.4, 0.0)):
        for binning, n_bins, want in (("uniform", 2, uniform), ("quantile", 1, quantile)):
            got = calibration.calibration_error(
                p, y, n_bins=n_bins, binning=binning, level="positive", variant=variant
            )
            assert got.item() * 4 == pytest.approx(want)
    probs = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])  # class 2 has no label
    paper, official = (
        calibration.classwise_calibration_error(probs, np.array([0, 1]), variant=v).item()
        for v in ("paper", "official")
    )
    assert official * 2 == pytest.approx(paper * 3 - 0.1)


def test_sweep_stops_before_accuracy_falls() -> None:
    for seed in range(6):
        probs, target = table(60, seed=seed)
        c, a = pairs(probs, target)[0]
        want = 1
        while want < 60:
            accuracy = [a[m].mean() for m in members(c, want + 1, "quantile")]
            if (np.diff(accuracy) < 0).any():
                break
            want += 1
        assert Predictions(probs, target).top.sweep_n_bins() == want
        got = calibration.sweep_calibration_error(probs, target).item()
        assert got == pytest.approx(oracle(c, a, want, "quantile", "l1"))
    # One bin if already two fail; one per sample if accuracy never falls.
    assert Predictions(np.array([0.6, 0.9]), np.array([1, 0])).top.sweep_n_bins() == 1
    assert Predictions(np.array([0.9, 0.6]), np.array([1, 0])).top.sweep_n_bins() == 2


# ---- without bins ----
@pytest.mark.parametrize("width", [10.0, 0.4, 1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_mmce_equals_all_pairs(width: float, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(0)
    c = rng.beta(4, 1, 1000).astype(dtype)
    c[:50] = c[0]
    a = rng.random(1000) < c**2
    want = mmce_all_pairs(c.astype(np.float64), a, width)
    assert TopLabel.of(c, a).mmce(width) == pytest.approx(want, abs=1e-12)


def test_mmce_sums_many_chunks() -> None:
    n = 40_001
    residual = np.random.default_rng(0).normal(size=n)
    assert laplacian_sum(np.full(n, 0.3), residual, 0.4) == pytest.approx(residual.sum() ** 2)
    assert laplacian_sum(np.arange(n) / n, residual, 1e-7) == pytest.approx(residual @ residual)
    # Evenly spaced, the sums follow a recursion.
    decay, s, total = np.exp(-1 / n / 0.4), 0.0, 0.0
    for r in residual:
        total += r * r + 2 * r * decay * s
        s = s * decay + r
    assert laplacian_sum(np.arange(n) / n, residual, 0.4) == pytest.approx(total, rel=1e-9)


def test_ks_is_the_largest_cumulative_difference() -> None:
    for seed in range(5):
        probs, target = table(50, seed=seed)
        c, a = pairs(probs, target)[0]
        order = np.argsort(c)
        want = max(abs(sum(c[i] - a[i] for i in order[: k + 1])) for k in range(len(c))) / len(c)
        assert calibration.ks_error(probs, target).item() == pytest.approx(want)
        assert calibration.ks_error(1 - probs[:, 0], 1 - (target == 0).long()).item() < 1
    under = torch.tensor([0.6, 0.7]), torch.tensor([1, 1])  # every sum is negative
    assert calibration.ks_error(*under).item() == pytest.approx(0.35)


def test_density_error_is_that_of_kernels_summed_one_by_one() -> None:
    rng = np.random.default_rng(0)
    c = rng.uniform(0.3, 1, 200)
    a = rng.random(200) < 0.9 * c
    x = np.linspace(0, 1, 2001)
    h = c[a].std() * 400**-0.2

    def density(values: np.ndarray) -> np.ndarray:
        total = np.zeros_like(x)
        for value in (*values, *np.where(values < 0.5, -values, 2 - values)):
            u = (x - value) / (3 * h)
            total += 35 / 32 * np.clip(1 - u**2, 0, None) ** 3 / (3 * h)
        return total / len(values)

    f, f1 = density(c), density(c[a])
    known = f > 1e-6
    accuracy = np.minimum(a.mean() * f1[known] / f[known], 1)
    want = (np.abs(x[known] - accuracy) * f[known]).sum() / f[known].sum()
    assert density_error(c, a) == pytest.approx(want, rel=2e-3)
    assert density_error(c, a, "official") == pytest.approx(density_error(c, a), abs=1e-5)


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4, 1e-6])
def test_density_error_of_a_sure_model_is_its_gap(spread: float) -> None:
    # However narrow the densities are on the grid: 3 % are wrong at a confidence of about 1.
    c = 1 - spread * np.random.default_rng(0).random(1000)
    a = np.arange(1000) < 970
    assert density_error(c, a) == pytest.approx(c.mean() - 0.97, rel=0.2)


def test_the_published_density_error_of_a_sure_model_is_far_too_large() -> None:
    rng = np.random.default_rng(0)
    c = np.concatenate([rng.uniform(0.4, 1, 20), 1 - 5e-4 * rng.random(980)])
    assert density_error(c, c > 0.99) < 0.02
    assert density_error(c, c > 0.99, "official") > 1


@pytest.mark.parametrize("value", [0.55, 0.9, 1.0])
def test_density_error_needs_two_confidences(value: float) -> None:
    assert np.isnan(density_error(np.full(1000, value), np.arange(1000) > 0))


def test_proper_scores_are_those_of_scikit_learn() -> None:
    probs, target = table()
    nll = calibration.negative_log_likelihood(probs, target).item()
    assert nll == pytest.approx(log_loss(target.numpy(), probs.numpy()))
    onehot = torch.nn.functional.one_hot(target, 5)
    square = ((probs - onehot) ** 2).sum(1).mean().item()
    assert calibration.brier_score(probs, target).item() == pytest.approx(square)
    assert calibration.brier_score(probs, target, reduction="mean").item() == pytest.approx(square / 5)
    c, a = pairs(probs, target)[0]
    top = calibration.brier_score(probs, target, reduction="top").item()
    assert top == pytest.approx(((c - a) ** 2).mean())
    p, y = np.array(BINARY), np.array(LABELS)
    binary = calibration.brier_score(p, y, reduction="mean").item()
    assert binary == pytest.approx(brier_score_loss(y, p))
    impossible = calibration.negative_log_likelihood(np.array([0.0]), np.array([1])).item()
    assert impossible == pytest.approx(-np.log(np.finfo(np.float64).tiny))


# ---- ranking ----
def test_auroc_is_the_share_of_ordered_pairs() -> None:
    p, y = np.array(BINARY), np.array(LABELS)
    c, a = np.maximum(p, 1 - p), (p > 0.5) == y
    share = np.mean([(i > j) + 0.5 * (i == j) for i in c[a] for j in c[~a]])
    assert calibration.correctness_auroc(p, y).item() == pytest.approx(share)
    assert calibration.ood_auroc(c[a], c[~a]).item() == pytest.approx(share)
    assert calibration.ood_auroc(c[~a], c[a]).item() == pytest.approx(1 - share)


@pytest.mark.parametrize("n_bins", [15, 3000])
def test_classwise_bins_end_at_their_edges_to_the_last_bit(n_bins: int) -> None:
    edges = np.linspace(0, 1, n_bins + 1)
    p = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, 1)]).clip(0, 1)
    y = np.random.default_rng(0).integers(0, 2, len(p))
    bins = Predictions(np.stack([1 - p, p], 1), y).classwise.bins(n_bins)
    place = np.maximum(np.searchsorted(edges, p) - 1, 0)
    np.testing.assert_array_equal(bins.count[1], np.bincount(place, minlength=n_bins))
    np.testing.assert_array_equal(bins.hits[1], np.bincount(place, y, n_bins))


def test_netcal_refuses_tied_quantiles_only_inside() -> None:
    p, y = torch.tensor([0.5, 0.5, 0.6]), torch.tensor([1, 0, 1])  # its first edge is 0 all the same
    options: dict[str, Any] = {"binning": "quantile", "convention": "netcal", "level": "positive"}
    got = calibration.calibration_error(p, y, n_bins=2, **options)
    assert got.item() == pytest.approx(2 / 3 - 1.6 / 3)


def test_aurc_of_ties_at_the_top_is_their_mean_risk() -> None:
    c, y = np.array([0.9, 0.9, 0.7]), np.array([0, 1, 0])
    assert calibration.aurc(np.stack([c, 1 - c], 1), y).item() == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_aurc_is_the_mean_over_orders_of_ties() -> None:
    c, a = np.array([0.9, 0.7, 0.7, 0.7, 0.6]), np.array([True, True, False, False, True])
    values, best = [], 1.0
    for order in itertools.permutations(range(5)):
        risk = float(np.mean([1 - a[list(order[: k + 1])].mean() for k in range(5)]))
        best = min(best, risk)
        if (np.diff(c[list(order)]) <= 0).all():
            values.append(risk)
    assert len(values) == 6
    given = np.stack([c, 1 - c], 1), (~a).astype(int)
    assert calibration.aurc(*given).item() == pytest.approx(np.mean(values))
    assert calibration.excess_aurc(*given).item() == pytest.approx(np.mean(values) - best)
    curve = calibration.selective_prediction_curve(*given)
    assert curve.coverage.tolist() == pytest.approx([0.2, 0.8, 1.0])
    assert curve.risk.tolist() == pytest.approx([0, 0.5, 0.4])
    assert curve.threshold.tolist() == [0.9, 0.7, 0.6]


# ---- curves ----
@pytest.mark.parametrize("binning", ["uniform", "quantile"])
@pytest.mark.parametrize("level", ["top", "classwise"])
def test_the_reliability_curve_gives_the_error(binning: Any, level: Any) -> None:
    probs, target = table()
    options = {"n_bins": 12, "binning": binning, "level": level}
    curve = calibration.reliability_curve(probs, target, **options)
    weighted = (curve.count * (curve.accuracy - curve.confidence).abs()).nan_to_num()
    want = calibration.calibration_error(probs, target, **options)
    assert weighted.sum(-1).mean().item() / len(target) == pytest.approx(want.item())
    assert (curve.count.sum(-1) == len(target)).all()
    tiny = 1e-12
    inside = (curve.edges[..., :-1] <= curve.confidence + tiny) & (
        curve.confidence <= curve.edges[..., 1:] + tiny
    )
    assert (inside | (curve.count == 0)).all()


# ---- input ----
def test_sorting_keeps_the_order_of_ties() -> None:
    rng = np.random.default_rng(0)
    values = np.array([0, -0.0, 1e-40, 0.3, np.nextafter(np.float32(0.3), 1), 1], np.float32)
    c, a = rng.choice(values, 500), rng.random(500) < 0.5
    order = np.argsort(c, kind="stable")
    for dtype in (np.float32, np.float64):
        confidence, correct = sort_pairs(c.astype(dtype), a)
        assert confidence.dtype == dtype
        assert (confidence == c[order]).all()
        assert (correct == a[order]).all()


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_forms_of_the_same_predictions_agree(measure: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 4, 3, 2, generator=generator, dtype=torch.float64) * 2
    probs, target = logits.softmax(1), torch.randint(0, 4, (20, 3, 2), generator=generator)
    before = probs.clone()
    want = measure(probs, target).item()
    assert torch.equal(probs, before)
    flat, labels = probs.movedim(1, -1).reshape(-1, 4), target.flatten()
    assert measure(flat.numpy(), labels.numpy()).item() == want
    assert torch.equal(probs, before)
    assert measure(flat.repeat_interleave(2, 0)[::2], labels).item() == want
    shifted = measure(logits + 100, target, from_logits=True).item()
    assert shifted == pytest.approx(want, rel=1e-9, abs=1e-12)
    single = measure(logits.float().requires_grad_(), target, from_logits=True)
    assert single.item() == pytest.approx(want, rel=1e-4, abs=1e-5)
    assert not single.requires_grad
    for half in (torch.bfloat16, torch.float16):
        rounded = logits.to(half)
        upcast = measure(rounded.float(), target, from_logits=True)
        assert measure(rounded, target, from_logits=True).item() == upcast.item()


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_binary_scores_are_two_columns(measure: Callable[..., Tensor]) -> None:
    p, y = torch.tensor(BINARY), torch.tensor(LABELS)
    assert measure(p, y).item() == measure(torch.stack([1 - p, p], 1), y).item()
    z = p.double().clamp(0.02, 0.98).logit()
    assert measure(z, y, from_logits=True).item() == pytest.approx(measure(z.sigmoid(), y).item())


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_the_first_of_tied_classes_is_the_prediction(classes: int) -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.integers(0, 3, (500, classes))).double()
    target = torch.tensor(rng.integers(0, classes, 500))
    for values, from_logits in ((logits, True), (logits.softmax(1), False)):
        correct = Predictions(values, target, from_logits=from_logits).correct
        assert torch.equal(correct, logits.argmax(1) == target)


def test_many_chunks_are_as_one() -> None:
    probs, target = table(40_000 // 10, 40)
    small, large = Predictions(probs, target), Predictions(probs.log(), target, from_logits=True)
    assert small._rows < len(small)
    np.testing.assert_allclose(small.top.confidence, large.top.confidence)
    (c, a) = pairs(probs, target)[0]
    assert small.top.error(10) == pytest.approx(oracle(c, a, 10, "uniform", "l1"))
    both = [p.error(10, level="classwise") for p in (small, large)]
    want = np.mean([oracle(c, a, 10, "uniform", "l1") for c, a in pairs(probs, target, "classwise")[:40]])
    assert both == pytest.approx([want, want])
    errors = small.classwise_quantile_errors((5, 10))
    assert errors[10] == pytest.approx(small.error(10, level="classwise", binning="quantile"))


def test_one_sample_and_one_class_have_an_exact_answer() -> None:
    probs, target = torch.tensor([[0.3, 0.7]], dtype=torch.float64), torch.tensor([0])
    for name in ("expected", "maximum", "average", "adaptive", "root_mean_squared", "sweep"):
        error = getattr(calibration, f"{name}_calibration_error")(probs, target)
        assert error.item() == pytest.approx(0.7)
    assert calibration.ks_error(probs, target).item() == pytest.approx(0.7)
    assert calibration.mmce(probs, target).item() == pytest.approx(0.7)
    assert calibration.aurc(probs, target).item() == 1
    assert calibration.debiased_calibration_error(probs, target).item() == 0
    assert calibration.kde_calibration_error(probs, target).isnan()
    assert calibration.correctness_auroc(probs, target).isnan()
    one, zeros = torch.ones(3, 1), torch.zeros(3, dtype=torch.long)
    for level in ("top", "classwise"):
        assert calibration.calibration_error(one, zeros, level=level).item() == 0
    assert calibration.negative_log_likelihood(one, zeros).item() == 0


NAN = float("nan")


@pytest.mark.parametrize(
    ("probs", "target", "options", "error", "match"),
    [
        ([[2.0, -1.0]], [0], {}, ValueError, "from_logits=True"),
        ([[0.5, 0.4]], [0], {}, ValueError, "sum to 1"),
        ([[0.5, NAN]], [0], {}, ValueError, "NaN"),
        ([1.5], [0], {}, ValueError, "from_logits=True"),
        ([[0.5, NAN]], [0], {"from_logits": True}, ValueError, "logits contain NaN"),
        ([[0.5, float("inf")]], [0], {"from_logits": True}, ValueError, "clamp them"),
        ([[-float("inf")] * 2], [0], {"from_logits": True}, ValueError, "clamp them"),
        ([[0.5, 0.5]], [2], {}, ValueError, r"target must be in \[0, 2\)"),
        ([[0.5, 0.5]], [-100], {}, ValueError, "drop ignored rows"),
        ([[0.5, 0.5]], [0, 1], {}, ValueError, "must have shape"),
        ([[0.5, 0.5]], [0.0], {}, TypeError, "class indices"),
        ([[1, 0]], [0], {}, TypeError, "floating point"),
        ([], [], {}, ValueError, "at least one row"),
        ([[0.5, 0.5]], [0], {"n_bins": 0}, ValueError, "n_bins must be an integer of at least 1"),
        ([[0.5, 0.5]], [0], {"n_bins": True}, ValueError, "n_bins must be an integer"),
        ([[0.5, 0.5]], [0], {"binning": "mass"}, ValueError, "binning must be one of 'uniform', 'quantile'"),
        ([[0.5, 0.5]], [0], {"norm": "l3"}, ValueError, "norm must be one of"),
        ([[0.5, 0.5]], [0], {"level": "all"}, ValueError, "level must be one of"),
        ([[0.5, 0.5]], [0], {"variant": "old"}, ValueError, "variant must be one of"),
        ([[0.5, 0.5]], [0], {"convention": "sklearn"}, ValueError, "convention must be one of"),
        ([[0.5, 0.5]], [0], {"convention": "netcal", "variant": "official"}, ValueError, "pass one"),
        ([[0.5, 0.5]], [0], {"convention": "torchmetrics", "binning": "quantile"}, ValueError, "no quantile"),
        ([[0.5, 0.5]] * 3, [0] * 3, {"convention": "netcal", "binning": "quantile"}, ValueError, "tied"),
        ([[0.5, 0.5]], [0], {"debias": True}, ValueError, "norm='l2'"),
        ([[0.5, 0.3, 0.2]], [0], {"level": "positive"}, ValueError, "binary"),
    ],
)
@pytest.mark.bad_input
def test_bad_input_is_refused(
    probs: Any, target: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        calibration.calibration_error(torch.tensor(probs), torch.tensor(target), **options)


@pytest.mark.bad_input
def test_bad_options_of_other_measures_are_refused() -> None:
    probs, target = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    nothing: Any = "none"
    tace = calibration.thresholded_adaptive_calibration_error
    for call, match in (
        (lambda: calibration.mmce(probs, target, width=0), "width must be positive"),
        (lambda: calibration.brier_score(probs, target, reduction=nothing), "reduction must be one of"),
        (lambda: tace(probs, target, threshold=1), r"threshold must be in \[0, 1\)"),
        (lambda: tace(probs, target, n_bins=0), "n_bins"),
        (lambda: calibration.ood_auroc(torch.tensor([]), probs), "in_confidence must be numbers"),
        (lambda: calibration.ood_auroc(probs, probs * NAN), "out_confidence must be numbers"),
        (lambda: calibration.overconfidence_error(probs, target, n_bins=-1), "n_bins"),
        (lambda: calibration.underconfidence_error(probs, target, n_bins=0), "n_bins"),
        (lambda: calibration.reliability_curve(probs, target, n_bins=0), "n_bins"),
        (lambda: calibration.reliability_curve(probs, target, level=nothing), "level must be one of"),
        (lambda: calibration.reliability_curve(probs, target, binning=nothing), "binning must be one of"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_a_logit_of_minus_infinity_is_a_probability_of_zero() -> None:
    logits, target = torch.tensor([[0.0, -torch.inf], [1.0, 1.0]]), torch.tensor([0, 1])
    for measure in (calibration.classwise_calibration_error, calibration.brier_score):
        want = measure(logits.softmax(1), target).item()
        assert measure(logits, target, from_logits=True).item() == pytest.approx(want)


# ---- shapes and types ----


def test_labels_of_transposed_positions_are_refused() -> None:
    maps = torch.full((2, 3, 4, 5), 1 / 3)
    calibration.expected_calibration_error(maps, torch.zeros(2, 4, 5, dtype=torch.long))
    for wrong in ((2, 5, 4), (40,), (4, 2, 5)):
        with pytest.raises(ValueError, match=r"target must have shape \(2, 4, 5\)"):
            calibration.expected_calibration_error(maps, torch.zeros(wrong, dtype=torch.long))
    column = calibration.expected_calibration_error(*table(20)).item()
    probs, target = table(20)
    assert calibration.expected_calibration_error(probs, target[:, None]).item() == column


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_probabilities_are_probabilities(dtype: torch.dtype) -> None:
    probs, target = table(500, 10)
    half = probs.to(dtype)
    assert (half.float().sum(1) - 1).abs().max() > (1e-3 if dtype == torch.bfloat16 else 0)
    want = calibration.brier_score(half.float() / half.float().sum(1, keepdim=True), target).item()
    assert calibration.brier_score(half, target).item() == pytest.approx(want, abs=2e-3)
    assert not calibration.CalibrationReport(half, target).from_logits


def test_ties_just_above_one_half_take_the_first_class() -> None:
    probs = torch.tensor([[0.5004, 0.5004], [0.9, 0.1]])
    report = calibration.CalibrationReport(probs, torch.tensor([1, 0]), n_bins=5)
    assert report.to_dict()["accuracy"] == 0.5


def test_arrays_that_torch_cannot_share() -> None:
    probs, target = (t.numpy() for t in table(50))
    want = calibration.ks_error(probs, target).item()
    reversed_ = probs[::-1].copy()[::-1], target[::-1].copy()[::-1]
    foreign = probs.astype(probs.dtype.newbyteorder()), target.astype(target.dtype.newbyteorder())
    locked = probs.copy(), target.copy()
    for array in locked:
        array.flags.writeable = False
    for pair in (reversed_, foreign, locked):
        assert calibration.ks_error(*pair).item() == want
        assert calibration.TemperatureScaler().fit(*pair).temperature_ > 0


def test_logits_of_one_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"as \(N,\)"):
        calibration.expected_calibration_error(torch.zeros(3, 1), torch.zeros(3).long(), from_logits=True)


def test_classwise_bins_of_many_classes_match_the_sorted_route() -> None:
    probs, target = table(400, 40)
    for norm in ("l1", "l2", "max", "mean"):
        histogram = calibration.calibration_error(probs, target, level="classwise", norm=norm).item()
        rows = [
            calibration.calibration_error(
                probs[:, k], (target == k).long(), level="positive", norm=norm
            ).item()
            for k in range(40)
        ]
        assert histogram == pytest.approx(np.mean(rows), abs=1e-12)
