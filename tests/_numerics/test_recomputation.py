"""Activation checkpointing's second forward pass is distinguished from the first."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trueup._numerics.recomputation import is_recomputing, snapshot


class Witness(nn.Module):
    """Record at every forward pass whether it is a recomputation."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(is_recomputing())
        return x.sin()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_the_second_pass_is_a_recomputation(use_reentrant):
    layer, x = Witness(), torch.ones(3, requires_grad=True)
    for _ in range(2):
        checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
    assert layer.seen == [False, True] * 2


def test_other_passes_are_not():
    layer, x = Witness(), torch.ones(3, requires_grad=True)
    layer(x).sum().backward()
    with torch.no_grad():
        layer(x)
    assert layer.seen == [False, False]


def test_compiles_as_one_graph():
    layer = torch.compile(Witness(), fullgraph=True, backend="eager")
    torch.testing.assert_close(layer(torch.ones(3)), torch.ones(3).sin())


class Running(nn.Module):
    """Multiply by a buffer, then update it: the gradient is the buffer before the update."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x):
        y = x * (snapshot(self.scale) + 1).sin()
        self.scale.add_(1)
        return y


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_a_backward_pass_sees_a_buffer_before_its_update(backend):
    layer = Running() if backend is None else torch.compile(Running(), fullgraph=True, backend=backend)
    for step in range(3):
        x = torch.ones(3, requires_grad=True)
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, torch.full((3,), step + 2.0).sin())


def test_the_private_operation_is_not_exported():
    exported = torch.export.export(Running(), (torch.ones(3),))
    assert "trueup" not in str(exported.graph)
