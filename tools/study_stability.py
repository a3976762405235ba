#!/usr/bin/env python
"""Train the quick phantom config with several seeds, and record what its gradients, weights and losses do.

    python datasets/make_phantom.py --output stability/phantom
    python tools/study_stability.py --output stability --seeds 1 2 3 4 --opts SOLVER.CLIP_GRADIENTS.CLIP_VALUE 35.0
    python tools/study_stability.py --output stability --seeds 1 2 3 4 --draw 4 1  # a picture of the runs 4 and 1

With torchvision. Each run writes gradients.json: for each iteration the losses, and the norms of gradients, before they
are clipped, and of weights by parts of the detector; every 20 iterations the singular values of A3D's mixing P, which
is the identity where nothing is mixed. A run that is there already is not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from tqdm import tqdm

from a3d_det2.engine import torchvision_loop

REPO = Path(__file__).resolve().parents[1]
PARTS = {  # part -> what the names of its parameters have, the first that fits
    "P": "fusion_weight",
    "trunk": "trunk.",
    "squeeze": "squeeze.",
    "FPN": ".fpn.",
    "RPN": "rpn.",
    "box head": "box_head.",
    "box predictor": "box_predictor.",
}
PERIOD = 20  # iterations between two looks at P


def part_of(name: str) -> str:
    return next(part for part, text in PARTS.items() if text in name)


class Record:
    """What is recorded of a training; it looks at gradients when they are complete, before anybody clips them."""

    def __init__(self, model: torch.nn.Module):
        self.model, self.rows = model, []
        self._squares: dict[str, float] = defaultdict(float)
        for name, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(partial(self._add, part_of(name)))

    def _add(self, part: str, parameter: torch.nn.Parameter) -> None:
        self._squares[part] += float(parameter.grad.square().sum())

    @torch.no_grad()
    def end_iteration(self, losses: dict[str, float]) -> None:
        """Take the losses of an iteration; the gradients are those of the one before, whose weights have changed."""
        if self._squares and self.rows:
            self.rows[-1]["gradients"] = {part: square**0.5 for part, square in self._squares.items()}
        self._squares.clear()
        weights: dict[str, float] = defaultdict(float)
        for name, parameter in self.model.named_parameters():
            weights[part_of(name)] += float(parameter.square().sum())
        row = {"losses": losses, "weights": {part: square**0.5 for part, square in weights.items()}}
        if len(self.rows) % PERIOD == 0:
            mixing = [p for name, p in self.model.named_parameters() if part_of(name) == "P"]
            values = [torch.linalg.svdvals(p.permute(2, 0, 1)) for p in mixing]
            if values:
                every = torch.cat([v.flatten() for v in values])
                row["singular values of P"] = [float(every.min()), float(every.mean()), float(every.max())]
        self.rows.append(row)


def train(config_file: str, folder: Path, seed: int, opts: list[str]) -> None:
    """Train in this process, and write ``folder/gradients.json``."""
    build, check, records = torchvision_loop.build_lesion_rcnn, torchvision_loop.check_loss, []

    def build_recorded(cfg):
        model = build(cfg)
        records.append(Record(model))
        return model

    def check_recorded(losses):
        records[0].end_iteration(losses)
        return check(losses)

    torchvision_loop.build_lesion_rcnn, torchvision_loop.check_loss = build_recorded, check_recorded
    try:
        torchvision_loop.main(["--config-file", config_file, "OUTPUT_DIR", str(folder), "SEED", str(seed), *opts])
    finally:
        if records:
            (folder / "gradients.json").write_text(json.dumps(records[0].rows))


def draw(folders: list[Path], path: Path) -> None:
    """The losses and the norms of the gradients of runs, a column each."""
    figure = Figure(figsize=(6.5 * len(folders), 7), layout="constrained")
    all_axes = figure.subplots(2, len(folders), sharex=True, sharey="row", squeeze=False)
    for (losses, gradients), folder in zip(all_axes.T, folders, strict=True):
        rows = [row for row in json.loads((folder / "gradients.json").read_text()) if "gradients" in row]
        average = json.loads((folder / "inference" / "froc.json").read_text())["average"]
        for name in rows[0]["losses"]:
            losses.plot([row["losses"][name] for row in rows], label=name.removeprefix("loss_"), linewidth=1)
        for part in PARTS:
            if part in rows[0]["gradients"]:
                gradients.plot([row["gradients"][part] for row in rows], label=part, linewidth=1)
        losses.set(title=f"{folder.name}, average sensitivity {average:.3f}", ylim=(0, 3))
        gradients.set(yscale="log", xlabel="iteration")
    all_axes[0, 0].set_ylabel("loss (cut off at 3)")
    all_axes[1, 0].set_ylabel("norm of the gradient")
    for axes in all_axes[:, -1]:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def summary(folder: Path) -> dict:
    """A row of the table."""
    rows = [row for row in json.loads((folder / "gradients.json").read_text()) if "gradients" in row]
    totals = [sum(value**2 for value in row["gradients"].values()) ** 0.5 for row in rows]
    heads = [row["gradients"]["box head"] ** 2 + row["gradients"]["box predictor"] ** 2 for row in rows]
    mixing = [row["singular values of P"] for row in rows if "singular values of P" in row]
    worst = max(range(len(rows)), key=totals.__getitem__)
    weights = [row["weights"]["box predictor"] for row in rows]
    return {
        "run": folder.name,
        "average": json.loads((folder / "inference" / "froc.json").read_text())["average"],
        "median norm": sorted(totals)[len(totals) // 2],
        "largest norm": totals[worst],
        "at iteration": worst + 1,
        "of it box head (%)": 100 * heads[worst] ** 0.5 / totals[worst],
        "of it P (%)": 100 * rows[worst]["gradients"].get("P", 0) / totals[worst],
        "box predictor's weights": f"{weights[0]:.2f} to {weights[-1]:.2f}",
        "singular values of P": " to ".join(f"{low:.2f}-{high:.2f}" for low, _, high in (mixing[:1] + mixing[-1:])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder with phantom/, for the runs")
    parser.add_argument("--config-file", default="configs/quick/a3d_7slice.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--name", default="seed", help="runs are OUTPUT/NAME1, ... (default %(default)s)")
    parser.add_argument("--draw", type=int, nargs="+", default=[], metavar="SEED", help="into OUTPUT/NAME.png")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE, changes of the config")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one run, in this process
    args = parser.parse_args()
    folders = {seed: args.output.resolve() / f"{args.name}{seed}" for seed in args.seeds}
    if args.alone:
        ((seed, folder),) = folders.items()
        folder.mkdir(parents=True, exist_ok=True)
        train(args.config_file, folder, seed, args.opts)
        return
    for seed, folder in tqdm(folders.items(), "trainings"):
        if (folder / "gradients.json").is_file() and (folder / "inference" / "froc.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--alone", "--output", args.output, "--name", args.name, "--seeds", seed]
        command += ["--config-file", args.config_file, "--opts", *args.opts]
        environment = {**os.environ, "DETECTRON2_DATASETS": str(args.output.resolve())}
        with open(folder / "stdout.txt", "w") as log:
            subprocess.run(list(map(str, command)), stdout=log, stderr=log, env=environment, cwd=REPO, check=True)
    print(tabulate([summary(folder) for folder in folders.values()], "keys", "github", floatfmt=".3f"))
    if args.draw:
        draw([folders[seed] for seed in args.draw], args.output / f"{args.name}.png")


if __name__ == "__main__":
    main()
