"""Score lesions that were found in volumes, as tools/evaluate.py --volumes and a3d-evaluate --volumes do.

    a3d-evaluate --volumes --ground-truth labels --results a3d=predictions --images cts --output evaluation
    a3d-evaluate --volumes --ground-truth DeepLesion_manual_1K_test_release.pkl --split test --results boxes.csv

The ground truth is a folder of label maps (NAME.nii.gz or NAME_labels.nii.gz, a number for each lesion), a CSV or JSON
file of boxes, or the annotations of DeepLesion's manual test set. Results are a folder with what a3d-predict wrote of
each volume in NAME/, or a CSV file with the columns volume, x1, y1, z1, x2, y2, z2, score. Boxes name their first and
last voxels. docs/volume_evaluation.md has the rules. --output gets evaluation.json, scores.csv, report.html and
pictures/.
"""

import argparse
import csv
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from ..checkpoint.unpickling import read_pickle
from ..evaluation.evaluation_files import write_json
from ..evaluation.froc_evaluation import compare, nan_to_none
from ..evaluation.report.tables import comparison_table
from ..evaluation.report.volumes import strata_table, volume_table, write_volume_report
from ..evaluation.volumes import RULES, FoundVolume, TrueVolume, VolumeEvaluation
from ..evaluation.volumes.evaluation import FPS_PER_VOLUME
from ..evaluation.volumes.results import read_results
from ..evaluation.volumes.rules import NEVER_ALONE
from ..evaluation.volumes.truth import from_manual_test_set, read_boxes, read_json_boxes
from ..files import printable, replacing
from .evaluate import at_least, named

LABEL_ENDS = ("_labels.nii.gz", "_labels.nii", ".nii.gz", ".nii")
SPLITS = ("val", "test")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", action="store_true", help="score volumes, as described here")
    results = parser.add_mutually_exclusive_group(required=True)
    results.add_argument("--results", nargs="+", metavar="[NAME=]PATH", help="folder or CSV file")
    results.add_argument("--compare", nargs=2, metavar="[NAME=]PATH", help="two of them, with a test of the difference")
    parser.add_argument("--ground-truth", required=True, metavar="PATH", help="folder, .csv, .json or .pkl")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of the manual test set (%(default)s)")
    text = "of results of a3d-predict: without or with the detector's margin (tight for label maps)"
    parser.add_argument("--boxes", choices=("tight", "detector"), help=text)
    text = "rules of a hit; strata and gallery are by the first (all that can be used)"
    parser.add_argument("--rules", nargs="+", choices=RULES, metavar="RULE", help=f"{text}: {', '.join(RULES)}")
    parser.add_argument("--images", metavar="DIR", help="of the CTs, NAME.nii.gz or NAME/, for the gallery")
    parser.add_argument("--output", help="folder to write to")
    parser.add_argument("--gallery", type=at_least(int, 0), default=6, help="lesions in each part (%(default)s)")
    parser.add_argument("--fps-per-volume", type=at_least(float, 0), nargs="+", default=FPS_PER_VOLUME, metavar="FPS")
    parser.add_argument("--resamples", type=at_least(int, 0), default=1000, help="of the bootstrap (%(default)s)")
    parser.add_argument("--seed", type=at_least(int, 0), default=0, help="of the bootstrap (%(default)s)")
    return parser.parse_args(argv)


def read_truth(path: str, split: str) -> list[TrueVolume]:
    """Read a ground truth of any kind.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it cannot be understood, or has no volume.
    """
    if os.path.isdir(path):
        volumes = list(_label_maps(path))
    elif path.lower().endswith(".pkl"):
        content = read_pickle(path)
        if not isinstance(content, Mapping) or not isinstance(content.get(split), Mapping):
            raise ValueError(
                f"{path}: expected the splits {', '.join(SPLITS)} of the manual test set, got something else."
            )
        volumes = from_manual_test_set(content[split])
    else:
        volumes = read_json_boxes(path) if path.lower().endswith(".json") else read_boxes(path)
    if not volumes:
        raise ValueError(f"{path}: expected volumes, got none.")
    return volumes


def _label_maps(folder: str):
    from ..volumes.labelled import read_labels

    seen: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        end = next((end for end in LABEL_ENDS if name.lower().endswith(end)), None)
        if end is None:
            continue
        volume = name[: -len(end)]
        if volume in seen:
            raise ValueError(f"{folder}: expected one label map of each volume, got {seen[volume]} and {name}.")
        seen[volume] = name
        read = read_labels(os.path.join(folder, name))
        yield TrueVolume(
            id=volume,
            boxes=read.boxes,
            lesions=[str(number) for number in read.numbers],
            key_boxes=read.key_boxes,
            centers=read.centers,
            long_mm=np.array([lesion.long_mm for lesion in read.lesions]),
            short_mm=np.array([lesion.short_mm for lesion in read.lesions]),
            volume_mm3=np.array([lesion.volume_mm3 for lesion in read.lesions]),
            to_mm=read.to_mm,
            slice_axis=read.slice_axis,
            heights=read.heights,
            shape=read.shape,
            labels=read.labels,
            numbers=read.numbers,
            affine=read.affine,
        )


def chosen_rules(
    wanted: Sequence[str] | None, volumes: Sequence[TrueVolume], found: Mapping[str, Sequence[FoundVolume]]
) -> tuple[list[str], list[str]]:
    """The rules to judge by, and why others are left out.

    Args:
        wanted: None is all that can be used.

    Raises:
        ValueError: if one that is wanted cannot be used.
    """

    def problem(name: str) -> str:
        pairs = ((one, volume) for results in found.values() for one, volume in zip(results, volumes, strict=True))
        return next(filter(None, (RULES[name].problem(*pair) for pair in pairs)), "")

    problems = {name: problem(name) for name in wanted or RULES}
    if wanted is None:
        usable = [name for name, why in problems.items() if not why]
        # IoU 0.3 first: strata and pictures are by it.
        usable.sort(key=lambda name: name != "iou3d_0.3")
        return usable, [f"{why}: it is left out." for why in problems.values() if why]
    if why := next(filter(None, problems.values()), ""):
        raise ValueError(f"{why}.")
    if NEVER_ALONE in wanted and not any(name.startswith("iou3d") for name in wanted):
        return list(dict.fromkeys([*wanted, "iou3d_0.1", "iou3d_0.3"])), [
            f"{NEVER_ALONE} takes a box on one slice for a whole lesion: 3D IoU is shown beside it."
        ]
    return list(dict.fromkeys(wanted)), []


def lesion_drawer(folder: str, volumes: Sequence[TrueVolume], found: Sequence[FoundVolume]) -> Callable[..., Figure]:
    """What draws a lesion of the truth, or one that was found, in three planes of its CT."""
    from ..volumes import Detection, read_volume
    from ..volumes.label_map import volume_indices
    from ..volumes.linking import Linked
    from ..volumes.measurement import measure_lesion
    from ..volumes.pictures import plot_lesion

    last: dict[str, object] = {}

    def load(name: str):
        if name not in last:
            paths = [os.path.join(folder, name + end) for end in (".nii.gz", ".nii", "")]
            path = next(filter(os.path.exists, paths), None)
            if path is None:
                raise FileNotFoundError(f"{paths[0]}: no such CT")
            last.clear()
            last[name] = read_volume(path)
        return last[name]

    def draw(index: int, number: int, is_true: bool) -> Figure:
        volume = load(volumes[index].id)
        boxes = volumes[index].boxes if is_true else found[index].boxes
        low, high = np.sort(volume_indices(volume, boxes[number].reshape(2, 3)), axis=0)
        first, last_slice = (int(k) for k in np.clip(np.rint([low[2], high[2]]), 0, len(volume.hu) - 1))
        score = 1.0 if is_true else float(found[index].scores[number])
        box = np.array([*low[:2], *high[:2]])
        detections = [Detection(k, box, score) for k in range(first, last_slice + 1)]
        lesion = measure_lesion(number + 1, Linked(detections, score), volume, np.zeros(2))
        lesion = replace(lesion, largest=(first + last_slice) // 2)  # all are as large
        name = f"lesion {volumes[index].lesions[number]}" if is_true else f"result, score {score:.2f}"
        return plot_lesion(volume, lesion, name)

    return draw


def main(argv: list[str] | None = None) -> None:
    """
    Args:
        argv: the command line without the program's name; None takes that of the process.
    """
    args = parse_args(argv)
    try:
        volumes = read_truth(args.ground_truth, args.split)
        files = named(args.results or args.compare)
        found, warnings = {}, []
        tight = args.boxes == "tight" or (args.boxes is None and volumes[0].labels is not None)
        for name, path in files.items():
            found[name], said = read_results(path, volumes, tight)
            warnings += [f"{name}: {text}" for text in said]
        rules, left_out = chosen_rules(args.rules, volumes, found)
        if args.output:
            os.makedirs(args.output, exist_ok=True)
        how = {"fps_per_volume": args.fps_per_volume, "resamples": args.resamples, "seed": args.seed}
        evaluations = {
            rule: {name: VolumeEvaluation(volumes, one, RULES[rule], **how) for name, one in found.items()}
            for rule in rules
        }
        summaries = {
            rule: {name: evaluation.summary() for name, evaluation in results.items()}
            for rule, results in evaluations.items()
        }
    except (OSError, ValueError) as error:
        sys.exit(printable(str(error)))
    comparisons = {rule: compare(*results.values()) for rule, results in evaluations.items()} if args.compare else None
    first = next(iter(summaries[rules[0]].values()))
    print(
        f"{args.ground_truth}: {first['num_lesions']} lesions in {first['num_images']} volumes, "
        f"{first['num_volumes_without_lesions']} of them without any. Sensitivity (%) at false positives per volume:\n"
        f"{volume_table(summaries)}\nIntervals by {first['resamples']} resamples of the "
        f"{first['resampled']}."
    )
    for name, summary in summaries[rules[0]].items():
        print(f"\n{name}, {rules[0]}:\n{strata_table(summary)}")
        for measure, agreement in summary["agreement"].items():
            low, high = agreement["limits"]
            print(
                f"{measure}: found minus annotated {agreement['bias']:.2f}, limits of agreement {low:.2f} to "
                f"{high:.2f}, {agreement['num_lesions']} lesions"
            )
    for rule, comparison in (comparisons or {}).items():
        print(f"\n{' minus '.join(files)}, {rule}\n{comparison_table(comparison, summaries[rule][next(iter(files))])}")
    warnings += [text for summary in summaries[rules[0]].values() for text in summary["warnings"]]
    warnings = list(dict.fromkeys([*left_out, *warnings]))
    for text in warnings:
        print(f"Warning: {text}", file=sys.stderr)
    if args.output:
        write(args, volumes, files, found, evaluations, summaries, comparisons, warnings)


def write(args, volumes, files, found, evaluations, summaries, comparisons, warnings) -> None:
    content = {
        "ground_truth": args.ground_truth,
        "files": files,
        "rules": summaries,
        "comparison": comparisons,
        "warnings": warnings,
    }
    write_json(os.path.join(args.output, "evaluation.json"), nan_to_none(content), indent=2)
    with replacing(os.path.join(args.output, "scores.csv")) as part, open(part, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["rule", "result", *(f"{level:g}" for level in args.fps_per_volume), "mean"])
        for rule, results in summaries.items():
            for name, summary in results.items():
                writer.writerow([rule, name, *summary["sensitivity"], summary["average"]])
    first = next(iter(found.values()))
    draw = lesion_drawer(args.images, volumes, first) if args.images and args.gallery else None
    title = os.path.basename(os.path.normpath(args.ground_truth))
    path = write_volume_report(args.output, title, evaluations, summaries, warnings, draw=draw, gallery=args.gallery)
    print(f"\nWrote {path}, and evaluation.json, scores.csv and pictures/ beside it")
    if args.gallery and not args.images:
        print("The report has no gallery: give --images, the folder of the CTs.")


if __name__ == "__main__":
    main()
