"""Ghost batch normalisation against the official loop and schedule."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.reference import Case
from trueup.nn import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from trueup.optim._large_batch import adapt_regime, ghost_accumulate, scale_lr

LAYERS = {2: GhostBatchNorm1d, 3: GhostBatchNorm1d, 4: GhostBatchNorm2d, 5: GhostBatchNorm3d}


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def layer(case: Case) -> dict[str, object]:
    """Run training steps of the layer alone, then evaluation."""
    inputs, params, hyper = tensors(case.inputs), tensors(case.params), case.hyper
    x = inputs["x_eval"]
    norm = LAYERS[x.dim()](
        x.shape[1],
        hyper["eps"],
        hyper["momentum"],
        ghost_batch_size=hyper["ghost_batch_size"],
        remainder=hyper["remainder"],
        dtype=x.dtype,
    )
    norm.load_state_dict(params, strict=False)
    returned: dict[str, object] = {}
    for t in range(hyper["steps"]):
        x = inputs[f"x{t}"].requires_grad_()
        norm.zero_grad()
        y = norm(x)
        y.backward(inputs[f"gy{t}"])
        returned |= {
            f"out.y{t}": y,
            f"out.running_mean{t}": norm.running_mean.clone(),
            f"out.running_var{t}": norm.running_var.clone(),
            f"grad.x{t}": x.grad,
            f"grad.weight{t}": norm.weight.grad,
            f"grad.bias{t}": norm.bias.grad,
        }
    norm.eval()
    returned["out.y_eval"] = norm(inputs["x_eval"])
    return returned


def train(case: Case) -> dict[str, object]:
    """Run the loop form: `ghost_accumulate` gives an ordinary BatchNorm one ghost batch at a time."""
    inputs, params, hyper = tensors(case.inputs), tensors(case.params), case.hyper
    (hidden, features), (classes, _) = params["0.weight"].shape, params["3.weight"].shape
    model = nn.Sequential(
        nn.Linear(features, hidden),
        nn.BatchNorm1d(hidden, hyper["bn_eps"], hyper["bn_momentum"]),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    ).to(params["0.weight"].dtype)
    model.load_state_dict(params)
    optimizer = torch.optim.SGD(
        model.parameters(), hyper["lr"], hyper["momentum"], weight_decay=hyper["weight_decay"]
    )
    returned: dict[str, object] = {}
    for t in range(hyper["steps"]):
        loss, _ = ghost_accumulate(
            model,
            F.cross_entropy,
            inputs[f"x{t}"],
            inputs[f"y{t}"],
            hyper["ghost_batch_size"],
            hyper["max_norm"],
            batch_size=hyper["batch_size"],
        )
        returned[f"out.loss{t}"] = loss
        returned |= {f"grad.{name}{t}": p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        returned |= {f"out.{name}{t}": value.clone() for name, value in model.state_dict().items()}
    model.eval()
    returned["out.y_eval"] = model(inputs["x_eval"])
    return returned


def regime(case: Case) -> dict[str, object]:
    """Return the schedule for a large batch."""
    hyper = case.hyper
    sizes = hyper["batch_size"], hyper["base_batch_size"]
    milestones, epochs = [int(m) for m in case.inputs["milestones"]], hyper["epochs"]
    if hyper["regime_bb_fix"]:
        milestones, epochs = adapt_regime(milestones, epochs, *sizes)
    rule = "sqrt" if hyper["lr_bb_fix"] else "none"
    lrs = [scale_lr(float(lr), *sizes, rule=rule) for lr in case.inputs["lrs"]]
    return {"out.milestones": np.array(milestones), "out.lrs": np.array(lrs), "out.epochs": epochs}


KINDS = {"layer": layer, "train": train, "regime": regime}
