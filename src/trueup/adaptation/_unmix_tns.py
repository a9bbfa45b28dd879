"""Normalization of each instance by its own mixture with K components that follow the test stream.

Problem: in a stream whose batches hold one class (video, sorted data), batch statistics describe the class
and not the domain, so that test-batch normalization fails. Idea: keep K means M_k and variances V_k per
channel, scattered around the source statistics at conversion. Each sample b has means mu and variances s2
over its positions. It resembles component k by p_bk, and is normalized by all mixtures of the two,

    p_b = softmax_k(cos(mu_b, M_k) / temperature)
    m_bk = (1 - p_bk) M_k + p_bk mu_b           v_bk = (1 - p_bk) V_k + p_bk s2_b
    y_b = weight (x_b - mean_k m_bk) / sqrt(mean_k v_bk + var_k m_bk + eps) + bias

Then the components drift towards the samples that resemble them:

    M_k <- M_k + lambda mean_b[p_bk (mu_b - M_k)]           V_k <- V_k + lambda mean_b[p_bk (s2_b - V_k)]

The gradient flows through mu and s2, not through p, M and V. There is nothing to train, and a batch of one
sample is legal.

Tomar, Vray, Thiran, Bozorgtabar: Un-Mixing Test-Time Normalization Statistics: Combatting Label Temporal
Correlation, ICLR 2024, arXiv 2401.08328. As in the official code `(N, C)` inputs, which have no positions,
are normalized by the source statistics. Unlike there, the components are changed in place, and can be frozen
and reset.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trueup._numerics.per_channel import per_channel_view, restore_shape
from trueup._numerics.recomputation import is_recomputing, snapshot
from trueup._numerics.upcasting import upcast_dtype, upcast_parameters
from trueup.adaptation._moment_normalization import affine_map, constant_moments, normalize_by_rule
from trueup.adaptation._source_batch_norm import Group, SourceBatchNorm
from trueup.nn import estimated_batch_norm
from trueup.nn._validation import (
    check_eps,
    check_input,
    check_int,
    check_rank,
    check_unit_interval,
    empty_result,
)

__all__ = ["UnMixTNS", "UnMixTNS1d", "UnMixTNS2d", "UnMixTNS3d", "unmix_tns"]


# ---- the equation ----


def unmix_statistics(
    mean: Tensor, var: Tensor, means: Tensor, vars: Tensor, assignment: Tensor, exact_variance: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the mean and variance `(N, C)` to normalize each instance by.

    Args:
        mean, var: of the instances, `(N, C)`.
        means, vars: of the components, `(K, C)`.
        assignment: p, `(N, K)`.
        exact_variance: add p (1-p) (mean - means)^2, the spread within each mixture, which the paper leaves
            out.
    """
    p = assignment.unsqueeze(2)
    mean, var = mean.unsqueeze(1), var.unsqueeze(1)
    mixed_mean = (1 - p) * means + p * mean  # (N, K, C)
    mixed_var = (1 - p) * vars + p * var
    if exact_variance:
        mixed_var = mixed_var + p * (1 - p) * (mean - means).square()
    return mixed_mean.mean(1), mixed_var.mean(1) + mixed_mean.var(1, correction=0)


def assign(mean: Tensor, means: Tensor, temperature: float) -> Tensor:
    """Return how much each sample resembles each component, p `(N, K)`."""
    similarity = F.normalize(mean, dim=1) @ F.normalize(means, dim=1).t()
    return F.softmax(similarity / temperature, dim=1)


def move_components(
    mean: Tensor,
    var: Tensor,
    means: Tensor,
    vars: Tensor,
    assignment: Tensor,
    momentum: float,
    process_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the components after a batch of instances of mean and variance `(N, C)`."""
    pull = assignment.sum(0).unsqueeze(1)
    sums = torch.cat((pull, assignment.t() @ mean, assignment.t() @ var), 1)
    samples: Any = mean.shape[0]
    if process_group is not None:
        dist.all_reduce(sums, group=process_group)
        samples = sums[:, 0].sum().clamp(min=1)  # each sample's p sums to one
    pull, towards_mean, towards_var = sums.split((1, mean.shape[1], mean.shape[1]), 1)
    means = means + momentum / samples * (towards_mean - pull * means)
    return means, vars + momentum / samples * (towards_var - pull * vars)


def initial_components(
    running_mean: Tensor, running_var: Tensor, noise: Tensor, init_coeff: float
) -> tuple[Tensor, Tensor]:
    """Return K components `(K, C)` around the source statistics, whose moments they have in expectation."""
    num_components = len(noise)
    if num_components == 1:
        return running_mean.expand_as(noise), running_var.expand_as(noise)
    scale = (init_coeff * num_components / (num_components - 1)) ** 0.5
    means = running_mean + scale * running_var.sqrt() * noise
    return means, ((1 - init_coeff) * running_var).expand_as(noise)


# ---- the fused form ----


def unmix_statistics_by_matmul(
    mean: Tensor, var: Tensor, means: Tensor, vars: Tensor, assignment: Tensor, exact_variance: bool = False
) -> tuple[Tensor, Tensor]:
    """Do the same without a tensor of shape `(N, K, C)`.

    Means are taken relative to that of the components: the spread is a difference of squares.
    """
    p, q = assignment, 1 - assignment
    components, center = len(means), means.mean(0)
    mean, means = mean - center, means - center
    mixed_mean = (q @ means + mean) / components
    squares = means.square()
    if exact_variance:
        mean_square = q @ squares + mean.square()
    else:
        cross, own = 2 * mean * ((p * q) @ means), mean.square() * p.square().sum(1, keepdim=True)
        mean_square = q.square() @ squares + cross + own
    spread = (mean_square / components - mixed_mean.square()).clamp(min=0)
    return mixed_mean + center, (q @ vars + var) / components + spread


def unmix_tns(
    input: Float[Tensor, "batch channels *spatial"],
    means: Float[Tensor, "components channels"],
    vars: Float[Tensor, "components channels"],
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    eps: float = 1e-5,
    *,
    momentum: float = 0.1,
    temperature: float = 0.07,
    exact_variance: bool = False,
    frozen: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch channels *spatial"]:
    """Normalize each instance by its mixture with the components, and move these.

    Args:
        input: floating point, `(N, C, ...)`. Without positions, `(N, C)`, an instance has variance 0.
        means, vars: of the components, `(K, C)`; changed in place unless frozen, after the batch was
            normalized by what they were.
        weight, bias: `(C,)` or None.
        eps: added to the variance under the root.
        momentum: lambda in [0, 1], how far a batch moves the components.
        temperature: > 0, of the softmax over the components.
        exact_variance: add p (1-p) (mu - M_k)^2, the spread within each mixture, which the paper leaves out.
        frozen: leave the components where they are.
        process_group: the processes whose batches move the components together; None: this process only.

    The gradient flows through the instances' means and variances alone. An empty batch moves nothing, and NaN
    in a batch spreads to the components, as in torch's batch norm.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or an option that does not fit.
        RuntimeError: the forward pass is recomputed, by activation checkpointing, and not frozen.

    Source: Tomar et al. 2024 (arXiv 2401.08328), section 3; the equations above.

    >>> means, vars = torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    >>> unmix_tns(torch.tensor([[[1.0, 3.0]]]), means, vars)
    tensor([[[0.2773, 1.3867]]])
    >>> means  # the first, which it resembles, has moved towards its mean 2
    tensor([[ 1.1000],
            [-1.0000]])
    """
    check_input("unmix_tns", input, {"weight": weight, "bias": bias})
    for name, value in (("means", means), ("vars", vars)):
        if value.dim() != 2 or value.shape[1] != input.shape[1] or value.shape != means.shape:
            raise ValueError(
                f"unmix_tns needs means and vars of shape (K, C), with the {input.shape[1]} channels of the "
                f"input; got {name} of shape {tuple(value.shape)}: build the layer with "
                f"num_features={input.shape[1]}, or move the channels to dimension 1"
            )
    check_eps(eps)
    check_unit_interval("momentum", momentum)
    check_eps(temperature, "temperature", zero=False)
    # A process without samples still takes part in the sums of its group.
    if input.numel() == 0 and (process_group is None or frozen):
        return empty_result(input, weight, bias)
    if not frozen and is_recomputing():
        raise RuntimeError(
            "unmix_tns has moved its components since the first forward pass, which cannot be recomputed: "
            "set frozen=True, or leave the layer out of activation checkpointing"
        )
    x = per_channel_view(input)
    # Copies: the components move before the backward pass has read them.
    old_means, old_vars, weight, bias = upcast_parameters(input, means.clone(), vars.clone(), weight, bias)
    old_means, old_vars = snapshot(old_means.detach()), snapshot(old_vars.detach())
    moments = constant_moments(x)
    assignment = assign(moments[0], old_means, temperature)
    rule, equation = (
        partial(_rule, statistics, exact_variance, eps)
        for statistics in (unmix_statistics_by_matmul, unmix_statistics)
    )
    output = normalize_by_rule(x, moments, rule, equation, assignment, old_means, old_vars, weight, bias)
    if not frozen:
        with torch.no_grad():
            new_means, new_vars = move_components(
                *moments, old_means, old_vars, assignment, momentum, process_group
            )
            means.copy_(new_means)
            vars.copy_(new_vars)
    return restore_shape(input, output)


def _rule(
    statistics: Any,
    exact_variance: bool,
    eps: float,
    instance_mean: Tensor,
    instance_var: Tensor,
    assignment: Tensor,
    means: Tensor,
    vars: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Return scale and shift of each instance, given its mean and variance `(N, C)`."""
    mean, var = statistics(instance_mean, instance_var, means, vars, assignment, exact_variance)
    return affine_map(instance_mean, mean, var, weight, bias, eps)


# ---- layers ----


class UnMixTNS(SourceBatchNorm):
    """The layer for inputs of any rank, which takes the place of `SyncBatchNorm`."""

    means: Tensor
    vars: Tensor
    noise: Tensor

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
        num_components: int = 16,
        batch_size: int = 64,
        max_batch_size: int = 64,
        temperature: float = 0.07,
        init_coeff: float = 0.5,
        exact_variance: bool = False,
        generator: torch.Generator | None = None,
        process_group: Group = None,
    ) -> None:
        name = type(self).__name__
        check_int("num_components", num_components, 1)
        check_int("batch_size", batch_size, 1)
        check_int("max_batch_size", max_batch_size, 1)
        check_eps(temperature, "temperature", zero=False)
        check_unit_interval("init_coeff", init_coeff)
        if init_coeff == 1:
            raise ValueError(
                "init_coeff=1 leaves the components no variance of their own: pass a value in [0, 1)"
            )
        if momentum is None:
            raise ValueError(
                f"{name} moves its components at a fixed speed; got momentum=None, the plain average: pass a "
                "momentum, say momentum=0.1"
            )
        if not track_running_stats:
            raise ValueError(
                f"{name} starts from running statistics; got track_running_stats=False, a batch norm without "
                "them: use convert_test_batch_norm, which needs none"
            )
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, process_group
        )
        self.num_components = num_components
        self.batch_size = batch_size
        self.max_batch_size = max_batch_size
        self.temperature = temperature
        self.init_coeff = init_coeff
        self.exact_variance = exact_variance
        self.frozen = False
        statistics = self._running()[0]
        size = num_components, num_features
        for buffer in ("means", "vars", "noise"):
            # In float32 at least, since a half type would round small moves away.
            self.register_buffer(buffer, statistics.new_empty(size, dtype=upcast_dtype(statistics.dtype)))
        if not statistics.is_meta:
            where = statistics.device if generator is None else generator.device
            noise = torch.randn(size, generator=generator, device=where, dtype=upcast_dtype(statistics.dtype))
            self.noise.copy_(noise)
        self.reset()

    @property
    def effective_momentum(self) -> float:
        """Lambda = 1 - (1 - momentum)^(batch_size / max_batch_size): small batches move less."""
        assert self.momentum is not None  # checked in the constructor
        kept: float = (1 - self.momentum) ** (self.batch_size / self.max_batch_size)
        return 1 - kept

    def reset(self) -> None:
        """Forget the stream: restore the components as they were at conversion. The affine part stays."""
        means, vars = initial_components(*self._running(), self.noise, self._coefficient())
        self.means.copy_(means)
        self.vars.copy_(vars)

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Normalize, and move the components unless `frozen`, in training and evaluation alike."""
        check_rank(type(self).__name__, input, self._ranks, self._shape)
        if input.dim() == 2:
            running = self._running()
            return estimated_batch_norm(input, *running, self.weight, self.bias, eps=self.eps)
        return unmix_tns(
            input,
            self.means,
            self.vars,
            self.weight,
            self.bias,
            self.eps,
            momentum=self.effective_momentum,
            temperature=self.temperature,
            exact_variance=self.exact_variance,
            frozen=self.frozen,
            process_group=self._group(),
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"num_components={self.num_components}, batch_size={self.batch_size}, "
            f"max_batch_size={self.max_batch_size}"
        )

    def _running(self) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None  # checked in the constructor
        assert self.running_var is not None
        return self.running_mean, self.running_var

    def _coefficient(self) -> float:
        return self.init_coeff if self.num_components > 1 else 0.0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The state dict of a batch norm: start from its statistics, with this layer's noise.
        mean, var = (state_dict.get(f"{prefix}running_{name}") for name in ("mean", "var"))
        components = [f"{prefix}{name}" for name in ("means", "vars", "noise")]
        from_batch_norm = not any(name in state_dict for name in components)
        if from_batch_norm and mean is not None and var is not None and not self.noise.is_meta:
            values = *initial_components(mean, var, self.noise, self._coefficient()), self.noise
            state_dict.update(zip(components, values, strict=True))
        super()._load_from_state_dict(state_dict, prefix, *args)


class UnMixTNS1d(UnMixTNS):
    """Normalization of each sample of `(N, C, L)` by its mixture with components of the test stream.

    The positional arguments are those of `torch.nn.BatchNorm1d`, in torch's order. The layer is usually made
    from a trained one, by `trueup.adaptation.convert_unmix_tns`. Inputs `(N, C)` have no statistics per
    sample; they are normalized by the source statistics, and move nothing. NaN in a batch spreads to the
    components; `reset()` is the way back.

    Args:
        num_features: channels C.
        eps: added to the variance under the root.
        momentum: in [0, 1], how far a batch of `max_batch_size` samples moves the components.
        affine: have a weight and a bias per channel, which may be trained.
        track_running_stats: must be True; the components start from the running statistics.
        device, dtype: of the parameters and buffers.
        num_components: K; 16 for one domain at a time, 128 for mixed ones in the official runs. With one,
            each sample is normalized by itself.
        batch_size, max_batch_size: correct the momentum for the batch size b of the stream, nominally:
            lambda = 1 - (1 - momentum)^(b / max). The official runs have 64 and 64; 16 and 16 for ImageNet.
        temperature: > 0, of the softmax over the components.
        init_coeff: c in [0, 1), the part of the source variance that becomes noise between the means of the
            components; each keeps 1 - c as its own.
        exact_variance: add p (1-p) (mu - M_k)^2, the spread within each mixture, which the paper leaves out.
        generator: for that noise.
        process_group: the processes whose batches move the components together; `"world"`: all of them if
            `torch.distributed` is initialized, as for a `SyncBatchNorm`. None: this process only.

    Attributes:
        frozen: set to True, it keeps the components from moving, say to evaluate on clean data. They move
            with every forward pass otherwise, in training and evaluation alike.
        means, vars, noise: buffers `(K, C)`; with `running_mean` and `running_var` they are what `reset()`
            starts from. A state dict of a batch norm can be loaded: the layer starts from it, with its noise.

    A batch that activation checkpointing computes again is an error unless the layer is frozen.

    Raises:
        ValueError, TypeError: a setting out of range; an input of another rank or number of channels.

    Source: Tomar et al. 2024 (arXiv 2401.08328), section 3.

    >>> layer = UnMixTNS1d.from_module(torch.nn.BatchNorm1d(3), num_components=4)
    >>> layer(torch.randn(2, 3, 5)).shape
    torch.Size([2, 3, 5])
    >>> layer.reset()
    """

    _ranks = (2, 3)
    _shape = "(N, C) or (N, C, L)"
    _source = nn.BatchNorm1d


class UnMixTNS2d(UnMixTNS):
    """Normalization of each sample of `(N, C, H, W)` by its mixture with components; see `UnMixTNS1d`.

    >>> layer = UnMixTNS2d(3, num_components=4).eval()
    >>> before = layer.means.clone()
    >>> layer.frozen = True
    >>> y = layer(torch.randn(2, 3, 5, 5))
    >>> torch.equal(layer.means, before)
    True
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"
    _source = nn.BatchNorm2d


class UnMixTNS3d(UnMixTNS):
    """Normalization of each sample of `(N, C, D, H, W)` by its mixture with components; see `UnMixTNS1d`.

    >>> UnMixTNS3d(3)(torch.randn(2, 3, 4, 5, 5)).shape
    torch.Size([2, 3, 4, 5, 5])
    """

    _ranks = (5,)
    _shape = "(N, C, D, H, W)"
    _source = nn.BatchNorm3d
