"""What is found in a volume: boxes on slices, and the lesions that they are linked to.

Indices count from 0: columns x to the patient's left, rows y to the back, slices z from head to feet. Boxes are XYXY in
pixels, 0 the centre of the first one, and name pixels as DeepLesion's do: a box of one pixel is [5, 5, 5, 5].
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Mask(NamedTuple):
    """Pixels of a slice that are of a lesion.

    Attributes:
        top, left: where ``pixels`` begins in the slice.
        pixels: (h, w) bool.
    """

    top: int
    left: int
    pixels: np.ndarray


class Detection(NamedTuple):
    """What the detector found at one place of a slice.

    Attributes:
        index: of the slice.
        box: (4,) XYXY.
        score: from 0 to 1.
        mask: None from a detector without masks.
        category: its class, from 0 on.
    """

    index: int
    box: np.ndarray
    score: float
    mask: Mask | None = None
    category: int = 0


class LesionSlice(NamedTuple):
    """A lesion on one slice.

    Attributes:
        index: of the slice.
        box: (4,) XYXY; interpolated where nothing was detected.
        score: of the detection; NaN where nothing was detected.
        mask: None without masks.
    """

    index: int
    box: np.ndarray
    score: float
    mask: Mask | None


def without_margin(box: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """A box, (4,) XYXY, without a margin of (2,) pixels in x and y on every side; at least one pixel is left of it."""
    center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    half = np.maximum(half - margin, 0)
    return np.concatenate([center - half, center + half])


@dataclass(frozen=True, eq=False)
class Lesion:
    """A lesion with its measurements.

    Attributes:
        number: from 1 on, the highest score first.
        score: from 0 to 1.
        slices: every slice from its first to its last one, from head to feet.
        measured_from: "mask" or "box".
        largest: index of the slice on which its long axis is longest.
        long_axis, short_axis: (2, 2), their ends on that slice, (x, y) in pixels.
        long_mm, short_mm: their lengths.
        extent_mm: along the normal of the slices.
        volume_mm3: its volume.
        center, box: (3,) and (2, 3), its centre and the lowest and highest corner of what encloses its boxes, in
            patient coordinates (x, y, z), LPS, mm.
        center_voxel, box_voxel: the same as (x, y, z) indices of the volume; the slices of ``box_voxel`` are the first
            and the last one.
        category: its class, from 0 on.
    """

    number: int
    score: float
    slices: tuple[LesionSlice, ...]
    measured_from: str
    largest: int
    long_axis: np.ndarray
    short_axis: np.ndarray
    long_mm: float
    short_mm: float
    extent_mm: float
    volume_mm3: float
    center: np.ndarray
    box: np.ndarray
    center_voxel: np.ndarray
    box_voxel: np.ndarray
    category: int = 0

    def on_slice(self, index: int) -> LesionSlice | None:
        """What there is of it on a slice of the volume."""
        first = self.slices[0].index
        return self.slices[index - first] if first <= index <= self.slices[-1].index else None

    def tight_box(self, margin: np.ndarray) -> np.ndarray:
        """What ``box_voxel`` is around its masks, or without masks around its boxes less ``margin``.

        Args:
            margin: (2,) pixels in x and y between a lesion and its box.

        Returns:
            (2, 3), the lowest and highest corner.
        """
        corners = []
        for one in self.slices:
            if self.measured_from == "mask":
                rows, columns = np.nonzero(one.mask.pixels)
                low, high = (np.array([f(columns) + one.mask.left, f(rows) + one.mask.top]) for f in (np.min, np.max))
            else:
                low, high = without_margin(one.box, margin).reshape(2, 2)
            corners += [[*low, one.index], [*high, one.index]]
        return np.array([np.min(corners, axis=0), np.max(corners, axis=0)], dtype=np.float64)
