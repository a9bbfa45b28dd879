"""StableSPAM: Adam that withstands spiked gradients, drifting gradient norms and stale moments.

Problem: with 4-bit weights and activations gradient norms spike, and Adam, whose second moment remembers a
spike for hundreds of steps, needs a small learning rate or diverges. Idea: each tensor's gradient g goes
through AdaClip and AdaGN (`_adaptive_spike_aware_clipping.py`, `_adaptive_gradient_norm.py`) before Adam, and
Adam's moments are zeroed every T steps:

    g <- AdaGN(AdaClip(g)),   m = v = k = 0 if t mod T == 0,   k <- k + 1
    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    w <- w (1 - lr wd) - lr (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)

Huang et al.: Stable-SPAM, 2025, arXiv 2502.17055. The official code, `variant="official"`, has one counter: a
reset also restarts AdaClip's, which all but disables it for the next 1 / (1 - gamma3) steps, and the step
itself still uses the old moments. Other departures: averages and moments are kept in float32 or better, a
gradient that is not finite skips its tensor, `p.grad` is not changed, and the schedule never rises again.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from trueup._numerics.flat_chunks import Scratch, chunks
from trueup.optim._adaptive_gradient_norm import norm_factor
from trueup.optim._adaptive_spike_aware_clipping import clip_limit, clipped
from trueup.optim._bias_correction import bias_correction
from trueup.optim._gradient_norms import largest_entries, largest_entry, norms_of
from trueup.optim._routes import Flat, Group, RoutedOptimizer, State, Tensors, Weight, multiply_each, scalar
from trueup.optim._validation import check_count, check_decays, check_range, check_variant

# ---- the equation ----


def stable_spam(w: Weight, g: Weight, state: State, group: Group) -> tuple[Weight, State]:
    """Return the weight and the state after one step by the gradient `g`.

    The specification: both routes of the class below are tested against it, and benchmarks take it as a peer.
    """
    lr, eps, beta2, new = group["lr"], group["eps"], group["betas"][1], dict(state)
    new["total_step"] = state["total_step"] + 1
    beta1, gammas, resets, t = schedule(group, new["total_step"], state["step"] + 1)
    largest = g.abs().max()
    new["grad_max"], limit = clip_limit(largest, state["grad_max"], group["gammas"][2], t)
    g = clipped(g, limit, limit / largest)
    norms = state["grad_norm"], state["grad_norm_sq"]
    new["grad_norm"], new["grad_norm_sq"], factor = norm_factor(g.norm(), *norms, gammas, eps, t)
    g = factor * g
    k = new["step"] = state["step"] * ~resets + 1
    keeps_before, keeps_after = (~resets, True) if group["variant"] == "paper" else (True, ~resets)
    m = beta1 * state["exp_avg"] * keeps_before + (1 - beta1) * g
    v = beta2 * state["exp_avg_sq"] * keeps_before + (1 - beta2) * g**2
    new["exp_avg"], new["exp_avg_sq"] = m * keeps_after, v * keeps_after
    if group["amsgrad"]:
        v = new["max_exp_avg_sq"] = torch.maximum(v, state["max_exp_avg_sq"])
    u = m / (1 - beta1**k) / ((v / (1 - beta2**k)).sqrt() + eps)
    return w * (1 - lr * group["weight_decay"]) - lr * u, new


def schedule(group: Group, total: Any, step: Any) -> tuple[Any, tuple[Any, float], Any, Any]:
    """Return beta1, AdaGN's gammas, whether this step resets, and the t of AdaClip and AdaGN.

    `total` and `step` are numbers or tensors, and so is what depends on them.
    """
    beta1, gamma1 = group["betas"][0], group["gammas"][0]
    if group["total_steps"] is not None:
        last = group["total_steps"] + 1
        cosine: Any
        if isinstance(total, Tensor):
            cosine = torch.cos(total.clamp(max=last) * (math.pi / last))
        else:
            cosine = math.cos(math.pi * min(total, last) / last)
        now = group["eta_min"] + (1 - group["eta_min"]) * (1 + cosine) / 2
        beta1, gamma1 = beta1 * now, gamma1 * now
    interval = group["reset_interval"]
    resets = total % interval == 0 if interval else total < 0
    return beta1, (gamma1, group["gammas"][1]), resets, total if group["variant"] == "paper" else step


class StableSPAM(RoutedOptimizer):
    """Adam with adaptive clipping, norm scaling and momentum resets (Huang et al. 2025).

    Arguments up to `weight_decay` are those of `torch.optim.AdamW`. Each tensor's gradient is scaled to a
    norm of about 1, so `eps` is relative to that, and neither loss scaling nor gradient clipping has an
    effect.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, at least 0; a float or a tensor of one element.
        betas: decay of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the root of the second moment and to AdaGN's root, at least 0.
        weight_decay: decoupled decay coefficient, at least 0.
        gammas: decay of AdaGN's average norm and average squared norm, and of AdaClip's average largest
            entry, each in [0, 1). In 16-bit training the authors use (0.85, 0.99999, 0.999).
        reset_interval: steps between momentum resets, at least 0; 0 never resets. Choose it well below the
            number of steps; the authors use 500 in 4-bit training.
        total_steps: length of a cosine schedule that takes betas[0] and gammas[0] down to `eta_min` times
            their value; None for none.
        eta_min: in [0, 1].
        amsgrad: divide by the root of the largest second moment so far, which resets do not change.
        foreach: None takes the single-tensor route on a CPU and the foreach route on accelerators and under
            `torch.compile`; True takes the foreach route, False the single-tensor route on a CPU.
        maximize: step along the gradient instead of against it.
        variant: `"paper"`, or `"official"` for the resets of the official code: after a reset, it clips next
            to nothing for a while.

    A tensor whose gradient has a NaN or infinity, or entries so large that its squared norm overflows, is
    not changed, nor is its state. The state dict holds steps, averages and the place in the schedule for each
    parameter that has had a gradient. The state of half types is kept in float32, 8 bytes per element: in
    bfloat16 an average with a weight of 0.001 would not move, and float16 has no squares so small.

    In float64 both routes equal the equations to rounding; in float32, on the tensors of a transformer, to
    4e-8 in 20 steps of 1e-3. Comparisons with other code in float32 may show more, for two reasons. On a CPU
    `torch.norm` of 12.6 million entries is 5e-4 too small, which matters where eps does (1e-7). And AdaClip
    jumps at its limit: an entry that rounding puts on the other side of it moves differently, by up to
    lr (1 - limit / largest), some percent of a step.

    Raises:
        ValueError: a hyperparameter is out of range, or a loaded state dict belongs to another optimizer.
        RuntimeError: a parameter is complex, or a gradient sparse.

    Source: Huang et al. 2025, section 4 and algorithm 1.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = StableSPAM([weight], lr=0.1)
    >>> weight.grad = torch.tensor([1.0, -1000.0])
    >>> optimizer.step()
    >>> weight.data
    tensor([-0.1000,  0.1000])
    """

    state_names = ("step", "total_step", "grad_max", "grad_norm", "grad_norm_sq", "exp_avg", "exp_avg_sq")
    scalars = frozenset(state_names[:5])
    upcasts_state = True
    optional: ClassVar[Group] = {**RoutedOptimizer.optional, "variant": "paper"}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gammas: tuple[float, float, float] = (0.7, 0.9, 0.999),
        reset_interval: int = 1000,
        total_steps: int | None = None,
        eta_min: float = 0.5,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        variant: Literal["paper", "official"] = "paper",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "gammas": gammas,
            "reset_interval": reset_interval,
            "total_steps": total_steps,
            "eta_min": eta_min,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "maximize": maximize,
            "variant": variant,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        check_decays("betas", group["betas"], 2)
        check_decays("gammas", group["gammas"], 3)
        for name in ("lr", "eps", "weight_decay"):
            check_range(name, group[name], 0)
        check_count("reset_interval", group["reset_interval"], 0)
        if group["total_steps"] is not None:
            check_count("total_steps", group["total_steps"], 1)
        check_range("eta_min", group["eta_min"], 0, 1)
        check_variant(group["variant"])

    def _names(self, group: Group) -> tuple[str, ...]:
        return (*self.state_names, "max_exp_avg_sq") if group["amsgrad"] else self.state_names

    def _step_single_tensor(self, group: Group, scratch: Scratch, flats: list[Flat]) -> None:
        eps, sign = group["eps"], -1.0 if group["maximize"] else 1.0
        adam = partial(
            torch._fused_adamw_,
            lr=float(group["lr"]),
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=eps,
            amsgrad=group["amsgrad"],
            maximize=False,
        )
        for _, param, grad, (step, total, average, first, second, *moments) in flats:
            largest = largest_entry(grad).item()
            # False for NaN as well.
            if not largest * largest * grad.numel() <= torch.finfo(average.dtype).max:
                continue
            total += 1
            beta1, gammas, resets, t = schedule(group, total.item(), step.item() + 1)
            new_average, limit = clip_limit(largest, average.item(), group["gammas"][2], t)
            # By more than the rounding of the average: a steady gradient's largest entry is the limit.
            spiked = largest > limit * (1 + 8 * torch.finfo(average.dtype).eps)
            norm = _norm(grad, average.dtype, largest, limit if spiked else None)
            new_first, new_second, factor = norm_factor(norm, first.item(), second.item(), gammas, eps, t)
            for state, value in ((average, new_average), (first, new_first), (second, new_second)):
                state.fill_(value)

            if resets:
                step.zero_()
                if group["variant"] == "paper":
                    moments[0].zero_()
                    moments[1].zero_()
            step += 1
            for p, g, m, v, *largest_v in chunks(param, grad, *moments):
                g = g.to(m.dtype)
                scaled = scratch.like(m, "gradient")
                torch.mul(clipped(g, limit, limit / largest) if spiked else g, sign * factor, out=scaled)
                # The kernel takes tensors of one dtype: half types are stepped in a float32 copy.
                weight = scratch.upcast(p, "weight")
                adam([weight], [scaled], [m], [v], largest_v, [step], beta1=beta1)
                if weight is not p:
                    p.copy_(weight)
            if resets and group["variant"] == "official":
                moments[0].zero_()
                moments[1].zero_()

    def _step_foreach(self, group: Group, params: Tensors, grads: Tensors, *state: Tensors) -> None:
        lr, eps, beta2 = scalar(group["lr"]), group["eps"], group["betas"][1]
        *counts, exp_avgs, exp_avg_sqs = state[:7]
        step, total, average, first, second = (torch.stack(column) for column in counts)

        largest = largest_entries(grads)
        # A gradient counts as infinite as soon as the sum of its squares might be.
        most = torch.stack(torch._foreach_mul(largest.unbind(), [math.sqrt(g.numel()) for g in grads]))
        finite = most.square().isfinite()
        # A gradient that is not finite is replaced by zeros, and every change below is multiplied by 0.
        acts = finite.to(largest.dtype)
        largest = torch.where(finite, largest, 0.0)
        total = total + acts
        beta1, gammas, resets, t = schedule(group, total, step + 1)
        keep = 1 - (resets & finite).to(acts.dtype)
        # A tensor that has had no finite gradient yet has taken 0 steps, whose corrections would be 0.
        t = t.clamp(min=1)
        new_average, limit = clip_limit(largest, average, group["gammas"][2], t)
        # Where the largest entry is 0, so is the limit, and no entry is above it.
        ratio, zero = limit / (largest + (largest == 0)), limit.new_zeros(())
        grads = [
            clipped(torch.where(is_finite, g, zero), own_limit, own_ratio)
            for g, is_finite, own_limit, own_ratio in zip(grads, finite, limit, ratio)
        ]
        new_first, new_second, factor = norm_factor(norms_of(grads), first, second, gammas, eps, t)
        step = step * keep + acts
        averages = [
            torch.where(finite, new, old)
            for new, old in ((new_average, average), (new_first, first), (new_second, second))
        ]
        for column, values in zip(counts, (step, total, *averages)):
            torch._foreach_copy_(column, list(values.unbind()))

        # Full-size operations from here on, each with one number per tensor.
        paper = group["variant"] == "paper"
        remains = keep if paper else torch.ones_like(keep)
        multiply_each(grads, -factor if group["maximize"] else factor)
        multiply_each(exp_avg_sqs, remains * (1 - acts * (1 - beta2)))
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        multiply_each(exp_avgs, remains * (1 - acts * (1 - beta1)))
        multiply_each(grads, acts * (1 - beta1))
        torch._foreach_add_(exp_avgs, grads)
        del grads  # the copies of this step, whose memory the roots take
        squares = exp_avg_sqs
        if group["amsgrad"]:
            torch._foreach_maximum_(state[7], exp_avg_sqs)
            squares = state[7]
        k = step.clamp(min=1)
        roots = torch._foreach_sqrt(squares)
        multiply_each(roots, bias_correction(beta2, k).rsqrt())
        # 1 is added where the gradient is skipped: eps may be 0, and 0 / 0 times 0 is NaN.
        torch._foreach_add_(roots, list((eps + (1 - acts)).unbind()))
        # The factor is infinite where the gradient is skipped: the step is 0.
        multiply_each(roots, bias_correction(beta1, k) / (acts * lr))
        if group["weight_decay"]:
            multiply_each(params, 1 - acts * lr * group["weight_decay"])
        torch._foreach_addcdiv_(params, exp_avgs, roots, -1)
        if not paper:
            multiply_each(exp_avgs, keep)
            multiply_each(exp_avg_sqs, keep)


def _norm(grad: Tensor, dtype: torch.dtype, largest: float, limit: float | None) -> float:
    """Return the norm of a flat tensor, clipped first if there is a limit; chunks are summed in float64."""
    total = 0.0
    for (chunk,) in chunks(grad):
        chunk = chunk.to(dtype)
        if limit is not None:
            chunk = clipped(chunk, limit, limit / largest)
        total += torch.dot(chunk, chunk).item()
    return math.sqrt(total)
