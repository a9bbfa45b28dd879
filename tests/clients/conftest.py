"""What every trainer is tried with. Each folder has an environment of its own: `make clients`."""

from __future__ import annotations

from typing import Any

import pytest
from torch.optim import Optimizer

from conformance.optimizers import CASES, Case


@pytest.fixture(params=CASES, ids=lambda case: case.optimizer.__name__)
def recipe(request: pytest.FixtureRequest) -> tuple[type[Optimizer], dict[str, Any]]:
    """A public optimizer and hyperparameters: of the conformance suite's variants the one that sets most."""
    case: Case = request.param
    return case.optimizer, {**case.required, **max(case.variants.values(), key=len)}
