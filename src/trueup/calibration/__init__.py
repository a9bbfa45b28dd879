"""Measures of calibration, calibrators for trained models, and training losses that calibrate."""

from trueup.calibration._affine_scaling import (
    MatrixScaler,
    VectorScaler,
)
from trueup.calibration._beta_calibration import (
    BetaCalibrator,
)
from trueup.calibration._binned_measures import (
    ReliabilityCurve,
    adaptive_calibration_error,
    average_calibration_error,
    calibration_error,
    classwise_calibration_error,
    confidence_gap,
    debiased_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    overconfidence_error,
    reliability_curve,
    root_mean_squared_calibration_error,
    sweep_calibration_error,
    thresholded_adaptive_calibration_error,
    underconfidence_error,
)
from trueup.calibration._bins import (
    DEFAULT_BINS,
)
from trueup.calibration._calibrated_model import (
    CalibratedModel,
)
from trueup.calibration._correctness_aware import (
    CorrectnessAwareCalibrator,
    correctness_aware_loss,
    view_features,
)
from trueup.calibration._histogram_calibration import (
    HistogramCalibrator,
)
from trueup.calibration._isotonic_calibration import (
    IsotonicCalibrator,
)
from trueup.calibration._platt_scaling import (
    PlattCalibrator,
)
from trueup.calibration._selective_prediction import (
    SelectiveCurve,
    aurc,
    correctness_auroc,
    excess_aurc,
    ood_auroc,
    selective_prediction_curve,
)
from trueup.calibration._temperature_scaling import (
    TemperatureScaler,
    optimal_temperature,
)
from trueup.calibration._unbinned_measures import (
    brier_score,
    kde_calibration_error,
    ks_error,
    mmce,
    negative_log_likelihood,
)

__all__ = [
    "DEFAULT_BINS",
    "BetaCalibrator",
    "CalibratedModel",
    "CorrectnessAwareCalibrator",
    "HistogramCalibrator",
    "IsotonicCalibrator",
    "MatrixScaler",
    "PlattCalibrator",
    "ReliabilityCurve",
    "SelectiveCurve",
    "TemperatureScaler",
    "VectorScaler",
    "adaptive_calibration_error",
    "aurc",
    "average_calibration_error",
    "brier_score",
    "calibration_error",
    "classwise_calibration_error",
    "confidence_gap",
    "correctness_auroc",
    "correctness_aware_loss",
    "debiased_calibration_error",
    "excess_aurc",
    "expected_calibration_error",
    "kde_calibration_error",
    "ks_error",
    "maximum_calibration_error",
    "mmce",
    "negative_log_likelihood",
    "ood_auroc",
    "optimal_temperature",
    "overconfidence_error",
    "reliability_curve",
    "root_mean_squared_calibration_error",
    "selective_prediction_curve",
    "sweep_calibration_error",
    "thresholded_adaptive_calibration_error",
    "underconfidence_error",
    "view_features",
]
