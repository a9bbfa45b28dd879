"""Hugging Face's `Trainer`: each optimizer trains with it, and resumes exactly from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from trueup.optim import SAM, AdaClip, AdaGN, MomentumReset

Recipe = tuple[type[Optimizer], dict[str, Any]]


class SAMTrainer(Trainer):
    """Train with SAM: perturb by the gradient of each micro-batch, and add up the gradients found there."""

    rho = 0.05

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        optimizer = super().create_optimizer(model)
        self.sam = SAM(optimizer, self.rho)
        return optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        sums = [p.grad for p in model.parameters()]  # of the micro-batches before
        model.zero_grad()
        loss = super().training_step(model, inputs, num_items_in_batch)
        with self.sam.perturbed():
            model.zero_grad()
            super().training_step(model, inputs, num_items_in_batch)
        for p, before in zip(model.parameters(), sums, strict=True):
            if before is not None and p.grad is not None:
                p.grad += before
        return loss


def network(seed: int, dropout: float = 0.1) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=8,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def examples(number: int = 80) -> list[dict[str, Tensor]]:
    ids = torch.randint(32, (number, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row[0] % 3} for row in ids]


def trainer(
    model: nn.Module,
    folder: Path,
    kind: type[Trainer] = Trainer,
    recipe: Recipe | None = None,
    optimizer: Optimizer | None = None,
    callbacks: list[TrainerCallback] | None = None,
    **arguments: Any,
) -> Trainer:
    """Return a trainer of 12 steps, 5 per epoch, which saves a checkpoint every 4, within epochs."""
    defaults = {
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_steps": 12,
        "save_steps": 4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "report_to": [],
        "disable_tqdm": True,
        "output_dir": str(folder),
    }
    return kind(
        model,
        TrainingArguments(**defaults | arguments),
        train_dataset=examples(),
        optimizers=(optimizer, None),
        optimizer_cls_and_kwargs=recipe,
        callbacks=callbacks,
    )


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", [Trainer, SAMTrainer])
def test_a_run_resumes_exactly(recipe: Recipe, kind: type[Trainer], bf16: bool, tmp_path: Path) -> None:
    straight, resumed, again = network(0), network(1), network(2)
    first = trainer(straight, tmp_path / "straight", kind, recipe, bf16=bf16)
    first.train()
    assert type(first.optimizer.optimizer) is recipe[0]
    assert not same(straight, network(0))

    second = trainer(resumed, tmp_path / "resumed", kind, recipe, bf16=bf16)
    second.train(resume_from_checkpoint=str(tmp_path / "straight/checkpoint-4"))
    assert same(resumed, straight)

    third = trainer(again, tmp_path / "again", kind, recipe, bf16=bf16)
    third.train(resume_from_checkpoint=str(tmp_path / "resumed/checkpoint-8"))
    assert same(again, straight)


def test_an_optimizer_of_your_own_is_the_same_run(recipe: Recipe, tmp_path: Path) -> None:
    by_class, by_object = network(0), network(0)
    trainer(by_class, tmp_path, recipe=recipe).train()
    kind, settings = recipe
    decay = Trainer(by_object, TrainingArguments(str(tmp_path))).get_decay_parameter_names(by_object)
    named = dict(by_object.named_parameters())
    groups = [  # as Trainer makes them: its weight decay of 0 takes precedence over the optimizer's
        {"params": [p for name, p in named.items() if (name in decay) is decays], "weight_decay": 0.0}
        for decays in (True, False)
    ]
    trainer(by_object, tmp_path, optimizer=kind(groups, **settings)).train()
    assert same(by_object, by_class)


class SaveTransforms(TrainerCallback):
    """Write the state of gradient transforms into each checkpoint, because Trainer does not save it."""

    def __init__(self, *transforms: AdaClip | AdaGN | MomentumReset) -> None:
        self.transforms = transforms

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        states = [transform.state_dict() for transform in self.transforms]
        torch.save(states, f"{args.output_dir}/checkpoint-{state.global_step}/transforms.pt")

    def load(self, checkpoint: Path) -> None:
        states = torch.load(checkpoint / "transforms.pt")
        for transform, state in zip(self.transforms, states, strict=True):
            transform.load_state_dict(state)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_gradient_transforms_resume_exactly(bf16: bool, tmp_path: Path) -> None:
    straight, resumed, without = network(0), network(1), network(0)
    for model, checkpoint in ((straight, None), (resumed, tmp_path / "checkpoint-4")):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        saves = SaveTransforms(AdaClip(optimizer, 0.9), AdaGN(optimizer), MomentumReset(optimizer, 3))
        if checkpoint is not None:
            saves.load(checkpoint)
        run = trainer(model, tmp_path, optimizer=optimizer, callbacks=[saves], bf16=bf16)
        run.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    assert same(resumed, straight)

    trainer(without, tmp_path, optimizer=torch.optim.AdamW(without.parameters(), 1e-2), bf16=bf16).train()
    assert not same(without, straight)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_sam_of_radius_zero_is_the_trainer_itself(
    bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SAMTrainer, "rho", 0.0)
    models = [network(0, dropout=0.0) for _ in range(2)]
    for model, kind in zip(models, (Trainer, SAMTrainer), strict=True):
        trainer(model, tmp_path, kind, (torch.optim.AdamW, {"lr": 1e-2}), bf16=bf16).train()
    assert same(*models)


def test_sam_takes_the_steps_of_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the whole set in one batch, so that the trainer's random order has no effect."""
    monkeypatch.setattr(SAMTrainer, "rho", 0.5)
    looped, trained, plain = (network(0, dropout=0.0) for _ in range(3))
    sam = SAM(torch.optim.SGD(looped.parameters(), 0.1, momentum=0.9), 0.5)
    ids, labels = (torch.stack([example[key] for example in examples()]) for key in ("input_ids", "labels"))

    def closure() -> Tensor:
        sam.optimizer.zero_grad()
        loss: Tensor = looped(input_ids=ids, labels=labels).loss
        loss.backward()
        return loss

    for _ in range(4):
        sam.step(closure)
    arguments = {
        "per_device_train_batch_size": 80,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    for model, kind in ((trained, SAMTrainer), (plain, Trainer)):
        trainer(model, tmp_path, kind, (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), **arguments).train()
    weights = [
        torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (looped, trained, plain)
    ]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)
    assert (weights[2] - weights[0]).abs().max() > 1e-4
