"""Power normalisation: batch normalisation for transformers, by a running quadratic mean.

Problem: the batch statistics of text fluctuate, so what batch normalisation learns with them does not hold
with the running ones. Idea: drop the mean, divide by the root of a quadratic mean psi^2 over the tokens that
runs in training too, and go back through it approximately. After scaling each token's groups of channels,

    u = x / sqrt(mean_group(x^2) + group_eps)    z = u / sqrt(psi^2 + eps)    y = weight * z + bias
    dL/du = (g - nu z) / sqrt(psi_B^2 + eps)     g = weight * dL/dy           psi_B^2 = mean_tokens(u^2)
    nu <- nu + (1 - alpha_bkw) * mean((g - nu z) z)

The code keeps ema_gz = nu / (1 - alpha_bkw), so its rule and the paper's, nu (1 - (1 - alpha) mean(z^2)) +
(1 - alpha) mean(g z), are one. Shen, Yao, Gholami, Mahoney, Keutzer: PowerNorm, ICML 2020, arXiv 2003.07845.
As in the official code: group scaling, warm-up by psi_B, backward by psi_B (``backward="paper"``: by psi).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import repeat
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce

from trueup._numerics.chunking import chunk_size, write
from trueup._numerics.recomputation import is_recomputing, snapshot
from trueup._numerics.upcasting import upcast
from trueup.nn._validation import check_eps, check_int, check_unit_interval

__all__ = ["PowerNorm1d", "PowerNorm2d", "power_norm"]

Backward = Literal["official", "paper"]


def power_norm(
    input: Float[Tensor, "*tokens channels"],
    running_phi: Float[Tensor, " channels"],
    ema_gz: Float[Tensor, " channels"],
    iters: Int[Tensor, " 1"],
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    training: bool = False,
    eps: float = 1e-5,
    *,
    key_padding_mask: Bool[Tensor, "*tokens"] | None = None,
    alpha_fwd: float = 0.9,
    alpha_bkw: float = 0.9,
    warmup_iters: int = 10000,
    group_num: int = 1,
    group_scaling: bool = True,
    group_eps: float = 1e-5,
    backward: Backward = "official",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*tokens channels"]:
    """Divide each channel by the root of its quadratic mean over the tokens; channels come last.

    Training batch t (from 1) is divided by its own quadratic mean up to t = ``warmup_iters``, and by
    ``running_phi`` as it was before the batch from then on; then ``running_phi`` and ``iters`` move. Every
    backward pass moves ``ema_gz``. With ``training=False`` nothing moves, and autograd is exact.

    Args:
        input: floating point, ``(*, C)``; all leading dimensions are tokens.
        running_phi: ``(C,)``, the running quadratic mean psi^2; starts at 1.
        ema_gz: ``(C,)``, nu / (1 - alpha_bkw) of the approximate backward; starts at 0.
        iters: ``(1,)`` int64, training batches seen.
        weight, bias: ``(C,)`` or None.
        training: normalise and move the state as in training.
        eps: > 0, added to the quadratic mean under the root.
        key_padding_mask: shape of ``input`` without C, True where a token is padding. Padding is left out of
            psi_B^2, and, as in the official code, not out of the means of the backward: it must be finite.
        alpha_fwd, alpha_bkw: in [0, 1], how much psi^2 and nu keep. ``alpha_bkw=1`` means nu = 0.
        warmup_iters: >= 0. Below it psi^2 is first set to the plain average of all batches.
        group_num: groups of consecutive channels that are scaled by themselves in each token; divides C.
        group_scaling: scale them; False is the paper's method.
        group_eps: > 0, of the group scaling alone.
        backward: ``"official"`` divides the gradient by psi_B, ``"paper"`` by the psi of the forward.
        process_group: take the means over the tokens of all its processes; None: of this process.

    A batch without a token (empty, or all padding) is divided by ``running_phi`` and moves no state.
    Statistics are taken in float32 or better whatever the input's dtype. The gradient is not that of the
    forward, by design, and cannot be differentiated again. On CUDA devices Triton does the passes over the
    tokens, where it is installed; sums then differ by rounding.

    Raises:
        TypeError: the input is not floating point, or the mask not boolean.
        ValueError: a shape, size or option that does not fit.

    Source: sections 4.1 and 4.2 and algorithm 2 of the paper; `MaskPowerNorm` of the official code.

    >>> x = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [3.0, 1.0]])
    >>> phi, gz, iters = torch.ones(2), torch.zeros(2), torch.zeros(1, dtype=torch.long)
    >>> power_norm(x, phi, gz, iters, training=True, group_scaling=False)
    tensor([[ 1.0000,  1.0000],
            [-1.0000,  1.0000],
            [ 1.0000,  1.0000]])
    >>> phi.round(decimals=3), iters
    (tensor([9., 1.]), tensor([1]))
    """
    features = input.shape[-1] if input.dim() else 0
    _check_input(input, running_phi, ema_gz, weight, bias, key_padding_mask)
    _check_options(features, eps, alpha_fwd, alpha_bkw, warmup_iters, group_num, group_eps, backward)
    groups = group_num if group_scaling else 0
    x = input.reshape(-1, features)
    if not training:
        z = _scaled_plainly(x, groups, group_eps) * (upcast(running_phi) + eps).rsqrt()
        return _affine(z, weight, bias).to(input.dtype).view(input.shape)

    keep = None if key_padding_mask is None else ~key_padding_mask.reshape(-1)
    with torch.no_grad():
        rms, batch, energy, share, real = _statistics(x, keep, groups, group_eps, process_group)
        again = is_recomputing()
        step = iters if again else iters + 1
        phi = upcast(snapshot(running_phi))
        before = phi
        if again and alpha_fwd > 0:
            # The first pass moved running_phi: undo its step, to normalise as it did.
            before = torch.where(real, (phi - (1 - alpha_fwd) * batch) / alpha_fwd, phi)
        used = torch.where(real & (step <= warmup_iters), batch, before)
        forward_scale = (used + eps).rsqrt()
        backward_scale = (torch.where(real & (backward == "official"), batch, used) + eps).rsqrt()
        nu = (1 - alpha_bkw) * upcast(snapshot(ema_gz))

    if torch.compiler.is_exporting():
        # An exported graph holds plain operations, not the Function below, and no change of ema_gz.
        u = _scaled_plainly(x, groups, group_eps)
        there, back = u * forward_scale, u * backward_scale
        output = _affine(back + (there - back).detach(), weight, bias).to(x.dtype)
    else:
        output = _normalize(
            x, weight, bias, rms, forward_scale, backward_scale, nu, energy, share, ema_gz, process_group
        )

    if not again:
        with torch.no_grad():
            # On top of the plain average, and the last batch of the warm-up is not averaged: official.
            averaged = phi * (step - 1) / step + batch / step
            moved = torch.where(step < warmup_iters, averaged, phi)
            moved = alpha_fwd * moved + (1 - alpha_fwd) * batch
            running_phi.copy_(torch.where(real, moved, phi))
            iters.add_(real.to(iters.dtype))
    return output.view(input.shape)


def _affine(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    z = z if weight is None else z * weight
    return z if bias is None else z + bias


def _scaled_plainly(x: Tensor, groups: int, eps: float) -> Tensor:
    """u, in operations that autograd knows; ``groups=0``: no group scaling."""
    x = upcast(x)
    if not groups:
        return x
    parts: Tensor = x.unflatten(1, (groups, -1))
    return (parts * (parts.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(1)


class _Statistics(NamedTuple):
    rms: Tensor | None  # (N, groups): 1 / sqrt(mean_group(x^2) + group_eps)
    batch: Tensor  # (C,): psi_B^2, the mean of u^2 over the real tokens; 0 without one
    energy: Tensor  # (C,): the mean of u^2 over all positions, for the backward
    share: Tensor  # (C,): 1 / positions. Without a real token both are 0, so that ema_gz stays.
    real: Tensor  # (1,) bool: is there a real token?


def _statistics(
    x: Tensor, keep: Tensor | None, groups: int, eps: float, group: ProcessGroup | None
) -> _Statistics:
    kernels = _kernels(x)
    rms, total, kept = (kernels.squares if kernels else _squares)(x, keep, groups, eps)
    positions = torch.full((1,), len(x), dtype=total.dtype, device=x.device)
    real_total, tokens = total, positions
    if keep is not None:
        real_total, tokens = kept, keep.sum(0, keepdim=True).to(total.dtype)
    if group is not None:
        together = torch.cat([total, real_total, positions, tokens])
        all_reduce(together, group=group)
        total, real_total, positions, tokens = together.split([len(total), len(total), 1, 1])
    real = tokens > 0
    share = torch.where(real, 1 / positions.clamp(min=1), torch.zeros_like(positions)).expand_as(total)
    return _Statistics(rms, real_total / tokens.clamp(min=1), total * share, share, real)


def _squares(
    x: Tensor, keep: Tensor | None, groups: int, eps: float
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """``rms`` of each row's groups (None without), and the sums of u^2 over all rows and over kept ones."""
    rms, sums, kept = [], [], []
    for part, real in _strips(x, keep):
        squares = upcast(part).square()
        if groups:
            inverse = (squares.unflatten(1, (groups, -1)).mean(-1) + eps).rsqrt()
            squares = _times(squares, inverse.square())
            rms.append(inverse)
        sums.append(squares.sum(0))
        if real is not None:
            # Left out by value: padding may hold anything here, even NaN.
            kept.append(squares.masked_fill(~real.unsqueeze(1), 0).sum(0))
    return (
        _joined(rms) if groups else None,
        torch.stack(sums).sum(0),
        torch.stack(kept).sum(0) if kept else None,
    )


def _kernels(x: Tensor) -> Any:
    """The module of Triton kernels if they take these rows: plain, on a CUDA device, float32 or less."""
    if not x.is_cuda or x.dtype == torch.float64 or not x.numel() or torch.compiler.is_compiling():
        return None
    # Tensors that stand for others have no memory of their own.
    if type(x) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return None
    if find_spec("triton") is None:
        return None
    from trueup.nn._kernels import power_norm_triton

    return power_norm_triton


def _strips(x: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The rows of x and of what goes with them, as many at a time as a CPU's cache holds."""
    size = chunk_size(x, x.shape[1], len(x))
    columns = (repeat(None) if t is None else t.split(size) for t in (x, *others))
    return zip(*columns, strict=False)


def _joined(strips: list[Tensor]) -> Tensor:
    return strips[0] if len(strips) == 1 else torch.cat(strips)


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    """``(N, C)`` times ``(N, groups)``."""
    if factor is None:
        return x
    return (_by_group(x, factor) * factor.unsqueeze(-1)).flatten(1)


def _by_group(x: Tensor, factor: Tensor) -> Tensor:
    parts: Tensor = x.unflatten(1, (factor.shape[1], -1))
    return parts


class _Normalize(torch.autograd.Function):
    """Rows ``(N, C)`` -> normalised, with the approximate backward that also moves ``ema_gz``.

    Saved: x, and what is of the size of a channel or of a token's groups. nu, made of ema_gz at the forward,
    is saved rather than ema_gz: another backward may move that before this one runs.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        rms: Tensor | None,
        forward_scale: Tensor,
        backward_scale: Tensor,
        nu: Tensor,
        energy: Tensor,
        share: Tensor,
        ema_gz: Tensor,
        group: ProcessGroup | None,
    ) -> Tensor:
        scale = forward_scale if weight is None else forward_scale * weight
        shift = scale.new_zeros(()) if bias is None else bias.to(scale.dtype)
        if kernels := _kernels(x):
            return cast(Tensor, kernels.normalized(x, rms, scale, shift))
        output = torch.empty_like(x)
        for part, factor, y in _strips(x, rms, output):
            write(y, torch.addcmul, shift, _times(upcast(part), factor), scale)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.ema_gz, ctx.group = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, rms, forward_scale, backward_scale, nu, energy, share = ctx.saved_tensors
        scale = backward_scale if weight is None else backward_scale * weight.detach()
        pull = nu * forward_scale * backward_scale
        gradients = _Gradients.forward if torch.compiler.is_compiling() else _Gradients.apply
        grad_x, sum_gz, sum_g = gradients(grad, x, rms, scale, pull)
        sum_gz = sum_gz * forward_scale
        with torch.no_grad():
            total = sum_gz.detach()
            if ctx.group is not None:
                total = total.clone()
                all_reduce(total, group=ctx.group)
            mean_gz = total * share if weight is None else total * weight * share
            change = mean_gz - nu * forward_scale.square() * energy
            # A gradient that overflowed, as a loss scaler's may, must not stay in all that follow.
            ctx.ema_gz.add_(torch.where(change.isfinite().all(), change, 0.0))
        grad_weight = None if weight is None else sum_gz.to(weight.dtype)
        grad_bias = None if bias is None else sum_g.to(bias.dtype)
        return grad_x, grad_weight, grad_bias, *[None] * 8

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Layers side by side are one, with as many times the channels and groups."""
        *tensors, group = args
        if in_dims[-2] is None:
            raise ValueError("power norm under vmap needs buffers of its own for each: map over ema_gz too")
        folded = _side_by_side(info.batch_size, tensors, in_dims)
        return _normalize(*folded, group).unflatten(1, (info.batch_size, -1)), 1


class _Gradients(torch.autograd.Function):
    """The approximate gradient of x, and the sums over the rows of grad u and of grad.

    A Function of its own, because it writes its output strip by strip, which vmap cannot follow, and because
    it must say so when it is differentiated.
    """

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, rms: Tensor | None, scale: Tensor, pull: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if kernels := _kernels(x):
            return cast(tuple[Tensor, Tensor, Tensor], kernels.gradients(grad, x, rms, scale, pull))
        grad_x, along_z, along_one = torch.empty_like(x), [], []
        for g, part, factor, dx in _strips(grad, x, rms, grad_x):
            g, u = upcast(g), _times(upcast(part), factor)
            along_z.append((g * u).sum(0))
            along_one.append(g.sum(0))
            du = (g * scale).addcmul_(u, pull, value=-1)
            if factor is None:
                dx.copy_(du)
                continue
            dx, du, u = (_by_group(t, factor) for t in (dx, du, u))
            inner = (du * u).mean(-1, keepdim=True)
            write(dx, torch.mul, du.addcmul_(u, inner, value=-1), factor.unsqueeze(-1))
        return grad_x, torch.stack(along_z).sum(0), torch.stack(along_one).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "power norm is once_differentiable: its gradient in training is an approximation that is no "
            "function to differentiate again; use the layer in eval mode for that"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        folded = _side_by_side(info.batch_size, args, in_dims)
        gradients = _Gradients.apply(*folded)  # type: ignore[no-untyped-call]
        return tuple(t.unflatten(-1, (info.batch_size, -1)) for t in gradients), (1, 0, 0)


def _side_by_side(
    batch: int, tensors: Sequence[Tensor | None], in_dims: Sequence[int | None]
) -> Iterator[Tensor | None]:
    """Fold a mapped dimension into the last one, of channels or of groups."""
    for t, dim in zip(tensors, in_dims):
        if t is not None:
            t = t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
            t = t.movedim(0, -2).flatten(-2)
        yield t


def _normalize(*args: Any) -> Tensor:
    return cast(Tensor, _Normalize.apply(*args))  # type: ignore[no-untyped-call]


def _check_input(
    input: Tensor,
    running_phi: Tensor,
    ema_gz: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
) -> None:
    if not input.is_floating_point() or input.dtype.itemsize < 2:
        raise TypeError(f"power norm needs a floating point input; got {input.dtype}: convert with .float()")
    if input.dim() < 2:
        raise ValueError(f"power norm needs input (*, C) with tokens; got shape {tuple(input.shape)}")
    for name, value in (
        ("running_phi", running_phi), ("ema_gz", ema_gz), ("weight", weight), ("bias", bias)
    ):  # fmt: skip
        if value is not None and tuple(value.shape) != (input.shape[-1],):
            raise ValueError(
                f"input of shape {tuple(input.shape)} has {input.shape[-1]} channels, but {name} has shape "
                f"{tuple(value.shape)}: build the layer with num_features={input.shape[-1]}, or move the "
                "channels last"
            )
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"key_padding_mask must be boolean, True for padding; got {mask.dtype}")
    if mask.shape != input.shape[:-1]:
        raise ValueError(
            f"key_padding_mask must have a value for each of the tokens {tuple(input.shape[:-1])}; "
            f"got shape {tuple(mask.shape)}"
        )


def _check_options(
    features: int,
    eps: float,
    alpha_fwd: float,
    alpha_bkw: float,
    warmup_iters: int,
    group_num: int,
    group_eps: float,
    backward: Backward,
) -> None:
    check_eps(eps, zero=False)
    check_eps(group_eps, "group_eps", zero=False)
    check_unit_interval("alpha_fwd", alpha_fwd)
    check_unit_interval("alpha_bkw", alpha_bkw)
    check_int("warmup_iters", warmup_iters, 0)
    check_int("group_num", group_num, 1)
    if features % group_num:
        raise ValueError(
            f"power norm needs num_features divisible by group_num; got num_features={features}, "
            f"group_num={group_num}: pass a divisor, say the number of attention heads"
        )
    if backward not in get_args(Backward):
        raise ValueError(f"backward must be one of {get_args(Backward)}; got {backward!r}")


class _PowerNorm(nn.Module):
    """State of the two public layers; what is theirs is the shape of the input."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_phi: Tensor
    ema_gz: Tensor
    iters: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        alpha_fwd: float = 0.9,
        alpha_bkw: float = 0.9,
        affine: bool = True,
        warmup_iters: int = 10000,
        group_num: int = 1,
        group_scaling: bool = True,
        group_eps: float = 1e-5,
        backward: Backward = "official",
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("num_features", num_features, 1)
        _check_options(num_features, eps, alpha_fwd, alpha_bkw, warmup_iters, group_num, group_eps, backward)
        self.num_features = num_features
        self.eps = eps
        self.alpha_fwd = alpha_fwd
        self.alpha_bkw = alpha_bkw
        self.affine = affine
        self.warmup_iters = warmup_iters
        self.group_num = group_num
        self.group_scaling = group_scaling
        self.group_eps = group_eps
        self.backward = backward
        self.process_group = process_group
        for name in ("weight", "bias"):
            values = torch.empty(num_features, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if affine else None)
        self.register_buffer("running_phi", torch.empty(num_features, device=device, dtype=dtype))
        self.register_buffer("ema_gz", torch.empty(num_features, device=device, dtype=dtype))
        self.register_buffer("iters", torch.empty(1, device=device, dtype=torch.int64))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """The state before the first batch."""
        self.running_phi.fill_(1)
        self.ema_gz.zero_()
        self.iters.zero_()

    def reset_parameters(self) -> None:
        """Weight one, bias zero, and the state before the first batch."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def _normalize(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return power_norm(
            input,
            self.running_phi,
            self.ema_gz,
            self.iters,
            self.weight,
            self.bias,
            self.training,
            self.eps,
            key_padding_mask=mask,
            alpha_fwd=self.alpha_fwd,
            alpha_bkw=self.alpha_bkw,
            warmup_iters=self.warmup_iters,
            group_num=self.group_num,
            group_scaling=self.group_scaling,
            group_eps=self.group_eps,
            backward=self.backward,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        groups = f", group_num={self.group_num}" if self.group_scaling else ", group_scaling=False"
        return (
            f"{self.num_features}, eps={self.eps}, alpha_fwd={self.alpha_fwd}, alpha_bkw={self.alpha_bkw}, "
            f"affine={self.affine}, warmup_iters={self.warmup_iters}{groups}"
        )


class PowerNorm1d(_PowerNorm):
    """Power normalisation of tokens ``(B, T, C)`` or ``(N, C)``, where `torch.nn.LayerNorm(C)` would stand.

    Args:
        num_features: channels C.
        eps: > 0, added to the quadratic mean under the root.
        alpha_fwd, alpha_bkw: in [0, 1], how much of the running quadratic mean and of nu a batch keeps.
        affine: learn a weight and a bias per channel.
        warmup_iters: training batches that are divided by their own quadratic mean; the official models take
            as many as the learning rate's warm-up. Evaluate after some of them: ``running_phi`` starts at 1.
        group_num: groups of channels scaled by themselves in each token; the official models take the
            number of attention heads. It divides C.
        group_scaling: scale them, as the official code does; False is the paper's method.
        group_eps: > 0, of the group scaling alone; 1e-5 in the official code.
        backward: ``"official"`` divides the gradient by the batch's root mean square, ``"paper"`` by the
            statistic of the forward.
        batch_first: input ``(B, T, C)``; if False ``(T, B, C)``. It matters for the mask alone.
        process_group: take statistics over all its processes; None: each process keeps its own.
        device, dtype: of the parameters and buffers.

    State, in the state dict: ``running_phi`` (C,) and ``iters`` (1,) move with every training batch,
    ``ema_gz`` (C,) with every BACKWARD pass, so:

    - with gradients accumulated over k batches all three move k times a step;
    - under activation checkpointing the recomputed forward moves nothing and normalises as the first did, to
      rounding, if ``alpha_fwd > 0`` and the layer is used once in the checkpointed part;
    - under `DistributedDataParallel` without a process group, rank 0's state is broadcast before each
      forward, as that of `BatchNorm`; with one, the processes' states are equal anyway;
    - an exported layer trains with nu = 0, and its ``ema_gz`` stays.

    Raises:
        ValueError, TypeError: a setting out of range; an input of another rank or number of channels; a mask
            of another shape or dtype.

    Source: Shen et al. 2020 (arXiv 2003.07845), algorithm 2; `MaskPowerNorm` of the official code.

    >>> layer = PowerNorm1d(8, group_num=4, warmup_iters=100)
    >>> padding = torch.tensor([[False, False, True], [False, False, False]])
    >>> layer(torch.randn(2, 3, 8), padding).shape
    torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        alpha_fwd: float = 0.9,
        alpha_bkw: float = 0.9,
        affine: bool = True,
        warmup_iters: int = 10000,
        group_num: int = 1,
        group_scaling: bool = True,
        group_eps: float = 1e-5,
        backward: Backward = "official",
        batch_first: bool = True,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            alpha_fwd=alpha_fwd,
            alpha_bkw=alpha_bkw,
            affine=affine,
            warmup_iters=warmup_iters,
            group_num=group_num,
            group_scaling=group_scaling,
            group_eps=group_eps,
            backward=backward,
            process_group=process_group,
            device=device,
            dtype=dtype,
        )
        self.batch_first = batch_first

    @classmethod
    def from_module(cls, module: nn.Module, **options: Any) -> PowerNorm1d:
        """A layer of the size of a `LayerNorm` over one dimension; `trueup.nn.convert` calls this.

        Raises:
            TypeError: the module is no `LayerNorm`.
            ValueError: it normalises more than one dimension.
        """
        if not isinstance(module, nn.LayerNorm):
            raise TypeError(f"PowerNorm1d takes the place of LayerNorm; got {type(module).__name__}")
        if len(module.normalized_shape) != 1:
            raise ValueError(
                f"PowerNorm1d has one dimension of channels; got LayerNorm({module.normalized_shape})"
            )
        settings = {"eps": module.eps, "affine": module.elementwise_affine}
        return cls(module.normalized_shape[0], **(settings | options))

    def forward(
        self,
        input: Float[Tensor, "*tokens channels"],
        key_padding_mask: Bool[Tensor, "*padding"] | None = None,
    ) -> Float[Tensor, "*tokens channels"]:
        """Normalise; ``key_padding_mask`` is ``(B, T)`` (``(N,)`` for ``(N, C)``), True for padding."""
        if input.dim() not in (2, 3):
            raise ValueError(
                f"PowerNorm1d needs input (B, T, C) or (N, C); got shape {tuple(input.shape)}: use "
                "PowerNorm2d for (N, C, H, W)"
            )
        if key_padding_mask is not None and not self.batch_first and key_padding_mask.dim() == 2:
            key_padding_mask = key_padding_mask.t()
        return self._normalize(input, key_padding_mask)


class PowerNorm2d(_PowerNorm):
    """Power normalisation of ``(N, C, H, W)``, where `torch.nn.BatchNorm2d` would stand; tokens are pixels.

    Arguments, state, errors and source as `PowerNorm1d`, without ``batch_first``. The memory format is kept;
    channels last is the faster one.

    >>> layer = PowerNorm2d(8)
    >>> layer(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Normalise each channel over samples and pixels."""
        if input.dim() != 4:
            raise ValueError(
                f"PowerNorm2d needs input (N, C, H, W); got shape {tuple(input.shape)}: use PowerNorm1d for "
                "(B, T, C)"
            )
        pixels = input.movedim(1, -1)
        output = self._normalize(pixels).movedim(-1, 1)
        return output if pixels.is_contiguous() else output.contiguous()
