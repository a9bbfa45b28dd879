"""Mixup of two or more samples, as a training loss and as a batch transform.

The problem: where classes overlap, a network that interpolates its training labels is over-confident, and
one temperature for all inputs cannot repair it without harm where the classes are apart. The idea: train on
convex combinations of samples and of their labels, which constrains the predictions between and around the
training points. For a batch (x, y), weights w ~ Dirichlet(alpha, ..., alpha) of length d and independent
random permutations p_1, ..., p_{d-1} of the batch, with p_0 the identity:

    x~ = sum_i w_i x[p_i]
    loss = sum_i w_i mean CE(f(x~), y[p_i]) = mean CE(f(x~), sum_i w_i onehot(y[p_i]))

d = 2 is Mixup (Zhang, Cisse, Dauphin, Lopez-Paz 2018, arXiv 1710.09412), larger d the d-Mixup of
M. Chidambaram, R. Ge, On the Limitations of Temperature Scaling for Distributions with Overlaps, 2024,
arXiv 2306.00740.

As in the official code (2014mchidamb/temp-scaling-limitations), a batch has one draw of weights, and a
permutation may keep a sample in place. Departures: one cross-entropy with soft targets takes the place of d,
which is the same number; `per_sample=True` draws weights for every sample, which the official code cannot do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from trueup._numerics.upcasting import upcast_dtype
from trueup.calibration._validation import check_target
from trueup.nn._validation import check_int

__all__ = ["MixupLoss", "mixup", "mixup_batch"]

# ---- the equation ----


def mixup(
    x: Float[Tensor, "batch ..."],
    soft_targets: Float[Tensor, "batch ..."],
    weights: Float[Tensor, " mix_size"] | Float[Tensor, "mix_size batch"],
    perms: Int[Tensor, "others batch"],
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]:
    """Mix the samples and the targets of a batch with given weights and permutations.

    Args:
        x: samples.
        soft_targets: one distribution over classes per sample, one-hot for hard labels.
        weights: `weights[0]` belongs to the batch itself and `weights[i]` to `perms[i - 1]`; one set of
            weights for the batch, or one column per sample. They sum to 1 over the first dimension.
        perms: permutations of the rows, one fewer than weights.

    Returns:
        the mixed samples and the mixed targets, each in its own dtype; half types are mixed in float32.

    Raises:
        TypeError: samples or targets are not floating point.
        ValueError: the numbers of samples, targets, weights and permutations do not fit.

    Source: the generalised Mixup loss of the official code of Chidambaram, Ge 2024.

    >>> x, targets = torch.tensor([[0.0], [1.0]]), torch.eye(2)
    >>> mixed, soft_targets = mixup(x, targets, torch.tensor([0.75, 0.25]), torch.tensor([[1, 0]]))
    >>> mixed.tolist(), soft_targets.tolist()
    ([[0.25], [0.75]], [[0.75, 0.25], [0.25, 0.75]])
    """
    _check_mixture(x, soft_targets, weights, perms)
    return _mix(x, weights, perms), _mix(soft_targets, weights, perms)


def _mix(values: Tensor, weights: Tensor, perms: Tensor) -> Tensor:
    w = weights.to(upcast_dtype(values.dtype)).view(len(weights), -1, *[1] * (values.dim() - 1))
    mixed = w[0] * values
    for w_i, perm in zip(w[1:], perms, strict=True):
        mixed = torch.addcmul(mixed, w_i, values[perm])
    return mixed.to(values.dtype)


# ---- the random draw, the loss and the transform ----


def mixup_batch(
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, "batch ..."],
    num_classes: int,
    *,
    alpha: float = 1.0,
    mix_size: int = 2,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch classes ..."]]:
    """Mix a batch at random; the result fits any loss that takes soft targets, such as `nn.CrossEntropyLoss`.

    Args:
        x: samples, floating point.
        y: class labels in `[0, num_classes)`, one per sample or one per position of a segmentation map.
        num_classes: number of classes.
        alpha: parameter of the Dirichlet distribution of the weights, > 0; 1 is uniform, and a small
            one leaves one sample of each mixture nearly alone.
        mix_size: number of samples in a mixture, >= 1; 1 mixes nothing.
        per_sample: draw weights for every sample rather than once for the batch.
        generator: source of the draw; by default torch's global one.

    Returns:
        mixed samples `(batch, ...)` and soft targets `(batch, num_classes, *positions)`, both in the
        dtype of `x`.

    Raises:
        TypeError: samples are not floating point, or labels are not integers.
        ValueError: empty batch, labels out of range, another number of labels than samples, alpha not > 0,
            mix_size < 1.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x, soft_targets = mixup_batch(torch.randn(8, 3), torch.arange(8) % 2, 2, generator=generator)
    >>> x.shape, soft_targets.shape, bool((soft_targets.sum(1) - 1).abs().max() < 1e-6)
    (torch.Size([8, 3]), torch.Size([8, 2]), True)
    """
    check_int("num_classes", num_classes, 1)
    _check_hyperparameters(alpha, mix_size)
    _check_batch(x, y)
    check_target(y, (len(y), num_classes, *y.shape[1:]), num_classes)
    weights, perms = _draw(x, alpha, mix_size, per_sample, generator)
    return mixup(x, _one_hot(y, num_classes, x.dtype), weights, perms)


class MixupLoss(nn.Module):
    """Compute the training loss of a model on a mixture of the batch.

    In evaluation mode (`loss.eval()`) nothing is mixed. Batch norms of the model see mixed samples only.
    Under `DistributedDataParallel` every process mixes its own part of the batch.

    Args:
        criterion: `"cross_entropy"`, or a function `criterion(logits, soft_targets)` that returns the
            loss, such as `nn.CrossEntropyLoss(label_smoothing=0.1)`.
        alpha, mix_size, per_sample, generator: as in `mixup_batch`.

    Shape: `loss(model, x, y)` calls the model with `x` `(batch, ...)` and needs logits `(batch, classes,
    *positions)` for labels `y` `(batch, *positions)`; the loss is a scalar.

    Raises:
        TypeError: samples are not floating point, or labels are not integers.
        ValueError: empty batch, another number of labels than samples, alpha not > 0, mix_size < 1, logits
            of a shape that does not fit the labels.

    Source: Chidambaram, Ge 2024; the defaults are those of its experiments on images.

    >>> model, loss = nn.Linear(3, 2), MixupLoss(alpha=1.0, generator=torch.Generator().manual_seed(0))
    >>> value = loss(model, torch.randn(8, 3), torch.arange(8) % 2)
    >>> value.backward()
    """

    def __init__(
        self,
        criterion: Literal["cross_entropy"] | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        *,
        alpha: float = 1.0,
        mix_size: int = 2,
        per_sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if criterion != "cross_entropy" and not callable(criterion):
            raise ValueError(
                f'criterion must be "cross_entropy" or a function (logits, soft_targets); got {criterion!r}'
            )
        _check_hyperparameters(alpha, mix_size)
        self.criterion = F.cross_entropy if criterion == "cross_entropy" else criterion
        self.alpha = alpha
        self.mix_size = mix_size
        self.per_sample = per_sample
        self.generator = generator

    def forward(
        self,
        model: Callable[[Tensor], Tensor],
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, "batch ..."],
    ) -> Float[Tensor, ""]:
        """Return the loss of `model` on the mixed batch."""
        _check_batch(x, y)
        mix_size = self.mix_size if self.training else 1
        weights, perms = _draw(x, self.alpha, mix_size, self.per_sample, self.generator)
        logits = model(_mix(x, weights, perms))
        if logits.dim() < 2 or logits.shape[:1] + logits.shape[2:] != y.shape:
            raise ValueError(
                f"for labels of shape {tuple(y.shape)} the model must return (batch, classes, *positions); "
                f"got {tuple(logits.shape)}: move the classes to dimension 1"
            )
        targets = _one_hot(y, logits.shape[1], logits.dtype)
        return self.criterion(logits, _mix(targets, weights, perms))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, mix_size={self.mix_size}, per_sample={self.per_sample}"


def _draw(
    x: Tensor, alpha: float, mix_size: int, per_sample: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw weights `(mix_size,)` or `(mix_size, batch)`, and permutations `(mix_size - 1, batch)`."""
    if mix_size == 1:  # nothing to draw: a rounded weight would change the samples
        shape = (1, len(x)) if per_sample else (1,)
        no_perms = torch.empty(0, len(x), dtype=torch.long, device=x.device)
        return torch.ones(shape, dtype=upcast_dtype(x.dtype), device=x.device), no_perms
    device = x.device if generator is None else generator.device
    concentration = torch.full((mix_size,), alpha, dtype=upcast_dtype(x.dtype), device=device)
    if per_sample:
        concentration = concentration.expand(len(x), mix_size)
    # torch.distributions.Dirichlet takes no generator; this is the function that it calls.
    weights = torch._sample_dirichlet(concentration, generator).movedim(-1, 0)
    perms = [torch.randperm(len(x), generator=generator, device=device) for _ in range(mix_size - 1)]
    return weights.to(x.device), torch.stack(perms).to(x.device)


def _one_hot(y: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    return F.one_hot(y.long(), num_classes).movedim(-1, 1).to(dtype)


def _check_hyperparameters(alpha: float, mix_size: int) -> None:
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be a finite number > 0; got {alpha}: use 1 for uniform weights")
    check_int("mix_size", mix_size, 1)


def _check_batch(x: Tensor, y: Tensor) -> None:
    _check_floating("x", x)
    if y.is_floating_point() or y.is_complex():
        raise TypeError(f"y must be class labels; got {y.dtype}: convert with .long(), or call mixup()")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"x must hold at least one sample; got shape {tuple(x.shape)}: skip empty batches")
    if y.dim() == 0 or len(y) != len(x):
        raise ValueError(
            f"x and y must have the same number of samples; got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )


def _check_mixture(x: Tensor, soft_targets: Tensor, weights: Tensor, perms: Tensor) -> None:
    _check_floating("x", x)
    _check_floating("soft_targets", soft_targets)
    if len(soft_targets) != len(x):
        raise ValueError(f"{len(x)} samples need as many soft targets; got {len(soft_targets)}")
    if tuple(weights.shape) not in ((len(perms) + 1,), (len(perms) + 1, len(x))):
        raise ValueError(
            f"{len(perms)} permutations of {len(x)} samples need weights ({len(perms) + 1},) or "
            f"({len(perms) + 1}, {len(x)}); got shape {tuple(weights.shape)}"
        )
    if perms.dim() != 2 or perms.shape[1] != len(x):
        raise ValueError(
            f"perms must be (mix_size - 1, {len(x)}), one permutation a row; got shape {tuple(perms.shape)}"
        )


def _check_floating(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {values.dtype}: convert with .float()")
