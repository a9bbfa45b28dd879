"""FedWon's parts: weights and clipping against NFNets, averaging against FedBN's loop."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from golden.reference import Case
from trueup.federated import broadcast_state, federated_average
from trueup.nn import adaptive_clip_grad_, scaled_standardize_weight


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def ws_conv(case: Case) -> dict[str, object]:
    """A convolution with a scaled standardised weight, and its gradients."""
    hyper, inputs = case.hyper, tensors(case.inputs)
    leaves = {"x": inputs["x"], **tensors(case.params)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    weight, gain, eps = leaves["weight"], leaves["gain"], hyper["eps"]
    y = F.conv2d(
        leaves["x"],
        scaled_standardize_weight(weight, gain, gamma=hyper["gamma"], eps=eps),
        leaves["bias"],
        stride=hyper["stride"],
        padding=hyper["padding"],
        groups=hyper["groups"],
    )
    y.backward(inputs["gy"])
    returned: dict[str, object] = {f"grad.{name}": leaf.grad for name, leaf in leaves.items()}
    return returned | {"out.y": y, "out.weight_std": scaled_standardize_weight(weight, gain, eps=eps)}


def agc(case: Case) -> dict[str, object]:
    """The clipped gradient of one parameter."""
    parameter, hyper = torch.nn.Parameter(torch.tensor(case.params["p"])), case.hyper
    parameter.grad = torch.tensor(case.inputs["grad"])
    adaptive_clip_grad_(parameter, hyper["clip"], eps=hyper["eps"], grad_eps=hyper["grad_eps"])
    return {"out.grad": parameter.grad}


def aggregate(case: Case) -> dict[str, object]:
    """One communication round."""
    inputs, hyper = tensors(case.inputs), case.hyper

    def state(owner: str) -> dict[str, Tensor]:
        return {name.partition(".")[2]: t for name, t in inputs.items() if name.split(".")[0] == owner}

    clients = [state(f"client{i}") for i in range(hyper["num_clients"])]
    keep = [str(name) for name in hyper["norm_modules"]] if hyper["mode"] == "fedbn" else []
    server = federated_average(clients, list(hyper["client_weights"]), server=state("server"), keep=keep)
    after = {"server": server}
    after |= {f"client{i}": broadcast_state(server, own, keep=keep) for i, own in enumerate(clients)}
    return {f"out.{owner}.{name}": t for owner, entries in after.items() for name, t in entries.items()}


KINDS = {"ws_conv": ws_conv, "agc": agc, "aggregate": aggregate}
