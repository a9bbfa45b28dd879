"""Golden cases of temperature scaling; the adapters of the papers that fit a temperature import it."""

from __future__ import annotations

import warnings

import torch

from trueup.calibration import TemperatureScaler, optimal_temperature
from trueup.calibration._temperature_scaling import temperature_nll


def temperature_scaling(case):
    logits = torch.as_tensor(case.inputs["logits"])
    labels = torch.as_tensor(case.inputs["labels"])
    bounds = case.hyper["t_min"], case.hyper["t_max"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # separable logits: the bound is the reference value
        temperature = optimal_temperature(logits, labels, t_bounds=bounds)
        scaler = TemperatureScaler(t_bounds=bounds).fit(logits, labels)
    assert scaler.temperature_ == float(temperature)
    return {
        "out.temperature_optimal": temperature,
        "out.nll_before": temperature_nll(logits.double(), labels, 1.0),
        "out.nll_optimal": temperature_nll(logits.double(), labels, temperature),
    }
