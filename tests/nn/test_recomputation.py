"""Activation checkpointing's second forward pass is told from the first."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trueup.nn.recomputation import recomputing


class Witness(nn.Module):
    """Notes, at every forward pass, whether it is a recomputation."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(recomputing())
        return x.sin()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_the_second_pass_is_a_recomputation(use_reentrant):
    layer, x = Witness(), torch.ones(3, requires_grad=True)
    for _ in range(2):
        checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
    assert layer.seen == [False, True] * 2


def test_plain_passes_are_not():
    layer, x = Witness(), torch.ones(3, requires_grad=True)
    layer(x).sum().backward()
    with torch.no_grad():
        layer(x)
    assert layer.seen == [False, False]


def test_compiles_as_one_graph():
    layer = torch.compile(Witness(), fullgraph=True, backend="eager")
    torch.testing.assert_close(layer(torch.ones(3)), torch.ones(3).sin())
