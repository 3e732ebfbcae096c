"""Text to 3D Gaussian splats by score distillation."""

import os

# Threads that wait for work must not spin: with one other busy process a run would take ten times as long.
# OpenMP reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
