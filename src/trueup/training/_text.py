"""Language modeling on one long text: split it, cut windows, score the next symbol."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def split_text(
    text: Int[Tensor, " symbols"], rng: np.random.Generator, *, tuning: bool
) -> tuple[Int[Tensor, " fit"], Int[Tensor, " held_out"]]:
    """Split a text into a part to fit on and a tenth to evaluate on.

    Of ten equal parts, `rng` draws one for the test and one for validation. When `tuning`, the model fits
    on the other eight and is evaluated on the validation part, so that it never sees the test part. Otherwise
    it fits on nine parts and is evaluated on the test part.

    >>> fit, held_out = split_text(torch.arange(100), np.random.default_rng(0), tuning=True)
    >>> len(fit), len(held_out)
    (80, 10)
    """
    *others, validation, test = rng.permutation(10)
    tenths = text.tensor_split(10)
    fit = torch.cat([tenths[i] for i in sorted(others if tuning else (*others, validation))])
    return fit, tenths[validation if tuning else test]


def windows(
    text: Int[Tensor, " symbols"], starts: Int[Tensor, " batch"], block: int
) -> tuple[Int[Tensor, "batch block"], Int[Tensor, "batch block"]]:
    """Cut windows of `block` symbols from each start; return them and the symbol after each position.

    >>> windows(torch.arange(10), torch.tensor([0, 6]), 3)
    (tensor([[0, 1, 2],
            [6, 7, 8]]), tensor([[1, 2, 3],
            [7, 8, 9]]))
    """
    chosen = text[starts.unsqueeze(1) + torch.arange(block + 1)]
    return chosen[:, :-1], chosen[:, 1:]


def random_windows(
    text: Int[Tensor, " symbols"], block: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Int[Tensor, "batch block"], Int[Tensor, "batch block"]]]:
    """Yield one batch of windows per step, with starts drawn by `generator`.

    >>> batches = list(random_windows(torch.arange(100), 5, 2, 3, torch.Generator().manual_seed(0)))
    >>> len(batches), batches[0][0].shape
    (3, torch.Size([2, 5]))
    """
    starts = torch.randint(len(text) - block, (steps, batch_size), generator=generator)
    return (windows(text, row, block) for row in starts)


def even_windows(
    text: Int[Tensor, " symbols"], block: int, count: int
) -> tuple[Int[Tensor, "count block"], Int[Tensor, "count block"]]:
    """Cut `count` windows, spread evenly over the text, to evaluate a model on.

    >>> even_windows(torch.arange(100), 3, 2)[0]
    tensor([[ 0,  1,  2],
            [96, 97, 98]])
    """
    return windows(text, torch.linspace(0, len(text) - block - 1, count).long(), block)


def next_symbol_loss(
    logits: Float[Tensor, "batch block vocabulary"], targets: Int[Tensor, "batch block"]
) -> Float[Tensor, ""]:
    """Compute the cross-entropy over all positions of all windows, in nats per symbol."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
