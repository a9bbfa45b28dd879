"""Golden cases of correctness-aware calibration: the loss, the network with given weights, the measures."""

from __future__ import annotations

import torch

from golden.adapters.calibration_benchmark import metrics
from trueup.calibration import _correctness_aware as method
from trueup.calibration import correctness_aware_loss, view_features

NAMES = {
    "0.weight": "embed_layer.0.weight",
    "0.bias": "embed_layer.0.bias",
    "2.weight": "temperature_layer.weight",
    "2.bias": "temperature_layer.bias",
}


def calibrator(case):
    logits, views, target = (torch.tensor(case.inputs[k]) for k in ("logits", "view_logits", "labels"))
    hyper = case.hyper
    bounds = (hyper["t_min"], hyper["t_max"])
    features = view_features(logits, views, hyper["topk"])
    network = method.new_network(features, hyper["feat_dim"], torch.Generator())
    network.load_state_dict({ours: torch.tensor(case.params[theirs]) for ours, theirs in NAMES.items()})

    temperature = method.temperatures(network, features, bounds)
    calibrated = logits / temperature[:, None]
    confidence = calibrated.softmax(1).amax(1)
    correct = logits.argmax(1) == target
    balanced = correctness_aware_loss(confidence, correct, variant="official")
    gradients = torch.autograd.grad(balanced, network.parameters())
    out = {
        "out.features": features,
        "out.temperature": temperature,
        "out.confidence": confidence,
        "out.calibrated_logits": calibrated,
        "out.loss_per_sample": torch.stack(
            [correctness_aware_loss(c[None], r[None]) for c, r in zip(confidence, correct, strict=True)]
        ),
        "out.loss_mse": correctness_aware_loss(confidence, correct),
        "out.loss_abs": correctness_aware_loss(confidence, correct, loss="abs"),
        "out.loss_balanced": balanced,
    }
    for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        out[f"grad.{NAMES[name]}"] = gradient

    out["out.loss_trajectory"] = method.train_network(
        network,
        (features, logits, target, correct.to(logits.dtype), torch.ones_like(logits[:, 0])),
        loss="mse",
        variant="official",
        t_bounds=bounds,
        lr=hyper["lr"],
        max_iter=hyper["steps"],
        batch_size=len(logits),
        generator=torch.Generator(),
    )
    for name, parameter in network.named_parameters():
        out[f"out.final.{NAMES[name]}"] = parameter
    return out


def correctness_loss(case):
    logits, target = torch.tensor(case.inputs["logits"]), torch.tensor(case.inputs["labels"])
    confidence = (logits / case.hyper["temperature"]).softmax(1).amax(1)
    correct = logits.argmax(1) == target
    return {
        "out.loss_mse": correctness_aware_loss(confidence, correct),
        "out.loss_abs": correctness_aware_loss(confidence, correct, loss="abs"),
        "out.loss_balanced": correctness_aware_loss(confidence, correct, variant="official"),
    }


KINDS = {"calibrator": calibrator, "correctness_loss": correctness_loss, "metrics": metrics}
