"""trueup: methods that keep training level, and the lab that tests their claims."""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_AREAS = ("data", "estimators", "federated", "lab", "models", "nn", "optim", "papers", "quantization")


def __getattr__(name: str) -> ModuleType:
    if name in _AREAS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_AREAS, "__version__"])
