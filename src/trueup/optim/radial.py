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
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from trueup.optim.blocks import Tile, blocks, tiles


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which dots, norms and step counts of a `dtype` parameter are kept: float32, or float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    if param.dim() < 2:
        return update, torch.ones((), dtype=accumulation_dtype(param.dtype), device=param.device)
    coefficient, ratio = radial_coefficient(param, grad, update, delta, wd_ratio, eps)
    return update.clone().addcmul_(param, coefficient, value=-1), ratio


def radial_coefficient(
    param: Tensor, grad: Tensor, update: Tensor, delta: float, wd_ratio: float, eps: float
) -> tuple[Tensor, Tensor]:
    """How much of `param` to subtract from `update`, shape (rows, 1, ...), and the decay ratio, 0-d.

    Each row's coefficient is <param, update> / (||param|| + eps)^2, with dot and norm over the row or, in
    the layer view, over the tensor: the layer's sums are the rows' summed, so one pass serves both views.
    """
    dtype = accumulation_dtype(param.dtype)
    p, g, u = param.to(dtype), grad.to(dtype), update.to(dtype)
    # Sums over dimensions, not over a flattened view: the order of a row's elements is free, channels_last
    # stays put.
    inner = tuple(range(1, param.dim()))
    rows = [(a * b).sum(inner, keepdim=True) for a, b in ((g, p), (g, g), (p, p), (p, u))]
    layer = [sums.sum() for sums in rows]
    row_length = param.numel() // max(1, param.size(0))
    by_row = _orthogonal(rows[:3], row_length, delta, eps).all()
    by_layer = _orthogonal(layer[:3], param.numel(), delta, eps)
    coefficient = torch.where(
        by_row, _along(rows[3], rows[2], eps), torch.where(by_layer, _along(layer[3], layer[2], eps), 0.0)
    )
    ratio = torch.where(by_row | by_layer, torch.full_like(layer[0], wd_ratio), torch.ones_like(layer[0]))
    return coefficient, ratio


def _orthogonal(sums: Iterable[Tensor], length: int, delta: float, eps: float) -> Tensor:
    """|cos| < delta / sqrt(length), from <g, p>, ||g||^2 and ||p||^2.

    Multiplied out, so that a zero norm with eps = 0, and any NaN, compare false: no projection.
    """
    dot, gg, pp = sums
    threshold = delta / math.sqrt(max(1, length))
    return dot.abs() < threshold * gg.sqrt().clamp_min(eps) * pp.sqrt().clamp_min(eps)


def _along(dot: Tensor, pp: Tensor, eps: float) -> Tensor:
    """<n, u> / (||p|| + eps), the multiple of p in u. Divided twice: eps squared may underflow."""
    norm = pp.sqrt() + eps
    return dot / norm / norm


# The device route: lists of tensors, no value read.


def project_list(
    params: list[Tensor],
    grads: list[Tensor],
    updates: Sequence[Tensor],
    delta: float,
    wd_ratio: float,
    eps: float,
) -> list[Tensor | float]:
    """Project each of `updates` in place where its parameter calls for it; the factors for weight decay."""
    ratios: list[Tensor | float] = []
    for param, grad, update in zip(params, grads, updates):
        if param.dim() < 2:
            ratios.append(1.0)
            continue
        coefficient, ratio = radial_coefficient(param, grad, update, delta, wd_ratio, eps)
        update.addcmul_(param, coefficient, value=-1)
        ratios.append(ratio)
    return ratios


def decay_list(params: list[Tensor], ratios: list[Tensor | float], amount: float | Tensor) -> None:
    """param <- param (1 - amount ratio), without rounding 1 - amount ratio itself to a low precision."""
    for param, ratio in zip(params, ratios):
        if isinstance(ratio, Tensor):
            param.addcmul_(param, ratio * amount, value=-1)
        else:
            param.mul_(1 - amount * ratio)


# The blocked route: the same decision and projection, reading values, on flat tensors in memory order.


def projected_rows(param: Tensor, grad: Tensor, rows: int, delta: float, eps: float) -> int | None:
    """By how many rows to project `param`: its `rows` channels, 1 for the layer view, None not at all."""
    dtype = accumulation_dtype(param.dtype)
    size = param.numel()
    if size == 0:
        return None
    length = size // rows
    total = torch.zeros(3, 1, dtype=torch.float64)
    seen = 0
    p, g = param.view(rows, length), grad.view(rows, length)
    for group in tiles(rows, length):
        sums = torch.stack([_sums(p[tile].to(dtype), g[tile].to(dtype)) for tile in group]).sum(0)
        total += sums.sum(1, keepdim=True)
        seen += sums.size(1) * length
        if not _orthogonal(sums, length, delta, eps).all():
            break
    else:
        return rows
    # A row has failed the channel view; the layer view wants only the totals of the rest, whatever its rows.
    for block in blocks(size - seen):
        rest = slice(seen + block.start, seen + block.stop)
        total += _sums(param[rest].to(dtype).unsqueeze(0), grad[rest].to(dtype).unsqueeze(0))
    return 1 if _orthogonal(total, size, delta, eps) else None


def _sums(p: Tensor, g: Tensor) -> Tensor:
    """<g, p>, ||g||^2, ||p||^2 of every row, stacked: shape (3, rows)."""
    norms = torch.linalg.vector_norm(g, dim=1), torch.linalg.vector_norm(p, dim=1)
    return torch.stack([torch.linalg.vecdot(g, p), norms[0].square(), norms[1].square()])


def move_tangentially(
    param: Tensor,
    rows: int,
    advance: Callable[[Tile], Tensor],
    again: Callable[[Tile], Tensor],
    *,
    step: float,
    decay: float,
    eps: float,
) -> None:
    """param <- decay * param + step * (update without its part along param), one block at a time.

    Args:
        param: (size,), moved in place; projected in the view (rows, size / rows).
        advance: advances the state of a tile of that view and returns the update there. The returned block is
            projected in place, so it should be scratch, unless the state itself is to be projected.
        again: the same update of a tile once more, the state being advanced. A row longer than a block has
            to be seen twice: its dot product with the update is known only when all its pieces have been
            advanced.
    """
    dtype = accumulation_dtype(param.dtype)
    matrix = param.view(rows, -1)
    for group in tiles(*matrix.shape):
        dot = squares = torch.zeros((), dtype=dtype)
        for tile in group:
            update, weight = advance(tile), matrix[tile].to(dtype)
            dot = dot + torch.linalg.vecdot(weight, update.to(dtype))
            squares = squares + torch.linalg.vector_norm(weight, dim=1).square()
        coefficient = _along(dot, squares, eps).unsqueeze(1)
        for tile in group:
            if len(group) > 1:
                update = again(tile)
            update.addcmul_(matrix[tile], coefficient, value=-1)
            if decay != 1:
                matrix[tile].mul_(decay)
            matrix[tile].add_(update, alpha=step)
