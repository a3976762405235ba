"""The lesions that there are in a volume."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...csv_table import read_table
from ...files import shortened
from ..matching import is_box
from .columns import BOX, numbers

SPACING = ("spacing_x", "spacing_y", "spacing_z")
FLAGS = {"": False, "0": False, "false": False, "1": True, "true": True}
OPTIONAL = ("lesion", "patient", "diameter_mm", "excluded", *SPACING)


@dataclass(frozen=True, eq=False)
class TrueVolume:
    """A volume with its lesions; what is not known of them is NaN or None.

    Attributes:
        id: of the volume.
        boxes: (m, 6).
        patient: whose volume it is; None where no volume tells.
        lesions: name of each, none of them twice; () numbers them.
        excluded: (m,) bool, findings that nobody need find.
        key_boxes: (m, 6), the box on the slice on which the lesion would be annotated, flat along ``slice_axis``.
        centers: (m, 3) voxels; None takes the middle of the boxes.
        long_mm, short_mm, volume_mm3: (m,) measurements; below 0 is not known, as in LUNA16's annotations.
        to_mm: (3, 3), from steps between voxels to mm.
        slice_axis: of the three, along which slices follow each other.
        heights: (m,) from 0 at the head's end of the volume to 1 at that of the feet.
        shape: voxels along each axis.
        labels: gives an array of this shape with the number of the lesion that each voxel is of, 0 for none.
        numbers: (m,) int, of the lesions in ``labels``.
        affine: (4, 4), from voxels to patient coordinates, RAS, mm.

    Raises:
        ValueError: if a box is none, a lesion is named twice, or an array has not one entry for each lesion.
    """

    id: str
    boxes: np.ndarray
    patient: str | None = None
    lesions: Sequence[str] = ()
    excluded: np.ndarray | None = None
    key_boxes: np.ndarray | None = None
    centers: np.ndarray | None = None
    long_mm: np.ndarray | None = None
    short_mm: np.ndarray | None = None
    volume_mm3: np.ndarray | None = None
    to_mm: np.ndarray | None = None
    slice_axis: int = 2
    heights: np.ndarray | None = None
    shape: tuple[int, int, int] | None = None
    labels: Callable[[], np.ndarray] | None = None
    numbers: np.ndarray | None = None
    affine: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self):
        boxes = np.asarray(self.boxes, dtype=np.float64)
        boxes = boxes.reshape(0, 6) if boxes.size == 0 else boxes
        count = len(boxes)
        if boxes.ndim != 2 or boxes.shape[1] != 6:
            raise ValueError(f"{self.id}: expected boxes of the shape (m, 6), got {boxes.shape}.")
        if not is_box(boxes).all():
            first = int(np.argmin(is_box(boxes)))
            raise ValueError(
                f"{self.id}, lesion {first}: expected x1 <= x2, y1 <= y2 and z1 <= z2, got {boxes[first].tolist()}."
            )
        names = tuple(self.lesions) or tuple(str(number) for number in range(1, count + 1))
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise ValueError(f"{self.id}: expected a name of its own for each lesion, got {twice!r} twice.")
        arrays = {
            "excluded": (self.excluded, (count,), False),
            "key_boxes": (self.key_boxes, (count, 6), math.nan),
            "centers": (self.centers, (count, 3), None),
            "long_mm": (self.long_mm, (count,), math.nan),
            "short_mm": (self.short_mm, (count,), math.nan),
            "volume_mm3": (self.volume_mm3, (count,), math.nan),
            "heights": (self.heights, (count,), math.nan),
        }
        found: dict[str, object] = {"boxes": boxes, "lesions": names}
        for name, (value, shape, default) in arrays.items():
            if value is None:
                value = (boxes[:, :3] + boxes[:, 3:]) / 2 if default is None else np.full(shape, default)
            found[name] = np.asarray(value, dtype=bool if name == "excluded" else np.float64).reshape(shape)
        if len(names) != count:
            raise ValueError(f"{self.id}: expected {count} names of lesions, got {len(names)}.")
        for name, value in found.items():
            object.__setattr__(self, name, value)

    @cached_property
    def slice_interval(self) -> float:
        """mm between slices; NaN where it is not known."""
        return math.nan if self.to_mm is None else round(float(np.linalg.norm(self.to_mm[:, self.slice_axis])), 4)


def read_boxes(path: str) -> list[TrueVolume]:
    """Read lesions from a CSV file with the columns volume, x1, y1, z1, x2, y2, z2 and, if need be, ``OPTIONAL`` ones.

    A row with empty box columns is a volume without lesions. ``spacing_x``, ``spacing_y`` and ``spacing_z`` are mm
    between voxels, ``excluded`` is 1 for findings that nobody need find.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be understood; the message names the row. See also :class:`TrueVolume`.
    """
    rows: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for line, row in read_table(path, ("volume", *BOX)):
        rows.setdefault(row["volume"], []).append((line, row))
    return [_volume(path, name, lines) for name, lines in rows.items()]


def _volume(path: str, name: str, lines: list[tuple[int, dict[str, str]]]) -> TrueVolume:
    lesions = [(line, row) for line, row in lines if any(row[key].strip() for key in BOX)]
    known = [key for key in OPTIONAL if key in lines[0][1]]
    patients = {row["patient"] for _, row in lines} if "patient" in known else {""}
    spacings = {tuple(numbers(path, line, row, [key for key in SPACING if key in known])) for line, row in lines}
    for what, values in (("patient", patients), ("spacing", spacings)):
        if len(values) > 1:
            raise ValueError(f"{path}: expected one {what} of the volume {name}, got {sorted(values)}.")
    spacing = spacings.pop()
    if len(spacing) not in (0, 3) or any(not (0 < length < math.inf) for length in spacing):
        raise ValueError(f"{path}: expected three spacings above 0 of the volume {name}, got {list(spacing)}.")
    diameters = [
        numbers(path, line, row, ["diameter_mm"], empty=math.nan) for line, row in lesions if "diameter_mm" in known
    ]
    excluded = [_is_excluded(path, line, row) for line, row in lesions if "excluded" in known]
    boxes = np.array([numbers(path, line, row, BOX) for line, row in lesions]).reshape(-1, 6)
    return TrueVolume(
        id=name,
        boxes=boxes,
        patient=patients.pop() or None,
        lesions=[row["lesion"] for _, row in lesions] if "lesion" in known else (),
        excluded=np.array(excluded, dtype=bool) if "excluded" in known else None,
        key_boxes=flat_boxes(boxes),
        long_mm=np.array(diameters).reshape(-1) if "diameter_mm" in known else None,
        to_mm=np.diag(spacing) if spacing else None,
    )


def _is_excluded(path: str, line: int, row: Mapping[str, str]) -> bool:
    if row["excluded"].lower() not in FLAGS:
        raise ValueError(f"{path}, line {line}: expected 0 or 1 as excluded, got {row['excluded']!r}.")
    return FLAGS[row["excluded"].lower()]


def read_json_boxes(path: str) -> list[TrueVolume]:
    """Read lesions from a JSON file, a list with an object for each volume: ``volume``, its name; ``lesions``, a list
    of objects with ``box``, [x1, y1, z1, x2, y2, z2], and if known ``lesion``, ``diameter_mm`` and ``excluded`` (true
    or false); and, if known, ``patient`` and ``spacing_mm``, [x, y, z].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be understood; the message names the volume. See also :class:`TrueVolume`.
    """
    try:
        with open(path, encoding="utf-8-sig") as f:
            content = json.load(f)
    except (ValueError, RecursionError) as error:  # ValueError: of JSON or UTF-8
        raise ValueError(f"{path}: expected lesions as JSON, got a damaged file ({error}).") from error
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of volumes, got {shortened(content)}.")
    return [_json_volume(path, number, one) for number, one in enumerate(content)]


def _json_volume(path: str, number: int, one: dict) -> TrueVolume:
    try:
        lesions = one["lesions"]
        boxes = np.array([lesion["box"] for lesion in lesions], dtype=np.float64).reshape(-1, 6)
        spacing = one.get("spacing_mm")
        if spacing is not None and not (len(spacing) == 3 and all(0 < length < math.inf for length in spacing)):
            raise ValueError(f"expected three spacings above 0, got {spacing}")
        return TrueVolume(
            id=str(one["volume"]),
            boxes=boxes,
            patient=None if one.get("patient") is None else str(one["patient"]),
            lesions=[str(lesion["lesion"]) for lesion in lesions]
            if any("lesion" in lesion for lesion in lesions)
            else (),
            excluded=np.array([_flag(lesion.get("excluded", False)) for lesion in lesions], dtype=bool),
            key_boxes=flat_boxes(boxes),
            long_mm=np.array([lesion.get("diameter_mm", math.nan) for lesion in lesions], dtype=np.float64),
            to_mm=None if spacing is None else np.diag(spacing),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, volume {number}: expected a volume with its lesions ({error!r}).") from error


def _flag(value) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false as excluded, got {shortened(value)}")
    return value


def flat_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes that lie on one slice, (m, 6); NaN for those that do not."""
    return np.where((boxes[:, 2] == boxes[:, 5])[:, None], boxes, np.nan)


def from_manual_test_set(annotations: Mapping[str, np.ndarray]) -> list[TrueVolume]:
    """The sub-volumes of DeepLesion's manual test set, of one of its two splits.

    Args:
        annotations: name of the sub-volume, ``PATIENT_STUDY_SERIES_TOP-BOTTOM`` -> (m, 6) boxes.

    Raises:
        ValueError: if a name is no text or boxes are no array; see also :class:`TrueVolume`.
    """
    for name, boxes in annotations.items():
        if not isinstance(name, str) or not isinstance(boxes, np.ndarray) or boxes.dtype.kind not in "iuf":
            raise ValueError(f"Expected arrays of boxes by the names of sub-volumes, got one of {shortened(name)}.")
    return [TrueVolume(id=name, boxes=boxes, patient=name.split("_")[0]) for name, boxes in annotations.items()]
