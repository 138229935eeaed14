"""The DVC stages: `python -m stages.NAME`, run in the project's root."""

import os

# OpenMP threads spin while they wait. On a shared machine the waiting threads take the cores from the working ones, and
# training becomes several times slower. If they sleep at once, a quiet machine is a third slower. A short spin is close
# to the best of both (docs/benchmarks.md). Set here because OpenMP reads it when torch is imported: anywhere else would
# be too late.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
