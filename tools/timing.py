"""Time and memory of steps that are compared with each other; for the scripts in this folder."""

import ctypes
import gc
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from tqdm import tqdm


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_alternating(steps: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Run each step once to warm up, then ``repeat`` rounds of all; seconds per step and round."""
    seconds = defaultdict(list)
    for round_ in tqdm(range(repeat + 1), desc="rounds", leave=False):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if round_ > 0:
                seconds[name].append(time.perf_counter() - start)
    return dict(seconds)


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


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
