"""trueup: methods that keep training on track, and the lab that tests their claims."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    if name in __dir__() and name != "__version__":
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    modules = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    # the command line needs an extra, and studies are loaded by the lab
    return sorted({*modules, "__version__"} - {"cli", "studies"})
