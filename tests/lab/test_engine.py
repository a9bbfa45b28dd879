"""Every task comes back from the engine exactly once, whatever its cell or its worker does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trueup.lab import _engine as engine_module
from trueup.lab._cell import Cell, CellResult
from trueup.lab._engine import EngineError, LocalEngine, StudyRef, Task, _Memory
from trueup.lab._spec import StudyError

STUDY = """
import ctypes, os, signal, sys, time, warnings
from pathlib import Path

import numpy as np
import torch

from trueup.lab import Arm, Claim, Metric, Study, difference
from trueup.lab import _engine as engine

class Unpicklable(Exception):
    def __init__(self, what):
        super().__init__(what)
        self.lock = open(os.devnull)

def spoil():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    torch.backends.mkldnn.enabled = False
    torch.set_flush_denormal(True)
    torch.set_num_threads(3)
    sys.setrecursionlimit(3333)
    np.seterr(all="raise")
    warnings.simplefilter("error")
    os.chdir("/")
    os.environ["OMP_NUM_THREADS"] = "7"
    os.environ["LEFT_BEHIND"] = "1"

def state():
    return {
        "dtype": torch.ones(1, device="cpu").element_size(),
        "meta": torch.ones(1).is_meta,
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision() == "highest",
        "cudnn": torch.backends.cudnn.benchmark,
        "mkldnn": torch.backends.mkldnn.enabled,
        "denormal": bool(torch.full((1,), 1e-308, dtype=torch.float64, device="cpu") / 10 == 0),
        "recursion": sys.getrecursionlimit() == 3333,
        "threads": torch.get_num_threads(),
        "numpy": np.geterr()["divide"] == "raise",
        "warnings": warnings.filters[0][0] == "error",
        "folder": os.getcwd() == "/",
        "omp": int(os.environ["OMP_NUM_THREADS"]),
        "left": "LEFT_BEHIND" in os.environ,
    }

def cell(run):
    what, folder = run["what"], Path(__file__).parent
    with open(folder / f"started-{what}-{run.seed}", "a") as file:
        file.write(f"{os.getpid()}\\n")
    if what == "kill-once" and len((folder / f"started-{what}-{run.seed}").read_text().split()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "kill":
        print("last output", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "leave":
        os._exit(0)
    if what == "exit":
        sys.exit("I leave")
    if what == "raise":
        print("a clue")
        print("another", file=sys.stderr)
        raise Unpicklable("bad luck")
    if what == "loud":
        print("noise " * 10000)
    if what == "sleep":
        time.sleep(600)
    if what == "nap":
        time.sleep(0.3)
    if what == "spin":
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    if what == "grab":
        large = torch.ones(int(run["megabytes"]) * 2**18)
        small = [bytearray(2**14) for _ in range(int(run["megabytes"]) * 2**6)]
    if what == "fork":
        os.fork()  # and the child goes on as if it were the worker
    if what == "spoil":
        spoil()
        return {"score": 1.0}
    if what == "surrogate":
        raise ValueError("a file called " + os.fsdecode(b"\\xff"))
    if what == "odd-name":
        return {"score": 1.0, "a \\udcff": [1.0]}
    if what == "tuple":
        return {"score": 1.0, ("a", "b"): 2.0}
    if what == "state":
        return {"score": 0.0, **state()}
    if what == "nan":
        return {"score": float("nan"), "curve": [1.0, float("nan")]}
    if what == "large":
        return {"score": 1.0, "image": np.zeros((1024, 1024))}
    return {
        "score": float(run.seed),
        "threads": torch.get_num_threads(),
        "omp": int(os.environ["OMP_NUM_THREADS"]),
        "pid": os.getpid(),
        "ignores_ctrl_c": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "draw": torch.rand(()).item(),
        "variable": float(os.environ.get("PROBE", "0")),
    }

study = Study(
    slug="probe", question="What do cells do?", cell=cell,
    metrics=[Metric("score", higher=True, worst=0.0)],
    arms=[Arm("a", "baseline"), Arm("b", "method"), Arm("c", "control")],
    claims=[Claim("better", "b beats a", difference("b", "a", "score"), min_effect=0.1, why="test",
                  primary=True)],
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text(STUDY)
    return folder


@pytest.fixture
def ref(folder: Path) -> StudyRef:
    return StudyRef("file", str(folder / "probe.py"))


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalEngine]:
    """Share one engine among the tests that leave it unchanged; workers are slow to start."""
    with LocalEngine(workers=2) as engine:
        yield engine


def task(ref: StudyRef, what: str = "work", seed: int = 0, *, hyper: tuple = (), **rest: object) -> Task:  # type: ignore[type-arg]
    settings = tuple(sorted([("what", what), *hyper]))
    cell = Cell("probe", "smoke", 1, "report", arm="a", hyper=settings, seed=seed)
    return Task(ref, cell, fingerprint=f"{what}-{seed}", **rest)  # type: ignore[arg-type]


def only(engine: LocalEngine, one: Task) -> CellResult:
    [(back, result)] = engine.map([one])
    assert back == one
    return result


def is_alive(pid: int) -> bool:
    """Return whether a process is alive: no zombie, or one with a thread that still holds the pipes."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def until(condition: object, seconds: float = 60) -> bool:
    """Wait for a condition; a generous limit that only a failure reaches."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


# -- results -------------------------------------------------------------------------------------------------
def test_every_task_comes_back_once_from_workers_that_stay(shared: LocalEngine, ref: StudyRef) -> None:
    first = [task(ref, seed=i) for i in range(20)]
    second = [task(ref, seed=i) for i in range(20, 30)]
    results = [*shared.map(first), *shared.map(second)]
    assert sorted(t.cell.seed for t, _ in results) == list(range(30))
    pids = {result.numbers["pid"] for _, result in results}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    for one, result in results:
        assert result.status == ("ok" if result.numbers["score"] == one.cell.seed else None)
        assert result.numbers["ignores_ctrl_c"] == 1
        assert result.numbers["threads"] == result.numbers["omp"] == 1
        assert result.environment["threads"] == "1"
        assert result.environment["device"] == "cpu"
        assert result.seconds > 0
    assert list(shared.map([])) == []


def test_a_cell_does_not_depend_on_its_worker_or_the_cells_before_it(
    shared: LocalEngine, ref: StudyRef
) -> None:
    draws = {only(shared, task(ref, seed=5)).numbers["draw"] for _ in range(4)}
    assert len(draws) == 1


def test_what_a_cell_sets_for_its_whole_process_is_put_back(ref: StudyRef) -> None:
    clean = [{"score": 0.0, **_CLEAN}] * 2
    with LocalEngine() as engine:
        only(engine, task(ref))
        states = []
        for seed in (1, 2):
            spoilt = only(engine, task(ref, "spoil", seed=seed))
            assert spoilt.status == "ok", spoilt.error
            states.append(only(engine, task(ref, "state", seed=seed)).numbers)
    assert states == clean


_CLEAN = {
    "dtype": 4.0,
    "meta": 0.0,
    "grad": 1.0,
    "deterministic": 0.0,
    "precision": 1.0,
    "cudnn": 0.0,
    "mkldnn": 1.0,
    "denormal": 0.0,
    "recursion": 0.0,
    "threads": 1.0,
    "numpy": 0.0,
    "warnings": 0.0,
    "folder": 0.0,
    "omp": 1.0,
    "left": 0.0,
}


def test_what_a_cell_forks_neither_answers_nor_takes_tasks(ref: StudyRef) -> None:
    with LocalEngine() as engine:
        tasks = [task(ref, "fork", seed=1), *(task(ref, seed=i) for i in range(2, 6))]
        results = {t.cell.seed: r.numbers for t, r in engine.map(tasks)}
    assert {seed: numbers["score"] for seed, numbers in results.items()} == {i: float(i) for i in range(1, 6)}
    assert len({numbers["pid"] for numbers in results.values()}) == 1


def test_an_answer_to_another_task_is_dropped(ref: StudyRef) -> None:
    reader, writer = multiprocessing.Pipe()
    worker = object.__new__(engine_module._Worker)
    worker.pipe, worker.ready = reader, True
    worker.job = engine_module._Job(task(ref), number=2)
    for number, score in ((1, 0.1), (2, 0.2)):
        content = pickle.dumps(CellResult("ok", {"score": score}))
        writer.send_bytes(engine_module._message(number, content))
    assert worker.answer() == "late"
    answer = worker.answer()
    assert isinstance(answer, CellResult)
    assert answer.numbers == {"score": 0.2}


def test_threads_are_set_for_each_task(shared: LocalEngine, ref: StudyRef) -> None:
    result = only(shared, task(ref, threads=2))
    assert (result.numbers["threads"], result.environment["threads"]) == (2, "2")
    assert only(shared, task(ref)).numbers["threads"] == 1


def test_a_worker_sees_the_environment_of_its_start(ref: StudyRef, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("1", "2"):
        monkeypatch.setenv("PROBE", value)
        with LocalEngine() as engine:
            assert only(engine, task(ref)).numbers["variable"] == float(value)


def test_a_diverged_cell_is_no_failure(shared: LocalEngine, ref: StudyRef) -> None:
    result = only(shared, task(ref, "nan"))
    assert (result.status, result.numbers["score"]) == ("diverged", 0.0)
    assert np.isnan(result.series["curve"][1])


# -- cells that go wrong -------------------------------------------------------------------------------------
def test_an_exception_is_a_failure_with_its_trace_and_the_cells_output(
    shared: LocalEngine, ref: StudyRef, capfd: pytest.CaptureFixture[str]
) -> None:
    result = only(shared, task(ref, "raise"))
    assert result.status == "failed"
    assert "bad luck" in result.error
    assert "probe.py" in result.error
    assert "the end of its output:\na clue\nanother" in result.error
    # the next failure does not show this output, and nothing reaches the terminal
    assert "a clue" not in only(shared, task(ref, "exit")).error
    assert capfd.readouterr() == ("", "")


def test_a_cell_that_prints_much_disturbs_nobody(
    shared: LocalEngine, ref: StudyRef, capfd: pytest.CaptureFixture[str]
) -> None:
    assert only(shared, task(ref, "loud")).status == "ok"
    assert capfd.readouterr() == ("", "")


def test_sys_exit_ends_the_cell_and_not_the_worker(shared: LocalEngine, ref: StudyRef) -> None:
    result = only(shared, task(ref, "exit"))
    assert result.status == "failed"
    assert "I leave" in result.error


def test_a_result_too_large_fails_with_the_fix(shared: LocalEngine, ref: StudyRef) -> None:
    assert "make the large part a Stage" in only(shared, task(ref, "large")).error


def test_a_study_that_raises_fails_its_cells_with_the_place(shared: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ny = x / 0\n")
    result = only(shared, task(StudyRef("file", str(tmp_path / "broken.py"))))
    assert result.status == "failed"
    assert result.error == f"{tmp_path / 'broken.py'}, line 2: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("kill", r"signal 9 .*use fewer workers.*\n.*its output:\nlast output"),
        ("segfault", r"signal 11 .*(\n.*)*Fatal Python error: Segmentation fault(\n.*)*probe\.py"),
        ("leave", "exit code 0"),
    ],
)
def test_a_cell_that_kills_its_worker_fails_and_the_others_do_not(
    folder: Path, ref: StudyRef, what: str, cause: str
) -> None:
    tasks = [task(ref, what, seed=99), *(task(ref, seed=i) for i in range(6))]
    with LocalEngine(workers=2, attempts=2) as engine:
        results = {t.fingerprint: r for t, r in engine.map(tasks)}
        assert len(results) == 7
        bad = results.pop(f"{what}-99")
        assert {r.status for r in results.values()} == {"ok"}
        assert bad.status == "failed"
        assert "exited 2 times" in bad.error
        assert re.search(cause, bad.error), bad.error
    assert len((folder / f"started-{what}-99").read_text().split()) == 2


def test_a_killed_worker_is_replaced_and_its_cell_run_again(folder: Path, ref: StudyRef) -> None:
    tasks = [task(ref, "kill-once", seed=i) for i in range(3)] + [task(ref, seed=i) for i in range(3)]
    with LocalEngine(workers=2) as engine:
        results = list(engine.map(tasks))
    assert sorted(t.fingerprint for t, _ in results) == sorted(t.fingerprint for t in tasks)
    assert {r.status for _, r in results} == {"ok"}
    assert len((folder / "started-kill-once-0").read_text().split()) == 2


def test_a_worker_killed_while_idle_costs_nothing(ref: StudyRef) -> None:
    with LocalEngine(attempts=1) as engine:
        pid = int(only(engine, task(ref)).numbers["pid"])
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: not is_alive(pid))
        result = only(engine, task(ref, seed=1))
        assert result.status == "ok"
        assert result.numbers["pid"] != pid


def test_a_cell_over_its_time_fails_and_its_worker_is_replaced(shared: LocalEngine, ref: StudyRef) -> None:
    results = dict(shared.map([task(ref, "sleep", timeout=0.2), task(ref, seed=1)]))
    late, other = results.values() if next(iter(results)).timeout else reversed(list(results.values()))
    assert late.status == "failed"
    assert "longer than its time limit of 0.2 seconds" in late.error
    assert other.status == "ok"
    assert only(shared, task(ref, seed=2, timeout=300)).status == "ok"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("odd-name", r"returned the key 'a \\udcff', which is not valid Unicode; rename it"),
        ("tuple", r"returned the key \('a', 'b'\) of tuple; name results by text"),
    ],
)
def test_a_result_under_a_name_that_cannot_be_stored_fails_its_cell(
    shared: LocalEngine, ref: StudyRef, what: str, message: str
) -> None:
    result = only(shared, task(ref, what))
    assert result.status == "failed"
    assert re.search(message, result.error), result.error


def test_cpu_time_is_counted_beside_wall_time(shared: LocalEngine, ref: StudyRef) -> None:
    for what, busy in (("nap", False), ("spin", True)):
        result = only(shared, task(ref, what))
        assert result.seconds >= 0.3
        assert (result.cpu_seconds >= 0.3) == busy


# -- ending --------------------------------------------------------------------------------------------------
def workers_of(engine: LocalEngine) -> list[int]:
    return [w.process.pid for w in engine._workers if w.process.pid]


def test_close_ends_workers_at_once_and_leaves_nothing_behind(
    folder: Path, ref: StudyRef, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engine = LocalEngine(workers=2)
    results = engine.map([task(ref, "sleep", seed=51), task(ref, seed=1), task(ref, "sleep", seed=52)])
    next(results)  # by then the free worker has the last task
    assert until(lambda: all((folder / f"started-sleep-{n}").exists() for n in (51, 52)))
    pids = workers_of(engine)
    assert len(pids) == 2
    engine.close()
    engine.close()
    assert not any(map(is_alive, pids))
    assert list(tmp_path.glob("trueup-worker-*")) == []
    with pytest.raises(RuntimeError, match="closed; make a new one"):
        next(engine.map([task(ref)]))


def test_a_map_left_early_stops_its_cells_and_frees_the_engine(folder: Path, ref: StudyRef) -> None:
    with LocalEngine(workers=2) as engine:
        results = engine.map([task(ref, "sleep", seed=61), task(ref, seed=1), task(ref, seed=2)])
        next(results)
        with pytest.raises(RuntimeError, match="busy"):
            next(engine.map([task(ref)]))
        results.close()  # type: ignore[attr-defined]
        assert only(engine, task(ref, seed=3)).status == "ok"


PARENT = """
import signal, sys
from dataclasses import replace
from trueup.lab._cell import Cell
from trueup.lab._engine import LocalEngine, StudyRef, Task
if __name__ == "__main__":
    # A shell starts background jobs with Ctrl-C ignored, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ref = StudyRef("file", sys.argv[1])
    cell = Cell("probe", "smoke", 1, "report", arm="a", hyper=(("what", "sleep"),))
    cells = [replace(cell, seed=int(seed)) for seed in sys.argv[2:]]
    engine = LocalEngine(workers=2)
    try:
        list(engine.map([Task(ref, cell, "") for cell in cells]))
    except KeyboardInterrupt:
        print("interrupted")  # and the engine is not even closed
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_do_not_outlive_their_parent(folder: Path, ref: StudyRef, tmp_path: Path, how: int) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    seeds = [how * 100 + 1, how * 100 + 2]
    parent = subprocess.Popen(
        [sys.executable, script, ref.name, *map(str, seeds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    started = [folder / f"started-sleep-{seed}" for seed in seeds]
    assert until(lambda: all(f.exists() and f.read_text().endswith("\n") for f in started))
    pids = [int(f.read_text()) for f in started]
    assert all(map(is_alive, pids))
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)  # what a terminal does
    else:
        parent.send_signal(how)
    out, err = parent.communicate(timeout=60)
    assert until(lambda: not any(map(is_alive, pids)))
    assert (out, err) == (("interrupted\n", "") if how == signal.SIGINT else ("", ""))
    assert until(lambda: list(tmp_path.glob("trueup-worker-*")) == [])


def test_a_worker_whose_output_was_cleared_away_works_on_and_ends_with_its_parent(
    folder: Path, ref: StudyRef, tmp_path: Path
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, ref.name, "81"],
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    started = folder / "started-sleep-81"
    assert until(lambda: started.exists() and started.read_text().endswith("\n"))
    pid = int(started.read_text())
    for file in tmp_path.glob("trueup-worker-*"):
        file.unlink()
    parent.kill()
    parent.wait()
    try:
        assert until(lambda: not is_alive(pid), 20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_worker_takes_further_tasks_after_its_output_was_cleared_away(
    ref: StudyRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LocalEngine(attempts=1) as engine:
        only(engine, task(ref))
        for file in tmp_path.glob("trueup-worker-*"):
            file.unlink()
        assert only(engine, task(ref, seed=1)).status == "ok"


def test_a_script_that_is_not_guarded_is_refused(ref: StudyRef, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        PARENT.replace('if __name__ == "__main__":', "if True:").replace("workers=2", "attempts=1")
    )
    done = subprocess.run(
        [sys.executable, script, ref.name, "71"], capture_output=True, text=True, timeout=120
    )
    assert "EngineError: worker processes exit while they start (exit code 1" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr.splitlines()[-1]


def test_an_engine_inside_a_worker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_in_worker", True)
    with pytest.raises(StudyError, match="under `if __name__ == '__main__':`"):
        LocalEngine()


def test_a_temporary_folder_too_deep_for_a_socket_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    how = engine_module._context.__wrapped__  # past the cache
    assert how().get_start_method() == ("forkserver" if sys.platform == "linux" else "spawn")
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "deep/" * 20)
    assert how().get_start_method() == "spawn"


def test_workers_that_never_start_are_an_error(ref: StudyRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_work", os.abort)  # cannot even take its arguments
    with LocalEngine(attempts=2) as engine, pytest.raises(EngineError, match="exit while they start"):
        list(engine.map([task(ref)]))


@pytest.mark.parametrize("bad", [{"workers": 0}, {"attempts": 0}, {"workers": -2}])
def test_numbers_below_one_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got"):
        LocalEngine(**bad)


# -- memory --------------------------------------------------------------------------------------------------
def test_peak_memory_is_the_cells_own(ref: StudyRef) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not report peak memory")
    peaks = []
    with LocalEngine() as engine:
        only(engine, task(ref))  # the study is loaded, torch warm
        for megabytes in (120, 8, 120, 8):
            peaks.append(only(engine, task(ref, "grab", hyper=(("megabytes", megabytes),))).peak_memory)
    # as much again in small pieces as in one tensor; a little more for the work itself
    for megabytes, peak in zip((120, 8, 120, 8), peaks):
        assert peak is not None
        assert 1.9 * megabytes <= peak / 2**20 <= 2 * megabytes + 8


def test_memory_that_cannot_be_measured_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert _Memory("cpu").peak() is None


def test_memory_of_a_cuda_device_is_its_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    assert _Memory("cuda:0").peak() == 250


# -- loading a study -----------------------------------------------------------------------------------------
def test_an_edit_within_the_clocks_second_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "quick.py"
    for question in ("Is a on?", "Is b on?"):  # as long as each other, and as old to the second
        path.write_text(
            STUDY + f"\nfrom dataclasses import replace\nstudy = replace(study, question='{question}')"
        )
        os.utime(path, (1e9, 1e9))
        engine_module._load.cache_clear()
        assert StudyRef("file", str(path)).load().question == question


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n\nraise OSError('no data')\n", r"line 3: OSError: no data"),
        ("x = 1\nif x\n", r"line 2: not valid Python: expected ':'"),
        ("import nonesuch\n", r"line 1: ModuleNotFoundError: No module named 'nonesuch'"),
        ("import sys\nsys.exit(3)\n", r"line 2: SystemExit: 3"),
        (
            "from trueup.lab import Metric\n\n\nm = Metric('a', True, float('nan'))\n",
            r"line 4: metric 'a': worst",
        ),
        ("studie = 1\n", r"defines no `study`; it must define `study = Study\(...\)`"),
        ("study = 1\n", r"defines a `study` that is of type int"),
    ],
)
def test_a_faulty_study_file_says_where_and_what(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "my_study.py"
    path.write_text(source)
    with pytest.raises(StudyError, match=message) as caught:
        StudyRef("file", str(path)).load()
    assert str(path) in str(caught.value)


def test_a_missing_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"cannot read the study file .*No such file"):
        StudyRef("file", str(tmp_path / "none.py")).load()
    (tmp_path / "study.txt").write_text("")
    with pytest.raises(StudyError, match=r"must end in \.py"):
        StudyRef("file", str(tmp_path / "study.txt")).load()
    for name in ("trueup.studies.nonesuch", "nonesuch.study"):
        with pytest.raises(StudyError, match=f"there is no study module '{name}'"):
            StudyRef("module", name).load()
    with pytest.raises(StudyError, match="json defines no `study`"):
        StudyRef("module", "json").load()


def test_a_study_is_read_once_and_again_after_a_change(tmp_path: Path) -> None:
    (tmp_path / "beside_the_study.py").write_text("SLUG = 'one'\n")
    path = tmp_path / "study.py"
    source = textwrap.dedent("""
        from beside_the_study import SLUG
        from trueup.lab import Study
        study = Study(slug=SLUG, question="?")
    """)
    path.write_text(source)
    ref = StudyRef("file", str(path))
    first = ref.load()
    assert first.slug == "one"
    assert ref.load() is first
    path.write_text(source.replace("slug=SLUG", "slug='two'"))
    os.utime(path, ns=(1, 1))
    assert ref.load().slug == "two"


# -- the worker's side, in this process ----------------------------------------------------------------------
def test_a_result_that_cannot_be_sent_is_a_failure() -> None:
    bad = CellResult("ok", {"x": lambda: 1}, seconds=2.0)  # type: ignore[dict-item]
    result = pickle.loads(engine_module._pickled(bad))
    assert (result.status, result.seconds) == ("failed", 2.0)
    assert "cannot be sent" in result.error


class Explosive:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _explode, ("unreadable here",)


def _explode(message: str) -> None:
    raise ImportError(message)


def test_a_result_that_cannot_be_read_is_a_failure(ref: StudyRef, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        def poll(self) -> bool:
            return True

        def recv_bytes(self) -> bytes:
            return engine_module._message(7, pickle.dumps(Explosive()))

    worker = object.__new__(engine_module._Worker)
    worker.pipe = Pipe()  # type: ignore[assignment]
    worker._output = os.devnull
    engine = LocalEngine()
    job = worker.job = engine_module._Job(task(ref), number=7, attempts=1)
    answer = worker.answer()
    assert isinstance(answer, str)
    result = engine._without_result(worker, job, answer)
    engine.close()
    assert result is not None
    assert result.status == "failed"
    assert "could not be read back" in result.error
    assert "unreadable here" in result.error


def test_a_worker_computes_tasks_until_its_pipe_closes(
    ref: StudyRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the loop of a worker in this process."""
    import faulthandler
    import multiprocessing

    said: list[object] = []
    numbers: list[int] = []
    asked: list[object] = [
        task(ref, seed=4),
        task(ref, "raise", seed=5),
        task(StudyRef("module", "nonesuch")),
    ]

    class Pipe:
        def send_bytes(self, message: bytes) -> None:
            numbers.append(int.from_bytes(message[:8], "big"))
            said.append(pickle.loads(message[8:]) if message[8:] else "ready")

        def recv(self) -> object:
            if not asked:
                raise EOFError
            return 10 + len(asked), asked.pop(0)

        def close(self) -> None:
            pass

    class Parent:
        sentinel = os.pipe()[0]

    output = tmp_path / "output"
    output.touch()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(multiprocessing, "parent_process", Parent)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(faulthandler, "enable", lambda **_: None)
    monkeypatch.setattr(engine_module, "_in_worker", False)
    monkeypatch.setattr("gc.freeze", lambda: None)
    handler = signal.getsignal(signal.SIGINT)
    with contextlib.ExitStack() as restore:
        restore.callback(signal.signal, signal.SIGINT, handler)
        engine_module._work(Pipe(), str(output), dict(os.environ))  # type: ignore[arg-type]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert engine_module._in_worker
    ready, good, raised, missing = said
    assert ready == "ready"
    assert numbers == [0, 13, 12, 11]
    assert isinstance(good, CellResult)
    assert isinstance(raised, CellResult)
    assert isinstance(missing, CellResult)
    assert (good.status, good.numbers["score"]) == ("ok", 4.0)
    assert "bad luck" in raised.error
    assert missing == replace(missing, status="failed", error="there is no study module 'nonesuch'")
