"""The code in the tutorials runs. Tutorials on one area have their test there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

TUTORIALS = Path(__file__).parent.parent / "docs" / "tutorials"


def test_the_code_of_drop_in_runs() -> None:
    page = (TUTORIALS / "drop-in.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    batch = torch.randn(4, 3, 8, 8), torch.arange(4)
    scope: dict[str, object] = {
        "model": nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten()),
        "loader": [batch],
        "loss_fn": nn.functional.cross_entropy,
        "parts": np.random.default_rng(0).dirichlet([2.0] * 4, size=50),
    }
    for block in blocks:
        exec(block, scope)
    assert {"optimizer", "plain", "net", "milestones", "fit"} <= scope.keys()


def test_the_code_of_adapt_at_test_time_runs() -> None:
    page = (TUTORIALS / "adapt-at-test-time.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, scope)
    model, same = scope["model"], scope["same"]
    assert isinstance(model, nn.Module)
    assert isinstance(same, nn.Module)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in model.state_dict().items())
