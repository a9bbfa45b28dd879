"""EvoNorm: normalisation and activation in one layer, found by evolution.

Problem: normalisation and activation are designed apart though they always stand together, and batch
normalisation fails on small batches. Idea: one expression for both, searched for over basic operations. None
of those found subtracts a mean; what divides is, with population variances, eps inside every root and s, q
for the root of the variance and of the mean square,

    B0: y = x / max(s_channel, v x + s_instance) * weight + bias        v, weight, bias: one a channel
    B1: y = x / max(s_channel, (x + 1) q_instance) * weight + bias
    B2: y = x / max(s_channel, q_instance - x) * weight + bias
    S0: y = x sigmoid(v x) / s_group * weight + bias                     S1: v = 1    S2: v = 1, q_group

"channel" is over the batch (evaluation takes a running variance), the others within a sample. Liu, Brock,
Simonyan, Le: Evolving Normalization-Activation Layers, NeurIPS 2020, arXiv 2004.02967. The running variance
is unbiased, as in `torch.nn.BatchNorm2d` and timm; the official TensorFlow code keeps the biased one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trueup._numerics.per_channel import per_channel_view, restore_shape
from trueup._numerics.recomputation import is_recomputing
from trueup._numerics.upcasting import upcast, upcast_parameters
from trueup.nn._kernels.evonorm import BatchPlan, BatchVariant, SamplePlan, batch_norm, divide, sample_norm
from trueup.nn._validation import (
    check_eps,
    check_input,
    check_int,
    check_unit_interval,
    empty_result,
    has_single_value_per_channel,
)

__all__ = [
    "EvoNorm2dB0",
    "EvoNorm2dB1",
    "EvoNorm2dB2",
    "EvoNorm2dS0",
    "EvoNorm2dS0a",
    "EvoNorm2dS1",
    "EvoNorm2dS1a",
    "EvoNorm2dS2",
    "EvoNorm2dS2a",
    "evonorm_b",
    "evonorm_s",
]

SampleVariant = Literal["S0", "S1", "S2"]


# ---- S: statistics of groups of channels within a sample ----


def evonorm_s(
    input: Float[Tensor, "batch channels *spatial"],
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    v: Float[Tensor, " channels"] | None = None,
    groups: int = 32,
    eps: float = 1e-5,
    *,
    variant: SampleVariant = "S0",
    activation: Callable[[Tensor], Tensor] | None = F.silu,
) -> Float[Tensor, "batch channels *spatial"]:
    """Activate, and divide by the deviation (S2: the root mean square) of each group of channels of x.

    Args:
        input: floating point, ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        weight, bias: ``(C,)``, applied last.
        v: ``(C,)``, needed by S0 with an activation and taken by nothing else.
        groups: divides C; a group is of C / groups neighbouring channels.
        eps: added under the root, > 0.
        variant: ``"S0"`` activates by ``x * sigmoid(v * x)``, ``"S1"`` and ``"S2"`` by ``activation``.
        activation: of S1 and S2, elementwise and not in place; None only divides, in S0 too. With SiLU the
            input alone is kept for backward; any other is left to autograd, which keeps more.

    Statistics never leave a sample: evaluation is training, a batch of one is legal, and processes have
    nothing to tell each other. They are taken in float32 or better whatever the input's dtype.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or option that does not fit.

    Source: the equations above; the paper's table of layers, appendix.

    >>> x, one = torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]), torch.ones(2)
    >>> evonorm_s(x, one, 0 * one, groups=2, variant="S1", activation=None)  # the deviations are 1 and 10
    tensor([[[1.0000, 3.0000],
             [1.0000, 3.0000]]])
    """
    _check(input, {"weight": weight, "bias": bias, "v": v}, eps)
    _check_groups("evonorm_s", input.shape[1], groups)
    if variant not in ("S0", "S1", "S2"):
        raise ValueError(f"variant must be 'S0', 'S1' or 'S2'; got {variant!r}")
    if variant == "S0" and activation is not None and activation is not F.silu:
        raise ValueError("S0 activates by x * sigmoid(v * x): leave activation alone, or take S1")
    _check_v(v, needed=variant == "S0" and activation is not None, by="S0 with an activation", got=variant)
    if input.numel() == 0:
        return empty_result(input, weight, bias, v)

    planes = per_channel_view(input)
    plan = SamplePlan(groups, eps, centered=variant != "S2", activate=activation is not None)
    if activation is None or activation is F.silu:
        output = sample_norm(planes, plan, *upcast_parameters(input, weight, bias, v))
    else:
        affine = upcast_parameters(input, weight, bias)
        output = divide(planes, plan, lambda _: per_channel_view(activation(input)), *affine)
    return restore_shape(input, output)


# ---- B: the larger of a deviation over the batch and a term of the sample ----


def evonorm_b(
    input: Float[Tensor, "batch channels *spatial"],
    running_var: Float[Tensor, " channels"] | None,
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    v: Float[Tensor, " channels"] | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    variant: BatchVariant = "B0",
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch channels *spatial"]:
    """Divide by the larger of each channel's deviation over the batch and a term of the sample itself.

    Args:
        input: floating point, ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        running_var: ``(C,)``. Training moves it, in place, by the batch's unbiased variance, once a call, but
            not where activation checkpointing repeats a forward. Evaluation takes it for the variance of the
            batch. None: nothing is kept, and ``training`` must be True.
        weight, bias: ``(C,)``, applied last.
        v: ``(C,)``, needed by B0 and taken by nothing else.
        training: normalise by the batch rather than by ``running_var``.
        momentum: in [0, 1], weight of this batch in ``running_var``.
        eps: added under both roots, > 0.
        variant: ``"B0"``, ``"B1"`` or ``"B2"``, see the equations above.
        process_group: processes whose batches are one batch, in training. Each must call, forward and
            backward, even with no samples. None: this process alone.

    Gradients flow through all statistics; on an exact tie half goes to either side. The gradients of weight,
    bias and v are of this process's samples. Statistics are taken in float32 or better.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or option that does not fit, or training on a single value per channel.
        RuntimeError: a second derivative with a process group.

    Source: the equations above; the paper's table of layers.

    >>> x, one = torch.tensor([[[-4.0, 4.0]]]), torch.ones(1)
    >>> evonorm_b(x, None, one, 0 * one, one, training=True)  # deviation 4; v x + 4 is 0 and 8
    tensor([[[-1.0000,  0.5000]]])
    """
    _check(input, {"running_var": running_var, "weight": weight, "bias": bias, "v": v}, eps)
    if variant not in ("B0", "B1", "B2"):
        raise ValueError(f"variant must be 'B0', 'B1' or 'B2'; got {variant!r}")
    _check_v(v, needed=variant == "B0", by="B0", got=variant)
    _check_momentum(momentum)
    if not training:
        if running_var is None:
            raise ValueError(
                "evonorm_b with training=False divides by running_var; got None: pass it, or training=True"
            )
        process_group = None
    if input.numel() == 0 and process_group is None:
        return empty_result(input, weight, bias, v)
    if training and has_single_value_per_channel(input, process_group):
        raise ValueError(
            f"EvoNorm-{variant} needs more than one value per channel in training; got input of shape "
            f"{tuple(input.shape)}: pass a larger batch, or use an S variant, which needs no batch"
        )

    plan = BatchPlan(eps, variant, process_group)
    tensors = upcast_parameters(input, None if training else running_var, weight, bias, v)
    output, var, total = batch_norm(per_channel_view(input), plan, *tensors)
    if training and running_var is not None and not is_recomputing():
        with torch.no_grad():
            unbiased = var * (total / (total - 1).clamp(min=1))
            # Where no process has a sample nothing moves. In float32 at least: a half buffer rounds once.
            share = momentum * (total > 0).to(total.dtype)
            running_var.copy_((1 - share) * upcast(running_var) + share * unbiased)
    return restore_shape(input, output)


def _affine(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer without its activation."""
    per_channel = (-1, *[1] * (input.dim() - 2))
    return (upcast(input) * weight.view(per_channel) + bias.view(per_channel)).to(input.dtype)


def _check(input: Tensor, parameters: dict[str, Tensor | None], eps: float) -> None:
    if input.dim() not in (3, 4, 5):
        raise ValueError(
            f"EvoNorm needs input (N, C, H, W), or (N, C, L) or (N, C, D, H, W); got shape "
            f"{tuple(input.shape)}: unsqueeze a batch or a spatial dimension"
        )
    check_input("EvoNorm", input, parameters)
    check_eps(eps, zero=False)


def _check_momentum(momentum: float | None) -> None:
    if momentum is None:
        raise ValueError("momentum must be in [0, 1]; got None: EvoNorm counts no batches for an average")
    check_unit_interval("momentum", momentum)


def _check_v(v: Tensor | None, *, needed: bool, by: str, got: str) -> None:
    if needed != (v is not None):
        state = "no v" if v is None else "a v"
        raise ValueError(f"v is needed by {by} and taken by nothing else; got {state} for variant={got!r}")


def _check_groups(name: str, num_features: int, groups: int) -> None:
    check_int("groups", groups)
    if groups < 1 or num_features % groups:
        nearest = _nearest_divisor(num_features, max(groups, 1))
        raise ValueError(
            f"{name} needs num_features divisible by groups; got num_features={num_features}, "
            f"groups={groups}: pass groups={nearest} or another divisor"
        )


def _nearest_divisor(num_features: int, groups: int) -> int:
    """The largest number of groups, at most that many, that divides the features."""
    return next(g for g in range(min(groups, num_features), 0, -1) if num_features % g == 0)


# ---- the layers ----


class _EvoNorm(nn.Module):
    """Weight, bias and, where the equation has it, v."""

    v: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        apply_act: bool,
        eps: float,
        has_v: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_int("num_features", num_features, 1)
        check_eps(eps, zero=False)
        self.num_features = num_features
        self.apply_act = apply_act
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        v = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if has_v else None
        self.register_parameter("v", v)

    def reset_parameters(self) -> None:
        """Weight and v to one, bias to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        if self.v is not None:
            nn.init.ones_(self.v)


class _EvoNormB(_EvoNorm):
    _variant: ClassVar[BatchVariant]
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        apply_act: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        _check_momentum(momentum)
        super().__init__(num_features, apply_act, eps, apply_act and self._variant == "B0", device, dtype)
        self.momentum = momentum
        self.process_group = process_group
        self.register_buffer("running_var", torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """The running variance to one."""
        nn.init.ones_(self.running_var)

    def reset_parameters(self) -> None:
        """Weight, v and the running variance to one, bias to zero."""
        super().reset_parameters()
        self.reset_running_stats()

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Normalise and activate; with ``apply_act=False`` only scale and shift."""
        if not self.apply_act:
            _check(input, {"weight": self.weight, "bias": self.bias}, self.eps)
            return _affine(input, self.weight, self.bias)
        return evonorm_b(
            input,
            self.running_var,
            self.weight,
            self.bias,
            self.v,
            self.training,
            self.momentum,
            self.eps,
            variant=self._variant,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, apply_act={self.apply_act}, momentum={self.momentum}, eps={self.eps}"
            + ("" if self.process_group is None else ", process_group=...")
        )


class EvoNorm2dB0(_EvoNormB):
    """EvoNorm-B0, in the place of a batch normalisation AND the activation after it.

    ``y = x / max(std_batch, v * x + std_instance) * weight + bias``; evaluation takes ``running_var`` for the
    variance over the batch, the other is always the sample's own. Input ``(N, C, H, W)``; ``(N, C, L)`` and
    ``(N, C, D, H, W)`` too. Made for residual nets that normalise before the convolution (pre-activation): do
    not put an activation after it or a normalisation before it.

    Args:
        num_features: channels C.
        apply_act: False only scales and shifts, ``weight * x + bias``: no v, ``running_var`` at rest. For the
            places where a net had a normalisation without activation.
        momentum: in [0, 1], weight of one batch in ``running_var``.
        eps: under both roots, > 0 (timm's B0 has 1e-3).
        device, dtype: of the parameters and the buffer.
        process_group: take the variance over the batches of all its processes, as `SyncBatchNorm` does;
            ``torch.distributed.group.WORLD`` for all. None: over this process's batch.

    State: ``weight``, ``bias``, ``v``, ``running_var``, named as in timm.

    ``running_var`` moves once each training forward: with gradient accumulation once a micro-batch, and not
    when activation checkpointing repeats a forward (`BatchNorm` moves twice there). Without a process group
    the processes of `DistributedDataParallel` differ, and at every forward it gives all of them the first
    one's buffer.

    Raises:
        ValueError, TypeError: a setting out of range, input that does not fit, or, in training, a single
            value per channel.

    Source: Liu, Brock, Simonyan, Le 2020 (arXiv 2004.02967), EvoNorm-B0.

    >>> layer = EvoNorm2dB0(8)
    >>> layer(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    _variant = "B0"


class EvoNorm2dB1(_EvoNormB):
    """EvoNorm-B1: ``y = x / max(std_batch, (x + 1) * rms_instance) * weight + bias``.

    Arguments, state (without v), errors and source as `EvoNorm2dB0`.

    >>> EvoNorm2dB1(8)(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    _variant = "B1"


class EvoNorm2dB2(_EvoNormB):
    """EvoNorm-B2: ``y = x / max(std_batch, rms_instance - x) * weight + bias``.

    Arguments, state (without v), errors and source as `EvoNorm2dB0`.

    >>> EvoNorm2dB2(8)(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    _variant = "B2"


class _EvoNormS(_EvoNorm):
    _variant: ClassVar[SampleVariant]
    _always_divides: ClassVar[bool] = False

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        act_layer: Callable[[], nn.Module] | None = None,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        adjust_groups: bool = False,
    ) -> None:
        super().__init__(num_features, apply_act, eps, apply_act and self._variant == "S0", device, dtype)
        name = type(self).__name__
        if group_size is not None:
            check_int("group_size", group_size)
            if group_size < 1 or num_features % group_size:
                raise ValueError(
                    f"{name} needs num_features divisible by group_size; got num_features={num_features}, "
                    f"group_size={group_size}: pass a divisor of {num_features}"
                )
            groups = num_features // group_size
        elif adjust_groups and groups >= 1:
            groups = _nearest_divisor(num_features, groups)
        _check_groups(name, num_features, groups)
        self.groups = groups
        if isinstance(act_layer, nn.Module):
            raise TypeError(f"act_layer makes the activation; got {act_layer}: pass its class")
        self.act = act_layer() if act_layer is not None else nn.SiLU()
        for module in self.act.modules():
            if getattr(module, "inplace", False):
                # What divides needs the input as it came.
                module.inplace = False  # type: ignore[assignment]
        self.reset_parameters()

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Activate and divide; with ``apply_act=False`` only scale and shift (the "a" layers: divide too)."""
        if not self.apply_act and not self._always_divides:
            _check(input, {"weight": self.weight, "bias": self.bias}, self.eps)
            return _affine(input, self.weight, self.bias)
        activation = F.silu if type(self.act) is nn.SiLU else self.act
        return evonorm_s(
            input,
            self.weight,
            self.bias,
            self.v,
            self.groups,
            self.eps,
            variant=self._variant,
            activation=activation if self.apply_act else None,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, groups={self.groups}, apply_act={self.apply_act}, eps={self.eps}"


class EvoNorm2dS0(_EvoNormS):
    """EvoNorm-S0, in the place of a normalisation AND the activation after it, for any batch size.

    ``y = x * sigmoid(v * x) / std_group * weight + bias``. Input ``(N, C, H, W)``; ``(N, C, L)`` and
    ``(N, C, D, H, W)`` too. Statistics never leave a sample, so evaluation is training and processes have
    nothing to share. Made for residual nets that normalise before the convolution (pre-activation): do not
    put an activation after it or a normalisation before it. Constant input is divided by the root of eps:
    noise on it grows 316 times.

    Args:
        num_features: channels C.
        groups: divides C; each group is of C / groups neighbouring channels.
        group_size: channels in a group, in the place of ``groups``.
        apply_act: False only scales and shifts, ``weight * x + bias``, without v. For the places where a net
            had a normalisation without activation.
        eps: added to the variance under the root, > 0.
        device, dtype: of the parameters.
        adjust_groups: where ``groups`` does not divide C, take the next smaller number that does, as the
            official code, rather than raise.

    State: ``weight``, ``bias``, ``v``, named as in timm.

    Raises:
        ValueError, TypeError: a setting out of range, groups that do not divide, input that does not fit.

    Source: Liu, Brock, Simonyan, Le 2020 (arXiv 2004.02967), EvoNorm-S0.

    >>> layer = EvoNorm2dS0(8, groups=4)
    >>> layer(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _variant = "S0"

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        adjust_groups: bool = False,
    ) -> None:
        super().__init__(
            num_features, groups, group_size, apply_act, None, eps, device, dtype, adjust_groups=adjust_groups
        )


class EvoNorm2dS0a(EvoNorm2dS0):
    """timm's EvoNorm-S0a: as `EvoNorm2dS0`, except that without activation it divides all the same.

    ``apply_act=False`` gives ``x / std_group * weight + bias``. Arguments, state and errors as there.

    >>> EvoNorm2dS0a(8, groups=4, apply_act=False)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _always_divides = True

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        eps: float = 1e-3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        adjust_groups: bool = False,
    ) -> None:
        super().__init__(
            num_features, groups, group_size, apply_act, eps, device, dtype, adjust_groups=adjust_groups
        )


class EvoNorm2dS1(_EvoNormS):
    """EvoNorm-S1: ``y = silu(x) / std_group * weight + bias``.

    Arguments, errors and source as `EvoNorm2dS0`, and ``act_layer``, which makes the activation (None: SiLU).
    It is kept from working in place. Any other than SiLU keeps more for backward than the input.

    >>> EvoNorm2dS1(8, groups=4, act_layer=nn.ReLU)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _variant = "S1"


class EvoNorm2dS2(_EvoNormS):
    """EvoNorm-S2: ``y = silu(x) / rms_group * weight + bias``, rms the root of the mean square.

    Arguments and errors as `EvoNorm2dS1`.

    >>> EvoNorm2dS2(8, groups=4)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _variant = "S2"


class _AlwaysDivides(_EvoNormS):
    _always_divides = True

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        act_layer: Callable[[], nn.Module] | None = None,
        eps: float = 1e-3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        adjust_groups: bool = False,
    ) -> None:
        super().__init__(
            num_features,
            groups,
            group_size,
            apply_act,
            act_layer,
            eps,
            device,
            dtype,
            adjust_groups=adjust_groups,
        )


class EvoNorm2dS1a(_AlwaysDivides):
    """timm's EvoNorm-S1a: as `EvoNorm2dS1`, except that without activation it divides all the same.

    >>> EvoNorm2dS1a(8, groups=4, apply_act=False)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _variant = "S1"


class EvoNorm2dS2a(_AlwaysDivides):
    """timm's EvoNorm-S2a: as `EvoNorm2dS2`, except that without activation it divides all the same.

    >>> EvoNorm2dS2a(8, groups=4, apply_act=False)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _variant = "S2"
