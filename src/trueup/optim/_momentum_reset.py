"""MomentumReset: zero an optimizer's moments every few steps and restart their bias correction.

Moments remember a spiked gradient for hundreds of steps; a reset forgets it.

Huang et al.: Stable-SPAM, 2025, arXiv 2502.17055, section 4.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from trueup.optim._gradient_transform import GradientTransform
from trueup.optim._validation import check_count

_STEP_SIZES = {"step_size", "eta", "mu"}  # of torch.optim.Rprop and ASGD


class MomentumReset(GradientTransform):
    """Zero an optimizer's moments every few steps, and restart their bias correction.

    This zeroes every tensor of the parameter's shape in the optimizer's state, except running maxima
    (`max_exp_avg_sq`) and step sizes that the optimizer adapts. It zeroes the count `step` too, a tensor or a
    Python number, per parameter or per group. A group's count restarts with the parameter of the group that
    has stepped most often. Gradients are not changed.

    Args:
        optimizer: the optimizer whose steps it precedes.
        interval: number of steps, at least 1; the moments are zeroed before each step that is a multiple.

    Raises:
        ValueError: `interval` is out of range.

    Source: Huang et al. 2025, section 4.3.

    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.Adam([weight])
    >>> transform = MomentumReset(optimizer, interval=3)
    >>> for _ in range(3):
    ...     weight.grad = torch.ones(1)
    ...     optimizer.step()
    >>> optimizer.state[weight]["step"]
    tensor(1.)
    """

    def __init__(self, optimizer: Optimizer, interval: int) -> None:
        check_count("interval", interval, 1)
        super().__init__(optimizer)
        self.interval = interval

    def _transform(self) -> None:
        super()._transform()
        for group in self.optimizer.param_groups:
            stepping = [p for p in group["params"] if p.grad is not None]
            if _is_number(group.get("step")) and stepping:
                device = stepping[0].device
                steps = [self.state[p]["step"].to(device, torch.float32) for p in stepping]
                if torch.stack(steps).amax() % self.interval == 0:
                    group["step"] *= 0

    def _apply(self, params: list[Tensor], grads: list[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        step = state[0] + 1
        for param, keep in zip(params, step % self.interval != 0, strict=True):
            own = self.optimizer.state.get(param, {})
            for name, value in own.items():
                if name == "step" and _is_number(value) and not isinstance(value, Tensor):
                    own[name] = value * int(keep)  # reads `keep` from its device; the other cases do not
                    continue
                if not isinstance(value, Tensor) or name.startswith("max_") or name in _STEP_SIZES:
                    continue
                kept = keep.to(value.device)
                if name == "mu_product":  # NAdam's bias correction starts from 1
                    value.mul_(kept).add_(~kept)
                elif name == "step" or value.shape == param.shape:
                    value.mul_(kept)
        return (step,)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)
