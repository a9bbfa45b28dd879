"""Golden cases of partial correlations of compositions."""

from __future__ import annotations

import numpy as np
import torch

from trueup.estimators import CompositionalPartialCorrelation, alr, clr, variation_matrix
from trueup.estimators import _compositions as compositions


def partial_correlation(case):
    X = torch.from_numpy(np.asarray(case.inputs["X"], dtype=np.float64))
    model = CompositionalPartialCorrelation().fit(X.numpy())
    parts = X.shape[1]
    correlation = model.partial_correlation_
    # The ordinary formula, from the alr covariance with the last part as reference.
    ordinary = np.linalg.inv(np.cov(alr(X).numpy(), rowvar=False))
    scale = np.sqrt(ordinary.diagonal())
    alr_correlation = -ordinary / np.outer(scale, scale)
    np.fill_diagonal(alr_correlation, 1.0)
    return {
        "out.clr": clr(X),
        "out.cov": model.covariance_,
        "out.pinv_cov": model.precision_,
        "out.pcor_clr": correlation,
        "out.partial_corr": compositions.partial_correlation(X),
        "out.pcor_alr": alr_correlation,
        "out.partial_var": model.partial_variance_,
        "out.variation_matrix": variation_matrix(X),
        "out.multiple_R2": np.stack([model.multiple_r2(reference) for reference in range(parts)], axis=1),
    }


def shrinkage(case):
    X = torch.from_numpy(np.asarray(case.inputs["X"], dtype=np.float64))
    proportions = X / X.sum(1, keepdim=True)
    clr_covariance, clr_intensities = compositions.shrunk_covariance(clr(X))
    log_covariance, log_intensities = compositions.shrunk_covariance(proportions.log())
    model = CompositionalPartialCorrelation(shrinkage="basis").fit(X.numpy())
    return {
        "out.covshrink_clr": clr_covariance,
        "out.covshrink_lambda": clr_intensities,
        "out.covshrink_logP": log_covariance,
        "out.covshrink_logP_lambda": log_intensities,
        "out.bshrink_clr": model.partial_correlation_,
        "out.bshrink_lambda": model.shrinkage_[:1],
    }


KINDS = {"partial_correlation": partial_correlation, "shrinkage": shrinkage}
