"""Options of the whole test run.

``--golden-dir DIR`` holds the adapters against the reference values in DIR instead of ``tests/golden``;
``--device cuda`` computes them there.

``--shapes`` checks the jaxtyping shapes in trueup's signatures while the tests run. The hook breaks
full-graph compilation, so it is for a run of its own, over golden values, mathematics and doctests, as in
``pytest --shapes tests/golden tests/nn --doctest-modules src/trueup/nn``. It also sees a wrong argument
before our own error does: tests marked ``bad_input`` are left out of that run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Containers often set it; workers would then never buffer, and the tests of what they print could not fail.
os.environ.pop("PYTHONUNBUFFERED", None)

# They need environments of their own: `make clients`.
collect_ignore = ["clients"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="folder of the <slug>.npz reference values (default: tests/golden)",
    )
    parser.addoption("--device", default="cpu", help="where golden values are computed (default: cpu)")
    parser.addoption("--shapes", action="store_true", help="check shapes in trueup's signatures")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "bad_input: passes what the signature forbids; not run under --shapes")
    if config.getoption("--shapes"):
        from jaxtyping import install_import_hook

        # Never uninstalled: the hook acts when a module is imported, and tests import all through the run.
        install_import_hook("trueup", "shape_checker.check")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers in every run, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For what must not depend on how sums are divided between threads, wherever the test is run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--shapes"):
        forbidden = [item for item in items if item.get_closest_marker("bad_input")]
        config.hook.pytest_deselected(items=forbidden)
        items[:] = [item for item in items if item not in forbidden]
