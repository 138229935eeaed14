"""Start a command as several processes that train together, by torchrun's engine.

Like `torchrun COMMAND`, but it returns the exit status of the processes, and a request to stop leaves them the time
to save their state.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

GRACE_SECONDS = 600
"""From the request to stop, after which the processes end their batch and save, to their end by force."""
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name))


def launch(
    arguments: Sequence[str],
    *,
    processes: int,
    nodes: int = 1,
    rendezvous: str = "",
    restarts: int = 0,
    stopped: int = 75,
) -> int:
    """Run `python ARGUMENTS` as `processes` processes on this machine; the exit status they agree on.

    With several `nodes` the same call is made on each of them, with `rendezvous` the address HOST:PORT of one. After a
    process has died all are started again, at most `restarts` times. `stopped` is the status after SIGTERM or SIGINT.
    A process that ends with a status of its own (2, 75) is believed before those that only lost it.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    # Every start gets a store of its own, where no address of a process that died can be found.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        # Machines that are to find each other name the same run.
        run_id="yolov7" if nodes > 1 else uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous or "localhost:0",
        local_addr="localhost" if nodes == 1 else None,
        max_restarts=restarts,
        shutdown_timeout=GRACE_SECONDS,
    )
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        explained = [failure.exitcode for failure in error.failures.values() if failure.exitcode > 1]
        return min(explained, default=1)
    except SignalException:
        return stopped
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0
