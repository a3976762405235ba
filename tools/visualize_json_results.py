#!/usr/bin/env python
"""Draw key slices with ground truth (green) and detections (orange, dashed), one PNG each and an overview.

    python tools/visualize_json_results.py --input output/a3d_7slice/inference/coco_instances_results.json \
        --dataset deeplesion_test --output pictures
"""

import argparse
import os
import sys

import numpy as np
from tqdm import tqdm

from a3d_det2.data import load_slice_stack
from a3d_det2.data.deeplesion import load_named
from a3d_det2.evaluation.detection_reader import read_detections
from a3d_det2.evaluation.report.figures import plot_key_slices


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="coco_instances_results.json")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--dataset", default="deeplesion_test", help="name in DATASETS.TEST (default %(default)s)")
    parser.add_argument("--conf-threshold", type=float, default=0.5, help="lowest score drawn (default %(default)s)")
    parser.add_argument("--limit", type=int, default=20, help="most key slices drawn (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        images = load_named(args.dataset)
        detections = read_detections(args.input, [image["image_id"] for image in images])
    except (OSError, ValueError) as error:
        sys.exit(f"{error}")
    for warning in detections.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    shown = detections.scores >= args.conf_threshold
    found = np.column_stack([detections.boxes, detections.scores])
    os.makedirs(args.output, exist_ok=True)
    samples = []
    for i, image in enumerate(tqdm(images[: args.limit], desc="pictures")):
        boxes = np.array([a["bbox"] for a in image.get("annotations", ())])
        name = image["image_id"].removesuffix(".png")
        hu = load_slice_stack(image["file_name"], 1, 1.0)[0]
        sample = (name, hu, boxes, found[shown & (detections.image == i)])
        plot_key_slices([sample]).savefig(os.path.join(args.output, f"{name}.png"), dpi=150)
        samples = [*samples, sample][:12]
    if not samples:
        sys.exit(f"Expected at least one key slice to draw, got --limit {args.limit} of {len(images)}.")
    overview = os.path.join(args.output, "overview.png")
    plot_key_slices(samples).savefig(overview, dpi=100)
    print(f"Wrote {overview} and a picture of each key slice beside it")


if __name__ == "__main__":
    main()
