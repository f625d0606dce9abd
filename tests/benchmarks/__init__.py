"""What `make bench` measures."""

from __future__ import annotations

import sys
from pathlib import Path

# The tiny organism of the examples.
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "validation"))
