"""One test for every case of every reference file in ``--golden-dir``."""

from __future__ import annotations

from pathlib import Path

import pytest

from golden import reference


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" not in metafunc.fixturenames:
        return
    folder: Path = metafunc.config.getoption("--golden-dir")
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise pytest.UsageError(f"--golden-dir {folder} holds no .npz file")
    metafunc.parametrize("golden", [case for path in files for case in reference.read(path)], ids=str)
