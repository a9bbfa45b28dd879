"""Golden cases of AdamP and SGDP: weights after each step and final state, from stored gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trueup.optim import SGDP, AdamP


def run(optimizer_class: type[torch.optim.Optimizer], case: Any, foreach: bool) -> dict[str, object]:
    hyper = dict(case.hyper)
    steps = int(hyper.pop("steps"))
    if "betas" in hyper:
        hyper["betas"] = tuple(float(beta) for beta in hyper["betas"])
    params = [torch.nn.Parameter(torch.tensor(case.params[f"p{i}"])) for i in range(len(case.params))]
    if optimizer_class is SGDP:  # the official code's values
        hyper["variant"] = "official"
    optimizer = optimizer_class(params, **hyper, foreach=foreach)
    out: dict[str, object] = {}
    for t in range(steps):
        for i, param in enumerate(params):
            param.grad = torch.tensor(case.inputs[f"grad{i}.t{t}"])
        optimizer.step()
        for i, param in enumerate(params):
            out[f"out.p{i}.t{t}"] = param.detach().cpu().clone()
    for i, param in enumerate(params):
        for name, value in optimizer.state[param].items():
            out[f"out.state_{name}{i}"] = int(value) if name == "step" else value.cpu()
    return out


def both_routes(optimizer_class: type[torch.optim.Optimizer], case: Any) -> Mapping[str, object]:
    """Return the single-tensor route's values; the foreach route must give the same to rounding."""
    single, lists = (run(optimizer_class, case, foreach) for foreach in (False, True))
    for key, value in single.items():
        tolerance = 1e-5 if np.asarray(value).dtype == np.float32 else 1e-11
        np.testing.assert_allclose(lists[key], value, rtol=tolerance, atol=tolerance / 10, err_msg=key)
    return single


KINDS = {"adamp": lambda case: both_routes(AdamP, case), "sgdp": lambda case: both_routes(SGDP, case)}
