"""Cases of the conformance suite for layers: how to build each layer and what to feed it.

To add a layer, add a line to `CASES`:

    Case(partial(EvoNorm2dS0, 8, groups=4), shape=(6, 8, 5, 4)),

What a layer cannot do by design is declared with the reason that its documentation gives. The suite then
checks that the layer raises accordingly, or skips with that reason. It checks every other property.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import nn

from trueup.adaptation import (
    AlphaBatchNorm1d,
    AlphaBatchNorm2d,
    AlphaBatchNorm3d,
    UnMixTNS1d,
    UnMixTNS2d,
    UnMixTNS3d,
)
from trueup.nn import (
    BatchChannelNorm1d,
    BatchChannelNorm2d,
    EstimatedBatchNorm1d,
    EstimatedBatchNorm2d,
    EvoNorm2dB0,
    EvoNorm2dB1,
    EvoNorm2dB2,
    EvoNorm2dS0,
    EvoNorm2dS0a,
    EvoNorm2dS1,
    EvoNorm2dS1a,
    EvoNorm2dS2,
    EvoNorm2dS2a,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    LayerNormGRU,
    LayerNormGRUCell,
    LayerNormLSTM,
    LayerNormLSTMCell,
    LayerNormRNN,
    LayerNormRNNCell,
    PowerNorm1d,
    PowerNorm2d,
    ScaledWeightStandardization,
    WeightCompander,
    WeightStandardization,
    parametrize_weights,
)


@dataclass(frozen=True)
class Case:
    """A layer and an example input.

    Attributes:
        layer: makes a new layer when called with `device` and `dtype`; a class with its arguments bound.
        shape: of a random input, batch first. Keep it small: gradients are checked by finite differences.
        channels_last: the layer keeps the memory format of a 4-d input.
        inductor: compile with the real backend too (slow: for a few).
        one_sample: the layer's error for a training batch of one sample, if that is an error.
        approximate_backward: why the gradient is not that of the forward (gradcheck is skipped).
        once_differentiable: why the gradient cannot be differentiated again (it must then raise).
        parametrization: why the layer cannot be pickled whole (its state dict can).
        bounded: why an infinite input gives a finite output.
        keeps_output: why an output may not be changed in place (the backward pass must then raise).
        stateful: what a training forward changes. If empty, nothing may change.
        adapts: evaluation does what training does: it uses the batch, and changes the state if training does.
    """

    layer: Callable[..., nn.Module]
    shape: tuple[int, ...]
    channels_last: bool = True
    inductor: bool = False
    one_sample: str = ""
    approximate_backward: str = ""
    once_differentiable: str = ""
    parametrization: str = ""
    bounded: str = ""
    keeps_output: str = ""
    stateful: str = ""
    adapts: bool = False

    @cached_property
    def kind(self) -> type[nn.Module]:
        return type(self.layer())

    def __str__(self) -> str:
        return f"{self.kind.__name__}-{'x'.join(map(str, self.shape))}"

    def build(self, dtype: torch.dtype = torch.float32, *, training: bool = True) -> nn.Module:
        """Build the layer with random weights, since zeros and ones hide mistakes."""
        torch.manual_seed(0)
        layer = self.layer(dtype=dtype)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return layer.train(training)

    def example(self, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
        """Return an input with neither mean zero nor variance one."""
        return torch.randn(self.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


APPROXIMATE = "the gradient through the running statistic is approximate, as in the paper"
ONCE = "the approximation is not the gradient of a function"
RUNNING_VAR = "the running variance moves with every training batch"
RUNNING = "running statistics and their counter move with every training batch"
ALONE = "more than one value per channel"
COMPONENTS = "components move with every batch"
MIXTURE = "the assignment to the components is constant for the gradient"
ESTIMATES = "the estimates are constants for the gradient, though the batch moves them"


def of_weight(parametrization: type[nn.Module], *shape: int, **options: object) -> Callable[..., nn.Module]:
    """Build a parametrisation as a layer from the stored weight to the effective one."""

    def layer(device: str | None = None, dtype: torch.dtype | None = None) -> nn.Module:
        return parametrization(torch.ones(shape, device=device, dtype=dtype), **options)

    return layer


def parametrized(parametrization: type[nn.Module], **options: object) -> Callable[..., nn.Module]:
    """Build a convolution with a parametrised weight."""

    def layer(device: str | None = None, dtype: torch.dtype | None = None) -> nn.Module:
        conv = nn.Conv2d(4, 6, 3, groups=2, device=device, dtype=dtype)
        return parametrize_weights(conv, parametrization, inplace=True, **options)

    return layer


BOUNDED = "the function of an infinite weight is its bound"
NO_PICKLE = "torch pickles no parametrised module; its state_dict can be saved"

CASES = [
    # 7 samples in ghost batches of 2: the remainder counts too.
    Case(partial(GhostBatchNorm1d, 3, ghost_batch_size=2), (7, 3), one_sample=ALONE, stateful=RUNNING),
    Case(partial(GhostBatchNorm1d, 3, ghost_batch_size=2, remainder="keep"), (5, 3, 4), stateful=RUNNING),
    Case(
        partial(GhostBatchNorm1d, 3, ghost_batch_size=2, track_running_stats=False), (4, 3), one_sample=ALONE
    ),
    Case(partial(GhostBatchNorm1d, 3, ghost_batch_size=2, remainder="drop_stats"), (5, 3), stateful=RUNNING),
    Case(partial(GhostBatchNorm2d, 3, ghost_batch_size=2), (5, 3, 3, 2), stateful=RUNNING, inductor=True),
    Case(partial(GhostBatchNorm2d, 3, affine=False, momentum=None), (3, 3, 2, 2), stateful=RUNNING),
    Case(partial(GhostBatchNorm2d, 3, ghost_batch_size=4), (4, 3, 1, 1), one_sample=ALONE, stateful=RUNNING),
    Case(partial(GhostBatchNorm3d, 2, ghost_batch_size=2), (4, 2, 2, 1, 3), stateful=RUNNING),
    # Two units would be normalised to +1 and -1, with hardly a gradient.
    Case(partial(LayerNormRNNCell, 2, 3), (2, 2), keeps_output="the tanh is kept, as by `torch.nn.RNNCell`"),
    Case(
        partial(LayerNormLSTMCell, 2, 3, variant="official"),
        (2, 2),
        keeps_output="the normalisation of the new cell state keeps it",
    ),
    Case(partial(LayerNormGRUCell, 2, 3), (2, 2)),
    Case(partial(LayerNormRNN, 2, 3, 2, "relu", batch_first=True), (3, 2, 2)),
    Case(partial(LayerNormLSTM, 2, 3, batch_first=True, bidirectional=True), (2, 2, 2)),
    Case(partial(LayerNormGRU, 2, 3, batch_first=True, bias=False), (2, 3, 2)),
    Case(of_weight(WeightStandardization, 4, 3, 2, 2), (4, 3, 2, 2), channels_last=False),
    Case(of_weight(WeightStandardization, 4, 5, unbiased=False, eps_inside=False), (4, 5)),
    Case(
        of_weight(ScaledWeightStandardization, 4, 3, 2, 2, gamma=1.7, gain=False),
        (4, 3, 2, 2),
        channels_last=False,
    ),
    Case(
        of_weight(WeightCompander, 4, 3, 2, 2, a=3.0, b=2.0, learnable=True, relative=False),
        (4, 3, 2, 2),
        bounded=BOUNDED,
    ),
    Case(of_weight(WeightCompander, 4, 5, fn="tanh"), (4, 5), bounded=BOUNDED),
    Case(of_weight(WeightCompander, 4, 5, fn="softsign", a=3.0, init="direct"), (4, 5)),
    Case(parametrized(WeightCompander), (2, 4, 5, 4), parametrization=NO_PICKLE),
    Case(parametrized(ScaledWeightStandardization, gamma=1.7), (2, 4, 5, 4), parametrization=NO_PICKLE),
    Case(parametrized(WeightStandardization), (2, 4, 5, 4), parametrization=NO_PICKLE, inductor=True),
    *(
        Case(
            partial(layer, channels, **options),
            shape,
            approximate_backward=APPROXIMATE,
            once_differentiable=ONCE,
            stateful=RUNNING,
            inductor=len(shape) == 3,
        )
        for layer, channels, shape, options in (
            (PowerNorm1d, 4, (5, 3, 4), {"group_num": 2}),
            (PowerNorm1d, 4, (6, 4), {"warmup_iters": 0, "group_scaling": False}),
            (PowerNorm2d, 4, (3, 4, 2, 3), {"warmup_iters": 2, "affine": False, "variant": "official"}),
        )
    ),
    Case(partial(EvoNorm2dB0, 4), (3, 4, 3, 2), stateful=RUNNING_VAR, inductor=True),
    Case(partial(EvoNorm2dB0, 3), (4, 3, 1, 1), one_sample=ALONE, stateful=RUNNING_VAR),
    Case(partial(EvoNorm2dB0, 3, apply_act=False), (2, 3, 2, 2)),
    Case(partial(EvoNorm2dB1, 3, momentum=0.7), (4, 3, 5), stateful=RUNNING_VAR),
    Case(partial(EvoNorm2dB2, 2), (3, 2, 2, 1, 3), stateful=RUNNING_VAR),
    Case(partial(EvoNorm2dS0, 4, groups=2), (3, 4, 3, 2), inductor=True),
    Case(partial(EvoNorm2dS0a, 6, groups=3, apply_act=False), (2, 6, 5)),
    Case(partial(EvoNorm2dS1, 4, groups=2), (2, 4, 2, 2)),
    Case(partial(EvoNorm2dS1a, 4, groups=2, act_layer=nn.GELU), (2, 4, 2, 2)),
    Case(partial(EvoNorm2dS2, 4, groups=4), (2, 4, 2, 1, 3)),
    Case(partial(EvoNorm2dS2a, 4, groups=1, apply_act=False), (2, 4, 2, 2)),
    Case(partial(BatchChannelNorm1d, 4, num_groups=2), (5, 4), one_sample=ALONE, stateful=RUNNING),
    Case(
        partial(BatchChannelNorm1d, 6, num_groups=2, estimate=True),
        (3, 6),
        stateful=RUNNING,
        approximate_backward=ESTIMATES,
    ),
    Case(
        partial(BatchChannelNorm1d, 4, momentum=None, num_groups=4, channel_affine="channel"),
        (2, 4, 5),
        stateful=RUNNING,
    ),
    # With a small eps the suite's sum of squares hardly depends on the batch part, whose gradient is noise.
    Case(partial(BatchChannelNorm2d, 4, 1.0, num_groups=2), (3, 4, 3, 2), stateful=RUNNING, inductor=True),
    Case(
        partial(BatchChannelNorm2d, 4, 1.0, num_groups=2, estimate=True, warm_start=True),
        (3, 4, 3, 2),
        stateful=RUNNING,
        approximate_backward=ESTIMATES,
    ),
    Case(
        partial(BatchChannelNorm1d, 4, num_groups=2, estimate=True, moving_speed=0.0, warm_start=True),
        (3, 4, 2),
        stateful=RUNNING,
        approximate_backward=ESTIMATES,
    ),
    Case(
        partial(BatchChannelNorm2d, 4, 1e-3, 0.1, False, False, num_groups=2, channel_affine=None),
        (3, 4, 2, 2),
    ),
    Case(partial(EstimatedBatchNorm1d, 3), (4, 3), stateful=RUNNING, approximate_backward=ESTIMATES),
    Case(
        partial(EstimatedBatchNorm1d, 3, warm_start=True),
        (2, 3, 4),
        stateful=RUNNING,
        approximate_backward=ESTIMATES,
    ),
    Case(
        partial(EstimatedBatchNorm2d, 3, affine=False),
        (2, 3, 3, 2),
        stateful=RUNNING,
        inductor=True,
        approximate_backward=ESTIMATES,
    ),
    Case(partial(AlphaBatchNorm1d, 3), (4, 3), adapts=True),
    Case(partial(AlphaBatchNorm1d, 3, source_weight=0.9, unbiased=True), (3, 3, 4), adapts=True),
    Case(partial(AlphaBatchNorm2d, 3, prior_strength=4), (3, 3, 3, 2), inductor=True, adapts=True),
    # With a small eps the suite's sum of squares hardly depends on an input that is normalized by itself.
    Case(
        partial(AlphaBatchNorm2d, 3, 1.0, affine=False, track_running_stats=False, source_weight=0.0),
        (3, 3, 2, 2),
        adapts=True,
    ),
    Case(partial(AlphaBatchNorm3d, 2), (2, 2, 2, 1, 3), adapts=True),
    # Inputs without positions are normalized by the source statistics.
    Case(partial(UnMixTNS1d, 3, num_components=4), (3, 3)),
    *(
        Case(
            partial(layer, 3, num_components=components, **options),
            shape,
            inductor=len(shape) == 4,
            approximate_backward=MIXTURE,
            stateful=COMPONENTS,
            adapts=True,
        )
        for layer, components, shape, options in (
            (UnMixTNS1d, 4, (3, 3, 4), {"temperature": 1.0}),
            (UnMixTNS2d, 4, (3, 3, 3, 2), {}),
            (UnMixTNS2d, 2, (2, 3, 2, 2), {"affine": False, "exact_variance": True}),
            (UnMixTNS3d, 1, (2, 3, 2, 1, 2), {"eps": 1.0, "batch_size": 2}),
        )
    ),
]
