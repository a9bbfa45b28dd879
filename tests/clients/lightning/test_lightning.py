"""Lightning: each optimizer trains with it and resumes exactly from a checkpoint; it logs our metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from trueup import calibration
from trueup.optim import SAM, AdaClip, AdaGN, MomentumReset

pytestmark = pytest.mark.filterwarnings("ignore:::pytorch_lightning")  # advice on workers and loggers

Recipe = tuple[type[Optimizer], dict[str, Any]]

EPOCHS = 4


class Digits(LightningModule):
    """A small network with dropout, and a schedule that moves the learning rate and the momentum."""

    def __init__(self, seed: int, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(
            nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)
        )
        self.recipe = recipe

    def on_train_batch_start(self, batch: list[Tensor], index: int) -> None:
        torch.manual_seed(100 * self.current_epoch + index)  # Lightning saves no generator

    def loss(self, batch: list[Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        kind, settings = self.recipe
        optimizer = kind(self.parameters(), **settings)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.get("lr", 1e-2), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SAMDigits(Digits):
    """Use manual optimization, because SAM needs two backward passes per step."""

    def __init__(self, seed: int, recipe: Recipe) -> None:
        super().__init__(seed, recipe)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        self.sam = SAM(configured["optimizer"])
        return configured

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        optimizer: Any = self.optimizers()
        loss = self.loss(batch)
        self.manual_backward(loss)
        with self.sam.perturbed():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
        self.clip_gradients(optimizer, gradient_clip_val=1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        return loss


class TransformedDigits(Digits):
    """Keep the transforms' state in `loaded`: Lightning reads a checkpoint before it makes optimizers."""

    loaded: tuple[Any, ...] = ()

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"]
        self.transforms = [AdaClip(optimizer, 0.9), AdaGN(optimizer), MomentumReset(optimizer, 3)]
        return configured

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["transforms"] = [transform.state_dict() for transform in self.transforms]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint["transforms"]

    def on_train_start(self) -> None:
        for transform, state in zip(self.transforms, self.loaded):
            transform.load_state_dict(state)


def batches() -> DataLoader[tuple[Tensor, ...]]:
    digits = load_digits()
    images = torch.tensor(digits.data[:256] / 16, dtype=torch.float32)
    return DataLoader(TensorDataset(images, torch.tensor(digits.target[:256])), 32)


def fit(module: Digits, folder: Path, checkpoint: Path | None = None, precision: Any = "32-true") -> Tensor:
    """Train, save `folder/EPOCH.ckpt` after each epoch, and return the weights."""
    automatic = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        precision=precision,
        callbacks=[ModelCheckpoint(folder, "{epoch}", auto_insert_metric_name=False, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **(automatic if module.automatic_optimization else {}),
    )
    trainer.fit(module, batches(), ckpt_path=checkpoint)
    return weights(module)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", [Digits, SAMDigits, TransformedDigits])
def test_a_fit_resumes_exactly(
    recipe: Recipe, kind: Callable[[int, Recipe], Digits], precision: str, tmp_path: Path
) -> None:
    straight = fit(kind(0, recipe), tmp_path / "straight", precision=precision)
    assert not torch.equal(straight, weights(kind(0, recipe)))

    resumed = fit(kind(1, recipe), tmp_path / "resumed", tmp_path / "straight/1.ckpt", precision)
    assert torch.equal(resumed, straight)

    again = fit(kind(2, recipe), tmp_path / "again", tmp_path / "resumed/2.ckpt", precision)
    assert torch.equal(again, straight)


@pytest.mark.parametrize("kind", [Digits, SAMDigits, TransformedDigits])
def test_a_fit_takes_the_steps_of_a_plain_loop(
    recipe: Recipe, kind: Callable[[int, Recipe], Digits], tmp_path: Path
) -> None:
    fitted = fit(kind(0, recipe), tmp_path)

    module = Digits(0, recipe)
    optimizer = recipe[0](module.parameters(), **recipe[1])
    sam = SAM(optimizer)
    if kind is TransformedDigits:
        AdaClip(optimizer, 0.9), AdaGN(optimizer), MomentumReset(optimizer, 3)
    micro = 1 if kind is SAMDigits else 2
    steps = EPOCHS * len(batches()) // micro
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe[1].get("lr", 1e-2), steps)
    for epoch in range(EPOCHS):
        for index, batch in enumerate(batches()):
            torch.manual_seed(100 * epoch + index)
            (module.loss(batch) / micro).backward()
            if kind is SAMDigits:
                with sam.perturbed():
                    optimizer.zero_grad()
                    module.loss(batch).backward()
            if (index + 1) % micro:
                continue
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    assert torch.equal(fitted, weights(module))


class MeasuredDigits(LightningModule):
    """Log measures of calibration of a fixed network over an epoch, and those of every batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(64, 10)
        self.metrics = MetricCollection(
            {
                "ece": calibration.ExpectedCalibrationError(from_logits=True),
                "classwise": calibration.ClasswiseCalibrationError(num_classes=10, from_logits=True),
                "ks": calibration.KSError(from_logits=True),
                "nll": calibration.NegativeLogLikelihood(from_logits=True),
            }
        )

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch
        self.metrics.update(self.network(images), labels)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.metrics.compute())
        self.metrics.reset()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_collection_measures_an_epoch(devices: int) -> None:
    module = MeasuredDigits()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_spawn" if devices > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (logged,) = trainer.validate(module, batches(), verbose=False)
    images, labels = batches().dataset[:]
    logits = module.network(images)
    options = {"from_logits": True}
    wanted = {
        "ece": calibration.expected_calibration_error(logits, labels, **options),
        "classwise": calibration.classwise_calibration_error(logits, labels, **options),
        "ks": calibration.ks_error(logits, labels, **options),
        "nll": calibration.negative_log_likelihood(logits, labels, **options),
    }
    assert logged == pytest.approx({name: value.item() for name, value in wanted.items()}, rel=1e-5)
