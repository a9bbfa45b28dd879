"""A study of your own: compare AdamP with SGD on a small network and the breast-cancer data.

    trueup run examples/my_study.py

A study is a file that defines `study = Study(...)`. It needs no registration.
"""

import torch
from torch import nn

from trueup import data
from trueup.lab import Arm, Axis, Claim, Figure, Metric, Run, Study, difference
from trueup.optim import AdamP


class TwoBranches(nn.Module):
    """A small model; any model that trains will do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(30)
        self.wide, self.deep = nn.Linear(30, 1), nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return (self.wide(x) + self.deep(x)).squeeze(1)


OPTIMIZERS = {
    "sgd": lambda params, lr: torch.optim.SGD(params, lr=30 * lr),
    "adamp": lambda params, lr: AdamP(params, lr=lr),
    "adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
}


def cell(run: Run) -> dict[str, object]:
    """Train once. `run` holds the settings and draws the random numbers that all arms share."""
    table = data.load("breast-cancer")
    fit, held_out = run.split(table.y, train=300, test=269)
    X, y = torch.tensor(table.X, dtype=torch.float32), torch.tensor(table.y, dtype=torch.float32)
    torch.manual_seed(run.torch_seed("init"))
    model, losses = TwoBranches(), []
    optimizer = OPTIMIZERS[run.arm](model.parameters(), run["lr"])
    order = run.generator("order")
    for _ in range(run["epochs"]):
        for rows in torch.randperm(len(fit), generator=order).split(30):
            loss = nn.functional.binary_cross_entropy_with_logits(model(X[fit[rows]]), y[fit[rows]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        accuracy = ((model(X[held_out]) > 0) == (y[held_out] > 0.5)).float().mean()
    return {"accuracy": accuracy, "loss": losses}


study = Study(
    slug="my-study",
    question="Does AdamP train this network better than SGD?",
    cell=cell,
    metrics=[Metric("accuracy", higher=True, worst=0.5, unit="%")],
    arms=[
        Arm("sgd", "baseline"),
        Arm("adamp", "method"),
        Arm("adam", "control", label="plain Adam: is it the projection, or just adaptivity?"),
    ],
    tune=[Axis("lr", (1e-3, 3e-3, 1e-2))],
    scales={"smoke": {"epochs": 3}, "desk": {"epochs": 10}},
    claims=[
        Claim(
            "adamp-beats-sgd",
            "AdamP reaches a higher test accuracy than SGD.",
            difference("adamp", "sgd", "accuracy"),
            min_effect=0.01,
            why="one point is about 3 of 269 patients",
            primary=True,
        )
    ],
    figures=[Figure("Training loss", "loss", x="step", log_y=True)],
    data=["breast-cancer"],
    tested_on="breast-cancer, 300 patients, a network of 500 parameters",
)
