"""Dataset dicts <-> COCO's annotation format, with what DeepLesion knows beside it as extra fields."""

import json
import math
import os
from collections.abc import Iterable

from ..files import shortened
from ..segmentation import check_polygons, decode_mask
from .dl_info import XYXY_ABS
from .slices import is_interval


def to_coco(records: list[dict], image_root: str) -> dict:
    """Write dataset dicts in COCO's annotation format.

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
                "slice_interval": interval if is_interval(interval) else None,
                "spacing": _finite(record["spacing"]),
                "slice_range": list(record["slice_range"]),
            }
        )
        for lesion in record["annotations"]:
            ids = {"id": len(annotations) + 1, "image_id": record["image_id"]}
            annotations.append(ids | _annotation(lesion, record["spacing"]))
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
        annotation["segmentation"] = mask = lesion["segmentation"]
        annotation["area"] = int(decode_mask(mask, *mask["size"]).sum())
    return annotation


def read_coco(path: str, image_root: str = "") -> list[dict]:
    """Read COCO's annotation format as dataset dicts, the reverse of :func:`to_coco`.

    Args:
        path: of the JSON file. Every category counts as lesion.
        image_root: what file names are relative to.

    Returns:
        dicts as of :func:`load_deeplesion`, each with file_name, image_id, height, width and annotations (bbox as x1,
        y1, x2, y2, and segmentation where there is one); patient, slice_interval, spacing, slice_range, recist,
        diameters and lesion_type only where the file has them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not in this format: a key is missing, an id occurs twice, an annotation is of an unknown
            image, a box is no box, or an annotation is a crowd, which no lesion is. The message names file and entry.
    """
    records, _ = _read(path, image_root, by_category=False)
    return records


def read_coco_categories(path: str, image_root: str = "") -> tuple[list[dict], dict[int, str]]:
    """Read COCO's annotation format as :func:`read_coco` does, with its categories, and with crowds.

    Returns:
        the dicts, and the name of each category by its id in the file, ordered by id. The category_id of an annotation
        counts the categories in this order from 0 on; iscrowd is that of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as :func:`read_coco`, and if there are no categories, or an annotation has none of them.
    """
    return _read(path, image_root, by_category=True)


def _read(path: str, image_root: str, by_category: bool) -> tuple[list[dict], dict[int, str]]:
    try:
        with open(path, encoding="utf-8-sig") as f:
            coco = json.load(f)
        images, annotations = coco["images"], coco["annotations"]
        listed = coco["categories"] if by_category else []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected COCO's annotation format, a JSON object with images and annotations "
            f"({type(error).__name__}: {error})."
        ) from error
    categories = {}
    for category in _entries(listed, "categories", ("id", "name"), path):
        name = f"{path}, category {category['id']!r}"
        categories[_of_kind(category, "id", int, name)] = _of_kind(category, "name", str, name)
    categories = dict(sorted(categories.items()))
    if by_category and (not categories or len(set(categories.values())) < len(categories)):
        names = ", ".join(categories.values()) or "none"
        raise ValueError(f"{path}: expected one category or more, each with a name of its own, got {names}.")
    index = {category: i for i, category in enumerate(categories)}
    records = {}
    for image in _entries(images, "images", ("id", "file_name", "width", "height"), path):
        name = f"{path}, image {image['id']!r}"
        record = {
            "file_name": os.path.join(image_root, _of_kind(image, "file_name", str, name)),
            "image_id": image["id"],
            "height": _of_kind(image, "height", int, name),
            "width": _of_kind(image, "width", int, name),
            "annotations": [],
        }
        if image.get("patient") is not None:
            record["patient"] = _of_kind(image, "patient", (int, str), name)
        if "slice_interval" in image:
            (record["slice_interval"],) = _numbers([image["slice_interval"]], "slice_interval", 1, name)
        if image.get("spacing") is not None:
            record["spacing"] = _numbers(image["spacing"], "spacing", 2, name)
        if image.get("series") is not None:
            record["series"] = _of_kind(image, "series", (int, str), name)
        if image.get("slice_range") is not None:
            record["slice_range"] = list(_numbers(image["slice_range"], "slice_range", 2, name, int))
        records[image["id"]] = record
    for annotation in _entries(annotations, "annotations", ("id", "image_id", "bbox"), path):
        name = f"{path}, annotation {annotation['id']!r}"
        if not isinstance(annotation["image_id"], (int, str)) or annotation["image_id"] not in records:
            raise ValueError(f"{name}: there is no image {shortened(annotation['image_id'])}.")
        if annotation.get("iscrowd") and not by_category:
            raise ValueError(f"{name}: expected a lesion, got a crowd (iscrowd = {annotation['iscrowd']}).")
        x, y, width, height = _numbers(annotation["bbox"], "bbox", 4, name)
        if not math.isfinite(x + y + width + height) or width < 0 or height < 0:
            raise ValueError(f"{name}: expected a bbox of x, y, width and height, got {shortened(annotation['bbox'])}.")
        box = [x, y, x + width, y + height]
        lesion = {"bbox": box, "bbox_mode": XYXY_ABS, "category_id": 0, "iscrowd": int(bool(annotation.get("iscrowd")))}
        if by_category:
            if (category := annotation.get("category_id")) not in index:
                known = ", ".join(map(str, index))
                raise ValueError(f"{name}: expected a category_id of {known}, got {shortened(category)}.")
            lesion["category_id"] = index[category]
        if annotation.get("diameters") is not None:
            lesion["diameters"] = _numbers(annotation["diameters"], "diameters", 2, name)
        if annotation.get("lesion_type") is not None:
            lesion["lesion_type"] = _of_kind(annotation, "lesion_type", int, name)
        if annotation.get("segmentation"):
            _check_mask(annotation["segmentation"], records[annotation["image_id"]], name)
        lesion |= {key: annotation[key] for key in ("row", "recist", "segmentation") if key in annotation}
        records[annotation["image_id"]]["annotations"].append(lesion)
    return list(records.values()), categories


def _entries(entries, kind: str, keys: tuple[str, ...], path: str) -> list[dict]:
    """Check that ``entries`` is a list of dicts that have ``keys``, each with an id of its own."""
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of {kind}, got {shortened(entries)}.")
    seen = set()
    for i, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(f"{path}, entry {i} of {kind}: expected {', '.join(keys)}; {', '.join(missing)} missing.")
        if not isinstance(entry["id"], (int, str)) or entry["id"] in seen or not str(entry["id"]).isprintable():
            raise ValueError(
                f"{path}, entry {i} of {kind}: expected an id, a number or printable text, that occurs once, got "
                f"{shortened(entry['id'])}."
            )
        seen.add(entry["id"])
    return entries


def _of_kind(entry: dict, key: str, kind: type | tuple[type, ...], name: str):
    """Check that ``entry[key]`` is of a type, or one of several."""
    value = entry[key]
    is_kind = isinstance(value, kind) and not isinstance(value, bool)
    if not is_kind or (abs(value) >= 1 << 31 if isinstance(value, int) else not value.isprintable()):
        text = "printable text"
        expected = {str: text, int: "a whole number"}.get(kind, f"a whole number or {text}")
        raise ValueError(f"{name}: expected {expected} as {key}, got {shortened(value)}.")
    return value


def _check_mask(segmentation, record: dict, name: str) -> None:
    """Check what can be seen of a mask without making it."""
    try:
        if isinstance(segmentation, dict):
            size = [record["height"], record["width"]]
            if segmentation.get("size") != size or "counts" not in segmentation:
                raise ValueError(f"expected runs of the image's size {size}, got {shortened(segmentation)}")
        else:
            check_polygons(segmentation)
    except ValueError as error:
        raise ValueError(f"{name}: {error}.") from error


def _numbers(values, key: str, count: int, name: str, kind: type = float) -> tuple:
    """Check that ``values`` is a list of ``count`` numbers; a null among them is NaN."""
    try:
        kinds = (int,) if kind is int else (int, float)
        known = isinstance(values, list) and all(type(v) in kinds or (v is None and kind is float) for v in values)
        if not known or len(values) != count:
            raise ValueError
        return tuple(kind(math.nan if value is None else value) for value in values)
    except (ValueError, OverflowError):
        raise ValueError(f"{name}: expected {count} number(s) as {key}, got {shortened(values)}.") from None


def _finite(values: Iterable[float]) -> list[float | None]:
    """Replace what is not finite, which JSON cannot write, by None."""
    return [value if math.isfinite(value) else None for value in values]
