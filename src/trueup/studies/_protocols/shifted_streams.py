"""Test-time adaptation: one source net, corrupted images in the order of a stream, one online measure.

A net is trained on clean images, once for each seed. Every arm then receives the same corrupted images in
the same batches, adapts as it likes, and is judged on the prediction of each image when it arrives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from trueup import data
from trueup.adaptation import corrupt, dirichlet_order, iid_order, sorted_order
from trueup.lab import Contrast, Metric, Run, SeedCells, Stage, custom, difference
from trueup.models import convnet
from trueup.training import minibatches, train

ACCURACY = Metric("accuracy", higher=True, worst=0.1, unit="%", label="online accuracy")
NLL = Metric("nll", higher=False, worst=10.0, label="online NLL")  # a net that is sure and wrong: above 10

REPORTED = ("gaussian_noise", "motion_blur", "fog", "contrast")
"""One corruption of each of ImageNet-C's families: noise, blur, weather, digital."""

TUNED_ON = ("shot_noise", "defocus_blur", "brightness", "pixelate")
"""Another corruption of each family, for tuning trials."""

ORDERS = {"iid": iid_order, "sorted": sorted_order, "correlated": dirichlet_order}

DESK = {
    "data": "fashion-mnist",
    "enlarged": 1,
    "severity": 5,
    "widths": (16, 32, 32),
    "n_train": 3000,
    "n_test": 448,
    "epochs": 5,
}
SCALES = {
    "smoke": DESK | {"data": "digits", "enlarged": 4, "n_train": 600, "n_test": 128, "epochs": 4},
    "desk": DESK,
}

Adapt: TypeAlias = Callable[[nn.Module], nn.Module]
"""``adapt(source_net)`` returns the model that meets the stream."""


def _rows(run: Run) -> tuple[Float[Tensor, "n 1 side side"], Int[Tensor, " n"], int]:
    """Return images in [0, 1], labels, and how many rows are to train on; the others are held out."""
    table = data.load(run["data"])
    target, n_test = np.asarray(table.y), run["n_test"]
    fit, held_out = run.split(target, train=run["n_train"], test=n_test, validation=n_test)
    rows = np.concatenate([fit, held_out])
    X, side = table.X[rows], math.isqrt(table.X[0].size)
    images = torch.tensor(X / table.X.max(), dtype=torch.float32).view(len(X), 1, side, side)
    images = functional.interpolate(images, scale_factor=run["enlarged"])  # corruptions need 28 pixels
    return images, torch.tensor(target[rows], dtype=torch.long), len(fit)


def _pooled(images: Float[Tensor, "n 1 side side"]) -> Float[Tensor, "n 1 half half"]:
    """Halve the images, which makes the nets four times as fast."""
    return functional.avg_pool2d(images, 2)


def _net(run: Run) -> nn.Sequential:
    """Build a convolutional net that keeps 2 x 2 positions for its linear layer.

    Over a mean of all positions, instance normalization would leave no class to tell from another.
    """
    widths = run["widths"]
    *features, _, _, _ = convnet(1, widths, 10)
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], 10))


def _train_source(run: Run) -> dict[str, Tensor]:
    """Train a net with batch norm on clean images."""
    images, target, n = _rows(run)
    X, y = _pooled(images[:n]), target[:n]
    torch.manual_seed(run.torch_seed("init"))
    net = _net(run)
    order = list(minibatches(n, 50, run["epochs"], run.generator("batches")))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    list(train(net, ((X[i], y[i]) for i in order), optimizer, scheduler=schedule))
    return net.state_dict()


def _corrupt_held_out(run: Run) -> dict[str, Tensor]:
    """Corrupt the held-out images; in a trial the validation images, by other corruptions."""
    images, target, n = _rows(run)
    generator = run.generator("corruption")
    corrupted = {
        name: _pooled(corrupt(images[n:], name, run["severity"], generator=generator))
        for name in (TUNED_ON if run.tuning else REPORTED)
    }
    return corrupted | {"target": target[n:]}


STAGES = (Stage("source", _train_source), Stage("shifted", _corrupt_held_out))


def source_net(run: Run) -> nn.Sequential:
    """Return the net that was trained on clean images, in evaluation mode."""
    net = _net(run)
    net.load_state_dict({name: torch.tensor(value) for name, value in run.inputs["source"].items()})
    return net.eval().to(run.device)


def follow_streams(run: Run, adapt: Adapt) -> dict[str, Any]:
    """Send each corruption's stream through a source net that is adapted anew; average over corruptions.

    Args:
        run: read for `stream`, the name of an order, for `batch`, the images in a batch, and for `images`,
            how many images a stream has at which batch size (default: all).

    Returns:
        Online accuracy and negative log likelihood, in nats, of every image at its first sight, and the
        accuracy on each corruption.
    """
    shifted = {name: torch.tensor(value) for name, value in run.inputs["shifted"].items()}
    target = shifted.pop("target")[: run.get("images", {}).get(run["batch"])]
    generator, losses, found = run.generator("order"), [], {}
    for name, images in shifted.items():
        order = ORDERS[run["stream"]](target, generator=generator)
        model = adapt(source_net(run))
        batches = images[order].to(run.device).split(run["batch"])
        with torch.no_grad():  # adapters that take steps override it
            logits = torch.cat([model(batch) for batch in batches]).cpu()
        found[f"accuracy_{name}"] = float((logits.argmax(1) == target[order]).float().mean())
        losses.append(float(functional.cross_entropy(logits, target[order])))
    n = len(losses)
    return {"accuracy": sum(found.values()) / n, "nll": sum(losses) / n} | found


def beats_all(method: str, others: Sequence[str], at: Mapping[str, Any]) -> Contrast:
    """Compare a method's accuracy with the best of the others' in each condition; average over conditions.

    A method that only chooses one of the others in each condition gains nothing.
    """

    def gain(cells: SeedCells) -> float:
        conditions = [condition for condition, _, _ in cells.select(method, at)]
        return float(
            np.mean(
                [
                    cells.mean(method, "accuracy", c) - max(cells.mean(arm, "accuracy", c) for arm in others)
                    for c in conditions
                ]
            )
        )

    return custom(
        gain,
        (method, *others),
        metrics=("accuracy",),
        at=at,
        against=lambda control: difference(method, control, "accuracy", at),
        text=f"{method} - the best of {', '.join(others)} in each condition, accuracy",
    )


def drop(
    arm: str,
    stream: str,
    at: Mapping[str, Any],
    test: Literal["superiority", "equivalence"] = "superiority",
) -> Contrast:
    """Compare an arm's accuracy on iid streams with that on streams of another order."""
    return custom(
        lambda cells: (
            cells.mean(arm, "accuracy", {**at, "stream": "iid"})
            - cells.mean(arm, "accuracy", {**at, "stream": stream})
        ),
        (arm,),
        metrics=("accuracy",),
        test=test,
        at=at,
        text=f"{arm} on iid - {arm} on {stream} streams, accuracy",
    )
