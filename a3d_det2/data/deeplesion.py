"""DeepLesion's DL_info.csv -> dataset dicts in Detectron2's format, and their registration.

Reading needs no Detectron2 and opens no image.
"""

import csv
import logging
import math
import os
from collections.abc import Callable, Iterator

SPLITS = {"train": 1, "val": 2, "test": 3}  # Train_Val_Test in the file
# Coarse_lesion_type in the file; -1 (not labelled) in the train split.
LESION_TYPES = {
    1: "bone",
    2: "abdomen",
    3: "mediastinum",
    4: "liver",
    5: "lung",
    6: "kidney",
    7: "soft tissue",
    8: "pelvis",
}
_XYXY_ABS = 0  # detectron2.structures.BoxMode.XYXY_ABS, which this module cannot import


def load_deeplesion(csv_path: str, image_root: str, split: str, *, drop_noisy: bool = False) -> list[dict]:
    """Read one split of DL_info.csv, or of a file with the same columns.

    Args:
        csv_path: path of DL_info.csv.
        image_root: folder with the slices, ``Images_png``: slice 109 of series 000001_01_01 is
            ``image_root/000001_01_01/109.png``.
        split: "train", "val" or "test".
        drop_noisy: leave out rows marked ``Possibly_noisy``, as the published evaluation does.

    Returns:
        one dict per key slice, in the order of the file:
            file_name (str): path of the key slice.
            image_id (str): File_name of the row, such as "000001_01_01_109.png".
            height, width (int): pixels.
            patient (int): Patient_index.
            slice_interval (float): distance between slices in mm, as in the file: it can be NaN, zero or negative.
            spacing (tuple): pixel size (x, y) in mm.
            slice_range (tuple): first and last slice of the series on disk.
            annotations: a list of dicts, one per lesion:
                bbox: [x1, y1, x2, y2], 0-based pixels (the file counts from 1), clipped to the image.
                bbox_mode: BoxMode.XYXY_ABS. category_id: 0. iscrowd: 0.
                recist: 4 points [x, y], 0-based: both ends of the long axis, then of the short axis.
                diameters: long and short axis in pixels.
                lesion_type (int): key of ``LESION_TYPES``, or -1.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: on an unknown split, a missing column, a malformed value, or rows of one key slice that disagree on
            its size; the message names the file, line and column.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r} of {csv_path}. Choose one of {', '.join(SPLITS)}.")
    records: dict[str, dict] = {}
    for row in _read_rows(csv_path):
        row_split = row.integer("Train_Val_Test")
        if row_split not in SPLITS.values():
            raise row.error("Train_Val_Test", "1, 2 or 3 (train, val, test)")
        if row_split != SPLITS[split] or (drop_noisy and row.integer("Possibly_noisy")):
            continue
        key_slice = _key_slice(row, image_root)
        record = records.setdefault(key_slice["image_id"], key_slice)
        if (record["width"], record["height"]) != (key_slice["width"], key_slice["height"]):
            raise row.error("Image_size", "what the row above says of the same File_name")
        record["annotations"].append(_lesion(row, key_slice["width"], key_slice["height"]))
    _warn_bad_intervals(csv_path, split, records)
    return list(records.values())


_COLUMNS = (
    "File_name",
    "Patient_index",
    "Measurement_coordinates",
    "Bounding_boxes",
    "Lesion_diameters_Pixel_",
    "Coarse_lesion_type",
    "Possibly_noisy",
    "Slice_range",
    "Spacing_mm_px_",
    "Image_size",
    "Train_Val_Test",
)


def _read_rows(csv_path: str) -> Iterator["_Row"]:
    with open(csv_path, newline="", encoding="utf-8-sig") as f:
        try:
            rows = csv.DictReader(f)
            missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(f"{csv_path}: expected the columns of DL_info.csv; {', '.join(missing)} missing.")
            for row in rows:
                yield _Row(csv_path, rows.line_num, row)
        except UnicodeDecodeError as error:
            raise ValueError(f"{csv_path}: expected a CSV file in UTF-8, got other bytes ({error}).") from error


def _warn_bad_intervals(csv_path: str, split: str, records: dict[str, dict]) -> None:
    bad = [name for name, record in records.items() if not 0 < record["slice_interval"] < math.inf]
    if bad:
        logging.getLogger(__name__).warning(
            f"{csv_path}: {len(bad)} of {len(records)} key slices in the {split} split have no positive slice interval "
            f"in Spacing_mm_px_ ({bad[0]} is the first); their key slice is repeated in place of the neighbours."
        )


class _Row:
    """One row of the file; parses its values and says where a malformed one stands."""

    def __init__(self, csv_path: str, line: int, values: dict[str, str]):
        self._csv_path, self._line, self._values = csv_path, line, values

    def error(self, column: str, expected: str) -> ValueError:
        return ValueError(
            f"{self._csv_path}, line {self._line}, column {column}: expected {expected}, got {self._values[column]!r}."
        )

    def text(self, column: str) -> str:
        return self._values[column] or ""

    def numbers(self, column: str, count: int, kind: Callable = float) -> list:
        try:
            values = [kind(value) for value in self.text(column).split(",")]
        except ValueError:
            values = []
        if len(values) != count:
            noun = "whole number" if kind is int else "number"
            raise self.error(column, f"{count} {noun}s separated by commas" if count > 1 else f"a {noun}")
        return values

    def integer(self, column: str) -> int:
        return self.numbers(column, 1, int)[0]


def _key_slice(row: _Row, image_root: str) -> dict:
    name = row.text("File_name")
    stem, extension = os.path.splitext(name)
    series, _, index = stem.rpartition("_")
    if not series or not index.isdigit() or extension != ".png":
        raise row.error("File_name", "a name such as 000001_01_01_109.png")
    x_spacing, y_spacing, slice_interval = row.numbers("Spacing_mm_px_", 3)
    width, height = row.numbers("Image_size", 2, int)
    if width < 1 or height < 1:
        raise row.error("Image_size", "a positive width and height")
    return {
        "file_name": os.path.join(image_root, series, index + extension),
        "image_id": name,
        "height": height,
        "width": width,
        "patient": row.integer("Patient_index"),
        "slice_interval": slice_interval,
        "spacing": (x_spacing, y_spacing),
        "slice_range": tuple(row.numbers("Slice_range", 2, int)),
        "annotations": [],
    }


def _lesion(row: _Row, width: int, height: int) -> dict:
    box = [value - 1 for value in row.numbers("Bounding_boxes", 4)]
    points = [value - 1 for value in row.numbers("Measurement_coordinates", 8)]
    limits = (width, height, width, height)
    clipped = [min(max(value, 0.0), float(limit)) for value, limit in zip(box, limits, strict=True)]
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        raise row.error("Bounding_boxes", f"x1 < x2 and y1 < y2 within the {width} x {height} image")
    if not all(math.isfinite(value) for value in points):
        raise row.error("Measurement_coordinates", "finite numbers")
    return {
        "bbox": clipped,
        "bbox_mode": _XYXY_ABS,
        "category_id": 0,
        "iscrowd": 0,
        "recist": [points[i : i + 2] for i in range(0, 8, 2)],
        "diameters": tuple(row.numbers("Lesion_diameters_Pixel_", 2)),
        "lesion_type": row.integer("Coarse_lesion_type"),
    }


def register_deeplesion(name: str, csv_path: str, image_root: str, split: str, *, drop_noisy: bool = True) -> None:
    """Register a split in Detectron2's catalogs; the file is read when the dataset is first used.

    Args:
        name: what DATASETS.TRAIN and DATASETS.TEST call it.
        csv_path, image_root, split, drop_noisy: see :func:`load_deeplesion`. Noisy rows are dropped by default, as in
            the published evaluation.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    DatasetCatalog.register(name, lambda: load_deeplesion(csv_path, image_root, split, drop_noisy=drop_noisy))
    MetadataCatalog.get(name).set(
        thing_classes=["lesion"], evaluator_type="deeplesion", csv_file=csv_path, image_root=image_root
    )


def register_all_deeplesion(root: str) -> None:
    """Register deeplesion_{train,val,test} and phantom_{train,val,test} under ``root``, ``$DETECTRON2_DATASETS``."""
    for dataset in ("deeplesion", "phantom"):
        folder = os.path.join(root, dataset)
        for split in SPLITS:
            register_deeplesion(
                f"{dataset}_{split}", os.path.join(folder, "DL_info.csv"), os.path.join(folder, "Images_png"), split
            )
