"""A recurrent net that reads a sequence and classifies it."""

from __future__ import annotations

from torch import Tensor, nn


class SequenceClassifier(nn.Module):
    """The last output of a recurrent layer, classified by a linear layer.

    Args:
        recurrent: built with ``batch_first=True``, like `torch.nn.LSTM`: returns the outputs, then the state.
        hidden_size: of its outputs.

    >>> import torch
    >>> net = SequenceClassifier(nn.LSTM(2, 8, batch_first=True), 8, classes=10)
    >>> net(torch.zeros(5, 32, 2)).shape
    torch.Size([5, 10])
    """

    def __init__(self, recurrent: nn.Module, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.classify = nn.Linear(hidden_size, classes)

    def forward(self, input: Tensor) -> Tensor:
        outputs, _ = self.recurrent(input)
        logits: Tensor = self.classify(outputs[:, -1])
        return logits
