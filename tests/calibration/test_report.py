"""The report: every column is what its function gives, and it says where samples are too few."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from trueup import calibration
from trueup.calibration import CalibrationReport

BINS = (5, 15, 100)


def predictions(samples: int = 400, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits of an overconfident model, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    target = torch.multinomial((logits / 2).softmax(1), 1, generator=generator).squeeze(1)
    return logits, target


def calibrated(samples: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probs = (2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)).softmax(1)
    return probs, torch.multinomial(probs, 1, generator=generator).squeeze(1)


FUNCTIONS = {
    "ece": calibration.expected_calibration_error,
    "ece_em": calibration.adaptive_calibration_error,
    "mce": calibration.maximum_calibration_error,
    "ace": calibration.average_calibration_error,
    "rmsce": calibration.root_mean_squared_calibration_error,
    "ece_debiased": calibration.debiased_calibration_error,
    "oe": calibration.overconfidence_error,
    "ue": calibration.underconfidence_error,
    "tace": calibration.thresholded_adaptive_calibration_error,
    "cwce": calibration.classwise_calibration_error,
    "cwce_em": lambda p, y, **options: calibration.classwise_calibration_error(
        p, y, binning="quantile", **options
    ),
}
SCALARS = {
    "ece_sweep": calibration.sweep_calibration_error,
    "ks": calibration.ks_error,
    "kde": calibration.kde_calibration_error,
    "mmce": calibration.mmce,
    "nll": calibration.negative_log_likelihood,
    "brier": calibration.brier_score,
    "gap": calibration.confidence_gap,
    "auroc": calibration.correctness_auroc,
    "aurc": calibration.aurc,
    "excess_aurc": calibration.excess_aurc,
}


@pytest.mark.parametrize("samples", [3, 400])
def test_every_column_is_what_its_function_gives(samples: int) -> None:
    logits, target = predictions(samples)
    probs = logits.softmax(1)
    columns = CalibrationReport(probs, target, n_bins=BINS).to_dict()
    for name, function in FUNCTIONS.items():
        for n_bins in BINS:
            expected = float(function(probs, target, n_bins=n_bins))
            assert columns.pop(f"{name}_{n_bins}") == pytest.approx(expected, rel=1e-9, abs=1e-12), name
    for name, function in SCALARS.items():
        assert columns.pop(name) == pytest.approx(float(function(probs, target)), rel=1e-9, abs=1e-12), name
    confidence, hit = probs.amax(1), probs.argmax(1) == target
    assert columns.pop("accuracy") == pytest.approx(float(hit.double().mean()))
    assert columns.pop("confidence") == pytest.approx(float(confidence.mean()))
    assert columns.pop("confidence_correct") == pytest.approx(float(confidence[hit].mean()), nan_ok=True)
    assert columns.pop("confidence_incorrect") == pytest.approx(float(confidence[~hit].mean()), nan_ok=True)
    assert not columns


def test_logits_are_recognized_and_lose_no_precision() -> None:
    logits, target = predictions()
    logits[0] = torch.tensor([0.0, 2000.0, 0.0, 0.0])  # whose probabilities round to 0 and 1
    target[0] = 0
    report = CalibrationReport(logits, target, n_bins=BINS)
    nll = torch.nn.functional.cross_entropy(logits, target)
    assert report.to_dict()["nll"] == pytest.approx(float(nll), rel=1e-12)
    assert report.to_dict() == CalibrationReport(logits, target, n_bins=BINS, from_logits=True).to_dict()
    assert report.to_dict()["ece_15"] == pytest.approx(
        float(calibration.expected_calibration_error(logits.softmax(1), target))
    )


@pytest.mark.parametrize("kind", ["scaled", "beyond one"])
def test_predictions_that_may_be_either_are_refused(kind: str) -> None:
    probs, target = calibrated(50, 3, 0)
    probs = probs / 2 if kind == "scaled" else probs + torch.tensor([1.0, -0.5, -0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match="if these are logits, pass from_logits=True"):
        CalibrationReport(probs, target)
    CalibrationReport(probs, target, from_logits=True)


def test_binary_probabilities_have_the_columns_of_the_positive_class() -> None:
    logits, target = predictions(classes=2)
    probs = logits.softmax(1)
    report = CalibrationReport(probs[:, 1], target, n_bins=BINS)
    columns = report.to_dict()
    for n_bins in BINS:
        for binning, name in (("uniform", "ece_positive"), ("quantile", "ece_em_positive")):
            expected = calibration.calibration_error(
                probs[:, 1], target, n_bins=n_bins, binning=binning, level="positive"
            )
            assert columns[f"{name}_{n_bins}"] == pytest.approx(float(expected), abs=1e-12)
    two = CalibrationReport(probs, target, n_bins=BINS).to_dict()
    assert list(two) == list(columns)
    assert two == pytest.approx(columns, abs=1e-12)


def test_segmentation_maps_are_rows() -> None:
    logits, target = predictions(6 * 5 * 4, 3)
    probs = logits.softmax(1)
    maps = probs.unflatten(0, (6, 5, 4)).movedim(-1, 1)
    report = CalibrationReport(maps.numpy(), target.view(6, 5, 4).numpy(), n_bins=BINS)
    assert report.to_dict() == pytest.approx(CalibrationReport(probs, target, n_bins=BINS).to_dict())


@pytest.mark.bad_input
def test_levels_choose_the_columns() -> None:
    logits, target = predictions()
    top = CalibrationReport(logits, target, n_bins=BINS, levels=("top",)).to_dict()
    assert "ece_15" in top
    assert not any(name.startswith("cw") for name in top)
    with pytest.raises(ValueError, match="two classes"):
        CalibrationReport(logits, target, levels=("top", "positive"))
    with pytest.raises(ValueError, match="levels"):
        CalibrationReport(logits, target, levels=("bottom",))  # type: ignore[arg-type]


# ---- the bootstrap ----


def test_bootstrap_intervals_are_percentiles_over_resamples() -> None:
    logits, target = predictions(120)
    probs = logits.softmax(1)
    report = CalibrationReport(probs, target, n_bins=(5,), n_bootstrap=400, seed=3)
    intervals = report.confidence_intervals
    assert list(intervals) == list(report.to_dict())

    # An oracle with its own randomness agrees up to the noise of 400 resamples.
    generator = np.random.default_rng(0)
    for name, function in {
        "ece_5": lambda p, y: calibration.expected_calibration_error(p, y, n_bins=5),
        "cwce_em_5": lambda p, y: calibration.classwise_calibration_error(p, y, n_bins=5, binning="quantile"),
        "ks": calibration.ks_error,
        "nll": calibration.negative_log_likelihood,
    }.items():
        draws = []
        for _ in range(400):
            rows = torch.from_numpy(generator.integers(0, 120, 120))
            draws.append(float(function(probs[rows], target[rows])))
        low, high = np.percentile(draws, [2.5, 97.5])
        spread = high - low
        assert intervals[name] == pytest.approx((low, high), abs=0.25 * spread), name
        assert intervals[name][0] < intervals[name][1]


def test_bootstrap_is_seeded_and_leaves_the_global_generator_alone() -> None:
    logits, target = predictions(60)
    state = torch.get_rng_state()
    first, same, other = (
        CalibrationReport(logits, target, n_bins=(5,), n_bootstrap=20, seed=seed).confidence_intervals
        for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert first == same
    assert first != other


def test_wider_confidence_gives_wider_intervals() -> None:
    logits, target = predictions(60)
    narrow, wide = (
        CalibrationReport(
            logits, target, n_bins=(5,), n_bootstrap=50, confidence_level=level
        ).confidence_intervals["nll"]
        for level in (0.5, 0.99)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_resample_of_one_class_or_of_hits_only_counts_for_what_it_has() -> None:
    probs = torch.full((40,), 0.9, dtype=torch.float64)
    target = torch.ones(40, dtype=torch.long)
    target[0] = 0  # a third of the resamples have no error, hence no AUROC
    report = CalibrationReport(probs, target, n_bins=(5,), n_bootstrap=50)
    low, high = report.confidence_intervals["auroc"]
    assert low == high == 0.5  # all confidences are tied, so the rest agree


def test_intervals_need_thirty_samples_and_resamples() -> None:
    logits, target = predictions(29)
    report = CalibrationReport(logits, target, n_bins=(5,), n_bootstrap=20)
    with pytest.raises(ValueError, match=r"29 samples .* 30"):
        _ = report.confidence_intervals
    assert "29 samples" in str(report)
    with pytest.raises(ValueError, match="n_bootstrap"):
        _ = CalibrationReport(logits, target, n_bins=(5,)).confidence_intervals


# ---- too few samples ----


def test_noise_floor_is_what_calibrated_models_show() -> None:
    samples, classes = 300, 3
    measured: dict[str, list[float]] = {}
    floors: dict[str, list[float]] = {}
    for seed in range(60):
        report = CalibrationReport(*calibrated(samples, classes, seed), n_bins=(5, 50))
        for name, floor in report.noise_floor.items():
            measured.setdefault(name, []).append(report.to_dict()[name])
            floors.setdefault(name, []).append(floor)
    for name in ("ece_5", "ece_50", "ece_em_50", "ace_50", "cwce_5", "cwce_em_50", "mmce"):
        assert np.mean(floors[name]) == pytest.approx(np.mean(measured[name]), rel=0.15), name
    assert np.mean(floors["rmsce_50"]) == pytest.approx(np.mean(measured["rmsce_50"]), rel=0.15)
    assert np.mean(floors["ks"]) == pytest.approx(np.mean(measured["ks"]), rel=0.3)
    assert np.mean(floors["mce_50"]) <= 1.1 * np.mean(measured["mce_50"])


def test_columns_below_twice_the_noise_floor_are_named() -> None:
    calm = CalibrationReport(*calibrated(200, 3, 1), n_bins=(5, 100))
    assert "ece_100" in calm.dominated_by_noise
    assert set(calm.dominated_by_noise) <= set(calm.noise_floor)
    text = str(calm)
    assert "too few samples: less than twice what a calibrated model" in text
    assert f"{calm.to_dict()['ece_100']:.4f}*" in text

    logits, target = predictions(5000)
    sure = CalibrationReport(logits, target, n_bins=(5, 15))
    assert not {"ece_5", "ece_15", "ks", "mmce"} & set(sure.dominated_by_noise)


def test_a_single_sample_has_a_report() -> None:
    report = CalibrationReport(torch.tensor([[0.7, 0.3]], dtype=torch.float64), torch.tensor([1]))
    columns = report.to_dict()
    assert columns["ece_15"] == pytest.approx(0.7)
    assert math.isnan(columns["auroc"])
    assert "1 sample" in str(report)


# ---- groups ----


def test_groups_have_reports_of_their_own() -> None:
    logits, target = predictions()
    groups = np.array(["a", "b"])[np.arange(400) % 3 // 2]
    report = CalibrationReport(logits, target, n_bins=BINS, groups=groups)
    assert list(report.by_group) == ["a", "b"]
    rows = torch.from_numpy(groups == "b")
    alone = CalibrationReport(logits[rows], target[rows], n_bins=BINS)
    assert report.by_group["b"].to_dict() == pytest.approx(alone.to_dict(), nan_ok=True)
    assert "b" in str(report).split("group", 1)[1]
    assert CalibrationReport(logits, target).by_group == {}
    numbered = CalibrationReport(logits, target, groups=torch.arange(400) % 2)
    assert list(numbered.by_group) == [0, 1]


def test_bfloat16_probabilities_have_groups_and_curves() -> None:
    probs = (2 * torch.randn(400, 100, generator=torch.Generator().manual_seed(0))).softmax(1).bfloat16()
    target = torch.arange(400) % 100
    report = CalibrationReport(probs, target, n_bins=np.int64(10), groups=target % 2)
    assert report.reliability_curve().count.sum() == 400
    odd = CalibrationReport(probs[1::2], target[1::2], n_bins=10)
    assert report.by_group[1].to_dict() == pytest.approx(odd.to_dict(), rel=0, abs=0, nan_ok=True)


@pytest.mark.bad_input
def test_groups_of_maps_keep_their_layout() -> None:
    probs = torch.tensor([[0.9, 0.1]] * 3)[:, :, None].expand(3, 2, 2)
    target = torch.tensor([[0, 0], [0, 0], [1, 1]])
    report = CalibrationReport(probs, target, n_bins=5, groups=target)
    assert [r.to_dict()["accuracy"] for r in report.by_group.values()] == [1, 0]
    for groups in (target.T, target.flatten()):
        with pytest.raises(ValueError, match=r"groups must have shape \(3, 2\)"):
            CalibrationReport(probs, target, groups=groups)
    with pytest.raises(TypeError, match="groups must be values of one kind"):
        CalibrationReport(probs, target, groups=np.array([["a", None]] * 3))


@pytest.mark.bad_input
def test_a_figure_by_group_needs_groups() -> None:
    probs, target = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="make the report with groups"):
        CalibrationReport(probs, target).figure(by_group=True)
    with pytest.raises(ValueError, match="level='top'"):
        CalibrationReport(probs, target, groups=["a", "b"]).figure(level="classwise", by_group=True)


@pytest.mark.parametrize("groups", [np.arange(399), [["a"] * 400]])
def test_groups_need_one_value_per_sample(groups: object) -> None:
    logits, target = predictions()
    with pytest.raises(ValueError, match="groups"):
        CalibrationReport(logits, target, groups=groups)  # type: ignore[arg-type]


# ---- output ----


def test_frame_has_a_row_per_column() -> None:
    logits, target = predictions(50)
    report = CalibrationReport(logits, target, n_bins=BINS, n_bootstrap=10)
    frame = report.to_frame()
    assert list(frame.columns) == ["value", "low", "high", "noise_floor", "dominated_by_noise"]
    assert frame["value"].to_dict() == pytest.approx(report.to_dict(), nan_ok=True)
    assert frame.loc["ece_15", "low"] == report.confidence_intervals["ece_15"][0]
    assert math.isnan(frame.loc["nll", "noise_floor"])
    assert CalibrationReport(logits, target).to_frame()["low"].isna().all()


def test_printing_shows_each_family_by_number_of_bins() -> None:
    logits, target = predictions()
    report = CalibrationReport(logits, target, n_bins=BINS, n_bootstrap=10)
    lines = str(report).splitlines()
    assert lines[0] == "Calibration of 400 samples, 4 classes, read as logits"
    header = next(line for line in lines if line.split()[:1] == ["bins"])
    assert header.split()[1:] == ["5", "15", "100"]
    row = next(line for line in lines if line.split()[:1] == ["ece"])
    assert row.split()[1].rstrip("*") == f"{report.to_dict()['ece_5']:.4f}"
    assert max(map(len, lines)) <= 110


def test_figure_shows_the_curve() -> None:
    logits, target = predictions()
    report = CalibrationReport(logits, target, groups=np.arange(400) % 2)
    figure = report.figure(n_bins=10)
    curve = calibration.reliability_curve(logits, target, n_bins=10, from_logits=True)
    filled = curve.count > 0
    trace = next(trace for trace in figure.data if trace.name == "all samples")
    assert torch.equal(torch.tensor(trace.y), curve.accuracy[filled].double())
    assert torch.equal(torch.tensor(trace.x), curve.confidence[filled].double())
    bars = next(trace for trace in figure.data if trace.type == "bar")
    assert sum(bars.y) == pytest.approx(1)
    assert figure.to_json()
    names = {trace.name for trace in report.figure(by_group=True).data}
    assert {"0", "1"} <= names
    classes = {trace.name for trace in report.figure(level="classwise").data}
    assert {"class 0", "class 3"} <= classes


def test_band_of_a_point_holds_the_accuracies_of_a_calibrated_model() -> None:
    probs = torch.full((100,), 0.8, dtype=torch.float64)
    figure = calibration.reliability_diagram(probs, torch.ones(100, dtype=torch.long), n_bins=5)
    trace = next(t for t in figure.data if t.name == "model" and t.type == "scatter")
    _, low, high = trace.customdata[0]
    draws = np.random.default_rng(0).binomial(100, 0.8, 20_000) / 100
    assert 0.94 <= np.mean((draws >= low) & (draws <= high)) <= 0.97


def test_a_figure_without_plotly_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['plotly'] = None; sys.modules['plotly.graph_objects'] = None\n"
        "import torch; from trueup.calibration import reliability_diagram\n"
        "try: reliability_diagram(torch.tensor([0.5]), torch.tensor([1]))\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "trueup[plot]" in run.stdout


@pytest.mark.bad_input
@pytest.mark.parametrize("n_bins", [(), (0,), (5, -1), (2.5,)])
def test_bins_must_be_positive(n_bins: tuple[int, ...]) -> None:
    logits, target = predictions(10)
    with pytest.raises(ValueError, match="n_bins"):
        CalibrationReport(logits, target, n_bins=n_bins)


def test_bad_hyperparameters_are_refused() -> None:
    logits, target = predictions(10)
    with pytest.raises(ValueError, match="n_bootstrap"):
        CalibrationReport(logits, target, n_bootstrap=-1)
    with pytest.raises(ValueError, match="confidence_level"):
        CalibrationReport(logits, target, confidence_level=95)
    with pytest.raises(ValueError, match="target must be in"):
        CalibrationReport(logits, target + 3)


def test_one_number_of_bins_needs_no_tuple() -> None:
    probs, target = torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0])
    assert CalibrationReport(probs, target, n_bins=5).to_dict().keys() == (
        CalibrationReport(probs, target, n_bins=(5,)).to_dict().keys()
    )
    with pytest.raises(ValueError, match="at least 1; got 0"):
        CalibrationReport(probs, target, n_bins=0)
