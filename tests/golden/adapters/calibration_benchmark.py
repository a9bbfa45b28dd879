"""Measures of calibration against independent implementations of their definitions."""

from __future__ import annotations

import numpy as np

from golden.reference import Case
from trueup import calibration
from trueup.calibration._predictions import Predictions


def multiclass(case: Case) -> dict[str, object]:
    """Compute every measure of one table, with every number of bins."""
    given = case.inputs["probs"], case.inputs["labels"]
    binned = {
        "ece": calibration.expected_calibration_error,
        "mce": calibration.maximum_calibration_error,
        "rmsce": calibration.root_mean_squared_calibration_error,
        "ace_uniform_bins": calibration.average_calibration_error,
        "oe": calibration.overconfidence_error,
        "ue": calibration.underconfidence_error,
        "cwce_closed": calibration.classwise_calibration_error,
        "ece_em": calibration.adaptive_calibration_error,
        "ece_l2_debiased": calibration.debiased_calibration_error,
    }
    returned: dict[str, object] = {}
    for n_bins in map(int, np.atleast_1d(case.hyper["n_bins"])):
        returned |= {f"out.{name}_{n_bins}": f(*given, n_bins=n_bins) for name, f in binned.items()}
        returned[f"out.cwce_em_{n_bins}"] = calibration.classwise_calibration_error(
            *given, n_bins=n_bins, binning="quantile"
        )
    top = Predictions(*given).top
    return returned | {
        "out.ece_sweep_em": calibration.sweep_calibration_error(*given),
        "out.sweep_n_bins": top.sweep_n_bins(),
        "out.ks": calibration.ks_error(*given),
        "out.mmce": calibration.mmce(*given),
        "out.nll": calibration.negative_log_likelihood(*given),
        "out.brier_sum": calibration.brier_score(*given),
        "out.brier_mean_over_classes": calibration.brier_score(*given, reduction="mean"),
        "out.brier_top1": calibration.brier_score(*given, reduction="top"),
        "out.auroc_correctness": calibration.correctness_auroc(*given),
        "out.accuracy": top.accuracy,
        "out.mean_confidence": top.mean_confidence,
        "out.signed_gap": calibration.confidence_gap(*given),
    }


def positive_class(case: Case) -> dict[str, object]:
    """Compute the error of the probability of class 1."""
    given = case.inputs["p1"], case.inputs["labels"]
    return {
        f"out.ece_positive_class_{n}": calibration.calibration_error(*given, n_bins=n, level="positive")
        for n in map(int, np.atleast_1d(case.hyper["n_bins"]))
    }


def kde_ece(case: Case) -> dict[str, object]:
    """Compute the error of kernel density estimates."""
    probs, labels = case.inputs["probs"], case.inputs["labels"]
    return {"out.kde_ece": calibration.kde_calibration_error(probs, labels, variant="official")}


def metrics(case: Case) -> dict[str, object]:
    """Compute the measures of uncalibrated logits; a kind of `correctness-aware-calibration`."""
    given = case.inputs["logits"], case.inputs["labels"]
    n_bins = int(case.hyper["n_bins"])
    return {
        "out.metric_ece": calibration.expected_calibration_error(*given, n_bins=n_bins, from_logits=True),
        "out.metric_bs": calibration.brier_score(*given, reduction="top", from_logits=True),
        "out.metric_sce": calibration.classwise_calibration_error(*given, n_bins=n_bins, from_logits=True),
        "out.metric_ks": calibration.ks_error(*given, from_logits=True),
        "out.metric_auc": calibration.correctness_auroc(*given, from_logits=True),
    }


KINDS = {"multiclass": multiclass, "positive_class": positive_class, "kde_ece": kde_ece}
