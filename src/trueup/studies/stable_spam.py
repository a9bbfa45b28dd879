"""Does StableSPAM train a language model in four bits better than Adam does, even than Adam in full
precision, and less sensitively to the learning rate? Huang et al. 2025, arXiv 2502.17055."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from trueup import data
from trueup.lab import Arm, Axis, Claim, Condition, ExactClaim, Figure, Metric, Run, Study, difference, spread
from trueup.models import Decoder
from trueup.optim import SPAM, AdaClip, AdaGN, MomentumReset, StableSPAM
from trueup.quantization import quantize_linear_
from trueup.training import even_windows, next_symbol_loss, random_windows, split_text, train, warmup_cosine

Make = Callable[..., Optimizer]

# The authors' settings for 4-bit training; what they average over 1,000 of 20,000 steps, over 100 of 600. The
# reset interval is longer than that, a third of the steps: in a pilot resets every 50 steps did harm.
BETAS, GAMMAS, INTERVAL = (0.9, 0.99), (0.7, 0.9, 0.99), 200
RESETS, CLIP = partial(MomentumReset, interval=INTERVAL), partial(AdaClip, gamma=GAMMAS[2])
NORM, UNIT = partial(AdaGN, gammas=GAMMAS[:2]), partial(AdaGN, gammas=(0.0, 0.0))  # unit: by its own norm


def adam(params: Iterable[Tensor], lr: float, _: int, parts: Iterable[Callable[..., Any]] = ()) -> Optimizer:
    optimizer = Adam(params, lr, BETAS, fused=True)
    for part in parts:
        part(optimizer)
    return optimizer


OPTIMIZERS: dict[str, Make] = {
    "adam": adam,
    "adam, unit": partial(adam, parts=[UNIT]),
    "adam, resets": partial(adam, parts=[RESETS]),
    "adam, clip": partial(adam, parts=[CLIP, RESETS]),
    "adam, norm": partial(adam, parts=[NORM, RESETS]),
    "spam": lambda params, lr, _: SPAM(
        params, lr, BETAS, spike_threshold=2000, warmup_steps=60, reset_interval=INTERVAL, grad_accu_steps=8
    ),
    "stable-spam": lambda params, lr, steps: StableSPAM(
        params, lr, BETAS, gammas=GAMMAS, reset_interval=INTERVAL, total_steps=steps
    ),
}


def cell(run: Run) -> dict[str, Any]:
    """Train a language model of bytes on windows of one part of a text, judge it on another part."""
    text = torch.tensor(data.load(run["data"]).X, dtype=torch.long, device=run.device)
    fit, held_out = split_text(text, run.rng("split"), tuning=run.tuning)
    block, steps = run["block"], run["steps"]
    torch.manual_seed(run.torch_seed("init"))
    model = Decoder(256, **{name: run[name] for name in SHAPE}, norm_first=True).to(run.device)
    if run["bits"] == 4:
        quantize_linear_(model, "fp4", group_size=run["width"], keep_top=0, skip=["head"])
    optimizer = OPTIMIZERS[run["optimizer"]](model.parameters(), run["lr"] * run["lr_factor"], steps)
    batches = random_windows(fit, block, run["windows"], steps, run.generator("order"))
    options = {"max_norm": run.get("max_norm", math.inf), "scheduler": warmup_cosine(optimizer, steps)}
    updates = list(train(model, batches, optimizer, loss=next_symbol_loss, **options))
    norms = torch.tensor([update.grad_norm for update in updates[steps // 10 :]])
    symbols, targets = even_windows(held_out, block, run["n_eval"])
    nll = next_symbol_loss(model.eval()(symbols), targets).detach()
    return {"nll": nll, "variation": norms.std() / norms.mean(), "grad_norm": norms.tolist()}


def progress_under_spikes(make: Make, seed: int, max_norm: float = math.inf) -> float:
    """How far the entries that spikes hit move in 300 steps, as a share of how far they move without spikes.

    From step 75 on every 25th gradient is a hundred times as large in 5 of 900 entries.
    """
    moved = []
    for size in (100, 1):
        generator = torch.Generator().manual_seed(seed)
        steady = 0.3 * torch.randn(30, 30, generator=generator)
        weight = nn.Parameter(torch.zeros(30, 30))
        optimizer = make([weight], lr=1.0)
        for step in range(1, 301):
            weight.grad = steady + torch.randn(30, 30, generator=generator)
            if step >= 75 and step % 25 == 0:
                weight.grad[0, :5] *= size
            nn.utils.clip_grad_norm_(weight, max_norm)
            optimizer.step()
        moved.append(weight.detach()[0, :5].abs().mean())
    return float(moved[0] / moved[1])


def below_rivals(make: Make, seed: int) -> float:
    """By how much the share falls short of 0.85, or of a rival's."""
    rivals = ((Adam, math.inf), (Adam, 30.0), (partial(SPAM, reset_interval=0), math.inf))
    best = max(progress_under_spikes(rival, seed, limit) for rival, limit in rivals)
    return max(0.0, max(0.85, best) - progress_under_spikes(make, seed))


SHAPE = {"width": 48, "depth": 1, "heads": 4, "block": 32}
DESK = {"data": "python-manual", "bits": 4, "windows": 8, "steps": 600, "n_eval": 200} | SHAPE
SMOKE = {"data": "apache-licence", "windows": 2, "steps": 10, "n_eval": 4, "block": 16}
BEST, SHOWN = {"lr_factor": 1}, ("adam", "fp4-adam", "fp4-stable-spam")

study = Study(
    slug="stable-spam",
    question="Does StableSPAM train in four bits better than Adam does, even than Adam in full precision?",
    cell=cell,
    metrics=(
        Metric("nll", higher=False, worst=math.log(256), unit="nats", label="test nats a character"),
        Metric("variation", higher=False, worst=100.0, label="variation of the gradient's norm"),
    ),
    arms=(
        Arm("adam", "baseline", {"optimizer": "adam", "bits": 32}, label="Adam, full precision"),
        Arm("fp4-adam", "baseline", {"optimizer": "adam"}, label="Adam, FP4"),
        Arm(
            "fp4-adam-clip",
            "baseline",
            {"optimizer": "adam", "max_norm": 1.0},
            label="Adam, norm clipped at 1, FP4",
        ),
        Arm("fp4-spam", "baseline", {"optimizer": "spam"}, label="SPAM, FP4"),
        Arm("fp4-stable-spam", "method", {"optimizer": "stable-spam"}, label="StableSPAM, FP4"),
        Arm("fp4-reset", "ablation", {"optimizer": "adam, resets"}, label="Adam + resets, FP4"),
        Arm("fp4-clip", "ablation", {"optimizer": "adam, clip"}, label="Adam + AdaClip + resets, FP4"),
        Arm("fp4-norm", "ablation", {"optimizer": "adam, norm"}, label="Adam + AdaGN + resets, FP4"),
        Arm("fp4-unit", "control", {"optimizer": "adam, unit"}, label="Adam, gradients of norm 1, FP4"),
    ),
    conditions=(Condition("lr_factor", (1, 3), tuned_at=1),),
    tune=(Axis("lr", (3e-3, 1e-2, 3e-2)),),
    scales={"smoke": DESK | SMOKE, "desk": DESK},
    claims=(
        Claim(
            "four-bits-hurt-adam",
            "Adam does worse in four bits than in full precision.",
            difference("adam", "fp4-adam", "nll", at=BEST),
            min_effect=0.005,
            why="half of the least gain that the title's claim asks for",
            controls=(),
        ),
        Claim(
            "beats-adam",
            "In four bits StableSPAM is better than Adam, each at its best rate.",
            difference("fp4-stable-spam", "fp4-adam", "nll", at=BEST),
            min_effect=0.02,
            why="the paper's 0.09 to 0.23 nats a token in FP4 are 0.02 to 0.05 a character",
            primary=True,
            requires=("four-bits-hurt-adam",),
        ),
        Claim(
            "beats-full-precision",
            "StableSPAM in four bits is better than Adam in full precision, each at its best rate.",
            difference("fp4-stable-spam", "adam", "nll", at=BEST),
            min_effect=0.01,
            why="the paper's 0.07 and 0.09 nats a token, its two larger models in FP4, are 0.015 a character",
            primary=True,
        ),
        Claim(
            "steadier",
            "Three times the best rate harms StableSPAM less than Adam, in four bits.",
            spread("fp4-stable-spam", "fp4-adam", "nll", over="lr_factor", best=1),
            min_effect=0.02,
            why="as much as the gain asked for at the best rate",
            primary=True,
        ),
        Claim(
            "beats-clipping",
            "In four bits StableSPAM is better than Adam with clipped norms, each at its best rate.",
            difference("fp4-stable-spam", "fp4-adam-clip", "nll", at=BEST),
            min_effect=0.02,
            why="the paper's 0.07 to 0.12 nats a token in FP4 are 0.015 to 0.03 a character",
        ),
        Claim(
            "beats-spam",
            "In four bits StableSPAM is better than SPAM, each at its best rate.",
            difference("fp4-stable-spam", "fp4-spam", "nll", at=BEST),
            min_effect=0.005,
            why="the paper's 0.02 to 0.07 nats a token in FP4 are 0.005 to 0.015 a character",
        ),
        ExactClaim(
            "spikes-do-no-harm",
            "Entries that spikes hit move 0.85 times as far as without, and farther than under the rivals.",
            deviation=lambda seed: below_rivals(partial(StableSPAM, reset_interval=0), seed),
            negative_control=lambda seed: below_rivals(Adam, seed),
            control_label="Adam in the place of StableSPAM",
            instances={f"seed {seed}": {"seed": seed} for seed in range(5)},
            tolerance=0.0,
            origin="interpretation",
        ),
    ),
    figures=(
        Figure("At the best rate and at three times it", "nll", x="lr_factor", log_x=True),
        Figure("Norm of the gradient", "grad_norm", x="step", arms=SHOWN, log_y=True),
    ),
    data={"smoke": ["apache-licence"], "desk": ["python-manual"]},
    tested_on="the Python manual, a 1-layer decoder of bytes, FP4 simulated, 600 steps of 256 characters",
    paper_setup="LLaMA of 60M to 1B parameters on C4, FP4 and INT4 simulated, 20,000 steps of 131,072 tokens",
)
