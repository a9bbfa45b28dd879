"""SGDP: SGD whose momentum does not lengthen scale-invariant weights.

As AdamP, for SGD: the update d loses its part along the weight where the gradient shows the weight to be
scale-invariant (`_projection.py`), and such weights decay only `wd_ratio` times as much:

    b <- momentum b + (1 - dampening) g,    d = g + momentum b  (nesterov)  or  b
    (d, r) = project(w, g, d),    w <- w (1 - lr wd r / (1 - momentum)) - lr d

Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha: AdamP, ICLR 2021, arXiv 2006.08217, algorithm 1. The buffer starts at
zero, so the first gradient is dampened too, unlike in `torch.optim.SGD`; the factor 1 / (1 - momentum)
turns SGD's L2 coefficient into its decoupled equivalent. Without nesterov the official code projects the
buffer b itself, because d is b: the published results come from `variant="official"`, which does so, while
the default projects d alone. The other
departures are those of `_adamp.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from trueup._numerics.flat_chunks import Scratch, chunks
from trueup.optim._projection import invariant_row_norms, project, project_and_decay, projected_chunks
from trueup.optim._routes import Flat, Group, RoutedOptimizer, State, Tensors, Weight, scalar
from trueup.optim._validation import check_range, check_variant

# ---- the equation ----


def sgdp(w: Weight, g: Weight, state: State, group: Group) -> tuple[Weight, State]:
    """Return the weight and the state after one step by the gradient `g`.

    The specification: both routes of the class below are tested against it, and benchmarks take it as a peer.
    """
    lr, momentum, nesterov = group["lr"], group["momentum"], group["nesterov"]
    b = momentum * state["momentum"] + (1 - group["dampening"]) * g
    d = g + momentum * b if nesterov else b
    d, r = project(w, g, d, group["delta"], group["wd_ratio"], group["eps"])
    if group["variant"] == "official" and not nesterov:
        b = d
    return w * (1 - lr * group["weight_decay"] * r / (1 - momentum)) - lr * d, {"momentum": b}


class SGDP(RoutedOptimizer):
    """SGD with momentum, decoupled weight decay and projected updates (Heo et al. 2021, algorithm 1).

    Arguments up to `nesterov` are those of `torch.optim.SGD`. Unlike there, nesterov may go without momentum
    or with dampening, as in the official code.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, at least 0; a float or a tensor of one element.
        momentum: decay of the momentum buffer, in [0, 1).
        dampening: the gradient enters the buffer multiplied by 1 - dampening.
        weight_decay: L2 coefficient as in `torch.optim.SGD`, at least 0; applied decoupled, divided by
            1 - momentum.
        nesterov: take the update from gradient + momentum x buffer instead of the buffer.
        eps: added to norms, at least 0.
        delta: threshold on |cos(gradient, weight)| x sqrt(dimension), at least 0; 0 never projects.
        wd_ratio: factor for the weight decay of a projected tensor, in [0, 1].
        foreach: None takes the single-tensor route on a CPU and the foreach route on accelerators and under
            `torch.compile`; True takes the foreach route, False the single-tensor route on a CPU.
        maximize: step along the gradient instead of against it.
        variant: without nesterov, `"paper"` projects only the update taken from the momentum buffer,
            `"official"` the buffer itself, as the official code does. They differ from the second step on.

    Raises:
        ValueError: a hyperparameter is out of range, or a loaded state dict belongs to another optimizer.
        RuntimeError: a parameter is complex, or a gradient sparse.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = SGDP([weight], 1e-1, momentum=0.9, nesterov=True)
    >>> weight.grad = torch.tensor([[-4.0, 3.0]])  # orthogonal to the weight, as under a normalisation
    >>> optimizer.step()
    >>> weight.data
    tensor([[3.7600, 3.4300]])
    """

    state_names = ("momentum",)
    # A state dict of the official class goes on as it was trained.
    optional: ClassVar[Group] = {**RoutedOptimizer.optional, "variant": "official"}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        variant: Literal["paper", "official"] = "paper",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "eps": eps,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "foreach": foreach,
            "maximize": maximize,
            "variant": variant,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        for name in ("lr", "weight_decay", "eps", "delta"):
            check_range(name, group[name], 0)
        check_range("momentum", group["momentum"], 0, 1, open_end=True)
        check_range("wd_ratio", group["wd_ratio"], 0, 1)
        check_variant(group["variant"])

    def _step_single_tensor(self, group: Group, scratch: Scratch, flats: list[Flat]) -> None:
        lr, eps, momentum = float(group["lr"]), group["eps"], group["momentum"]
        alpha = (1 - group["dampening"]) * (-1 if group["maximize"] else 1)
        decay = lr * group["weight_decay"] / (1 - momentum)
        official = group["variant"] == "official"

        def advance(g: Tensor, b: Tensor) -> Tensor:
            """Advance the buffer and return the update, in scratch unless it is the buffer."""
            g, ahead = scratch.upcast(g, "gradient"), scratch.upcast(b, "buffer")
            ahead.mul_(momentum).add_(g, alpha=alpha)
            if ahead is not b:
                b.copy_(ahead)
            if group["nesterov"]:
                g = -g if group["maximize"] else g
                return torch.add(g, ahead, alpha=momentum, out=scratch.like(g, "update"))
            return ahead

        def move(p: Tensor, update: Tensor, decay: float) -> None:
            weight = scratch.upcast(p, "weight").mul_(1 - decay).add_(update, alpha=-lr)
            if weight is not p:
                p.copy_(weight)

        for rows, param, grad, (buffer,) in flats:
            row_norms = invariant_row_norms(param, grad, rows, group["delta"], eps, scratch) if rows else None
            if row_norms is None:
                for p, g, b in chunks(param, grad, buffer):
                    move(p, advance(g, b), decay)
                continue
            for p, update, coefficient, (b,) in projected_chunks(
                row_norms, param, grad, (buffer,), advance, eps, scratch
            ):
                out = scratch.like(b, "update") if update is b and not official else update
                torch.addcmul(update, p, coefficient, value=-1, out=out)
                if official and not group["nesterov"] and out is not b:
                    b.copy_(out)
                move(p, out, decay * group["wd_ratio"])

    def _step_foreach(self, group: Group, params: Tensors, grads: Tensors, *state: Tensors) -> None:
        (buffers,) = state
        lr, eps, momentum = scalar(group["lr"]), group["eps"], group["momentum"]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads, alpha=1 - group["dampening"])
        if group["nesterov"]:
            updates = list(torch._foreach_add(grads, buffers, alpha=momentum))
        elif group["variant"] == "official":
            updates = buffers
        else:
            updates = [buffer.clone() for buffer in buffers]
        decay = lr * group["weight_decay"] / (1 - momentum) if group["weight_decay"] else 0.0
        project_and_decay(params, grads, updates, group["delta"], group["wd_ratio"], eps, decay)
        if isinstance(lr, Tensor):
            torch._foreach_sub_(params, torch._foreach_mul(updates, lr))
        else:
            torch._foreach_add_(params, updates, alpha=-lr)
