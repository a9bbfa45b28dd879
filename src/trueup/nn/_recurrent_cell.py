"""The base class of layer-normalised recurrent cells: their weights, their state, and checks of both."""

from __future__ import annotations

import math
import sys
import warnings
from abc import abstractmethod
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trueup._numerics.upcasting import upcast
from trueup.nn._validation import check_eps, check_int

__all__ = ["Cell", "State", "caller_stacklevel"]

State: TypeAlias = tuple[Tensor, ...]


def caller_stacklevel() -> int:
    """Return the `stacklevel` of a warning that points at the user's line, however deep a cell is built."""
    frame, level = sys._getframe(1), 1
    libraries = ("trueup.", "torch.")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(libraries):
        frame, level = frame.f_back, level + 1
    return level


class Cell(nn.Module):
    """A recurrent cell with two weight matrices, split into an input part and a step.

    `project` computes all that depends on the input alone, so that a layer can do it for every time step at
    once; `step` computes the rest. A state is a tuple: `(h,)`, or `(h, c)` for the LSTM.
    """

    num_gates: ClassVar[int]  # each has hidden_size rows in weight_ih and in weight_hh
    state_names: ClassVar[tuple[str, ...]] = ("h",)

    bias: nn.Parameter | None

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any, eps: float
    ) -> None:
        super().__init__()
        check_int("input_size", input_size, 1)
        check_int("hidden_size", hidden_size, 1)
        check_eps(eps, zero=False)
        if hidden_size == 1:
            warnings.warn(
                "hidden_size=1 leaves a norm over units a single value: it returns its shift, whatever the "
                "value, and passes no gradient on; use more units",
                stacklevel=caller_stacklevel(),
            )
        self.input_size, self.hidden_size, self.eps = input_size, hidden_size, eps
        rows = self.num_gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size, device=device, dtype=dtype))

    @abstractmethod
    def project(self, input: Tensor) -> State:
        """Compute what the input `(..., input_size)` contributes, for any number of time steps at once."""

    @abstractmethod
    def step(self, projected: State, state: State, mask: Tensor | None = None) -> State:
        """Return the state after one time step; samples where `mask`, `(batch, 1)`, is 0 keep theirs."""

    def reset_parameters(self) -> None:
        """Make each gate's recurrent weights orthogonal, gains 1, shifts and bias 0, as in the official code.

        Input weights are drawn as torch's cells draw them. Their scale does not affect the output (but for
        eps); it sets how far an update turns them.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        nn.init.uniform_(self.weight_ih, -bound, bound)
        with torch.no_grad():
            for gate in self.weight_hh.split(self.hidden_size):
                # In float32: the decomposition that makes it orthogonal does not take half types.
                gate.copy_(nn.init.orthogonal_(torch.empty_like(gate, dtype=torch.float32)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        for child in self.children():
            if isinstance(child, nn.LayerNorm):  # a parametrisation is a child too
                child.reset_parameters()

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of the weights, but float32 for half types."""
        return torch.promote_types(self.weight_hh.dtype, torch.float32)

    def recurrent(self, h: Tensor) -> Tensor:
        """Compute `U h`."""
        return F.linear(h.to(self.weight_hh.dtype), self.weight_hh)

    def initial_state(self, input: Tensor) -> State:
        """Return a state of zeros for the input of one time step."""
        zeros = input.new_zeros(*input.shape[:-1], self.hidden_size, dtype=self.state_dtype)
        return (zeros,) * len(self.state_names)

    def check_input(self, input: Tensor) -> None:
        """Check the dtype and the last size of an input."""
        self._check_dtype(input, "input")
        if input.shape[-1] != self.input_size:
            raise ValueError(
                f"{type(self).__name__} has input_size={self.input_size}; got an input of shape "
                f"{tuple(input.shape)}, whose last size is {input.shape[-1]}"
            )

    def check_state(self, state: State, shape: tuple[int, ...]) -> None:
        """Check that `state` holds as many tensors as the cell carries, each of this shape."""
        name, wanted = type(self).__name__, ", ".join(self.state_names)
        if not isinstance(state, tuple) or len(state) != len(self.state_names):
            got = f"a tuple of {len(state)}" if isinstance(state, tuple) else f"a {type(state).__name__}"
            raise ValueError(f"{name}: hx must be a tuple ({wanted}); got {got}")
        for which, tensor in zip(self.state_names, state, strict=True):
            self._check_dtype(tensor, f"{which} of hx")
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name}: {which} of hx must have shape {shape}; got {tuple(tensor.shape)}")

    def _check_dtype(self, tensor: Tensor, what: str) -> None:
        name, dtype = type(self).__name__, self.state_dtype
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {what} must be a tensor; got a {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: {what} must be floating point; got {tensor.dtype}: use .float()")
        if torch.promote_types(tensor.dtype, dtype) != dtype:
            raise TypeError(
                f"{name} computes in {dtype}, which would round {what} of {tensor.dtype}: convert one of them"
            )

    def run(self, input: Tensor, hx: State | None) -> State:
        """Check the arguments of a cell's `forward` and take the step."""
        if input.dim() not in (1, 2):
            raise ValueError(
                f"{type(self).__name__} takes one step, (batch, input_size) or (input_size,); got shape "
                f"{tuple(input.shape)}: use the layer without 'Cell' for sequences"
            )
        self.check_input(input)
        if hx is None:
            hx = self.initial_state(input)
        self.check_state(hx, (*input.shape[:-1], self.hidden_size))
        state = self.step(self.project(input.to(self.weight_ih.dtype)), tuple(upcast(s) for s in hx))
        return tuple(s.to(input.dtype) for s in state)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}"
