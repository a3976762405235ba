"""How several processes share the cores of a machine."""

import os


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# For a process beside others, to be set before it loads torch. The threads of OpenMP wait for each other at the end of
# each operation. By default they do it spinning, which takes the core from the thread of another process, and so from
# the one that they would be waiting for in the end: two processes with a thread for each core are then several times
# slower than one after the other. So they sleep instead, which a process that is alone pays for with a quarter of its
# speed. Figures are in docs/scale.md, by tools/benchmark_processes.py.
BESIDE_OTHERS = {"OMP_WAIT_POLICY": "PASSIVE"}


def worker_environment(workers: int, threads: int) -> dict[str, str]:
    """The environment for each of several processes with so many threads, to be set before they load torch."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**counts, **(BESIDE_OTHERS if workers > 1 else {})}
