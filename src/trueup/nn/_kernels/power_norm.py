"""Power normalisation's kernels: the statistics of rows `(N, C)`, the forward and the backward pass.

On a CPU they work on chunks of rows that stay in its cache; on CUDA Triton does the same where it is
installed. u is the input after group scaling, and z = u / psi.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import repeat
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce

from trueup._numerics.chunking import chunk_size, write
from trueup._numerics.upcasting import upcast

__all__ = ["BatchStatistics", "batch_statistics", "normalize"]


class BatchStatistics(NamedTuple):
    """Statistics of a training batch, over all processes of a group. Without a real token all means are 0."""

    inverse_rms: Tensor | None  # (N, groups): 1 / sqrt(mean_group(x^2) + group_eps); None: no group scaling
    phi: Tensor  # (C,): psi_B^2, the mean of u^2 over the real tokens
    phi_with_padding: Tensor  # (C,): the mean of u^2 over all positions, for the backward pass
    per_position: Tensor  # (C,): 1 / number of positions, which makes a sum over them a mean
    has_token: Tensor  # (1,) bool: there is a token that is no padding


def batch_statistics(
    x: Tensor, is_token: Tensor | None, groups: int, group_eps: float, process_group: ProcessGroup | None
) -> BatchStatistics:
    """Compute the statistics of rows `x`; `is_token` is False for padding, `groups=0` is no group scaling."""
    triton_kernels = _triton_kernels(x)
    sums = triton_kernels.sums_of_squares if triton_kernels else _sums_of_squares
    inverse_rms, total, token_total = sums(x, is_token, groups, group_eps)
    token_total = total if token_total is None else token_total
    positions = torch.full((1,), len(x), dtype=total.dtype, device=x.device)
    tokens = positions if is_token is None else is_token.sum(0, keepdim=True).to(total.dtype)
    if process_group is not None:
        joined = torch.cat([total, token_total, positions, tokens])
        all_reduce(joined, group=process_group)
        total, token_total, positions, tokens = joined.split([len(total), len(total), 1, 1])
    has_token = tokens > 0
    per_position = torch.where(has_token, 1 / positions.clamp(min=1), torch.zeros_like(positions))
    per_position = per_position.expand_as(total)
    phi = token_total / tokens.clamp(min=1)
    return BatchStatistics(inverse_rms, phi, total * per_position, per_position, has_token)


def normalize(*args: Any) -> Tensor:
    """Normalise rows, with the approximate backward pass; the arguments are those of `_Normalize.forward`."""
    return cast(Tensor, _Normalize.apply(*args))  # type: ignore[no-untyped-call]


class _Normalize(torch.autograd.Function):
    """Normalise rows `(N, C)`; the approximate backward pass also moves `ema_gz`.

    Saved are x and tensors with one value per channel or per group of a token. Of ema_gz its nu at the time
    of the forward pass is saved: another backward pass may move ema_gz before this one runs.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        inverse_rms: Tensor | None,
        phi: Tensor,  # psi^2 of the forward pass, (C,)
        gradient_phi: Tensor | None,  # psi^2 of the backward pass; None: as in the forward pass
        nu: Tensor,
        phi_with_padding: Tensor,
        per_position: Tensor,
        ema_gz: Tensor,
        eps: float,
        process_group: ProcessGroup | None,
    ) -> Tensor:
        inverse_psi = (phi + eps).rsqrt()
        scale = inverse_psi if weight is None else inverse_psi * weight
        shift = scale.new_zeros(()) if bias is None else bias.to(scale.dtype)
        if triton_kernels := _triton_kernels(x):
            return cast(Tensor, triton_kernels.scale_and_shift(x, inverse_rms, scale, shift))
        output = torch.empty_like(x)
        for rows, inverse, out in _row_chunks(x, inverse_rms, output):
            write(out, torch.addcmul, shift, _scale_groups(upcast(rows), inverse), scale)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.ema_gz, ctx.eps, ctx.process_group = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, inverse_rms, phi, gradient_phi, nu, phi_with_padding, per_position = (
            ctx.saved_tensors
        )
        inverse_psi = (phi + ctx.eps).rsqrt()
        gradient_inverse_psi = inverse_psi if gradient_phi is None else (gradient_phi + ctx.eps).rsqrt()
        scale = gradient_inverse_psi if weight is None else gradient_inverse_psi * weight.detach()
        correction = nu * inverse_psi * gradient_inverse_psi
        gradients = _Gradients.forward if torch.compiler.is_compiling() else _Gradients.apply
        grad_x, sum_gz, sum_g = gradients(grad, x, inverse_rms, scale, correction)
        sum_gz = sum_gz * inverse_psi
        with torch.no_grad():
            total = sum_gz.detach()
            if ctx.process_group is not None:
                total = total.clone()
                all_reduce(total, group=ctx.process_group)
            mean_gz = total * per_position if weight is None else total * weight * per_position
            change = mean_gz - nu * inverse_psi.square() * phi_with_padding
            # A gradient that overflowed, as under a loss scaler, would stay in ema_gz for ever.
            ctx.ema_gz.add_(torch.where(change.isfinite().all(), change, 0.0))
        grad_weight = None if weight is None else sum_gz.to(weight.dtype)
        grad_bias = None if bias is None else sum_g.to(bias.dtype)
        return grad_x, grad_weight, grad_bias, *[None] * 9

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Fold the mapped dimension into the channels and groups."""
        *tensors, eps, process_group = args
        if in_dims[-3] is None:
            raise ValueError(
                "power norm under vmap needs one set of buffers per mapped layer; got a single ema_gz: map "
                "over ema_gz too"
            )
        folded = _fold_into_last_dim(info.batch_size, tensors, in_dims)
        return normalize(*folded, eps, process_group).unflatten(1, (info.batch_size, -1)), 1


class _Gradients(torch.autograd.Function):
    """The approximate gradient of x, and the sums over the rows of grad * u and of grad.

    A Function of its own, because vmap cannot follow an output that is written chunk by chunk, and because
    differentiating it again must raise.
    """

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, inverse_rms: Tensor | None, scale: Tensor, correction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if triton_kernels := _triton_kernels(x):
            found = triton_kernels.gradients(grad, x, inverse_rms, scale, correction)
            return cast(tuple[Tensor, Tensor, Tensor], found)
        grad_x, sums_gu, sums_g = torch.empty_like(x), [], []
        for g, rows, inverse, dx in _row_chunks(grad, x, inverse_rms, grad_x):
            g, u = upcast(g), _scale_groups(upcast(rows), inverse)
            sums_gu.append((g * u).sum(0))
            sums_g.append(g.sum(0))
            du = (g * scale).addcmul_(u, correction, value=-1)
            if inverse is None:
                dx.copy_(du)
                continue
            dx, du, u = (_by_group(t, inverse) for t in (dx, du, u))
            projection = (du * u).mean(-1, keepdim=True)
            write(dx, torch.mul, du.addcmul_(u, projection, value=-1), inverse.unsqueeze(-1))
        return grad_x, torch.stack(sums_gu).sum(0), torch.stack(sums_g).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "power norm is once_differentiable: its gradient in training is an approximation and has no "
            "derivative; use the layer in eval mode for second derivatives"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        folded = _fold_into_last_dim(info.batch_size, args, in_dims)
        gradients = _Gradients.apply(*folded)  # type: ignore[no-untyped-call]
        return tuple(t.unflatten(-1, (info.batch_size, -1)) for t in gradients), (1, 0, 0)


def _sums_of_squares(
    x: Tensor, is_token: Tensor | None, groups: int, group_eps: float
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Return `inverse_rms` (None without groups), and the sums of u^2 over all rows and over the tokens."""
    inverses, totals, token_totals = [], [], []
    for rows, token in _row_chunks(x, is_token):
        squares = upcast(rows).square()
        if groups:
            inverse = (squares.unflatten(1, (groups, -1)).mean(-1) + group_eps).rsqrt()
            squares = _scale_groups(squares, inverse.square())
            inverses.append(inverse)
        totals.append(squares.sum(0))
        if token is not None:
            # Masked rather than multiplied by 0: padding may hold NaN.
            token_totals.append(squares.masked_fill(~token.unsqueeze(1), 0).sum(0))
    inverse_rms = None
    if groups:
        inverse_rms = inverses[0] if len(inverses) == 1 else torch.cat(inverses)
    return (
        inverse_rms,
        torch.stack(totals).sum(0),
        torch.stack(token_totals).sum(0) if token_totals else None,
    )


def _triton_kernels(x: Tensor) -> Any:
    """Return the module of Triton kernels if it takes these rows: on a CUDA device, float32 or less."""
    if not x.is_cuda or x.dtype == torch.float64 or not x.numel() or torch.compiler.is_compiling():
        return None
    # A tensor subclass, or a tensor inside a torch.func transform, has no memory of its own.
    if type(x) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return None
    if find_spec("triton") is None:
        return None
    from trueup.nn._kernels import power_norm_triton

    return power_norm_triton


def _row_chunks(x: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Split `x` and the others along their rows into matching chunks; None stays None."""
    size = chunk_size(x, x.shape[1], len(x))
    columns = (repeat(None) if t is None else t.split(size) for t in (x, *others))
    return zip(*columns, strict=False)


def _scale_groups(x: Tensor, factor: Tensor | None) -> Tensor:
    """Multiply rows `(N, C)` by one factor `(N, groups)` per group of channels."""
    if factor is None:
        return x
    return (_by_group(x, factor) * factor.unsqueeze(-1)).flatten(1)


def _by_group(x: Tensor, factor: Tensor) -> Tensor:
    grouped: Tensor = x.unflatten(1, (factor.shape[1], -1))
    return grouped


def _fold_into_last_dim(
    batch: int, tensors: Sequence[Tensor | None], in_dims: Sequence[int | None]
) -> Iterator[Tensor | None]:
    """Fold a mapped dimension into the last one, of channels or of groups."""
    for t, dim in zip(tensors, in_dims):
        if t is not None:
            t = t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
            t = t.movedim(0, -2).flatten(-2)
        yield t
