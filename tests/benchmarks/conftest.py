from __future__ import annotations

import sys
from pathlib import Path

# The scripts of benchmarks/ import each other as the plain modules that they are when run.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
