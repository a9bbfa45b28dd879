"""Optimizers and what large batches ask of them; each name is used as its counterpart in `torch.optim`."""

from trueup.optim.adamp import AdamP
from trueup.optim.gradient_transforms import AdaClip, AdaGN, MomentumReset
from trueup.optim.large_batch import (
    DistanceFromInit,
    adapt_regime,
    ghost_accumulate,
    multiplicative_noise,
    scale_lr,
)
from trueup.optim.large_step_descent import large_step_descent, worst_case_problem
from trueup.optim.normalized_gd import (
    NormalizedGD,
    misclassification_weights,
    normalized_logistic_loss,
)
from trueup.optim.radial import project_radial
from trueup.optim.sam import SAM
from trueup.optim.sgdp import SGDP
from trueup.optim.spam import SPAM
from trueup.optim.stable_spam import StableSPAM

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
