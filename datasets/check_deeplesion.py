#!/usr/bin/env python
"""Look through a DeepLesion on disk: every row of DL_info.csv, every slice.

    python datasets/check_deeplesion.py --root datasets/deeplesion --json check.json

Exit status 0: training can start. 1: it cannot, and the report says why.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tqdm import tqdm

from a3d_det2.data.preparation import Report, check_annotations, group_by_series, inspect_series
from a3d_det2.data.workers import start_worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with DL_info.csv and Images_png")
    parser.add_argument("--json", help="file to write the report to as well, with every finding")
    parser.add_argument("--examples", type=int, default=5, help="findings of a kind to print (default %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    annotations = check_annotations(os.path.join(args.root, "DL_info.csv"))
    series = group_by_series(annotations.records)
    inspect = partial(inspect_series, image_root=os.path.join(args.root, "Images_png"))
    with ProcessPoolExecutor(args.workers, initializer=start_worker) as pool:
        inspected = list(tqdm(pool.map(inspect, series), total=len(series), desc="check", unit="series"))
    findings = [finding for findings in inspected for finding in findings]
    report = Report(annotations.counts, len(series), annotations.findings + findings)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(report.to_dict(), f, indent=1)
    print(report.to_text(args.examples))
    sys.exit(0 if report.can_train else 1)


if __name__ == "__main__":
    main()
