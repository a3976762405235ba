#!/usr/bin/env python
"""Sensitivity in three dimensions on phantom volumes that no training saw, for several ways to link detections.

    python datasets/make_phantom.py --output volumes/phantom --from-volumes --train 400 --val 20 --test 40 --size 256
    DETECTRON2_DATASETS=volumes python train_net.py --config-file configs/quick/a3d_volumes_7slice.yaml
    python tools/study_volumes.py --config-file configs/quick/a3d_volumes_7slice.yaml \\
        --weights output/quick/a3d_volumes_7slice/model_final.pth --output study_volumes.json

The boxes of lesions and of results have DeepLesion's margin of 5 pixels. The rule of a hit is one of
a3d_det2.evaluation.volumes, by default a 3D IoU of 0.3.
"""

import argparse
import json
import time
from dataclasses import asdict

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from a3d_det2.data.recist import BOX_MARGIN
from a3d_det2.engine.command import ENGINES
from a3d_det2.engine.predict import load_config
from a3d_det2.engine.predictor import LesionPredictor
from a3d_det2.evaluation.froc_evaluation import nan_to_none
from a3d_det2.evaluation.volumes import RULES, FoundVolume, TrueVolume, VolumeEvaluation
from a3d_det2.evaluation.volumes.evaluation import FPS_PER_VOLUME
from a3d_det2.model_zoo import find_config_file
from a3d_det2.volumes import LinkingRule, Volume, link_detections
from a3d_det2.volumes.measurement import measure_lesions
from a3d_det2.volumes.phantom import random_volume, render, truth

LINKINGS = {
    "default": LinkingRule(),
    "IoU 0.3": LinkingRule(iou=0.3),
    "one slice is enough": LinkingRule(min_slices=1, min_extent=0.0),
    "no gap": LinkingRule(gap=0.0),
    "mean score": LinkingRule(score="mean"),
    "noisy-or": LinkingRule(score="noisy-or"),
}
BOXES = ("iou3d_0.1", "iou3d_0.3", "iou3d_0.5", "iobb3d_0.3")  # rules that need nothing else


def phantom_volume(index: int, size: int, seed: int) -> tuple[Volume, list[dict]]:
    """A volume as it would be read, and its lesions."""
    phantom = random_volume(index, size=size, seed=seed)
    hu = np.stack([np.rint(render(phantom, k)) for k in range(phantom.shape[0])]).astype(np.int16)
    positions = np.arange(len(hu)) * phantom.slice_interval
    volume = Volume(hu, phantom.affine, positions, np.zeros((len(hu), 2)), phantom.name)
    return volume, truth(phantom)["lesions"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--engine", choices=ENGINES, default="detectron2")
    parser.add_argument("--volumes", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="index of the first volume")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--step", type=float, default=0.0)
    parser.add_argument("--refine", action="store_true")
    parser.add_argument("--whole-slices", action="store_true")
    parser.add_argument("--min-score", type=float, default=0.1)
    parser.add_argument("--rule", choices=BOXES, default="iou3d_0.3", help="of a hit (%(default)s)")
    parser.add_argument("--output", help="JSON to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg, _ = load_config(args.engine, find_config_file(args.config_file), args.opts)
    how = {"step": args.step, "refine": args.refine, "crop_to_body": not args.whole_slices, "progress": False}
    how["min_score"] = args.min_score
    predictor = LesionPredictor(cfg, args.weights, dtype=args.dtype, **how)
    detections, volumes, truths, seconds, slices = [], [], [], 0.0, 0
    for index in tqdm(range(args.first, args.first + args.volumes), desc="volumes"):
        volume, ours = phantom_volume(index, args.size, args.seed)
        start = time.perf_counter()
        detections.append(predictor.detect(volume))
        seconds += time.perf_counter() - start
        slices += len(volume.hu)
        boxes = np.array([one["box_deeplesion"] for one in ours], dtype=float).reshape(-1, 6)
        truths.append(TrueVolume(volume.name, boxes, long_mm=np.array([one["long_mm"] for one in ours])))
        # Linking and measuring need no pixels.
        empty = np.broadcast_to(np.int16(0), volume.hu.shape)
        volumes.append(Volume(empty, volume.affine, volume.positions, volume.offsets, volume.name))
    rows, report = [], {}
    for name, linking in LINKINGS.items():
        results = []
        for found, volume in zip(detections, volumes, strict=True):
            linked = link_detections(found, volume.positions, linking, predictor.key_interval(volume))
            ours = measure_lesions(linked, volume, np.full(2, BOX_MARGIN))
            boxes = np.array([one.box_voxel.ravel() for one in ours]).reshape(-1, 6)
            results.append(FoundVolume(volume.name, boxes, [one.score for one in ours]))
        summary = VolumeEvaluation(truths, results, RULES[args.rule], resamples=0).summary()
        report[name] = {"linking": asdict(linking), **summary}
        by_size = summary["strata"]["lesion diameter"]
        at_one = [scores["sensitivity"][FPS_PER_VOLUME.index(1.0)] for scores in by_size.values()]
        rows.append([name, *summary["sensitivity"], summary["average"], *at_one, summary["num_results"]])
    header = ["linking", *(f"{fps:g}" for fps in FPS_PER_VOLUME), "mean", *by_size, "results"]
    count = sum(len(truth.boxes) for truth in truths)
    print(f"{count} lesions in {len(volumes)} volumes of {slices} slices, {seconds / slices:.3f} s a slice")
    print(f"Sensitivity at false positives per volume by {args.rule}, at 1 also by diameter:")
    print(tabulate(rows, header, floatfmt=".3f"))
    if args.output:
        with open(args.output, "w") as f:
            json.dump(nan_to_none({"arguments": vars(args), "linkings": report}), f, indent=1)


if __name__ == "__main__":
    main()
