"""Test whether measures of calibration agree, whether the number of bins matters, and whether temperature
scaling keeps the ranking of networks. Tao, Zhu, Guo, Dong, Xu 2024, arXiv 2308.11838."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from trueup.calibration import CalibrationReport, TemperatureScaler
from trueup.lab import Arm, Claim, Contrast, Figure, Metric, Run, Stage, Study, custom
from trueup.models import mlp
from trueup.studies._protocols.digits import load_images

BINS = (5, 15, 50, 100)
RIVALS = ("ece_5", "ece_50", "ece_100", "ece_em_15", "ks", "mmce")  # of ECE with 15 bins


def population(run: Run) -> dict[str, Tensor]:
    """Train networks of random width, depth, length and weight decay; return logits on held-out rows."""
    images = load_images(run, shape=(-1,))
    rng, logits = run.rng("population"), []
    torch.manual_seed(run.torch_seed("init"))
    for _ in range(run["networks"]):
        hidden = (int(2 ** rng.uniform(3, 7)),) * int(rng.integers(1, 4))
        model = mlp(images.X.shape[1], hidden, 10, norm=lambda _: nn.Identity()).to(run.device)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=10 ** rng.uniform(-3, -2), weight_decay=10 ** rng.uniform(-3, -1)
        )
        for _ in images.train(model, optimizer, run["batch"], int(rng.integers(*run["epochs"]))):
            pass
        with torch.no_grad():
            logits.append(model.eval()(images.X_held_out))
    return {"logits": torch.stack(logits), "target": images.y_held_out}


def cell(run: Run) -> dict[str, Any]:
    """Measure every network on the test rows, before or after a temperature fitted on other rows."""
    logits, target = (torch.as_tensor(run.inputs["population"][name]) for name in ("logits", "target"))
    fit, test, generator = slice(run["n_fit"]), slice(run["n_fit"], None), run.generator("labels")
    measured: dict[str, list[float]] = {}
    for z in logits:
        labels = target[test]
        before = CalibrationReport(z[test], labels, from_logits=True, n_bins=(15,)).to_dict()
        if run["scaled"]:
            z = TemperatureScaler().fit(z[fit], target[fit]).transform(z)
        if run["drawn"]:  # labels that the scaled probabilities describe exactly
            labels = z[test].double().softmax(1).multinomial(1, generator=generator).squeeze(1)
        report = CalibrationReport(z[test], labels, from_logits=True, n_bins=BINS).to_dict()
        for name, value in {**report, "ece_before": before["ece_15"]}.items():
            measured.setdefault(name, []).append(value)
    mean = {name: float(np.mean(values)) for name, values in measured.items()}
    return {
        "disagreement": 1 - float(np.mean([tau(measured, "ece_15", name) for name in RIVALS])),
        "mce_disagreement": 1 - tau(measured, "ece_15", "mce_15"),
        "bin_effect": float(np.log(mean["ece_100"] / mean["ece_5"])),
        "reordering": 1 - tau(measured, "ece_before", "ece_15"),
        "nll": mean["nll"],
        "ece_by_bins": [mean[f"ece_{bins}"] for bins in BINS],
        "ece_15": measured["ece_15"],
        "ece_before": measured["ece_before"],
    }


def tau(measured: dict[str, list[float]], x: str, y: str) -> float:
    """Return Kendall's tau of two measures over the networks, 0 if one is constant."""
    return float(np.nan_to_num(kendalltau(measured[x], measured[y]).statistic))


DESK = {"data": "fashion-mnist", "n_train": 500, "n_test": 3000, "n_fit": 1000, "networks": 30, "batch": 100}
SMOKE = {"data": "digits", "n_train": 100, "n_test": 400, "n_fit": 100, "networks": 6, "batch": 25}


def larger(metric: str, arm: str = "after", rival: str = "") -> Contrast:
    """Claim that a number is larger in one arm than in a rival, or than 0 if there is none."""
    return custom(
        lambda cells: cells.mean(arm, metric) - (cells.mean(rival, metric) if rival else 0.0),
        (arm, rival) if rival else (arm,),
        metrics=(metric,),
        text=f"{arm} - {rival}" if rival else arm,
        against=lambda control: larger(metric, arm, control),
    )


study = Study(
    slug="calibration-benchmark",
    question="Do measures of calibration agree, before and after temperature scaling?",
    cell=cell,
    metrics=(
        Metric("disagreement", higher=False, worst=2.0, label="1 - Kendall's tau with ECE"),
        Metric("mce_disagreement", higher=False, worst=2.0, label="MCE: 1 - Kendall's tau with ECE"),
        Metric("bin_effect", higher=False, worst=10.0, label="log of ECE with 100 bins / with 5"),
        Metric("reordering", higher=False, worst=2.0, label="1 - Kendall's tau with ECE before scaling"),
        Metric("nll", higher=False, worst=50.0, label="mean NLL of the networks"),
    ),
    arms=(
        Arm("before", "baseline", {"scaled": False, "drawn": False}, label="networks as trained"),
        Arm("after", "method", {"scaled": True, "drawn": False}, label="after temperature scaling"),
        Arm("noise", "control", {"scaled": True, "drawn": True}, label="after, labels drawn from the model"),
    ),
    stages=(Stage("population", population),),
    scales={"smoke": DESK | SMOKE | {"epochs": (4, 10)}, "desk": DESK | {"epochs": (10, 60)}},
    claims=(
        Claim(
            "agreement-lost",
            "Measures that rank networks alike before temperature scaling rank them differently after it.",
            larger("disagreement", rival="before"),
            min_effect=0.1,
            why="a tenth of Kendall's tau reorders one pair of networks in twenty",
            primary=True,
        ),
        Claim(
            "bins-matter",
            "After temperature scaling the number of bins changes the size of ECE more than before.",
            larger("bin_effect", rival="before"),
            min_effect=0.4055,
            why="log 1.5: another number of bins changes a reported ECE by half",
            primary=True,
        ),
        Claim(
            "ranking-lost",
            "The ranking after temperature scaling is not the ranking before: Kendall's tau is below 0.5.",
            larger("reordering"),
            min_effect=0.5,
            why="above a tau of 0.5 three pairs of networks in four keep their order",
            primary=True,
        ),
        Claim(
            "mce-apart",
            "Already before scaling MCE ranks networks otherwise than ECE does: Kendall's tau is below 0.6.",
            larger("mce_disagreement", "before"),
            min_effect=0.4,
            why="the other measures reach a tau of about 0.9 in pilots",
            controls=(),
        ),
    ),
    figures=(
        Figure("Disagreement of the measures", "disagreement"),
        Figure("Mean ECE with 5, 15, 50 and 100 bins", "ece_by_bins", x="step", caption="In this order."),
        Figure("Every network before and after", "ece_15", x="ece_before", arms=("before", "after")),
    ),
    data={"smoke": ("digits",), "desk": ("fashion-mnist",)},
    tested_on="fashion-mnist, 30 random small networks per seed trained on 500 images",
    paper_setup="117,702 NATS-Bench networks on CIFAR-10, CIFAR-100 and ImageNet16-120",
)
