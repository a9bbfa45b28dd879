"""TENT: adapt to each test batch by its statistics, and by steps that make predictions more certain.

Problem: a trained network meets shifted test data, without labels and without its training data. Idea: errors
come with uncertain predictions. Normalize by the statistics of the test batch, and after each batch train the
scales and shifts of the norm layers on the entropy of the predictions p:

    loss = mean_b -sum_c p_bc log p_bc

Wang, Shelhamer, Liu, Olshausen, Darrell: Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021,
arXiv 2006.10726. Unlike the official code this one trains the scales and shifts of all norm layers, so that it
also adapts models without batch norm, such as transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trueup.adaptation._core import prediction_rows
from trueup.adaptation._online_adapter import OnlineAdapter

__all__ = ["entropy_loss", "tent"]


# ---- the equation ----


def entropy_loss(logits: Float[Tensor, "batch classes *positions"]) -> Float[Tensor, ""]:
    """Return the mean entropy of the predictions, in nats, in [0, log C].

    Args:
        logits: `(N, C)`, or `(N, C, *positions)`, whose positions count as samples. -inf is probability 0.

    Returns:
        A scalar in float32 or better. NaN in, NaN out.

    Raises:
        TypeError: not floating point.
        ValueError: fewer than two dimensions or classes, or no samples.

    Source: Wang et al. 2021 (arXiv 2006.10726), section 3.1.

    >>> entropy_loss(torch.zeros(2, 4))  # log 4
    tensor(1.3863)
    """
    log_probs = prediction_rows("entropy_loss", logits).log_softmax(1)
    # 0 log 0 = 0, and not 0 times infinity
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(1).mean()
