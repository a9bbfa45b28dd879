"""A model with its calibrator is a module like any other."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from trueup import calibration
from trueup.calibration import CalibratedModel, TemperatureScaler

CALIBRATORS = [
    calibration.TemperatureScaler,
    calibration.VectorScaler,
    calibration.MatrixScaler,
    calibration.HistogramCalibrator,
    calibration.BetaCalibrator,
    calibration.IsotonicCalibrator,
    calibration.PlattCalibrator,
    partial(calibration.CorrectnessAwareCalibrator, max_iter=20, random_state=0),
]


def batches(net, n=5):
    for _ in range(n):
        x = torch.randn(40, 6)
        net.eval()
        yield x, (net(x) / 2).softmax(1).multinomial(1)[:, 0]


def network():
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_state_dict_carries_the_calibrator(kind):
    net = network()
    held_out = list(batches(net))
    model = CalibratedModel(net, kind()).fit(held_out).eval()
    logits = net(torch.cat([x for x, _ in held_out]))
    separate = kind().fit(logits.detach(), torch.cat([y for _, y in held_out]))
    x = torch.randn(8, 6)
    torch.testing.assert_close(model(x), separate.transform(net(x)))

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = CalibratedModel(network(), kind()).eval()
    with pytest.raises(NotFittedError):
        other(x)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied(x), model(x), rtol=0, atol=0)


def test_fit_restores_training_modes_and_keeps_the_model():
    net = network().train()
    held_out = list(batches(net))
    net.train()
    net[0].eval()
    before = copy.deepcopy(net.state_dict())
    model = CalibratedModel(net, TemperatureScaler())
    model.fit(iter(held_out))
    assert [m.training for m in net] == [False, True, True]
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_gradients_reach_the_model():
    net = nn.Linear(6, 4)
    model = CalibratedModel(net, TemperatureScaler()).fit(batches(net))
    x = torch.randn(3, 6)
    ours = torch.autograd.grad(model(x).square().sum(), net.weight)[0]
    theirs = torch.autograd.grad((net(x) / model.calibrator.temperature_).square().sum(), net.weight)[0]
    torch.testing.assert_close(ours, theirs)


def test_no_batches():
    with pytest.raises(ValueError, match="at least one batch"):
        CalibratedModel(network(), TemperatureScaler()).fit([])


def test_a_reloaded_temperature_has_lost_no_digit():
    net = network()
    model = CalibratedModel(net, TemperatureScaler()).fit(batches(net))
    other = CalibratedModel(network(), TemperatureScaler())
    other.load_state_dict(model.state_dict())
    assert other.calibrator.temperature_ == model.calibrator.temperature_


@pytest.mark.bad_input  # a table, which scikit-learn takes for an array
def test_the_state_after_a_fit_to_a_table():
    pd = pytest.importorskip("pandas")
    z = torch.randn(50, 3)
    scaler = TemperatureScaler().fit(pd.DataFrame(z.numpy(), columns=list("abc")), np.arange(50) % 3)
    other = CalibratedModel(nn.Identity(), TemperatureScaler())
    other.load_state_dict(CalibratedModel(nn.Identity(), scaler).state_dict())
    torch.testing.assert_close(other(z), scaler.transform(z))


def test_loading_replaces_the_whole_fit():
    net = network()
    model = CalibratedModel(net, TemperatureScaler())
    unfitted = copy.deepcopy(model.state_dict())
    model.fit(batches(net))
    with pytest.raises(
        RuntimeError, match="state is that of a TemperatureScaler, and the model has a Vector"
    ):
        CalibratedModel(network(), calibration.VectorScaler()).load_state_dict(model.state_dict())
    model.load_state_dict(unfitted)
    with pytest.raises(NotFittedError):
        model.eval()(torch.randn(2, 6))


def test_a_state_that_cannot_be_saved_is_refused():
    calibrator = TemperatureScaler()
    calibrator.temperature_ = torch.tensor(2.0)
    with pytest.raises(TypeError, match="temperature_ of TemperatureScaler is a Tensor"):
        CalibratedModel(network(), calibrator).state_dict()
