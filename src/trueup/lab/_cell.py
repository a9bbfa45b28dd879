"""Cells (study x scale x condition x arm x hyper x seed), and the function that computes one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from trueup._atomic_write import atomic_write
from trueup.lab._errors import StudyError
from trueup.lab._run import Kind, Run, run_of, seed_global_generators
from trueup.lab._scoring import score
from trueup.lab._spec import CostClaim, ExactClaim, Study, Value

Items: TypeAlias = tuple[tuple[str, Value], ...]


def items(mapping: Mapping[str, Value]) -> Items:
    """Return a dictionary as a hashable key that does not depend on the order of insertion."""
    return tuple(sorted(mapping.items()))


@dataclass(frozen=True)
class Cell:
    """The identity of one unit of work.

    `arm` holds the name of a stage, and the name of an exact or cost claim.
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
        """Return the cell as canonical JSON; equal cells have equal keys."""
        return json.dumps(asdict(self), sort_keys=True)

    def __str__(self) -> str:
        parts = [self.arm, *(f"{k}={v}" for k, v in (*self.condition, *self.hyper)), self.instance]
        seed = f" seed {self.seed}" if self.kind in ("tune", "report", "stage") else ""
        return " ".join(p for p in parts if p) + seed


@dataclass(frozen=True)
class CellResult:
    """The result of a cell."""

    status: Literal["ok", "diverged", "failed"]
    numbers: dict[str, float] = field(default_factory=dict)  # scored metrics, and other finite numbers
    series: dict[str, list[float]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    error: str = ""  # traceback of a failed cell
    seconds: float = 0.0  # wall time, for planning; never evidence
    cpu_seconds: float = 0.0  # of all threads of the process; 0 in results of older versions
    peak_memory: int | None = None  # bytes above the start of the cell; None: not measured
    environment: dict[str, str] = field(default_factory=dict)
    path: str = ""  # artefact of a stage


def execute(
    study: Study, cell: Cell, inputs: Mapping[str, str] | None = None, device: str = "cpu", artefact: str = ""
) -> CellResult:
    """Compute one cell. Every exception becomes a `failed` result with its traceback.

    Args:
        inputs: stage name -> `.npz` file.
        artefact: the file to which a stage's arrays are written.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        loaded = {name: dict(np.load(path, allow_pickle=False)) for name, path in (inputs or {}).items()}
        run = run_of(study, cell, loaded, device)
        with _globals_restored():
            result = _compute(study, cell, run, artefact)
    except Exception:
        result = CellResult("failed", error=traceback.format_exc())
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return replace(result, seconds=seconds, cpu_seconds=cpu_seconds)


@contextlib.contextmanager
def _globals_restored() -> Iterator[None]:
    """Restore the settings of the process that a cell may change, so that the next cell does not see them."""
    import torch

    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    deterministic = _deterministic()
    precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    mkldnn, recursion = torch.backends.mkldnn.enabled, sys.getrecursionlimit()
    numpy_errors, variables, folder = np.geterr(), dict(os.environ), _working_directory()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
        torch.set_flush_denormal(False)  # torch has no getter; this is the default
        if _deterministic() != deterministic:  # the call imports half of torch's compiler
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.set_float32_matmul_precision(precision)
        if torch.get_default_device() != device:  # setting one makes every call slower
            torch.set_default_device(None if device.type == "cpu" else device)
        if cudnn != (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark):
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if mkldnn != torch.backends.mkldnn.enabled:
            torch.backends.mkldnn.enabled = mkldnn
        sys.setrecursionlimit(recursion)
        np.seterr(**numpy_errors)
        if dict(os.environ) != variables:
            os.environ.clear()
            os.environ.update(variables)
        if folder is not None and folder != _working_directory():
            with contextlib.suppress(OSError):  # it may have been removed
                os.chdir(folder)


def _deterministic() -> tuple[bool, bool]:
    """Return whether torch uses deterministic algorithms, and whether it only warns about others."""
    import torch

    enabled = torch.are_deterministic_algorithms_enabled()
    return enabled, torch.is_deterministic_algorithms_warn_only_enabled()


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _compute(study: Study, cell: Cell, run: Run, artefact: str) -> CellResult:
    if cell.kind == "stage":
        return _stage(study, cell, run, artefact)
    seed_global_generators(run, "torch")
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
        # JSON has no NaN and no infinity: without a number the claim fails, as it must
        return CellResult("ok", numbers={"deviation": value} if math.isfinite(value) else {})
    if cell.kind == "cost":
        claim = study.claim(cell.arm)
        assert isinstance(claim, CostClaim)
        return CellResult("ok", series={"log_ratio": _interleaved(claim)})
    assert study.cell is not None
    returned = study.cell(run)
    if not isinstance(returned, Mapping):
        raise StudyError(f"the cell function must return a dictionary, got {type(returned).__name__}")
    scored = score(study.metrics, returned)
    for name in (*scored.numbers, *scored.series, *scored.arrays):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise StudyError(
                f"the cell function returned the key {name!r}, which is not valid Unicode; rename it"
            ) from None
    status: Literal["ok", "diverged"] = "diverged" if scored.diverged else "ok"
    return CellResult(status, scored.numbers, scored.series, scored.arrays)


def _stage(study: Study, cell: Cell, run: Run, artefact: str) -> CellResult:
    stage = next(s for s in study.stages if s.name == cell.arm)
    seed_global_generators(run, "stage/" + stage.name)
    made = stage.build(run)
    arrays = {k: v.detach().cpu().numpy() if hasattr(v, "detach") else np.asarray(v) for k, v in made.items()}
    bad = [k for k, v in arrays.items() if v.dtype.kind not in "fiubU"]
    if bad:
        raise StudyError(
            f"stage {stage.name!r} returned {bad[0]!r} of {type(made[bad[0]]).__name__}; return arrays"
        )
    target = Path(artefact)
    writer = f"{platform.node()}-{os.getpid()}-"  # read by `clear_leftovers`
    atomic_write(target, lambda file: np.savez(file, **arrays), writer)  # type: ignore[arg-type]
    return CellResult("ok", path=str(target))


def clear_leftovers(folder: Path) -> None:
    """Remove partly written artefacts whose writers were killed.

    A file's name holds its writer (machine, process, a random suffix), so that files which a live process or
    another machine may be writing stay.
    """
    for file in folder.glob("*.part"):
        writer = re.fullmatch(rf"{re.escape(platform.node())}-(\d+)-\w+\.part", file.name)
        if writer and not is_alive(int(writer[1])):
            file.unlink(missing_ok=True)  # another run may have removed it


def is_alive(process: int) -> bool:
    """Return whether a process of this machine is running."""
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
    """Return log(ours / peer) of every round; the order alternates, so that neither always runs second."""
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


# The instructions that a library uses decide the last bits of its sums.
INSTRUCTION_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OPENBLAS_CORETYPE")


def environment(threads: int, device: str) -> dict[str, str]:
    """Return what decides a cell's last bits besides its code: libraries, threads, processor and so on."""
    import scipy
    import sklearn
    import torch

    import trueup

    name = ""
    if device.startswith("cuda") and torch.cuda.is_available():  # a report may be written on another machine
        name = torch.cuda.get_device_name(device)
    return {
        "trueup": trueup.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "cpu": _cpu_name(),
        "cpu_family": _cpu_family(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(threads),
        "device": f"{device} {name}".strip(),
        **{name: os.environ.get(name, "") for name in INSTRUCTION_VARIABLES},
    }


def _cpu_name() -> str:
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _cpu_family() -> str:
    """Return vendor, family and model ("AuthenticAMD 25 1"); cloud machines hide the marketing name."""
    return " ".join(filter(None, map(_cpu_field, ("vendor_id", "cpu family", "model"))))


def _cpu_field(name: str) -> str:
    """Return a field of the first processor in Linux's `/proc/cpuinfo`; empty elsewhere."""
    try:
        found = re.search(rf"^{name}\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def pinned_instructions() -> dict[str, str]:
    """Return environment variables with which x86-64 machines compute alike, as far as libraries promise it.

    Empty on other machines, and on those without AVX2.
    """
    if " avx2 " not in f" {_cpu_field('flags')} ":
        return {}
    return dict(zip(INSTRUCTION_VARIABLES, ("avx2", "AVX2", "AVX2", "Haswell"), strict=True))
