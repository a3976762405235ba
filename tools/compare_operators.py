#!/usr/bin/env python
"""Train the quick phantom config with fusion operators, seeds and engines, and print one table.

    python tools/compare_operators.py --output compare --seeds 1 2 3
    python tools/compare_operators.py --output compare --engines detectron2 torchvision --operators a3d --seeds 1 2 3

A run that is there already is not repeated, so the command can be stopped and given again. The time of a training step,
forward and backward of Detectron2's whole detector on one batch, is measured at the end, the operators alternating: let
nothing else run on the machine then.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from measuring import alternate, spread, write_json
from tabulate import tabulate
from tqdm import tqdm

from a3d_det2.data import load_deeplesion
from a3d_det2.engine import torchvision_loop
from a3d_det2.layers import FUSION_CONVS
from a3d_det2.modeling.build import build_squeezed_densenet

REPO = Path(__file__).resolve().parents[1]
ENGINES = {"detectron2": "train_net.py", "torchvision": "tools/train_torchvision.py"}


def config_file(op: str) -> str:
    return str(REPO / "configs" / "quick" / f"{op}_7slice.yaml")


def make_phantom(output: Path) -> None:
    """Write ``output/phantom``, unless it is there."""
    if not (output / "phantom" / "DL_info.csv").is_file():
        command = [sys.executable, "datasets/make_phantom.py", "--output", str(output / "phantom")]
        subprocess.run(command, check=True, cwd=REPO)


def train(engine: str, op: str, seed: int, output: Path, opts: list[str]) -> dict:
    """Train and evaluate into a folder of ``output``, unless it has been done; returns froc.json."""
    folder = output / f"{engine}_{op}_seed{seed}"
    report = folder / "inference" / "froc.json"
    if not report.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, ENGINES[engine], "--config-file", config_file(op)]
        command += ["OUTPUT_DIR", str(folder), "SEED", str(seed), *opts]
        with open(folder / "stdout.txt", "w") as log:
            environment = {**os.environ, "DETECTRON2_DATASETS": str(output)}
            subprocess.run(command, check=True, cwd=REPO, stdout=log, stderr=log, env=environment)
    return json.loads(report.read_text())


def step_times(operators: list[str], output: Path, repeat: int) -> dict[str, float]:
    """Median seconds of a training step of Detectron2's detector on one batch of the phantom, per operator."""
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from a3d_det2 import DeepLesionMapper
    from a3d_det2.engine import launching

    configs = {op: launching.load_config(config_file(op), []) for op in operators}
    cfg = configs[operators[0]]
    phantom = load_deeplesion(str(output / "phantom" / "DL_info.csv"), str(output / "phantom" / "Images_png"), "train")
    mapper = DeepLesionMapper(cfg, is_train=True)
    batch = [mapper(image) for image in phantom[: cfg.SOLVER.IMS_PER_BATCH]]

    def step(model) -> None:
        with EventStorage(0):
            sum(model(batch).values()).backward()
        model.zero_grad()

    steps = {op: partial(step, build_model(cfg).train()) for op, cfg in configs.items()}
    return {op: spread(values)[0] for op, values in alternate(steps, repeat).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the phantom, runs and operators.json")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["detectron2"])
    parser.add_argument("--operators", nargs="+", choices=FUSION_CONVS, default=list(FUSION_CONVS), metavar="OPERATOR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run per engine, operator and seed")
    parser.add_argument("--repeat", type=int, default=15, help="rounds of step times, or 0 (default %(default)s)")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE overrides for all trainings")
    args = parser.parse_args()
    output = args.output.resolve()
    make_phantom(output)
    runs = [(engine, op, seed) for seed in args.seeds for op in args.operators for engine in args.engines]
    reports = {run: train(*run, output, args.opts) for run in tqdm(runs, desc="trainings")}
    timed = args.repeat > 0 and "detectron2" in args.engines
    seconds = step_times(args.operators, output, args.repeat) if timed else {}

    rows = []
    for op in args.operators:
        trunk = build_squeezed_densenet(torchvision_loop.load_config(config_file(op), [])).trunk
        for engine in args.engines:
            of_seeds = [reports[engine, op, seed] for seed in args.seeds]
            levels = [f"{fps:g}" for fps in of_seeds[0]["fps_per_image"]]
            sensitivities = map(statistics.mean, zip(*(report["sensitivity"] for report in of_seeds), strict=True))
            averages = sorted(report["average"] for report in of_seeds)
            rows.append(
                {
                    "operator": op,
                    "engine": engine,
                    **dict(zip(levels, sensitivities, strict=True)),
                    "Avg. 0.5 to 4": statistics.mean(averages),
                    "SD": statistics.stdev(averages) if len(averages) > 1 else None,
                    "of each seed": ", ".join(f"{average:.3f}" for average in averages),
                    "training step (s)": seconds.get(op) if engine == "detectron2" else None,
                    "trunk parameters (M)": sum(p.numel() for p in trunk.parameters()) / 1e6,
                }
            )
    first = reports[runs[0]]
    print(f"Sensitivity on {first['num_lesions']} lesions of {first['num_images']} held-out key slices\n")
    print(tabulate(rows, "keys", "github", floatfmt=".3f"))
    found = [{"engine": engine, "operator": op, "seed": seed, **reports[engine, op, seed]} for engine, op, seed in runs]
    write_json(output / "operators.json", {"runs": found, "step_seconds": seconds})


if __name__ == "__main__":
    main()
