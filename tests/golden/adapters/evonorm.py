"""EvoNorm against timm's layers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import trueup.nn
from golden.reference import Case


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def steps(case: Case, norm: nn.Module) -> dict[str, object]:
    """Run training steps of the layer alone, then its eval mode."""
    inputs = tensors(case.inputs)
    norm.load_state_dict(tensors(case.params))
    returned: dict[str, object] = {}
    for t in range(case.hyper["steps"]):
        x = inputs[f"x{t}"].requires_grad_()
        norm.zero_grad()
        y = norm(x)
        y.backward(inputs[f"gy{t}"])
        returned |= {f"out.y{t}": y, f"grad.x{t}": x.grad}
        returned |= {f"grad.{name}{t}": p.grad for name, p in norm.named_parameters()}
        returned |= {f"out.{name}{t}": buffer.clone() for name, buffer in norm.named_buffers()}
    norm.eval()
    returned["out.y_eval"] = norm(inputs["x_eval"])
    return returned


def options(case: Case, *names: str) -> dict[str, object]:
    return {name: case.hyper[name] for name in ("num_features", "eps", "apply_act", *names)} | {
        "dtype": torch.tensor(case.inputs["x_eval"]).dtype
    }


def batch(case: Case) -> dict[str, object]:
    """Run a form with a running variance."""
    if not case.hyper["unbiased_running_var"]:
        raise NotImplementedError("the running variance is unbiased, as in torch and timm")
    return steps(case, getattr(trueup.nn, case.hyper["cls"])(**options(case, "momentum")))


def sample(case: Case) -> dict[str, object]:
    """Run a form with statistics per sample."""
    settings = options(case, "groups")
    if "act" in case.hyper:
        settings["act_layer"] = getattr(nn, case.hyper["act"])
    return steps(case, getattr(trueup.nn, case.hyper["cls"])(**settings))


KINDS = {"evonorm_b": batch, "evonorm_s": sample}
