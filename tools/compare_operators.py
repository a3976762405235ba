#!/usr/bin/env python
"""Train the quick phantom config with every fusion operator and write one table.

    python tools/compare_operators.py --output compare_output --table docs/operators.md --seeds 1 2 3

A run that is there already is not repeated, so the command can be stopped and given again. The time of a training step
is measured at the end, the operators alternating, on one batch: let nothing else run on the machine then.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import textwrap
from datetime import date
from pathlib import Path

import torch
from complexity import build_trunk, load_config
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from timing import time_alternating
from tqdm import tqdm

from a3d_det2 import DeepLesionMapper
from a3d_det2.data import load_deeplesion
from a3d_det2.layers import FUSION_CONVS

REPO = Path(__file__).resolve().parents[1]


def config_file(op: str) -> Path:
    return REPO / "configs" / "quick" / f"{op}_7slice.yaml"


def train(script: str, config: Path, folder: Path, opts: list[str]) -> dict:
    """Train and evaluate into ``folder``, beside the phantom, unless it has been done; returns froc.json."""
    report = folder / "inference" / "froc.json"
    if not report.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "stdout.txt", "w") as log:
            subprocess.run(
                [sys.executable, script, "--config-file", str(config), "OUTPUT_DIR", str(folder), *opts],
                check=True,
                cwd=REPO,
                stdout=log,
                stderr=log,
                env={**os.environ, "DETECTRON2_DATASETS": str(folder.parent)},
            )
    return json.loads(report.read_text())


def make_phantom(output: Path) -> None:
    """Write ``output/phantom``, unless it is there."""
    if not (output / "phantom" / "DL_info.csv").is_file():
        command = [sys.executable, "datasets/make_phantom.py", "--output", str(output / "phantom")]
        subprocess.run(command, check=True, cwd=REPO)


def step_times(output: Path, repeat: int) -> dict[str, float]:
    """Median seconds of forward and backward of the whole detector on one batch of the phantom, per operator."""
    cfg = load_config(str(config_file("a3d")))
    phantom = load_deeplesion(str(output / "phantom" / "DL_info.csv"), str(output / "phantom" / "Images_png"), "train")
    mapper = DeepLesionMapper(cfg, is_train=True)
    batch = [mapper(image) for image in phantom[: cfg.SOLVER.IMS_PER_BATCH]]

    def step(model):
        with EventStorage(0):
            sum(model(batch).values()).backward()
        model.zero_grad()

    models = {op: build_model(load_config(str(config_file(op)))).train() for op in FUSION_CONVS}
    steps = {op: lambda model=model: step(model) for op, model in models.items()}
    return {op: statistics.median(seconds) for op, seconds in time_alternating(steps, repeat).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the phantom and the runs")
    parser.add_argument("--table", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run per operator and seed")
    parser.add_argument("--repeat", type=int, default=15, help="rounds of the time measurement (default %(default)s)")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE overrides for all trainings")
    args = parser.parse_args()
    output = args.output.resolve()
    make_phantom(output)
    runs = [(op, seed) for seed in args.seeds for op in FUSION_CONVS]
    reports = {
        (op, seed): train("train_net.py", config_file(op), output / f"{op}_seed{seed}", ["SEED", str(seed), *args.opts])
        for op, seed in tqdm(runs, desc="trainings")
    }
    seconds = step_times(output, args.repeat)

    rows = []
    for op in FUSION_CONVS:
        averages = [reports[op, seed]["average"] for seed in args.seeds]
        parameters = sum(p.numel() for p in build_trunk(load_config(str(config_file(op))), "meta").parameters())
        sensitivities = [
            statistics.mean(values) for values in zip(*(reports[op, s]["sensitivity"] for s in args.seeds), strict=True)
        ]
        rows.append(
            [
                op,
                *(f"{value:.3f}" for value in sensitivities),
                f"**{statistics.mean(averages):.3f}**",
                f"{min(averages):.3f} to {max(averages):.3f}",
                f"x {seconds[op] / seconds['none']:.2f}",
                f"{parameters / 1e6:.3f}",
            ]
        )
    first = reports[runs[0]]
    levels = [f"{fps:g}" for fps in first["fps_per_image"]]
    header = ["operator", *levels, "Avg. 0.5 to 4", "over seeds", "training step", "trunk parameters (M)"]
    table = tabulate(rows, header, "github", disable_numparse=True)
    command = shlex.join(["python", "tools/compare_operators.py", *sys.argv[1:]])
    sentences = [
        f"Each operator with `configs/quick/*_7slice.yaml`, {len(args.seeds)} seed(s):",
        "sensitivity at false positives per image, mean over the seeds, on the",
        f"{first['num_lesions']} lesions of {first['num_images']} held-out key slices.",
        "The training step (forward and backward of the whole detector) is the median of",
        f"{args.repeat} rounds in which the operators alternate, relative to no fusion, {seconds['none']:.2f} s.",
    ]
    conditions = textwrap.fill(" ".join(sentences), width=120)
    text = f"""# The operators on the phantom

`{command}`, {date.today()}, {os.cpu_count()} CPU cores,
Python {platform.python_version()}, torch {torch.__version__}.

{conditions}

{table}

The phantom is small and easy: it shows that each operator works and whether it uses the neighbours. It does not rank
them for patients.
"""
    args.table.write_text(text)
    (output / "operators.json").write_text(
        json.dumps({"reports": {f"{op} {s}": r for (op, s), r in reports.items()}, "seconds": seconds}, indent=2)
    )
    print(text)


if __name__ == "__main__":
    main()
