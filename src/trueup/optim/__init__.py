"""Optimizers and what large batches ask of them; each name is used as its counterpart in `torch.optim`."""

from trueup.optim.adamp import AdamP
from trueup.optim.radial import project_radial
from trueup.optim.sgdp import SGDP

__all__ = ["SGDP", "AdamP", "project_radial"]
