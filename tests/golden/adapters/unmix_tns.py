"""UnMix-TNS against the official layer, whose noise at conversion is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from golden.reference import Case
from trueup.adaptation import UnMixTNS1d, UnMixTNS2d, UnMixTNS3d

LAYERS = {3: (nn.BatchNorm1d, UnMixTNS1d), 4: (nn.BatchNorm2d, UnMixTNS2d), 5: (nn.BatchNorm3d, UnMixTNS3d)}


def unmix_tns(case: Case) -> dict[str, object]:
    """Convert a batch norm, and run consecutive batches through the layer."""
    inputs, params = (
        {name: torch.tensor(value) for name, value in values.items()} for values in (case.inputs, case.params)
    )
    hyper = case.hyper
    x = inputs["x0"]
    kind, target = LAYERS[x.dim()]
    batch_norm = kind(x.shape[1], hyper["eps"], hyper["bn_momentum"], dtype=x.dtype)
    state = {name.removeprefix("bn_"): value for name, value in params.items()}
    batch_norm.load_state_dict(state | {"num_batches_tracked": torch.tensor(1)})
    layer = target.from_module(
        batch_norm.eval(),
        num_components=hyper["K"],
        batch_size=hyper["batch_size"],
        max_batch_size=hyper["batch_size_max"],
        temperature=hyper["temperature"],
        init_coeff=hyper["coeff"],
    )
    if "init_noise" in inputs:
        layer.noise.copy_(inputs["init_noise"])
        layer.reset()
    returned: dict[str, object] = {"out.init_means": layer.means.clone(), "out.init_vars": layer.vars.clone()}
    for t in range(hyper["steps"]):
        x = inputs[f"x{t}"].requires_grad_()
        y = layer(x)
        layer.zero_grad()
        y.backward(inputs[f"grad_out{t}"])
        returned |= {f"out.y{t}": y, f"grad.x{t}": x.grad}
        returned |= {f"grad.{name}{t}": p.grad.clone() for name, p in layer.named_parameters()}
        returned |= {f"out.means{t}": layer.means.clone(), f"out.vars{t}": layer.vars.clone()}
    return returned


def unmix_tns_1d(case: Case) -> dict[str, Tensor]:
    """Run the layer on inputs without positions."""
    x = torch.tensor(case.inputs["x"])
    layer = UnMixTNS1d(x.shape[1], case.hyper["eps"], affine=False, dtype=x.dtype)
    layer.running_mean.copy_(torch.tensor(case.params["bn_running_mean"]))
    layer.running_var.copy_(torch.tensor(case.params["bn_running_var"]))
    layer.reset()
    return {"out.y": layer(x)}


KINDS = {"unmix_tns": unmix_tns, "unmix_tns_1d": unmix_tns_1d}
