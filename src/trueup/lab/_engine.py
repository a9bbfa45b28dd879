"""Run cells in worker processes, and return each result exactly once, whatever happens to a worker.

An engine is anything with the two methods of `Engine`; `LocalEngine` uses this machine.

Each worker has its own pipe, so that a crashing worker leaves nothing locked: the parent sees the pipe close,
starts a new worker and sends it the cell again. Workers ignore Ctrl-C, which the parent handles, and exit by
themselves when the parent has exited.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import functools
import gc
import importlib
import importlib.util
import io
import itertools
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, Protocol

from trueup.lab._cell import Cell, CellResult, environment, execute, pinned_instructions
from trueup.lab._errors import StudyError
from trueup.lab._spec import Study

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_TAIL = 2000  # characters of a cell's output kept with its error
_POLL_SECONDS = 1.0  # between checks that a silent worker is alive


class EngineError(RuntimeError):
    """Worker processes cannot be started; the message gives the exit reason."""


@dataclass(frozen=True)
class StudyRef:
    """The location of a study, by which any process can load it.

    Args:
        kind: `module` or `file`.
        name: a module's dotted name (`trueup.studies.adamp`) or a file's path; it defines
            `study = Study(...)`.

    Example:
        >>> StudyRef("module", "trueup.studies.adamp").load().slug
        'adamp'
    """

    kind: Literal["module", "file"]
    name: str

    def load(self) -> Study:
        """Load the study, once per process, and again if the file has changed.

        Raises:
            StudyError: if it does not exist, raises, or defines no study; with file and line.
        """
        changed = 0
        if self.kind == "file":
            try:
                changed = Path(self.name).stat().st_mtime_ns
            except OSError as error:
                raise StudyError(f"cannot read the study file {self.name}: {error.strerror}") from error
        return _load(self, changed)


@dataclass(frozen=True)
class Task:
    """A cell to compute, and everything that a worker needs for it.

    Args:
        inputs: name of a stage -> its `.npz` file.
        artefact: the file to which a stage writes its arrays.
        timeout: seconds after which the cell counts as failed (a worker's first cell also loads the study in
            that time); `None` is no limit.
    """

    ref: StudyRef
    cell: Cell
    fingerprint: str
    inputs: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    threads: int = 1
    artefact: str = ""
    timeout: float | None = None


class Engine(Protocol):
    """The interface of whatever computes cells."""

    def map(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, CellResult]]:
        """Compute tasks, and yield each exactly once, as it finishes, in no particular order."""
        ...

    def close(self) -> None:
        """Stop at once, whatever is running; a closed engine cannot be used again."""
        ...


class LocalEngine:
    """Worker processes on this machine. They start with the first cells and stay until `close`.

    Args:
        workers: how many cells run side by side.
        attempts: how often a cell is started before it counts as failed because its worker exits (usually for
            lack of memory: the system kills a process that requests too much).

    Example:
        >>> with LocalEngine(workers=2) as engine:
        ...     {task.cell: result.status for task, result in engine.map([])}
        {}
    """

    def __init__(self, workers: int = 1, *, attempts: int = 3) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {attempts}")
        if _in_worker:
            raise StudyError(
                "a worker cannot run a study while it imports the study's file: put the code that runs the "
                "study under `if __name__ == '__main__':`"
            )
        self._limit = workers
        self._attempts = attempts
        self._workers: list[_Worker] = []
        self._closed = False
        atexit.register(self.close)  # runs before multiprocessing's handler, which would wait for the workers

    def map(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, CellResult]]:
        """Compute tasks, and yield each exactly once, as it finishes, in no particular order.

        Raises:
            EngineError: if workers exit before they are ready.
            KeyboardInterrupt: on Ctrl-C; `close` then stops the workers at once.
        """
        if self._closed:
            raise RuntimeError("this engine is closed; make a new one")
        if any(worker.job for worker in self._workers):
            raise RuntimeError("this engine is busy: finish or close one map before the next")
        waiting = deque(_Job(task) for task in tasks)
        failed_starts = 0
        try:
            while waiting or any(worker.job for worker in self._workers):
                self._hand_out(waiting)
                for worker in self._wait_for_answers():
                    job, answer = worker.job, worker.answer()
                    if answer == "late":
                        continue
                    if isinstance(answer, CellResult):
                        assert job is not None
                        worker.job = None
                        self._hand_out(waiting)  # now: the caller may take long
                        yield job.task, answer
                    elif answer == "ready":
                        failed_starts = 0
                    elif job is not None:
                        result = self._without_result(worker, job, answer)
                        self._drop(worker)
                        if result is None:
                            waiting.appendleft(job)
                        else:
                            yield job.task, result
                    else:
                        self._drop(worker)
                        failed_starts += not worker.ready
                        if failed_starts == self._attempts:
                            raise EngineError(
                                f"worker processes exit while they start ({worker.exit_reason()}; their own "
                                "error is above, if any). In a script, put the code that runs the study "
                                "under `if __name__ == '__main__':`, since workers import the script too; "
                                "otherwise memory may be short."
                            )
        finally:
            # the caller stopped early, or something failed: nobody will read the results of running cells
            for worker in [w for w in self._workers if w.job]:
                self._drop(worker)

    def close(self) -> None:
        """Stop the workers at once; what they were computing is lost."""
        self._closed = True
        for worker in self._workers:
            worker.stop()
        while self._workers:
            self._workers.pop().clean_up()
        atexit.unregister(self.close)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hand_out(self, waiting: deque[_Job]) -> None:
        """Start the workers that are needed, and give every idle one a cell."""
        for worker in list(self._workers):
            if waiting and worker.ready and worker.job is None:
                job = waiting.popleft()
                if not worker.give(job):  # it exited while idle: no attempt is counted
                    waiting.appendleft(job)
                    self._drop(worker)
        wanted = min(self._limit, len(waiting) + sum(w.job is not None for w in self._workers))
        while len(self._workers) < wanted:
            self._workers.append(_Worker(waiting[0].task.threads))

    def _wait_for_answers(self) -> list[_Worker]:
        """Wait for the next workers that have sent a message, exited or run out of time, and return them."""
        awaited = [w for w in self._workers if w.job or not w.ready]
        deadlines = [w.job.deadline for w in awaited if w.job and w.job.deadline]
        seconds = min([_POLL_SECONDS, *(max(0.0, d - time.monotonic()) for d in deadlines)])
        sent = set(wait([w.pipe for w in awaited], seconds))
        return [w for w in awaited if w.pipe in sent or w.is_overdue() or not w.process.is_alive()]

    def _without_result(self, worker: _Worker, job: _Job, answer: str) -> CellResult | None:
        """Return the failure of a cell whose worker sent no result; `None` if it is to be tried again."""
        if answer == "overdue":
            error = f"stopped: the cell took longer than its time limit of {job.task.timeout:g} seconds"
        elif answer == "exited" and job.attempts < self._attempts:
            return None
        elif answer == "exited":
            error = (
                f"the worker process exited {job.attempts} times while computing this cell, "
                f"the last time by {worker.exit_reason()}. The usual reason is memory: "
                "use fewer workers, a smaller scale, or a machine with more."
            )
        else:
            error = answer
        return CellResult("failed", error=error + worker.last_output())

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.clean_up()


# -- workers, seen from the parent --------------------------------------------------------------------------
@dataclass
class _Job:
    """A task and its attempts. Its number, new at every attempt, identifies the answer to it."""

    task: Task
    number: int = 0
    attempts: int = 0
    deadline: float | None = None


_numbers = itertools.count(1)
_READY = 0  # the number of a worker's first message
_NUMBER_BYTES = 8


class _Worker:
    """The parent's handle of a worker process: starting, idle (`ready`, no `job`), or busy with a job."""

    def __init__(self, threads: int) -> None:
        self.ready = False
        self.job: _Job | None = None
        descriptor, self._output = tempfile.mkstemp(prefix="trueup-worker-", suffix=".txt")
        os.close(descriptor)
        self.pipe, theirs = multiprocessing.Pipe()
        with _inherited(threads):
            self.process = _context().Process(  # type: ignore[attr-defined]
                target=_work, args=(theirs, self._output, dict(os.environ)), name="trueup-worker"
            )
            self.process.start()
        theirs.close()  # so that the pipe closes when the worker exits

    def give(self, job: _Job) -> bool:
        """Send a job; return False if the worker has exited."""
        job.number = next(_numbers)
        try:
            self.pipe.send((job.number, job.task))
        except OSError:
            return False
        job.attempts += 1
        job.deadline = None if job.task.timeout is None else time.monotonic() + job.task.timeout
        self.job = job
        return True

    def is_overdue(self) -> bool:
        return self.job is not None and self.job.deadline is not None and time.monotonic() > self.job.deadline

    def answer(self) -> CellResult | str:
        """Return a result; or `ready`, `overdue`, `exited`, `late`; or why the result cannot be read."""
        try:
            if not self.pipe.poll():
                return "overdue" if self.is_overdue() else "exited"
            message = self.pipe.recv_bytes()
        except (EOFError, OSError):
            return "exited"
        number = int.from_bytes(message[:_NUMBER_BYTES], "big")
        if number == _READY:
            self.ready = True
            return "ready"
        if self.job is None or number != self.job.number:
            return "late"
        try:
            answer: CellResult = pickle.loads(message[_NUMBER_BYTES:])
        except Exception:
            return "the cell's result could not be read back:\n" + traceback.format_exc()
        return answer

    def stop(self) -> None:
        """Make the process exit: by closing its pipe if it is idle, by killing it if it is busy."""
        if self.ready and self.job is None:
            self.pipe.close()
        else:
            self.process.kill()

    def clean_up(self) -> None:
        """Wait for the process to exit, kill it if it does not, and release its resources."""
        self.process.join(_POLL_SECONDS)
        self.process.kill()
        self.process.join()
        self.pipe.close()
        with contextlib.suppress(OSError):
            os.unlink(self._output)

    def exit_reason(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is None:
            return "closing its pipe"
        return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"

    def last_output(self) -> str:
        """Return the end of what the cell printed."""
        return _tail(self._output)


@functools.cache
def _context() -> BaseContext:
    """Return how processes start: by `spawn`, or on Linux by a fork server that has imported the libraries.

    The server runs no code of a study or of ours, so that no worker holds outdated code.
    """
    # the server's socket lies in the temporary folder, and a socket's path has at most 107 characters
    if sys.platform != "linux" or len(tempfile.gettempdir()) > 70:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "scipy.stats", "sklearn"])
    return context


@contextlib.contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """Set what a worker must inherit: thread counts, instruction sets, and a blocked Ctrl-C."""
    wanted = dict.fromkeys(_THREAD_VARIABLES, str(threads)) | pinned_instructions()
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    can_mask = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]) if can_mask else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _tail(path: str) -> str:
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return ""
    text = re.sub(r"\nExtension modules: .*", "", text)[-_TAIL:].strip()  # a crash lists them all
    return f"\n--- the end of its output:\n{text}" if text else ""


# -- inside a worker -----------------------------------------------------------------------------------------
_in_worker = False


def _work(pipe: Connection, output: str, environ: dict[str, str]) -> None:
    """Compute one task after the other in a worker, until the pipe closes."""
    global _in_worker
    _in_worker = True
    os.environ.update(environ)  # the server's may be older than the parent's
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_with_parent, args=(parent.sentinel, output), daemon=True).start()
    log = os.open(output, os.O_WRONLY | os.O_APPEND)
    import torch  # noqa: F401  (now, so that neither its time nor its memory counts for the first cell)

    gc.collect()
    gc.freeze()  # the libraries' objects, which later collections then skip
    os.dup2(log, 1)
    os.dup2(log, 2)
    # a file is buffered by default: output would come after later errors, or be lost in a crash
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable(all_threads=False)
    # a process that a cell forks inherits the pipe: it must neither answer nor take tasks
    worker = os.getpid()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=pipe.close)
    pipe.send_bytes(_message(_READY, b""))
    while True:
        try:
            number, task = pipe.recv()
        except EOFError:
            return
        os.ftruncate(log, 0)
        result = _compute(task)
        if os.getpid() != worker:
            os._exit(0)
        sys.stdout.flush()
        sys.stderr.flush()
        if result.status == "failed":
            result = replace(result, error=result.error + _tail(output))
        pipe.send_bytes(_message(number, _pickled(result)))


def _message(number: int, content: bytes) -> bytes:
    """Return an answer as bytes, of which the parent can read the number even where the content is broken."""
    return number.to_bytes(_NUMBER_BYTES, "big") + content


def _exit_with_parent(sentinel: int, output: str) -> None:
    """Exit when the parent has exited, even in the middle of a cell."""
    wait([sentinel])
    with contextlib.suppress(OSError):  # the temporary folder may have been cleared
        os.unlink(output)
    os._exit(1)


def _compute(task: Task) -> CellResult:
    """Compute a task, with its peak memory and environment; whatever a cell raises becomes a failure."""
    try:
        import torch

        study = task.ref.load()
        torch.set_num_threads(task.threads)
        memory = _Memory(task.device)
        result = execute(study, task.cell, dict(task.inputs), task.device, task.artefact)
        return replace(result, peak_memory=memory.peak(), environment=_environment(task.threads, task.device))
    except StudyError as error:
        return CellResult("failed", error=str(error))
    except BaseException:  # SystemExit too: a cell must not end its worker
        return CellResult("failed", error=traceback.format_exc())


@functools.cache
def _environment(threads: int, device: str) -> dict[str, str]:
    return environment(threads, device)


def _pickled(result: CellResult) -> bytes:
    try:
        return pickle.dumps(result)
    except Exception:
        error = "the cell's result cannot be sent to the parent process:\n" + traceback.format_exc()
        return pickle.dumps(CellResult("failed", error=error, seconds=result.seconds))


class _Memory:
    """The peak memory of one cell, above what the process held when the cell began.

    On a CUDA device the peak of its allocator; else, on Linux, of the resident set; elsewhere unknown.
    """

    def __init__(self, device: str) -> None:
        self._device = device if device.startswith("cuda") else None
        gc.collect()
        if self._device:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
            self._before: int | None = torch.cuda.memory_allocated(self._device)
        else:
            _return_freed_memory()
            self._before = _resident("VmRSS") if _reset_peak() else None

    def peak(self) -> int | None:
        """Return the bytes above the start; `None` where they cannot be measured."""
        if self._before is None:
            return None
        if self._device:
            import torch

            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        peak = _resident("VmHWM")
        return None if peak is None else max(0, peak - self._before)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int | None:
    """Return a field of `/proc/self/status`, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _return_freed_memory() -> None:
    """Make the C library return freed memory, which a cell could otherwise reuse without being measured."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


# -- loading a study -----------------------------------------------------------------------------------------
@functools.cache
def _load(ref: StudyRef, changed: int) -> Study:
    try:
        module = importlib.import_module(ref.name) if ref.kind == "module" else _import_file(Path(ref.name))
    except SyntaxError as error:
        raise StudyError(f"{error.filename}, line {error.lineno}: not valid Python: {error.msg}") from error
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{ref.name}.".startswith(f"{error.name}."):
            raise StudyError(f"there is no study module {ref.name!r}") from error
        what = str(error) if isinstance(error, StudyError) else f"{type(error).__name__}: {error}"
        raise StudyError(f"{_where(error, ref)}: {what}") from error
    study: Any = getattr(module, "study", None)
    if not isinstance(study, Study):
        found = "no `study`" if study is None else f"a `study` that is of type {type(study).__name__}"
        raise StudyError(f"{ref.name} defines {found}; it must define `study = Study(...)`")
    return study


def _import_file(path: Path) -> ModuleType:
    """Run a study file as Python runs a script, so that it can import modules beside it."""
    path = path.absolute()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    # under a prefix: a study called random.py must not replace the library's module
    name = "trueup_study_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StudyError("a study file's name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # not from cached bytecode, which misses an edit within the same second
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _where(error: BaseException, ref: StudyRef) -> str:
    """Return the study, and the last line of its own file in an error's traceback, if any."""
    end = ref.name.replace(".", os.sep) + ".py" if ref.kind == "module" else str(Path(ref.name).absolute())
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(end)]
    return f"{ref.name}, line {lines[-1]}" if lines else ref.name
