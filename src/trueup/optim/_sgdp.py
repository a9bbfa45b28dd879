"""SGDP: SGD that does not let momentum lengthen scale-invariant weights.

As AdamP, for SGD: the update d loses its part along the weight where the gradient shows the weight to be
scale-invariant (`radial.py`), and such weights decay `wd_ratio` times as much:

    b <- momentum b + (1 - dampening) g,    d = g + momentum b  (nesterov)  or  b
    (d, r) = project_radial(w, g, d),    w <- w (1 - lr wd r / (1 - momentum)) - lr d

Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha: AdamP, ICLR 2021, arXiv 2006.08217, algorithm 1. The buffer starts at
zero, so the first gradient is dampened too, unlike in `torch.optim.SGD`; the factor 1 / (1 - momentum)
turns SGD's L2 coefficient into its decoupled equivalent. Without nesterov the official code projects b
itself, because d is b; published results come from that, so it is the default, and `project_buffer=False`
is the paper's algorithm. Other departures are those of `adamp.py`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from trueup._numerics.flat_chunks import Scratch, split
from trueup.optim._projection import invariant_view, project_and_decay, radial_blocks
from trueup.optim._routes import Flat, Group, RoutedOptimizer, check_range, number


class SGDP(RoutedOptimizer):
    """SGD with momentum, decoupled weight decay and projected updates (Heo et al. 2021, algorithm 1).

    Arguments up to `nesterov` are those of `torch.optim.SGD`; unlike there, nesterov is allowed without
    momentum or with dampening, as in the official code.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, at least 0; a float or a tensor of one element.
        momentum: decay of the momentum buffer, in [0, 1).
        dampening: the gradient enters the buffer times 1 - dampening.
        weight_decay: L2 coefficient as in `torch.optim.SGD`, applied decoupled, divided by 1 - momentum; at
            least 0.
        nesterov: take the update from gradient + momentum x buffer instead of the buffer.
        eps: added to norms, at least 0.
        delta: threshold on |cos(gradient, weight)| x sqrt(dimension), at least 0; 0 never projects.
        wd_ratio: factor for the weight decay of a projected tensor, in [0, 1].
        foreach: which of two equal routes: None by device (CPU: blocked; accelerators and `torch.compile`:
            branchless lists), True the branchless one, False on a CPU the blocked one, which reads values.
        maximize: step along the gradient instead of against it.
        project_buffer: without nesterov, project the momentum buffer itself (True, as the official code) or
            only the update taken from it (False, as the paper's algorithm). They differ from the second
            step on.

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
    optional: ClassVar[Group] = {**RoutedOptimizer.optional, "project_buffer": True}

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
        project_buffer: bool = True,
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
            "project_buffer": project_buffer,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        check_range("lr", group["lr"], 0)
        check_range("momentum", group["momentum"], 0, 1, open_end=True)
        check_range("weight_decay", group["weight_decay"], 0)
        check_range("eps", group["eps"], 0)
        check_range("delta", group["delta"], 0)
        check_range("wd_ratio", group["wd_ratio"], 0, 1)

    def _step_single_tensor(self, group: Group, scratch: Scratch, flats: list[Flat]) -> None:
        lr, eps, momentum = float(group["lr"]), group["eps"], group["momentum"]
        alpha = (1 - group["dampening"]) * (-1 if group["maximize"] else 1)
        decay = lr * group["weight_decay"] / (1 - momentum)

        def advance(g: Tensor, b: Tensor) -> Tensor:
            """The update, in scratch unless it is the buffer that is to be projected."""
            g, ahead = scratch.upcast(g, "gradient"), scratch.upcast(b, "buffer")
            ahead.mul_(momentum).add_(g, alpha=alpha)
            if ahead is not b:
                b.copy_(ahead)
            if group["nesterov"]:
                g = -g if group["maximize"] else g
                return torch.add(g, ahead, alpha=momentum, out=scratch.like(g, "update"))
            return ahead if group["project_buffer"] else scratch.like(ahead, "update").copy_(ahead)

        def move(p: Tensor, update: Tensor, decay: float) -> None:
            weight = scratch.upcast(p, "weight").mul_(1 - decay).add_(update, alpha=-lr)
            if weight is not p:
                p.copy_(weight)

        for rows, param, grad, (buffer,) in flats:
            view = invariant_view(param, grad, rows, group["delta"], eps, scratch) if rows else None
            if view is None:
                for p, g, b in split(param, grad, buffer):
                    move(p, advance(g, b), decay)
                continue
            for p, update, coefficient, (b,) in radial_blocks(
                view, param, grad, (buffer,), advance, eps, scratch
            ):
                update.addcmul_(p, coefficient, value=-1)
                if group["project_buffer"] and not group["nesterov"] and update is not b:
                    b.copy_(update)
                move(p, update, decay * group["wd_ratio"])

    def _step_foreach(
        self, group: Group, params: list[Tensor], grads: list[Tensor], *state: list[Tensor]
    ) -> None:
        (buffers,) = state
        lr, eps, momentum = number(group["lr"]), group["eps"], group["momentum"]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads, alpha=1 - group["dampening"])
        if group["nesterov"]:
            updates = list(torch._foreach_add(grads, buffers, alpha=momentum))
        elif group["project_buffer"]:
            updates = buffers
        else:
            updates = [buffer.clone() for buffer in buffers]
        decay = lr * group["weight_decay"] / (1 - momentum) if group["weight_decay"] else 0.0
        project_and_decay(params, grads, updates, group["delta"], group["wd_ratio"], eps, decay)
        if isinstance(lr, Tensor):
            torch._foreach_sub_(params, torch._foreach_mul(updates, lr))
        else:
            torch._foreach_add_(params, updates, alpha=-lr)
