"""Input dtypes and empty inputs in all layers for `(N, C, ...)`; their errors are tested with each layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from trueup._numerics.upcasting import upcast_parameters
from trueup.nn import (
    BatchChannelNorm2d,
    EstimatedBatchNorm2d,
    EvoNorm2dB0,
    EvoNorm2dB1,
    EvoNorm2dS0,
    EvoNorm2dS1,
    GhostBatchNorm2d,
)
from trueup.nn._validation import empty_result

LAYERS = {
    "ghost": partial(GhostBatchNorm2d, 4, ghost_batch_size=2),
    "batch-channel": partial(BatchChannelNorm2d, 4, num_groups=2),
    "batch-channel, one per channel": partial(BatchChannelNorm2d, 4, num_groups=2, channel_affine="channel"),
    "batch-channel, estimated": partial(BatchChannelNorm2d, 4, num_groups=2, estimate=True),
    "estimated": partial(EstimatedBatchNorm2d, 4),
    "B0": partial(EvoNorm2dB0, 4),
    "B1": partial(EvoNorm2dB1, 4),
    "S0": partial(EvoNorm2dS0, 4, groups=2),
    "S1, any activation": partial(EvoNorm2dS1, 4, groups=2, act_layer=nn.GELU),
    "S1, without activation": partial(EvoNorm2dS1, 4, groups=2, apply_act=False),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("of_input", DTYPES)
@pytest.mark.parametrize("of_layer", DTYPES)
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_input_and_layer_may_differ_in_dtype(
    build: Callable[[], nn.Module], of_layer: torch.dtype, of_input: torch.dtype, training: bool
) -> None:
    """Results have the input's dtype and gradients their parameter's, exact to the coarser of the two."""
    torch.manual_seed(0)
    layer = build().to(of_layer).train(training)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    exact = copy.deepcopy(layer).double()
    x, direction = (torch.randn(2, 5, 4, 4, 3) * 2 + 0.5).to(of_input)

    def step(layer: nn.Module, x: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(direction.to(y.dtype))
        return [y, leaf.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]

    found = step(layer, x)
    own = [of_input] * 2 + [t.dtype for t in (*layer.parameters(), *layer.buffers())]
    assert [t.dtype for t in found] == own
    eps = max(torch.finfo(dtype).eps for dtype in (of_layer, of_input))
    for got, want in zip(found, step(exact, x.double()), strict=True):
        # Float32 arithmetic loses a few more digits.
        assert (got.double() - want).abs().max() <= (4 * eps + (1e-5 if eps > 1e-9 else 0)) * want.abs().max()


@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_input_must_be_floating_point(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"needs a floating point input; got torch\."):
        build()(torch.ones(2, 4, 3, 3).to(dtype))


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_a_layer_from_the_meta_device_resets_itself(build: Callable[..., nn.Module]) -> None:
    layer = build(device="meta").to_empty(device="cpu")
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.detach().fill_(7)
    layer.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), build().state_dict(), rtol=0, atol=0)


def test_parameters_are_upcast_to_the_inputs_dtype_and_float32_at_least() -> None:
    weight, half = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float16)
    for of_input, expected in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        found = upcast_parameters(torch.ones(3, dtype=of_input), weight, None, half)
        assert found[1] is None
        assert found[0].dtype == found[2].dtype == expected


def test_an_empty_result_is_new_and_reaches_every_parameter() -> None:
    x, p = torch.empty(0, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    for parameters in ((p, None), (None, None)):
        y = empty_result(x, *parameters)
        assert y is not x
        y.add_(1).sum().backward()
    assert torch.equal(p.grad, torch.zeros(3))
