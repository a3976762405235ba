"""How several processes share the cores of a machine."""

import os


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_cores(threads: int | None = None) -> dict[str, str]:
    """The environment for a process beside others, to be set before it loads torch.

    The threads of OpenMP wait for each other at the end of each operation. By default they do it spinning, which
    takes the core from the thread of another process that they would be waiting for in the end: two processes with a
    thread for each core are then several times slower than one after the other. So they sleep instead. Figures are in
    docs/scale.md, by ``tools/benchmark_processes.py``.

    Args:
        threads: of this process; None leaves their number as it is.
    """
    environment = {"OMP_WAIT_POLICY": "PASSIVE"}
    if threads is not None:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return environment
