"""The radial part of an update: when to remove it, and how.

A weight w that a normalisation follows is scale-invariant, f(c w) = f(w), so its gradient is orthogonal to
it and every step can only lengthen it; momentum, which sums past gradients, lengthens it much faster, and
the effective step lr / ||w||^2 collapses. Heo et al. (ICLR 2021, arXiv 2006.08217) recognise such weights
by the angle between gradient and weight and remove from their update u the component along w:

    if max |cos(g, w)| < delta / sqrt(dim w):   u <- u - n <n, u>,   n = w / (||w|| + eps)

tried on every output channel at once (all rows must pass), then on the tensor as a whole. As in the
official code, n is not exactly of unit length: a relative residue of 2 eps / ||w|| of the radial part
stays.

Departure from the official code: dots and norms are accumulated in float32 for bfloat16 and float16 tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from trueup._numerics.flat_chunks import BLOCK, Scratch, row_chunks, split
from trueup._numerics.upcasting import upcast_dtype


def project_radial(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    update: Float[Tensor, "*shape"],
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    eps: float = 1e-8,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, ""]]:
    """Remove from `update` its component along `param`, if `grad` shows `param` to be scale-invariant.

    Branchless: nothing is read back from the device, so it can be compiled and captured.

    Args:
        param: the weight, dimension 0 being the output channel. Tensors with less than two dimensions are
            biases and scales and never projected.
        grad: its raw gradient, which decides.
        update: what is to be projected.
        delta: threshold on |cos(grad, param)| x sqrt(dimension), at least 0; 0 never projects.
        wd_ratio: factor for the weight decay of a projected tensor, in [0, 1].
        eps: lower bound of the norms in the cosine, and added to the norm of `param` in its direction.

    Returns:
        The update (a new tensor if projected) and the factor for weight decay, a 0-d tensor: `wd_ratio` or 1.

    Raises:
        ValueError: the three tensors differ in shape.

    Source: Heo et al. 2021, equation 12 and algorithms 1 and 2.

    >>> weight = torch.tensor([[3.0, 4.0]])
    >>> gradient = torch.tensor([[-4.0, 3.0]])  # orthogonal to the weight
    >>> momentum = torch.tensor([[1.0, 7.0]])
    >>> update, ratio = project_radial(weight, gradient, momentum)
    >>> update
    tensor([[-2.7200,  2.0400]])
    >>> round(ratio.item(), 3), abs((update * weight).sum().item()) < 1e-5
    (0.1, True)
    """
    if not param.shape == grad.shape == update.shape:
        raise ValueError(
            "project_radial needs param, grad and update of one shape; got "
            f"{tuple(param.shape)}, {tuple(grad.shape)} and {tuple(update.shape)}"
        )
    if param.dim() < 2 or not param.numel():
        return update, torch.ones((), dtype=upcast_dtype(param.dtype), device=param.device)
    (coefficient,), ratios = radial_coefficients([param], [grad], [update], delta, wd_ratio, eps)
    return update.clone().addcmul_(param, coefficient, value=-1), ratios[0]


def project_and_decay(
    params: list[Tensor],
    grads: list[Tensor],
    updates: Sequence[Tensor],
    delta: float,
    wd_ratio: float,
    eps: float,
    decay: float | Tensor,
) -> None:
    """The device route: project each update whose parameter calls for it, then shrink the parameters.

    In place, and no value is read. A parameter shrinks by `decay` of itself, a projected one by `wd_ratio` of
    that.
    """
    matrices = [i for i, param in enumerate(params) if param.dim() > 1]
    coefficients: list[Tensor] = []
    ratios = None
    if matrices:
        p, g, u = ([column[i] for i in matrices] for column in (params, grads, updates))
        coefficients, ratios = radial_coefficients(p, g, u, delta, wd_ratio, eps)
    for i, coefficient in zip(matrices, coefficients):
        updates[i].addcmul_(params[i], coefficient, value=-1)
    if isinstance(decay, Tensor) or decay:
        if ratios is not None:
            # So that 1 - decay x ratio is not itself rounded to a low precision.
            for i, amount in zip(matrices, (ratios * decay).unbind()):
                params[i].addcmul_(params[i], amount, value=-1)
        for i in sorted(set(range(len(params))) - set(matrices)):
            params[i].mul_(1 - decay)


def radial_coefficients(
    params: list[Tensor],
    grads: list[Tensor],
    updates: list[Tensor],
    delta: float,
    wd_ratio: float,
    eps: float,
) -> tuple[list[Tensor], Tensor]:
    """How much of each parameter to take off its update, (rows, 1, ...), and the decay ratios, (number,).

    Each row's coefficient is <param, update> / (||param|| + eps)^2, with dot and norm over the row or, in the
    layer view, over the tensor: the layer's sums are the rows' summed, so one pass serves both views. All
    tensors together, in few operations, since on a device the launch of one costs more than its work.
    """
    rows = [_row_sums(*tensors) for tensors in zip(params, grads, updates)]
    layers = [sums.sum(1, keepdim=True) for sums in rows]
    row_lengths = [param.numel() // param.size(0) for param in params]
    by_row, of_rows = _test_view(rows, row_lengths, delta, eps)
    by_layer, of_layers = _test_view(layers, [param.numel() for param in params], delta, eps)
    of_layer = torch.where(by_layer, torch.cat(of_layers), 0.0)
    coefficients = [
        _beside(torch.where(passes, by_rows, whole).view(-1, *[1] * (param.dim() - 1)), param)
        for param, passes, by_rows, whole in zip(params, by_row, of_rows, of_layer)
    ]
    return coefficients, torch.where(by_row | by_layer, torch.full_like(of_layer, wd_ratio), 1.0)


def _row_sums(param: Tensor, grad: Tensor, update: Tensor) -> Tensor:
    """<g, p>, <g, g>, <p, p> and <p, u> of each row, (4, rows), of the whole tensor where it is sharded."""
    dtype = upcast_dtype(param.dtype)
    p, g, u = param.to(dtype), grad.to(dtype), update.to(dtype)
    # Sums over dimensions, not over a flattened view: a row's elements may lie in any order (channels_last).
    inner = tuple(range(1, param.dim()))
    sums = torch.stack([(a * b).sum(inner) for a, b in ((g, p), (g, g), (p, p), (p, u))])
    return sums.full_tensor() if isinstance(sums, DTensor) else sums


def _test_view(
    sums: list[Tensor], lengths: list[int], delta: float, eps: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Of each tensor: does every row pass |cos| < delta / sqrt(length)? And its rows' multiples of p in u.

    The first is multiplied out, so that a zero norm with eps = 0, and any NaN, compare false: no projection.
    """
    gp, gg, pp, pu = (list(column) for column in zip(*(s.unbind() for s in sums)))
    p_norms = torch._foreach_sqrt(pp)
    limits = torch._foreach_clamp_min(torch._foreach_sqrt(gg), eps)
    torch._foreach_mul_(limits, [delta / math.sqrt(length) for length in lengths])
    torch._foreach_mul_(limits, torch._foreach_clamp_min(p_norms, eps))
    excess = torch._foreach_sub(torch._foreach_abs(gp), limits)
    passes = torch.stack([values.amax() for values in excess]) < 0
    # <n, u> / (||p|| + eps), divided twice: eps squared may underflow.
    norms = torch._foreach_add(p_norms, eps)
    return passes, torch._foreach_div(torch._foreach_div(pu, norms), norms)


def _beside(rows: Tensor, param: Tensor) -> Tensor:
    """A value a row, sharded as the rows of the parameter are, so that it may meet that in an operation."""
    if not isinstance(param, DTensor):
        return rows
    mesh = param.device_mesh
    whole = DTensor.from_local(rows, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(mesh, [p if p.is_shard(0) else Replicate() for p in param.placements])


# The blocked route: the same decision and projection, reading values, on flat tensors in memory order.


@dataclass(frozen=True)
class View:
    """The view to project a tensor in: how many rows, and their norms, shape (rows, 1)."""

    rows: int
    norms: np.ndarray


def invariant_view(
    param: Tensor, grad: Tensor, rows: int, delta: float, eps: float, scratch: Scratch
) -> View | None:
    """The view of `param` that passes the test, its `rows` channels or the whole; None if neither does."""
    length = param.numel() // rows
    # The first row alone, nearly always, is enough to refuse the channel view.
    if _orthogonal_norm(param[:length], grad[:length], delta, eps) is not None:
        norms = _orthogonal_norms(param, grad, rows, delta, eps, scratch)
        if norms is not None:
            return View(rows, norms.reshape(rows, 1))
    norm = _orthogonal_norm(param, grad, delta, eps)
    return None if norm is None else View(1, np.array([[norm]]))


def _orthogonal_norms(
    param: Tensor, grad: Tensor, rows: int, delta: float, eps: float, scratch: Scratch
) -> np.ndarray | None:
    """The norms of the rows of `param`, if every row passes."""
    length = param.numel() // rows
    if length > BLOCK:
        norms = []
        for p, g in zip(param.split(length), grad.split(length)):
            own = _orthogonal_norm(p, g, delta, eps)
            if own is None:
                return None
            norms.append(own)
        return np.array(norms)
    found = []
    for (p,), (g,) in zip(row_chunks(param, rows), row_chunks(grad, rows)):
        p, g = _accumulable(p), _accumulable(g)
        dot, norm = np.abs(_row_dots(g, p, scratch)), np.sqrt(_row_dots(p, p, scratch))
        limit = delta / math.sqrt(length) * np.maximum(norm, eps)
        # The norm of a part is a lower bound of the whole's: an eighth of the gradient settles most cases.
        for part in (g[:, : length // 8], g):
            if (dot < limit * np.maximum(np.sqrt(_row_dots(part, part, scratch)), eps)).all():
                break
        else:
            return None
        found.append(norm)
    return np.concatenate(found)


def _orthogonal_norm(param: Tensor, grad: Tensor, delta: float, eps: float) -> float | None:
    """The norm of one flat row of any length, if it passes; sums are gathered block by block, in float64."""
    gp = gg = pp = 0.0
    for p, g in split(param, grad):
        p, g = _accumulable(p), _accumulable(g)
        gp += torch.dot(g, p).item()
        gg += torch.dot(g, g).item()
        pp += torch.dot(p, p).item()
    norm = math.sqrt(pp)
    passes = abs(gp) < delta / math.sqrt(param.numel()) * max(math.sqrt(gg), eps) * max(norm, eps)
    return norm if passes else None


def radial_blocks(
    view: View,
    param: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    advance: Callable[..., Tensor],
    eps: float,
    scratch: Scratch,
) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]]:
    """Walk a flat tensor that is to be projected, block by block.

    Yields the block of `param`, which the caller changes, its update, the coefficient of each row, and the
    blocks of the state.

    Args:
        view: the view to project in.
        param, grad, state: split alike.
        advance: from blocks of the gradient and the state, advances the state and returns the update.
        eps: added to the norm of a row.
        scratch: memory of this step.
    """
    groups = list(zip(*(row_chunks(tensor, view.rows) for tensor in (param, grad, *state))))
    first = 0
    for group in groups:
        pieces = list(zip(*group))
        update, dots = None, []
        for p, g, *own in pieces:
            if len(pieces) > 1:
                # A row longer than a block is walked twice, since its dot product with the update is known
                # only at its end: first with copies of the state.
                own = [scratch.like(s, f"ahead {i}").copy_(s) for i, s in enumerate(own)]
            update = advance(g, *own)
            dots.append(_row_dots(_accumulable(p), _accumulable(update), scratch))
        dot = dots[0] if len(dots) == 1 else np.sum(dots, axis=0)
        norms = view.norms[first : first + len(dot)] + eps
        first += len(dot)
        # Divided twice: eps squared may underflow.
        coefficient = torch.from_numpy((dot[:, None] / norms / norms).astype(dot.dtype, copy=False))
        for p, g, *own in pieces:
            yield p, advance(g, *own) if len(pieces) > 1 else cast(Tensor, update), coefficient, tuple(own)


def _row_dots(a: Tensor, b: Tensor, scratch: Scratch) -> np.ndarray:
    """<a, b> of every row. BLAS through numpy takes half the time of torch, which writes the products out.

    Not for long rows: from 10,000 elements on OpenBLAS would use threads that nobody gave it.
    """
    if a.size(1) <= 8192:
        return cast(np.ndarray, np.vecdot(a.numpy(), b.numpy()))
    return torch.mul(a, b, out=scratch.like(a, "products")).sum(1).numpy()


def _accumulable(block: Tensor) -> Tensor:
    dtype = upcast_dtype(block.dtype)
    return block if block.dtype == dtype else block.to(dtype)
