"""Classification of small images: one split, one training loop and one measure for every arm of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from trueup import data
from trueup.lab import Metric, Run
from trueup.training import Update, evaluate, minibatches, train

ACCURACY = Metric("accuracy", higher=True, worst=0.1, unit="%", label="test accuracy")


def nll(worst: float) -> Metric:
    """Declare the negative log likelihood, scored `worst` where training diverged."""
    return Metric("nll", higher=False, worst=worst, label="test NLL")


@dataclass(frozen=True)
class Images:
    """The training and held-out rows of one seed, on the run's device.

    Attributes:
        X: training images, scaled and shaped by `load_images`.
        y: their labels.
        X_held_out: images that training never sees: validation rows in a tuning trial, else test rows.
        y_held_out: their labels.
    """

    run: Run
    X: Float[Tensor, "rows ..."]
    y: Int[Tensor, " rows"]
    X_held_out: Float[Tensor, "held_out ..."]
    y_held_out: Int[Tensor, " held_out"]

    def train(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batch_size: int,
        epochs: float,
        *,
        schedule: Callable[[Optimizer, int], LRScheduler] | None = CosineAnnealingLR,
        max_norm: float = math.inf,
    ) -> Iterator[Update]:
        """Train on shuffled mini-batches in the seed's order; yield one record per update.

        Args:
            epochs: passes over the training rows; a fraction stops within a pass.
            schedule: `schedule(optimizer, updates)` makes the scheduler; `None` keeps the learning rate.
            max_norm: limit of the global gradient norm.
        """
        updates = round(epochs * (len(self.X) // batch_size))
        scheduler = schedule(optimizer, updates) if schedule else None
        rows = minibatches(len(self.X), batch_size, math.ceil(epochs), self.run.generator("order"))
        batches = ((self.X[i], self.y[i]) for i in islice(rows, updates))
        return train(model, batches, optimizer, max_norm=max_norm, scheduler=scheduler)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return accuracy and negative log likelihood on the held-out rows."""
        return evaluate(model, self.X_held_out, self.y_held_out)


def load_images(run: Run, *, shape: tuple[int, ...] = (1, 8, 8), center: float | None = None) -> Images:
    """Load the study's images (8x8 digits by default), split by the seed.

    Pixels are divided by the largest value of the data set. Then `center` is subtracted from them, or, if
    it is `None`, they are standardized by the mean and standard deviation of the training rows.

    Args:
        run: read for the settings `n_train`, `n_test` and, unless it is digits, `data`.
        shape: of one image; `(-1,)` flattens it.
        center: constant to subtract, in [0, 1]. Studies differ in it, and published numbers depend on it.
    """
    table = data.load(run.get("data", "digits"))
    fit, held_out = run.split(table.y, train=run["n_train"], test=run["n_test"])
    X = torch.tensor(table.X / table.X.max(), dtype=torch.float32).view(len(table.X), *shape)
    X = (X - X[fit].mean()) / X[fit].std() if center is None else X - center
    y = torch.tensor(table.y)
    return Images(run, *(rows.to(run.device) for rows in (X[fit], y[fit], X[held_out], y[held_out])))
