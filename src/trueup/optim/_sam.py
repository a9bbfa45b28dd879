"""Sharpness-aware minimisation: descend by the gradient at the worst point near the weights.

Problem: sharp minima generalise worse than flat ones of the same loss. Idea: before each step climb to where
the loss is about highest within a ball of radius rho, take the gradient there, come back, and step with it:

    e = rho g / (||g|| + 1e-12),    g_sam = gradient at w + e,    w <- base step from w with g_sam

with one norm over all parameters. The adaptive form (ASAM) measures the ball in units of each weight,
e = rho w^2 g / (||  |w| g  || + 1e-12), so that rescaling the weights of a layer changes nothing.

Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization, ICLR 2021, arXiv 2010.01412; Kwon, Kim, Park,
Choi: ASAM, ICML 2021, arXiv 2102.11600. Unlike the widely used code (davda54/sam) this is not an optimizer:
it wraps yours, so that schedulers, scalers and checkpoints keep working with that, and it comes back by
restoring the weights bit for bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from trueup._numerics.upcasting import upcast
from trueup.optim._gradient_norms import norm_of, norms_of
from trueup.optim._gradient_transform import check_optimizer
from trueup.optim._routes import copy_list
from trueup.optim._validation import checked_gradient


def perturbations(
    weights: Sequence[Tensor], grads: Sequence[Tensor], rho: float, adaptive: bool = False
) -> list[Tensor]:
    """Return e for each weight, as the equations above state it; the norm is over all weights."""
    units = [w.abs() if adaptive else torch.ones_like(w) for w in weights]
    norm = torch.stack([(u * g).norm() for u, g in zip(units, grads, strict=True)]).norm()
    return [rho * u**2 * g / (norm + 1e-12) for u, g in zip(units, grads, strict=True)]


class SAM:
    """Sharpness-aware steps with any optimizer.

    In one call, with a closure that clears the gradients, computes the loss, calls `backward` and returns the
    loss (of all micro-batches, if you accumulate gradients)::

        sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        loss = sam.step(closure)

    or step by step, which also works with a `torch.amp.GradScaler`::

        loss_fn(model(x), y).backward()
        with sam.perturbed():  # or sam.perturb() and, in the end, sam.restore()
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    Scaling all gradients by a constant does not change the perturbation. If their norm is infinite or NaN,
    nothing is perturbed. If anything raises while the weights are perturbed, they are restored.

    Under `DistributedDataParallel` gradients arrive averaged, so the perturbation is global: the same in
    every process, as for one process with the joined batch. For the paper's local perturbation compute the
    first gradient within `model.no_sync()`; the weights then differ between processes until they are
    restored. Under FSDP2 (`fully_shard`) the norm is that of the whole model.

    Batch normalisation sees two forward passes per step. To keep the second out of its running statistics,
    set the `momentum` of those layers to 0 for it.

    Memory: one copy of the parameters, made at the first step and kept.

    Args:
        optimizer: the optimizer that steps the weights. Its parameters are perturbed, except those without a
            gradient.
        rho: radius of the ball, at least 0; around 0.5 to 2 with `adaptive`.
        adaptive: scale by the weights (ASAM). Biases and scales are treated like weights.

    Raises:
        TypeError: `optimizer` is not an optimizer, or computes gradients within its step.
        ValueError: `rho` is negative or not finite.

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
        """Take one step: call `closure` at the weights and at the perturbed weights, then step the optimizer.

        Returns:
            The result of the first call, the loss at the weights.

        Raises:
            TypeError: `closure` is not callable.
            RuntimeError: the closure left no gradients, or the weights are already perturbed.
        """
        if not callable(closure):
            raise TypeError(
                "SAM.step needs a closure that clears the gradients, computes the loss, calls backward and "
                f"returns the loss, since it evaluates that twice; got {closure!r}. Without a closure, use "
                "perturbed() and then optimizer.step()"
            )
        with torch.enable_grad():
            loss = closure()
            with self.perturbed():
                closure()
        self.optimizer.step()
        return loss

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Perturb the weights on entry and restore them on exit, also after an exception."""
        self.perturb()
        try:
            yield
        finally:
            self.restore()

    @torch.no_grad()
    def perturb(self) -> None:
        """Move the weights to about the highest loss nearby, along their present gradients.

        Raises:
            RuntimeError: there is no gradient, one is sparse or complex, or the weights are already
                perturbed.
        """
        if self._perturbed:
            raise RuntimeError("the weights are already perturbed. Call restore() before perturb()")
        # A dict, so that a parameter listed twice moves once. Where a loss is maximised, downhill is worst.
        signs = {
            p: -1 if group.get("maximize") else 1
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        }
        params = list(signs)
        if not params:
            raise RuntimeError("SAM found no gradients to perturb along. Call backward() before perturb()")
        grads = [checked_gradient("SAM", p.grad) for p in params]
        try:
            self._climb(params, grads, list(signs.values()), self._norm(params, grads))
        except BaseException:
            if self._perturbed:
                self.restore()
            raise

    def _climb(self, params: list[Tensor], grads: list[Tensor], signs: list[int], norm: Tensor) -> None:
        factor = self.rho / (norm + 1e-12)
        if norm.is_cpu:
            climbs, value = bool(norm.isfinite()), factor.item()
            for p, g, sign in zip(params, grads, signs, strict=True):
                self._keep([p])  # one at a time: the weight is still in the cache when it moves
                if climbs and self.adaptive:
                    p.addcmul_(upcast(p).square(), upcast(g), value=sign * value)
                elif climbs:
                    # Upcast, since torch rounds alpha to the dtype of both tensors.
                    p.add_(upcast(g), alpha=sign * value)
            return
        # On other devices no value is read, so that nothing waits for the device.
        self._keep(params)
        finite, zero, factors = norm.isfinite(), norm.new_zeros(()), {1: factor, -1: -factor}
        for p, g, sign in zip(params, grads, signs, strict=True):
            # Upcast: a half type has the range neither for products nor for unscaled gradients times a
            # factor.
            direction = upcast(p).square().mul_(g) if self.adaptive else upcast(g)
            step = direction * factors[sign].to(p.device)
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
        """Restore the weights bit for bit. The gradients stay those of the perturbed weights, for the step.

        Raises:
            RuntimeError: the weights are not perturbed.
        """
        if not self._perturbed:
            raise RuntimeError("the weights are not perturbed. Call perturb() before restore()")
        copy_list(self._perturbed, [self._copies[p] for p in self._perturbed])
        self._perturbed = []

    def _norm(self, params: list[Tensor], grads: list[Tensor]) -> Tensor:
        """Return the norm over all gradients (times weights if adaptive), 0-d, in float32 or better."""
        if self.adaptive:  # one product in memory at a time
            norms = [norm_of(upcast(p) * g).reshape(1) for p, g in zip(params, grads, strict=True)]
        else:
            alike: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
            for g in grads:
                alike[g.device, g.dtype].append(g)
            norms = [norms_of(members) for members in alike.values()]
        norm: Tensor = torch.linalg.vector_norm(torch.cat([n.to(params[0].device) for n in norms]))
        return norm
