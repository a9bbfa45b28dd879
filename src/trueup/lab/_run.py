"""The argument of a cell function: its settings, its split of the data and its generators, all from the seed.

This module decides what a cell computes, so it counts in every study's fingerprint.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from trueup.lab._errors import StudyError
from trueup.lab._seeds import child_sequence

if TYPE_CHECKING:
    import torch

    from trueup.lab._cell import Cell
    from trueup.lab._spec import Study

Kind: TypeAlias = Literal["tune", "report", "stage", "exact", "exact-control", "cost"]


@dataclass(frozen=True)
class Run:
    """The argument of a cell function: settings by name, the seed's generators, the split, stages' outputs.

    Settings are looked up in this order: hyperparameters, condition, arm, scale.

    >>> run = Run("demo", "smoke", "tune", "sgd", {"lr": 0.1, "epochs": 2}, seed=3)
    >>> run["lr"], run.get("momentum", 0.9), run.tuning
    (0.1, 0.9, True)
    """

    study: str
    scale: str
    kind: Kind
    arm: str
    settings: Mapping[str, Any]
    seed: int
    device: str = "cpu"
    inputs: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    instance: str = ""

    @property
    def tuning(self) -> bool:
        """Return whether this is a trial, judged on validation rows, or a stage that trials share."""
        return self.kind == "tune" or (self.kind == "stage" and self.instance == "tune")

    def __getitem__(self, name: str) -> Any:
        try:
            return self.settings[name]
        except KeyError:
            known = ", ".join(sorted(self.settings)) or "none"
            raise StudyError(
                f"{self.study}: no setting {name!r} for arm {self.arm!r} at scale {self.scale!r}; "
                f"known: {known}"
            ) from None

    def get(self, name: str, default: Any = None) -> Any:
        return self.settings.get(name, default)

    def rng(self, name: str) -> np.random.Generator:
        """Return a NumPy generator for one use; it is the same in every arm of a seed."""
        return np.random.default_rng(child_sequence(self.seed, name))

    def generator(self, name: str) -> torch.Generator:
        """Return a CPU `torch.Generator` for one use; it is the same in every arm of a seed."""
        import torch

        return torch.Generator().manual_seed(self.torch_seed(name))

    def torch_seed(self, name: str) -> int:
        """Return a seed for `torch.manual_seed`, say before building a net: `run.torch_seed("init")`."""
        return int(child_sequence(self.seed, name).generate_state(1, np.uint64)[0] >> 1)

    def split(
        self, y: np.ndarray | None, *, train: int, test: int, validation: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return stratified row numbers `(fit, held_out)`, drawn by the seed and equal across arms.

        A report cell fits on `train` rows and is judged on `test` others. A tuning cell never sees the test
        rows: its `validation` rows (default: a quarter) come out of the training rows, and it fits on the
        rest.
        """
        if y is None:
            raise StudyError("these data have no labels to split by")
        y = np.asarray(y)
        if train < 2 or test < 1 or train + test > len(y):
            raise StudyError(f"split of {len(y)} rows into {train} for training and {test} for testing")
        fit, held_out = self._stratified(y, np.arange(len(y)), train, test, "split")
        if not self.tuning:
            return fit, held_out
        n = train // 4 if validation is None else validation
        return self._stratified(y, fit, train - n, n, "validation")

    def _stratified(
        self, y: np.ndarray, rows: np.ndarray, n_first: int, n_second: int, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.model_selection import train_test_split

        state = int(child_sequence(self.seed, name).generate_state(1)[0])
        first, second = train_test_split(
            rows, train_size=n_first, test_size=n_second, random_state=state, stratify=y[rows]
        )
        return first, second


def run_of(study: Study, cell: Cell, inputs: Mapping[str, Mapping[str, np.ndarray]], device: str) -> Run:
    """Return the `Run` of a cell, with its settings merged."""
    settings: dict[str, Any] = dict(study.scales[cell.scale])
    if cell.kind in ("tune", "report"):
        settings |= dict(study.arm(cell.arm).settings)
    settings |= dict(cell.condition) | dict(cell.hyper)
    return Run(
        cell.study, cell.scale, cell.kind, cell.arm, settings, cell.seed, device, inputs, cell.instance
    )


def seed_global_generators(run: Run, name: str) -> None:
    """Seed the global generators of torch, NumPy and Python, which a cell may use unknowingly.

    Cells of a worker share them, so a cell's draws would otherwise depend on the cells before it.
    """
    import torch

    torch.manual_seed(run.torch_seed(name))
    np.random.seed(run.torch_seed(name) % 2**32)  # noqa: NPY002
    random.seed(run.torch_seed(name))
