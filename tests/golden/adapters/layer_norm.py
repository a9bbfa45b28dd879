"""Layer normalisation and the LN-LSTM and LN-GRU against the official functions.

The official weights are in x @ W layout, with the LSTM's gates in the order i, f, o, g, and the GRU's gates
r, u apart from its candidate. Ours are transposed, in torch's order i, f, g, o and r, z, n: z is their u. All
that belongs to a gate moves with it; statistics over all gates together do not mind the order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.reference import Case
from trueup.nn import LayerNormGRU, LayerNormLSTM


def tensors(arrays: dict) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def layer_norm(case: Case) -> dict[str, object]:
    """Torch's own function is the plain layer."""
    inputs, params = tensors(case.inputs), tensors(case.params)
    x = inputs["x"].requires_grad_()
    leaves = {name: p.requires_grad_() for name, p in params.items()}
    y = F.layer_norm(x, x.shape[-1:], leaves["weight"], leaves["bias"], case.hyper["eps"])
    y.backward(inputs["gy"])
    return {"out.y": y, "grad.x": x.grad, **{f"grad.{name}": p.grad for name, p in leaves.items()}}


def swapped(values: Tensor, size: int) -> Tensor:
    """The LSTM's gates along the last axis, i, f, o, g -> i, f, g, o, and back; what has no gates stays."""
    if values.shape[-1] == size:
        return values
    i, f, o, g = values.chunk(4, -1)
    return torch.cat([i, f, g, o], -1)


LSTM = {
    "W": "weight_ih",
    "U": "weight_hh",
    "b": "bias",
    "s1": "norm_ih.weight",
    "b1": "norm_ih.bias",
    "s2": "norm_hh.weight",
    "b2": "norm_hh.bias",
    "s3": "norm_c.weight",
    "b3": "norm_c.bias",
}

# Theirs for the gates, theirs for the candidate: ours is one after the other, or one norm each.
GRU = {("W", "Wx"): "weight_ih", ("U", "Ux"): "weight_hh", ("b", "bx"): "bias"}
GRU_NORMS = {
    "s1": "norm_ih_rz.weight",
    "b1": "norm_ih_rz.bias",
    "s2": "norm_ih_n.weight",
    "b2": "norm_ih_n.bias",
    "s3": "norm_hh_rz.weight",
    "b3": "norm_hh_rz.bias",
    "s4": "norm_hh_n.weight",
    "b4": "norm_hh_n.bias",
}


def lstm(case: Case) -> dict[str, object]:
    inputs, params = tensors(case.inputs), tensors(case.params)
    x, size = inputs["x"].requires_grad_(), params["U"].shape[0]
    layer = LayerNormLSTM(
        x.shape[-1],
        size,
        eps=case.hyper["eps"],
        variant="official" if case.hyper["input_bias_inside"] else "paper",
        dtype=x.dtype,
    )
    cell = layer.cells[0]
    cell.load_state_dict({ours: swapped(params[theirs], size).t() for theirs, ours in LSTM.items()})
    start = [inputs.get(name, torch.zeros(x.shape[1], size, dtype=x.dtype)) for name in ("h0", "c0")]
    h, _ = layer(x, tuple(s.unsqueeze(0) for s in start), mask=inputs.get("mask"))
    h.backward(inputs["gy"])
    return {
        "out.h": h,
        "out.c": every_c(layer, x, start, inputs.get("mask")),
        "grad.x": x.grad,
        **{
            f"grad.{theirs}": swapped(cell.get_parameter(ours).grad.t(), size)
            for theirs, ours in LSTM.items()
        },
    }


def every_c(layer: nn.Module, x: Tensor, start: list[Tensor], mask: Tensor | None) -> Tensor:
    """The layer returns the last c: run it over one step after the other."""
    state, cs = tuple(s.unsqueeze(0) for s in start), []
    for t in range(len(x)):
        _, state = layer(x[t : t + 1], state, mask=None if mask is None else mask[t : t + 1])
        cs.append(state[1][0])
    return torch.stack(cs)


def gru(case: Case) -> dict[str, object]:
    inputs, params = tensors(case.inputs), tensors(case.params)
    x, size = inputs["x"].requires_grad_(), params["U"].shape[0]
    layer = LayerNormGRU(x.shape[-1], size, eps=case.hyper["eps"], dtype=x.dtype)
    cell = layer.cells[0]
    state = {ours: torch.cat([params[name] for name in theirs], -1).t() for theirs, ours in GRU.items()}
    cell.load_state_dict(state | {ours: params[theirs] for theirs, ours in GRU_NORMS.items()})
    h0 = inputs.get("h0", torch.zeros(x.shape[1], size, dtype=x.dtype))
    h, _ = layer(x, h0.unsqueeze(0), mask=inputs.get("mask"))
    h.backward(inputs["gy"])
    grads = {theirs: cell.get_parameter(ours).grad for theirs, ours in GRU_NORMS.items()}
    for (gates, candidate), ours in GRU.items():
        grad = cell.get_parameter(ours).grad.t()
        grads |= {gates: grad[..., : 2 * size], candidate: grad[..., 2 * size :]}
    return {"out.h": h, "grad.x": x.grad, **{f"grad.{name}": grad for name, grad in grads.items()}}


KINDS = {"layer_norm": layer_norm, "lstm": lstm, "gru": gru}
