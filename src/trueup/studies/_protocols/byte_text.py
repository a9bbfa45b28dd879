"""Language modeling of bytes: train a small decoder on windows of one part of a text, judge it on another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trueup import data
from trueup.lab import Metric, Run
from trueup.models import Decoder
from trueup.training import Update, even_windows, next_symbol_loss, random_windows, split_text, train

NLL = Metric("nll", higher=False, worst=math.log(256), unit="nats", label="test nats a character")


@dataclass(frozen=True)
class ByteText:
    """The text of one seed, on the run's device.

    Attributes:
        fit: the bytes to train on.
        symbols: windows of the held-out part, evenly spread.
        targets: the byte that follows each of them.
    """

    run: Run
    fit: Int[Tensor, " bytes"]
    symbols: Int[Tensor, "windows block"]
    targets: Int[Tensor, "windows block"]

    def decoder(self, **options: Any) -> Decoder:
        """Build a decoder of the run's `width`, `depth`, `heads` and `block` from the seed."""
        torch.manual_seed(self.run.torch_seed("init"))
        shape = {name: self.run[name] for name in ("width", "depth", "heads", "block")}
        return Decoder(256, **shape, **options).to(self.run.device)

    def train(self, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler) -> list[Update]:
        """Train for `steps` batches of `windows` random windows; return one record per update.

        Gradients are clipped at the global norm `max_norm`, if the run has such a setting.
        """
        run, limit = self.run, self.run.get("max_norm", math.inf)
        batches = random_windows(self.fit, run["block"], run["windows"], run["steps"], run.generator("order"))
        updates = train(model, batches, optimizer, loss=next_symbol_loss, max_norm=limit, scheduler=scheduler)
        return list(updates)

    def nll(self, model: nn.Module) -> Float[Tensor, ""]:
        """Return the negative log likelihood of the held-out windows in nats per byte, in evaluation mode."""
        return next_symbol_loss(model.eval()(self.symbols), self.targets).detach()


def load_text(run: Run) -> ByteText:
    """Load the text that the setting `data` names, split by the seed; judge on `n_eval` windows."""
    text = torch.tensor(data.load(run["data"]).X, dtype=torch.long, device=run.device)
    fit, held_out = split_text(text, run.rng("split"), tuning=run.tuning)
    return ByteText(run, fit, *even_windows(held_out, run["block"], run["n_eval"]))
