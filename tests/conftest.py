"""For every test: one thread per process, and no telemetry.

Threads of OpenMP that wait for each other while other processes hold the cores make small tensors many times slower;
the suite runs in parallel processes instead. Children inherit both settings.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from stages.command import NO_TELEMETRY

os.environ.update(NO_TELEMETRY)
