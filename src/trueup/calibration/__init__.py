"""Measures of calibration, calibrators for trained models, and training losses that calibrate."""

from trueup.calibration._affine_scaling import MatrixScaler, VectorScaler
from trueup.calibration._beta_calibration import BetaCalibrator
from trueup.calibration._calibrated_model import CalibratedModel
from trueup.calibration._correctness_aware import (
    CorrectnessAwareCalibrator,
    correctness_aware_loss,
    view_features,
)
from trueup.calibration._histogram_calibration import HistogramCalibrator
from trueup.calibration._isotonic_calibration import IsotonicCalibrator
from trueup.calibration._platt_scaling import PlattCalibrator
from trueup.calibration._temperature_scaling import TemperatureScaler, optimal_temperature

__all__ = [
    "BetaCalibrator",
    "CalibratedModel",
    "CorrectnessAwareCalibrator",
    "HistogramCalibrator",
    "IsotonicCalibrator",
    "MatrixScaler",
    "PlattCalibrator",
    "TemperatureScaler",
    "VectorScaler",
    "correctness_aware_loss",
    "optimal_temperature",
    "view_features",
]
