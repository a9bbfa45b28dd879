"""SPAM: Adam that clips spiked gradients entry by entry and resets its momentum.

Problem: rare gradient spikes, up to a thousand times the usual size, inflate Adam's moments and set training
back. Idea: clip each entry by its own second moment from before the step; zero the moments every T steps, and
warm the step size up again after each reset, by a factor s:

    g <- sign(g) sqrt(c v)  where g^2 > c v,     m = v = 0 if t mod T == 0
    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    w <- (w - s lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)) (1 - lr wd)

Huang et al.: SPAM, 2025, arXiv 2501.06842, a baseline of StableSPAM's. Nothing is clipped in the first steps
of training and after a reset, when v is not yet an estimate. As in the official code the bias correction does
not restart and the decay comes last. Departures: a gradient that is not finite skips its tensor, and moments
are kept in float32 or better.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from trueup._numerics.flat_chunks import Scratch, chunks
from trueup.optim._bias_correction import bias_correction
from trueup.optim._gradient_norms import norm_of, norms_of
from trueup.optim._routes import Flat, Group, RoutedOptimizer, State, Tensors, Weight, multiply_each, scalar
from trueup.optim._validation import check_count, check_decays, check_range

# ---- the equation ----


def spam(w: Weight, g: Weight, state: State, group: Group) -> tuple[Weight, State]:
    """Return the weight and the state after one step by the gradient `g`.

    The specification: both routes of the class below are tested against it, and benchmarks take it as a peer.
    """
    lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
    t, m, v = state["step"] + 1, state["exp_avg"], state["exp_avg_sq"]
    clips, resets, s = schedule(group, t)
    g = torch.where(clips, clip_spikes(g, v, group["spike_threshold"]), g)
    m, v = m * ~resets, v * ~resets
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    size = s * lr * (1 - beta2**t).sqrt() / (1 - beta1**t)
    w = (w - size * m / (v.sqrt() + eps)) * (1 - lr * group["weight_decay"])
    return w, {"step": t, "exp_avg": m, "exp_avg_sq": v}


def clip_spikes(g: Weight, v: Weight, threshold: float) -> Weight:
    """Return the gradient with every entry whose square exceeds threshold x v brought back to its root."""
    usual = v * threshold
    return torch.where(g.square() > usual, usual.sqrt().copysign(g), g)


def schedule(group: Group, t: Any) -> tuple[Any, Any, Any]:
    """Return whether step t clips, whether it resets, and the warm-up's s; t is a number or a tensor."""
    interval, warmup, rest = group["reset_interval"], group["warmup_steps"], group["grad_accu_steps"]
    since = t % interval if interval else t
    clips = (t >= rest) & (since >= rest) & bool(group["spike_threshold"])
    if not interval:
        return clips, t < 0, 1.0
    # The j-th step after a reset, counted from 0; no warm-up before the first.
    warms = (t >= interval) & (since < warmup)
    angle = since * (math.pi / (warmup + 1))
    if isinstance(t, Tensor):
        return clips, since == 0, 1 - warms.to(t.dtype) * 0.99 * (1 + angle.cos()) / 2
    return clips, since == 0, 1 - warms * 0.99 * (1 + math.cos(angle)) / 2


class SPAM(RoutedOptimizer):
    """Adam with spike-aware clipping and momentum resets (Huang et al. 2025).

    Args:
        params: parameters or parameter groups.
        lr: learning rate, at least 0; a float or a tensor of one element.
        betas: decay of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the root of the uncorrected second moment, at least 0.
        weight_decay: decoupled decay coefficient, at least 0; applied after the step.
        spike_threshold: c in the equations, at least 0; 0 never clips. The authors use 5000, and 2000 in
            4-bit training.
        warmup_steps: steps after a reset in which the step size grows, at least 0.
        reset_interval: steps between momentum resets, at least 0; 0 never resets.
        grad_accu_steps: steps without clipping at the start and after each reset, at least 0.
        foreach: None takes the single-tensor route on a CPU and the foreach route on accelerators and under
            `torch.compile`; True takes the foreach route, False the single-tensor route on a CPU.
        maximize: step along the gradient instead of against it.

    Raises:
        ValueError: a hyperparameter is out of range, or a loaded state dict belongs to another optimizer.
        RuntimeError: a parameter is complex, or a gradient sparse.

    Source: Huang et al. 2025 (arXiv 2501.06842), algorithm 1.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = SPAM([weight], lr=0.1)
    >>> weight.grad = torch.tensor([1.0, -10.0])
    >>> optimizer.step()
    >>> weight.data
    tensor([-0.1000,  0.1000])
    """

    state_names = ("step", "exp_avg", "exp_avg_sq")
    upcasts_state = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        spike_threshold: float = 5000.0,
        warmup_steps: int = 150,
        reset_interval: int = 500,
        grad_accu_steps: int = 20,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "spike_threshold": spike_threshold,
            "warmup_steps": warmup_steps,
            "reset_interval": reset_interval,
            "grad_accu_steps": grad_accu_steps,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        check_decays("betas", group["betas"], 2)
        for name in ("lr", "eps", "weight_decay", "spike_threshold"):
            check_range(name, group[name], 0)
        for name in ("warmup_steps", "reset_interval", "grad_accu_steps"):
            check_count(name, group[name], 0)

    def _step_single_tensor(self, group: Group, scratch: Scratch, flats: list[Flat]) -> None:
        lr, decay, (beta1, beta2) = float(group["lr"]), group["weight_decay"], group["betas"]
        for _, param, grad, (step, exp_avg, exp_avg_sq) in flats:
            # False for NaN as well.
            if not norm_of(grad).item() ** 2 <= torch.finfo(step.dtype).max:
                continue
            step += 1
            t = step.item()
            clips, reset, warm = schedule(group, t)
            # The kernel decays first and adds eps after its bias correction: the same step in its terms.
            size = lr * warm * (1 - lr * decay)
            adam = partial(
                torch._fused_adamw_,
                lr=size,
                beta1=beta1,
                beta2=beta2,
                weight_decay=lr * decay / size if size else 0.0,
                eps=group["eps"] / math.sqrt(bias_correction(beta2, t)),
                amsgrad=False,
                maximize=group["maximize"],
            )
            for p, g, m, v in chunks(param, grad, exp_avg, exp_avg_sq):
                g = g.to(m.dtype)
                if clips:
                    g = clip_spikes(g, v, group["spike_threshold"])
                if reset:
                    m.zero_()
                    v.zero_()
                # The kernel takes tensors of one dtype: half types are stepped in a float32 copy.
                weight = scratch.upcast(p, "weight")
                adam([weight], [g], [m], [v], [], [step])
                if not size:  # lr is 0, or the decay takes everything and has no ratio to the step
                    weight.mul_(1 - lr * decay)
                if weight is not p:
                    p.copy_(weight)

    def _step_foreach(self, group: Group, params: Tensors, grads: Tensors, *state: Tensors) -> None:
        lr, (beta1, beta2) = scalar(group["lr"]), group["betas"]
        steps, exp_avgs, exp_avg_sqs = state
        finite = norms_of(grads).square().isfinite()
        acts = finite.to(steps[0].dtype)
        step = torch.stack(steps) + acts
        torch._foreach_copy_(steps, list(step.unbind()))
        clips, reset, warm = schedule(group, step)
        zero = step.new_zeros(())
        grads = [torch.where(is_finite, grad, zero) for grad, is_finite in zip(grads, finite)]
        if group["spike_threshold"]:
            # Clamping at the root equals clipping by the square: the two meet without a jump.
            limits = torch._foreach_sqrt(exp_avg_sqs)
            torch._foreach_mul_(limits, math.sqrt(group["spike_threshold"]))
            torch._foreach_add_(limits, list(torch.where(clips, 0.0, math.inf).to(step.dtype).unbind()))
            grads = list(torch._foreach_minimum(grads, limits))
            torch._foreach_neg_(limits)
            torch._foreach_maximum_(grads, limits)
        keep = 1 - (reset & finite).to(step.dtype)
        multiply_each(exp_avg_sqs, keep * (1 - acts * (1 - beta2)))
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        multiply_each(exp_avgs, keep * (1 - acts * (1 - beta1)))
        torch._foreach_add_(exp_avgs, grads, alpha=(beta1 - 1) if group["maximize"] else (1 - beta1))
        # A tensor that has had no finite gradient yet has taken 0 steps, whose corrections would be 0.
        t = step.clamp(min=1)
        roots = torch._foreach_sqrt(exp_avg_sqs)
        # 1 is added where the gradient is skipped: eps may be 0, and 0 / 0 times 0 is NaN.
        torch._foreach_add_(roots, list((group["eps"] + (1 - acts)).unbind()))
        # The factor is infinite where the gradient is skipped: the step is 0.
        multiply_each(
            roots, bias_correction(beta1, t) / (acts * warm * lr * bias_correction(beta2, t).sqrt())
        )
        torch._foreach_addcdiv_(params, exp_avgs, roots, -1)
        if group["weight_decay"]:
            multiply_each(params, 1 - acts * lr * group["weight_decay"])
