#!/usr/bin/env python
"""Sensitivity in three dimensions on phantom volumes that no training saw, for several ways to link detections.

    python datasets/make_phantom.py --output volumes/phantom --from-volumes --train 400 --val 20 --test 40 --size 256
    DETECTRON2_DATASETS=volumes python train_net.py --config-file configs/quick/a3d_volumes_7slice.yaml
    python tools/study_volumes.py --config-file configs/quick/a3d_volumes_7slice.yaml \\
        --weights output/quick/a3d_volumes_7slice/model_final.pth --output study_volumes.json

A lesion is found by a result whose box overlaps its own, both with DeepLesion's margin of 5 pixels, by a 3D IoU of 0.3;
each result finds one lesion at most, in the order of the scores, and all others are false positives.
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
from a3d_det2.model_zoo import find_config_file
from a3d_det2.volumes import LinkingRule, Volume, link_detections
from a3d_det2.volumes.measurement import measure_lesions
from a3d_det2.volumes.phantom import random_volume, render, truth

RULES = {
    "default": LinkingRule(),
    "IoU 0.3": LinkingRule(iou=0.3),
    "one slice is enough": LinkingRule(min_slices=1, min_extent=0.0),
    "no gap": LinkingRule(gap=0.0),
    "mean score": LinkingRule(score="mean"),
    "noisy-or": LinkingRule(score="noisy-or"),
}
FPS_PER_VOLUME = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DIAMETERS = ((0, 10), (10, 20), (20, 60))  # mm


def phantom_volume(index: int, size: int, seed: int) -> tuple[Volume, list[dict]]:
    """A volume as it would be read, and its lesions."""
    phantom = random_volume(index, size=size, seed=seed)
    hu = np.stack([np.rint(render(phantom, k)) for k in range(phantom.shape[0])]).astype(np.int16)
    positions = np.arange(len(hu)) * phantom.slice_interval
    volume = Volume(hu, phantom.affine, positions, np.zeros((len(hu), 2)), phantom.name)
    return volume, truth(phantom)["lesions"]


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """3D IoU of boxes, (n, 2, 3) and (m, 2, 3), lowest and highest voxels: (n, m)."""
    low = np.maximum(first[:, None, 0], second[None, :, 0])
    high = np.minimum(first[:, None, 1], second[None, :, 1])
    common = np.clip(high - low + 1, 0, None).prod(axis=2)
    sizes = [(boxes[:, 1] - boxes[:, 0] + 1).prod(axis=1) for boxes in (first, second)]
    return common / (sizes[0][:, None] + sizes[1][None] - common)


def match(
    results: list[list], lesions: list[list[dict]], least: float
) -> tuple[list[tuple[float, bool]], list[list[float]]]:
    """(score, whether it finds a lesion) for each result, and for each lesion of each volume the score that finds it,
    or -1."""
    pairs, found_at = [], [[-1.0] * len(ours) for ours in lesions]
    for volume, (found, ours) in enumerate(zip(results, lesions, strict=True)):
        truths = np.array([lesion["box_deeplesion"] for lesion in ours], dtype=float).reshape(-1, 2, 3)
        for one in sorted(found, key=lambda one: -one.score):
            iou = overlaps(one.box_voxel[None], truths)[0]
            iou[[score >= 0 for score in found_at[volume]]] = 0
            best = int(iou.argmax()) if len(iou) else -1
            hit = best >= 0 and iou[best] >= least
            pairs.append((one.score, hit))
            if hit:
                found_at[volume][best] = one.score
    return pairs, found_at


def sensitivity(pairs: list, found_at: list, volumes: int, fps: float) -> tuple[float, float]:
    """The share of lesions found at so many false positives per volume, and the threshold."""
    false = sorted((score for score, hit in pairs if not hit), reverse=True)
    allowed = int(fps * volumes + 1e-9)
    threshold = false[allowed] if len(false) > allowed else -0.5
    scores = np.concatenate([np.array(ours) for ours in found_at])
    return float((scores > threshold).mean()), threshold


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
    parser.add_argument("--iou", type=float, default=0.3, help="3D IoU of a hit")
    parser.add_argument("--output", help="JSON to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg, _ = load_config(args.engine, find_config_file(args.config_file), args.opts)
    how = {"step": args.step, "refine": args.refine, "crop_to_body": not args.whole_slices, "progress": False}
    how["min_score"] = args.min_score
    predictor = LesionPredictor(cfg, args.weights, dtype=args.dtype, **how)
    detections, volumes, lesions, seconds, slices = [], [], [], 0.0, 0
    for index in tqdm(range(args.first, args.first + args.volumes), desc="volumes"):
        volume, ours = phantom_volume(index, args.size, args.seed)
        start = time.perf_counter()
        detections.append(predictor.detect(volume))
        seconds += time.perf_counter() - start
        slices += len(volume.hu)
        lesions.append(ours)
        # Linking and measuring need no pixels.
        empty = np.broadcast_to(np.int16(0), volume.hu.shape)
        volumes.append(Volume(empty, volume.affine, volume.positions, volume.offsets, volume.name))
    rows, report = [], {}
    for name, rule in RULES.items():
        results = []
        for found, volume in zip(detections, volumes, strict=True):
            linked = link_detections(found, volume.positions, rule, predictor.key_interval(volume))
            results.append(measure_lesions(linked, volume, np.full(2, BOX_MARGIN)))
        pairs, found_at = match(results, lesions, args.iou)
        curve = [sensitivity(pairs, found_at, len(volumes), fps) for fps in FPS_PER_VOLUME]
        report[name] = {"rule": asdict(rule), "sensitivity": [value for value, _ in curve], "results": len(pairs)}
        report[name]["thresholds"] = [value for _, value in curve]
        at_one = curve[FPS_PER_VOLUME.index(1.0)][1]
        sizes = np.array([one["long_mm"] for ours in lesions for one in ours])
        is_found = np.concatenate([np.array(ours) for ours in found_at]) > at_one
        by_size = [float(is_found[(sizes >= low) & (sizes < high)].mean()) for low, high in DIAMETERS]
        report[name]["by_diameter"] = by_size
        rows.append([name, *report[name]["sensitivity"], *by_size, len(pairs)])
    header = ["linking", *(f"{fps:g}" for fps in FPS_PER_VOLUME), *(f"{a}-{b} mm" for a, b in DIAMETERS), "results"]
    count = sum(map(len, lesions))
    print(f"{count} lesions in {len(volumes)} volumes of {slices} slices, {seconds / slices:.3f} s a slice")
    print("Sensitivity at false positives per volume, at 1 also by diameter:")
    print(tabulate(rows, header, floatfmt=".3f"))
    if args.output:
        with open(args.output, "w") as f:
            json.dump({"arguments": vars(args), "fps_per_volume": FPS_PER_VOLUME, "linking": report}, f, indent=1)


if __name__ == "__main__":
    main()
