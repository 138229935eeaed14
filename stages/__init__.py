"""The DVC stages: `python -m stages.NAME`, run in the project's root."""

import os

# OpenMP's threads spin while they wait for each other; on a machine that is shared with anything else, the waiting ones
# then take the cores from those they wait for, and training becomes several times slower. Where they sleep at once, a
# quiet machine is a third slower. A short spin is near the best of both (docs/benchmarks.md). It is set here because
# the OpenMP library reads it when torch is imported, which every other place would be too late for.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
