"""A cell: study x scale x condition x arm x hyper x seed, and the pure function that computes it."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from trueup.lab.seeds import child_sequence
from trueup.lab.spec import CostClaim, ExactClaim, Study, StudyError, Value, as_number
from trueup.whole_file import write_whole

if TYPE_CHECKING:
    import torch

Kind: TypeAlias = Literal["tune", "report", "stage", "exact", "exact-control", "cost"]
Items: TypeAlias = tuple[tuple[str, Value], ...]

MAX_RESULT_BYTES = 256 * 1024


def items(mapping: Mapping[str, Value]) -> Items:
    """A dictionary as a hashable, order-free key."""
    return tuple(sorted(mapping.items()))


@dataclass(frozen=True)
class Cell:
    """The identity of one unit of work.

    ``arm`` is the stage's name for a stage and the claim's for an exact or cost claim.
    """

    study: str
    scale: str
    protocol: int
    kind: Kind
    arm: str = ""
    condition: Items = ()
    hyper: Items = ()
    seed: int = 0
    instance: str = ""

    def key(self) -> str:
        """Canonical JSON; equal cells have equal keys."""
        return json.dumps(asdict(self), sort_keys=True)

    def __str__(self) -> str:
        parts = [self.arm, *(f"{k}={v}" for k, v in (*self.condition, *self.hyper)), self.instance]
        seed = f" seed {self.seed}" if self.kind in ("tune", "report", "stage") else ""
        return " ".join(p for p in parts if p) + seed


@dataclass(frozen=True)
class CellResult:
    """What a cell returned; see the fields' comments."""

    status: Literal["ok", "diverged", "failed"]
    numbers: dict[str, float] = field(default_factory=dict)  # scored metrics, and other finite numbers
    series: dict[str, list[float]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    error: str = ""  # traceback of a failed cell
    seconds: float = 0.0  # for planning; never evidence
    peak_memory: int | None = None  # bytes above the start of the cell; None: not measured
    environment: dict[str, str] = field(default_factory=dict)
    path: str = ""  # artefact of a stage


@dataclass(frozen=True)
class Run:
    """What a cell function gets: settings by name, the seed's generators, the split, the stages' outputs.

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
        """Is this a trial, judged on validation rows (or a stage that trials share)?"""
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
        """A NumPy generator for one use; the same in every arm of a seed."""
        return np.random.default_rng(child_sequence(self.seed, name))

    def generator(self, name: str) -> torch.Generator:
        """A CPU ``torch.Generator`` for one use; the same in every arm of a seed."""
        import torch

        return torch.Generator().manual_seed(self.torch_seed(name))

    def torch_seed(self, name: str) -> int:
        """A seed for ``torch.manual_seed``, say before building a net: ``run.torch_seed("init")``."""
        return int(child_sequence(self.seed, name).generate_state(1, np.uint64)[0] >> 1)

    def split(
        self, y: np.ndarray | None, *, train: int, test: int, validation: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Stratified row numbers ``(fit, held_out)``, drawn by the seed and equal across arms.

        A report cell fits on ``train`` rows and is judged on ``test`` others. A tuning cell never sees the
        test rows: ``validation`` rows (default: a quarter) come out of the training rows, and it fits on
        the rest.
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
    """The settings of a cell, merged."""
    settings: dict[str, Any] = dict(study.scales[cell.scale])
    if cell.kind in ("tune", "report"):
        settings |= dict(study.arm(cell.arm).settings)
    settings |= dict(cell.condition) | dict(cell.hyper)
    return Run(
        cell.study, cell.scale, cell.kind, cell.arm, settings, cell.seed, device, inputs, cell.instance
    )


def execute(
    study: Study, cell: Cell, inputs: Mapping[str, str] | None = None, device: str = "cpu", artefact: str = ""
) -> CellResult:
    """Compute one cell. Every exception becomes a ``failed`` result with its traceback.

    Args:
        inputs: stage name -> ``.npz`` file.
        artefact: where a stage's arrays are written.
    """
    started = time.perf_counter()
    try:
        loaded = {name: dict(np.load(path, allow_pickle=False)) for name, path in (inputs or {}).items()}
        run = run_of(study, cell, loaded, device)
        result = _compute(study, cell, run, artefact)
    except Exception:
        result = CellResult("failed", error=traceback.format_exc())
    return CellResult(**{**vars(result), "seconds": time.perf_counter() - started})


def _compute(study: Study, cell: Cell, run: Run, artefact: str) -> CellResult:
    if cell.kind == "stage":
        return _stage(study, cell, run, artefact)
    if cell.kind in ("exact", "exact-control"):
        claim = study.claim(cell.arm)
        assert isinstance(claim, ExactClaim)
        function = claim.deviation if cell.kind == "exact" else claim.negative_control
        value = float(function(**claim.instances[cell.instance]))
        if value < 0:
            raise StudyError(
                f"exact claim {cell.arm!r}, instance {cell.instance!r}: a deviation must be >= 0, got "
                f"{value:g}, which would pass any tolerance; return its absolute value"
            )
        # JSON has no NaN and no infinity: no number is stored, which fails the claim as they do
        return CellResult("ok", numbers={"deviation": value} if math.isfinite(value) else {})
    if cell.kind == "cost":
        claim = study.claim(cell.arm)
        assert isinstance(claim, CostClaim)
        return CellResult("ok", series={"log_ratio": _interleaved(claim)})
    import torch

    torch.manual_seed(run.torch_seed("torch"))
    assert study.cell is not None
    returned = study.cell(run)
    if not isinstance(returned, Mapping):
        raise StudyError(f"the cell function must return a dictionary, got {type(returned).__name__}")
    return score(study, returned)


def score(study: Study, returned: Mapping[str, Any]) -> CellResult:
    """Sort what a cell function returned into numbers, series and arrays, and score its metrics."""
    numbers: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in returned.items():
        number = as_number(value)
        if number is not None:
            numbers[name] = number
            continue
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise StudyError(
                f"cell returned {name!r} of {type(value).__name__}; return numbers, series or arrays"
            )
        if array.ndim == 1:
            series[name] = array.astype(float).tolist()
        else:
            arrays[name] = array
    missing = [m.name for m in study.metrics if m.name not in numbers]
    if missing:
        raise StudyError(f"the cell function returned no number {missing[0]!r}; got {sorted(returned)}")
    size = 8 * (len(numbers) + sum(map(len, series.values()))) + sum(a.nbytes for a in arrays.values())
    if size > MAX_RESULT_BYTES:
        raise StudyError(
            f"the cell returned {size / 1024:.0f} KB; at most {MAX_RESULT_BYTES // 1024} KB: "
            "thin the series, or make the large part a Stage"
        )
    diverged = False
    for metric in study.metrics:
        numbers[metric.name], bad = metric.score(numbers[metric.name])
        diverged = diverged or bad
    numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return CellResult("diverged" if diverged else "ok", numbers, series, arrays)


def _stage(study: Study, cell: Cell, run: Run, artefact: str) -> CellResult:
    stage = next(s for s in study.stages if s.name == cell.arm)
    import torch

    torch.manual_seed(run.torch_seed("stage/" + stage.name))
    made = stage.build(run)
    arrays = {k: v.detach().cpu().numpy() if hasattr(v, "detach") else np.asarray(v) for k, v in made.items()}
    bad = [k for k, v in arrays.items() if v.dtype.kind not in "fiubU"]
    if bad:
        raise StudyError(
            f"stage {stage.name!r} returned {bad[0]!r} of {type(made[bad[0]]).__name__}; return arrays"
        )
    target = Path(artefact)
    writer = f"{platform.node()}-{os.getpid()}-"  # for `clear_leftovers`
    write_whole(target, lambda file: np.savez(file, **arrays), writer)  # type: ignore[arg-type]
    return CellResult("ok", path=str(target))


def clear_leftovers(folder: Path) -> None:
    """Remove half-written artefacts whose writers were killed.

    A file's name holds its writer (machine, process, a random end): what a live process or another machine
    may be writing stays.
    """
    for file in folder.glob("*.part"):
        writer = re.fullmatch(rf"{re.escape(platform.node())}-(\d+)-\w+\.part", file.name)
        if writer and not _is_alive(int(writer[1])):
            file.unlink(missing_ok=True)  # another run may have been quicker


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _interleaved(claim: CostClaim) -> list[float]:
    """log(ours / peer) of every round; the order alternates so that neither side always runs warm."""
    ours, peer = claim.prepare()
    ours(), peer()
    ratios = []
    for i in range(claim.rounds):
        seconds: dict[str, float] = {}
        pair: Sequence[tuple[str, Any]] = (("ours", ours), ("peer", peer))
        for name, call in pair if i % 2 == 0 else tuple(reversed(pair)):
            start = time.perf_counter()
            call()
            seconds[name] = time.perf_counter() - start
        ratios.append(math.log(seconds["ours"] / seconds["peer"]))
    return ratios


def environment(threads: int, device: str) -> dict[str, str]:
    """What a verdict's reader needs to know of the machine."""
    import torch

    import trueup

    name = ""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    return {
        "trueup": trueup.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "threads": str(threads),
        "device": f"{device} {name}".strip(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
