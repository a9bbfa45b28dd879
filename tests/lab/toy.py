"""A study without training, quick and with known effects, and an engine that runs cells in this process."""

from pathlib import Path

from trueup.lab._cell import execute

STUDY = """
import numpy as np
from trueup.lab import Arm, Axis, Claim, Condition, ExactClaim, Figure, Metric, Stage, Study
from trueup.lab import difference, equivalence, non_inferiority

GAIN = {gain}
NOISE = {noise}

def build(run):
    return {{"shift": np.array([run.rng("stage").normal()])}}

def cell(run):
    {trouble}
    noise = run.rng("noise " + run.arm).normal() * NOISE
    base = run.inputs["teacher"]["shift"][0] + run.rng("shared").normal()
    best = {best}
    bonus = {{"plain": 0.0, "ours": GAIN, "control": {control}}}[run.arm]
    score = base + bonus - abs(np.log10(run["lr"] / best)) + noise
    return {{"score": score, "curve": [0.0, score]}}

study = Study(
    slug="toy",
    question="Is ours better than plain?",
    cell=cell,
    metrics=[Metric("score", higher=True, worst=-50.0)],
    arms=[Arm("plain", "baseline"), Arm("ours", "method"), Arm("control", "control")],
    conditions=[Condition("size", (1, 2))],
    tune=[Axis("lr", (0.01, 0.1, 1.0))],
    stages=[Stage("teacher", build)],
    scales={{"smoke": {{}}, "desk": {{}}}},
    claims=[
        Claim("better", "Ours beats plain.", difference("ours", "plain", "score"), min_effect=0.1,
              why="a tenth", primary=True),
        Claim("same", "The control equals plain.", equivalence("control", "plain", "score"), min_effect=0.5,
              why="a half", requires=["better"]),
        Claim("no-loss", "Ours is not worse.", non_inferiority("ours", "plain", "score"), min_effect=0.1,
              why="a tenth"),
        ExactClaim("sum", "One and one are two.", deviation=lambda a: abs(1 + a - 2),
                   negative_control=lambda a: abs(1 + a - 3), control_label="three",
                   instances={{"one": {{"a": 1}}}}, tolerance=0.0),
    ],
    figures=[Figure("Score", "score"), Figure("Curve", "curve", x="step")],
    protocol={protocol},
    protocols={{n: "changed" for n in range(1, {protocol})}},
)
"""


def write_toy(
    folder: Path, *, gain=1.0, noise=0.2, control=0.0, best=0.1, trouble="pass", protocol=1, name="toy.py"
) -> str:
    """Write a toy study file with these effects, and return its path."""
    path = folder / name
    path.write_text(
        STUDY.format(gain=gain, noise=noise, control=control, best=best, trouble=trouble, protocol=protocol)
    )
    return str(path)


class InlineEngine:
    """Run each task in this process; after `stop_after` cells raise KeyboardInterrupt."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.done = []
        self.stop_after = stop_after

    def map(self, tasks):
        for task in tasks:
            if self.stop_after is not None and len(self.done) >= self.stop_after:
                raise KeyboardInterrupt
            self.done.append(task.cell)
            yield task, execute(task.ref.load(), task.cell, dict(task.inputs), task.device, task.artefact)

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
