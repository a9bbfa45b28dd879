"""StableSPAM: Adam that spiked gradients, drifting gradient norms and stale moments do not unsettle.

Problem: with 4-bit weights and activations gradient norms spike, and Adam, whose second moment remembers a
spike for hundreds of steps, needs a small learning rate or diverges. Each tensor's gradient g goes through
AdaClip and AdaGN (`gradient_transforms.py`) before Adam, whose moments are zeroed every T steps:

    w <- w (1 - lr wd),   g <- AdaGN(AdaClip(g)),   m = v = k = 0 if t mod T == 0,   k <- k + 1
    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    w <- w - lr / (1 - b1^k) m / (sqrt(v / (1 - b2^k)) + eps)

Huang et al.: Stable-SPAM, 2025, arXiv 2502.17055. The official code, ``reset_mode="official"``, shares one
counter: a reset also restarts AdaClip's, which all but switches it off for the next 1 / (1 - g3) steps, and
the step itself still uses the old moments. Other departures: averages and moments are kept in float32 or
better, a gradient that is not finite skips its tensor, `p.grad` is not written to, the schedule never rises.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from trueup._numerics.flat_chunks import Scratch, split
from trueup.optim._gradient_transforms import (
    clip_limit,
    clipped,
    correction,
    largest_entries,
    norm_factor,
    norms_of,
    scale,
)
from trueup.optim._routes import (
    Flat,
    Group,
    RoutedOptimizer,
    check_count,
    check_decays,
    check_range,
    number,
)


class StableSPAM(RoutedOptimizer):
    """Adam with adaptive clipping, norm scaling and momentum resets (Huang et al. 2025).

    Arguments up to `weight_decay` are those of `torch.optim.AdamW`. Since gradients are scaled to a norm of
    about 1 a tensor, `eps` is relative to that, and neither loss scaling nor gradient clipping has an effect.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, at least 0; a float or a tensor of one element.
        betas: decay of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the root of the second moment, and of AdaGN's; at least 0.
        weight_decay: decoupled decay coefficient, at least 0.
        gammas: decay of AdaGN's average norm and average squared norm, and of AdaClip's average largest
            entry, each in [0, 1). In 16-bit training the authors use (0.85, 0.99999, 0.999).
        reset_interval: steps between momentum resets, at least 0; 0 never resets. Choose it well below the
            number of steps; the authors use 500 in 4-bit training.
        total_steps: length of a cosine schedule that takes betas[0] and gammas[0] down to `eta_min` times
            their value; None for none.
        eta_min: in [0, 1].
        amsgrad: divide by the root of the largest second moment so far, which resets leave alone.
        reset_mode: ``"paper"``, or ``"official"`` for the official code's (see the file's head).
        foreach: which of two equal routes: None by device (CPU: blocked; accelerators and `torch.compile`:
            branchless), True the branchless one, False on a CPU the blocked one, which reads values.
        maximize: step along the gradient instead of against it.

    A tensor whose gradient has a NaN or infinity, or entries so large that its squared norm overflows, is
    left as it is, with its state. Steps, averages and the place in the schedule are in the state dict, for
    each parameter that has had a gradient. Of half types the state is kept in float32, 8 bytes an element: in
    bfloat16 an average with a weight of 0.001 would not move, and float16 has no squares so small.

    In float64 both routes are the equations to rounding; in float32, on the tensors of a transformer, to 4e-8
    in 20 steps of 1e-3. If you compare with other code in float32 and find more, two things differ there: on
    a CPU `torch.norm` of 12.6 million entries is 5e-4 too small, which shows where eps counts (1e-7); and
    AdaClip jumps at its limit, so that an entry which rounding puts on its other side moves otherwise, by up
    to lr (1 - limit / largest), some percent of a step.

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
    wide = True

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
        reset_mode: Literal["paper", "official"] = "paper",
        *,
        foreach: bool | None = None,
        maximize: bool = False,
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
            "reset_mode": reset_mode,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        check_range("lr", group["lr"], 0)
        check_decays("betas", group["betas"], 2)
        check_range("eps", group["eps"], 0)
        check_range("weight_decay", group["weight_decay"], 0)
        check_decays("gammas", group["gammas"], 3)
        check_count("reset_interval", group["reset_interval"], 0)
        if group["total_steps"] is not None:
            check_count("total_steps", group["total_steps"], 1)
        check_range("eta_min", group["eta_min"], 0, 1)
        if group["reset_mode"] not in ("paper", "official"):
            raise ValueError(f"reset_mode must be 'paper' or 'official'; got {group['reset_mode']!r}")

    def _names(self, group: Group) -> tuple[str, ...]:
        return (*self.state_names, "max_exp_avg_sq") if group["amsgrad"] else self.state_names

    def _step_single_tensor(self, group: Group, scratch: Scratch, flats: list[Flat]) -> None:
        lr, eps, weight_decay = float(group["lr"]), group["eps"], group["weight_decay"]
        sign = -1.0 if group["maximize"] else 1.0
        for _, param, grad, (step, total, average, first, second, *moments) in flats:
            largest = _largest(grad)
            # False for NaN as well.
            if not largest * largest * grad.numel() <= torch.finfo(average.dtype).max:
                continue
            total += 1
            beta1, gammas, reset, t = self._now(group, total.item(), step.item() + 1)
            new_average, limit = clip_limit(largest, average.item(), group["gammas"][2], t)
            # Beyond the rounding of the average: a steady gradient's largest entry is the limit.
            spiked = largest > limit * (1 + 8 * torch.finfo(average.dtype).eps)
            norm = _norm(grad, average.dtype, largest, limit if spiked else None)
            new_first, new_second, factor = norm_factor(norm, first.item(), second.item(), gammas, eps, t)
            for state, value in ((average, new_average), (first, new_first), (second, new_second)):
                state.fill_(value)

            if reset:
                step.zero_()
                if group["reset_mode"] == "paper":
                    moments[0].zero_()
                    moments[1].zero_()
            step += 1
            for p, g, m, v, *largest_v in split(param, grad, *moments):
                g = g.to(m.dtype)
                scaled = scratch.like(m, "gradient")
                torch.mul(clipped(g, limit, limit / largest) if spiked else g, sign * factor, out=scaled)
                # The kernel takes tensors of one dtype: half types are stepped in a wider copy.
                weight = scratch.upcast(p, "weight")
                torch._fused_adamw_(
                    [weight],
                    [scaled],
                    [m],
                    [v],
                    largest_v,
                    [step],
                    lr=lr,
                    beta1=beta1,
                    beta2=group["betas"][1],
                    weight_decay=weight_decay,
                    eps=eps,
                    amsgrad=group["amsgrad"],
                    maximize=False,
                )
                if weight is not p:
                    p.copy_(weight)
            if reset and group["reset_mode"] == "official":
                moments[0].zero_()
                moments[1].zero_()

    def _now(self, group: Group, total: Any, step: Any) -> tuple[Any, tuple[Any, float], Any, Any]:
        """beta1, AdaGN's gammas, whether this step resets, and the transforms' step t; numbers or tensors."""
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
        reset = total % interval == 0 if interval else total < 0
        return beta1, (gamma1, group["gammas"][1]), reset, total if group["reset_mode"] == "paper" else step

    def _step_foreach(
        self, group: Group, params: list[Tensor], grads: list[Tensor], *state: list[Tensor]
    ) -> None:
        lr, eps, beta2 = number(group["lr"]), group["eps"], group["betas"][1]
        *counts, exp_avgs, exp_avg_sqs = state[:7]
        step, total, average, first, second = (torch.stack(column) for column in counts)

        largest = largest_entries(grads)
        # As soon as the sum of so many squares might be infinite, a gradient counts as such.
        most = torch.stack(torch._foreach_mul(largest.unbind(), [math.sqrt(g.numel()) for g in grads]))
        finite = most.square().isfinite()
        # A gradient that is not finite becomes one of zeros, and every change below is multiplied by 0.
        acts = finite.to(largest.dtype)
        largest = torch.where(finite, largest, 0.0)
        total = total + acts
        beta1, gammas, reset, t = self._now(group, total, step + 1)
        keep = 1 - (reset & finite).to(acts.dtype)
        # Before its first finite gradient a tensor has taken no step, whose corrections would be 0.
        t = t.clamp(min=1)
        new_average, limit = clip_limit(largest, average, group["gammas"][2], t)
        # The limit is 0 where the largest entry is: nothing is above it.
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

        # Full-size operations from here, each with a number a tensor.
        paper = group["reset_mode"] == "paper"
        remains = keep if paper else torch.ones_like(keep)
        scale(grads, -factor if group["maximize"] else factor)
        scale(exp_avg_sqs, remains * (1 - acts * (1 - beta2)))
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        scale(exp_avgs, remains * (1 - acts * (1 - beta1)))
        scale(grads, acts * (1 - beta1))
        torch._foreach_add_(exp_avgs, grads)
        del grads  # the copies of this step: their memory serves the roots
        squares = exp_avg_sqs
        if group["amsgrad"]:
            torch._foreach_maximum_(state[7], exp_avg_sqs)
            squares = state[7]
        k = step.clamp(min=1)
        roots = torch._foreach_sqrt(squares)
        scale(roots, correction(beta2, k).rsqrt())
        # 1 is added where nothing acts: eps may be 0, and 0 / 0 times 0 is NaN.
        torch._foreach_add_(roots, list((eps + (1 - acts)).unbind()))
        # Infinite where nothing acts: the step is 0.
        scale(roots, correction(beta1, k) / (acts * lr))
        if group["weight_decay"]:
            scale(params, 1 - acts * lr * group["weight_decay"])
        torch._foreach_addcdiv_(params, exp_avgs, roots, -1)
        if not paper:
            scale(exp_avgs, keep)
            scale(exp_avg_sqs, keep)


def _largest(grad: Tensor) -> float:
    """max |g| of a flat tensor; NaN if any is."""
    low, high = zip(*(block.aminmax() for (block,) in split(grad)))
    return float(torch.stack([*low, *high]).abs().max())


def _norm(grad: Tensor, dtype: torch.dtype, largest: float, limit: float | None) -> float:
    """The norm of a flat tensor, clipped to the limit first if there is one; blocks are summed in float64."""
    total = 0.0
    for (block,) in split(grad):
        block = block.to(dtype)
        if limit is not None:
            block = clipped(block, limit, limit / largest)
        total += torch.dot(block, block).item()
    return math.sqrt(total)
