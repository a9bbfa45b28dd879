"""The optimizers that every client trains with. `make clients` gives each folder its own environment."""

from __future__ import annotations

from typing import Any

import pytest
from torch.optim import Optimizer

from conformance.optimizers import CASES, Case


@pytest.fixture(params=CASES, ids=lambda case: case.optimizer.__name__)
def recipe(request: pytest.FixtureRequest) -> tuple[type[Optimizer], dict[str, Any]]:
    """Return a public optimizer, with the conformance suite's variant that sets the most hyperparameters."""
    case: Case = request.param
    return case.optimizer, {**case.required, **max(case.variants.values(), key=len)}
