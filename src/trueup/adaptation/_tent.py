"""TENT: adapt to each test batch by its statistics, and by steps that make predictions more certain.

Problem: a trained network meets shifted test data, without labels and without its training data. Idea: errors
come with uncertain predictions. Normalize by the statistics of the test batch, and after each batch train the
scales and shifts of the norm layers on the entropy of the predictions p:

    loss = mean_b -sum_c p_bc log p_bc

Wang, Shelhamer, Liu, Olshausen, Darrell: Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021,
arXiv 2006.10726. The official code trains the scales and shifts of batch norms only; here those of all norm
layers, so that models without batch norm, such as transformers, can be adapted too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trueup.adaptation._online_adapter import OnlineAdapter, has_batch_norm
from trueup.adaptation._prediction_rows import prediction_rows
from trueup.adaptation._restore import convert_test_batch_norm

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


def tent(
    model: nn.Module,
    *,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1e-3),
    steps: int = 1,
    episodic: bool = False,
) -> OnlineAdapter:
    """Return an adapter of a copy of the model: test-batch normalization, entropy, scales and shifts.

    The model may have layer norms only, as a transformer has. There are no batch statistics then, and
    adaptation is by the steps alone.

    Args:
        model: a trained classifier, with norm layers that have affine parameters.
        optimizer: takes a list of parameters and returns an optimizer. The official runs use Adam with 1e-3
            for CIFAR, and SGD with 2.5e-4 and momentum 0.9 for ImageNet, in batches of 200 and 64.
        steps, episodic: see `OnlineAdapter`.

    Returns:
        `OnlineAdapter(convert_test_batch_norm(model), entropy_loss, optimizer)`. Other layers combine with
        the loss in the same way, such as those of `convert_unmix_tns(model)`. `adapter.reset()` gives back
        the values of the source, and `restore(adapter)` the source model.

    Raises:
        ValueError: the model has no norm layer with affine parameters; `steps` is less than 1.

    Source: Wang et al. 2021 (arXiv 2006.10726), section 3.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(10))
    >>> _ = model(torch.rand(2, 3, 8, 8))
    >>> adapter = tent(model)
    >>> adapter(torch.rand(16, 3, 8, 8)).shape
    torch.Size([16, 10])
    """
    converted = convert_test_batch_norm(model) if has_batch_norm(model) else copy.deepcopy(model)
    return OnlineAdapter(converted, entropy_loss, optimizer, steps=steps, episodic=episodic)
