"""NormalizedGD: descent on the logistic loss in large steps that does not slow down near separation.

Problem: gradient descent on the logistic loss crawls once most samples are right, because they dominate the
mean and have almost no gradient; large steps help, but may still take n times too many. Idea: divide the
gradient by the mean misclassification weight. With margins m_i = y_i g(a_i; w), labels y_i of -1 or +1:

    s_i = sigmoid(-m_i),    beta = n / sum s_i,    w <- w - lr beta grad f = w + lr sum_i p_i grad m_i

where f = mean log(1 + exp(-m_i)) and p_i = s_i / sum_j s_j. This is not division by the gradient's norm, and
beta does not follow from the gradient: it takes every sample's margin, so the loss or a closure must give
them.

Tyurin: From Logistic Regression to the Perceptron Algorithm, AAAI 2025, arXiv 2412.08424, equation of
Normalized LR+GD; there is no official code. The guarantee holds for linear models and full batches; beta of a
mini-batch is ours. p is a softmax of logarithms: s itself soon underflows after separation, to 0 / 0.
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

from trueup._numerics.upcasting import upcast, upcast_dtype
from trueup.optim._routes import checked_after_hooks, scalar
from trueup.optim._validation import check_last_group_is_real, check_step_size, checked_gradient


def misclassification_weights(
    margins: Float[Tensor, " samples"],
    weight: Float[Tensor, " samples"] | None = None,
    *,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, " samples"]:
    """Return each sample's share in a normalised step: p_i = w_i s_i / sum_j w_j s_j, s_i = sigmoid(-m_i).

    The shares add up to 1 however large the margins are. A sample whose margin is far above the smallest gets
    an exact 0.

    Args:
        margins: y_i times the score of sample i, positive where the sample is right; shape `(samples,)`.
        weight: one weight per sample, not negative; None means all 1. All zeros give NaN.
        process_group: sum over its processes, each of which holds some of the samples.

    Returns:
        The shares, of the margins' shape and dtype, or in float32 for half types.

    Raises:
        TypeError, ValueError: `margins` or `weight` is no floating-point vector of one sample or more.

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
    """Return the logarithm of the gradient's factor, beta = sum_i w_i / sum_i w_i sigmoid(-m_i).

    It is log 2 at margins of 0, never below 0, and after separation grows about like the smallest margin.
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
    """Return the mean logistic loss, whose backward pass gives beta times its gradient.

    Use it with any optimizer instead of `F.binary_cross_entropy_with_logits`; with `torch.optim.SGD` it is
    `NormalizedGD`. Differentiation takes the factor as a constant: a second derivative is beta times that of
    the mean loss.

    Pass all samples of a step at once. Parts of a batch have different factors, so accumulating gradients
    over parts weighs their samples unequally.

    Args:
        margins: y_i times the score of sample i, where y_i is -1 or +1. From labels t of 0 and 1:
            `(2 * t - 1) * scores`, both of shape `(samples,)`.
        weight: one weight per sample, not negative; None means all 1.
        process_group: normalise over the samples of all its processes. Their gradients must be averaged
            afterwards, as `DistributedDataParallel` and `fully_shard` do. Every process gets the loss of all
            samples. Processes may hold different numbers of samples.

    Returns:
        The loss, 0-d, in the margins' dtype, or in float32 for half types. With large steps it may go into
        the thousands while the classifier gets better: to see progress, count margins that are not positive.

    Raises:
        TypeError, ValueError: `margins` or `weight` is no floating-point vector of one sample or more.

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
    """A given value whose derivative with respect to margin i is -share i."""

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
            # The factor is 1, with the derivative of log s_i: beta is held constant, s_i is not.
            logs = F.logsigmoid(-margins.to(shares.dtype))
            shares = shares * (logs - logs.detach()).exp()
        return (-grad * shares).to(margins.dtype), None, None


class NormalizedGD(Optimizer):
    """Gradient descent on the logistic loss, the gradient divided by the mean misclassification weight.

    `step` needs a closure that returns the margin of every sample and does not call backward: the optimizer
    weighs the samples, clears the gradients and runs the backward pass itself. Larger steps are better on
    separable problems, although the loss does not show it on the way. For momentum or another optimizer, use
    `normalized_logistic_loss`, which has the same gradient.

    Under `DistributedDataParallel` and FSDP2 (`fully_shard`) pass `process_group`, and the step equals that
    of one process with all samples. For models that are not linear nothing is guaranteed, and large steps may
    diverge.

    Args:
        params: parameters or parameter groups.
        lr: step size, above 0; a float or a tensor of one element. The paper's range is 0.1 to 100; 100 is a
            good choice for linear models of features with norm about 1.
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
        """Add parameters with a step size of their own, as in `torch.optim.Optimizer`.

        Raises:
            ValueError: lr is not above 0.
            RuntimeError: a parameter is complex.
        """
        check_step_size(param_group.get("lr", self.defaults["lr"]))
        super().add_param_group(param_group)
        check_last_group_is_real(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Weigh the samples by their margins, differentiate, and update every parameter.

        Args:
            closure: returns the margins, of shape `(samples,)`; called once, with gradients enabled.

        Returns:
            The mean logistic loss before the step, detached.

        Raises:
            TypeError: there is no closure, or it does not return a floating-point tensor.
            ValueError: the closure's result is no vector of one sample or more.
            RuntimeError: the margins depend on no parameter, or a gradient is sparse.
        """
        if not callable(closure):
            raise TypeError(
                "NormalizedGD.step needs a closure that returns the margins y * score of all samples and "
                "does not call backward, because the step weighs each sample by its own margin; got "
                f"{closure!r}. To call backward yourself, use normalized_logistic_loss with torch.optim.SGD"
            )
        with torch.enable_grad():
            margins = closure()
            _check(margins, None)
            if not margins.requires_grad:
                raise RuntimeError(
                    "the margins depend on no parameter that requires a gradient. Return them from the "
                    "closure as the model gives them, neither detached nor computed under no_grad"
                )
            loss = normalized_logistic_loss(margins, process_group=self.process_group)
            self.zero_grad()
            loss.backward()
        grads = [
            {p: checked_gradient("NormalizedGD", p.grad) for p in group["params"] if p.grad is not None}
            for group in self.param_groups
        ]
        for group, of_param in zip(self.param_groups, grads, strict=True):
            # In float32 or better: large steps may be beyond float16, and torch rounds alpha to the dtype of
            # both lists.
            upcast_grads = [upcast(grad) for grad in of_param.values()]
            if isinstance(group["lr"], Tensor):
                for param, grad in zip(of_param, upcast_grads):
                    param.sub_(grad * scalar(group["lr"]))
            elif of_param:
                torch._foreach_add_(list(of_param), upcast_grads, alpha=-group["lr"])
        return loss.detach()

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state dict of this class, which holds hyperparameters only.

        Raises:
            ValueError: the state dict belongs to another optimizer.
        """
        with checked_after_hooks(self, self._checked):
            super().load_state_dict(state_dict)

    def _checked(self, state_dict: StateDict) -> None:
        for group in state_dict["param_groups"]:
            if state_dict["state"] or "weight_decay" in group:
                raise ValueError(
                    "NormalizedGD.load_state_dict needs a state dict of NormalizedGD, which has no state per "
                    f"parameter; got hyperparameters {sorted(group.keys() - {'params'})} and state of "
                    f"{len(state_dict['state'])} parameters. Load it into the optimizer that saved it"
                )


def _log_weights(margins: Tensor, weight: Tensor | None) -> Tensor:
    logs = F.logsigmoid(-margins.to(upcast_dtype(margins.dtype)))
    return logs if weight is None else logs + weight.to(logs.dtype).log()


def _check(margins: object, weight: Tensor | None) -> None:
    if not isinstance(margins, Tensor) or not margins.is_floating_point():
        got = str(margins.dtype) if isinstance(margins, Tensor) else type(margins).__name__
        raise TypeError(f"margins must be a floating-point tensor, one y * score per sample; got {got}")
    if margins.ndim != 1 or len(margins) == 0:
        hint = (
            "Return one margin per sample instead of a loss"
            if margins.ndim == 0
            else "Squeeze the scores before multiplying by the labels: (n, 1) * (n,) gives an (n, n) table"
        )
        raise ValueError(
            f"margins must be a vector, one y * score per sample; got shape {tuple(margins.shape)}. {hint}"
        )
    if weight is None:
        return
    if not weight.is_floating_point():
        raise TypeError(f"weight must be a floating-point tensor; got {weight.dtype}")
    if weight.shape != margins.shape:
        raise ValueError(
            f"weight must have one entry per sample, shape {tuple(margins.shape)}; got {tuple(weight.shape)}"
        )
