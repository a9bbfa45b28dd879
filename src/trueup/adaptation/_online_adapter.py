"""Adapt a model to the stream of test batches that it predicts, by steps on an unsupervised loss.

Problem: test data have shifted, and there are no labels to train on. Idea (TENT): each test batch gives the
predictions, and then one step on a loss of these predictions, with few parameters, such as scales and shifts:

    z = f(x; theta)        predict from z        theta <- theta - lr grad loss(z)        next batch

`OnlineAdapter` is this loop for any model, loss and optimizer; `tent` and `core` are methods made of it.

Wang, Shelhamer, Liu, Olshausen, Darrell: Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021,
arXiv 2006.10726. As in the official code the predictions are those of the forward pass that the last step is
computed from. Unlike there the model stays in evaluation mode: dropout is off, and running statistics do not
change. To normalize by the test batch convert the layers first, by `convert_test_batch_norm` for example.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trueup.adaptation._source_batch_norm import SourceBatchNorm
from trueup.adaptation._unmix_tns import UnMixTNS
from trueup.nn._bn_only import NORM_LAYERS
from trueup.nn._validation import check_int

if TYPE_CHECKING:
    from typing import Self

__all__ = ["OnlineAdapter", "Parameters", "has_batch_norm"]

Parameters = Literal["norm-affine"] | Callable[[str, nn.Parameter], bool] | Iterable[nn.Parameter]


class OnlineAdapter(nn.Module):
    """Predict test batches, and take steps on a loss of the predictions.

    The adapter changes the model it is given: its chosen parameters, and nothing else, unless the layers
    themselves follow the stream, as `UnMixTNS` does. `reset()` gives back what they were, and
    `restore(adapter)` the source model.

    Args:
        model: returns logits, or an object with an attribute `logits`, as Hugging Face models do. It is put
            into evaluation mode and stays there, whatever `train()` is called.
        loss: takes the logits and returns a scalar, such as `core_loss`.
        optimizer: takes a list of parameters and returns an optimizer, such as
            `functools.partial(torch.optim.Adam, lr=1e-3)`.
        parameters: the ones to train. `"norm-affine"`: weight and bias of all norm layers, those of
            `LayerNorm` and `GroupNorm` too; a function of name and parameter that returns True for those to
            train; or the parameters themselves. `requires_grad` changes during the steps only.
        steps: per batch. Each is a forward and a backward pass.
        episodic: reset before every batch, so that each is adapted to on its own. Then only the second and
            later steps change predictions.

    Attributes:
        frozen: if True, predictions only: no steps, and layers such as `UnMixTNS` stay as they are too.
        optimizer: the optimizer; its learning rate may be changed.

    Raises:
        TypeError: `optimizer` is not a function of parameters; `loss` is not callable; the model is an
            adapter itself.
        ValueError: there is nothing to train; a parameter is not the model's; `steps` is less than 1; in a
            forward pass: the loss is not a scalar.
        RuntimeError: in a forward pass: the loss does not depend on the parameters; inference mode, in which
            there are no gradients (use `torch.no_grad`, which the adapter overrides).

    The state dict holds the model, the optimizer's state and the values that `reset` goes back to. Nothing is
    read from the device, so that NaN raises no error: a loss of NaN makes the parameters NaN, and `reset()`
    is the way back. An empty batch is predicted without a step.

    Source: Wang et al. 2021 (arXiv 2006.10726), section 3.

    >>> from functools import partial
    >>> from trueup.adaptation import core_loss
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    >>> adapter = OnlineAdapter(model, core_loss, partial(torch.optim.Adam, lr=1e-3))
    >>> for x in torch.randn(5, 16, 4):
    ...     logits = adapter(x)
    >>> adapter.adapted
    ['1.weight', '1.bias']
    >>> adapter.reset()
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor], Tensor],
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        parameters: Parameters = "norm-affine",
        steps: int = 1,
        episodic: bool = False,
    ) -> None:
        super().__init__()
        check_int("steps", steps, 1)
        if not callable(loss):
            raise TypeError(f"loss must be a function of the logits; got {loss!r}: pass core_loss, say")
        if any(isinstance(module, OnlineAdapter) for module in model.modules()):
            raise TypeError("the model is an OnlineAdapter already, or holds one: pass adapter.model")
        chosen = _choose(model, parameters)
        self.model = model
        self.loss = loss
        self.steps = steps
        self.episodic = episodic
        self.adapted = list(chosen)
        self.optimizer = _build(optimizer, list(chosen.values()))
        self._source = {name: tensor.detach().clone() for name, tensor in self._changing()}
        self._initial_optimizer = copy.deepcopy(self.optimizer.state_dict())
        self._frozen = False
        self.eval()

    @property
    def frozen(self) -> bool:
        """If True, predict only: take no steps, and move no components of `UnMixTNS`."""
        return self._frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._frozen = frozen
        for layer in self.model.modules():
            if isinstance(layer, UnMixTNS):
                layer.frozen = frozen

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the logits, detached, of the forward pass that the last step is computed from."""
        if self.episodic and not self.frozen:
            self.reset()
        if self.frozen:
            with torch.no_grad():
                return _logits(self.model(*args, **kwargs))
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "OnlineAdapter needs gradients, which inference mode rules out: use torch.no_grad(), or in "
                "Lightning Trainer(inference_mode=False), or set frozen = True"
            )
        for _ in range(self.steps):
            with torch.enable_grad(), self._training_only_chosen():
                logits = _logits(self.model(*args, **kwargs))
                if logits.numel() == 0:
                    return logits.detach()
                self._step(self.loss(logits))
        return logits.detach()

    def _step(self, loss: Tensor) -> None:
        if loss.numel() != 1:
            raise ValueError(f"the loss must be a scalar; got shape {tuple(loss.shape)}: return its mean")
        if not loss.requires_grad:
            raise RuntimeError(
                f"the loss does not depend on the parameters {', '.join(self.adapted[:3])}, ...: the model "
                "computes under no_grad, or detaches its output"
            )
        chosen = self._chosen()
        self.optimizer.zero_grad()
        loss.backward(inputs=chosen)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def reset(self) -> None:
        """Restore the parameters, the model's buffers and the optimizer as they were at first."""
        with torch.no_grad():
            for name, tensor in self._changing():
                tensor.copy_(self._source[name])
        self.optimizer.load_state_dict(copy.deepcopy(self._initial_optimizer))

    def train(self, mode: bool = True) -> Self:
        """Set the adapter's own mode; the model stays in evaluation mode."""
        self.training = mode
        self.model.eval()
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the state dict holds beyond the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "initial_optimizer": self._initial_optimizer,
            "source": self._source,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` returned."""
        # Copied, because an optimizer keeps the tensors that it loads, and changes them in place.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._initial_optimizer = copy.deepcopy(state["initial_optimizer"])
        self._source = {name: tensor.clone() for name, tensor in state["source"].items()}

    def extra_repr(self) -> str:
        return f"{len(self.adapted)} adapted parameters, steps={self.steps}, episodic={self.episodic}"

    def _chosen(self) -> list[nn.Parameter]:
        parameters = dict(self.model.named_parameters())
        return [parameters[name] for name in self.adapted]

    def _changing(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that adaptation can change: the chosen parameters, and all buffers."""
        yield from zip(self.adapted, self._chosen(), strict=True)
        yield from self.model.named_buffers()

    @contextmanager
    def _training_only_chosen(self) -> Iterator[None]:
        """Let only the chosen parameters require gradients, and put back all flags afterwards."""
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            self.model.requires_grad_(False)
            for parameter in self._chosen():
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def _choose(model: nn.Module, parameters: Parameters) -> dict[str, nn.Parameter]:
    """Return the parameters to train, by name."""
    named = dict(model.named_parameters())
    if isinstance(parameters, str):
        if parameters != "norm-affine":
            raise ValueError(
                f"parameters must be 'norm-affine', a function or parameters; got {parameters!r}: pass "
                "one of these"
            )
        kinds = (*NORM_LAYERS, SourceBatchNorm)
        layers = [module for module in model.modules() if isinstance(module, kinds)]
        wanted = {parameter for layer in layers for parameter in layer.parameters()}
        if not wanted:
            raise ValueError(
                "the model has no norm layer of torch with affine parameters: choose what to train by "
                "parameters=lambda name, parameter: 'norm' in name"
            )
    elif callable(parameters):
        wanted = {parameter for name, parameter in named.items() if parameters(name, parameter)}
    else:
        wanted = set(parameters)
    if not wanted:
        raise ValueError("there is nothing to train: `parameters` chooses none")
    if not wanted <= set(named.values()):
        raise ValueError("`parameters` holds some that are not the model's: take them from this very model")
    return {name: parameter for name, parameter in named.items() if parameter in wanted}


def _build(optimizer: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    built = optimizer(parameters) if callable(optimizer) else optimizer
    if not callable(optimizer) or not isinstance(built, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a function from parameters to an optimizer; got {optimizer!r}: pass one such "
            "as functools.partial(torch.optim.Adam, lr=1e-3)"
        )
    return built


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model must return logits, or an object with an attribute `logits`; got "
            f"{type(output).__name__}: wrap the model in a module that returns the logits alone"
        )
    return logits


def has_batch_norm(model: nn.Module) -> bool:
    """Return if a layer is a batch norm, or was one before its conversion."""
    return any(isinstance(module, (_BatchNorm, SourceBatchNorm)) for module in model.modules())
