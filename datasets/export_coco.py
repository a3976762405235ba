#!/usr/bin/env python
"""Write a split of DeepLesion as COCO JSON, with RECIST points, diameters, thickness, type and patient beside it.

    python datasets/export_coco.py --root datasets/deeplesion --split test --output deeplesion_test.json
    python datasets/export_coco.py --root datasets/deeplesion --split my_patients.txt --output my_patients.json

Image ids are File_name of the csv, as in the coco_instances_results.json of an evaluation.
"""

import argparse
import json
import os
import sys

from a3d_det2.data.coco import to_coco
from a3d_det2.data.deeplesion import load_with_masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with DL_info.csv and Images_png")
    parser.add_argument("--split", required=True, help="train, val, test, or a split file (.txt)")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--keep-noisy", action="store_true", help="with the rows marked Possibly_noisy")
    args = parser.parse_args()
    csv_path, image_root = os.path.join(args.root, "DL_info.csv"), os.path.join(args.root, "Images_png")
    try:
        records = load_with_masks(csv_path, image_root, args.split, drop_noisy=not args.keep_noisy)
    except (OSError, ValueError) as error:
        sys.exit(f"{error}")
    coco = to_coco(records, image_root)
    with open(args.output, "w", encoding="utf-8") as f:
        json.dump(coco, f, allow_nan=False)
    print(f"Wrote {len(coco['images'])} key slices with {len(coco['annotations'])} lesions to {args.output}")


if __name__ == "__main__":
    main()
