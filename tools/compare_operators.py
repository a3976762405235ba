#!/usr/bin/env python
"""Train the quick phantom config with fusion operators, numbers of slices, seeds and engines; print and draw results.

    python tools/compare_operators.py --output compare --seeds 1 2 3
    python tools/compare_operators.py --output study --engines torchvision --slices 3 7 --seeds 1 2 3 4 5 --jobs 2
    python tools/compare_operators.py --output compare --engines detectron2 torchvision --operators a3d --seeds 1 2 3

A run that is there already is not repeated, so the command can be stopped and given again. Runs that failed are
listed, with the end of their logs. Intervals are Student's over the seeds, and each operator is compared with none seed
by seed, by a paired t-test: they say how sure the figures are for this phantom, not for patients. The time of a
training step, forward and backward of Detectron2's whole detector on one batch, is measured at the end with --repeat,
the operators alternating: let nothing else run on the machine then.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from measuring import alternate, spread, write_json
from scipy import stats
from tabulate import tabulate
from tqdm import tqdm

from a3d_det2.data import load_deeplesion
from a3d_det2.engine import torchvision_loop
from a3d_det2.layers import FUSION_CONVS
from a3d_det2.modeling.build import build_squeezed_densenet
from a3d_det2.threads import available_cores, worker_environment

REPO = Path(__file__).resolve().parents[1]
ENGINES = {"detectron2": "train_net.py", "torchvision": "tools/train_torchvision.py"}
BASELINE = "none"


class Run(NamedTuple):
    """A training."""

    engine: str
    operator: str
    slices: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.engine}_{self.operator}_{self.slices}slice_seed{self.seed}"


def config_file(op: str) -> str:
    return str(REPO / "configs" / "quick" / f"{op}_7slice.yaml")


def make_phantom(output: Path, options: Sequence[str]) -> None:
    """Write ``output/phantom``, unless it is there."""
    if not (output / "phantom" / "DL_info.csv").is_file():
        command = [sys.executable, "datasets/make_phantom.py", "--output", str(output / "phantom"), *options]
        subprocess.run(command, check=True, cwd=REPO)


def train(run: Run, output: Path, opts: Sequence[str], environment: dict[str, str]) -> dict:
    """Train and evaluate into a folder of ``output``, unless it has been done.

    Returns:
        froc.json, or {"failed": the end of the log}.
    """
    folder = output / run.name
    report, log = folder / "inference" / "froc.json", folder / "stdout.txt"
    if not report.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, ENGINES[run.engine], "--config-file", config_file(run.operator)]
        command += ["OUTPUT_DIR", str(folder), "SEED", str(run.seed), "MODEL.A3D.NUM_SLICES", str(run.slices), *opts]
        environment = {**os.environ, **environment, "DETECTRON2_DATASETS": str(output)}
        with open(log, "w") as f:
            done = subprocess.run(command, cwd=REPO, stdout=f, stderr=f, env=environment)
        if done.returncode:
            return {"failed": log.read_text(errors="replace").strip()[-300:]}
    return json.loads(report.read_text())


def train_all(runs: Sequence[Run], output: Path, opts: Sequence[str], jobs: int) -> dict[Run, dict]:
    """Train, as many at once as there are jobs, each with its share of the cores."""
    environment = worker_environment(jobs, max(available_cores() // jobs, 1)) if jobs > 1 else {}
    with ThreadPoolExecutor(jobs) as pool:
        reports = pool.map(lambda run: train(run, output, opts, environment), runs)
        return dict(zip(runs, tqdm(reports, "trainings", len(runs)), strict=True))


def step_times(operators: Sequence[str], output: Path, repeat: int) -> dict[str, float]:
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


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of Student's distribution for the mean; NaN for less than two values."""
    if len(values) < 2 or max(values) == min(values):
        return (values[0], values[0]) if len(values) > 1 else (np.nan, np.nan)
    return stats.t.interval(0.95, len(values) - 1, statistics.mean(values), stats.sem(values))


def against(values: dict[int, float], others: dict[int, float]) -> dict[str, float]:
    """Compare averages of the same seeds: the mean difference, its interval and the p of a paired t-test."""
    differences = [values[seed] - others[seed] for seed in values.keys() & others.keys()]
    if not differences:
        return {}
    low, high = interval(differences)
    same = len(differences) < 2 or max(differences) == min(differences)
    p = np.nan if same else float(stats.ttest_1samp(differences, 0).pvalue)
    return {"difference": statistics.mean(differences), "low": low, "high": high, "p": p}


def averages(
    reports: dict[Run, dict], engine: str, op: str, slices: int, stratum: str | None = None
) -> dict[int, float]:
    """Seed -> average sensitivity at 0.5 to 4 FPs per image, of all lesions or of a stratum of the slice thickness."""
    found = {}
    for run, report in reports.items():
        if run[:3] == (engine, op, slices) and "failed" not in report:
            part = report if stratum is None else report["strata"].get("slice thickness", {}).get(stratum)
            if part is not None:
                found[run.seed] = part["average"]
    return found


def tables(reports: dict[Run, dict], seconds: dict[str, float]) -> tuple[list[dict], list[dict]]:
    """Rows of two tables: what each operator finds, and how sure that is."""
    found, sure = [], []
    for engine, slices, op in dict.fromkeys((run.engine, run.slices, run.operator) for run in reports):
        of_seeds = [reports[run] for run in reports if (run.engine, run.slices, run.operator) == (engine, slices, op)]
        whole = [report for report in of_seeds if "failed" not in report]
        values = averages(reports, engine, op, slices)
        name = {"slices": slices, "operator": op, "engine": engine}
        levels, means = [], []
        if whole:
            levels = [f"{fps:g}" for fps in whole[0]["fps_per_image"]]
            means = [statistics.mean(level) for level in zip(*(one["sensitivity"] for one in whole), strict=True)]
        opts = ["MODEL.A3D.NUM_SLICES", str(slices)]
        trunk = build_squeezed_densenet(torchvision_loop.load_config(config_file(op), opts)).trunk
        found.append(
            {
                **name,
                **dict(zip(levels, means, strict=True)),
                "Avg. 0.5 to 4": statistics.mean(values.values()) if values else None,
                "training step (s)": seconds.get(op) if (engine, slices) == ("detectron2", 7) else None,
                "trunk parameters (M)": sum(p.numel() for p in trunk.parameters()) / 1e6,
            }
        )
        low, high = interval(list(values.values())) if values else (np.nan, np.nan)
        beside = {} if op == BASELINE else against(values, averages(reports, engine, BASELINE, slices))
        strata = {f"at {name}": averages(reports, engine, op, slices, name).values() for name in ("<= 2 mm", "> 2 mm")}
        sure.append(
            {
                **name,
                "average": f"{statistics.mean(values.values()):.3f}" if values else "",
                "95 % interval": f"{low:.3f} to {high:.3f}",
                f"- {BASELINE}": f"{beside['difference']:+.3f}" if beside else "",
                "its interval": f"{beside['low']:+.3f} to {beside['high']:+.3f}" if beside else "",
                "p": f"{beside['p']:.3f}" if beside else "",
                **{text: f"{statistics.mean(part):.3f}" if part else "" for text, part in strata.items()},
                "of each seed": ", ".join(f"{value:.3f}" for value in sorted(values.values())),
                "failed": len(of_seeds) - len(whole),
            }
        )
    return found, sure


def draw(reports: dict[Run, dict], path: Path) -> None:
    """A dot for each run, the mean and its interval for each operator; a panel for each engine and number of slices."""
    panels = list(dict.fromkeys((run.engine, run.slices) for run in reports))
    operators = list(dict.fromkeys(run.operator for run in reports))
    figure = Figure(figsize=(1.5 + 4.5 * len(panels), 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    colours = matplotlib.colormaps["tab10"].colors
    for axes, (engine, slices) in zip(all_axes, panels, strict=True):
        for x, op in enumerate(operators):
            values = list(averages(reports, engine, op, slices).values())
            if not values:
                continue
            colour, mean = colours[x % len(colours)], statistics.mean(values)
            low, high = interval(values)
            axes.plot([x - 0.12] * len(values), values, "o", color=colour, alpha=0.6, markersize=5)
            reach = [[mean - low], [high - mean]] if low < high else None
            axes.errorbar([x + 0.12], [mean], yerr=reach, fmt="s", color=colour, capsize=4, markersize=6)
        axes.set_xticks(range(len(operators)), operators, rotation=30)
        axes.set_title(f"{slices} slices, {engine}")
        axes.grid(axis="y", alpha=0.3)
    all_axes[0].set_ylabel("average sensitivity at 0.5 to 4 FPs per image")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "folder for the phantom, runs, operators.json and operators.png"
    parser.add_argument("--output", type=Path, required=True, help=text)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["detectron2"])
    parser.add_argument("--operators", nargs="+", choices=FUSION_CONVS, default=list(FUSION_CONVS), metavar="OPERATOR")
    parser.add_argument("--slices", type=int, nargs="+", default=[7], help="odd; 1 is the key slice alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run for each engine, operator and seed")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=0, help="rounds of step times (default %(default)s, none)")
    parser.add_argument("--phantom", nargs="*", default=[], metavar="OPTION", help="of make_phantom.py, without dashes")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE overrides for all trainings")
    args = parser.parse_args()
    output = args.output.resolve()
    make_phantom(output, [f"--{text}" if text[:1].isalpha() else text for text in args.phantom])
    runs = [Run(*one) for one in product(args.engines, args.operators, args.slices, args.seeds)]
    runs.sort(key=lambda run: run.seed)  # so that what is there early has something of all
    reports = train_all(runs, output, args.opts, args.jobs)
    timed = args.repeat > 0 and "detectron2" in args.engines
    seconds = step_times(args.operators, output, args.repeat) if timed else {}
    reports = {Run(*one): reports[Run(*one)] for one in product(args.engines, args.operators, args.slices, args.seeds)}
    found, sure = tables(reports, seconds)
    if whole := [report for report in reports.values() if "failed" not in report]:
        print(f"Sensitivity on {whole[0]['num_lesions']} lesions of {whole[0]['num_images']} held-out key slices\n")
    print(tabulate(found, "keys", "github", floatfmt=".3f"))
    print(f"\nAverage sensitivity at 0.5 to 4 FPs per image over {len(args.seeds)} seeds, and against {BASELINE}\n")
    print(tabulate(sure, "keys", "github", disable_numparse=True))
    for run, report in reports.items():
        if "failed" in report:
            print(f"\n{run.name} failed:\n{report['failed']}")
    draw(reports, output / "operators.png")
    write_json(
        output / "operators.json",
        {"runs": [{**run._asdict(), **report} for run, report in reports.items()], "step_seconds": seconds},
    )


if __name__ == "__main__":
    main()
