"""The code of the tutorial on calibrating a model runs and shows what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "calibrate-a-model.md"


def test_the_code_of_the_tutorial_runs():
    page = TUTORIAL.read_text(encoding="utf-8")
    scope: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, scope)
    assert scope["scaler"].temperature_ == pytest.approx(2, abs=0.1)
    torch.testing.assert_close(scope["probs"].sum(1), torch.ones(2000))
    assert scope["calibrated"].shape == (500, 3)
    assert scope["search"].best_params_.keys() == {"ridge"}
