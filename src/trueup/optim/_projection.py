"""The projection of AdamP and SGDP: remove from an update its part along a scale-invariant weight.

A weight w before a normalisation is scale-invariant, f(c w) = f(w), so its gradient is orthogonal to it and
every step can only lengthen it. Momentum, which sums past gradients, lengthens it much faster, and the
effective step lr / ||w||^2 collapses. Heo et al. (ICLR 2021, arXiv 2006.08217) recognise such weights by the
angle between gradient and weight, and remove from their update u the component along w:

    if max |cos(g, w)| < delta / sqrt(dim w):   u <- u - n <n, u>,   n = w / (||w|| + eps)

The test runs on all output channels at once (every row must pass), then on the tensor as a whole. As in the
official code n is not exactly of unit length, so a fraction 2 eps / ||w|| of the component remains. Departure
from the official code: dots and norms are accumulated in float32 for bfloat16 and float16 tensors.

`project_radial` is the public form for one tensor. It runs the foreach route's code; the single-tensor route
reads values instead, in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from trueup._numerics.flat_chunks import CHUNK_SIZE, Scratch, chunks, row_chunks
from trueup._numerics.upcasting import upcast, upcast_dtype

# ---- the equation ----


def project(
    w: Tensor, g: Tensor, u: Tensor, delta: float, wd_ratio: float, eps: float
) -> tuple[Tensor, float]:
    """Return the projected update and the factor for weight decay; both routes are tested against it."""
    if w.dim() > 1 and w.numel():
        for rows in (w.size(0), 1):
            w_rows, g_rows, u_rows = (upcast(t).reshape(rows, -1) for t in (w, g, u))
            w_norm, g_norm = (t.norm(dim=1).clamp(min=eps) for t in (w_rows, g_rows))
            cosine = (w_rows * g_rows).sum(1).abs() / (w_norm * g_norm)
            if bool((cosine < delta / math.sqrt(w_rows.size(1))).all()):
                n = w_rows / (w_rows.norm(dim=1, keepdim=True) + eps)
                return (u_rows - n * (n * u_rows).sum(1, keepdim=True)).view_as(w), wd_ratio
    return u, 1.0


# ---- as a function ----


def project_radial(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    update: Float[Tensor, "*shape"],
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    eps: float = 1e-8,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, ""]]:
    """Remove from `update` its component along `param`, if `grad` shows `param` to be scale-invariant.

    It has no branch on values and reads none back from the device, so it can be compiled and captured.

    Args:
        param: the weight; dimension 0 is the output channel. Tensors with fewer than two dimensions are
            biases and scales, and never projected.
        grad: the raw gradient of `param`, which decides.
        update: the update to project.
        delta: threshold on |cos(grad, param)| x sqrt(dimension), at least 0; 0 never projects.
        wd_ratio: factor for the weight decay of a projected tensor, in [0, 1].
        eps: lower bound of the norms in the cosine, and added to the norm of `param` in its direction.

    Returns:
        The update (a new tensor if projected) and the factor for weight decay, a 0-d tensor: `wd_ratio` if
        projected, else 1.

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
    (coefficient,), ratios = projection_coefficients([param], [grad], [update], delta, wd_ratio, eps)
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
    """Project the updates of scale-invariant parameters, then decay all parameters; for the foreach route.

    All in place, and no value is read. A parameter decays by `decay` times itself, a projected one by
    `wd_ratio` times that.
    """
    matrices = [i for i, param in enumerate(params) if param.dim() > 1]
    coefficients: list[Tensor] = []
    ratios = None
    if matrices:
        p, g, u = ([column[i] for i in matrices] for column in (params, grads, updates))
        coefficients, ratios = projection_coefficients(p, g, u, delta, wd_ratio, eps)
    for i, coefficient in zip(matrices, coefficients):
        updates[i].addcmul_(params[i], coefficient, value=-1)
    if isinstance(decay, Tensor) or decay:
        if ratios is not None:
            # Not mul_(1 - decay * ratio): that factor would be rounded to a low precision.
            for i, amount in zip(matrices, (ratios * decay).unbind()):
                params[i].addcmul_(params[i], amount, value=-1)
        for i in sorted(set(range(len(params))) - set(matrices)):
            params[i].mul_(1 - decay)


def projection_coefficients(
    params: list[Tensor],
    grads: list[Tensor],
    updates: list[Tensor],
    delta: float,
    wd_ratio: float,
    eps: float,
) -> tuple[list[Tensor], Tensor]:
    """Return the multiple of each parameter to subtract from its update, and the factors for weight decay.

    The multiples have the shape (rows, 1, ...) and are 0 where nothing is projected; the factors have the
    shape (tensors,). A row's multiple is <param, update> / (||param|| + eps)^2, with dot and norm over the
    row or, in the layer view, over the tensor. The layer's sums are sums over its rows, so one pass serves
    both views. All tensors go through few operations together, since launching one on a device costs more
    than its work.
    """
    rows = [_row_sums(*tensors) for tensors in zip(params, grads, updates)]
    layers = [sums.sum(1, keepdim=True) for sums in rows]
    row_lengths = [param.numel() // param.size(0) for param in params]
    by_row, of_rows = _test_view(rows, row_lengths, delta, eps)
    by_layer, of_layers = _test_view(layers, [param.numel() for param in params], delta, eps)
    of_layer = torch.where(by_layer, torch.cat(of_layers), 0.0)
    coefficients = [
        _shard_like(torch.where(passes, by_rows, of_tensor).view(-1, *[1] * (param.dim() - 1)), param)
        for param, passes, by_rows, of_tensor in zip(params, by_row, of_rows, of_layer)
    ]
    return coefficients, torch.where(by_row | by_layer, torch.full_like(of_layer, wd_ratio), 1.0)


def _row_sums(param: Tensor, grad: Tensor, update: Tensor) -> Tensor:
    """Return <g, p>, <g, g>, <p, p> and <p, u> of each row, (4, rows), over all shards of the tensor."""
    dtype = upcast_dtype(param.dtype)
    p, g, u = param.to(dtype), grad.to(dtype), update.to(dtype)
    # Sums over dimensions need no flat view, which channels_last rows do not have.
    inner = tuple(range(1, param.dim()))
    sums = torch.stack([(a * b).sum(inner) for a, b in ((g, p), (g, g), (p, p), (p, u))])
    return sums.full_tensor() if isinstance(sums, DTensor) else sums


def _test_view(
    sums: list[Tensor], lengths: list[int], delta: float, eps: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return whether every row of each tensor passes the test, and the multiples of p in u for its rows.

    The test |cos| < delta / sqrt(length) is multiplied out, so that a zero norm with eps = 0, and any NaN,
    compare false: no projection.
    """
    gp, gg, pp, pu = (list(column) for column in zip(*(s.unbind() for s in sums)))
    p_norms = torch._foreach_sqrt(pp)
    limits = torch._foreach_clamp_min(torch._foreach_sqrt(gg), eps)
    torch._foreach_mul_(limits, [delta / math.sqrt(length) for length in lengths])
    torch._foreach_mul_(limits, torch._foreach_clamp_min(p_norms, eps))
    excess = torch._foreach_sub(torch._foreach_abs(gp), limits)
    passes = torch.stack([values.amax() for values in excess]) < 0
    # <n, u> / (||p|| + eps). Divided twice, since eps squared may underflow.
    norms = torch._foreach_add(p_norms, eps)
    return passes, torch._foreach_div(torch._foreach_div(pu, norms), norms)


def _shard_like(rows: Tensor, param: Tensor) -> Tensor:
    """Return one value per row, sharded like the rows of the parameter, so that both fit in one operation."""
    if not isinstance(param, DTensor):
        return rows
    mesh = param.device_mesh
    whole = DTensor.from_local(rows, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(mesh, [p if p.is_shard(0) else Replicate() for p in param.placements])


# The single-tensor route: the same test and projection on flat tensors in memory order, reading values.


def invariant_row_norms(
    param: Tensor, grad: Tensor, rows: int, delta: float, eps: float, scratch: Scratch
) -> np.ndarray | None:
    """Return the norms of the rows of the view that passes the test, (rows, 1); None if neither passes.

    The views are `rows` channels and, as one row, the whole tensor.
    """
    length = param.numel() // rows
    # The first row alone is nearly always enough to reject the channel view.
    if _orthogonal_norm(param[:length], grad[:length], delta, eps) is not None:
        norms = _orthogonal_norms(param, grad, rows, delta, eps, scratch)
        if norms is not None:
            return norms.reshape(rows, 1)
    norm = _orthogonal_norm(param, grad, delta, eps)
    return None if norm is None else np.array([[norm]])


def _orthogonal_norms(
    param: Tensor, grad: Tensor, rows: int, delta: float, eps: float, scratch: Scratch
) -> np.ndarray | None:
    """Return the norms of the rows of `param` if every row passes the test, else None."""
    length = param.numel() // rows
    if length > CHUNK_SIZE:
        norms = []
        for p, g in zip(param.split(length), grad.split(length)):
            own = _orthogonal_norm(p, g, delta, eps)
            if own is None:
                return None
            norms.append(own)
        return np.array(norms)
    found = []
    for (p,), (g,) in zip(row_chunks(param, rows), row_chunks(grad, rows)):
        p, g = upcast(p), upcast(g)
        dot, norm = np.abs(_row_dots(g, p, scratch)), np.sqrt(_row_dots(p, p, scratch))
        limit = delta / math.sqrt(length) * np.maximum(norm, eps)
        # The norm of a part is a lower bound of the norm: an eighth of the gradient settles most cases.
        for part in (g[:, : length // 8], g):
            if (dot < limit * np.maximum(np.sqrt(_row_dots(part, part, scratch)), eps)).all():
                break
        else:
            return None
        found.append(norm)
    return np.concatenate(found)


def _orthogonal_norm(param: Tensor, grad: Tensor, delta: float, eps: float) -> float | None:
    """Return the norm of one flat row if it passes the test, else None; chunks are summed in float64."""
    gp = gg = pp = 0.0
    for p, g in chunks(param, grad):
        p, g = upcast(p), upcast(g)
        gp += torch.dot(g, p).item()
        gg += torch.dot(g, g).item()
        pp += torch.dot(p, p).item()
    norm = math.sqrt(pp)
    passes = abs(gp) < delta / math.sqrt(param.numel()) * max(math.sqrt(gg), eps) * max(norm, eps)
    return norm if passes else None


def projected_chunks(
    row_norms: np.ndarray,
    param: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    advance: Callable[..., Tensor],
    eps: float,
    scratch: Scratch,
) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]]:
    """Walk through a flat tensor to project, in chunks.

    Yields a chunk of `param`, for the caller to change; its update; the multiple of each row of `param` to
    subtract from that; and the chunks of the state.

    Args:
        row_norms: the norms of the rows of the view to project in, (rows, 1).
        param, grad, state: flat tensors of one size.
        advance: a function of chunks of the gradient and the state that advances the state and returns the
            update.
        eps: added to the norm of a row.
        scratch: memory of this step.
    """
    first = 0
    for together in zip(*(row_chunks(tensor, len(row_norms)) for tensor in (param, grad, *state))):
        parts = list(zip(*together))
        update, dots = None, []
        for p, g, *own in parts:
            if len(parts) > 1:
                # The dot product of a long row with its update is known only at the end of the row, so the
                # row is walked twice: first with copies of the state.
                own = [scratch.like(s, f"ahead {i}").copy_(s) for i, s in enumerate(own)]
            update = advance(g, *own)
            dots.append(_row_dots(upcast(p), upcast(update), scratch))
        dot = dots[0] if len(dots) == 1 else np.sum(dots, axis=0)
        norms = row_norms[first : first + len(dot)] + eps
        first += len(dot)
        # Divided twice, since eps squared may underflow.
        coefficient = torch.from_numpy((dot[:, None] / norms / norms).astype(dot.dtype, copy=False))
        for p, g, *own in parts:
            yield p, advance(g, *own) if len(parts) > 1 else cast(Tensor, update), coefficient, tuple(own)


def _row_dots(a: Tensor, b: Tensor, scratch: Scratch) -> np.ndarray:
    """Return <a, b> of every row.

    BLAS through numpy takes half the time of torch, which writes the products out. Rows that are long go
    through torch: from 10,000 elements on OpenBLAS would start threads of its own.
    """
    if a.size(1) <= 8192:
        return cast(np.ndarray, np.vecdot(a.numpy(), b.numpy()))
    return torch.mul(a, b, out=scratch.like(a, "products")).sum(1).numpy()
