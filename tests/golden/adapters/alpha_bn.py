"""Normalization by mixed statistics against its closed form."""

from __future__ import annotations

import torch
from torch import nn

from golden.adapters.core_loss import core_loss
from golden.reference import Case
from trueup.adaptation import AlphaBatchNorm1d, AlphaBatchNorm2d, AlphaBatchNorm3d
from trueup.adaptation._alpha_batch_norm import mix_statistics

LAYERS = {2: AlphaBatchNorm1d, 3: AlphaBatchNorm1d, 4: AlphaBatchNorm2d, 5: AlphaBatchNorm3d}


def alpha_bn(case: Case) -> dict[str, object]:
    """Run the layer with either variance, and mix the statistics."""
    x = torch.tensor(case.inputs["x"])
    params = {name: torch.tensor(value) for name, value in case.params.items()}
    batch_norm = nn.BatchNorm1d(x.shape[1], case.hyper["eps"], dtype=x.dtype)
    batch_norm.load_state_dict(params | {"num_batches_tracked": torch.tensor(1)})
    outputs = {}
    for unbiased in (False, True):
        layer = LAYERS[x.dim()].from_module(
            batch_norm.eval(), source_weight=case.hyper["alpha"], unbiased=unbiased
        )
        outputs[unbiased] = layer(x)
    values = x.double().movedim(1, -1).flatten(0, -2)
    mean, var = (params[f"running_{name}"].double() for name in ("mean", "var"))
    returned: dict[str, object] = {
        "out.y_biased": outputs[False],
        "out.y_unbiased": outputs[True],
        "out.y_reference_impl": outputs[True],
    }
    for name, correction in (("biased", 0), ("unbiased", 1 if len(values) > 1 else 0)):
        batch = values.mean(0), values.var(0, correction=correction)
        returned["out.mean"], returned[f"out.var_{name}"] = mix_statistics(
            mean, var, *batch, case.hyper["alpha"]
        )
    return returned


KINDS = {"alpha_bn": alpha_bn, "core_loss": core_loss}
