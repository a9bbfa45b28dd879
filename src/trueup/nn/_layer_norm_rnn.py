"""Recurrent layers with layer normalisation for sequences, used like `nn.RNN`, `nn.LSTM` and `nn.GRU`.

The equations of one time step are in `_layer_norm_cells.py`. This module adds layers, directions, and
sequences of different lengths. The input's part of a step, with its norm, needs no state and is computed for
all steps at once.

A step that is masked or beyond a sequence's length keeps the state. It does not affect any statistic, since
the norm is over units. With the step's mask m, as in the official code,

    h_t = m_t h'_t + (1 - m_t) h_{t-1},    and likewise for the LSTM's c.

Ba, Kiros, Hinton: Layer Normalization, 2016, arXiv 1607.06450.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from trueup._numerics.upcasting import upcast
from trueup.nn._layer_norm_cells import (
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LayerNormRNNCell,
    Nonlinearity,
    Variant,
)
from trueup.nn._recurrent_cell import Cell, State, caller_stacklevel
from trueup.nn._validation import check_int

__all__ = ["LayerNormGRU", "LayerNormLSTM", "LayerNormRNN"]

Lengths = Int[Tensor, " batch"] | Sequence[int]
Mask = Bool[Tensor, "..."] | Float[Tensor, "..."]
Inputs = TypeVar("Inputs", Tensor, PackedSequence)


class Recurrent(nn.Module):
    """Layers and directions of one kind of cell; `cells` holds the weights, layer by layer."""

    cell_type: ClassVar[type[Cell]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-5,
        **of_cell: Any,
    ) -> None:
        super().__init__()
        check_int("num_layers", num_layers, 1)
        if isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability in [0, 1]; got {dropout!r}")
        if dropout and num_layers == 1:
            warnings.warn(
                "dropout acts between layers, so with num_layers=1 it does nothing: use more layers, or "
                "dropout=0",
                stacklevel=caller_stacklevel(),
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional = bidirectional
        directions = 2 if bidirectional else 1
        sizes = [input_size] + [directions * hidden_size] * (num_layers - 1)
        settings = {"bias": bias, "device": device, "dtype": dtype, "eps": eps, **of_cell}
        self.cells = nn.ModuleList(
            self.cell_type(size, hidden_size, **settings) for size in sizes for _ in range(directions)
        )

    def reset_parameters(self) -> None:
        """Draw all weights anew; see `Cell.reset_parameters`."""
        for cell in cast(list[Cell], self.cells):
            cell.reset_parameters()

    def run(
        self, input: Inputs, hx: State | None, lengths: Lengths | None, mask: Mask | None
    ) -> tuple[Inputs, State]:
        """Run all layers over the input; like `forward`, but with the state as a tuple."""
        if isinstance(input, PackedSequence):
            if lengths is not None or mask is not None:
                raise ValueError("a PackedSequence carries its lengths: pass neither lengths nor mask")
            return self._run_packed(input, hx)
        if input.dim() == 2:
            if lengths is not None or mask is not None:
                raise ValueError(
                    "lengths and mask are for batches; got one sequence, of two dimensions: leave them out"
                )
            batch = 0 if self.batch_first else 1
            if hx is not None:
                cast(Cell, self.cells[0]).check_state(hx, (len(self.cells), self.hidden_size))
                hx = tuple(tensor.unsqueeze(1) for tensor in hx)
            output, state = self.run(input.unsqueeze(batch), hx, None, None)
            return output.squeeze(batch), tuple(tensor.squeeze(1) for tensor in state)
        self._check_steps(input)
        return self._run_padded(input, hx, self._step_mask(input, lengths, mask))

    def _run_padded(self, input: Tensor, hx: State | None, step_mask: Tensor | None) -> tuple[Tensor, State]:
        time, directions = 1 if self.batch_first else 0, 2 if self.bidirectional else 1
        cells = cast(list[Cell], list(self.cells))
        cells[0].check_input(input)
        output = input.to(cells[0].weight_ih.dtype)
        if step_mask is not None:
            # A masked step may hold anything: an infinity or NaN would reach the gradients as 0 * NaN.
            output = output.masked_fill((step_mask == 0).unsqueeze(-1), 0)
        if hx is None:
            initial = [cells[0].initial_state(output.select(time, 0))] * len(cells)
        else:
            cells[0].check_state(hx, (len(cells), input.shape[1 - time], self.hidden_size))
            initial = list(zip(*(upcast(tensor).unbind(0) for tensor in hx), strict=True))

        final: list[State] = []
        for layer in range(self.num_layers):
            if layer:
                output = F.dropout(output, self.dropout, self.training).to(cells[layer].weight_ih.dtype)
            results = [
                run_cell(cells[i], output, initial[i], step_mask, time, reverse=i % directions == 1)
                for i in range(layer * directions, (layer + 1) * directions)
            ]
            output = torch.cat([h for h, _ in results], -1) if self.bidirectional else results[0][0]
            final += [state for _, state in results]
        state = tuple(torch.stack(tensors).to(input.dtype) for tensors in zip(*final, strict=True))
        return output.to(input.dtype), state

    def _run_packed(self, input: PackedSequence, hx: State | None) -> tuple[PackedSequence, State]:
        if input.data.dim() != 2:
            raise ValueError(
                f"{type(self).__name__} takes packed sequences of shape (time, input_size); the data of this "
                f"PackedSequence have shape {tuple(input.data.shape)}, in place of two dimensions"
            )
        padded, lengths = pad_packed_sequence(input, self.batch_first)
        output, state = self.run(padded, hx, lengths, None)
        if input.sorted_indices is not None:
            output = output.index_select(0 if self.batch_first else 1, input.sorted_indices)
            lengths = lengths[input.sorted_indices.cpu()]
        data = pack_padded_sequence(output, lengths, self.batch_first).data
        packed = PackedSequence(data, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        return packed, state

    def _check_steps(self, input: Tensor) -> None:
        layout = "(batch, time, input_size)" if self.batch_first else "(time, batch, input_size)"
        if input.dim() != 3:
            raise ValueError(
                f"{type(self).__name__} takes input {layout}, or one sequence without batch; got shape "
                f"{tuple(input.shape)}"
            )
        if input.shape[1 if self.batch_first else 0] == 0:
            raise ValueError(
                f"{type(self).__name__} needs at least one step; got {layout} = {tuple(input.shape)}"
            )

    def _step_mask(self, input: Tensor, lengths: Lengths | None, mask: Mask | None) -> Tensor | None:
        """Return the mask, or make it from the lengths, in the input's layout; None if every step counts."""
        if lengths is not None and mask is not None:
            raise ValueError("lengths and mask exclude each other; got both: pass one of them")
        if mask is not None:
            if mask.shape != input.shape[:2]:
                raise ValueError(
                    f"mask must have one value per step, shape {tuple(input.shape[:2])} for this input; got "
                    f"{tuple(mask.shape)}"
                )
            if mask.dtype != torch.bool and not mask.is_floating_point():
                raise ValueError(
                    f"mask must be boolean or floating point, 1 where a step counts; got {mask.dtype}"
                )
            return mask
        if lengths is None:
            return None
        time = 1 if self.batch_first else 0
        steps, batch = input.shape[time], input.shape[1 - time]
        if not isinstance(lengths, Tensor):
            lengths = torch.tensor(lengths, device="cpu")
        # The empty list of an empty batch has no integer dtype.
        if batch and (lengths.is_floating_point() or lengths.dtype == torch.bool):
            raise TypeError(f"lengths must be integers; got {lengths.dtype}")
        if lengths.device.type != "cpu":
            raise ValueError(f"lengths must be on the CPU, as in pack_padded_sequence; got {lengths.device}")
        if lengths.shape != (batch,):
            raise ValueError(
                f"lengths must have shape ({batch},), one per sequence; got {tuple(lengths.shape)}"
            )
        # A compiler knows symbols in place of the values, and cannot compare them.
        if batch and not torch.compiler.is_compiling():
            shortest, longest = (int(end) for end in lengths.aminmax())
            if shortest < 0 or longest > steps:
                raise ValueError(
                    f"lengths must be between 0 and the input's {steps} steps; got {shortest} to {longest}"
                )
        counts = torch.arange(steps, device="cpu") < lengths.unsqueeze(1)
        return (counts if self.batch_first else counts.t()).to(input.device, non_blocking=True)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        for name in ("batch_first", "dropout", "bidirectional"):
            if value := getattr(self, name):
                text += f", {name}={value}"
        return text


def run_cell(
    cell: Cell, input: Tensor, state: State, step_mask: Tensor | None, time: int, *, reverse: bool
) -> tuple[Tensor, State]:
    """Run a cell over the axis `time`; return every h, in the input's order, and the last state."""
    # unbind, as the gradient of a single indexed step would be as large as the whole input.
    steps = list(zip(*(part.unbind(time) for part in cell.project(input)), strict=True))
    masks: list[Tensor | None] = [None] * len(steps)
    if step_mask is not None:
        masks = [mask.unsqueeze(-1) for mask in step_mask.unbind(time)]
    outputs: list[Tensor] = []
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        state = cell.step(steps[t], state, masks[t])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs, time), state


class LayerNormRNN(Recurrent):
    """`torch.nn.RNN` with layer normalisation: `h' = tanh(LN(W x + U h))` at every step.

    Arguments, inputs and outputs are torch's, with ours by keyword. See `LayerNormLSTM` for sequences of
    different lengths, and `LayerNormRNNCell` for the equation.

    >>> rnn = LayerNormRNN(3, 5, num_layers=2, batch_first=True)
    >>> output, h_n = rnn(torch.randn(4, 7, 3), lengths=[7, 2, 5, 1])
    >>> output.shape, h_n.shape
    (torch.Size([4, 7, 5]), torch.Size([2, 4, 5]))
    """

    cell_type = LayerNormRNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        shape = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__(*shape, device, dtype, eps=eps, nonlinearity=nonlinearity)

    def forward(
        self,
        input: Inputs,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Mask | None = None,
    ) -> tuple[Inputs, Tensor]:
        output, (h_n,) = self.run(input, None if hx is None else (hx,), lengths, mask)
        return output, h_n


class LayerNormLSTM(Recurrent):
    """`torch.nn.LSTM` with the norms of the paper at every step, and sequences of different lengths.

    The equations are in `LayerNormLSTMCell`. Arguments (but `proj_size`), inputs and outputs are torch's.
    Ours, by keyword, are `eps` and `variant`, and in the call `lengths` or `mask`. Statistics are per sample:
    training, evaluation, any batch size and any number of processes compute the same.

    Args:
        input_size, hidden_size, num_layers: at least 1.
        bias: False leaves out all that is added: the cells' `bias`, and their norms' shifts.
        batch_first: input and output are `(batch, time, ...)` rather than `(time, batch, ...)`.
        dropout: in [0, 1], on the outputs of each layer but the last, in training.
        bidirectional: a second cell per layer runs from the end to the start; outputs are concatenated.
        eps, variant: see `LayerNormLSTMCell`.

    Attributes:
        cells: one `LayerNormLSTMCell` per layer and, within it, per direction. Its `weight_ih` and
            `weight_hh` have the shape and the gate order of torch's `weight_ih_l0` and `weight_hh_l0`.

    Call it with
        input: `(time, batch, input_size)`, at least one step; or `(time, input_size)`; or a
            `PackedSequence`, and then the output is one.
        hx: the pair `(h_0, c_0)`, each `(num_layers * directions, batch, hidden_size)`; None is zeros.
        lengths: `(batch,)` integers on the CPU, as in `pack_padded_sequence`, from 0 to `time`.
        mask: instead of lengths, one value per step, `(time, batch)` or `(batch, time)` like the input:
            boolean, or floats 0 and 1 (values between mix old and new state). False anywhere, not only at
            the end, skips that step.

    Returns `output, (h_n, c_n)` as torch does, in the input's dtype. A step that does not count keeps the
    state. So `h_n` and `c_n` are those of each sequence's own last step, and the *output* at padded steps
    repeats the last real one (in the reverse direction it is the initial state), where torch's packed
    sequences are padded with zeros: multiply by the mask for that. A sequence of length 0 returns its initial
    state. Padded input may hold anything, even NaN, and gets the gradient 0.

    Raises:
        TypeError: a size that is no int, lengths that are not integers; input that is not floating point, or
            of more bits than the state.
        ValueError: a size, option or shape that does not fit; lengths beyond the input, or on another device;
            both lengths and mask.

    >>> lstm = LayerNormLSTM(3, 5, bidirectional=True)
    >>> output, (h_n, c_n) = lstm(torch.randn(7, 4, 3), lengths=[7, 2, 5, 1])
    >>> output.shape, h_n.shape, c_n.shape
    (torch.Size([7, 4, 10]), torch.Size([2, 4, 5]), torch.Size([2, 4, 5]))
    >>> torch.equal(output[6, 1, :5], output[1, 1, :5])  # the second sequence ends after two steps
    True
    """

    cell_type = LayerNormLSTMCell

    # Keyword-only, as torch has proj_size in the place of device.
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
        eps: float = 1e-5,
        variant: Variant = "paper",
    ) -> None:
        shape = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__(*shape, device, dtype, eps=eps, variant=variant)

    def forward(
        self,
        input: Inputs,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Mask | None = None,
    ) -> tuple[Inputs, tuple[Tensor, Tensor]]:
        output, (h_n, c_n) = self.run(input, hx, lengths, mask)
        return output, (h_n, c_n)


class LayerNormGRU(Recurrent):
    """`torch.nn.GRU` with the norms of the official code at every step.

    Arguments, inputs and outputs are torch's, with ours by keyword. See `LayerNormLSTM` for sequences of
    different lengths, and `LayerNormGRUCell` for the equations.

    >>> gru = LayerNormGRU(3, 5, batch_first=True)
    >>> mask = torch.tensor([[True, True, True], [False, True, False]])
    >>> output, h_n = gru(torch.randn(2, 3, 3), mask=mask)
    >>> output[1, 0], torch.equal(output[1, 2], output[1, 1])
    (tensor([0., 0., 0., 0., 0.], grad_fn=<SelectBackward0>), True)
    """

    cell_type = LayerNormGRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        shape = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__(*shape, device, dtype, eps=eps)

    def forward(
        self,
        input: Inputs,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Mask | None = None,
    ) -> tuple[Inputs, Tensor]:
        output, (h_n,) = self.run(input, None if hx is None else (hx,), lengths, mask)
        return output, h_n
