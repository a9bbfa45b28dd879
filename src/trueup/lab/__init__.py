"""The lab: declare studies, run them fairly, and judge them by one rule.

Your own study is one page::

    from trueup.lab import Arm, Claim, Metric, Study, difference

    study = Study(
        slug="my-study", question="Is b better than a?", cell=my_function,
        metrics=[Metric("accuracy", higher=True, worst=0.1, unit="%")],
        arms=[Arm("a", "baseline"), Arm("b", "method"), Arm("c", "control")],
        claims=[Claim("better", "b beats a", difference("b", "a", "accuracy"), min_effect=0.01,
                      why="one point matters in use", primary=True)],
    )

`trueup run my_study.py` runs it; `compare` judges results that you already have.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueup.lab._cell import Cell, CellResult
    from trueup.lab._comparison import Comparison, compare, read_results
    from trueup.lab._contrasts import (
        Contrast,
        SeedCells,
        custom,
        difference,
        equivalence,
        log_ratio,
        monotone,
        non_inferiority,
        ordering,
        rank_correlation,
        spread,
    )
    from trueup.lab._errors import StudyError
    from trueup.lab._run import Run
    from trueup.lab._scoring import Metric
    from trueup.lab._spec import (
        Arm,
        Axis,
        Claim,
        Condition,
        CostClaim,
        ExactClaim,
        Figure,
        Stage,
        Study,
    )
    from trueup.lab._verdict import Judgement, judge

__all__ = [
    "Arm",
    "Axis",
    "Cell",
    "CellResult",
    "Claim",
    "Comparison",
    "Condition",
    "Contrast",
    "CostClaim",
    "ExactClaim",
    "Figure",
    "Judgement",
    "Metric",
    "Run",
    "SeedCells",
    "Stage",
    "Study",
    "StudyError",
    "compare",
    "custom",
    "difference",
    "equivalence",
    "judge",
    "log_ratio",
    "monotone",
    "non_inferiority",
    "ordering",
    "rank_correlation",
    "read_results",
    "spread",
]

# Loaded on first use: reading the ledger must not import SciPy.
_MODULES = {
    "_cell": ("Cell", "CellResult"),
    "_comparison": ("Comparison", "compare", "read_results"),
    "_contrasts": (
        *("Contrast", "SeedCells", "custom", "difference", "equivalence", "log_ratio", "monotone"),
        *("non_inferiority", "ordering", "rank_correlation", "spread"),
    ),
    "_errors": ("StudyError",),
    "_run": ("Run",),
    "_scoring": ("Metric",),
    "_spec": (*("Arm", "Axis", "Claim", "Condition", "CostClaim", "ExactClaim", "Figure", "Stage", "Study"),),
    "_verdict": ("Judgement", "judge"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
