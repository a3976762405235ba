#!/usr/bin/env python
"""Time the evaluation of simulated detections, on one core, beside a loop over the detections.

    python tools/benchmark_froc.py --ground-truth datasets/deeplesion/DL_info.csv --split test --json froc.json

Each lesion is detected with a probability of 0.9; the other detections lie anywhere. The loop takes one detection after
the other by falling score and compares it with the lesions of its image in NumPy, as evaluations of DeepLesion commonly
do. The script ends with an error if the two do not agree to 1e-12.
"""

import argparse
import os
import sys
from functools import partial

import numpy as np
from measuring import alternate, spread, write_json
from tabulate import tabulate

from a3d_det2.data.deeplesion import load_deeplesion
from a3d_det2.data.dl_info import LESION_TYPES
from a3d_det2.evaluation.detection_reader import detections_from_results
from a3d_det2.evaluation.froc import AVERAGED_FPS, FPS_PER_IMAGE, froc_curve, froc_sensitivities
from a3d_det2.evaluation.split_evaluation import SplitEvaluation


def simulate(images: list[dict], per_image: int) -> list[np.ndarray]:
    """(per_image, 5) of each image, the detected lesions first."""
    rng = np.random.default_rng(0)
    detections = []
    for image in images:
        corner = rng.uniform(0, 0.9, (per_image, 2)) * (image["width"], image["height"])
        boxes = np.concatenate([corner, corner + rng.uniform(10, 60, (per_image, 2))], axis=1)
        scores = rng.beta(1, 8, per_image)
        for i, lesion in enumerate(image["annotations"][:per_image]):
            if rng.random() < 0.9:
                boxes[i] = np.array(lesion["bbox"]) + rng.normal(0, 2, 4)
                scores[i] = rng.beta(4, 2)
        detections.append(np.column_stack([boxes, scores]))
    return detections


def loop_over_detections(detections: list[np.ndarray], lesions: list[np.ndarray]) -> np.ndarray:
    """Sensitivities at ``FPS_PER_IMAGE``."""
    order = sorted(((i, row) for i, rows in enumerate(detections) for row in rows), key=lambda item: -item[1][4])
    hit = [np.zeros(len(boxes), dtype=bool) for boxes in lesions]
    num_lesions = sum(map(len, lesions))
    hits, false_positives = 0, 0
    fps_per_image, sensitivity = np.zeros(len(order)), np.zeros(len(order))
    for rank, (image, (x1, y1, x2, y2, _)) in enumerate(order):
        boxes = lesions[image]
        width = np.maximum(np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1) + 1, 0)
        height = np.maximum(np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1) + 1, 0)
        areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
        iou = width * height / ((x2 - x1 + 1) * (y2 - y1 + 1) + areas - width * height)
        if len(iou) == 0 or iou.max() < 0.5:
            false_positives += 1
        else:
            for lesion in np.flatnonzero(iou >= 0.5):
                hits += not hit[image][lesion]
                hit[image][lesion] = True
        fps_per_image[rank], sensitivity[rank] = false_positives / len(lesions), hits / num_lesions
    return np.interp(FPS_PER_IMAGE, fps_per_image, sensitivity, left=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ground-truth", required=True, help="DL_info.csv")
    parser.add_argument("--split", default="test")
    parser.add_argument("--detections", type=int, default=50, help="of an image (default %(default)s)")
    parser.add_argument("--resamples", type=int, default=1000, help="of the patients (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="(default %(default)s)")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    images = load_deeplesion(args.ground_truth, "", args.split, drop_noisy=True)
    detections = simulate(images, args.detections)
    lesions = [np.array([lesion["bbox"] for lesion in image["annotations"]]) for image in images]
    results = [
        {"image_id": image["image_id"], "category_id": 0, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for image, rows in zip(images, detections, strict=True)
        for x1, y1, x2, y2, score in rows.tolist()
    ]
    image_ids = [image["image_id"] for image in images]
    read = detections_from_results(results, image_ids)
    settings = {"lesion_types": LESION_TYPES, "resamples": args.resamples}
    evaluation = SplitEvaluation(images, read, **settings)
    matches, strata = evaluation.matches, [s for group in evaluation.strata.values() for s in group.values()]

    def resample() -> None:
        fresh = SplitEvaluation(images, read, **settings)
        for stratum in (None, *strata):
            fresh.curve(stratum).at([*FPS_PER_IMAGE, *AVERAGED_FPS])
            fresh.resampled(stratum)

    loop, ours = partial(loop_over_detections, detections, lesions), partial(froc_sensitivities, detections, lesions)
    difference = float(np.abs(loop() - ours()).max())
    if not difference <= 1e-12:
        sys.exit(f"The loop and the vectorised evaluation differ by {difference}.")
    steps = {
        "loop over detections": loop,
        "match and score": ours,
        "curve and sensitivities of the match table": lambda: froc_curve(matches).at(FPS_PER_IMAGE),
        "check and convert COCO results": lambda: detections_from_results(results, image_ids),
        f"match, score and resample {len(strata)} strata": resample,
        "all of froc.json, with AP50": lambda: SplitEvaluation(images, read, **settings).summary(),
    }
    seconds = alternate(steps, args.repetitions)
    medians = {name: spread(times)[0] for name, times in seconds.items()}
    ratio = medians["loop over detections"] / medians["match and score"]
    print(
        f"{len(images)} images, {matches.num_lesions} lesions, {len(matches.score)} detections, "
        f"{evaluation.weights.shape[1]} patients, {args.resamples} resamples; one core, median of {args.repetitions}"
    )
    rows = [[name, *spread(times)] for name, times in seconds.items()]
    print(tabulate(rows, ["", "median s", "min", "max"], floatfmt=".3f"))
    print(
        f"The loop takes {ratio:.0f} times as long as match and score, with the same sensitivities to {difference:.0e}."
    )
    if args.json:
        figures = {"medians": medians, "seconds": seconds, "ratio": ratio, "difference": difference}
        write_json(args.json, {**vars(args), "num_images": len(images), "num_lesions": matches.num_lesions, **figures})


if __name__ == "__main__":
    main()
