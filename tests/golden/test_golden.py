"""Every reference value of every case, against what our implementation gives."""

from __future__ import annotations

import pytest
import torch

from golden.reference import Reference, check, kinds


def test_golden(golden: Reference, pytestconfig: pytest.Config) -> None:
    with torch.device(pytestconfig.getoption("--device")):
        check(golden, kinds(golden.slug))
