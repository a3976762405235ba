"""Dataset dicts -> COCO's annotation format, with what DeepLesion knows beside it as extra fields."""

import math
import os
from collections.abc import Iterable


def to_coco(records: list[dict], image_root: str) -> dict:
    """
    Args:
        records: as :func:`load_deeplesion` makes them.
        image_root: what file names are given relative to.

    Returns:
        a dict that ``json.dump`` and ``pycocotools.coco.COCO`` take.
            images: id (File_name of the csv, as in the results of an evaluation), file_name, width, height, patient,
                slice_interval (mm; null where the file has no positive one), spacing (mm), slice_range.
            annotations: id, image_id, category_id (0), bbox (x, y, width, height with width = x2 - x1, as in
                ``coco_instances_results.json``), area of the mask or else the box, iscrowd, segmentation (RLE) where
                there are masks, and row, recist, diameters (px), diameters_mm, lesion_type.
            categories: lesion.
    """
    images, annotations = [], []
    for record in records:
        interval = record["slice_interval"]
        images.append(
            {
                "id": record["image_id"],
                "file_name": os.path.relpath(record["file_name"], image_root),
                "width": record["width"],
                "height": record["height"],
                "patient": record["patient"],
                "slice_interval": interval if 0 < interval < math.inf else None,
                "spacing": _finite(record["spacing"]),
                "slice_range": list(record["slice_range"]),
            }
        )
        for lesion in record["annotations"]:
            annotation = _annotation(lesion, record["spacing"])
            annotations.append({"id": len(annotations) + 1, "image_id": record["image_id"], **annotation})
    return {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "lesion"}]}


def _annotation(lesion: dict, spacing: tuple[float, float]) -> dict:
    x1, y1, x2, y2 = lesion["bbox"]
    annotation = {
        "category_id": 0,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "row": lesion["row"],
        "recist": [list(point) for point in lesion["recist"]],
        "diameters": _finite(lesion["diameters"]),
        "diameters_mm": _finite(diameter * spacing[0] for diameter in lesion["diameters"]),
        "lesion_type": lesion["lesion_type"],
    }
    if "segmentation" in lesion:
        from pycocotools import mask

        annotation["segmentation"] = lesion["segmentation"]
        annotation["area"] = int(mask.area(lesion["segmentation"]))
    return annotation


def _finite(values: Iterable[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [value if math.isfinite(value) else None for value in values]
