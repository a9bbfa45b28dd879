"""The weight compander against its closed form: there is no official code."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from golden.reference import Case
from trueup.nn import WeightCompander, inverse_weight_compand, weight_compand


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def weight(case: Case) -> dict[str, object]:
    """The effective weight and its gradients."""
    inputs, params = tensors(case.inputs), tensors(case.params)
    v, a, b = (params[name].requires_grad_() for name in ("v", "a", "b"))
    w = weight_compand(v, a, b, case.hyper["fn"])
    w.backward(inputs["gw"])
    return {"out.w": w, "grad.v": v.grad, "grad.a": a.grad, "grad.b": b.grad}


def linear(case: Case) -> dict[str, object]:
    """The same, and a linear layer on top with gradients of its own."""
    returned = weight(case)
    inputs, params = tensors(case.inputs), tensors(case.params)
    leaves = {"x": inputs["x"]} | {name: params[name] for name in ("v", "a", "b", "bias")}
    for leaf in leaves.values():
        leaf.requires_grad_()
    w = weight_compand(leaves["v"], leaves["a"], leaves["b"], case.hyper["fn"])
    y = F.linear(leaves["x"], w, leaves["bias"])
    y.backward(inputs["gy"])
    return returned | {"out.y": y} | {f"grad.lin_{name}": leaf.grad for name, leaf in leaves.items()}


def inverse(case: Case) -> dict[str, object]:
    """Return the stored weight for a wanted weight, and the weight that it gives."""
    w, hyper = torch.tensor(case.inputs["w"]), case.hyper
    v = inverse_weight_compand(w, hyper["a"], hyper["b"], hyper["fn"], margin=hyper["margin"])
    return {"out.v": v, "out.w": weight_compand(v, hyper["a"], hyper["b"], hyper["fn"])}


def sgd_trajectory(case: Case) -> dict[str, object]:
    """Training a parametrised linear layer, a and b as raw parameters."""
    inputs, params, hyper = tensors(case.inputs), tensors(case.params), case.hyper
    v = params["v"]
    layer = nn.Linear(v.shape[1], v.shape[0], bias=False, dtype=v.dtype)
    parametrize.register_parametrization(
        layer,
        "weight",
        WeightCompander(
            layer.weight,
            float(params["a"]),
            float(params["b"]),
            learnable=hyper["learn_ab"],
            relative=bool(hyper["relative"]),
            fn=hyper["fn"],
        ),
    )
    stored, (compander,) = layer.parametrizations.weight.original, layer.parametrizations.weight
    with torch.no_grad():
        stored.copy_(v)
    groups = [{"params": [stored], "weight_decay": hyper["weight_decay"]}]
    if hyper["learn_ab"]:
        groups.append({"params": [compander.a, compander.b]})
    optimizer = torch.optim.SGD(groups, hyper["lr"], hyper["momentum"])
    returned: dict[str, object] = {}
    for t in range(hyper["steps"]):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(inputs["x"]), inputs["y"])
        loss.backward()
        optimizer.step()
        returned |= {f"out.v{t}": stored.detach().clone(), f"out.loss{t}": loss}
        returned |= {f"out.{name}{t}": getattr(compander, name).detach().clone() for name in ("a", "b")}
    return returned


KINDS = {"weight": weight, "linear": linear, "inverse": inverse, "sgd_trajectory": sgd_trajectory}
