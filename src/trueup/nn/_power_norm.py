"""Power normalisation: batch normalisation for transformers, by a running quadratic mean.

Problem: the batch statistics of text fluctuate, so the running statistics do not fit what a network learnt
with those of its batches. Idea: drop the mean; divide by the root of a quadratic mean psi^2 over the tokens
that is a running one in training too; and backpropagate through it approximately. Each token's groups of
channels are scaled first:

    u = x / sqrt(mean_group(x^2) + group_eps)    z = u / sqrt(psi^2 + eps)    y = weight * z + bias
    dL/du = (g - nu z) / sqrt(psi^2 + eps)       g = weight * dL/dy
    psi^2 <- alpha_fwd psi^2 + (1 - alpha_fwd) mean(u^2)
    nu <- nu + (1 - alpha_bkw) * mean((g - nu z) z)

Shen, Yao, Gholami, Mahoney, Keutzer: PowerNorm, ICML 2020, arXiv 2003.07845, which writes the same rule as
nu <- nu (1 - (1 - alpha) mean(z^2)) + (1 - alpha) mean(g z). The buffer `ema_gz` is nu / (1 - alpha_bkw), as
in the official code. From that code come the group scaling and a warm-up in which psi^2 is the batch's own,
psi_B^2. It divides the gradient by psi_B after the warm-up too, though the forward pass divides by the
running psi: `variant="official"` does so and gave the published results, while the default has the same psi
in both, as in the paper.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from trueup._numerics.recomputation import is_recomputing, snapshot
from trueup._numerics.upcasting import upcast
from trueup.nn._kernels.power_norm import batch_statistics, normalize
from trueup.nn._validation import check_choice, check_eps, check_int, check_unit_interval

__all__ = ["PowerNorm1d", "PowerNorm2d", "power_norm"]

Variant = Literal["paper", "official"]


# ---- the equation ----


def scale_groups(x: Float[Tensor, "tokens channels"], groups: int, eps: float) -> Tensor:
    """Compute u: divide each token's groups of channels by their root mean square, unless `groups` is 0."""
    if not groups:
        return x
    grouped: Tensor = x.unflatten(1, (groups, -1))
    return (grouped * (grouped.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(1)


def equation(
    u: Float[Tensor, "tokens channels"],
    phi: Float[Tensor, " channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    eps: float,
    *,
    gradient_phi: Float[Tensor, " channels"] | None = None,
    nu: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "tokens channels"]:
    """Compute y from u and a given psi^2, `phi`; `gradient_phi` is the psi^2 of the backward pass if another.

    Without `nu` the gradient is exact for a constant `phi`, and can be differentiated again.
    """
    z = u * (phi + eps).rsqrt()
    if gradient_phi is not None:
        other = u * (gradient_phi + eps).rsqrt()
        z = other + (z - other).detach()
    if nu is not None:
        z.register_hook(lambda g, z=z.detach(): g - nu * z)
    z = z if weight is None else z * weight
    return z if bias is None else z + bias


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
    variant: Variant = "paper",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*tokens channels"]:
    """Divide each channel by the root of its quadratic mean over the tokens; channels come last.

    Training batch t (from 1) is divided by the root of its own quadratic mean up to t = `warmup_iters`, and
    from then on by that of `running_phi` as it was before the batch; then `running_phi` and `iters` are
    updated. Every backward pass updates `ema_gz`. With `training=False` nothing is updated, and the gradient
    is exact.

    Args:
        input: floating point, `(*, C)`; all leading dimensions are tokens.
        running_phi: `(C,)`, the running quadratic mean psi^2; starts at 1.
        ema_gz: `(C,)`, nu / (1 - alpha_bkw) of the approximate backward pass; starts at 0.
        iters: `(1,)` int64, number of training batches seen.
        weight, bias: `(C,)` or None.
        training: normalise as in training, and update the state.
        eps: > 0, added to the quadratic mean under the root.
        key_padding_mask: shape of `input` without C, True where a token is padding. Padding does not count in
            psi_B^2. It counts in the means of the backward pass, as in the official code: keep it finite.
        alpha_fwd, alpha_bkw: in [0, 1], how much of psi^2 and of nu a batch keeps; `alpha_bkw=1` is nu = 0.
        warmup_iters: >= 0. Before this batch psi^2 is first set to the plain average over all batches.
        group_num: number of groups of consecutive channels that are scaled in each token; divides C.
        group_scaling: scale them, as the official code does; False is the paper's method.
        group_eps: > 0, of the group scaling alone.
        variant: `"paper"` divides the gradient by the psi of the forward pass; `"official"` divides it by
            psi_B, after the warm-up too, as the official code does.
        process_group: take the means over the tokens of all its processes; None: of this process.

    A batch without a token (empty, or all padding) is divided by the root of `running_phi` and updates no
    state. Statistics are computed in float32 or better. In training the gradient is an approximation by
    design, and cannot be differentiated again. On CUDA devices with Triton its kernels do the passes over the
    tokens; sums then differ by rounding.

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
    _check_options(features, eps, alpha_fwd, alpha_bkw, warmup_iters, group_num, group_eps, variant)
    groups = group_num if group_scaling else 0
    x = input.reshape(-1, features)
    if not training:
        u = scale_groups(upcast(x), groups, group_eps)
        return equation(u, upcast(running_phi), weight, bias, eps).to(input.dtype).view(input.shape)

    is_token = None if key_padding_mask is None else ~key_padding_mask.reshape(-1)
    with torch.no_grad():
        batch = batch_statistics(x, is_token, groups, group_eps, process_group)
        recomputed = is_recomputing()
        step = iters if recomputed else iters + 1
        running = before = upcast(snapshot(running_phi))
        if recomputed and alpha_fwd > 0:
            # The first pass has updated running_phi: undo that, to normalise as it did.
            undone = (running - (1 - alpha_fwd) * batch.phi) / alpha_fwd
            before = torch.where(batch.has_token, undone, running)
        phi = torch.where(batch.has_token & (step <= warmup_iters), batch.phi, before)
        gradient_phi = torch.where(batch.has_token, batch.phi, phi) if variant == "official" else None
        nu = (1 - alpha_bkw) * upcast(snapshot(ema_gz))

    if torch.compiler.is_exporting():
        # An exported graph has no place for the approximate backward pass and its update: nu = 0.
        u = scale_groups(upcast(x), groups, group_eps)
        output = equation(u, phi, weight, bias, eps, gradient_phi=gradient_phi).to(x.dtype)
    else:
        output = normalize(
            x, weight, bias, batch.inverse_rms, phi, gradient_phi, nu,
            batch.phi_with_padding, batch.per_position, ema_gz, eps, process_group,
        )  # fmt: skip

    if not recomputed:
        with torch.no_grad():
            # As in the official code: after the plain average, which leaves out the warm-up's last batch.
            averaged = running * (step - 1) / step + batch.phi / step
            updated = torch.where(step < warmup_iters, averaged, running)
            updated = alpha_fwd * updated + (1 - alpha_fwd) * batch.phi
            running_phi.copy_(torch.where(batch.has_token, updated, running))
            iters.add_(batch.has_token.to(iters.dtype))
    return output.view(input.shape)


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
            f"key_padding_mask must have one value per token, shape {tuple(input.shape[:-1])}; "
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
    variant: Variant,
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
    check_choice("variant", variant, get_args(Variant))


class _PowerNorm(nn.Module):
    """Parameters and state of `PowerNorm1d` and `PowerNorm2d`, which differ in the shape of their input."""

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
        variant: Variant = "paper",
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("num_features", num_features, 1)
        _check_options(num_features, eps, alpha_fwd, alpha_bkw, warmup_iters, group_num, group_eps, variant)
        self.num_features = num_features
        self.eps = eps
        self.alpha_fwd = alpha_fwd
        self.alpha_bkw = alpha_bkw
        self.affine = affine
        self.warmup_iters = warmup_iters
        self.group_num = group_num
        self.group_scaling = group_scaling
        self.group_eps = group_eps
        self.variant: Variant = variant
        self.process_group = process_group
        for name in ("weight", "bias"):
            values = torch.empty(num_features, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if affine else None)
        self.register_buffer("running_phi", torch.empty(num_features, device=device, dtype=dtype))
        self.register_buffer("ema_gz", torch.empty(num_features, device=device, dtype=dtype))
        self.register_buffer("iters", torch.empty(1, device=device, dtype=torch.int64))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set the state to that before the first batch."""
        self.running_phi.fill_(1)
        self.ema_gz.zero_()
        self.iters.zero_()

    def reset_parameters(self) -> None:
        """Set the weight to 1, the bias to 0, and the state to that before the first batch."""
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
            variant=self.variant,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        groups = f", group_num={self.group_num}" if self.group_scaling else ", group_scaling=False"
        return (
            f"{self.num_features}, eps={self.eps}, alpha_fwd={self.alpha_fwd}, alpha_bkw={self.alpha_bkw}, "
            f"affine={self.affine}, warmup_iters={self.warmup_iters}{groups}"
            + (", variant='official'" if self.variant == "official" else "")
        )


class PowerNorm1d(_PowerNorm):
    """Power normalisation of tokens `(B, T, C)` or `(N, C)`, in the place of `torch.nn.LayerNorm(C)`.

    Args:
        num_features: number of channels C.
        eps: > 0, added to the quadratic mean under the root.
        alpha_fwd, alpha_bkw: in [0, 1], how much of the running quadratic mean and of nu a batch keeps.
        affine: learn a weight and a bias per channel.
        warmup_iters: number of training batches that are divided by the root of their own quadratic mean; the
            official models take as many as the learning rate's warm-up. Evaluate after some of them:
            `running_phi` starts at 1.
        group_num: number of groups of channels that are scaled in each token; the official models take the
            number of attention heads. It divides C.
        group_scaling: scale them, as the official code does; False is the paper's method.
        group_eps: > 0, of the group scaling alone; 1e-5 in the official code.
        variant: `"paper"` divides the gradient by the psi of the forward pass, `"official"` by the batch's
            root mean square, as the official code does; the two differ after the warm-up.
        batch_first: the input is `(B, T, C)`; if False `(T, B, C)`. Only the mask depends on it.
        process_group: take statistics over all its processes; None: each process keeps its own.
        device, dtype: of the parameters and buffers.

    The state dict holds `running_phi` (C,) and `iters` (1,), which every training batch updates, and `ema_gz`
    (C,), which every BACKWARD pass updates. So:

    - with gradients accumulated over k batches all three are updated k times per step;
    - under activation checkpointing the recomputed forward pass updates nothing and normalises as the first
      one did, up to rounding, if `alpha_fwd > 0` and the layer is used once in the checkpointed part;
    - under `DistributedDataParallel` without a process group, rank 0's state is broadcast before each forward
      pass, like that of `BatchNorm`; with one, the processes' states are equal;
    - an exported layer trains with nu = 0, and its `ema_gz` stays.

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
        variant: Variant = "paper",
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
            variant=variant,
            process_group=process_group,
            device=device,
            dtype=dtype,
        )
        self.batch_first = batch_first

    @classmethod
    def from_module(cls, module: nn.Module, **options: Any) -> PowerNorm1d:
        """Build a layer of the size of a `LayerNorm` over one dimension; `trueup.nn.convert` calls this.

        Raises:
            TypeError: the module is not a `LayerNorm`.
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
        """Normalise; `key_padding_mask` is `(B, T)` (`(N,)` for `(N, C)`), True for padding."""
        if input.dim() not in (2, 3):
            raise ValueError(
                f"PowerNorm1d needs input (B, T, C) or (N, C); got shape {tuple(input.shape)}: use "
                "PowerNorm2d for (N, C, H, W)"
            )
        if key_padding_mask is not None and not self.batch_first and key_padding_mask.dim() == 2:
            key_padding_mask = key_padding_mask.t()
        return self._normalize(input, key_padding_mask)


class PowerNorm2d(_PowerNorm):
    """Power normalisation of `(N, C, H, W)`, in the place of `torch.nn.BatchNorm2d`; pixels are tokens.

    Arguments but `batch_first`, state, errors and source are those of `PowerNorm1d`. The memory format stays;
    channels last is faster.

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
