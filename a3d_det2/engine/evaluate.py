"""Score detections against a ground truth, as tools/evaluate.py and the command a3d-evaluate do.

Prints FROC by stratum with confidence intervals, AP50 and the quality of masks, and writes a report.

    a3d-evaluate --ground-truth datasets/deeplesion/DL_info.csv --split test \
        --results output/a3d_7slice/inference/coco_instances_results.json --output evaluation
    a3d-evaluate --ground-truth datasets/deeplesion/DL_info.csv \
        --compare a3d=output/a3d_7slice/inference/coco_instances_results.json none=other.csv

With --volumes it scores lesions in three dimensions; a3d-evaluate --volumes --help tells how. Needs no model and no
Detectron2. --output gets evaluation.json, scores.csv, report.html and pictures/.
"""

import argparse
import csv
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..data.coco import read_coco
from ..data.deeplesion import load_deeplesion
from ..data.dl_info import LESION_TYPES, SPLITS
from ..data.mask_file import MASK_FILE
from ..data.slices import is_interval, load_slice_stack
from ..evaluation.detection_reader import read_detections
from ..evaluation.evaluation_files import write_json
from ..evaluation.froc import FPS_PER_IMAGE
from ..evaluation.matching import ASSIGNMENTS, OVERLAPS, REPEAT_HITS, MatchRule
from ..evaluation.report.page import write_report
from ..evaluation.report.tables import comparison_table, csv_rows, score_table
from ..evaluation.split_evaluation import SplitEvaluation, compare, nan_to_none
from ..files import printable, replacing

GALLERY_SLICES, GALLERY_INTERVAL = 5, 2.0  # mm


def at_least(kind: type, lowest: float) -> Callable[[str], float]:
    """A type for argparse: a finite number from ``lowest`` on."""

    def convert(text: str) -> float:
        value = kind(text)
        if not lowest <= value < math.inf:
            raise argparse.ArgumentTypeError(f"expected a number from {lowest} on, got {text}")
        return value

    convert.__name__ = kind.__name__  # of argparse's message for what is no number
    return convert


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = parser.add_mutually_exclusive_group(required=True)
    text = "coco_instances_results.json, or CSV with image_id, x1, y1, x2, y2, score; NAME=FILE names it"
    results.add_argument("--results", nargs="+", metavar="[NAME=]FILE", help=text)
    results.add_argument("--compare", nargs=2, metavar="[NAME=]FILE", help="two of them, with a test of the difference")
    parser.add_argument("--ground-truth", required=True, help="DL_info.csv (.csv) or COCO annotations (.json)")
    parser.add_argument("--split", help="of DL_info.csv: train, val, test or a split file (.txt); test if not given")
    parser.add_argument("--keep-noisy", action="store_true", help="with the rows marked Possibly_noisy")
    parser.add_argument("--image-root", help="folder of the slices, for the gallery (Images_png beside the file)")
    parser.add_argument("--output", help="folder to write to")
    parser.add_argument(
        "--gallery", type=at_least(int, 0), default=8, help="cases in each part of the gallery (default %(default)s)"
    )
    parser.add_argument("--overlap", choices=OVERLAPS, default="iou", help="what makes a hit (default %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest overlap of a hit (default %(default)s)")
    parser.add_argument(
        "--plus-one", action=argparse.BooleanOptionalAction, default=True, help="width = x2 - x1 + 1, as published"
    )
    parser.add_argument("--repeat-hits", choices=REPEAT_HITS, default="ignored", help="(default %(default)s)")
    parser.add_argument("--assignment", choices=ASSIGNMENTS, default="several", help="which lesions one detection hits")
    parser.add_argument("--fps-per-image", type=at_least(float, 0), nargs="+", default=FPS_PER_IMAGE, metavar="FPS")
    parser.add_argument(
        "--resamples", type=at_least(int, 0), default=1000, help="of the bootstrap (default %(default)s)"
    )
    parser.add_argument("--seed", type=at_least(int, 0), default=0, help="of the bootstrap (default %(default)s)")
    parser.add_argument(
        "--context", type=at_least(float, 0), default=6.0, help="mm, of the end-of-series strata (default %(default)s)"
    )
    return parser.parse_args(argv)


def read_ground_truth(args: argparse.Namespace) -> tuple[list[dict], str]:
    """Read the dataset dicts, and make a title for them."""
    path = Path(args.ground_truth)
    image_root = args.image_root or str(path.with_name("Images_png"))
    if path.suffix.lower() == ".json":
        if args.split or args.keep_noisy:
            raise ValueError("--split and --keep-noisy are for DL_info.csv; a COCO file is scored as a whole.")
        return read_coco(str(path), image_root), path.stem
    split, masks = args.split or "test", path.with_name(MASK_FILE)
    mask_path = str(masks) if masks.exists() else None
    records = load_deeplesion(str(path), image_root, split, drop_noisy=not args.keep_noisy, mask_path=mask_path)
    return records, f"{path.parent.name or path.stem}, {split if split in SPLITS else Path(split).stem} split"


def named(arguments: list[str]) -> dict[str, str]:
    """Split NAME=FILE; without a name it is the last part of the path that says something.

    Returns:
        name -> file.

    Raises:
        ValueError: if there is no file, or a name twice.
    """
    files = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or os.path.exists(argument):
            path = argument
            parts = [part for part in Path(path).parts if part not in ("inference", "..", os.sep)]
            stems = [Path(part).stem for part in parts if Path(part).stem != "coco_instances_results"]
            name = stems[-1] if stems and stems[-1] not in files else path
        if not (name and path):
            raise ValueError(f"Expected a file or NAME=FILE as a result, got {argument!r}.")
        if name in files:
            raise ValueError(f"Two results are called {name!r}; name them, as in NAME=FILE.")
        files[name] = path
    return files


def load_slices(image: dict) -> tuple[np.ndarray, float]:
    """The key slice with its neighbours, where the ground truth says how far they are apart; otherwise alone."""
    interval = image.get("slice_interval", np.nan)
    slices = GALLERY_SLICES if is_interval(interval) else 1
    known_range = tuple(image["slice_range"]) if "slice_range" in image else None
    stack = load_slice_stack(image["file_name"], slices, interval, GALLERY_INTERVAL, slice_range=known_range)
    return stack, GALLERY_INTERVAL


def main(argv: list[str] | None = None) -> None:
    """
    Args:
        argv: the command line without the program's name; None takes that of the process.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if "--volumes" in (sys.argv[1:] if argv is None else argv):
        from . import evaluate_volumes  # it uses this module

        evaluate_volumes.main(argv)
        return
    args = parse_args(argv)
    try:
        rule = MatchRule(args.overlap, args.threshold, args.plus_one, args.repeat_hits, args.assignment)
        images, title = read_ground_truth(args)
        image_ids = [image["image_id"] for image in images]
        files = named(args.results or args.compare)
        if args.output:
            os.makedirs(args.output, exist_ok=True)
        evaluations = {
            name: SplitEvaluation(
                images,
                read_detections(path, image_ids),
                rule=rule,
                fps_per_image=args.fps_per_image,
                resamples=args.resamples,
                seed=args.seed,
                lesion_types=LESION_TYPES,
                context=args.context,
            )
            for name, path in files.items()
        }
        summaries = {name: evaluation.summary() for name, evaluation in evaluations.items()}
    except (OSError, ValueError) as error:
        sys.exit(printable(str(error)))
    comparison = compare(*evaluations.values()) if args.compare else None

    print(f"{title}: {len(images)} key slices. Sensitivity (%) at false positives per image; {rule}")
    for name, summary in summaries.items():
        print(f"\n{name}: {files[name]}\n{score_table(summary)}")
        for warning in summary["warnings"]:
            print(f"Warning: {name}: {warning}", file=sys.stderr)
    if comparison:
        print(f"\n{' minus '.join(files)}\n{comparison_table(comparison, next(iter(summaries.values())))}")
    if args.output:
        write(args, title, files, evaluations, summaries, comparison)


def write(args, title: str, files: dict, evaluations: dict, summaries: dict, comparison: dict | None) -> None:
    folder, (first, *others) = args.output, files
    content = {
        "ground_truth": args.ground_truth,
        "files": files,
        "results": summaries,
        "comparison": comparison and {"first": first, "second": others[0], **comparison},
    }
    write_json(os.path.join(folder, "evaluation.json"), nan_to_none(content), indent=2)
    with replacing(os.path.join(folder, "scores.csv")) as part, open(part, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(csv_rows(summaries))
    has_images = args.gallery > 0 and (args.image_root or Path(args.ground_truth).with_name("Images_png").is_dir())
    slices = load_slices if has_images else None
    path = write_report(folder, title, evaluations, summaries, comparison, load_slices=slices, gallery=args.gallery)
    print(f"\nWrote {path}, and evaluation.json, scores.csv and pictures/ beside it")
    if args.gallery > 0 and not has_images:
        print("The report has no gallery: give --image-root, the folder of the slices.")
