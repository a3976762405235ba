#!/usr/bin/env python
"""Write a synthetic DeepLesion: 16-bit slices in Images_png/ and a complete DL_info.csv; or volumes of a whole body.

The same arguments give the same bytes, whatever the number of workers.

    python datasets/make_phantom.py --output datasets/phantom
    python datasets/make_phantom.py --output datasets/phantom512 --size 512 --train 500
    python datasets/make_phantom.py --output rendered --from-csv DL_info.csv --limit 300  # pixels for real annotations
    python datasets/make_phantom.py --output volumes --volumes 20 --format dicom          # with truth/*.json
    python datasets/make_phantom.py --output volumes/phantom --from-volumes --test 40     # to learn from such volumes
"""

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tqdm import tqdm

from a3d_det2.data.deeplesion import load_deeplesion
from a3d_det2.data.dl_info import SPLITS, read_rows
from a3d_det2.data.phantom import INTERVALS, Series, random_series, series_from_annotations, write_series
from a3d_det2.data.preparation.slices import records_by_series
from a3d_det2.volumes.phantom.deeplesion import VolumeOptions, write_rows, write_training_series
from a3d_det2.volumes.phantom.sets import FORMATS, write_volume


def invented(args: argparse.Namespace) -> tuple[list[Series], list[dict]]:
    """Invent series, and the rows of DL_info.csv for them."""
    series, rows, index = [], [], 0
    how = {"size": args.size, "intervals": args.intervals, "context": args.context, "seed": args.seed}
    for split in SPLITS:
        for _ in range(getattr(args, split)):
            one, its_rows = random_series(index, split, **how)
            series.append(one)
            rows += its_rows
            index += 1
        index += index % 2  # two in a row are one patient, and no patient is in two splits
    return series, rows


def annotated(args: argparse.Namespace) -> tuple[list[Series], list[dict]]:
    """Make series of the geometry in a DL_info.csv, and give its rows for them."""
    records = [record for split in SPLITS for record in load_deeplesion(args.from_csv, "", split)[: args.limit]]
    series = [series_from_annotations(group, seed=args.seed) for group in records_by_series(records).values()]
    kept = {record["image_id"] for record in records}
    return series, [row.values for row in read_rows(args.from_csv) if row.image_id in kept]


def write_volumes(args: argparse.Namespace) -> None:
    """Write volumes of a whole body, with their truth."""
    os.makedirs(args.output, exist_ok=True)
    write = partial(write_volume, output=args.output, kind=args.format, options=volume_options(args))
    lesions = sum(in_parallel(write, range(args.volumes), args.workers, "volume"))
    print(f"Wrote {args.volumes} volumes with {lesions} lesions to {args.output}")


def from_volumes(args: argparse.Namespace, image_root: str) -> tuple[int, list[dict]]:
    """Write series of slices around lesions of such volumes; give their number and rows of DL_info.csv."""
    write = partial(write_training_series, image_root=image_root, context=args.context, options=volume_options(args))
    jobs = [(number, split) for split in SPLITS for number in range(getattr(args, split))]
    jobs = [(number, split, patient) for patient, (number, split) in enumerate(jobs, start=1)]
    rows = [row for its_rows in in_parallel(partial(call, write), jobs, args.workers, "series") for row in its_rows]
    return len(jobs), rows


def volume_options(args: argparse.Namespace) -> VolumeOptions:
    return VolumeOptions(
        size=args.size or 256,
        intervals=tuple(args.intervals or ()),
        lesion_size=tuple(args.lesion_size),
        lesion_depth=args.lesion_depth and tuple(args.lesion_depth),
        seed=args.seed,
    )


def call(function: Callable, arguments: tuple):
    return function(*arguments)


def in_parallel(function: Callable, jobs: Sequence, workers: int, unit: str, chunksize: int = 1) -> list:
    with ProcessPoolExecutor(workers) as pool:
        done = pool.map(function, jobs, chunksize=chunksize)
        return list(tqdm(done, total=len(jobs), desc="phantom", unit=unit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write; must not hold a dataset yet")
    parser.add_argument("--train", type=int, default=240, help="series in the train split (default %(default)s)")
    parser.add_argument("--val", type=int, default=40, help="series in the val split (default %(default)s)")
    parser.add_argument("--test", type=int, default=80, help="series in the test split (default %(default)s)")
    parser.add_argument("--size", type=int, help="image width and height (default 128; 256 for volumes)")
    parser.add_argument(
        "--intervals", "--slice-interval", type=float, nargs="+", help="slice intervals to choose from in mm"
    )
    parser.add_argument("--context", type=float, default=15.0, help="mm on either side of the key slice")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--from-csv", help="take the geometry of this DL_info.csv instead of inventing it")
    source.add_argument(
        "--from-volumes",
        action="store_true",
        help="series are parts of volumes such as --volumes writes, and of none of these",
    )
    source.add_argument("--volumes", type=int, help="write this many volumes of a whole body, with their truth")
    parser.add_argument("--format", choices=FORMATS, default="nifti", help="of --volumes (default %(default)s)")
    parser.add_argument(
        "--lesion-size", type=float, nargs=2, default=(5.0, 40.0), metavar=("LOW", "HIGH"),
        help="in volumes: long axis in the axial plane in mm (default 5 40)",
    )  # fmt: skip
    parser.add_argument(
        "--lesion-depth", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="in volumes: semi-axis from head to feet in mm (default 0.7 to 1.2 of the mean radius in the axial plane)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, help="with --from-csv: no more than this many key slices per split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    csv_path, image_root = os.path.join(args.output, "DL_info.csv"), os.path.join(args.output, "Images_png")
    for path in (csv_path, image_root, os.path.join(args.output, "truth")):
        if os.path.exists(path):  # slices of another phantom would become neighbours
            raise SystemExit(f"{path} exists: remove {args.output} or choose another --output.")
    if args.volumes is not None:
        write_volumes(args)
        return
    if args.from_volumes:
        count, rows = from_volumes(args, image_root)
    else:
        args.size, args.intervals = args.size or 128, args.intervals or INTERVALS
        series, rows = annotated(args) if args.from_csv else invented(args)
        count = len(series)
        in_parallel(partial(write_series, image_root=image_root), series, args.workers, "series", chunksize=4)
    if not rows:
        raise SystemExit("Nothing to write: no key slices were asked for.")
    write_rows(csv_path, rows)  # last: a folder with a DL_info.csv is complete
    print(f"Wrote {count} series with {len(rows)} lesions to {args.output}")


if __name__ == "__main__":
    main()
