"""The lesions that there are in a volume."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..matching import is_box

BOX = ("x1", "y1", "z1", "x2", "y2", "z2")
OPTIONAL = ("lesion", "patient", "diameter_mm", "excluded", "spacing_x", "spacing_y", "spacing_z")


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
        long_mm, short_mm, volume_mm3: (m,) measurements.
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
        return math.nan if self.to_mm is None else float(np.linalg.norm(self.to_mm[:, self.slice_axis]))


def read_boxes(path: str) -> list[TrueVolume]:
    """Read lesions from a CSV file with the columns volume, x1, y1, z1, x2, y2, z2 and, if need be, ``OPTIONAL`` ones.

    A row with empty box columns is a volume without lesions. ``spacing_x``, ``spacing_y`` and ``spacing_z`` are mm
    between voxels, ``excluded`` is 1 for findings that nobody need find.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be understood; the message names the row. See also :class:`TrueVolume`.
    """
    rows: dict[str, list[tuple[int, dict[str, str]]]] = {}
    with open(path, newline="", encoding="utf-8-sig") as f:
        try:
            reader = csv.DictReader(f)
            found = list(reader.fieldnames or ())
            if any(found.count(name) != 1 for name in ("volume", *BOX)):
                got = ", ".join(found) or "none"
                raise ValueError(f"{path}: expected the columns volume, {', '.join(BOX)}, each once; got {got}.")
            for number, row in enumerate(reader, 2):
                if None in row or None in row.values():
                    raise ValueError(f"{path}, line {number}: expected {len(found)} values, one for each column.")
                rows.setdefault(row["volume"], []).append((number, row))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: expected a CSV file in UTF-8, got something else ({error}).") from error
    return [_volume(path, name, lines) for name, lines in rows.items()]


def _volume(path: str, name: str, lines: list[tuple[int, dict[str, str]]]) -> TrueVolume:
    lesions = [(number, row) for number, row in lines if any(row[key].strip() for key in BOX)]
    known = {key: {row[key] for _, row in lines} for key in OPTIONAL if key in lines[0][1]}
    for key in ("patient", "spacing_x", "spacing_y", "spacing_z"):
        if len(known.get(key, ())) > 1:
            raise ValueError(f"{path}: expected one {key} of the volume {name}, got {sorted(known[key])}.")

    def column(key: str) -> list[float]:
        return [_number(path, number, row, key) for number, row in lesions]

    spacing = [
        _number(path, lines[0][0], lines[0][1], key) for key in ("spacing_x", "spacing_y", "spacing_z") if key in known
    ]
    if len(spacing) not in (0, 3) or any(not (0 < length < math.inf) for length in spacing):
        raise ValueError(f"{path}: expected three spacings above 0 of the volume {name}, got {spacing}.")
    boxes = np.column_stack([column(key) for key in BOX]) if lesions else np.zeros((0, 6))
    return TrueVolume(
        id=name,
        boxes=boxes,
        patient=next(iter(known["patient"])) if "patient" in known else None,
        lesions=[row["lesion"] for _, row in lesions] if "lesion" in known else (),
        excluded=np.array(column("excluded")) == 1 if "excluded" in known else None,
        key_boxes=flat_boxes(boxes),
        long_mm=column("diameter_mm") if "diameter_mm" in known else None,
        to_mm=np.diag(spacing) if spacing else None,
    )


def _number(path: str, line: int, row: Mapping[str, str], key: str) -> float:
    try:
        return float(row[key].replace("_", "?"))  # Python alone reads 1_0 as 10
    except ValueError:
        raise ValueError(f"{path}, line {line}: expected a number as {key}, got {row[key]!r}.") from None


def flat_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes that lie on one slice, (m, 6); NaN for those that do not."""
    return np.where((boxes[:, 2] == boxes[:, 5])[:, None], boxes, np.nan)


def from_manual_test_set(annotations: Mapping[str, np.ndarray]) -> list[TrueVolume]:
    """The sub-volumes of DeepLesion's manual test set, of one of its two splits.

    Args:
        annotations: name of the sub-volume, ``PATIENT_STUDY_SERIES_TOP-BOTTOM`` -> (m, 6) boxes.

    Raises:
        ValueError: see :class:`TrueVolume`.
    """
    return [TrueVolume(id=name, boxes=boxes, patient=name.split("_")[0]) for name, boxes in annotations.items()]
