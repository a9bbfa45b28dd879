"""The layer-normalised recurrent nets: what they equal, what they leave invariant, what padding does."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from trueup.nn import (
    LayerNormGRU,
    LayerNormGRUCell,
    LayerNormLSTM,
    LayerNormLSTMCell,
    LayerNormRNN,
    LayerNormRNNCell,
)

LAYERS = [LayerNormRNN, LayerNormLSTM, LayerNormGRU]
CELLS = [LayerNormRNNCell, LayerNormLSTMCell, LayerNormGRUCell]
KINDS = list(zip(LAYERS, CELLS, strict=True))


def shaken(module: nn.Module) -> nn.Module:
    """In float64, with weights that are not those that hide mistakes (zeros and ones)."""
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return module


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def states(hx: object) -> tuple[Tensor, ...]:
    return hx if isinstance(hx, tuple) else (hx,)


def start(layer: nn.Module, batch: int) -> object:
    shape = len(layer.cells), batch, layer.hidden_size
    return (random(*shape), random(*shape)) if isinstance(layer, LayerNormLSTM) else random(*shape)


def picked(hx: object, index: object) -> object:
    """Part of a state along its first axis, or over all with a tuple index."""
    return tuple(s[index] for s in hx) if isinstance(hx, tuple) else hx[index]


def gradients(module: nn.Module, *results: Tensor) -> list[Tensor]:
    """Of a fixed combination of the results, for every parameter."""
    module.zero_grad()
    sum((r * torch.linspace(-1, 1, r.numel(), dtype=r.dtype).view(r.shape)).sum() for r in results).backward()
    return [p.grad.clone() for p in module.parameters()]


# ---- the equations ----


def norm(a: Tensor, layer: nn.LayerNorm) -> Tensor:
    """As the paper writes it, with eps under the root."""
    centred = a - a.mean(-1, keepdim=True)
    sigma = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    return centred / sigma * layer.weight + layer.bias


def test_the_rnn_is_equation_4() -> None:
    cell = shaken(LayerNormRNNCell(3, 5, eps=0.02))
    x, h = random(4, 3), random(4, 5)
    a = norm(x @ cell.weight_ih.T + h @ cell.weight_hh.T, cell.norm)
    torch.testing.assert_close(cell(x, h), a.tanh())
    cell.nonlinearity = "relu"
    torch.testing.assert_close(cell(x, h), a.relu())


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_lstm_is_that_of_its_variant(variant: str) -> None:
    cell = shaken(LayerNormLSTMCell(3, 5, eps=0.02, variant=variant))
    x, h, c = random(4, 3), random(4, 5), random(4, 5)
    a = x @ cell.weight_ih.T + (cell.bias if variant == "official" else 0)
    gates = norm(a, cell.norm_ih) + norm(h @ cell.weight_hh.T, cell.norm_hh) + cell.bias
    i, f, g, o = gates[:, :5], gates[:, 5:10], gates[:, 10:15], gates[:, 15:]
    new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    new_h = o.sigmoid() * norm(new_c, cell.norm_c).tanh()
    torch.testing.assert_close(cell(x, (h, c)), (new_h, new_c))


def test_the_gru_is_the_official_one() -> None:
    cell = shaken(LayerNormGRUCell(3, 5, eps=0.02))
    x, h = random(4, 3), random(4, 5)
    a, b = x @ cell.weight_ih.T + cell.bias, h @ cell.weight_hh.T
    gates = norm(a[:, :10], cell.norm_ih_rz) + norm(b[:, :10], cell.norm_hh_rz)
    r, z = gates[:, :5].sigmoid(), gates[:, 5:].sigmoid()
    n = (norm(a[:, 10:], cell.norm_ih_n) + r * norm(b[:, 10:], cell.norm_hh_n)).tanh()
    torch.testing.assert_close(cell(x, h), (1 - z) * n + z * h)


@pytest.mark.parametrize("cell_type", CELLS)
def test_no_state_is_a_state_of_zeros(cell_type: type[nn.Module]) -> None:
    cell, x, zeros = shaken(cell_type(3, 5)), random(4, 3), torch.zeros(4, 5).double()
    hx = (zeros, zeros) if cell_type is LayerNormLSTMCell else zeros
    assert states(cell(x))[0].equal(states(cell(x, hx))[0])


@pytest.mark.parametrize("cell_type", CELLS)
def test_without_bias_nothing_is_added(cell_type: type[nn.Module]) -> None:
    cell = cell_type(3, 5, bias=False)
    assert not [name for name, _ in cell.named_parameters() if "bias" in name]
    # The cell is then odd in its input and state; a GRU's state would stay zero for the input zero.
    zero = states(cell(torch.zeros(2, 3)))
    assert all(not s.any() for s in zero)


def test_initial_weights_are_those_of_the_official_code() -> None:
    for cell_type in CELLS:
        cell = cell_type(3, 6)
        for block in cell.weight_hh.split(6):
            torch.testing.assert_close(block @ block.T, torch.eye(6))
        for name, p in cell.named_parameters():
            if name.endswith("bias"):
                assert not p.any()
            elif name.startswith("norm"):
                assert (p == 1).all()
        assert cell.weight_ih.abs().max() <= 6**-0.5
        again = copy.deepcopy(cell)
        again.reset_parameters()
        assert not again.weight_ih.equal(cell.weight_ih)
    assert LayerNormLSTMCell(3, 6, dtype=torch.bfloat16).weight_hh.dtype == torch.bfloat16


def test_a_cell_with_a_parametrised_weight_can_be_reset() -> None:
    cell = parametrizations.orthogonal(LayerNormGRUCell(3, 4), "weight_hh")
    with torch.no_grad():
        cell.norm_hh_n.weight.fill_(7)
    cell.reset_parameters()
    assert (cell.norm_hh_n.weight == 1).all()


# ---- invariances: the paper's table, row by row ----
# A row of a weight matrix is one unit's weights; eps is small against the variances here.


def test_scale_and_shift_of_all_weights_do_not_matter() -> None:
    """Matrix rescaled; every unit's weights moved by one vector. Both sums of the LSTM alike."""
    cell = shaken(LayerNormLSTMCell(3, 5, eps=1e-14))
    x, hx = random(4, 3), (random(4, 5), random(4, 5))
    want = cell(x, hx)
    for name in ("weight_ih", "weight_hh"):
        weight = getattr(cell, name)
        original = weight.detach().clone()
        for changed in (original * 3.7, original + random(weight.shape[1])):
            weight.data = changed
            torch.testing.assert_close(cell(x, hx), want, rtol=1e-9, atol=1e-9)
        changed = original.clone()
        changed[0] *= 3.7  # one unit's weights alone do matter
        weight.data = changed
        assert (cell(x, hx)[0] - want[0]).abs().max() > 1e-3
        weight.data = original


def test_scale_of_a_case_does_not_matter_and_a_shift_does() -> None:
    """So the scale of one sample, or of all, is lost; a shift of all samples is not."""
    cell = shaken(LayerNormLSTMCell(3, 5, eps=1e-14))
    x, hx = random(4, 3), (random(4, 5), random(4, 5))
    want = cell(x, hx)
    scale = torch.tensor([[0.5], [1.0], [2.0], [30.0]]).double()
    torch.testing.assert_close(cell(x * scale, hx), want, rtol=1e-9, atol=1e-9)
    assert (cell(x + 1, hx)[0] - want[0]).abs().max() > 1e-3
    official = shaken(LayerNormLSTMCell(3, 5, eps=1e-14, variant="official"))
    assert (official(x * scale, hx)[0] - official(x, hx)[0]).abs().max() > 1e-3


def test_of_a_single_input_the_lstm_sees_the_sign() -> None:
    cell = shaken(LayerNormLSTMCell(1, 5, eps=1e-14))
    a, b, c = cell(torch.tensor([[0.1], [7.0], [-0.1]]).double())[0]
    torch.testing.assert_close(a, b)
    assert (a - c).abs().max() > 1e-3


@pytest.mark.parametrize("cell_type", CELLS)
def test_samples_do_not_meet(cell_type: type[nn.Module]) -> None:
    cell, x = shaken(cell_type(3, 5)), random(4, 3)
    together, alone = states(cell(x)), [states(cell(row)) for row in x]
    torch.testing.assert_close(together, tuple(torch.stack(s) for s in zip(*alone, strict=True)))


def test_one_unit_gives_the_shift_exactly() -> None:
    with pytest.warns(UserWarning, match="hidden_size=1"):
        rnn = shaken(LayerNormRNNCell(3, 1))
    x = random(4, 3).requires_grad_()
    h = rnn(x)
    assert h.equal(rnn.norm.bias.tanh().expand(4, 1))
    h.sum().backward()
    assert not x.grad.any()
    with pytest.warns(UserWarning, match="hidden_size=1"):
        lstm = shaken(LayerNormLSTMCell(3, 1))
    h, _ = lstm(x, (h.detach(), random(4, 1)))
    bound = lstm.norm_c.bias.tanh()
    assert ((h / bound > 0) & (h / bound < 1)).all()  # the output gate times a constant
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LayerNormGRUCell(3, 2)


@pytest.mark.bad_input  # the lines of a shape check would stand between
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [(kind, {"hidden_size": 1}, "hidden_size=1") for kind in (*CELLS, *LAYERS)]
    + [(kind, {"hidden_size": 2, "dropout": 0.5}, "between layers") for kind in LAYERS],
)
def test_warnings_point_at_the_line_that_asked(
    kind: type[nn.Module], options: dict[str, float], message: str
) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        kind(3, **options)
    assert {warning.filename for warning in caught} == {__file__}


def test_the_variance_survives_a_large_mean() -> None:
    """Summed inputs around 100 with deviation 0.01, in float32."""
    cell = LayerNormRNNCell(1, 64)
    with torch.no_grad():
        cell.weight_ih.copy_(100 + 0.01 * torch.randn(64, 1))
    x = torch.ones(1, 1)
    want = copy.deepcopy(cell).double()(x.double())
    torch.testing.assert_close(cell(x).double(), want, rtol=0, atol=2e-3)


def test_a_long_half_precision_sequence_keeps_its_state_in_float32() -> None:
    """A cell that forgets nothing adds 0.01 a step to c: in bfloat16 it would stop at about 2."""
    layer = LayerNormLSTM(2, 4)
    cell = layer.cells[0]
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        cell.bias[4:8] = 40.0  # forget gate 1
        cell.bias[8:12] = 0.02  # input gate 1/2
    output, (h, c) = layer.bfloat16()(torch.zeros(600, 1, 2, dtype=torch.bfloat16))
    assert output.dtype == h.dtype == c.dtype == torch.bfloat16
    torch.testing.assert_close(c.float(), torch.full((1, 1, 4), 6.0), rtol=0.02, atol=0)


def test_a_half_cell_takes_a_float32_state() -> None:
    cell = LayerNormGRUCell(3, 5, dtype=torch.bfloat16)
    x, h = torch.randn(4, 3, dtype=torch.bfloat16), torch.randn(4, 5)
    assert cell(x, h).dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"would round h of hx of torch.float64"):
        cell(x, h.double())


# ---- sequences ----


def naive(cell: nn.Module, x: Tensor, hx: object) -> tuple[Tensor, object]:
    """A loop over the public cell, first axis time."""
    outputs = []
    for step in x:
        hx = cell(step, hx)
        outputs.append(states(hx)[0])
    return torch.stack(outputs), hx


@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_one_layer_is_a_loop_over_its_cell(layer_type: type[nn.Module], batch_first: bool) -> None:
    layer = shaken(layer_type(3, 5, batch_first=batch_first))
    x, hx = random(7, 4, 3), start(layer, 4)
    output, h_n = layer(x.transpose(0, 1) if batch_first else x, hx)
    got = [output.transpose(0, 1) if batch_first else output, *states(h_n)]
    output, last = naive(layer.cells[0], x, picked(hx, 0))
    want = [output, *(s.unsqueeze(0) for s in states(last))]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(layer, *got), gradients(layer, *want), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layer_type", LAYERS)
def test_layers_and_directions_are_composed_as_in_torch(layer_type: type[nn.Module]) -> None:
    layer = shaken(layer_type(3, 5, num_layers=2, bidirectional=True))
    x, hx = random(6, 4, 3), start(layer, 4)
    output, h_n = layer(x, hx)
    want, ends = x, []
    for i in (0, 2):
        forwards, end = naive(layer.cells[i], want, picked(hx, i))
        backwards, start_ = naive(layer.cells[i + 1], want.flip(0), picked(hx, i + 1))
        want = torch.cat([forwards, backwards.flip(0)], -1)
        ends += [states(end), states(start_)]
    torch.testing.assert_close(output, want)
    torch.testing.assert_close(states(h_n), tuple(torch.stack(s) for s in zip(*ends, strict=True)))


@pytest.mark.parametrize(("ours", "theirs"), list(zip(LAYERS, (nn.RNN, nn.LSTM, nn.GRU), strict=True)))
def test_shapes_and_argument_order_are_torchs(ours: type[nn.Module], theirs: type[nn.Module]) -> None:
    middle = ("tanh",) if ours is LayerNormRNN else ()
    arguments = (3, 5, 2, *middle, True, True, 0.1, True)
    got, want = ours(*arguments), theirs(*arguments)
    for name in (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    ):
        assert getattr(got, name) == getattr(want, name)
    for x in (torch.randn(4, 6, 3), torch.randn(6, 3)):
        (out, hx), (their_out, their_hx) = got(x), want(x)
        assert out.shape == their_out.shape
        assert [s.shape for s in states(hx)] == [s.shape for s in states(their_hx)]
        assert got(x, hx)[0].shape == out.shape  # a state goes back in


def test_dropout_acts_between_layers_in_training_only() -> None:
    layer = LayerNormGRU(3, 5, num_layers=2, dropout=1.0)
    x = torch.randn(6, 4, 3)
    trained, (first, _) = layer(x)
    evaluated, (same_first, _) = layer.eval()(x)
    assert first.equal(same_first)
    assert (trained - evaluated).abs().max() > 0
    # With everything dropped the second layer reads zeros, whatever the first one says.
    assert layer.train()(torch.randn(6, 4, 3))[0].equal(trained)
    with pytest.warns(UserWarning, match="between layers"):
        LayerNormGRU(3, 5, dropout=0.5)


# ---- sequences of different lengths ----

LENGTHS = [7, 1, 4, 0]


def as_mask(lengths: list[int], steps: int = 7) -> Tensor:
    return torch.arange(steps).unsqueeze(1) < torch.tensor(lengths)


@pytest.mark.parametrize("lengths", [LENGTHS, torch.tensor(LENGTHS)])
def test_lengths_do_not_follow_the_default_device(lengths: list[int] | Tensor) -> None:
    layer, x = shaken(LayerNormGRU(3, 5)), random(7, 4, 3)
    want = layer(x, lengths=lengths)
    with torch.device("meta"):
        got = layer(x, lengths=lengths)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize("how", ["lengths", "boolean mask", "float mask", "list"])
def test_lengths_are_each_sequence_alone(layer_type: type[nn.Module], how: str) -> None:
    layer = shaken(layer_type(3, 5, num_layers=2, bidirectional=True))
    x, hx = random(7, 4, 3), start(layer, 4)
    options = {
        "lengths": {"lengths": torch.tensor(LENGTHS)},
        "list": {"lengths": LENGTHS},
        "boolean mask": {"mask": as_mask(LENGTHS)},
        "float mask": {"mask": as_mask(LENGTHS).float()},
    }[how]
    output, h_n = layer(x, hx, **options)
    layer.zero_grad()
    for i, length in enumerate(LENGTHS):
        mine = picked(hx, (slice(None), slice(i, i + 1)))
        if length == 0:  # documented: the state it starts from
            assert all(s[:, i].equal(m[:, 0]) for s, m in zip(states(h_n), states(mine), strict=True))
            continue
        alone, h_alone = layer(x[:length, i : i + 1], mine)
        torch.testing.assert_close(output[:length, i : i + 1], alone)
        for s, t in zip(states(h_n), states(h_alone), strict=True):
            torch.testing.assert_close(s[:, i : i + 1], t)


@pytest.mark.parametrize("layer_type", LAYERS)
def test_padded_steps_repeat_the_last_output_or_hold_the_initial_state(layer_type: type[nn.Module]) -> None:
    layer = shaken(layer_type(3, 5, bidirectional=True))
    x, hx = random(7, 4, 3), start(layer, 4)
    output, _ = layer(x, hx, lengths=LENGTHS)
    h0 = states(hx)[0]
    for i, length in enumerate(LENGTHS):
        last = output[length - 1, i, :5] if length else h0[0, i]
        assert output[length:, i, :5].equal(last.expand(7 - length, 5))
        assert output[length:, i, 5:].equal(h0[1, i].expand(7 - length, 5))


@pytest.mark.parametrize("how", ["lengths", "boolean", "float"])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything_and_gets_no_gradient(junk: float, how: str) -> None:
    layer = shaken(LayerNormLSTM(3, 5, num_layers=2, bidirectional=True))
    x, mask = random(7, 4, 3), as_mask(LENGTHS)
    options = {"lengths": {"lengths": LENGTHS}, "boolean": {"mask": mask}, "float": {"mask": mask.double()}}[
        how
    ]
    results = []
    for padding in (0.0, junk):
        leaf = torch.where(mask.unsqueeze(-1), x, padding).requires_grad_()
        output, (h, c) = layer(leaf, **options)
        results.append([output, h, c, *gradients(layer, output, h, c), leaf.grad])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert not results[1][-1][~mask].any()


def test_a_masked_step_in_the_middle_is_passed_over() -> None:
    for layer_type in LAYERS:
        layer, x = shaken(layer_type(3, 5)), random(5, 2, 3)
        mask = torch.tensor([[1, 1], [0, 1], [1, 0], [1, 1], [0, 1]]).bool()
        output, h_n = layer(x, mask=mask)
        for i in range(2):
            kept = mask[:, i]
            alone, h_alone = layer(x[kept, i : i + 1])
            torch.testing.assert_close(output[kept, i : i + 1], alone)
            torch.testing.assert_close(states(h_n)[-1][:, i : i + 1], states(h_alone)[-1])


def test_a_mask_between_zero_and_one_mixes_states_as_the_official_code_does() -> None:
    """c is mixed first, and h is made of the mixed c."""
    layer = shaken(LayerNormLSTM(3, 5))
    cell = layer.cells[0]
    x, h, c, m = random(1, 4, 3), random(4, 5), random(4, 5), torch.rand(4, 1).double()
    output, (_, got_c) = layer(x, (h[None], c[None]), mask=m.T)
    gates = norm(x[0] @ cell.weight_ih.T, cell.norm_ih) + norm(h @ cell.weight_hh.T, cell.norm_hh) + cell.bias
    i, f, g, o = gates.chunk(4, -1)
    want_c = m * (f.sigmoid() * c + i.sigmoid() * g.tanh()) + (1 - m) * c
    want_h = m * (o.sigmoid() * norm(want_c, cell.norm_c).tanh()) + (1 - m) * h
    torch.testing.assert_close((output[0], got_c[0]), (want_h, want_c))


@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("sort", [False, True])
def test_packed_sequences_go_in_and_come_out(
    layer_type: type[nn.Module], batch_first: bool, sort: bool
) -> None:
    layer = shaken(layer_type(3, 5, bidirectional=True, batch_first=batch_first))
    lengths = [7, 5, 5, 2] if sort else [2, 5, 7, 5]
    sequences = [random(length, 3) for length in lengths]
    packed, hx = pack_sequence(sequences, enforce_sorted=sort), start(layer, 4)
    output, h_n = layer(packed, hx)
    assert isinstance(output, PackedSequence)
    for got, want in zip(output[1:], packed[1:], strict=True):
        assert got is want or got.equal(want)
    padded, got_lengths = pad_packed_sequence(output, batch_first)
    assert got_lengths.tolist() == lengths
    x, _ = pad_packed_sequence(packed, batch_first)
    want, h_want = layer(x, hx, lengths=lengths)
    kept = as_mask(lengths)
    kept = kept.T if batch_first else kept
    torch.testing.assert_close(padded, want * kept.unsqueeze(-1))  # torch pads with zeros, ours carries on
    torch.testing.assert_close(states(h_n), states(h_want))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(LAYERS),
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    steps=st.integers(5, 6),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
)
def test_more_padding_changes_nothing(
    kind: type[nn.Module], lengths: list[int], steps: int, layers: int, bidirectional: bool, batch_first: bool
) -> None:
    layer = shaken(kind(2, 3, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first))
    x = random(5, len(lengths), 2)
    padded = F.pad(x, (0, 0, 0, 0, 0, steps - 5), value=9.0)
    if batch_first:
        x, padded = x.transpose(0, 1), padded.transpose(0, 1)
    (a, h), (b, k) = layer(x, lengths=lengths), layer(padded, lengths=lengths)
    time = 1 if batch_first else 0
    torch.testing.assert_close(b.narrow(time, 0, 5), a)
    torch.testing.assert_close(states(h), states(k))


@pytest.mark.bad_input  # shape checks cannot be compiled
def test_lengths_compile_and_export() -> None:
    layer = shaken(LayerNormGRU(3, 4))
    x, lengths = random(3, 2, 3), torch.tensor([1, 3])
    run = partial(torch.compile(layer, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(run(lengths=lengths), layer(x, lengths=lengths))
    exported = torch.export.export(layer, (x,), {"lengths": lengths}).module()
    other = torch.tensor([2, 0])
    torch.testing.assert_close(exported(x, lengths=other), layer(x, lengths=other))


# ---- bad input ----


@pytest.mark.bad_input
@pytest.mark.parametrize(("layer_type", "cell_type"), KINDS)
def test_bad_constructor_arguments(layer_type: type[nn.Module], cell_type: type[nn.Module]) -> None:
    for kind in (layer_type, cell_type):
        for sizes, name in (((0, 3), "input_size"), ((3, -1), "hidden_size")):
            with pytest.raises(ValueError, match=f"{name} must be at least 1"):
                kind(*sizes)
        with pytest.raises(TypeError, match="input_size must be an int"):
            kind(2.0, 3)
        with pytest.raises(TypeError, match="hidden_size must be an int"):
            kind(2, True)
        for eps in (0.0, -1e-5, float("nan")):
            with pytest.raises(ValueError, match="eps must be positive"):
                kind(2, 3, eps=eps)
    with pytest.raises(ValueError, match="num_layers must be at least 1"):
        layer_type(2, 3, 0)
    with pytest.raises(TypeError, match="num_layers must be an int"):
        layer_type(2, 3, 1.5)
    for dropout in (-0.1, 1.1, True):
        with pytest.raises(ValueError, match="dropout must be a probability"):
            layer_type(2, 3, 2, dropout=dropout)


@pytest.mark.bad_input
def test_bad_options() -> None:
    with pytest.raises(ValueError, match="nonlinearity must be one of"):
        LayerNormRNN(2, 3, 1, "gelu")
    with pytest.raises(ValueError, match=r"variant must be one of \('paper', 'official'\); got 'code'"):
        LayerNormLSTM(2, 3, variant="code")
    with pytest.raises(ValueError, match=r'variant="official" adds the bias .*: pass bias=True'):
        LayerNormLSTM(2, 3, bias=False, variant="official")
    with pytest.raises(TypeError, match=r"LayerNormGRU\.__init__.* unexpected keyword argument 'variant'"):
        LayerNormGRU(2, 3, variant="official")
    with pytest.raises(TypeError, match="positional"):
        LayerNormLSTM(2, 3, 1, True, False, 0.0, False, 0)  # torch's proj_size


@pytest.mark.bad_input
@pytest.mark.parametrize("cell_type", CELLS)
def test_bad_input_of_a_cell(cell_type: type[nn.Module]) -> None:
    cell = cell_type(3, 5)
    with pytest.raises(ValueError, match="input_size=3"):
        cell(torch.randn(4, 2))
    with pytest.raises(ValueError, match="takes one step"):
        cell(torch.randn(6, 4, 3))
    with pytest.raises(TypeError, match="must be floating point"):
        cell(torch.ones(4, 3, dtype=torch.long))
    with pytest.raises(TypeError, match=r"would round input of torch.float64"):
        cell(torch.randn(4, 3).double())
    for h in (torch.randn(3, 5), torch.randn(4, 4), torch.randn(5)):
        with pytest.raises(ValueError, match=r"must have shape \(4, 5\)"):
            cell(torch.randn(4, 3), (h, h) if cell_type is LayerNormLSTMCell else h)
    if cell_type is LayerNormLSTMCell:
        with pytest.raises(ValueError, match=r"tuple \(h, c\); got a Tensor"):
            cell(torch.randn(4, 3), torch.randn(4, 5))
        with pytest.raises(ValueError, match=r"tuple \(h, c\); got a tuple of 1"):
            cell(torch.randn(4, 3), (torch.randn(4, 5),))
        with pytest.raises(TypeError, match="c of hx must be a tensor; got a NoneType"):
            cell(torch.randn(4, 3), (torch.randn(4, 5), None))
    else:
        with pytest.raises(TypeError, match="h of hx must be a tensor; got a tuple"):
            cell(torch.randn(4, 3), (torch.randn(4, 5),))


@pytest.mark.bad_input
@pytest.mark.parametrize("layer_type", LAYERS)
def test_bad_input_of_a_layer(layer_type: type[nn.Module]) -> None:
    layer, x = layer_type(3, 5, num_layers=2), torch.randn(6, 4, 3)
    with pytest.raises(ValueError, match="input_size=3"):
        layer(torch.randn(6, 4, 2))
    with pytest.raises(ValueError, match=r"takes input \(time, batch, input_size\)"):
        layer(torch.randn(3))
    with pytest.raises(ValueError, match="at least one step"):
        layer(torch.randn(0, 4, 3))
    with pytest.raises(TypeError, match="floating point"):
        layer(x.long())
    h = torch.randn(2, 3, 5)
    with pytest.raises(ValueError, match=r"must have shape \(2, 4, 5\)"):
        layer(x, (h, h) if layer_type is LayerNormLSTM else h)
    # of one sequence the state has no batch either
    with pytest.raises(ValueError, match=r"must have shape \(2, 5\); got \(2, 3, 5\)"):
        layer(x[:, 0], (h, h) if layer_type is LayerNormLSTM else h)
    if layer_type is LayerNormLSTM:
        with pytest.raises(ValueError, match=r"tuple \(h, c\); got a Tensor"):
            layer(x[:, 0], h[:, 0])


@pytest.mark.parametrize("layer_type", LAYERS)
def test_an_empty_batch_gives_an_empty_output(layer_type: type[nn.Module]) -> None:
    layer = layer_type(3, 5, bidirectional=True)
    for options in ({}, {"lengths": []}, {"lengths": torch.zeros(0, dtype=torch.long)}):
        output, h_n = layer(torch.randn(6, 0, 3), **options)
        assert output.shape == (6, 0, 10)
        assert {s.shape for s in states(h_n)} == {(2, 0, 5)}


@pytest.mark.bad_input
def test_bad_lengths_and_masks() -> None:
    layer, x = LayerNormGRU(3, 5, batch_first=True), torch.randn(4, 6, 3)
    with pytest.raises(ValueError, match="between 0 and the input's 6 steps; got 1 to 7"):
        layer(x, lengths=[1, 7, 2, 3])
    with pytest.raises(ValueError, match="got -1 to 3"):
        layer(x, lengths=[1, -1, 2, 3])
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        layer(x, lengths=[1, 2, 3])
    with pytest.raises(TypeError, match="must be integers"):
        layer(x, lengths=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(ValueError, match="on the CPU"):
        layer(x, lengths=torch.ones(4, dtype=torch.long, device="meta"))
    with pytest.raises(ValueError, match=r"shape \(4, 6\)"):
        layer(x, mask=torch.ones(6, 4))
    with pytest.raises(ValueError, match="boolean or floating point"):
        layer(x, mask=torch.ones(4, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="pass one of them"):
        layer(x, lengths=[1, 2, 3, 4], mask=torch.ones(4, 6))
    with pytest.raises(ValueError, match="for batches"):
        layer(x[0], lengths=[3])
    packed = pack_padded_sequence(x, [6, 4, 4, 1], batch_first=True)
    with pytest.raises(ValueError, match="carries its lengths"):
        layer(packed, lengths=[6, 4, 4, 1])
    with pytest.raises(ValueError, match=r"packed sequences of shape \(time, input_size\); .* shape \(15,\)"):
        layer(pack_padded_sequence(x[..., 0], [6, 4, 4, 1], batch_first=True))
