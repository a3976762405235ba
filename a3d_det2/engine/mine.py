"""Find lesions of a training set that nobody has annotated, as tools/mine_lesions.py and the command a3d-mine do.

    a3d-mine --datasets deeplesion_train --output mined.json --config-file a3d_7slice.yaml --weights model_best.pth
    a3d-train --config-file a3d_7slice.yaml DATASETS.MINED mined.json

Every slice of each series is predicted, and detections are linked to lesions, as in a3d-predict. Those with a score
from --score on are written where they meet a key slice, but for what overlaps an annotated lesion there. The datasets
are those of $DETECTRON2_DATASETS, with their slices as PNG.
"""

import argparse
import logging
import os

import numpy as np
from tqdm import tqdm

from ..data.deeplesion import load_named
from ..data.mined import Mined, write_mined
from ..data.preparation.slices import records_by_series
from ..files import slice_number
from ..volumes import UnreadableVolume
from ..volumes.lesion import Lesion
from ..volumes.linking import box_ious
from ..volumes.png_series import PngFolder
from .mistakes import exit_on_mistakes, mistakes
from .predict import build_predictor
from .prediction_options import add_prediction_options
from .predictor import LesionPredictor

ANNOTATED = 0.3  # IoU with an annotated lesion from which a box is that lesion, as for an anchor


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", required=True, metavar="NAME", help="such as deeplesion_train")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--score", type=float, default=0.5, help="of lesions that are written (%(default)s)")
    add_prediction_options(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE, changes of the config")
    args = parser.parse_args(argv)
    if not args.config_file:
        parser.error("expected a --config-file")
    if not 0 <= args.score <= 1:
        parser.error(f"expected a --score from 0 to 1, got {args.score}")
    folder = os.path.dirname(os.path.abspath(args.output))
    if os.path.isdir(args.output) or not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        parser.error(f"expected a file in a folder that can be written to as --output, got {args.output}")
    if args.step:
        parser.error(f"expected no --step, as every slice is looked at, got {args.step}")
    args.min_score = min(args.min_score, args.score)
    return args


def main(argv: list[str] | None = None) -> None:
    """
    Args:
        argv: the command line without the program's name; None takes that of the process.
    """
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with exit_on_mistakes():
        with mistakes("--datasets: "):
            records = [record for name in args.datasets for record in load_named(name)]
        predictor, how = build_predictor(args)
        predictor.progress = False
        with mistakes(kinds=(OSError, ValueError, RuntimeError, MemoryError)):
            mined, unreadable = mine(predictor, records, args.score)
            write_mined(args.output, mined, {**how, "score": args.score, "unreadable": unreadable})
    for problem in unreadable:
        print(f"  Not looked at: {problem}")
    count, images = sum(map(len, mined.values())), sum(map(bool, mined.values()))
    annotated = sum(len(record["annotations"]) for record in records)
    print(
        f"{count} lesions on {images} of {len(mined)} key slices, beside the {annotated} that are annotated: "
        f"{args.output}"
    )


def mine(predictor: LesionPredictor, records: list[dict], score: float) -> tuple[Mined, list[str]]:
    """Find lesions on key slices that are not annotated there.

    Args:
        predictor: of a trained detector.
        records: as :func:`.load_deeplesion` makes them.
        score: least one of a lesion.

    Returns:
        those of each key slice, and why series could not be looked at, whose key slices have none.
    """
    mined: dict[str, list[dict]] = {}
    unreadable = []
    for group in tqdm(list(records_by_series(records).values()), "mining", unit="series"):
        folder = os.path.dirname(group[0]["file_name"])
        lesions, numbers = [], []
        try:
            series = PngFolder(folder, (*group[0]["spacing"], group[0]["slice_interval"]))
            lesions, numbers = predictor.predict(series.read()), list(series.series.numbers)
        except UnreadableVolume as error:
            unreadable.append(str(error))
        strong = [lesion for lesion in lesions if lesion.score >= score]
        for record in group:
            number = slice_number(record["file_name"])
            mined[record["image_id"]] = on_key_slice(strong, numbers.index(number), record) if number in numbers else []
    return mined, unreadable


def on_key_slice(lesions: list[Lesion], index: int, record: dict) -> list[dict]:
    """What there is of lesions on a key slice, but for those that are annotated.

    Args:
        lesions: of the volume.
        index: of the key slice in the volume.
        record: of the key slice.
    """
    annotated = np.array([annotation["bbox"] for annotation in record["annotations"]]).reshape(-1, 4)
    found = []
    for lesion in lesions:
        one = lesion.on_slice(index)
        if one is None or not (one.box[2:] > one.box[:2]).all():
            continue
        if not len(annotated) or box_ious(one.box[None], annotated).max() < ANNOTATED:
            box = [round(float(value), 2) for value in one.box]
            found.append({"bbox": box, "score": round(lesion.score, 4), "category_id": lesion.category})
    return found
