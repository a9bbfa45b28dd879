"""Batch-channel normalisation and weight standardisation against the official classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from golden.reference import Case
from trueup.nn import BatchChannelNorm1d, BatchChannelNorm2d, WeightStandardization, parametrize_weights

LAYERS = {2: BatchChannelNorm1d, 3: BatchChannelNorm1d, 4: BatchChannelNorm2d}
CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def bcn(case: Case) -> dict[str, object]:
    """Run training steps of the layer, then evaluation."""
    inputs, params, hyper = tensors(case.inputs), tensors(case.params), case.hyper
    x = inputs["x_eval"]
    norm = LAYERS[x.dim()](
        hyper["num_channels"],
        hyper["eps"],
        hyper.get("bn_momentum", 0.1),
        num_groups=hyper["num_groups"],
        estimate=bool(hyper["estimate"]),
        moving_speed=hyper["moving_speed"],
        channel_affine=hyper["channel_affine"],
        batch_eps=hyper["bn_eps"],
        dtype=x.dtype,
    )
    # The reference has no counter of batches.
    norm.load_state_dict(params | {"bn.num_batches_tracked": torch.tensor(0)})
    returned: dict[str, object] = {}
    for t in range(hyper["steps"]):
        x = inputs[f"x{t}"].requires_grad_()
        norm.zero_grad()
        y = norm(x)
        y.backward(inputs[f"gy{t}"])
        returned |= {f"out.y{t}": y, f"grad.x{t}": x.grad}
        returned |= {f"grad.{name}{t}": p.grad.clone() for name, p in norm.named_parameters()}
        returned |= {f"out.{name}{t}": buffer.clone() for name, buffer in norm.named_buffers()}
    norm.eval()
    returned["out.y_eval"] = norm(inputs["x_eval"])
    return returned


def ws_conv(case: Case) -> dict[str, object]:
    """Run a convolution whose weight is standardised."""
    inputs, params, hyper = tensors(case.inputs), tensors(case.params), case.hyper
    x, weight = inputs["x"].requires_grad_(), params["weight"]
    conv = CONVS[x.dim()](
        x.shape[1],
        len(weight),
        tuple(weight.shape[2:]),
        hyper["stride"],
        hyper["padding"],
        groups=hyper["groups"],
        dtype=x.dtype,
    )
    conv.load_state_dict(params)
    conv = parametrize_weights(
        conv,
        WeightStandardization,
        eps=hyper["eps"],
        unbiased=bool(hyper["unbiased"]),
        eps_inside=bool(hyper["eps_inside"]),
    )
    y = conv(x)
    y.backward(inputs["gy"])
    return {
        "out.y": y,
        "grad.x": x.grad,
        "grad.weight": conv.parametrizations.weight.original.grad,
        "grad.bias": conv.bias.grad,
    }


KINDS = {"bcn": bcn, "ws_conv": ws_conv}
