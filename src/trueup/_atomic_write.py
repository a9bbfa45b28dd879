"""Write a file completely or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["atomic_write"]


def atomic_write(path: Path, write: Callable[[IO[bytes]], object], prefix: str = ".") -> None:
    """Write a temporary file in the same folder, then move it to `path`: readers only see complete files.

    Args:
        path: the file; its folder is created if needed.
        write: called with the open file.
        prefix: start of the temporary file's name, which ends in `.part`; a killed process leaves that file.

    Raises:
        OSError: if the folder cannot be written to, or the disk is full; an existing file stays as it was.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atomic_write(Path(folder, "a", "b.txt"), lambda file: file.write(b"all of it"))
    ...     Path(folder, "a", "b.txt").read_bytes()
    b'all of it'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)  # mkstemp creates files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
