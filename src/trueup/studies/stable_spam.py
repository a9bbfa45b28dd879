"""Test whether StableSPAM trains a language model in four bits better than Adam does, even than Adam in full
precision, and less sensitively to the learning rate. Huang et al. 2025, arXiv 2502.17055."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.optim import Adam, Optimizer

from trueup.lab import Arm, Axis, Claim, Condition, ExactClaim, Figure, Metric, Run, Study, difference, spread
from trueup.optim import SPAM, AdaClip, AdaGN, MomentumReset, StableSPAM
from trueup.quantization import quantize_linear_
from trueup.studies._protocols.byte_text import NLL, load_text
from trueup.studies._protocols.synthetic import Make, spike_progress
from trueup.training import warmup_cosine

# The authors' settings for 4-bit training; averages over 1,000 of their 20,000 steps are over 100 of our 600.
# The reset interval is longer, a third of the steps: in a pilot, resets every 50 steps did harm.
BETAS, GAMMAS, INTERVAL = (0.9, 0.99), (0.7, 0.9, 0.99), 200
RESETS, CLIP = partial(MomentumReset, interval=INTERVAL), partial(AdaClip, gamma=GAMMAS[2])
NORM, UNIT = partial(AdaGN, gammas=GAMMAS[:2]), partial(AdaGN, gammas=(0.0, 0.0))  # unit: divided by its norm
PARTS: dict[str, Any] = {"unit": [UNIT], "resets": [RESETS], "clip": [CLIP, RESETS], "norm": [NORM, RESETS]}
BASES: dict[str, Make] = {
    "adam": partial(Adam, fused=True),
    "spam": partial(SPAM, spike_threshold=2000, warmup_steps=60, reset_interval=INTERVAL, grad_accu_steps=8),
    "stable-spam": partial(StableSPAM, gammas=GAMMAS, reset_interval=INTERVAL),
}


def make_optimizer(name: str, params: Any, lr: float, steps: int) -> Optimizer:
    """Build an arm's optimizer, such as `"adam, clip"`: a base and what is added to it."""
    base, _, parts = name.partition(", ")
    optimizer = BASES[base](params, lr, BETAS, **({"total_steps": steps} if base == "stable-spam" else {}))
    for add in PARTS.get(parts, ()):
        add(optimizer)
    return optimizer


def cell(run: Run) -> dict[str, Any]:
    """Train a language model of bytes in 4 or 32 bits; measure NLL and how the gradient's norm varies."""
    text, steps = load_text(run), run["steps"]
    model = text.decoder(norm_first=True)
    if run["bits"] == 4:
        quantize_linear_(model, "fp4", group_size=run["width"], keep_top=0, skip=["head"])
    optimizer = make_optimizer(run["optimizer"], model.parameters(), run["lr"] * run["lr_factor"], steps)
    updates = text.train(model, optimizer, warmup_cosine(optimizer, steps))
    norms = torch.tensor([update.grad_norm for update in updates[steps // 10 :]])
    return {"nll": text.nll(model), "variation": norms.std() / norms.mean(), "grad_norm": norms.tolist()}


def below_rivals(make: Make, seed: int) -> float:
    """Return by how much this progress falls short of 0.85, or of a rival's."""
    progress = partial(spike_progress, seed=seed)
    best = max(0.85, progress(Adam), progress(Adam, max_norm=30.0), progress(partial(SPAM, reset_interval=0)))
    return max(0.0, best - progress(make))


BEST, SHOWN = {"lr_factor": 1}, ("adam", "fp4-adam", "fp4-stable-spam")
SHAPE = {"width": 48, "depth": 1, "heads": 4, "block": 32}
SMOKE = {"data": "apache-licence", "windows": 2, "steps": 10, "n_eval": 4, "block": 16}
DESK = {"data": "python-manual", "bits": 4, "windows": 8, "steps": 600, "n_eval": 200} | SHAPE

study = Study(
    slug="stable-spam",
    question="Does StableSPAM train in four bits better than Adam does, even than Adam in full precision?",
    cell=cell,
    metrics=(NLL, Metric("variation", higher=False, worst=100.0, label="variation of the gradient's norm")),
    arms=(
        Arm("adam", "baseline", {"optimizer": "adam", "bits": 32}, label="Adam, full precision"),
        Arm("fp4-adam", "baseline", {"optimizer": "adam"}, label="Adam, FP4"),
        Arm("fp4-adam-clip", "baseline", {"optimizer": "adam", "max_norm": 1.0}, label="Adam, clipped, FP4"),
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
        Figure("Gradient norm", "grad_norm", x="step", arms=SHOWN, log_y=True),
    ),
    data={"smoke": ["apache-licence"], "desk": ["python-manual"]},
    tested_on="the Python manual, a 1-layer decoder of bytes, FP4 simulated, 600 steps of 256 characters",
    paper_setup="LLaMA of 60M to 1B parameters on C4, FP4 and INT4 simulated, 20,000 steps of 131,072 tokens",
)
