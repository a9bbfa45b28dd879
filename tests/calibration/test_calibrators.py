"""Every calibrator: shapes, types, weights, binary logits, errors."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from trueup import calibration
from trueup.calibration._calibrator import Calibrator

CALIBRATORS = {
    "temperature": calibration.TemperatureScaler,
    "official temperature": lambda: calibration.TemperatureScaler(variant="official"),
    "vector": calibration.VectorScaler,
    "matrix": calibration.MatrixScaler,
    "histogram": calibration.HistogramCalibrator,
    "quantile histogram": lambda: calibration.HistogramCalibrator(n_bins=5, binning="quantile"),
    "beta": calibration.BetaCalibrator,
    "isotonic": calibration.IsotonicCalibrator,
    "Platt": calibration.PlattCalibrator,
    "correctness-aware": lambda: calibration.CorrectnessAwareCalibrator(topk=2, max_iter=20, random_state=0),
}


def test_all_calibrators_are_here():
    public = {getattr(calibration, name) for name in calibration.__all__}
    calibrators = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Calibrator)}
    assert {type(make()) for make in CALIBRATORS.values()} == calibrators


@pytest.fixture(params=CALIBRATORS)
def calibrator(request):
    return CALIBRATORS[request.param]()


def data(n=300, classes=4, temperature=2.0):
    """Logits that are too large by `temperature`."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    target = (logits / temperature).softmax(1).multinomial(1, generator=generator)[:, 0]
    return logits, target


def nll(probs, target):
    return float(-probs.double().gather(1, target[:, None]).clamp_min(np.finfo(np.float64).eps).log().mean())


def test_calibration_lowers_the_loss_on_other_data(calibrator):
    logits, target = data(4000)
    calibrator.fit(logits[:2000], target[:2000])
    new, labels = logits[2000:], target[2000:]
    probs = calibrator.predict_proba(new)
    torch.testing.assert_close(probs.sum(1), torch.ones(2000, dtype=torch.float64))
    assert nll(probs, labels) < nll(new.softmax(1), labels)
    assert calibrator.score(new, labels) == pytest.approx(-nll(probs, labels), rel=1e-9)
    torch.testing.assert_close(calibrator.transform(new).softmax(1), probs)


def test_arrays_and_tensors_give_the_same(calibrator):
    logits, target = data()
    expected = calibrator.fit(logits, target).transform(logits)
    got = calibrator.fit(logits.numpy(), target.numpy()).transform(logits.numpy())
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, expected.numpy())
    assert isinstance(calibrator.predict_proba(logits.numpy()), np.ndarray)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(calibrator, dtype):
    logits, target = data()
    logits = logits.to(getattr(torch, dtype))
    got = calibrator.fit(logits, target).transform(logits)
    assert got.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    expected = calibrator.transform(logits.double())
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    if dtype != "bfloat16":
        of_array = calibrator.transform(logits.numpy())
        assert of_array.dtype == got.numpy().dtype
        np.testing.assert_array_equal(of_array, got.numpy())


def test_binary_logits_are_the_difference_of_two(calibrator):
    pair, target = data(classes=2)
    single = pair[:, 1] - pair[:, 0]
    calibrator.fit(single, target)
    assert calibrator.n_features_in_ == 1
    got = calibrator.predict_proba(single)
    assert got.shape == (300,)
    torch.testing.assert_close(calibrator.transform(single).sigmoid(), got)
    padded = torch.stack([torch.zeros_like(single), single], 1)
    expected = calibrator.fit(padded, target).predict_proba(padded)[:, 1]
    torch.testing.assert_close(got, expected)


def test_positions_are_samples(calibrator):
    """As in a segmentation map."""
    logits, target = data(300)
    maps = logits.reshape(10, 5, 6, 4).permute(0, 3, 1, 2)
    labels = target.reshape(10, 5, 6)
    weight = torch.rand(10, 5, 6)
    got = calibrator.fit(maps, labels, weight).transform(maps)
    assert got.shape == maps.shape
    expected = calibrator.fit(logits, target, weight.flatten()).transform(logits)
    torch.testing.assert_close(got.permute(0, 2, 3, 1).reshape(300, 4), expected)
    assert calibrator.predict_proba(maps.numpy()).shape == (10, 4, 5, 6)
    torch.testing.assert_close(calibrator.predict_proba(maps).sum(1), torch.ones(10, 5, 6).double())


def test_weights_count_samples(calibrator):
    logits, target = data()
    weight = torch.from_numpy(np.random.default_rng(1).integers(0, 3, 300))
    weighted = calibrator.fit(logits, target, weight).predict_proba(logits)
    repeated = calibrator.fit(logits.repeat_interleave(weight, 0), target.repeat_interleave(weight))
    torch.testing.assert_close(weighted, repeated.predict_proba(logits), rtol=1e-5, atol=1e-6)
    chosen = weight > 0
    assert calibrator.score(logits, target, weight) == pytest.approx(
        calibrator.score(logits[chosen], target[chosen], weight[chosen])
    )
    assert calibrator.score(logits, target, weight) != calibrator.score(logits, target)


def test_a_class_without_labels(calibrator):
    logits, target = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        calibrator.fit(logits, target.clamp_max(2))
    probs = calibrator.predict_proba(logits)
    assert probs.isfinite().all()
    torch.testing.assert_close(probs.sum(1), torch.ones(300).double())


@pytest.mark.parametrize("kind", [calibration.VectorScaler, calibration.MatrixScaler])
def test_affine_scaling_warns_of_a_class_without_labels(kind):
    logits, target = data()
    with pytest.warns(ConvergenceWarning, match="no held-out sample of 1 of 4 classes"):
        kind().fit(logits, target.clamp_max(2))
    kind(ridge=1e-3).fit(logits, target.clamp_max(2))


def test_fit_leaves_its_input_alone(calibrator):
    logits, target = data()
    before = logits.clone()
    calibrator.fit(logits, target).transform(logits)
    torch.testing.assert_close(logits, before, rtol=0, atol=0)


@pytest.mark.bad_input
def test_bad_input(calibrator):
    logits, target = data()
    fit = calibrator.fit
    with pytest.raises(ValueError, match="contain NaN"):
        fit(logits.where(logits < 2, torch.nan), target)
    with pytest.raises(ValueError, match=r"\+inf"):
        fit(logits.where(logits < 2, torch.inf), target)
    with pytest.raises(ValueError, match=r"target must be in \[0, 4\)"):
        fit(logits, target + 1)
    with pytest.raises(ValueError, match=r"must have shape \(300,\).*got \(299,\)"):
        fit(logits, target[1:])
    with pytest.raises(TypeError, match="class indices"):
        fit(logits, target.double())
    with pytest.raises(TypeError, match="class indices"):
        fit(logits.numpy(), target.numpy() + 0.5)
    with pytest.raises(TypeError, match="Unknown label type"):
        fit(logits.numpy(), target.numpy().astype(str))
    with pytest.raises(ValueError, match="requires y"):
        fit(logits, None)
    with pytest.raises(ValueError, match="two classes or more"):
        fit(logits[:, :1], target)
    with pytest.raises(ValueError, match="at least one row"):
        fit(logits[:0], target[:0])
    with pytest.raises(ValueError, match=r"must have shape \(300,\).*got \(299,\)"):
        fit(logits, target, torch.ones(299))
    for weight in (-1.0, torch.nan, torch.inf):
        with pytest.raises(ValueError, match="finite and 0 or more"):
            fit(logits, target, torch.full((300,), weight))
    with pytest.raises(ValueError, match="zero for all"):
        fit(logits, target, torch.zeros(300))
    fit(logits, target)
    with pytest.raises(ValueError, match=r"X has 3 features, but .* is expecting 4 features"):
        calibrator.transform(logits[:, :3])
    with pytest.raises(ValueError, match="Reshape your data"):
        calibrator.predict_proba(logits[0])


@pytest.mark.parametrize("seed", range(20))
def test_quantile_bins_hold_the_same_samples_in_fit_and_after(seed):
    levels = np.random.default_rng(seed).normal(0, 4, 12)
    logits = torch.from_numpy(levels.repeat(50))
    target = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, 600))
    calibrator = calibration.HistogramCalibrator(n_bins=6, binning="quantile").fit(logits, target)
    probs = calibrator.predict_proba(logits)
    assert probs.mean() == pytest.approx(target.double().mean())
    for level in range(12):
        alone = calibrator.predict_proba(logits[50 * level, None])
        torch.testing.assert_close(probs[50 * level : 50 * level + 50], alone.expand(50))


@pytest.mark.parametrize("kind", [calibration.HistogramCalibrator, calibration.IsotonicCalibrator])
def test_step_functions_have_no_gradient(kind):
    logits, target = data()
    logits.requires_grad_()
    assert not kind().fit(logits, target).transform(logits).requires_grad
