#!/usr/bin/env python
"""Write a synthetic DeepLesion: 16-bit slices in Images_png/ and a complete DL_info.csv.

The same arguments give the same bytes, whatever the number of workers.

    python datasets/make_phantom.py --output datasets/phantom
    python datasets/make_phantom.py --output datasets/phantom512 --size 512 --train 500
    python datasets/make_phantom.py --output rendered --from-csv DL_info.csv --limit 300  # pixels for real annotations
"""

import argparse
import csv
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tqdm import tqdm

from a3d_det2.data.deeplesion import load_deeplesion
from a3d_det2.data.dl_info import SPLITS, read_rows
from a3d_det2.data.phantom import INTERVALS, Series, random_series, series_from_annotations, write_series
from a3d_det2.data.preparation.slices import records_by_series
from a3d_det2.files import replacing


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write; must not hold a dataset yet")
    parser.add_argument("--train", type=int, default=240, help="series in the train split (default %(default)s)")
    parser.add_argument("--val", type=int, default=40, help="series in the val split (default %(default)s)")
    parser.add_argument("--test", type=int, default=80, help="series in the test split (default %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="image width and height (default %(default)s)")
    parser.add_argument("--intervals", type=float, nargs="+", default=INTERVALS, help="slice intervals in mm")
    parser.add_argument("--context", type=float, default=15.0, help="mm on either side of the key slice")
    parser.add_argument("--from-csv", help="take the geometry of this DL_info.csv instead of inventing it")
    parser.add_argument("--limit", type=int, help="with --from-csv: no more than this many key slices per split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    csv_path, image_root = os.path.join(args.output, "DL_info.csv"), os.path.join(args.output, "Images_png")
    for path in (csv_path, image_root):
        if os.path.exists(path):  # slices of another phantom would become neighbours
            raise SystemExit(f"{path} exists: remove {args.output} or choose another --output.")
    series, rows = annotated(args) if args.from_csv else invented(args)
    if not series:
        raise SystemExit("Nothing to write: no key slices were asked for.")
    write = partial(write_series, image_root=image_root)
    with ProcessPoolExecutor(args.workers) as pool:
        for _ in tqdm(pool.map(write, series, chunksize=4), total=len(series), desc="phantom", unit="series"):
            pass
    # Last, and in one step: a folder with a DL_info.csv is complete.
    with replacing(csv_path) as part, open(part, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    print(f"Wrote {len(series)} series with {len(rows)} lesions to {args.output}")


if __name__ == "__main__":
    main()
