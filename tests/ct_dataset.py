"""The phantom as a CT dataset that is not DeepLesion: other names, HU + 1024, three classes and crowds."""

import json
import os
from pathlib import Path

import numpy as np

from a3d_det2.data import load_deeplesion
from a3d_det2.data.png import read_png, write_png

CLASSES = {11: "large", 4: "never", 7: "small"}  # by id; of the second there is none


def convert(phantom: Path, output: Path, split: str) -> str:
    """Write ``output/SPLIT.json`` and the slices, all in one folder. A lesion of 12 px and more is large, one below 10
    px small, and those between count as crowds.

    Returns:
        the path of the json file.
    """
    (output / "png").mkdir(parents=True, exist_ok=True)
    records = load_deeplesion(str(phantom / "DL_info.csv"), str(phantom / "Images_png"), split)
    images, annotations = [], []
    for record in records:
        folder, key = os.path.split(record["file_name"])
        series = f"scan {os.path.basename(folder)}"
        for name in os.listdir(folder):
            stored = read_png(os.path.join(folder, name)).astype(int) - 32768 + 1024
            target = output / "png" / f"{series}_slice{name[:-4]}_v2.png"
            write_png(str(target), np.clip(stored, 0, 65535).astype(np.uint16))
        images.append(
            {
                "id": len(images) + 1,
                "file_name": f"{series}_slice{key[:-4]}_v2.png",
                "width": record["width"],
                "height": record["height"],
                "slice_interval": record["slice_interval"],
                "patient": f"case {record['patient']}",
                "series": series,
            }
        )
        for lesion in record["annotations"]:
            x1, y1, x2, y2 = lesion["bbox"]
            entry = {"image_id": len(images), "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            large, small = lesion["diameters"][0] >= 12, lesion["diameters"][0] < 10
            for category in (11,) if large else (7,) if small else (11, 7):
                entry |= {"id": len(annotations) + 1, "category_id": category, "iscrowd": int(not (large or small))}
                annotations.append(dict(entry))
    categories = [{"id": number, "name": name} for number, name in CLASSES.items()]
    path = output / f"{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(path)
