"""The metrics: whatever the batches and processes, they give the function's value for all samples."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from processes import in_processes
from trueup import calibration
from trueup.calibration import _metrics

CASES: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    "ExpectedCalibrationError": (calibration.expected_calibration_error, {"n_bins": 7}, {"n_bins": 7}),
    "MaximumCalibrationError": (calibration.maximum_calibration_error, {"n_bins": 7}, {"n_bins": 7}),
    "AverageCalibrationError": (calibration.average_calibration_error, {"n_bins": 7}, {"n_bins": 7}),
    "RootMeanSquaredCalibrationError": (
        calibration.root_mean_squared_calibration_error,
        {"n_bins": 7},
        {"n_bins": 7},
    ),
    "DebiasedCalibrationError": (calibration.debiased_calibration_error, {"n_bins": 7}, {"n_bins": 7}),
    "OverconfidenceError": (calibration.overconfidence_error, {"n_bins": 7}, {"n_bins": 7}),
    "UnderconfidenceError": (calibration.underconfidence_error, {"n_bins": 7}, {"n_bins": 7}),
    "ConfidenceGap": (calibration.confidence_gap, {}, {}),
    "AdaptiveCalibrationError": (calibration.adaptive_calibration_error, {"n_bins": 7}, {"n_bins": 7}),
    "ClasswiseCalibrationError": (
        calibration.classwise_calibration_error,
        {"num_classes": 3, "n_bins": 7},
        {"n_bins": 7},
    ),
    "ClasswiseAdaptiveCalibrationError": (
        calibration.classwise_calibration_error,
        {"n_bins": 7},
        {"n_bins": 7, "binning": "quantile"},
    ),
    "ThresholdedAdaptiveCalibrationError": (
        calibration.thresholded_adaptive_calibration_error,
        {"n_bins": 7, "threshold": 0.1},
        {"n_bins": 7, "threshold": 0.1},
    ),
    "SweepCalibrationError": (calibration.sweep_calibration_error, {}, {}),
    "KSError": (calibration.ks_error, {}, {}),
    "KDECalibrationError": (calibration.kde_calibration_error, {}, {}),
    "MMCE": (calibration.mmce, {"width": 0.3}, {"width": 0.3}),
    "CorrectnessAUROC": (calibration.correctness_auroc, {}, {}),
    "AURC": (calibration.aurc, {}, {}),
    "ExcessAURC": (calibration.excess_aurc, {}, {}),
    "NegativeLogLikelihood": (calibration.negative_log_likelihood, {}, {}),
    "BrierScore": (calibration.brier_score, {"reduction": "mean"}, {"reduction": "mean"}),
}


def predictions(samples: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(samples, 3, generator=generator)).to(dtype)
    target = torch.multinomial((logits / 2).float().softmax(1), 1, generator=generator).squeeze(1)
    return logits, target


def batches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(t.split([1, 40, 9, 30]) for t in tensors))


def metric_of(name: str, **options: Any) -> Metric:
    _, settings, _ = CASES[name]
    metric: Metric = getattr(calibration, name)(**settings, **options)
    return metric


def all_metrics(**options: Any) -> MetricCollection:
    return MetricCollection({name: metric_of(name, **options) for name in CASES})


def expected(preds: Tensor, target: Tensor, **options: Any) -> dict[str, Any]:
    values = {
        name: function(preds, target, **arguments, **options).item()
        for name, (function, _, arguments) in CASES.items()
    }
    return {name: pytest.approx(value, rel=1e-9, abs=1e-12) for name, value in values.items()}


def test_every_metric_is_tested_and_public() -> None:
    assert set(CASES) == set(_metrics.__all__)
    assert set(CASES) <= set(calibration.__all__)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("from_logits", [True, False])
def test_batches_give_the_value_of_all_samples(dtype: torch.dtype, from_logits: bool) -> None:
    logits, target = predictions(80, dtype)
    preds = (
        logits if from_logits else logits.double().softmax(1).to(torch.promote_types(dtype, torch.float32))
    )
    metrics = all_metrics(from_logits=from_logits)
    for batch in batches(preds, target):
        metrics.update(*batch)
    assert {k: v.item() for k, v in metrics.compute().items()} == expected(
        preds, target, from_logits=from_logits
    )


@pytest.mark.parametrize("name", CASES)
def test_calling_a_metric_measures_the_batch_and_goes_on(name: str) -> None:
    function, _, arguments = CASES[name]
    logits, target = predictions(80)
    probs = logits.softmax(1)
    metric = metric_of(name)
    for preds, labels in zip(probs.split(40), target.split(40)):
        assert metric(preds, labels).item() == pytest.approx(function(preds, labels, **arguments).item())
    assert metric.compute().item() == pytest.approx(function(probs, target, **arguments).item())
    assert metric.compute().dtype == torch.float64

    copy = pickle.loads(pickle.dumps(metric))
    assert copy.compute() == metric.compute()
    metric.reset()
    metric.update(probs[:40], target[:40])
    assert metric.compute().item() == pytest.approx(function(probs[:40], target[:40], **arguments).item())


@pytest.mark.parametrize("name", CASES)
def test_a_metric_without_samples_has_no_value(name: str) -> None:
    metric = metric_of(name)
    with pytest.warns(UserWarning, match="compute"), pytest.raises(ValueError, match="has seen no samples"):
        metric.compute()


def test_two_metrics_merge() -> None:
    logits, target = predictions(80)
    probs = logits.softmax(1)
    for name, value in expected(probs, target).items():
        first, second = metric_of(name), metric_of(name)
        first.update(probs[:30], target[:30])
        second.update(probs[30:], target[30:])
        first.merge_state(second)
        assert first.compute().item() == value, name


def test_positive_class_and_maps() -> None:
    logits, target = predictions(80)
    p1, binary = logits.softmax(1)[:, 1], (target == 1).long()
    metric = calibration.ExpectedCalibrationError(n_bins=7, level="positive")
    adaptive = calibration.AdaptiveCalibrationError(n_bins=7, level="positive")
    for batch in batches(p1, binary):
        metric.update(*batch)
        adaptive.update(*batch)
    for m, binning in ((metric, "uniform"), (adaptive, "quantile")):
        value = calibration.calibration_error(p1, binary, n_bins=7, binning=binning, level="positive")
        assert m.compute().item() == pytest.approx(value.item())

    maps = logits.softmax(1).unflatten(0, (5, 4, 4)).movedim(-1, 1)
    metrics = all_metrics()
    metrics.update(maps, target.view(5, 4, 4))
    assert {k: v.item() for k, v in metrics.compute().items()} == expected(logits.softmax(1), target)


def test_a_collection_does_not_confuse_metrics_that_agree_on_the_first_batch() -> None:
    metrics = MetricCollection(
        {
            "top": calibration.ExpectedCalibrationError(),
            "positive": calibration.ExpectedCalibrationError(level="positive"),
            "nll": calibration.NegativeLogLikelihood(),
            "brier": calibration.BrierScore(),
            "top1": calibration.BrierScore("top"),
        }
    )
    probs = torch.tensor([1.0, 0.3, 0.2])
    target = torch.tensor([1, 0, 1])
    for batch in zip(probs.split([1, 2]), target.split([1, 2])):
        metrics.update(*batch)
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == {
        "top": pytest.approx(calibration.expected_calibration_error(probs, target).item()),
        "positive": pytest.approx(
            calibration.calibration_error(probs, target, level="positive").item(), abs=1e-7
        ),
        "nll": pytest.approx(calibration.negative_log_likelihood(probs, target).item()),
        "brier": pytest.approx(calibration.brier_score(probs, target).item()),
        "top1": pytest.approx(calibration.brier_score(probs, target, reduction="top").item()),
    }


def test_a_collection_updates_metrics_with_the_same_state_once() -> None:
    metrics = all_metrics()
    for batch in batches(*(t for t in _probs(80))):
        metrics.update(*batch)
    groups = [set(group) for group in metrics.compute_groups.values()]
    assert {"KSError", "MMCE", "AdaptiveCalibrationError", "AURC"} <= next(
        g for g in groups if "KSError" in g
    )
    assert {"MaximumCalibrationError", "AverageCalibrationError"} <= next(
        g for g in groups if "ExpectedCalibrationError" in g
    )


def _probs(samples: int) -> tuple[Tensor, Tensor]:
    logits, target = predictions(samples)
    return logits.softmax(1), target


# ---- two processes ----


def _in_process(rank: int) -> dict[str, float]:
    """Update with this rank's batches, of which rank 1 has fewer, and return all values."""
    probs, target = _probs(80)
    metrics = all_metrics()
    mine = slice(0, 50) if rank == 0 else slice(50, 80)
    for batch in zip(probs[mine].split(20), target[mine].split(20)):
        metrics.update(*batch)
    first = {name: value.item() for name, value in metrics.compute().items()}
    for metric in metrics.values():  # the process still has only its own samples
        metric.unsync() if metric._is_synced else None
    metrics.reset()
    if rank == 0:  # and now nothing at all in the other
        for name in ("ExpectedCalibrationError", "NegativeLogLikelihood"):
            metrics[name].update(probs, target)
    for name in ("ExpectedCalibrationError", "NegativeLogLikelihood"):
        first[f"{name} of one process"] = metrics[name].compute().item()
    return first


def test_two_processes_give_the_value_of_all_samples(tmp_path: Path) -> None:
    values = in_processes(_in_process, folder=tmp_path)
    assert values[0] == values[1]
    one = {name: values[0].pop(name) for name in list(values[0]) if "one process" in name}
    wanted = expected(*_probs(80))
    assert values[0] == wanted
    assert one == {name: wanted[name.split()[0]] for name in one}


# ---- errors ----


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("n_bins", [1, 5, 10, 15, 100])
def test_the_convention_of_torchmetrics_is_torchmetrics(norm: Any, n_bins: int) -> None:
    logits, target = predictions(400, torch.float32)
    probs = logits.softmax(1)
    options: dict[str, Any] = {"n_bins": n_bins, "norm": norm}
    got = calibration.calibration_error(probs, target, convention="torchmetrics", **options)
    want = multiclass_calibration_error(probs, target, num_classes=3, **options)
    assert got.item() == pytest.approx(want.item(), abs=1e-6)
    # Probabilities on the edges of 10 and of 15 bins, exact zeros and ones among them.
    generator = torch.Generator().manual_seed(n_bins)
    edges = torch.cat([torch.linspace(0, 1, 11), torch.linspace(0, 1, 16), torch.arange(11) / 10])
    probs = edges[torch.randint(len(edges), (400,), generator=generator)]
    target = torch.randint(2, (400,), generator=generator)
    got = calibration.calibration_error(probs, target, level="positive", convention="torchmetrics", **options)
    assert got.item() == pytest.approx(binary_calibration_error(probs, target, **options).item(), abs=1e-6)


@pytest.mark.bad_input
def test_bad_input_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="n_bins"):
        calibration.ExpectedCalibrationError(n_bins=0)
    with pytest.raises(ValueError, match="n_bins"):
        calibration.AdaptiveCalibrationError(n_bins=0)
    with pytest.raises(ValueError, match="level"):
        calibration.KSError(level="classwise")
    with pytest.raises(ValueError, match="num_classes"):
        calibration.ClasswiseCalibrationError(num_classes=0)
    with pytest.raises(ValueError, match="width"):
        calibration.MMCE(width=0)
    with pytest.raises(ValueError, match="threshold"):
        calibration.ThresholdedAdaptiveCalibrationError(threshold=1.5)
    with pytest.raises(ValueError, match="reduction"):
        calibration.BrierScore(reduction="median")
    probs, target = _probs(5)
    with pytest.raises(ValueError, match="num_classes=4"):
        calibration.ClasswiseCalibrationError(num_classes=4).update(probs, target)
    metric = calibration.ExpectedCalibrationError()
    with pytest.raises(ValueError, match="from_logits"):
        metric.update(3 * probs, target)
    with pytest.raises(ValueError, match="binary"):
        calibration.KSError(level="positive").update(probs, target)


def test_torchmetrics_is_imported_for_the_metrics_alone() -> None:
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "from trueup import calibration; calibration.ks_error; calibration.CalibrationReport\n"
        "try: calibration.KSError\n"
        "except ImportError as error: print(error)\n"
        "try: calibration.KSErrors\n"
        "except AttributeError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "KSError needs torchmetrics: pip install 'trueup[metrics]'",
        "module 'trueup.calibration' has no attribute 'KSErrors'",
    ]
