"""Training only batch normalization, compared with the options of the official framework."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from golden.reference import Case
from trueup.models import CifarResNet
from trueup.nn import train_only


def partitioned(case: Case, in_channels: int = 3) -> tuple[nn.Module, dict[str, object]]:
    """Return the network with its parts frozen, and the outputs that describe them."""
    hyper = case.hyper
    model = CifarResNet(in_channels, hyper["depth"], hyper["width"], hyper["outputs"])
    # The official code applies its exceptions to the part `others` only.
    others = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    also = [name for name in hyper["also_train"].split(",") if name in others]
    frozen = {"norm": "batchnorm_frozen", "output": "output_frozen", "others": "others_frozen"}
    trainable = train_only(
        model, *(part for part, flag in frozen.items() if not hyper[flag]), also_train=also
    )
    named = dict(model.named_parameters())
    assert trainable == [name for name, p in named.items() if p.requires_grad]
    return model, {
        "out.param_names": np.array(list(named)),
        "out.trainable": np.array([p.requires_grad for p in named.values()]),
        "out.n_trainable": sum(p.numel() for p in named.values() if p.requires_grad),
        "out.n_total": sum(p.numel() for p in named.values()),
    }


def partition(case: Case) -> dict[str, object]:
    return partitioned(case)[1]


def train(case: Case) -> dict[str, object]:
    """Train the trainable parameters with SGD, then evaluate once."""
    inputs, hyper = {name: torch.tensor(x) for name, x in case.inputs.items()}, case.hyper
    model, returned = partitioned(case, inputs["x_eval"].shape[1])
    model.to(inputs["x_eval"].dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = hyper["bn_momentum"], hyper["bn_eps"]
    model.load_state_dict({name: torch.tensor(value) for name, value in case.params.items()})
    start = {name: value.clone() for name, value in model.state_dict().items()}

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, hyper["lr"], hyper["momentum"], weight_decay=hyper["weight_decay"]
    )
    for t in range(hyper["steps"]):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs[f"x{t}"]), inputs[f"y{t}"])
        loss.backward()
        optimizer.step()
        returned[f"out.loss{t}"] = loss
    model.eval()
    end = model.state_dict()
    returned |= {f"out.{name}": value for name, value in end.items()}
    returned["out.changed"] = np.array([name for name in end if not torch.equal(end[name], start[name])])
    returned["out.y_eval"] = model(inputs["x_eval"])
    return returned


KINDS = {"partition": partition, "train": train}
