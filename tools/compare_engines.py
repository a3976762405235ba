#!/usr/bin/env python
"""Train the same quick configs with Detectron2 and with torchvision, and write one table.

    python tools/compare_engines.py --output engines --table docs/engines.md --seeds 1 2 3 4 5

A run that is there already is not repeated, so the command can be stopped and given again.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import textwrap
from datetime import date
from pathlib import Path

import torch
import torchvision
from compare_operators import config_file, make_phantom, train
from tabulate import tabulate
from tqdm import tqdm

ENGINES = {"Detectron2": "train_net.py", "torchvision": "tools/train_torchvision.py"}
START = "<!-- measured -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the phantom and the runs")
    parser.add_argument("--table", type=Path, required=True, help=f"Markdown file; what follows {START} is replaced")
    parser.add_argument("--operators", nargs="+", default=["a3d", "none"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run per engine, operator and seed")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE overrides for all trainings")
    args = parser.parse_args()
    output = args.output.resolve()
    make_phantom(output)
    runs = [(seed, op, engine) for seed in args.seeds for op in args.operators for engine in ENGINES]
    reports = {
        (seed, op, engine): train(
            ENGINES[engine], config_file(op), output / f"{engine}_{op}_{seed}", ["SEED", str(seed), *args.opts]
        )
        for seed, op, engine in tqdm(runs, desc="trainings")
    }

    rows = []
    for op in args.operators:
        for engine in ENGINES:
            of_seeds = [reports[seed, op, engine] for seed in args.seeds]
            averages = sorted(report["average"] for report in of_seeds)
            levels = zip(*(report["sensitivity"] for report in of_seeds), strict=True)
            spread = statistics.stdev(averages) if len(averages) > 1 else float("nan")
            means = [f"{statistics.mean(values):.3f}" for values in levels]
            each = ", ".join(f"{average:.3f}" for average in averages)
            rows.append([op, engine, *means, f"**{statistics.mean(averages):.3f}**", f"{spread:.3f}", each])
    first = next(iter(reports.values()))
    header = [
        "operator",
        "engine",
        *(f"{fps:g}" for fps in first["fps_per_image"]),
        "Avg. 0.5 to 4",
        "SD",
        "of each seed",
    ]
    command = shlex.join(["python", "tools/compare_engines.py", *sys.argv[1:]])
    conditions = textwrap.fill(
        f"`{command}`, {date.today()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}. `configs/quick/*_7slice.yaml`, "
        f"{len(args.seeds)} seed(s): sensitivity at false positives per image, mean over the seeds, on the "
        f"{first['num_lesions']} lesions of {first['num_images']} held-out key slices; the average over 0.5 to 4, its "
        "standard deviation over the seeds, and each seed's, lowest first.",
        width=120,
    )
    text = f"""{START}

{conditions}

{tabulate(rows, header, "github", disable_numparse=True)}
"""
    before = args.table.read_text().split(START)[0] if args.table.is_file() else ""
    args.table.write_text(before + text)
    (output / "engines.json").write_text(json.dumps({" ".join(map(str, run)): r for run, r in reports.items()}))
    print(text)


if __name__ == "__main__":
    main()
