#!/usr/bin/env python
"""Two processes beside each other and one after the other, by how their threads wait for each other.

    python tools/benchmark_processes.py --steps 10 --repeat 3

Steps of training and of inference of configs/quick/a3d_7slice.yaml with torchvision, on two cores or the first N
(--cores N). A process is only asked to begin when both are ready. The table says how much longer two at once take than
one after the other with torch's defaults: below 1 it is worth while. docs/scale.md has figures.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from tabulate import tabulate

from a3d_det2.threads import available_cores

WORK = ("inference", "training")
SETTINGS = {
    "torch's defaults": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=2000": {"GOMP_SPINCOUNT": "2000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "half the threads": {"OMP_NUM_THREADS": "half"},
    "half the threads, PASSIVE": {"OMP_NUM_THREADS": "half", "OMP_WAIT_POLICY": "PASSIVE"},
}


def work(kind: str, steps: int) -> None:
    """What each process does: so many steps for each line that it is given, and their seconds as a line."""
    import torch

    from a3d_det2.engine import torchvision_loop
    from a3d_det2.model_zoo import get_config_file
    from a3d_det2.modeling.torchvision_rcnn import build_lesion_rcnn

    torch.manual_seed(0)
    options = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    cfg = torchvision_loop.load_config(get_config_file("quick/a3d_7slice.yaml"), options)
    model = build_lesion_rcnn(cfg).train(kind == "training")
    images = [torch.randn(cfg.MODEL.A3D.NUM_SLICES, 128, 128) for _ in range(2)]
    targets = [{"boxes": torch.tensor([[20.0, 30, 40, 60]]), "labels": torch.tensor([1])} for _ in images]
    thickness = torch.full((2,), 2.0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-5)

    def train() -> None:
        optimizer.zero_grad()
        sum(model(images, targets, thickness).values()).backward()
        optimizer.step()

    @torch.inference_mode()
    def infer() -> None:
        model(images, None, thickness)

    step = train if kind == "training" else infer
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        for _ in range(steps):
            step()
        print("done", flush=True)


def start(kind: str, steps: int, settings: dict[str, str]) -> subprocess.Popen:
    half = str(max(1, available_cores() // 2))
    environment = {**os.environ, **{name: half if value == "half" else value for name, value in settings.items()}}
    command = [sys.executable, __file__, "--work", kind, "--steps", str(steps)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    process.stdout.readline()
    return process


def seconds(processes: list[subprocess.Popen]) -> float:
    """Until all have done their steps, begun at once."""
    begin = time.perf_counter()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.stdout.readline()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.steps)
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    rows = []
    for kind in WORK:
        both = {name: [start(kind, args.steps, settings) for _ in range(2)] for name, settings in SETTINGS.items()}
        figures = {name: ([], []) for name in SETTINGS}
        for _ in range(args.repeat):
            for name, processes in both.items():
                figures[name][0].append(seconds(processes[:1]))
                figures[name][1].append(seconds(processes))
        for processes in both.values():
            for process in processes:
                process.kill()
        median = {name: [statistics.median(part) for part in parts] for name, parts in figures.items()}
        default = median["torch's defaults"][0]
        rows += [[kind, name, one, two, two / (2 * default)] for name, (one, two) in median.items()]
    header = ["", "settings", "s alone", "s of two at once", "to one after the other"]
    print(tabulate(rows, header, "github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
