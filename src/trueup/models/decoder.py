"""A small language model of characters: a transformer decoder with its norms after the residual sums."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Decoder(nn.Module):
    """Symbols ``(B, T)`` -> logits of the next symbol at each position ``(B, T, vocabulary)``.

    Each layer is ``x = norm(x + attention(x))``, causal, then ``x = norm(x + feed_forward(x))`` with ReLU and
    four times the width: post-norm, as the first transformers. No dropout.

    Args:
        vocabulary: number of symbols.
        block: longest T.
        norm: ``norm(width)`` makes a layer that takes and returns ``(B, T, width)``.

    >>> import torch
    >>> logits = Decoder(256, width=32, depth=2, heads=4, block=16)(torch.zeros(3, 16, dtype=torch.long))
    >>> logits.shape
    torch.Size([3, 16, 256])
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int,
        depth: int,
        heads: int,
        block: int,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.symbols = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(block, width)
        self.layers = nn.Sequential(*(_Layer(width, heads, norm) for _ in range(depth)))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, symbols: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocabulary"]:
        x = self.symbols(symbols) + self.positions.weight[: symbols.shape[1]]
        logits: Tensor = self.head(self.layers(x))
        return logits


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList([norm(width), norm(width)])

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = self.norms[0](x + self.out(attended.transpose(1, 2).flatten(2)))
        normed: Tensor = self.norms[1](x + self.feed_forward(x))
        return normed
