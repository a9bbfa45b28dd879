"""Optimizers and what large batches ask of them; each name is used as its counterpart in `torch.optim`."""

from trueup.optim.adamp import AdamP
from trueup.optim.large_batch import (
    DistanceFromInit,
    adapt_regime,
    ghost_accumulate,
    multiplicative_noise,
    scale_lr,
)
from trueup.optim.radial import project_radial
from trueup.optim.sam import SAM
from trueup.optim.sgdp import SGDP

__all__ = [
    "SAM",
    "SGDP",
    "AdamP",
    "DistanceFromInit",
    "adapt_regime",
    "ghost_accumulate",
    "multiplicative_noise",
    "project_radial",
    "scale_lr",
]
