"""Measures of calibration, calibrators for trained models, and training losses that calibrate."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trueup.calibration._affine_scaling import MatrixScaler, VectorScaler
from trueup.calibration._beta_calibration import BetaCalibrator
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
from trueup.calibration._bins import DEFAULT_BINS
from trueup.calibration._calibrated_model import CalibratedModel
from trueup.calibration._correctness_aware import (
    CorrectnessAwareCalibrator,
    correctness_aware_loss,
    view_features,
)
from trueup.calibration._histogram_calibration import HistogramCalibrator
from trueup.calibration._isotonic_calibration import IsotonicCalibrator
from trueup.calibration._mixup import MixupLoss, mixup, mixup_batch
from trueup.calibration._overlapping_distributions import (
    OverlappingClusters,
    OverlappingGaussians,
    paired_label_noise,
)
from trueup.calibration._platt_scaling import PlattCalibrator
from trueup.calibration._reliability_diagram import reliability_diagram
from trueup.calibration._report import CalibrationReport
from trueup.calibration._selective_prediction import (
    SelectiveCurve,
    aurc,
    correctness_auroc,
    excess_aurc,
    ood_auroc,
    selective_prediction_curve,
)
from trueup.calibration._temperature_scaling import TemperatureScaler, optimal_temperature
from trueup.calibration._unbinned_measures import (
    brier_score,
    kde_calibration_error,
    ks_error,
    mmce,
    negative_log_likelihood,
)

if TYPE_CHECKING:
    from trueup.calibration._metrics import (
        AURC,
        MMCE,
        AdaptiveCalibrationError,
        AverageCalibrationError,
        BrierScore,
        ClasswiseAdaptiveCalibrationError,
        ClasswiseCalibrationError,
        ConfidenceGap,
        CorrectnessAUROC,
        DebiasedCalibrationError,
        ExcessAURC,
        ExpectedCalibrationError,
        KDECalibrationError,
        KSError,
        MaximumCalibrationError,
        NegativeLogLikelihood,
        OverconfidenceError,
        RootMeanSquaredCalibrationError,
        SweepCalibrationError,
        ThresholdedAdaptiveCalibrationError,
        UnderconfidenceError,
    )

__all__ = [
    "AURC",
    "DEFAULT_BINS",
    "MMCE",
    "AdaptiveCalibrationError",
    "AverageCalibrationError",
    "BetaCalibrator",
    "BrierScore",
    "CalibratedModel",
    "CalibrationReport",
    "ClasswiseAdaptiveCalibrationError",
    "ClasswiseCalibrationError",
    "ConfidenceGap",
    "CorrectnessAUROC",
    "CorrectnessAwareCalibrator",
    "DebiasedCalibrationError",
    "ExcessAURC",
    "ExpectedCalibrationError",
    "HistogramCalibrator",
    "IsotonicCalibrator",
    "KDECalibrationError",
    "KSError",
    "MatrixScaler",
    "MaximumCalibrationError",
    "MixupLoss",
    "NegativeLogLikelihood",
    "OverconfidenceError",
    "OverlappingClusters",
    "OverlappingGaussians",
    "PlattCalibrator",
    "ReliabilityCurve",
    "RootMeanSquaredCalibrationError",
    "SelectiveCurve",
    "SweepCalibrationError",
    "TemperatureScaler",
    "ThresholdedAdaptiveCalibrationError",
    "UnderconfidenceError",
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
    "mixup",
    "mixup_batch",
    "mmce",
    "negative_log_likelihood",
    "ood_auroc",
    "optimal_temperature",
    "overconfidence_error",
    "paired_label_noise",
    "reliability_curve",
    "reliability_diagram",
    "root_mean_squared_calibration_error",
    "selective_prediction_curve",
    "sweep_calibration_error",
    "thresholded_adaptive_calibration_error",
    "underconfidence_error",
    "view_features",
]


def __getattr__(name: str) -> Any:
    """Import the metrics when one is used, since they need torchmetrics."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        metrics = importlib.import_module("trueup.calibration._metrics")
    except ImportError as error:
        raise ImportError(f"{name} needs torchmetrics: pip install 'trueup[metrics]'") from error
    return getattr(metrics, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
