"""Sharpness-aware minimisation: descend by the gradient at the worst point near the weights.

Problem: sharp minima generalise worse than flat ones of the same loss. Idea: before each step climb to where
the loss is about highest within a ball of radius rho, take the gradient there, come back, and step with it:

    e = rho g / (||g|| + 1e-12),    g_sam = gradient at w + e,    w <- base step from w with g_sam

with one norm over all parameters. The adaptive form (ASAM) measures the ball in units of each weight,
e = rho w^2 g / (||  |w| g  || + 1e-12), so that rescaling the weights of a layer changes nothing.

Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization, ICLR 2021, arXiv 2010.01412; Kwon, Kim, Park,
Choi: ASAM, ICML 2021, arXiv 2102.11600. Unlike the widely used code (davda54/sam) this is no optimizer of its
own: it wraps yours, so that schedulers, scalers and checkpoints go on with that; and it comes back by
restoring the weights bit by bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from trueup._numerics.upcasting import upcast_dtype
from trueup.optim._gradient_transforms import check_optimizer, norm_of, norms_of
from trueup.optim._routes import copy_list


class SAM:
    """Sharpness-aware steps with any optimizer.

    In one call, with a closure that clears the gradients, computes the loss, calls ``backward`` and returns
    the loss (of all micro-batches, if you accumulate)::

        sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        loss = sam.step(closure)

    or piece by piece, which is also the form for a `torch.amp.GradScaler`::

        loss_fn(model(x), y).backward()
        with sam.perturbed():  # or sam.perturb() and, in the end, sam.restore()
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    Gradients may be scaled by any constant: the perturbation is the same. One with an infinite or NaN norm
    perturbs nothing. If anything raises in between, the weights are those from before.

    Under `DistributedDataParallel` gradients arrive averaged, so the perturbation is global: the same
    everywhere, as for one process with the joined batch. For the paper's local one compute the first gradient
    within ``model.no_sync()``; the weights then differ between processes until they are restored. Under FSDP2
    (`fully_shard`) the norm is that of the whole model.

    Batch normalisation sees two forward passes a step. To keep the second out of its running statistics, set
    the ``momentum`` of those layers to 0 for it.

    Args:
        optimizer: steps the weights; its parameters are perturbed, those without a gradient left alone.
        rho: radius of the ball, at least 0; 0.05 by default, around 0.5 to 2 with ``adaptive``.
        adaptive: scale by the weights (ASAM). Biases and scales are treated as weights are.

    Memory: one copy of the parameters, made at the first step and kept.

    Raises:
        TypeError: ``optimizer`` is not an optimizer, or one that computes gradients within its step.
        ValueError: ``rho`` is negative or not finite.

    Source: Foret et al. 2021, equation 2 and algorithm 1.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> sam = SAM(torch.optim.SGD([weight], lr=0.5), rho=0.1)
    >>> def closure():
    ...     sam.optimizer.zero_grad()
    ...     loss = (weight**2).sum()
    ...     loss.backward()
    ...     return loss
    >>> sam.step(closure)  # the gradient 2.2 at 1.1, not 2 at 1
    tensor(1., grad_fn=<SumBackward0>)
    >>> round(weight.item(), 4)
    -0.1
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05, *, adaptive: bool = False) -> None:
        check_optimizer("SAM", optimizer)
        if not 0 <= rho < math.inf:
            raise ValueError(f"rho must be finite and at least 0; got {rho}")
        self.optimizer = optimizer
        self.rho = rho
        self.adaptive = adaptive
        # Reused at every step: fresh memory would cost page faults each time.
        self._copies: dict[Tensor, Tensor] = {}
        self._perturbed: list[Tensor] = []

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One sharpness-aware step: `closure` at the weights, `closure` at the perturbed ones, then a step.

        Returns:
            The loss at the weights, what the first call returned.

        Raises:
            TypeError: without a closure.
            RuntimeError: the closure left no gradients, or the weights are perturbed already.
        """
        if not callable(closure):
            raise TypeError(
                "SAM.step needs a closure that clears the gradients, computes the loss, calls backward and "
                "returns the loss, since it is evaluated twice; without one use perturbed() and then "
                f"optimizer.step(). Got {closure!r}"
            )
        with torch.enable_grad():
            loss = closure()
            with self.perturbed():
                closure()
        self.optimizer.step()
        return loss

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """`perturb` on entry and `restore` on exit, whatever happens inside."""
        self.perturb()
        try:
            yield
        finally:
            self.restore()

    @torch.no_grad()
    def perturb(self) -> None:
        """Move the weights to about the highest loss nearby, by the gradients that they hold.

        Raises:
            RuntimeError: there is no gradient; one is sparse or complex; or a perturbation is in force.
        """
        if self._perturbed:
            raise RuntimeError("the weights are perturbed already: call restore() before perturb()")
        # One listed twice is one. What is maximised is at its worst downhill.
        signs = {
            p: -1 if group.get("maximize") else 1
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        }
        params = list(signs)
        if not params:
            raise RuntimeError(
                "SAM needs gradients to perturb by; got none: call backward() before perturb()"
            )
        grads = [_dense(p.grad) for p in params]
        try:
            self._climb(params, grads, list(signs.values()), self._norm(params, grads))
        except BaseException:
            if self._perturbed:
                self.restore()
            raise

    def _climb(self, params: list[Tensor], grads: list[Tensor], signs: list[int], norm: Tensor) -> None:
        scale = self.rho / (norm + 1e-12)
        if norm.is_cpu:
            climbs, factor = bool(norm.isfinite()), scale.item()
            for p, g, sign in zip(params, grads, signs, strict=True):
                self._keep([p])  # one at a time: the weight is still in the cache when it moves
                if climbs and self.adaptive:
                    p.addcmul_(_wide(p).square(), _wide(g), value=sign * factor)
                elif climbs:
                    # widened, since torch rounds alpha to the dtype of both
                    p.add_(_wide(g), alpha=sign * factor)
            return
        # Elsewhere no value is read, so that nothing waits for the device.
        self._keep(params)
        finite, zero, scales = norm.isfinite(), norm.new_zeros(()), {1: scale, -1: -scale}
        for p, g, sign in zip(params, grads, signs, strict=True):
            direction = _wide(p).square().mul_(g) if self.adaptive else _wide(g)
            step = direction * scales[sign].to(p.device)
            p.add_(torch.where(finite.to(p.device), step, zero.to(p.device)))

    def _keep(self, params: list[Tensor]) -> None:
        for p in params:
            copy = self._copies.get(p)
            if copy is None or (copy.shape, copy.dtype, copy.device) != (p.shape, p.dtype, p.device):
                self._copies[p] = torch.empty_like(p)
        copy_list([self._copies[p] for p in params], params)
        self._perturbed += params

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back, bit by bit. Gradients stay: those of the perturbed weights, for the step.

        Raises:
            RuntimeError: no perturbation is in force.
        """
        if not self._perturbed:
            raise RuntimeError("nothing to restore: call perturb() first")
        copy_list(self._perturbed, [self._copies[p] for p in self._perturbed])
        self._perturbed = []

    def _norm(self, params: list[Tensor], grads: list[Tensor]) -> Tensor:
        """Of all gradients as one vector (times the weights if adaptive), 0-d, in float32 or better."""
        if self.adaptive:  # one product at a time
            norms = [norm_of(_wide(p) * g).reshape(1) for p, g in zip(params, grads, strict=True)]
        else:
            alike: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
            for g in grads:
                alike[g.device, g.dtype].append(g)
            norms = [norms_of(members) for members in alike.values()]
        norm: Tensor = torch.linalg.vector_norm(torch.cat([n.to(params[0].device) for n in norms]))
        return norm


def _wide(t: Tensor) -> Tensor:
    # A half type has not the range for products, nor for gradients times a factor for unscaled ones.
    return t.to(upcast_dtype(t.dtype))


def _dense(grad: Tensor) -> Tensor:
    if grad.layout != torch.strided or grad.is_complex():
        raise RuntimeError(
            f"SAM needs dense real gradients; got layout {grad.layout}, dtype {grad.dtype}: build the "
            "embedding with sparse=False, or store real and imaginary parts (torch.view_as_real)"
        )
    return grad
