"""NormalizedGD: descent on the logistic loss that takes large steps and does not slow down near separation.

Problem: gradient descent on the logistic loss crawls once most samples are right, because they fill the mean
and have almost no gradient; large steps help, up to n times too few. Idea: divide the gradient by the mean
weight with which samples are still wrong. With margins m_i = y_i g(a_i; w), labels y_i of -1 or +1:

    s_i = sigmoid(-m_i),    beta = n / sum s_i,    w <- w - lr beta grad f = w + lr sum_i p_i grad m_i

where f = mean log(1 + exp(-m_i)) and p_i = s_i / sum_j s_j. This is not division by the gradient's norm, and
beta cannot be had from the gradient: it takes every sample's margin, so the loss or a closure must give them.

Tyurin: From Logistic Regression to the Perceptron Algorithm, AAAI 2025, arXiv 2412.08424, equation of
Normalized LR+GD; there is no official code. The guarantee holds for linear models and full batches; beta of a
mini-batch is ours. p is a softmax of logarithms: s itself underflows soon after separation, to 0 / 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from trueup._numerics.upcasting import upcast_dtype
from trueup.optim._routes import check_range, checked_after_hooks, number


def misclassification_weights(
    margins: Float[Tensor, " samples"],
    weight: Float[Tensor, " samples"] | None = None,
    *,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, " samples"]:
    """The share of each sample in a normalised step: p_i = w_i s_i / sum_j w_j s_j, s_i = sigmoid(-m_i).

    They add up to 1 however large the margins are; a sample far behind the worst one gets an exact 0.

    Args:
        margins: y_i times the score, positive where a sample is right.
        weight: of each sample, not negative; None: all 1. All zeros give NaN.
        process_group: add up over its processes, each of which holds some of the samples.

    Returns:
        In the margins' dtype, or float32 for half precision.

    Raises:
        TypeError, ValueError: margins, or weights, that are no floating-point vector of one sample or more.

    >>> misclassification_weights(torch.tensor([0.0, 1.0, 1e6]))
    tensor([0.6502, 0.3498, 0.0000])
    >>> misclassification_weights(torch.tensor([1e6, 1e6 + 1.0]))  # sigmoid(-1e6) is 0 in any precision
    tensor([0.7311, 0.2689])
    """
    _check(margins, weight)
    logs = _log_weights(margins, weight)
    if process_group is None:
        return logs.softmax(0)
    top = logs.detach().amax()
    dist.all_reduce(top, dist.ReduceOp.MAX, group=process_group)
    shares = (logs - top).exp()
    total = shares.detach().sum()
    dist.all_reduce(total, group=process_group)
    return shares / total


def log_beta(
    margins: Float[Tensor, " samples"], weight: Float[Tensor, " samples"] | None = None
) -> Float[Tensor, ""]:
    """Logarithm of the factor on the gradient, beta = sum_i w_i / sum_i w_i sigmoid(-m_i).

    It is log 2 at margins of 0, at least 0 always, and grows about like the worst margin after separation.
    Arguments, dtype and errors are those of `misclassification_weights`.

    >>> log_beta(torch.tensor([0.0, 0.0])), log_beta(torch.tensor([1e6, 2e6]))
    (tensor(0.6931), tensor(1000000.6875))
    """
    _check(margins, weight)
    logs = _log_weights(margins, weight)
    total = math.log(len(margins)) if weight is None else weight.to(logs.dtype).sum().log()
    return total - logs.logsumexp(0)


def normalized_logistic_loss(
    margins: Float[Tensor, " samples"],
    weight: Float[Tensor, " samples"] | None = None,
    *,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Mean logistic loss, whose backward pass gives beta times its gradient.

    For use with any optimizer in the place of ``F.binary_cross_entropy_with_logits``; with
    `torch.optim.SGD` it is `NormalizedGD`. The factor is a constant to differentiation: a second derivative
    is beta times that of the mean loss.

    Pass all samples of a step at once: factors of parts of a batch differ, so accumulating gradients over
    parts weighs their samples unequally.

    Args:
        margins: y_i times the score of sample i, where y_i is -1 or +1. From labels t of 0 and 1:
            ``(2 * t - 1) * scores``, both of shape ``(samples,)``.
        weight: of each sample, not negative; None: all 1.
        process_group: normalise over the samples of all its processes, where gradients are averaged over
            them afterwards, as `DistributedDataParallel` and `fully_shard` do. Every process then gets the
            loss of all samples. Processes may hold different numbers of samples.

    Returns:
        The loss, in the margins' dtype, or float32 for half precision. It may go into the thousands with
        large steps while the classifier gets better: count margins that are not positive to see progress.

    Raises:
        TypeError, ValueError: margins, or weights, that are no floating-point vector of one sample or more.

    Source: Normalized LR+GD of the paper, with p_i held constant.

    >>> margins = torch.tensor([0.0, 1.0, 1e6], requires_grad=True)
    >>> loss = normalized_logistic_loss(margins)
    >>> loss.backward()
    >>> loss.detach(), margins.grad
    (tensor(0.3355), tensor([-0.6502, -0.3498, -0.0000]))
    """
    _check(margins, weight)
    shares = misclassification_weights(margins.detach(), weight, process_group=process_group)
    losses = F.softplus(-margins.detach().to(shares.dtype))
    weights = torch.ones_like(losses) if weight is None else weight.to(losses.dtype)
    sums = torch.stack([(weights * losses).sum(), weights.sum()])
    if process_group is not None:
        dist.all_reduce(sums, group=process_group)
        shares = shares * dist.get_world_size(process_group)
    value: Tensor = _LossOfShares.apply(  # type: ignore[no-untyped-call]
        margins, shares, sums[0] / sums[1]
    )
    return value


class _LossOfShares(torch.autograd.Function):
    """The given value, whose derivative along margin i is -share i."""

    generate_vmap_rule = True

    @staticmethod
    def forward(margins: Tensor, shares: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        margins, shares = ctx.saved_tensors
        if torch.is_grad_enabled():
            # 1, with the derivative that s_i has relative to itself: beta is the constant, s_i is not.
            logs = F.logsigmoid(-margins.to(shares.dtype))
            shares = shares * (logs - logs.detach()).exp()
        return (-grad * shares).to(margins.dtype), None, None


class NormalizedGD(Optimizer):
    """Gradient descent on the logistic loss, the gradient divided by the mean misclassification weight.

    `step` needs a closure that returns the margins of all samples, one a sample, and calls no backward: the
    optimizer weighs the samples, clears the gradients, and runs the backward pass itself. Larger steps are
    better on separable problems; the loss on the way does not show it. To go with momentum or another
    optimizer, use `normalized_logistic_loss`, which is the same gradient as a loss.

    Under `DistributedDataParallel` and FSDP2 (`fully_shard`) pass ``process_group``, and the step is that of
    one process with all samples. On a model that is not linear nothing is guaranteed, and large steps may
    diverge.

    Args:
        params: parameters or parameter groups.
        lr: step size, above 0; there is no default. The paper's range is 0.1 to 100; 100 is a good choice
            for linear models of features with norm about 1. A float or a tensor of one element.
        process_group: normalise over the samples of all its processes; gradients must be averaged over them.

    Raises:
        ValueError: lr is not above 0, or a loaded state dict belongs to another optimizer.
        RuntimeError: a parameter is complex, or a gradient sparse.

    Source: Normalized LR+GD of the paper.

    >>> scores = torch.nn.Linear(2, 1)
    >>> X, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.2, 0.1]]), torch.tensor([1.0, -1.0, -1.0])
    >>> optimizer = NormalizedGD(scores.parameters(), lr=100.0)
    >>> for _ in range(20):
    ...     loss = optimizer.step(lambda: y * scores(X).squeeze(1))
    >>> bool((y * scores(X).squeeze(1) > 0).all())
    True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.process_group = process_group
        super().__init__(params, {"lr": lr})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "process_group": self.process_group}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with a step size of their own, as `torch.optim.Optimizer.add_param_group`.

        Raises:
            ValueError: lr is not above 0.
            RuntimeError: a parameter is complex.
        """
        check_step_size(param_group.get("lr", self.defaults["lr"]))
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if param.is_complex():
                del self.param_groups[-1]
                raise RuntimeError(
                    f"NormalizedGD needs real parameters; got one of dtype {param.dtype} and shape "
                    f"{tuple(param.shape)}: store real and imaginary parts (torch.view_as_real)"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Weigh the samples by their margins, differentiate, and update every parameter.

        Args:
            closure: returns the margins, of shape ``(samples,)``; called once, with gradients enabled.

        Returns:
            The mean logistic loss before the step, detached.

        Raises:
            TypeError: no closure, or one that does not return a floating-point tensor.
            ValueError: what it returns is no vector of one sample or more.
            RuntimeError: the margins depend on no parameter, or a gradient is sparse.
        """
        if not callable(closure):
            raise TypeError(
                "NormalizedGD.step needs a closure that returns the margins y * score of all samples and "
                "calls no backward, because the step weighs each sample by its own margin; got "
                f"{closure!r}. To call backward yourself, use normalized_logistic_loss with torch.optim.SGD"
            )
        with torch.enable_grad():
            margins = closure()
            _check(margins, None)
            if not margins.requires_grad:
                raise RuntimeError(
                    "the margins depend on no parameter that requires a gradient: return them from the "
                    "closure as the model gives them, neither detached nor computed under no_grad"
                )
            loss = normalized_logistic_loss(margins, process_group=self.process_group)
            self.zero_grad()
            loss.backward()
        grads = [
            {param: _dense(param.grad) for param in group["params"] if param.grad is not None}
            for group in self.param_groups
        ]
        for group, of_param in zip(self.param_groups, grads, strict=True):
            # In float32 at least: large steps may be beyond float16, and torch rounds alpha to the dtype of
            # both lists.
            wide = [grad.to(upcast_dtype(grad.dtype)) for grad in of_param.values()]
            if isinstance(group["lr"], Tensor):
                for param, grad in zip(of_param, wide):
                    param.sub_(grad * number(group["lr"]))
            elif of_param:
                torch._foreach_add_(list(of_param), wide, alpha=-group["lr"])
        return loss.detach()

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state dict of this class, which holds hyperparameters only.

        Raises:
            ValueError: it belongs to another optimizer.
        """
        with checked_after_hooks(self, self._checked):
            super().load_state_dict(state_dict)

    def _checked(self, state_dict: StateDict) -> None:
        for group in state_dict["param_groups"]:
            if state_dict["state"] or "weight_decay" in group:
                raise ValueError(
                    "NormalizedGD.load_state_dict needs a state dict of NormalizedGD, which keeps no state "
                    f"of parameters; got hyperparameters {sorted(group.keys() - {'params'})} and state of "
                    f"{len(state_dict['state'])} parameters: it belongs to another optimizer"
                )


def _dense(grad: Tensor) -> Tensor:
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"NormalizedGD needs dense gradients; got layout {grad.layout}: build the embedding with "
            "sparse=False"
        )
    return grad


def check_step_size(lr: float | Tensor) -> None:
    """Raise ValueError unless lr is finite and above 0; the value of a tensor is not read."""
    check_range("lr", lr, 0)
    if not isinstance(lr, Tensor) and not 0 < lr < math.inf:
        raise ValueError(
            f"lr must be finite and above 0; got {lr}: 100 is a good choice for features of norm 1"
        )


def _log_weights(margins: Tensor, weight: Tensor | None) -> Tensor:
    logs = F.logsigmoid(-margins.to(upcast_dtype(margins.dtype)))
    return logs if weight is None else logs + weight.to(logs.dtype).log()


def _check(margins: object, weight: Tensor | None) -> None:
    if not isinstance(margins, Tensor) or not margins.is_floating_point():
        got = str(margins.dtype) if isinstance(margins, Tensor) else type(margins).__name__
        raise TypeError(f"margins must be a floating-point tensor, y * score of each sample; got {got}")
    if margins.ndim != 1 or len(margins) == 0:
        hint = (
            "this looks like a loss, which hides the samples"
            if margins.ndim == 0
            else "squeeze the scores before they meet the labels, or (n, 1) * (n,) makes an (n, n) table"
        )
        raise ValueError(
            f"margins must be a vector, one y * score a sample; got shape {tuple(margins.shape)}: {hint}"
        )
    if weight is None:
        return
    if not weight.is_floating_point():
        raise TypeError(f"weight must be a floating-point tensor; got {weight.dtype}")
    if weight.shape != margins.shape:
        raise ValueError(
            f"weight must have one entry a sample, shape {tuple(margins.shape)}; got {tuple(weight.shape)}"
        )
