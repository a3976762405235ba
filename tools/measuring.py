"""Time and memory of steps that are compared, and the machine they ran on; for the scripts in this folder."""

import ctypes
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import date
from typing import TypeVar

import torch
from tqdm import tqdm

Step = TypeVar("Step")


def seconds_of(step: Callable[[], object]) -> float:
    """Seconds that a call takes, on a GPU up to the end of what it started."""
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


def alternate(
    steps: dict[str, Step], repeat: int, measure: Callable[[Step], float] = seconds_of
) -> dict[str, list[float]]:
    """Measure steps that take turns, so that a machine that gets slower is so for all of them.

    Args:
        steps: what to measure, by name.
        repeat: rounds that count; one round before them warms up.
        measure: gives the figure of one step.

    Returns:
        name -> (repeat,) figures.
    """
    figures = {name: [] for name in steps}
    for round_ in tqdm(range(repeat + 1), desc="rounds", leave=False):
        for name, step in steps.items():
            figure = measure(step)
            if round_ > 0:
                figures[name].append(figure)
    return figures


def spread(figures: list[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return statistics.median(figures), min(figures), max(figures)


def peak_memory(step: Callable[[], object]) -> int:
    """Bytes that a step needs beyond what is there before it: what torch allocates on a GPU, what the process occupies
    (sampled every millisecond) on the CPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is allocated now
    before, peak, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        step()
    finally:
        done.set()
        watcher.join()
    return max(0, peak - before)


def write_json(path: str | os.PathLike, results: dict) -> None:
    """Write results, with the command, the date and the machine."""
    machine = {
        "cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    command = shlex.join(["python", *sys.argv])
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"command": command, "date": str(date.today()), "machine": machine, **results}, f, indent=1)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
