"""Helpers for autograd Functions: second derivatives, vmap, and when to use composite operations."""

from __future__ import annotations

import torch
from torch import Tensor

from trueup._numerics.custom_function import fold_vmap_dim, must_use_composite_ops, vjp


def test_vjp_is_autograds_gradient_and_can_be_differentiated() -> None:
    x, y, grad = torch.randn(3, 4, dtype=torch.float64).requires_grad_()

    def function(x: Tensor, nothing: None, y: Tensor) -> Tensor:
        assert nothing is None
        return x.sin() * y.square()

    found = vjp(function, grad, x, None, y)
    want = torch.autograd.grad(function(x, None, y), (x, y), grad, create_graph=True)
    assert found[1] is None
    torch.testing.assert_close((found[0], found[2]), want)
    assert torch.autograd.gradcheck(lambda g, x, y: (vjp(function, g, x, None, y)[0],), (grad, x, y))


def test_a_folded_vmap_dimension_means_more_channels() -> None:
    x, weight, bias = torch.randn(2, 3, 2, 5), torch.randn(3), torch.randn(3, 2)
    folded, w, nothing, b = fold_vmap_dim(2, (x, weight, None, bias), (2, None, None, 1))
    assert nothing is None
    torch.testing.assert_close(folded, torch.cat([x[:, :, 0], x[:, :, 1]], 1))
    torch.testing.assert_close(w, torch.cat([weight, weight]))
    torch.testing.assert_close(b, torch.cat([bias[:, 0], bias[:, 1]]))


def test_composite_operations_are_for_forward_mode_and_exported_graphs() -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(must_use_composite_ops())
        return x

    function(torch.ones(2))
    torch.func.grad(lambda x: function(x).sum())(torch.ones(2))
    torch.func.jvp(function, (torch.ones(2),), (torch.ones(2),))
    torch.func.hessian(lambda x: function(x).sum())(torch.ones(2))
    function(torch.ones(2))
    assert seen == [False, False, True, True, False]

    class Asks(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if must_use_composite_ops() else x - 1

    exported = torch.export.export(Asks(), (torch.zeros(2),)).module()
    assert torch.equal(exported(torch.zeros(2)), torch.ones(2))
