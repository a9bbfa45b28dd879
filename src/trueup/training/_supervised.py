"""Plain supervised training: shuffled mini-batches, one gradient step per batch, one record per update.

The procedure builds no loader, picks no device and logs nothing; the caller drives it. It does nothing that
your own loop would not do: it exists so that every arm of a study is trained by the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Update:
    """The record of one gradient step.

    Attributes:
        step: number of the step, from 1.
        loss: before the step.
        grad_norm: global norm of the gradient before clipping.
    """

    step: int
    loss: float
    grad_norm: float


def minibatches(
    n: int, batch_size: int, epochs: int, generator: torch.Generator
) -> Iterator[Int[Tensor, " batch"]]:
    """Yield the row indices of shuffled mini-batches; drop the last, smaller batch of an epoch.

    Args:
        n: number of rows.
        batch_size: rows per batch, at most `n`.
        epochs: passes over the rows.
        generator: draws the order; the same generator state gives the same batches.

    Raises:
        ValueError: if `batch_size` is not between 1 and `n`.

    >>> sorted(torch.cat(list(minibatches(4, 2, 1, torch.Generator().manual_seed(0)))).tolist())
    [0, 1, 2, 3]
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must be between 1 and the {n} rows, got {batch_size}")
    for _ in range(epochs):
        order = torch.randperm(n, generator=generator)
        yield from order[: n - n % batch_size].split(batch_size)


def warmup_cosine(
    optimizer: torch.optim.Optimizer, steps: int, *, warmup: float = 0.1, last: float = 0.1
) -> torch.optim.lr_scheduler.LambdaLR:
    """Raise the learning rate linearly, then lower it along half a cosine, as is usual for language models.

    Args:
        steps: total number of updates.
        warmup: fraction of the updates in which the rate rises.
        last: final rate as a fraction of the peak.

    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    >>> schedule, rates = warmup_cosine(optimizer, 20), []
    >>> for _ in range(20):
    ...     rates.append(round(schedule.get_last_lr()[0], 2))
    ...     optimizer.step()
    ...     schedule.step()
    >>> rates[:3], rates[-1]
    ([0.5, 1.0, 1.0], 0.11)
    """
    rise = max(round(warmup * steps), 1)

    def factor(t: int) -> float:
        if t < rise:
            return (t + 1) / rise
        return last + (1 - last) * (1 + math.cos(math.pi * (t - rise) / max(steps - rise, 1))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    max_norm: float = float("inf"),
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Iterator[Update]:
    """Train a model in place, lazily; yield one record per update.

    Training stops when the caller stops iterating.

    Args:
        model: switched to training mode.
        batches: pairs `(inputs, targets)`.
        loss: called as `loss(model(inputs), targets)`.
        max_norm: limit to which the global gradient norm is clipped.
        scheduler: stepped after every update.

    >>> net, x, y = nn.Linear(2, 2), torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    >>> [u.step for u in train(net, [(x, y)] * 3, torch.optim.SGD(net.parameters(), 0.1))]
    [1, 2, 3]
    """
    model.train()
    for step, (inputs, targets) in enumerate(batches, start=1):
        optimizer.zero_grad(set_to_none=True)
        value = loss(model(inputs), targets)
        value.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        yield Update(step, float(value.detach()), float(norm))


@torch.no_grad()
def evaluate(
    model: nn.Module, inputs: Tensor, targets: Int[Tensor, " n"], *, batch_size: int = 1024
) -> dict[str, float]:
    """Compute accuracy, in [0, 1], and mean negative log likelihood, in nats.

    The model is evaluated in evaluation mode, then returned to its mode.

    >>> logits, targets = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
    >>> evaluate(nn.Identity(), logits, targets)["accuracy"]
    0.5
    """
    was_training = model.training
    model.eval()
    logits: Float[Tensor, "n classes"] = torch.cat([model(part) for part in inputs.split(batch_size)]).float()
    model.train(was_training)
    return {
        "accuracy": float((logits.argmax(1) == targets).float().mean()),
        "nll": float(nn.functional.cross_entropy(logits, targets)),
    }
