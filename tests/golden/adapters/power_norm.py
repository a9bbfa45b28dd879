"""Power normalisation against the official layer: forward, backward and buffers, step by step."""

from __future__ import annotations

import torch

from golden.reference import Case
from trueup.nn import PowerNorm1d


def power_norm(case: Case) -> dict[str, object]:
    """Training steps of the layer alone, then its eval mode."""
    hyper = case.hyper
    inputs = {name: torch.tensor(array) for name, array in case.inputs.items()}
    weight = torch.tensor(case.params["weight"])
    norm = PowerNorm1d(
        len(weight),
        hyper["eps"],
        alpha_fwd=hyper["alpha_fwd"],
        alpha_bkw=hyper["alpha_bkw"],
        warmup_iters=hyper["warmup_iters"],
        group_num=hyper["group_num"],
        group_scaling=bool(hyper["group_scaling"]),
        group_eps=hyper["group_eps"],
        variant=hyper["backward"],
        batch_first=bool(hyper["batch_first"]),
        dtype=weight.dtype,
    )
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(torch.tensor(case.params["bias"]))
    returned: dict[str, object] = {}
    for t in range(hyper["steps"]):
        x = inputs[f"x{t}"].requires_grad_()
        norm.zero_grad()
        y = norm(x, inputs.get(f"pad_mask{t}"))
        y.backward(inputs[f"gy{t}"])
        returned |= {
            f"out.y{t}": y,
            f"out.running_phi{t}": norm.running_phi.clone(),
            f"out.ema_gz{t}": norm.ema_gz.clone(),
            f"out.iters{t}": norm.iters.clone(),
            f"grad.x{t}": x.grad,
            f"grad.weight{t}": norm.weight.grad,
            f"grad.bias{t}": norm.bias.grad,
        }
    norm.eval()
    returned["out.y_eval"] = norm(inputs["x_eval"])
    return returned


KINDS = {"power_norm": power_norm}
