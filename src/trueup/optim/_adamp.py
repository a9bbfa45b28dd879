"""AdamP: Adam whose momentum does not lengthen scale-invariant weights.

A weight before a normalisation only grows, momentum makes it grow faster, and its effective step lr /
||w||^2 fades. AdamP takes Adam's update u, tests by the gradient which weights are scale-invariant, removes
from their update its part along the weight (`_projection.py`), and decays them only `wd_ratio` times as much:

    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
    u = m / (sqrt(v) / sqrt(1 - b2^t) + eps),    (u, r) = project(w, g, u)
    w <- w (1 - lr wd r) - lr / (1 - b1^t) u

Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha: AdamP, ICLR 2021, arXiv 2006.08217, algorithm 2. Departures from the
official code: channels_last weights work, steps are counted in tensors, sparse gradients and complex
parameters raise, `maximize` and `foreach` exist, and dots and norms are accumulated in float32 for half
types.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from trueup._numerics.flat_chunks import Scratch, chunks
from trueup._numerics.upcasting import upcast_dtype
from trueup.optim._bias_correction import bias_corrections
from trueup.optim._projection import invariant_row_norms, project, project_and_decay, projected_chunks
from trueup.optim._routes import Flat, Group, RoutedOptimizer, State, Tensors, Weight, scalar
from trueup.optim._validation import check_decays, check_range

# ---- the equation ----


def adamp(w: Weight, g: Weight, state: State, group: Group) -> tuple[Weight, State]:
    """Return the weight and the state after one step by the gradient `g`.

    The specification: both routes of the class below are tested against it, and benchmarks take it as a peer.
    """
    lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
    t = state["step"] + 1
    m = beta1 * state["exp_avg"] + (1 - beta1) * g
    v = beta2 * state["exp_avg_sq"] + (1 - beta2) * g**2
    u = beta1 * m + (1 - beta1) * g if group["nesterov"] else m
    u = u / (v.sqrt() / (1 - beta2**t).sqrt() + eps)
    u, r = project(w, g, u, group["delta"], group["wd_ratio"], eps)
    w = w * (1 - lr * group["weight_decay"] * r) - lr / (1 - beta1**t) * u
    return w, {"step": t, "exp_avg": m, "exp_avg_sq": v}


class AdamP(RoutedOptimizer):
    """Adam with decoupled weight decay and projected updates (Heo et al. 2021, algorithm 2).

    Arguments up to `weight_decay` are those of `torch.optim.AdamW`. Each tensor's dimension 0 is its output
    channel. Biases and scales (fewer than two dimensions) are never projected; put them into a group without
    weight decay yourself. The moments have the parameter's dtype, as in `torch.optim`: in float16 the squares
    of small gradients underflow, so train float32 parameters under autocast instead.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, at least 0; a float or a tensor of one element.
        betas: decay of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the root of the second moment and to norms, at least 0.
        weight_decay: decoupled decay coefficient, at least 0.
        delta: threshold on |cos(gradient, weight)| x sqrt(dimension), at least 0; 0 never projects.
        wd_ratio: factor for the weight decay of a projected tensor, in [0, 1].
        nesterov: take the update from beta1 m + (1 - beta1) g instead of m.
        foreach: None takes the single-tensor route on a CPU and the foreach route on accelerators and under
            `torch.compile`; True takes the foreach route, False the single-tensor route on a CPU.
        maximize: step along the gradient instead of against it.

    Raises:
        ValueError: a hyperparameter is out of range, or a loaded state dict belongs to another optimizer.
        RuntimeError: a parameter is complex, or a gradient sparse.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = AdamP([weight], 1e-1)
    >>> weight.grad = torch.tensor([[-4.0, 3.0]])  # orthogonal to the weight, as under a normalisation
    >>> optimizer.step()
    >>> weight.data
    tensor([[3.1120, 3.9160]])
    """

    state_names = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        check_decays("betas", group["betas"], 2)
        for name in ("lr", "eps", "weight_decay", "delta"):
            check_range(name, group[name], 0)
        check_range("wd_ratio", group["wd_ratio"], 0, 1)

    def _step_single_tensor(self, group: Group, scratch: Scratch, flats: list[Flat]) -> None:
        lr, eps, weight_decay = float(group["lr"]), group["eps"], group["weight_decay"]
        beta1, beta2 = group["betas"]
        nesterov, maximize = group["nesterov"], group["maximize"]
        torch._foreach_add_([flat.state[0] for flat in flats], 1)

        # Advances the moments and adds Adam's displacements to its first argument, in one kernel.
        adam = partial(
            torch._fused_adamw_, lr=lr, beta1=beta1, beta2=beta2, eps=eps, amsgrad=False, maximize=maximize
        )

        def adam_chunk(out: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor, decay: float) -> None:
            """Run `adam` on one chunk, with nesterov if set; half types are computed in float32 copies."""
            stored = out, m, v
            g, out, m, v = (scratch.upcast(t, f"upcast {i}") for i, t in enumerate((g, *stored)))
            momentum = m
            if nesterov:
                m.lerp_(-g if maximize else g, 1 - beta1)
                # The kernel moves its m towards g once more, to beta1 m + (1 - beta1) g, so it gets a copy.
                momentum = scratch.like(m, "momentum").copy_(m)
            adam([out], [g], [momentum], [v], [], [step], weight_decay=decay)
            for own, value in zip(stored, (out, m, v)):
                if own is not value:
                    own.copy_(value)

        # Tensors that are not projected are stepped in one call; with nesterov in chunks, for it needs
        # scratch.
        together: list[tuple[Tensor, ...]] = []
        for rows, param, grad, (step, *moments) in flats:
            row_norms = invariant_row_norms(param, grad, rows, group["delta"], eps, scratch) if rows else None
            if row_norms is not None:

                def advance(g: Tensor, m: Tensor, v: Tensor, step: Tensor = step) -> Tensor:
                    displacement = scratch.like(g, "displacement", upcast_dtype(g.dtype)).zero_()
                    adam_chunk(displacement, g, m, v, step, 0.0)
                    return displacement

                decay = 1 - lr * weight_decay * group["wd_ratio"]
                for p, displacement, coefficient, _ in projected_chunks(
                    row_norms, param, grad, moments, advance, eps, scratch
                ):
                    # decay * p + (displacement - coefficient * p), in one pass
                    torch.addcmul(displacement, p, decay - coefficient, out=p)
            elif nesterov:
                for p, g, m, v in chunks(param, grad, *moments):
                    adam_chunk(p, g, m, v, step, weight_decay)
            else:
                together.append((param, grad, *moments, step))
        if together:
            params, grads, exp_avgs, exp_avg_sqs, steps = (list(column) for column in zip(*together))
            adam(params, grads, exp_avgs, exp_avg_sqs, [], steps, weight_decay=weight_decay)

    def _step_foreach(self, group: Group, params: Tensors, grads: Tensors, *state: Tensors) -> None:
        steps, exp_avgs, exp_avg_sqs = state
        lr, eps = scalar(group["lr"]), group["eps"]
        beta1, beta2 = group["betas"]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_div_(denominators, torch._foreach_sqrt(bias_corrections(beta2, steps)))
        torch._foreach_add_(denominators, eps)
        updates = torch._foreach_lerp(exp_avgs, grads, 1 - beta1) if group["nesterov"] else exp_avgs
        updates = torch._foreach_div(updates, denominators)

        decay = lr * group["weight_decay"] if group["weight_decay"] else 0.0
        project_and_decay(params, grads, updates, group["delta"], group["wd_ratio"], eps, decay)
        step_sizes = torch._foreach_reciprocal(bias_corrections(beta1, steps))
        torch._foreach_mul_(step_sizes, lr)
        torch._foreach_mul_(updates, step_sizes)
        torch._foreach_sub_(params, updates)
