#!/usr/bin/env python
"""How trainings grow: measured with one and two processes on this machine, computed for many GPUs.

    DETECTRON2_DATASETS=demo_output python tools/scaling.py measure
    python tools/scaling.py compute --config-file configs/a3d_7slice.yaml --step-seconds 0.2 0.5 1.0

measure: seconds of a step of configs/quick/a3d_7slice.yaml, one thread and the same number of images for each
process. compute: a model on paper. In a step each process sends and receives 2 (n - 1) / n of the gradients' bytes, as
in a ring, over the slowest link; torch does it while the backward goes on, so that of it only what takes longer than
the backward, two thirds of the step, and the last bucket of 25 MB are waited for.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from a3d_det2.engine import torchvision_loop
from a3d_det2.model_zoo import find_config_file
from a3d_det2.modeling.torchvision_rcnn import build_lesion_rcnn
from a3d_det2.threads import worker_environment

REPO = Path(__file__).resolve().parents[1]
BACKWARD = 2 / 3  # of a step
BUCKET = 25e6  # bytes that torch's DistributedDataParallel sends at once
GPUS_OF_A_MACHINE = 8
NVLINK = "NVLink 4 (H100), one machine"
# Bytes a second of one direction, as their makers publish them: between GPUs, or out of a machine, which a ring leaves
# once.
LINKS = {
    NVLINK: 450e9,
    "8 x 400 Gb/s InfiniBand of a machine": 400e9,
    "400 Gb/s InfiniBand of a machine": 50e9,
    "100 Gb/s Ethernet of a machine": 12.5e9,
    "25 Gb/s Ethernet of a machine": 3.125e9,
}
GPUS = (8, 16, 32, 64)


def efficiency(step_seconds: float, gradient_bytes: float, gpus: int, link: float) -> float:
    """Part of a step that is not waiting for other GPUs.

    Args:
        step_seconds: of a GPU alone.
        gradient_bytes: of all parameters.
        gpus: how many.
        link: bytes a second of the slowest link.
    """
    share = 2 * (gpus - 1) / gpus
    all_of_it = share * gradient_bytes / link
    waited = max(share * min(BUCKET, gradient_bytes) / link, all_of_it - BACKWARD * step_seconds)
    return step_seconds / (step_seconds + waited)


def compute(args: argparse.Namespace) -> None:
    """Print the model's table."""
    cfg = torchvision_loop.load_config(find_config_file(args.config_file), ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    count = sum(parameter.numel() for parameter in build_lesion_rcnn(cfg).parameters() if parameter.requires_grad)
    rows = []
    for name, link in LINKS.items():
        for seconds in args.step_seconds:
            fits = [(gpus <= GPUS_OF_A_MACHINE) == (name == NVLINK) for gpus in GPUS]
            of = [efficiency(seconds, 4 * count, n, link) if fit else None for n, fit in zip(GPUS, fits, strict=True)]
            rows.append([name, seconds, *(f"{value:.1%}" if value else "-" for value in of)])
    print(f"{count / 1e6:.1f} million parameters, {4 * count / 1e6:.0f} MB of gradients. Computed, not measured:\n")
    print(tabulate(rows, ["slowest link", "s of a step", *(f"{gpus} GPUs" for gpus in GPUS)], "github"))


def step_seconds(processes: int, script: str, iterations: int) -> float:
    """Seconds of a step, the median of what a training has written, by iterations 20 and later."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), script]
        options = ["--config-file", "quick/a3d_7slice.yaml", "OUTPUT_DIR", folder, "DATASETS.TEST", "()"]
        options += [
            "SOLVER.IMS_PER_BATCH",
            str(2 * processes),
            "SOLVER.MAX_ITER",
            str(iterations),
            "SOLVER.STEPS",
            "()",
        ]
        options += ["DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]
        environment = {**os.environ, **worker_environment(2, 1)}
        run = subprocess.run([sys.executable, *command, *options], cwd=REPO, env=environment, capture_output=True)
        if run.returncode:
            raise SystemExit(run.stderr.decode()[-3000:])
        lines = [json.loads(line) for line in Path(folder, "metrics.json").read_text().splitlines()]
    return statistics.median(line["time"] for line in lines[1:])


def measure(args: argparse.Namespace) -> None:
    """Print the seconds of a step with one process and with two."""
    figures = {1: [], 2: []}
    for _ in tqdm(range(args.repeat), "rounds"):
        for processes, seconds in figures.items():
            seconds.append(step_seconds(processes, str(REPO / "train_net.py"), args.iterations))
    one, two = (statistics.median(seconds) for seconds in figures.values())
    rows = [[1, one, "1"], [2, two, f"{one / two:.1%}"]]
    print(tabulate(rows, ["processes", "s of a step", "efficiency"], "github", floatfmt=".3f"))
    print(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure")
    one.add_argument("--repeat", type=int, default=3)
    one.add_argument("--iterations", type=int, default=80)
    other = commands.add_parser("compute")
    other.add_argument("--config-file", default="a3d_7slice.yaml")
    other.add_argument("--step-seconds", type=float, nargs="+", default=[0.2, 0.5, 1.0])
    args = parser.parse_args()
    measure(args) if args.command == "measure" else compute(args)


if __name__ == "__main__":
    main()
