"""Recurrent cells with layer normalisation: the equations of one time step.

Problem: batch normalisation ties every sample to its mini-batch and has no obvious form for sequences of
different lengths. Idea: take mean and biased variance over the units, for each sample and each step alone:

    LN(a)  y = gain * (a - mean(a)) / sqrt(var(a) + eps) + shift         (torch's own `nn.LayerNorm`)
    RNN    h' = tanh(LN(W x + U h))
    LSTM   i, f, g, o = LN(W x) + LN(U h) + bias;  c' = s(f) c + s(i) tanh(g);  h' = s(o) tanh(LN(c'))
    GRU    r, z = s(LN(W x + bias) + LN(U h));  n = tanh(LN(W x + bias) + r LN(U h));  h' = (1 - z) n + z h

One LN spans all gates of the LSTM, and r and z of the GRU: none is a gate's own. The carried c' has no norm.

Ba, Kiros, Hinton: Layer Normalization, 2016, arXiv 1607.06450, section 3.1 and supplement. Gates are in
torch's order; the official LSTM's bias is counted inside LN(W x) once more (`input_bias_inside=True`).
"""

from __future__ import annotations

import math
import sys
import warnings
from abc import abstractmethod
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trueup._numerics.upcasting import upcast

__all__ = ["LayerNormGRUCell", "LayerNormLSTMCell", "LayerNormRNNCell"]

Nonlinearity = Literal["tanh", "relu"]
State: TypeAlias = tuple[Tensor, ...]


def carry(mask: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """The new state where a step counts, the old one where it is masked: ``m new + (1 - m) old``."""
    if mask is None:
        return new
    if mask.dtype == torch.bool:
        return torch.where(mask, new, old)
    mask = mask.to(new.dtype)
    return mask * new + (1 - mask) * old


def normalized(norm: nn.LayerNorm, a: Tensor) -> Tensor:
    """``norm(a)`` in float32 or better: a state would be rounded to half a type's bits at every step."""
    weight, bias = upcast(norm.weight), None if norm.bias is None else upcast(norm.bias)
    return F.layer_norm(upcast(a), norm.normalized_shape, weight, bias, norm.eps)


def caller() -> int:
    """The ``stacklevel`` of a warning that points at the user's line, however a layer builds its cells."""
    frame, level = sys._getframe(1), 1
    ours = ("trueup.", "torch.")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(ours):
        frame, level = frame.f_back, level + 1
    return level


class Cell(nn.Module):
    """What the three cells share: two weight matrices, their checks, and the order of the work.

    ``project`` is all that depends on the input alone, so that a layer can do it for every step at once;
    ``step`` is the rest. A state is a tuple: ``(h,)``, or ``(h, c)`` for the LSTM.
    """

    blocks: ClassVar[int]  # of hidden_size rows in weight_ih and in weight_hh, one a gate
    state_names: ClassVar[tuple[str, ...]] = ("h",)

    bias: nn.Parameter | None

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any, eps: float
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int; got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if not eps > 0:
            raise ValueError(f"eps must be greater than 0; got {eps}")
        if hidden_size == 1:
            warnings.warn(
                "hidden_size=1 leaves a norm over units a single value: it returns its shift, whatever the "
                "value, and passes no gradient on; use more units",
                stacklevel=caller(),
            )
        self.input_size, self.hidden_size, self.eps = input_size, hidden_size, eps
        rows = self.blocks * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size, device=device, dtype=dtype))

    @abstractmethod
    def project(self, input: Tensor) -> State:
        """``(..., input_size)`` -> all that the input contributes; any number of steps at once."""

    @abstractmethod
    def step(self, projected: State, state: State, mask: Tensor | None = None) -> State:
        """The state after one step; ``mask``, ``(batch, 1)``, is 0 for samples that the step passes over."""

    def reset_parameters(self) -> None:
        """Recurrent blocks orthogonal, as in the official code; gains 1; shifts and bias 0.

        Input weights are drawn as torch's cells draw them. Their scale does not reach the output (but for
        eps); it sets how far an update turns them.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        nn.init.uniform_(self.weight_ih, -bound, bound)
        with torch.no_grad():
            for block in self.weight_hh.split(self.hidden_size):
                # In float32: the decomposition that makes it orthogonal knows no half types.
                block.copy_(nn.init.orthogonal_(torch.empty_like(block, dtype=torch.float32)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        for child in self.children():
            if isinstance(child, nn.LayerNorm):  # and not a parametrisation
                child.reset_parameters()

    @property
    def state_dtype(self) -> torch.dtype:
        """That of the weights, but float32 for half types."""
        return torch.promote_types(self.weight_hh.dtype, torch.float32)

    def recurrent(self, h: Tensor) -> Tensor:
        """``U h``."""
        return F.linear(h.to(self.weight_hh.dtype), self.weight_hh)

    def initial_state(self, input: Tensor) -> State:
        """Zeros, for the input of a step."""
        zeros = input.new_zeros(*input.shape[:-1], self.hidden_size, dtype=self.state_dtype)
        return (zeros,) * len(self.state_names)

    def check_input(self, input: Tensor) -> None:
        """What the host knows of an input: its dtype and its last size."""
        self._check_dtype(input, "input")
        if input.shape[-1] != self.input_size:
            raise ValueError(
                f"{type(self).__name__} has input_size={self.input_size}; got an input of shape "
                f"{tuple(input.shape)}, whose last size is {input.shape[-1]}"
            )

    def check_state(self, state: State, shape: tuple[int, ...]) -> None:
        """``state`` must be as many tensors as the cell carries, of this shape."""
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
        """One step, checked: what ``forward`` of each cell is."""
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


class LayerNormRNNCell(Cell):
    """One step of a plain recurrent net, normalised once, over the summed inputs (eq. 4 of the paper).

    ``h' = tanh(LN(W x + U h))``. Arguments as in `torch.nn.RNNCell`, and ours by keyword.

    Args:
        input_size, hidden_size: at least 1; with one unit LN returns its shift: a warning.
        bias: give LN a shift. There is no other bias: LN would take most of it away again.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        eps: added to the variance under the root, > 0.

    Shapes:
        input ``(batch, input_size)`` and hx ``(batch, hidden_size)``, or both without batch; hx None is
        zeros. Returns the new h, in the input's dtype. Of half types only the products with the weights are
        taken in half; norms and state are float32.

    Raises:
        TypeError: a size that is no int; an input that is not floating point, or wider than the weights.
        ValueError: a size below 1, eps <= 0, an unknown nonlinearity, a shape that does not fit.

    >>> cell = LayerNormRNNCell(3, 5)
    >>> cell(torch.randn(2, 3)).shape
    torch.Size([2, 5])
    """

    blocks = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity = "tanh",
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, eps)
        if nonlinearity not in get_args(Nonlinearity):
            raise ValueError(f"nonlinearity must be one of {get_args(Nonlinearity)}; got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        self.bias = None
        self.norm = nn.LayerNorm(hidden_size, eps, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def project(self, input: Tensor) -> State:
        return (F.linear(input, self.weight_ih),)

    def step(self, projected: State, state: State, mask: Tensor | None = None) -> State:
        (h,) = state
        a = normalized(self.norm, projected[0] + self.recurrent(h))
        return (carry(mask, a.tanh() if self.nonlinearity == "tanh" else a.relu(), h),)

    def forward(
        self, input: Float[Tensor, "*batch inputs"], hx: Float[Tensor, "*batch hidden"] | None = None
    ) -> Float[Tensor, "*batch hidden"]:
        (h,) = self.run(input, None if hx is None else (hx,))
        return h


class LayerNormLSTMCell(Cell):
    """One step of a long short-term memory with the norms of the paper.

    ``i, f, g, o = LN(W x) + LN(U h) + bias``, each LN over all four gates together;
    ``c' = sigmoid(f) c + sigmoid(i) tanh(g)`` is carried as it is, and normalised only on its way out:
    ``h' = sigmoid(o) tanh(LN(c'))``. Arguments as in `torch.nn.LSTMCell`, and ours by keyword.

    Args:
        input_size: at least 1. The norm of ``W x`` takes the scale out of x. Of a single input only its sign
            is left: give such a net ``input_bias_inside=True``, or a constant as second input.
        hidden_size: at least 1; with one unit LN(c) returns its shift: a warning.
        bias: False leaves out all that is added: ``bias``, and the norms' shifts.
        eps: added to the variance under the root, > 0.
        input_bias_inside: add ``bias`` inside the norm as well, ``LN(W x + bias)``, as the official code does
            with the same parameter; the paper has it outside only.

    Shapes:
        input ``(batch, input_size)`` and hx a pair ``(h, c)`` of ``(batch, hidden_size)``, or all without
        batch; hx None is zeros. Returns the new ``(h, c)``, in the input's dtype. Of half types only the
        products with the weights are taken in half; norms and state are float32. ``weight_ih`` is
        ``(4 * hidden_size, input_size)``, its blocks in torch's order i, f, g, o.

    Raises:
        TypeError: a size that is no int; an input that is not floating point, or wider than the weights.
        ValueError: a size below 1, eps <= 0, ``input_bias_inside`` without bias, a shape that does not fit.

    >>> cell = LayerNormLSTMCell(3, 5)
    >>> h, c = cell(torch.randn(2, 3))
    >>> h, c = cell(torch.randn(2, 3), (h, c))
    >>> h.shape, c.shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    blocks = 4
    state_names = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-5,
        input_bias_inside: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, eps)
        if input_bias_inside and not bias:
            raise ValueError("input_bias_inside=True needs bias=True: there is no bias to put inside")
        self.input_bias_inside = input_bias_inside
        gates = 4 * hidden_size
        self.bias = nn.Parameter(torch.empty(gates, device=device, dtype=dtype)) if bias else None
        self.norm_ih = nn.LayerNorm(gates, eps, bias=bias, device=device, dtype=dtype)
        self.norm_hh = nn.LayerNorm(gates, eps, bias=bias, device=device, dtype=dtype)
        self.norm_c = nn.LayerNorm(hidden_size, eps, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def project(self, input: Tensor) -> State:
        inside = self.bias if self.input_bias_inside else None
        gates = normalized(self.norm_ih, F.linear(input, self.weight_ih, inside))
        return (gates if self.bias is None else gates + self.bias,)

    def step(self, projected: State, state: State, mask: Tensor | None = None) -> State:
        h, c = state
        gates = projected[0] + normalized(self.norm_hh, self.recurrent(h))
        i, f, g, o = gates.chunk(4, -1)
        c = carry(mask, f.sigmoid() * c + i.sigmoid() * g.tanh(), c)
        return carry(mask, o.sigmoid() * normalized(self.norm_c, c).tanh(), h), c

    def forward(
        self,
        input: Float[Tensor, "*batch inputs"],
        hx: tuple[Float[Tensor, "*batch hidden"], Float[Tensor, "*batch hidden"]] | None = None,
    ) -> tuple[Float[Tensor, "*batch hidden"], Float[Tensor, "*batch hidden"]]:
        h, c = self.run(input, hx)
        return h, c


class LayerNormGRUCell(Cell):
    """One step of a gated recurrent unit with the norms of the official code.

    ``r, z = sigmoid(LN(W x + bias) + LN(U h))``, each LN over both gates together; with norms of their own
    ``n = tanh(LN(W x + bias) + r LN(U h))``; ``h' = (1 - z) n + z h``. Arguments as in `torch.nn.GRUCell`.

    Args:
        input_size: at least 1. The norm of ``W x + bias`` takes the scale out of x; see `LayerNormLSTMCell`.
        hidden_size: at least 1; with one unit the norms of n return their shift: a warning.
        bias: False leaves out all that is added: ``bias``, here inside the norms, and the norms' shifts.
        eps: added to the variance under the root, > 0.

    Shapes:
        input ``(batch, input_size)`` and hx ``(batch, hidden_size)``, or both without batch; hx None is
        zeros. Returns the new h, in the input's dtype. Of half types only the products with the weights are
        taken in half; norms and state are float32. ``weight_ih`` is ``(3 * hidden_size, input_size)``, its
        blocks in torch's order r, z, n. As in torch and the official code z keeps the old state; the paper
        writes 1 - z for z.

    Raises:
        TypeError: a size that is no int; an input that is not floating point, or wider than the weights.
        ValueError: a size below 1, eps <= 0, a shape that does not fit.

    >>> cell = LayerNormGRUCell(3, 5)
    >>> cell(torch.randn(2, 3), torch.zeros(2, 5)).shape
    torch.Size([2, 5])
    """

    blocks = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, eps)
        rz, n = self._parts = 2 * hidden_size, hidden_size
        self.bias = nn.Parameter(torch.empty(3 * n, device=device, dtype=dtype)) if bias else None
        self.norm_ih_rz = nn.LayerNorm(rz, eps, bias=bias, device=device, dtype=dtype)
        self.norm_ih_n = nn.LayerNorm(n, eps, bias=bias, device=device, dtype=dtype)
        self.norm_hh_rz = nn.LayerNorm(rz, eps, bias=bias, device=device, dtype=dtype)
        self.norm_hh_n = nn.LayerNorm(n, eps, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def project(self, input: Tensor) -> State:
        rz, n = F.linear(input, self.weight_ih, self.bias).split(self._parts, -1)
        return normalized(self.norm_ih_rz, rz), normalized(self.norm_ih_n, n)

    def step(self, projected: State, state: State, mask: Tensor | None = None) -> State:
        (in_rz, in_n), (h,) = projected, state
        rz, n = self.recurrent(h).split(self._parts, -1)
        r, z = (in_rz + normalized(self.norm_hh_rz, rz)).sigmoid().chunk(2, -1)
        n = (in_n + r * normalized(self.norm_hh_n, n)).tanh()
        return (carry(mask, n + z * (h - n), h),)

    def forward(
        self, input: Float[Tensor, "*batch inputs"], hx: Float[Tensor, "*batch hidden"] | None = None
    ) -> Float[Tensor, "*batch hidden"]:
        (h,) = self.run(input, None if hx is None else (hx,))
        return h
