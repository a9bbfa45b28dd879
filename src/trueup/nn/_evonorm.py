"""EvoNorm: normalisation and activation in one layer, found by evolution.

Problem: normalisation and activation are designed separately although they stand side by side, and batch
normalisation fails on small batches. Idea: search for one expression that does both. None of those found
subtracts a mean. With s the root of the population variance and q the root of the mean square, each with eps
added under the root,

    B0: y = x / max(s_channel, v x + s_instance) * weight + bias        v, weight, bias: one per channel
    B1: y = x / max(s_channel, (x + 1) q_instance) * weight + bias
    B2: y = x / max(s_channel, q_instance - x) * weight + bias
    S0: y = x sigmoid(v x) / s_group * weight + bias                     S1: v = 1    S2: v = 1, q_group

A channel is taken over the batch (in evaluation from a running variance), an instance is one channel of one
sample, and a group is some neighbouring channels of one sample. Liu, Brock, Simonyan, Le: Evolving
Normalization-Activation Layers, NeurIPS 2020, arXiv 2004.02967.

The running variance is unbiased, as in `torch.nn.BatchNorm2d` and timm; the official TensorFlow code keeps
the biased one. A number of groups that does not divide the channels is an error; the official code silently
takes a smaller one, as does `variant="official"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trueup._numerics.custom_function import must_use_composite_ops
from trueup._numerics.per_channel import per_channel_view, restore_shape
from trueup._numerics.recomputation import is_recomputing
from trueup._numerics.upcasting import upcast, upcast_parameters
from trueup.nn._kernels.evonorm import FormB, FormS, FusedB, FusedS, PlanB, PlanS
from trueup.nn._validation import (
    check_choice,
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


# ---- the equations ----


def _evonorm_s(
    x: Float[Tensor, "samples channels length"],
    plan: PlanS,
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    v: Float[Tensor, " channels"] | None,
) -> Float[Tensor, "samples channels length"]:
    """Compute S0, S1 or S2 in composite operations."""
    dtype, x = x.dtype, upcast(x)
    group = x.unflatten(1, (plan.groups, -1)).flatten(2)  # (N, groups, C / groups * L)
    power = group.square().mean(2) if plan.form == "S2" else group.var(2, correction=0)
    rstd = (power + plan.eps).rsqrt().repeat_interleave(x.shape[1] // plan.groups, 1)
    if plan.activation is None:
        z = x
    elif v is not None:  # S0
        z = x * torch.sigmoid(x * v.unsqueeze(-1))
    else:
        z = plan.activation(x)
    y: Tensor = z * rstd.unsqueeze(-1) * weight.unsqueeze(-1) + bias.unsqueeze(-1)
    return y.to(dtype)


def _evonorm_b(
    x: Float[Tensor, "samples channels length"],
    plan: PlanB,
    running_var: Float[Tensor, " channels"] | None,
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    v: Float[Tensor, " channels"] | None,
) -> tuple[Float[Tensor, "samples channels length"], Float[Tensor, " channels"]]:
    """Compute B0, B1 or B2 in composite operations; also return the variance of each channel."""
    dtype, x = x.dtype, upcast(x)
    channel_var = x.var((0, 2), correction=0) if running_var is None else running_var
    left = (channel_var + plan.eps).sqrt().unsqueeze(-1)
    if v is not None:  # B0
        right = x * v.unsqueeze(-1) + (x.var(2, correction=0, keepdim=True) + plan.eps).sqrt()
    else:
        q = (x.square().mean(2, keepdim=True) + plan.eps).sqrt()
        right = (x + 1) * q if plan.form == "B1" else q - x
    y = x / torch.maximum(left, right) * weight.unsqueeze(-1) + bias.unsqueeze(-1)
    return y.to(dtype), channel_var


# ---- as functions ----


def evonorm_s(
    input: Float[Tensor, "batch channels *spatial"],
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    v: Float[Tensor, " channels"] | None = None,
    groups: int = 32,
    eps: float = 1e-5,
    *,
    form: FormS = "S0",
    activation: Callable[[Tensor], Tensor] | None = F.silu,
) -> Float[Tensor, "batch channels *spatial"]:
    """Activate, and divide by the standard deviation (S2: the root mean square) of each group of channels.

    Statistics never leave a sample: evaluation equals training, a batch of one is legal, and processes have
    nothing to exchange. They are computed in float32 or better, whatever the input's dtype.

    Args:
        input: floating point, `(N, C, L)`, `(N, C, H, W)` or `(N, C, D, H, W)`.
        weight, bias: `(C,)`, applied last.
        v: `(C,)`, required by S0 with an activation, and only there.
        groups: divides C; each group has C / groups neighbouring channels.
        eps: added under the root, > 0.
        form: `"S0"` activates by `x * sigmoid(v * x)`, `"S1"` and `"S2"` by `activation`.
        activation: of S1 and S2, elementwise and not in place; None divides only, in S0 too. With SiLU,
            backward keeps only the input; autograd handles any other and keeps more.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or option does not fit.

    Source: the equations above; the paper's table of layers, appendix.

    >>> x, one = torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]), torch.ones(2)
    >>> evonorm_s(x, one, 0 * one, groups=2, form="S1", activation=None)  # the deviations are 1 and 10
    tensor([[[1.0000, 3.0000],
             [1.0000, 3.0000]]])
    """
    _check_input(input, {"weight": weight, "bias": bias, "v": v})
    check_eps(eps, zero=False)
    _check_groups("evonorm_s", input.shape[1], groups)
    check_choice("form", form, get_args(FormS))
    if form == "S0" and activation is not None and activation is not F.silu:
        raise ValueError(
            f"S0 activates by x * sigmoid(v * x) only; got activation={activation}: use form='S1'"
        )
    _check_v(v, form, needed=form == "S0" and activation is not None)
    if input.numel() == 0:
        return empty_result(input, weight, bias, v)

    x, plan = per_channel_view(input), PlanS(form, groups, eps, activation)
    parameters = upcast_parameters(input, weight, bias, v)
    composite = must_use_composite_ops()
    if activation is not None and activation is not F.silu:
        # It may have parameters of its own, so it takes the input in its own dtype and shape.
        plan, composite = PlanS(form, groups, eps, lambda _: per_channel_view(activation(input))), True
    if composite:
        output = _evonorm_s(x, plan, *parameters)
    else:
        output, *_ = FusedS.apply(x, _evonorm_s, plan, *parameters)  # type: ignore[no-untyped-call]
    return restore_shape(input, output)


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
    form: FormB = "B0",
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch channels *spatial"]:
    """Divide by the larger of each channel's standard deviation over the batch and a term of the sample.

    Gradients flow through all statistics; on an exact tie each side gets half. The gradients of weight, bias
    and v cover this process's samples. Statistics are computed in float32 or better.

    Args:
        input: floating point, `(N, C, L)`, `(N, C, H, W)` or `(N, C, D, H, W)`.
        running_var: `(C,)`. Training updates it in place with the batch's unbiased variance, once per call,
            but not where activation checkpointing repeats a forward. Evaluation uses it in place of the
            batch's variance. None keeps nothing and requires `training=True`.
        weight, bias: `(C,)`, applied last.
        v: `(C,)`, required by B0, and only there.
        training: normalise by the batch rather than by `running_var`.
        momentum: in [0, 1], weight of this batch in `running_var`.
        eps: added under both roots, > 0.
        form: `"B0"`, `"B1"` or `"B2"`, see the equations above.
        process_group: processes whose batches count as one batch, in training. Each must call forward and
            backward, even with no samples. None: this process alone.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or option does not fit, or training has a single value per channel.
        RuntimeError: training with a process group is differentiated twice or in forward mode, or exported.

    Source: the equations above; the paper's table of layers.

    >>> x, one = torch.tensor([[[-4.0, 4.0]]]), torch.ones(1)
    >>> evonorm_b(x, None, one, 0 * one, one, training=True)  # deviation 4; v x + 4 is 0 and 8
    tensor([[[-1.0000,  0.5000]]])
    """
    _check_input(input, {"running_var": running_var, "weight": weight, "bias": bias, "v": v})
    check_eps(eps, zero=False)
    check_choice("form", form, get_args(FormB))
    _check_v(v, form, needed=form == "B0")
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
            f"EvoNorm-{form} needs more than one value per channel in training; got input of shape "
            f"{tuple(input.shape)}: pass a larger batch, or use an S form, which needs no batch"
        )

    x, plan = per_channel_view(input), PlanB(form, eps, process_group)
    known_var, *parameters = upcast_parameters(input, None if training else running_var, weight, bias, v)
    if not must_use_composite_ops():
        output, *_, var, count = FusedB.apply(x, _evonorm_b, plan, known_var, *parameters)  # type: ignore[no-untyped-call]
    elif process_group is None:
        output, var = _evonorm_b(x, plan, known_var, *parameters)
        var = var.detach()
        count = var.new_full((), x.shape[0] * x.shape[2])
    else:
        raise RuntimeError(
            "EvoNorm-B with a process_group cannot be exported or differentiated in forward mode: "
            "set process_group=None for that"
        )
    if training and running_var is not None and not is_recomputing():
        with torch.no_grad():
            unbiased = var * (count / (count - 1).clamp(min=1))
            # Nothing moves where no process has a sample. In float32 or better: a half buffer rounds once.
            share = momentum * (count > 0).to(count.dtype)
            running_var.copy_((1 - share) * upcast(running_var) + share * unbiased)
    return restore_shape(input, output)


def _scale_and_shift(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the layer without normalisation and activation."""
    _check_input(input, {"weight": weight, "bias": bias})
    per_channel = (-1, *[1] * (input.dim() - 2))
    return (upcast(input) * weight.view(per_channel) + bias.view(per_channel)).to(input.dtype)


def _check_input(input: Tensor, parameters: dict[str, Tensor | None]) -> None:
    if input.dim() not in (3, 4, 5):
        raise ValueError(
            f"EvoNorm needs input (N, C, H, W), or (N, C, L) or (N, C, D, H, W); got shape "
            f"{tuple(input.shape)}: unsqueeze a batch or a spatial dimension"
        )
    check_input("EvoNorm", input, parameters)


def _check_momentum(momentum: float | None) -> None:
    if momentum is None:
        raise ValueError("momentum must be in [0, 1]; got None: EvoNorm counts no batches for an average")
    check_unit_interval("momentum", momentum)


def _check_v(v: Tensor | None, form: str, *, needed: bool) -> None:
    if needed != (v is not None):
        raise ValueError(
            "B0, and S0 with an activation, need v and nothing else takes it; got "
            f"{'no v' if v is None else 'a v'} for form={form!r}: pass v{'' if needed else '=None'}"
        )


def _check_groups(name: str, num_features: int, groups: int) -> None:
    check_int("groups", groups)
    if groups < 1 or num_features % groups:
        nearest = _nearest_divisor(num_features, max(groups, 1))
        raise ValueError(
            f"{name} needs num_features divisible by groups; got num_features={num_features}, "
            f"groups={groups}: pass groups={nearest} or another divisor"
        )


def _nearest_divisor(num_features: int, groups: int) -> int:
    """Return the largest divisor of the number of features that is at most `groups`."""
    return next(g for g in range(min(groups, num_features), 0, -1) if num_features % g == 0)


# ---- the layers ----


class _EvoNorm(nn.Module):
    """The parameters: weight, bias and, where the equation has it, v."""

    _form: ClassVar[str]
    v: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        apply_act: bool,
        eps: float,
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
        has_v = apply_act and self._form in ("B0", "S0")
        v = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if has_v else None
        self.register_parameter("v", v)

    def reset_parameters(self) -> None:
        """Set weight and v to one and bias to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        if self.v is not None:
            nn.init.ones_(self.v)


class _EvoNormB(_EvoNorm):
    _form: ClassVar[FormB]
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
        super().__init__(num_features, apply_act, eps, device, dtype)
        self.momentum = momentum
        self.process_group = process_group
        self.register_buffer("running_var", torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set the running variance to one."""
        nn.init.ones_(self.running_var)

    def reset_parameters(self) -> None:
        """Set weight, v and the running variance to one and bias to zero."""
        super().reset_parameters()
        self.reset_running_stats()

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Normalise and activate; with `apply_act=False` only scale and shift."""
        if not self.apply_act:
            return _scale_and_shift(input, self.weight, self.bias)
        return evonorm_b(
            input,
            self.running_var,
            self.weight,
            self.bias,
            self.v,
            self.training,
            self.momentum,
            self.eps,
            form=self._form,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, apply_act={self.apply_act}, momentum={self.momentum}, eps={self.eps}"
            + ("" if self.process_group is None else ", process_group=...")
        )


class EvoNorm2dB0(_EvoNormB):
    """EvoNorm-B0, in place of a batch normalisation AND the activation after it.

    `y = x / max(std_batch, v * x + std_instance) * weight + bias`. Evaluation takes `running_var` as the
    variance over the batch; the other is always the sample's own. Input `(N, C, H, W)`, and also `(N, C, L)`
    and `(N, C, D, H, W)`. Made for residual nets that normalise before the convolution (pre-activation): do
    not put an activation after it or a normalisation before it.

    Args:
        num_features: channels C.
        apply_act: False only scales and shifts, `weight * x + bias`: there is no v, and `running_var` stays
            as it is. For the places where a net has a normalisation without activation.
        momentum: in [0, 1], weight of one batch in `running_var`.
        eps: under both roots, > 0 (timm's B0 has 1e-3).
        device, dtype: of the parameters and the buffer.
        process_group: take the variance over the batches of all its processes, as `SyncBatchNorm` does;
            `torch.distributed.group.WORLD` for all. None: over this process's batch.

    State: `weight`, `bias`, `v`, `running_var`, named as in timm.

    `running_var` moves once per training forward: with gradient accumulation once per micro-batch, and not
    again when activation checkpointing repeats a forward (`BatchNorm` moves twice there). Without a process
    group, the processes of `DistributedDataParallel` have different buffers, and each forward starts from the
    first one's, which it sends to all.

    Raises:
        ValueError, TypeError: a setting out of range, input that does not fit, or, in training, a single
            value per channel.

    Source: Liu, Brock, Simonyan, Le 2020 (arXiv 2004.02967), EvoNorm-B0.

    >>> layer = EvoNorm2dB0(8)
    >>> layer(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    _form = "B0"


class EvoNorm2dB1(_EvoNormB):
    """EvoNorm-B1: `y = x / max(std_batch, (x + 1) * rms_instance) * weight + bias`.

    Arguments, state (without v), errors and source as in `EvoNorm2dB0`.

    >>> EvoNorm2dB1(8)(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    _form = "B1"


class EvoNorm2dB2(_EvoNormB):
    """EvoNorm-B2: `y = x / max(std_batch, rms_instance - x) * weight + bias`.

    Arguments, state (without v), errors and source as in `EvoNorm2dB0`.

    >>> EvoNorm2dB2(8)(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    _form = "B2"


class _EvoNormS(_EvoNorm):
    _form: ClassVar[FormS]
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
        variant: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__(num_features, apply_act, eps, device, dtype)
        check_choice("variant", variant, ("paper", "official"))
        name = type(self).__name__
        if group_size is not None:
            check_int("group_size", group_size)
            if group_size < 1 or num_features % group_size:
                raise ValueError(
                    f"{name} needs num_features divisible by group_size; got num_features={num_features}, "
                    f"group_size={group_size}: pass a divisor of {num_features}"
                )
            groups = num_features // group_size
        elif variant == "official":
            check_int("groups", groups, 1)
            groups = _nearest_divisor(num_features, groups)
        _check_groups(name, num_features, groups)
        self.groups = groups
        if isinstance(act_layer, nn.Module):
            raise TypeError(f"act_layer makes the activation; got {act_layer}: pass its class")
        self.act = act_layer() if act_layer is not None else nn.SiLU()
        for module in self.act.modules():
            if getattr(module, "inplace", False):
                # The statistics are taken from the input as it came.
                module.inplace = False  # type: ignore[assignment]
        self.reset_parameters()

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Activate and divide; with `apply_act=False` only scale and shift (the "a" layers also divide)."""
        if not self.apply_act and not self._always_divides:
            return _scale_and_shift(input, self.weight, self.bias)
        activation = F.silu if type(self.act) is nn.SiLU else self.act
        return evonorm_s(
            input,
            self.weight,
            self.bias,
            self.v,
            self.groups,
            self.eps,
            form=self._form,
            activation=activation if self.apply_act else None,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, groups={self.groups}, apply_act={self.apply_act}, eps={self.eps}"


class EvoNorm2dS0(_EvoNormS):
    """EvoNorm-S0, in place of a normalisation AND the activation after it, for any batch size.

    `y = x * sigmoid(v * x) / std_group * weight + bias`. Input `(N, C, H, W)`, and also `(N, C, L)` and
    `(N, C, D, H, W)`. Statistics never leave a sample, so evaluation equals training and processes have
    nothing to exchange. Made for residual nets that normalise before the convolution (pre-activation): do not
    put an activation after it or a normalisation before it. Constant input is divided by the root of eps:
    noise on it grows 316 times.

    Args:
        num_features: channels C.
        groups: divides C; each group has C / groups neighbouring channels.
        group_size: channels per group, in place of `groups`.
        apply_act: False only scales and shifts, `weight * x + bias`, without v. For the places where a net
            has a normalisation without activation.
        eps: added to the variance under the root, > 0.
        device, dtype: of the parameters.
        variant: where `groups` does not divide C, `"paper"` raises, and `"official"` takes the next smaller
            number that does, as the official code.

    State: `weight`, `bias`, `v`, named as in timm.

    Raises:
        ValueError, TypeError: a setting out of range, groups that do not divide, input that does not fit.

    Source: Liu, Brock, Simonyan, Le 2020 (arXiv 2004.02967), EvoNorm-S0.

    >>> layer = EvoNorm2dS0(8, groups=4)
    >>> layer(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _form = "S0"

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
        variant: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__(
            num_features, groups, group_size, apply_act, None, eps, device, dtype, variant=variant
        )


class EvoNorm2dS0a(EvoNorm2dS0):
    """timm's EvoNorm-S0a: as `EvoNorm2dS0`, but it also divides without activation.

    `apply_act=False` gives `x / std_group * weight + bias`. Arguments, state and errors as there.

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
        variant: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__(num_features, groups, group_size, apply_act, eps, device, dtype, variant=variant)


class EvoNorm2dS1(_EvoNormS):
    """EvoNorm-S1: `y = silu(x) / std_group * weight + bias`.

    Arguments, errors and source as in `EvoNorm2dS0`, and `act_layer`, which makes the activation (None:
    SiLU). It is kept from working in place. Backward keeps more than the input for any other than SiLU.

    >>> EvoNorm2dS1(8, groups=4, act_layer=nn.ReLU)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _form = "S1"


class EvoNorm2dS2(_EvoNormS):
    """EvoNorm-S2: `y = silu(x) / rms_group * weight + bias`, where rms is the root of the mean square.

    Arguments and errors as in `EvoNorm2dS1`.

    >>> EvoNorm2dS2(8, groups=4)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _form = "S2"


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
        variant: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__(
            num_features, groups, group_size, apply_act, act_layer, eps, device, dtype, variant=variant
        )


class EvoNorm2dS1a(_AlwaysDivides):
    """timm's EvoNorm-S1a: like `EvoNorm2dS1`, but it also divides if `apply_act=False`.

    >>> EvoNorm2dS1a(8, groups=4, apply_act=False)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _form = "S1"


class EvoNorm2dS2a(_AlwaysDivides):
    """timm's EvoNorm-S2a: as `EvoNorm2dS2`, but it also divides without activation.

    >>> EvoNorm2dS2a(8, groups=4, apply_act=False)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _form = "S2"
