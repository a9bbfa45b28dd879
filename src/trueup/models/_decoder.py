"""A small language model of characters: a transformer decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Decoder(nn.Module):
    """A causal transformer that predicts the next symbol at each position.

    It maps symbols `(B, T)` to logits `(B, T, vocabulary)`. Each layer is `x = norm(x + attention(x))`,
    then `x = norm(x + feed_forward(x))` with ReLU and four times the width: post-norm, as in the first
    transformers. With `norm_first` it is pre-norm, `x = x + attention(norm(x))` and so on, with one more
    norm before the head. There is no dropout.

    Args:
        vocabulary: number of symbols.
        width: size of the embedding.
        depth: number of layers.
        heads: attention heads per layer; divides `width`.
        block: longest sequence T.
        norm: `norm(width)` makes a layer that takes and returns `(B, T, width)`.
        norm_first: pre-norm instead of post-norm, as in `torch.nn.TransformerEncoderLayer`.

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
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.symbols = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(block, width)
        self.layers = nn.Sequential(*(_Layer(width, heads, norm, norm_first) for _ in range(depth)))
        if norm_first:
            self.layers.append(norm(width))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, symbols: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocabulary"]:
        x = self.symbols(symbols) + self.positions.weight[: symbols.shape[1]]
        logits: Tensor = self.head(self.layers(x))
        return logits


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module], norm_first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm_first = norm_first
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList([norm(width), norm(width)])

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.norms
        if self.norm_first:
            x = x + self.attention(first(x))
            return cast(Tensor, x + self.feed_forward(second(x)))
        x = first(x + self.attention(x))
        return cast(Tensor, second(x + self.feed_forward(x)))

    def attention(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return cast(Tensor, self.out(attended.transpose(1, 2).flatten(2)))
