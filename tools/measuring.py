"""Time and memory of steps that are compared, and the machine they ran on; for the scripts in this folder."""

import ctypes
import gc
import json
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
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
    on the CPU, which Linux alone tells."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is allocated now
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    step()
    return max(0, _resident("VmHWM") - before)


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


def _resident(name: str) -> int:
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
