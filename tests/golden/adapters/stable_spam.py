"""StableSPAM and SPAM against the official optimizers and an independent program of the paper's variant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from golden.reference import Case
from trueup.optim import SPAM, AdaClip, StableSPAM
from trueup.optim._spam import clip_spikes, schedule
from trueup.quantization import (
    FakeQuantLinear,
    fake_quantize_fp4,
    fake_quantize_int4,
    fake_quantize_int4_symmetric,
    int4_codes,
)

FIRST = ("exp_avg", "exp_avg_sq", "step")


def stable_spam(case: Case) -> dict[str, object]:
    hyper, dtype = case.hyper, getattr(torch, case.hyper["dtype"])
    params = [nn.Parameter(torch.tensor(case.params[f"p{i}"]).to(dtype)) for i in range(len(case.params))]
    optimizer = StableSPAM(
        params,
        hyper["lr"],
        tuple(hyper["betas"]),
        hyper["eps"],
        hyper["weight_decay"],
        (hyper["gamma1"], hyper["gamma2"], hyper["gamma3"]),
        int(hyper["update_proj_gap"]),
        None if hyper["total_T"] == -1 else int(hyper["total_T"]),
        hyper["eta_min"],
        bool(hyper["amsgrad"]),
        variant=hyper["reset_mode"],
    )
    rows: dict[str, list[Tensor]] = {}
    for t in range(hyper["steps"]):
        for i, p in enumerate(params):
            p.grad = torch.tensor(case.inputs[f"grads{i}"][t]).to(dtype)
        clipped = clipped_gradients(optimizer, params, hyper)
        optimizer.step()
        for i, p in enumerate(params):
            own = optimizer.state[p]
            row = {
                f"p{i}": p.detach(),
                f"clipped_grads{i}": clipped[i],
                f"m_max{i}": own["grad_max"],
                f"m_norm{i}": own["grad_norm"],
                f"v_norm{i}": own["grad_norm_sq"],
            }
            for name, value in row.items():
                rows.setdefault(f"out.{name}", []).append(value.clone().double())
    returned: dict[str, object] = {name: torch.stack(values) for name, values in rows.items()}
    for i, p in enumerate(params):
        returned |= {f"out.{name}{i}": optimizer.state[p][name].double() for name in FIRST}
    return returned


def clipped_gradients(optimizer: StableSPAM, params: list[nn.Parameter], hyper: dict) -> list[Tensor]:
    """Return what AdaClip makes of the gradients, on its own but with the optimizer's average and step."""
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    sgd = torch.optim.SGD(copies, 0.0)
    transform = AdaClip(sgd, hyper["gamma3"])
    if optimizer.state:
        counter = "total_step" if hyper["reset_mode"] == "paper" else "step"
        transform.load_state_dict(
            {
                i: {"step": optimizer.state[p][counter], "max": optimizer.state[p]["grad_max"]}
                for i, p in enumerate(params)
            }
        )
    for copy, p in zip(copies, params, strict=True):
        copy.grad = p.grad.clone()
    sgd.step()
    return [copy.grad for copy in copies]


def spam(case: Case) -> dict[str, object]:
    hyper, dtype = case.hyper, getattr(torch, case.hyper["dtype"])
    params = [nn.Parameter(torch.tensor(case.params[f"p{i}"]).to(dtype)) for i in range(len(case.params))]
    optimizer = SPAM(
        params,
        hyper["lr"],
        tuple(hyper["betas"]),
        hyper["eps"],
        hyper["weight_decay"],
        hyper["threshold"],
        int(hyper["warmup_epoch"]),
        int(hyper["update_proj_gap"]),
        int(hyper["grad_accu_steps"]),
    )
    rows: dict[str, list[Tensor]] = {}
    for t in range(hyper["steps"]):
        for i, p in enumerate(params):
            p.grad = torch.tensor(case.inputs[f"grads{i}"][t]).to(dtype)
            clips = schedule(optimizer.param_groups[0], t + 1)[0]
            second = optimizer.state[p].get("exp_avg_sq", torch.zeros_like(p))
            clipped = clip_spikes(p.grad, second, hyper["threshold"]) if clips else p.grad
            rows.setdefault(f"out.clipped_grads{i}", []).append(clipped.double())
        optimizer.step()
        for i, p in enumerate(params):
            rows.setdefault(f"out.p{i}", []).append(p.detach().clone().double())
    returned: dict[str, object] = {name: torch.stack(values) for name, values in rows.items()}
    for i, p in enumerate(params):
        returned |= {f"out.{name}{i}": optimizer.state[p][name].double() for name in FIRST}
    return returned


def fake_quant_fp4(case: Case) -> dict[str, object]:
    # Constant in every case: one sign, exponents 0 and 1, two bits of mantissa, bias 1.
    assert [case.hyper[name] for name in "emb"] == [1, 2, 1]
    options = {"group_size": case.hyper["group_size"], "keep_top": case.hyper["topk"]}
    x, w = (torch.tensor(case.inputs[name], requires_grad=True) for name in "xw")
    xq, wq = fake_quantize_fp4(x, **options), fake_quantize_fp4(w, **options)
    return {**quantized_product(case, x, w, xq, wq, "fp4"), "out.xq": xq, "out.wq": wq}


def fake_quant_int4(case: Case) -> dict[str, object]:
    assert case.hyper["bits"] == 4
    group_size = case.hyper["group_size"]
    x, w = (torch.tensor(case.inputs[name], requires_grad=True) for name in "xw")
    codes, scale, zero = int4_codes(w, group_size=group_size)
    xq = fake_quantize_int4_symmetric(x, group_size=group_size, keep_top=case.hyper["topk"])
    return {
        **quantized_product(case, x, w, xq, fake_quantize_int4(w, group_size=group_size), "int4"),
        "out.x_dq": xq,
        "out.w_int": codes,
        "out.w_scale": scale,
        "out.w_zero": zero,
    }


def quantized_product(
    case: Case, x: Tensor, w: Tensor, xq: Tensor, wq: Tensor, scheme: str
) -> dict[str, object]:
    """The layer's; or, where groups would span two rows, which it refuses, that of the quantised factors."""
    hyper, grad_out = case.hyper, torch.tensor(case.inputs["grad_out"])
    if w.shape[1] % hyper["group_size"]:
        y = xq @ wq.T
        gx, gw = torch.autograd.grad(y, (x, w), grad_out, retain_graph=True)
        return {"out.y": y, "grad.x": gx, "grad.w": gw}
    layer = FakeQuantLinear(
        w.shape[1], w.shape[0], False, scheme=scheme, group_size=hyper["group_size"], keep_top=hyper["topk"]
    )
    layer.weight.data = w.detach().clone()
    y = layer(x)
    gx, gw = torch.autograd.grad(y, (x, layer.weight), grad_out)
    return {"out.y": y, "grad.x": gx, "grad.w": gw}


KINDS = {
    "stable_spam": stable_spam,
    "spam": spam,
    "fake_quant_fp4": fake_quant_fp4,
    "fake_quant_int4": fake_quant_int4,
}
