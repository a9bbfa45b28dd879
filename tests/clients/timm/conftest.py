"""timm imports torchvision, whose builds belong to builds of torch: a stub takes its place."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "stub"))
