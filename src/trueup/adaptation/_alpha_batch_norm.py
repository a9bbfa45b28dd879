"""Batch normalization by a mixture of the source's statistics and those of the test batch, without training.

Problem: under covariate shift the running statistics of a trained batch norm are wrong. Those of the test
batch (test-batch normalization) follow the shift, but they are noise in a small batch, and describe the
classes at hand rather than the domain in a sorted one. Idea: mix both, linearly,

    m = a m_source + (1-a) m_batch        v = a v_source + (1-a) v_batch
    y = weight (x - m) / sqrt(v + eps) + bias

The source weight a is 1 for plain evaluation and 0 for test-batch normalization. It may follow the size n of
the batch as N / (N + n), which takes the source for N samples.

You, Li, Zhao: Test-time Batch Statistics Calibration for Covariate Shift, 2021, arXiv 2110.04065. There is no
official code. Other implementations name the weight of the batch alpha, and take the unbiased variance of
the batch; here it is the biased one, as in training, and `unbiased=True` the other. The spread between the
two means, a (1-a) (m_source - m_batch)^2, is left out of the variance, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from trueup._numerics.moments import pool
from trueup._numerics.per_channel import per_channel_view, restore_shape
from trueup._numerics.upcasting import upcast_parameters
from trueup.adaptation._moment_normalization import affine_map, normalize_by_rule
from trueup.adaptation._source_batch_norm import Group, SourceBatchNorm
from trueup.nn._validation import check_eps, check_input, check_rank, check_unit_interval, empty_result

__all__ = [
    "AlphaBatchNorm",
    "AlphaBatchNorm1d",
    "AlphaBatchNorm2d",
    "AlphaBatchNorm3d",
    "alpha_batch_norm",
]


# ---- the equation ----


def mix_statistics(
    source_mean: Tensor, source_var: Tensor, batch_mean: Tensor, batch_var: Tensor, source_weight: Any
) -> tuple[Tensor, Tensor]:
    """Return the mean and variance `(C,)` to normalize by."""
    mean = source_weight * source_mean + (1 - source_weight) * batch_mean
    var = source_weight * source_var + (1 - source_weight) * batch_var
    return mean, var


def alpha_batch_norm(
    input: Float[Tensor, "batch channels *spatial"],
    running_mean: Float[Tensor, " channels"] | None,
    running_var: Float[Tensor, " channels"] | None,
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    eps: float = 1e-5,
    *,
    source_weight: float = 0.5,
    prior_strength: float | None = None,
    unbiased: bool = False,
    detach_stats: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch channels *spatial"]:
    """Normalize each channel by a mixture of running statistics and those of the batch.

    Args:
        input: floating point, `(N, C)` or `(N, C, ...)`.
        running_mean, running_var: `(C,)`, statistics of the source; not changed. None only if they have no
            weight.
        weight, bias: `(C,)` or None.
        eps: added to the mixed variance under the root.
        source_weight: in [0, 1], the weight of the running statistics.
        prior_strength: N >= 0; the source weight is then N / (N + n) in a batch of n samples, and
            `source_weight` is not used.
        unbiased: divide the batch's sum of squares by its number of values less one.
        detach_stats: take the statistics for constants in the gradient.
        process_group: the processes whose batches are one; None: this process only.

    The batch variance of one value per channel is 0, `unbiased` or not.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or an option that does not fit.

    Source: You et al. 2021 (arXiv 2110.04065), the equations above.

    >>> x = torch.tensor([[4.0], [8.0]])
    >>> mean, var = torch.tensor([0.0]), torch.tensor([2.0])
    >>> alpha_batch_norm(x, mean, var, source_weight=0.5)  # by mean 3 and variance 3
    tensor([[0.5773],
            [2.8867]])
    """
    per_channel = {
        "running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias
    }  # fmt: skip
    check_input("alpha_batch_norm", input, per_channel)
    check_eps(eps)
    _check_weights(source_weight, prior_strength)
    if running_mean is None and (source_weight if prior_strength is None else prior_strength) > 0:
        raise ValueError(
            "there are no running statistics to mix in, since running_mean and running_var are None: pass "
            "both, or source_weight=0 to normalize by the batch alone"
        )
    # A process without samples still takes part in the sums of its group.
    if input.numel() == 0 and process_group is None:
        return empty_result(input, weight, bias)
    x = per_channel_view(input)
    plan = _Plan(x.shape[2], eps, source_weight, prior_strength, unbiased, detach_stats, process_group)
    rule = partial(_rule, plan)
    output, _, _ = normalize_by_rule(
        x, rule, rule, *upcast_parameters(input, running_mean, running_var, weight, bias)
    )
    return restore_shape(input, output)


@dataclass(frozen=True)
class _Plan:
    """The arguments that are not tensors; `area` is the number of values per instance."""

    area: int
    eps: float
    source_weight: float
    prior_strength: float | None
    unbiased: bool
    detach_stats: bool
    process_group: dist.ProcessGroup | None


def _rule(
    plan: _Plan,
    instance_mean: Tensor,
    instance_var: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Return scale and shift of each instance, given its mean and variance `(N, C)`."""
    moments = instance_mean, instance_var
    if plan.detach_stats:
        moments = instance_mean.detach(), instance_var.detach()
    mean, var, samples = _batch_statistics(*moments, plan.process_group)
    if plan.unbiased:
        count = samples * plan.area
        var = var * (count / _at_least_one(count - 1))
    if running_mean is not None and running_var is not None:
        strength = plan.prior_strength
        source_weight = plan.source_weight if strength is None else strength / (strength + samples)
        mean, var = mix_statistics(running_mean, running_var, mean, var, source_weight)
    return affine_map(instance_mean, mean, var, weight, bias, plan.eps)


def _batch_statistics(
    mean: Tensor, var: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Any]:
    """Return mean and biased variance `(C,)` of the batch, over all processes, and its number of samples."""
    if group is None:
        return *pool(mean, var, 0), mean.shape[0]
    samples = _sum_over_processes(mean.new_full((), mean.shape[0]), group)
    divisor = _at_least_one(samples)
    center = _sum_over_processes(mean.sum(0), group) / divisor
    return center, _sum_over_processes((var + (mean - center).square()).sum(0), group) / divisor, samples


def _at_least_one(count: Any) -> Any:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def _sum_over_processes(t: Tensor, group: dist.ProcessGroup) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(t, group)  # type: ignore[no-untyped-call]
    return total


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor of each process; differentiable, also inside `torch.func.vjp`."""

    @staticmethod
    def forward(t: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = t.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _sum_over_processes(grads[0], ctx.group), None


def _check_weights(source_weight: float, prior_strength: float | None) -> None:
    check_unit_interval("source_weight", source_weight)
    if prior_strength is not None:
        check_eps(prior_strength, "prior_strength")


# ---- layers ----


class AlphaBatchNorm(SourceBatchNorm):
    """The layer for inputs of any rank, which takes the place of `SyncBatchNorm`."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        source_weight: float = 0.5,
        prior_strength: float | None = None,
        unbiased: bool = False,
        detach_stats: bool = False,
        process_group: Group = None,
    ) -> None:
        _check_weights(source_weight, prior_strength)
        if not track_running_stats and (source_weight if prior_strength is None else prior_strength) > 0:
            raise ValueError(
                f"{type(self).__name__}: a batch norm without running statistics has nothing to mix in: pass "
                "source_weight=0 to normalize by the batch alone"
            )
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, process_group
        )
        self.source_weight = source_weight
        self.prior_strength = prior_strength
        self.unbiased = unbiased
        self.detach_stats = detach_stats

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Normalize by the mixed statistics, in training and evaluation alike."""
        check_rank(type(self).__name__, input, self._ranks, self._shape)
        return alpha_batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.eps,
            source_weight=self.source_weight,
            prior_strength=self.prior_strength,
            unbiased=self.unbiased,
            detach_stats=self.detach_stats,
            process_group=self._group(),
        )

    def extra_repr(self) -> str:
        prior = self.prior_strength
        mixture = f"source_weight={self.source_weight}" if prior is None else f"prior_strength={prior}"
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}, {mixture}"


class AlphaBatchNorm1d(AlphaBatchNorm):
    """Batch normalization of `(N, C)` or `(N, C, L)` by statistics of the source mixed with the batch's.

    The positional arguments are those of `torch.nn.BatchNorm1d`, in torch's order. The layer is usually made
    from a trained one, by `trueup.adaptation.convert_alpha_bn`.

    Args:
        num_features: channels C.
        eps: added to the mixed variance under the root.
        momentum: kept for `restore`; the running statistics never change, in training nor in evaluation.
        affine: have a weight and a bias per channel, which may be trained.
        track_running_stats: have running statistics; if False, `source_weight` must be 0.
        device, dtype: of the parameters and buffers.
        source_weight: a in [0, 1], the weight of the running statistics; 1 is evaluation of the source, 0
            test-batch normalization. May be changed at any time.
        prior_strength: N >= 0; the source weight is then N / (N + n) in a batch of n samples.
        unbiased: divide the batch's sum of squares by its number of values less one.
        detach_stats: take the statistics for constants in the gradient.
        process_group: the processes whose batches are one; `"world"`: all of them if `torch.distributed` is
            initialized, as for a `SyncBatchNorm`. None: this process only.

    Training and evaluation do the same, and change no buffer. The batch variance of one value per channel is
    0, `unbiased` or not. A state dict of a batch norm can be loaded; it becomes the source.

    Raises:
        ValueError, TypeError: a setting out of range; an input of another rank or number of channels.

    Source: You et al. 2021 (arXiv 2110.04065).

    >>> layer = AlphaBatchNorm1d.from_module(torch.nn.BatchNorm1d(3), source_weight=0.7)
    >>> layer
    AlphaBatchNorm1d(3, eps=1e-05, affine=True, source_weight=0.7)
    >>> layer(torch.randn(4, 3)).shape
    torch.Size([4, 3])
    """

    _ranks = (2, 3)
    _shape = "(N, C) or (N, C, L)"
    _source = nn.BatchNorm1d


class AlphaBatchNorm2d(AlphaBatchNorm):
    """Batch normalization of `(N, C, H, W)` by mixed statistics; see `AlphaBatchNorm1d`.

    >>> AlphaBatchNorm2d(3, prior_strength=16.0)(torch.randn(2, 3, 5, 5)).shape
    torch.Size([2, 3, 5, 5])
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"
    _source = nn.BatchNorm2d


class AlphaBatchNorm3d(AlphaBatchNorm):
    """Batch normalization of `(N, C, D, H, W)` by mixed statistics; see `AlphaBatchNorm1d`.

    >>> AlphaBatchNorm3d(3, source_weight=0.0)(torch.randn(2, 3, 4, 5, 5)).shape
    torch.Size([2, 3, 4, 5, 5])
    """

    _ranks = (5,)
    _shape = "(N, C, D, H, W)"
    _source = nn.BatchNorm3d
