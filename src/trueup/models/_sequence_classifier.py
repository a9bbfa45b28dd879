"""Recurrent nets that read a sequence and classify it."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trueup.nn import LayerNormLSTM


class SequenceClassifier(nn.Module):
    """A linear layer that classifies the last output of a recurrent layer.

    Args:
        recurrent: returns outputs, then the state, and takes `(batch, time, features)`, as `torch.nn.LSTM`
            does with `batch_first=True`.
        hidden_size: features of its outputs.
        classes: number of logits.

    >>> import torch
    >>> net = SequenceClassifier(nn.LSTM(2, 8, batch_first=True), 8, classes=10)
    >>> net(torch.zeros(5, 32, 2)).shape
    torch.Size([5, 10])
    """

    def __init__(self, recurrent: nn.Module, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.classify = nn.Linear(hidden_size, classes)

    def forward(self, input: Float[Tensor, "batch time features"]) -> Float[Tensor, "batch classes"]:
        outputs, _ = self.recurrent(input)
        logits: Tensor = self.classify(outputs[:, -1])
        return logits


def lstm_classifier(
    norm: Literal["layer", "none", "scaled"],
    X: Float[Tensor, "rows time features"],
    hidden_size: int,
    classes: int,
) -> SequenceClassifier:
    """Build an LSTM classifier with or without layer normalization.

    All three kinds start from the same weights, the recurrent ones orthogonal.

    Args:
        norm: `"layer"` normalizes; `"none"` does not; `"scaled"` divides the initial weights once, so
            that on `X` the summed inputs start with the variance that layer norm would keep them at.
        X: sequences to read, on the CPU.

    >>> lstm_classifier("scaled", torch.randn(5, 32, 2), 8, 10)(torch.zeros(5, 32, 2)).shape
    torch.Size([5, 10])
    """
    normalized = LayerNormLSTM(X.shape[-1], hidden_size, batch_first=True)
    net = SequenceClassifier(normalized, hidden_size, classes)
    if norm == "layer":
        return net
    net.recurrent = lstm = nn.LSTM(X.shape[-1], hidden_size, batch_first=True)
    start = {name: torch.zeros_like(value) for name, value in lstm.state_dict().items()}
    for name in ("weight_ih", "weight_hh"):
        start[f"{name}_l0"] = normalized.get_parameter(f"cells.0.{name}").detach()
    lstm.load_state_dict(start)
    if norm == "scaled":
        start["weight_ih_l0"] = start["weight_ih_l0"] / (X @ start["weight_ih_l0"].T).std()
        lstm.load_state_dict(start)
        outputs = lstm(X)[0].detach()
        start["weight_hh_l0"] = start["weight_hh_l0"] / (outputs @ start["weight_hh_l0"].T).std()
        lstm.load_state_dict(start)
    return net
