"""Write a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["atomic_write"]


def atomic_write(path: Path, write: Callable[[IO[bytes]], object], prefix: str = ".") -> None:
    """Write beside the place of a file first, then move over it: who reads or writes it too sees whole files.

    Args:
        path: the file; its folder is made if it is not there.
        write: gets the open file.
        prefix: begins the name of what a killed process leaves behind, which ends in ``.part``.

    Raises:
        OSError: a folder that may not be written to, or a full disk; what was there before stays.

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
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
