"""Replace torchvision, which timm imports and which must match the build of torch, by a stub."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "stub"))
