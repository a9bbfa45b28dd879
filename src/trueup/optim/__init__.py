"""Optimizers, gradient transforms and large-batch recipes, used like their counterparts in `torch.optim`."""

from trueup.optim._adamp import AdamP
from trueup.optim._adaptive_gradient_norm import AdaGN
from trueup.optim._adaptive_spike_aware_clipping import AdaClip
from trueup.optim._large_batch import (
    DistanceFromInit,
    adapt_regime,
    ghost_accumulate,
    multiplicative_noise,
    scale_lr,
)
from trueup.optim._large_step_descent import large_step_descent, worst_case_problem
from trueup.optim._momentum_reset import MomentumReset
from trueup.optim._normalized_gd import (
    NormalizedGD,
    misclassification_weights,
    normalized_logistic_loss,
)
from trueup.optim._projection import project_radial
from trueup.optim._sam import SAM
from trueup.optim._sgdp import SGDP
from trueup.optim._spam import SPAM
from trueup.optim._stable_spam import StableSPAM

__all__ = [
    "SAM",
    "SGDP",
    "SPAM",
    "AdaClip",
    "AdaGN",
    "AdamP",
    "DistanceFromInit",
    "MomentumReset",
    "NormalizedGD",
    "StableSPAM",
    "adapt_regime",
    "ghost_accumulate",
    "large_step_descent",
    "misclassification_weights",
    "multiplicative_noise",
    "normalized_logistic_loss",
    "project_radial",
    "scale_lr",
    "worst_case_problem",
]
