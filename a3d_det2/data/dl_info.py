"""The rows of DL_info.csv, one lesion each; a malformed value is an error that says where it stands."""

import csv
import math
import os
from collections.abc import Callable, Iterator

from ..files import slice_number

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
# The columns that are read; the file has more.
COLUMNS = tuple(
    "File_name Patient_index Measurement_coordinates Bounding_boxes Lesion_diameters_Pixel_ Coarse_lesion_type "
    "Possibly_noisy Slice_range Spacing_mm_px_ Image_size Train_Val_Test".split()
)
XYXY_ABS = 0  # detectron2.structures.BoxMode.XYXY_ABS, which needs Detectron2


def read_rows(csv_path: str) -> Iterator["Row"]:
    """Read a file with the columns of DL_info.csv, row by row.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing or the file is no CSV file in UTF-8.
    """
    with open(csv_path, newline="", encoding="utf-8-sig") as f:
        try:
            rows = csv.DictReader(f)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(f"{csv_path}: expected the columns of DL_info.csv; {', '.join(missing)} missing.")
            for index, row in enumerate(rows):
                yield Row(csv_path, rows.line_num, index, row)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{csv_path}: expected a CSV file in UTF-8, got something else ({error}).") from error


class Row:
    """One row; every property and method raises ValueError, naming file, line and column, on a malformed value.

    Attributes:
        index: counts the rows from 0, without the header.
        line: in the file, from 1.
        values: column -> text.
    """

    def __init__(self, csv_path: str, line: int, index: int, values: dict[str, str]):
        self.csv_path, self.line, self.index, self.values = csv_path, line, index, values

    def error(self, column: str, expected: str) -> ValueError:
        return ValueError(
            f"{self.csv_path}, line {self.line}, column {column}: expected {expected}, got {self.values[column]!r}."
        )

    @property
    def split(self) -> str:
        """The split of the file that the row is in: "train", "val" or "test"."""
        names = {number: name for name, number in SPLITS.items()}
        if (number := self._integer("Train_Val_Test")) not in names:
            raise self.error("Train_Val_Test", "1, 2 or 3 (train, val, test)")
        return names[number]

    @property
    def is_noisy(self) -> bool:
        return bool(self._integer("Possibly_noisy"))

    @property
    def patient(self) -> int:
        return self._integer("Patient_index")

    @property
    def image_id(self) -> str:
        return self.values["File_name"] or ""

    def key_slice(self, image_root: str) -> dict:
        """Make the dict of :func:`load_deeplesion`, without annotations."""
        series, _, name = self.image_id.rpartition("_")
        is_name = os.path.basename(self.image_id) == self.image_id and self.image_id.isprintable()
        if not is_name or not series.strip(".") or slice_number(name) is None or not name.endswith(".png"):
            raise self.error("File_name", "a name such as 000001_01_01_109.png")
        x_spacing, y_spacing, slice_interval = self._numbers("Spacing_mm_px_", 3)
        width, height = self._numbers("Image_size", 2, int)
        if width < 1 or height < 1:
            raise self.error("Image_size", "a positive width and height")
        first, last = self._numbers("Slice_range", 2, int)
        if not 0 <= first <= last < 100_000:
            raise self.error("Slice_range", "the numbers of the first and last slice")
        return {
            "file_name": os.path.join(image_root, series, name),
            "image_id": self.image_id,
            "height": height,
            "width": width,
            "patient": self.patient,
            "slice_interval": slice_interval,
            "spacing": (x_spacing, y_spacing),
            "slice_range": (first, last),
            "annotations": [],
        }

    def lesion(self) -> dict:
        """Make one of the annotations of :func:`load_deeplesion`."""
        width, height = self._numbers("Image_size", 2, int)
        box = [value - 1 for value in self._numbers("Bounding_boxes", 4)]
        points = [value - 1 for value in self._numbers("Measurement_coordinates", 8)]
        limits = (width, height, width, height)
        clipped = [min(max(value, 0.0), float(limit)) for value, limit in zip(box, limits, strict=True)]
        if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
            raise self.error("Bounding_boxes", f"x1 < x2 and y1 < y2 within the {width} x {height} image")
        if not all(math.isfinite(value) for value in points):
            raise self.error("Measurement_coordinates", "finite numbers")
        return {
            "bbox": clipped,
            "bbox_mode": XYXY_ABS,
            "category_id": 0,
            "iscrowd": 0,
            "row": self.index,
            "recist": [points[i : i + 2] for i in range(0, 8, 2)],
            "diameters": tuple(self._numbers("Lesion_diameters_Pixel_", 2)),
            "lesion_type": self._integer("Coarse_lesion_type"),
        }

    def box_passes_border(self) -> bool:
        """Tell whether the box in the file, before it is clipped, reaches past the image."""
        width, height = self._numbers("Image_size", 2, int)
        x1, y1, x2, y2 = self._numbers("Bounding_boxes", 4)
        return x1 < 1 or y1 < 1 or x2 > width or y2 > height

    def _numbers(self, column: str, count: int, kind: Callable = float) -> list:
        try:
            values = [kind(value) for value in (self.values[column] or "").split(",")]
        except ValueError:
            values = []
        if len(values) != count or (kind is int and max(map(abs, values)) >= 1 << 31):
            noun = "whole number" if kind is int else "number"
            raise self.error(column, f"{count} {noun}s separated by commas" if count > 1 else f"a {noun}")
        return values

    def _integer(self, column: str) -> int:
        return self._numbers(column, 1, int)[0]
