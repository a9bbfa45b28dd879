"""Recurrent cells with layer normalisation: the equations of one time step.

Problem: batch normalisation ties every sample to its mini-batch and has no obvious form for sequences of
different lengths. Idea: take mean and biased variance over the units, per sample and time step:

    LN(a)  y = gain * (a - mean(a)) / sqrt(var(a) + eps) + shift         (torch's own `nn.LayerNorm`)
    RNN    h' = tanh(LN(W x + U h))
    LSTM   i, f, g, o = LN(W x) + LN(U h) + bias;  c' = s(f) c + s(i) tanh(g);  h' = s(o) tanh(LN(c'))
    GRU    r, z = s(LN(W x + bias) + LN(U h));  n = tanh(LN(W x + bias) + r LN(U h));  h' = (1 - z) n + z h

Each LN spans all gates of the LSTM, and both r and z of the GRU. The c' that is carried on is not normalised.

Ba, Kiros, Hinton: Layer Normalization, 2016, arXiv 1607.06450, section 3.1 and supplement. Gates are in
torch's order. The official LSTM adds its bias inside LN(W x) as well: `variant="official"`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trueup._numerics.upcasting import upcast
from trueup.nn._recurrent_cell import Cell, State
from trueup.nn._validation import check_choice

__all__ = ["LayerNormGRUCell", "LayerNormLSTMCell", "LayerNormRNNCell"]

Nonlinearity = Literal["tanh", "relu"]
Variant = Literal["paper", "official"]


def layer_norm(norm: nn.LayerNorm, a: Tensor) -> Tensor:
    """Compute LN in float32 or better: half types would round the state at every time step."""
    weight, bias = upcast(norm.weight), None if norm.bias is None else upcast(norm.bias)
    return F.layer_norm(upcast(a), norm.normalized_shape, weight, bias, norm.eps)


def masked_update(mask: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """Return the new state where a time step counts, and the old one elsewhere: `m new + (1 - m) old`."""
    if mask is None:
        return new
    if mask.dtype == torch.bool:
        return torch.where(mask, new, old)
    mask = mask.to(new.dtype)
    return mask * new + (1 - mask) * old


class LayerNormRNNCell(Cell):
    """One step of a plain recurrent net, with one norm over the summed inputs (eq. 4 of the paper).

    `h' = tanh(LN(W x + U h))`. Arguments as in `torch.nn.RNNCell`, and ours by keyword.

    Args:
        input_size, hidden_size: at least 1. With one unit LN returns its shift, which gives a warning.
        bias: give LN a shift. There is no other bias: LN would remove most of it.
        nonlinearity: `"tanh"` or `"relu"`.
        eps: added to the variance under the root, > 0.

    Shapes:
        input `(batch, input_size)` and hx `(batch, hidden_size)`, or both without batch; hx None is zeros.
        Returns the new h, in the input's dtype. With half types only the products with the weights are in
        half precision; norms and state are float32.

    Raises:
        TypeError: a size that is no int; an input that is not floating point, or of more bits than the state.
        ValueError: a size below 1, eps <= 0, an unknown nonlinearity, a shape that does not fit.

    >>> cell = LayerNormRNNCell(3, 5)
    >>> cell(torch.randn(2, 3)).shape
    torch.Size([2, 5])
    """

    num_gates = 1

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
        a = layer_norm(self.norm, projected[0] + self.recurrent(h))
        return (masked_update(mask, a.tanh() if self.nonlinearity == "tanh" else a.relu(), h),)

    def forward(
        self, input: Float[Tensor, "*batch inputs"], hx: Float[Tensor, "*batch hidden"] | None = None
    ) -> Float[Tensor, "*batch hidden"]:
        (h,) = self.run(input, None if hx is None else (hx,))
        return h


class LayerNormLSTMCell(Cell):
    """One step of a long short-term memory with the norms of the paper.

    `i, f, g, o = LN(W x) + LN(U h) + bias`, each LN over all four gates together;
    `c' = sigmoid(f) c + sigmoid(i) tanh(g)` is carried on without a norm and normalised only for the output:
    `h' = sigmoid(o) tanh(LN(c'))`. Arguments as in `torch.nn.LSTMCell`, and ours by keyword.

    Args:
        input_size: at least 1. The norm of `W x` removes the scale of x. Of a single input only the sign is
            left: give such a net `variant="official"`, or a constant as second input.
        hidden_size: at least 1. With one unit LN(c) returns its shift, which gives a warning.
        bias: False leaves out all that is added: `bias`, and the norms' shifts.
        eps: added to the variance under the root, > 0.
        variant: `"paper"` adds `bias` outside of the norm only; `"official"` adds the same `bias` inside it
            as well, `LN(W x + bias)`, as the official code does.

    Shapes:
        input `(batch, input_size)` and hx a pair `(h, c)` of `(batch, hidden_size)`, or all without batch; hx
        None is zeros. Returns the new `(h, c)`, in the input's dtype. With half types only the products with
        the weights are in half precision; norms and state are float32. `weight_ih` is
        `(4 * hidden_size, input_size)`, with the gates in torch's order i, f, g, o.

    Raises:
        TypeError: a size that is no int; an input that is not floating point, or of more bits than the state.
        ValueError: a size below 1, eps <= 0, an unknown variant, the official one without bias, a shape that
            does not fit.

    >>> cell = LayerNormLSTMCell(3, 5)
    >>> h, c = cell(torch.randn(2, 3))
    >>> h, c = cell(torch.randn(2, 3), (h, c))
    >>> h.shape, c.shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    num_gates = 4
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
        variant: Variant = "paper",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, eps)
        check_choice("variant", variant, get_args(Variant))
        if variant == "official" and not bias:
            raise ValueError(
                'variant="official" adds the bias inside a norm, and bias=False leaves none: pass bias=True'
            )
        self.variant = variant
        gates = self.num_gates * hidden_size
        self.bias = nn.Parameter(torch.empty(gates, device=device, dtype=dtype)) if bias else None
        self.norm_ih = nn.LayerNorm(gates, eps, bias=bias, device=device, dtype=dtype)
        self.norm_hh = nn.LayerNorm(gates, eps, bias=bias, device=device, dtype=dtype)
        self.norm_c = nn.LayerNorm(hidden_size, eps, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def project(self, input: Tensor) -> State:
        inside = self.bias if self.variant == "official" else None
        gates = layer_norm(self.norm_ih, F.linear(input, self.weight_ih, inside))
        return (gates if self.bias is None else gates + self.bias,)

    def step(self, projected: State, state: State, mask: Tensor | None = None) -> State:
        h, c = state
        gates = projected[0] + layer_norm(self.norm_hh, self.recurrent(h))
        i, f, g, o = gates.chunk(4, -1)
        c = masked_update(mask, f.sigmoid() * c + i.sigmoid() * g.tanh(), c)
        return masked_update(mask, o.sigmoid() * layer_norm(self.norm_c, c).tanh(), h), c

    def forward(
        self,
        input: Float[Tensor, "*batch inputs"],
        hx: tuple[Float[Tensor, "*batch hidden"], Float[Tensor, "*batch hidden"]] | None = None,
    ) -> tuple[Float[Tensor, "*batch hidden"], Float[Tensor, "*batch hidden"]]:
        h, c = self.run(input, hx)
        return h, c


class LayerNormGRUCell(Cell):
    """One step of a gated recurrent unit with the norms of the official code.

    `r, z = sigmoid(LN(W x + bias) + LN(U h))`, each LN over both gates together; with separate norms
    `n = tanh(LN(W x + bias) + r LN(U h))`; `h' = (1 - z) n + z h`. Arguments as in `torch.nn.GRUCell`.

    Args:
        input_size: at least 1. The norm of `W x + bias` removes the scale of x; see `LayerNormLSTMCell`.
        hidden_size: at least 1. With one unit the norms of n return their shift, which gives a warning.
        bias: False leaves out all that is added: `bias`, here inside the norms, and the norms' shifts.
        eps: added to the variance under the root, > 0.

    Shapes:
        input `(batch, input_size)` and hx `(batch, hidden_size)`, or both without batch; hx None is zeros.
        Returns the new h, in the input's dtype. With half types only the products with the weights are in
        half precision; norms and state are float32. `weight_ih` is `(3 * hidden_size, input_size)`, with the
        gates in torch's order r, z, n. As in torch and the official code z keeps the old state; the paper
        writes 1 - z for z.

    Raises:
        TypeError: a size that is no int; an input that is not floating point, or of more bits than the state.
        ValueError: a size below 1, eps <= 0, a shape that does not fit.

    >>> cell = LayerNormGRUCell(3, 5)
    >>> cell(torch.randn(2, 3), torch.zeros(2, 5)).shape
    torch.Size([2, 5])
    """

    num_gates = 3

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
        rz, n = self._sizes = 2 * hidden_size, hidden_size
        self.bias = nn.Parameter(torch.empty(3 * n, device=device, dtype=dtype)) if bias else None
        self.norm_ih_rz = nn.LayerNorm(rz, eps, bias=bias, device=device, dtype=dtype)
        self.norm_ih_n = nn.LayerNorm(n, eps, bias=bias, device=device, dtype=dtype)
        self.norm_hh_rz = nn.LayerNorm(rz, eps, bias=bias, device=device, dtype=dtype)
        self.norm_hh_n = nn.LayerNorm(n, eps, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def project(self, input: Tensor) -> State:
        rz, n = F.linear(input, self.weight_ih, self.bias).split(self._sizes, -1)
        return layer_norm(self.norm_ih_rz, rz), layer_norm(self.norm_ih_n, n)

    def step(self, projected: State, state: State, mask: Tensor | None = None) -> State:
        (in_rz, in_n), (h,) = projected, state
        rz, n = self.recurrent(h).split(self._sizes, -1)
        r, z = (in_rz + layer_norm(self.norm_hh_rz, rz)).sigmoid().chunk(2, -1)
        n = (in_n + r * layer_norm(self.norm_hh_n, n)).tanh()
        return (masked_update(mask, n + z * (h - n), h),)

    def forward(
        self, input: Float[Tensor, "*batch inputs"], hx: Float[Tensor, "*batch hidden"] | None = None
    ) -> Float[Tensor, "*batch hidden"]:
        (h,) = self.run(input, None if hx is None else (hx,))
        return h
