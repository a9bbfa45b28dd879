"""`quantize_linear_` names the parameters it would leave in full precision, and no others."""

from __future__ import annotations

import ast
import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import trueup.nn
from trueup.quantization import FakeQuantLinear, fake_quantize_fp4, quantize_linear_
from trueup.quantization._matrix_parameters import matrix_parameters

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated", "ignore:hidden_size=1")


def refusal(net: nn.Module, **options: Any) -> str:
    """The error, in which the model was left alone."""
    kinds = [type(module) for module in net.modules()]
    with pytest.raises(ValueError, match="would leave parameters in full precision") as caught:
        quantize_linear_(net, group_size=8, **options)
    assert [type(module) for module in net.modules()] == kinds
    return str(caught.value)


def to_paste(message: str) -> list[str]:
    return ast.literal_eval(message.rpartition("skip=")[2])


def named(message: str) -> dict[str, str]:
    """Each line of the error describes the parameters that it names."""
    return dict(
        line.strip().split(": ", 1) for line in message.splitlines() if line.startswith("  ") and ": " in line
    )


class OwnLinear(nn.Linear):
    pass


class FrozenLinear(nn.Linear):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__(ins, outs, bias=False)
        weight = self.weight.detach()
        del self.weight
        self.register_buffer("weight", weight)


def attention_with_plain_projection() -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(8, 2)
    attention.out_proj = nn.Linear(8, 8)
    return attention


def with_own_forward(layer: nn.Module) -> nn.Module:
    layer.forward = layer.forward  # as hooks of some libraries do
    return layer


NOT_CALLED = ", which MultiheadAttention does not call"
MULTIPLY: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "subclass": (lambda: OwnLinear(8, 4), {"weight": "OwnLinear, (4, 8)"}),
    "one output": (lambda: OwnLinear(8, 1), {"weight": "OwnLinear, (1, 8)"}),
    "frozen": (lambda: FrozenLinear(8, 4), {"weight": "FrozenLinear, (4, 8)"}),
    "lazy": (lambda: nn.LazyLinear(4), {"weight": "LazyLinear, of unknown shape"}),
    "forward": (
        lambda: with_own_forward(nn.Linear(8, 4)),
        {"weight": "Linear, with a forward pass of its own"},
    ),
    "parametrised": (
        lambda: parametrizations.weight_norm(nn.Linear(8, 1)),
        {
            "parametrizations.weight.original0": "Linear, parametrised: take the parametrisation out, (1, 1)",
            "parametrizations.weight.original1": "Linear, parametrised: take the parametrisation out, (1, 8)",
        },
    ),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True),
        {
            "in_proj_weight": "MultiheadAttention, (24, 8)",
            "out_proj.weight": f"NonDynamicallyQuantizableLinear{NOT_CALLED}, (8, 8)",
        },
    ),
    "attention of three": (
        lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=2),
        {
            "q_proj_weight": "MultiheadAttention, (8, 8)",
            "k_proj_weight": "MultiheadAttention, (8, 4)",
            "v_proj_weight": "MultiheadAttention, (8, 2)",
            "out_proj.weight": f"NonDynamicallyQuantizableLinear{NOT_CALLED}, (8, 8)",
        },
    ),
    "plain projection": (
        attention_with_plain_projection,
        {"in_proj_weight": "MultiheadAttention, (24, 8)", "out_proj.weight": f"Linear{NOT_CALLED}, (8, 8)"},
    ),
    "loss": (
        lambda: nn.LinearCrossEntropyLoss(8, 4),
        {"linear.weight": "Linear, which LinearCrossEntropyLoss does not call, (4, 8)"},
    ),
    "bilinear": (lambda: nn.Bilinear(8, 3, 4), {"weight": "Bilinear, (4, 8, 3)"}),
    "lstm": (
        lambda: nn.LSTM(8, 4, proj_size=2),
        {"weight_ih_l0": "LSTM, (16, 8)", "weight_hh_l0": "LSTM, (16, 2)", "weight_hr_l0": "LSTM, (2, 4)"},
    ),
    "rnn of one unit": (lambda: nn.RNN(1, 1), {"weight_ih_l0": "RNN, (1, 1)", "weight_hh_l0": "RNN, (1, 1)"}),
    "gru cell": (
        lambda: nn.GRUCell(8, 4),
        {"weight_ih": "GRUCell, (12, 8)", "weight_hh": "GRUCell, (12, 4)"},
    ),
    "layer-norm gru": (
        lambda: trueup.nn.LayerNormGRU(8, 4),
        {"cells.0.weight_ih": "LayerNormGRUCell, (12, 8)", "cells.0.weight_hh": "LayerNormGRUCell, (12, 4)"},
    ),
    "layer-norm cell": (
        lambda: trueup.nn.LayerNormLSTMCell(1, 1),
        {"weight_ih": "LayerNormLSTMCell, (4, 1)", "weight_hh": "LayerNormLSTMCell, (4, 1)"},
    ),
    "conv1d": (lambda: nn.Conv1d(8, 4, 1), {"weight": "Conv1d, (4, 8, 1)"}),
    "conv2d, groups": (lambda: nn.Conv2d(8, 4, 1, groups=4), {"weight": "Conv2d, (4, 2, 1, 1)"}),
    "conv3d, one output": (lambda: nn.Conv3d(8, 1, 1), {"weight": "Conv3d, (1, 8, 1, 1, 1)"}),
    "transposed": (lambda: nn.ConvTranspose2d(8, 4, 1), {"weight": "ConvTranspose2d, (8, 4, 1, 1)"}),
    "lazy conv": (lambda: nn.LazyConv2d(4, 1), {"weight": "LazyConv2d, of unknown shape"}),
    "spectral norm": (
        lambda: nn.utils.spectral_norm(nn.Conv2d(8, 4, 1)),
        {"weight_orig": "Conv2d, (4, 8, 1, 1)"},
    ),
}


@pytest.mark.parametrize("odd", MULTIPLY)
def test_layers_that_multiply_otherwise_are_named(odd: str) -> None:
    make, want = MULTIPLY[odd]
    net = nn.ModuleDict({"fc": nn.Linear(8, 8), "odd": make()})
    message = refusal(net)
    assert "These multiply, but" in message
    assert "These may" not in message
    lines = named(message)
    assert lines.keys() == {f"odd.{name}" for name in want}
    for name, description in want.items():
        assert lines[f"odd.{name}"].startswith(description)
    assert to_paste(message) == ["odd.cells.0" if odd == "layer-norm gru" else "odd"]
    quantize_linear_(net, group_size=8, skip=to_paste(message))
    assert type(net["fc"]) is FakeQuantLinear
    assert not any(isinstance(module, FakeQuantLinear) for module in net["odd"].modules())
    for name in want:  # by the names of the parameters too, all of them
        again = nn.ModuleDict({"fc": nn.Linear(8, 8), "odd": make()})
        others = [f"odd.{other}" for other in want if other != name]
        assert named(refusal(again, skip=others)).keys() == {f"odd.{name}"}
        quantize_linear_(again, group_size=8, skip=[*others, f"odd.{name}"])


class Holder(nn.Module):
    """Some class of a user's with one parameter, whatever it does with that."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32, trains: bool = True) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(shape, dtype=dtype), trains)


class Reversible(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)


class Adapted(nn.Embedding):
    def __init__(self) -> None:
        super().__init__(9, 8)
        self.down = nn.Parameter(torch.zeros(8, 2))


class SameConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, [1, 1, 1, 1]))


def holder_of(parameter: nn.Parameter) -> nn.Module:
    holder = Holder()
    holder.p = parameter
    return holder


def with_extra() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.register_parameter("lora_A", nn.Parameter(torch.zeros(2, 8)))
    return layer


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrised_holder() -> nn.Module:
    return parametrize.register_parametrization(Holder(2, 8), "p", Doubled())


MAY: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "matrix": (lambda: Holder(2, 8), "p", "Holder, (2, 8)"),
    "frozen": (lambda: Holder(2, 8, trains=False), "p", "Holder, (2, 8)"),
    "experts": (lambda: Holder(4, 8, 8), "p", "Holder, (4, 8, 8)"),
    "positions": (lambda: Holder(1, 5, 8), "p", "Holder, (1, 5, 8)"),
    "complex": (lambda: Holder(2, 8, dtype=torch.complex64), "p", "Holder, (2, 8)"),
    "half": (lambda: Holder(2, 8, dtype=torch.bfloat16), "p", "Holder, (2, 8)"),
    "lazy": (lambda: holder_of(nn.UninitializedParameter()), "p", "Holder, of unknown shape"),
    "parametrised": (parametrised_holder, "parametrizations.p.original", "Holder, (2, 8)"),
    "list": (lambda: nn.ParameterList([torch.zeros(2, 8)]), "0", "ParameterList, (2, 8)"),
    "dict": (lambda: nn.ParameterDict({"a[*]": torch.zeros(2, 8)}), "a[*]", "ParameterDict, (2, 8)"),
    "reversible embedding": (lambda: Reversible(9, 8), "weight", "Reversible, (9, 8)"),
    "forward on the object": (lambda: with_own_forward(nn.Embedding(9, 8)), "weight", "Embedding, (9, 8)"),
    "adapted embedding": (Adapted, "down", "Adapted, (8, 2)"),
    "own convolution": (lambda: SameConv(2, 3, 3), "weight", "SameConv, (3, 2, 3, 3)"),
    "adapter on a linear layer": (with_extra, "lora_A", "Linear, (2, 8)"),
}


@pytest.mark.parametrize("odd", MAY)
def test_what_may_multiply_is_named(odd: str) -> None:
    make, name, description = MAY[odd]
    net = nn.ModuleDict({"fc": nn.Linear(8, 8), "odd": make()})
    message = refusal(net)
    assert "These may multiply, which cannot be seen" in message
    assert "These multiply" not in message
    assert named(message) == {f"odd.{name}": description}
    assert to_paste(message) == [f"odd.{name}"]
    for skip in (to_paste(message), "odd"):
        copied = copy.deepcopy(net) if odd != "lazy" else net
        assert type(quantize_linear_(copied, group_size=8, skip=skip)["fc"]) is FakeQuantLinear
        if odd == "lazy":
            break


class Renamed(nn.Embedding):
    """A subclass that changes nothing of what is computed."""


class Quiet(nn.Module):
    """Parameters that are no matrices, or not in full precision, are not named."""

    def __init__(self) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.gain, self.scale = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(()))
        self.none = nn.Parameter(torch.zeros(0, 1))
        self.packed = nn.Parameter(torch.zeros(4, 8, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("mask", torch.zeros(4, 8))
        self.register_parameter("absent", None)


QUIET: list[Callable[[], nn.Module]] = [
    lambda: nn.Embedding(9, 8),
    lambda: nn.EmbeddingBag(9, 8),
    lambda: Renamed(9, 8),
    lambda: nn.LayerNorm((4, 8)),
    lambda: nn.RMSNorm((4, 8)),
    lambda: nn.GroupNorm(2, 8),
    lambda: nn.BatchNorm2d(8),
    lambda: nn.SyncBatchNorm(8),
    lambda: nn.InstanceNorm1d(8, affine=True, track_running_stats=True),
    lambda: nn.LazyBatchNorm2d(),
    lambda: nn.PReLU(8),
    lambda: nn.Conv2d(8, 4, 3),
    lambda: nn.Conv2d(8, 4, (1, 3)),
    lambda: nn.LazyConv1d(4, 3),
    lambda: nn.ConvTranspose1d(8, 4, 2),
    lambda: nn.Conv2d(8, 16, 1, groups=8),  # one channel per group: a scale
    lambda: nn.ConvTranspose2d(8, 16, 1, groups=8),
    lambda: nn.utils.spectral_norm(nn.Conv2d(8, 4, 3)),
    lambda: nn.utils.weight_norm(nn.Conv2d(8, 4, 3)),
    lambda: parametrizations.weight_norm(nn.Conv2d(8, 4, 3)),
    lambda: parametrizations.spectral_norm(nn.Embedding(9, 8)),
    lambda: trueup.nn.parametrize_weights(
        nn.Conv2d(8, 4, 3), trueup.nn.ScaledWeightStandardization, gamma=1.0
    ),
    lambda: trueup.nn.parametrize_weights(nn.Conv2d(8, 4, 3), trueup.nn.WeightCompander, learnable=True),
    Quiet,
    lambda: trueup.nn.GhostBatchNorm2d(8),
    lambda: trueup.nn.EvoNorm2dB0(8),
    lambda: trueup.nn.EvoNorm2dS0(8, groups=2),
    lambda: trueup.nn.PowerNorm1d(8),
    lambda: trueup.nn.BatchChannelNorm2d(8, num_groups=2),
    lambda: trueup.nn.BatchChannelNorm1d(8, num_groups=2, channel_affine="channel"),
    lambda: trueup.nn.EstimatedBatchNorm2d(8),
]


@pytest.mark.parametrize("make", QUIET)
def test_what_does_not_multiply_is_not_named(make: Callable[[], nn.Module]) -> None:
    net = nn.ModuleList([make(), nn.Linear(8, 8)])
    assert [found.name for found in matrix_parameters(net)] == ["1.weight"]
    assert type(quantize_linear_(net, group_size=8)[1]) is FakeQuantLinear


@pytest.mark.parametrize(
    "reparametrise",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_linear_layers_whose_weight_a_hook_computes_are_quantised(
    reparametrise: Callable[..., nn.Module],
) -> None:
    layer = reparametrise(nn.Linear(8, 8))
    net = quantize_linear_(nn.Sequential(layer).eval(), group_size=8)
    x = torch.randn(3, 8)
    y = net(x)  # first, as the hook computes the weight
    x, weight = (fake_quantize_fp4(t, group_size=8) for t in (x, layer.weight))
    assert torch.equal(y, F.linear(x, weight, layer.bias))
    with pytest.raises(ValueError, match="not skipped or quantised"):  # nor is it named in a second call
        quantize_linear_(net, group_size=8)


def test_a_frozen_weight_in_a_buffer_is_quantised() -> None:
    layer = nn.Linear(8, 8)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    assert type(quantize_linear_(nn.Sequential(layer), group_size=8)[0]) is FakeQuantLinear


def test_a_parametrised_layer_that_is_quantised_is_not_named() -> None:
    quantised = parametrizations.weight_norm(FakeQuantLinear(8, 8, group_size=8))
    net = nn.ModuleList([quantised, nn.Linear(8, 8)])
    assert type(quantize_linear_(net, group_size=8)[1]) is FakeQuantLinear


class Network(nn.Module):
    """Two blocks, each with experts, attention and two linear layers, and positions in the net itself."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 5, 8))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": nn.MultiheadAttention(8, 2),
                    "experts": Holder(width, 8, 8),
                    "fc": nn.Linear(8, 8),
                    "odd": OwnLinear(8, 8),
                }
            )
            for width in (2, 4)
        )
        self.head = nn.Linear(8, 3)


def test_one_error_names_all_and_says_what_to_pass() -> None:
    net = Network()
    message = refusal(net, skip="head")
    assert named(message) == {
        "blocks.*.attention.in_proj_weight": "MultiheadAttention, (24, 8)",
        "blocks.*.attention.out_proj.weight": f"NonDynamicallyQuantizableLinear{NOT_CALLED}, (8, 8)",
        "blocks.*.odd.weight": "OwnLinear, (8, 8)",
        "positions": "Network, (1, 5, 8)",
        "blocks.*.experts.p": "Holder, (2, 8, 8), (4, 8, 8)",
    }
    skip = to_paste(message)
    assert set(skip) == {"head", "positions", "blocks.*.attention", "blocks.*.experts.p", "blocks.*.odd"}
    quantize_linear_(net, group_size=8, skip=iter(skip))
    kinds = {name for name, module in net.named_modules() if isinstance(module, FakeQuantLinear)}
    assert kinds == {"blocks.0.fc", "blocks.1.fc"}


def test_a_pattern_in_the_error_matches_nothing_else() -> None:
    net = nn.Sequential(OwnLinear(8, 8), nn.Linear(8, 8), OwnLinear(8, 8))
    assert to_paste(refusal(net)) == ["0", "2"]
    deeper = nn.ModuleDict({"0": Holder(2, 8), "1": Holder(2, 8), "x": nn.ModuleDict({"0": nn.Linear(8, 8)})})
    deeper["x"].register_parameter("p", nn.Parameter(torch.zeros(2, 8)))
    assert to_paste(refusal(deeper)) == ["0.p", "1.p", "x.p"]


class Inside(nn.Linear):
    """A linear layer with another inside, as low-rank adapters have."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.adapter = nn.Linear(8, 2)


def test_skipping_a_parameter_leaves_what_is_beside_it() -> None:
    net = nn.ModuleDict({"inside": Inside()})
    assert to_paste(refusal(net)) == ["inside.weight"]
    quantize_linear_(net, group_size=8, skip="inside.weight")
    assert type(net["inside"].adapter) is FakeQuantLinear

    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    quantize_linear_(net, group_size=8, skip=["0.weight", "*.bias"])  # a bias is no matrix
    assert [type(layer) for layer in net] == [nn.Linear, FakeQuantLinear]
    with pytest.raises(ValueError, match=r"skip names '0\.wait'"):
        quantize_linear_(net, group_size=8, skip="0.wait")


def test_a_shared_module_is_skipped_by_any_of_its_names_and_named_once() -> None:
    shared = Holder(2, 8)
    net = nn.ModuleDict({"first": shared, "second": shared, "fc": nn.Linear(8, 8)})
    assert named(refusal(net)) == {"first.p": "Holder, (2, 8)"}
    quantize_linear_(net, group_size=8, skip="second.p")
    quantize_linear_(
        nn.ModuleDict({"first": shared, "fc": nn.Linear(8, 8), "s": shared}), group_size=8, skip="s"
    )


def test_a_tied_parameter_is_judged_where_it_multiplies() -> None:
    embedding = nn.Embedding(9, 8)
    net = nn.ModuleDict({"embedding": embedding, "fc": nn.Linear(8, 8), "head": nn.Linear(8, 9)})
    net["head"].weight = embedding.weight
    for skip in ((), "head", "head.weight", "embedding", "embedding.weight"):
        copied = quantize_linear_(copy.deepcopy(net), group_size=8, skip=skip)
        assert isinstance(copied["head"], FakeQuantLinear) != ("head" in skip)
        assert copied["head"].weight is copied["embedding"].weight

    # a third module may multiply by it too, and skipping the others does not skip it there
    net["raw"] = holder_of(embedding.weight)
    assert named(refusal(net, skip=["head", "embedding"])) == {"raw.p": "Holder, (9, 8)"}
    quantize_linear_(net, group_size=8, skip=["head", "raw.p"])
    net = nn.ModuleDict({"fc": nn.Linear(8, 8), "raw": Holder(8, 8)})
    net["raw"].p = net["fc"].weight
    assert named(refusal(net)) == {"raw.p": "Holder, (8, 8)"}


def test_the_rest_is_skipped_again_in_a_second_call() -> None:
    net = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), Holder(2, 8)])
    quantize_linear_(net, group_size=8, skip=["1", "2"])
    assert named(refusal(net)) == {"2.p": "Holder, (2, 8)"}
    quantize_linear_(net, group_size=8, skip=["2"])
    assert [isinstance(module, FakeQuantLinear) for module in net] == [True, True, False]


# ---- Hugging Face: what a user must skip beside the output layer ----

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGES = SIZES | {"image_size": 32, "patch_size": 8}
MODELS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "Bert": ("BertForMaskedLM", SIZES | {"vocab_size": 40}, []),
    "T5": (
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8},
        [],
    ),
    "GPT2": (
        "GPT2LMHeadModel",
        {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4},
        [f"transformer.h.*.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")],
    ),
    "ViT": ("ViTForImageClassification", IMAGES, ["vit.embeddings.position_embeddings"]),
    "Mixtral": (
        "MixtralForCausalLM",
        SIZES | {"vocab_size": 40, "num_key_value_heads": 2, "num_local_experts": 4},
        [
            f"model.layers.*.mlp.{name}"
            for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
        ],
    ),
    "Mamba": (
        "MambaForCausalLM",
        {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        ["backbone.layers.*.mixer.A_log"],
    ),
    "XLNet": (
        "XLNetLMHeadModel",
        {"vocab_size": 40, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
        [
            *(f"transformer.layer.*.rel_attn.{name}" for name in "qkvor"),
            *(
                f"transformer.layer.*.rel_attn.{name}"
                for name in ("r_r_bias", "r_s_bias", "r_w_bias", "seg_embed")
            ),
        ],
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_what_hugging_face_models_ask_to_skip(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind, sizes, want = MODELS[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**sizes))
    skip = to_paste(refusal(net)) if want else []
    assert skip == want
    quantize_linear_(net, group_size=2, keep_top=1, skip=skip)
    with pytest.raises(ValueError, match="not skipped or quantised"):
        quantize_linear_(net, group_size=2, keep_top=1, skip=skip)
