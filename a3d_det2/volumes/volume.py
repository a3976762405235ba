"""A CT volume in the orientation of DeepLesion."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .origin import Origin

AIR = -1024  # HU, of what was not measured
GAP = 0.1  # of the interval, or mm where that is more; what differs more from it is a gap
WIDEST_GAP = 10.0  # mm, or 2.5 intervals if that is more; what lies on both sides of a wider one is not put together
SMALLEST_PIXEL, LARGEST_PIXEL, LARGEST_FIELD = 0.05, 20.0, 1500.0  # mm; else the unit must be another one
MOST_LISTED = 3  # gaps; of more, their number is told
SMALLEST_SIDE = 32  # pixels of a slice
MOST_OBLIQUE = 30.0  # degrees between the normal of axial slices and the axis of the body


class UnreadableVolume(ValueError):
    """A file or folder that holds no CT volume which can be used; the message says why."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT volume: columns to the patient's left, rows to the back, slices from head to feet.

    Attributes:
        hu: (D, H, W) int16, in HU.
        affine: (4, 4), from the indices (column, row, slice) to patient coordinates (x, y, z) in mm, LPS. With gaps it
            is that of the mean interval; ``positions`` are exact.
        positions: (D,) mm along the normal of the slices, from 0 at the first.
        offsets: (D, 2) mm in x and y of each slice against where the normal through the first slice's corner meets it;
            not zero with a tilted gantry.
        name: of the series, for messages; not that of the patient.
        notes: what was odd about the files, each a sentence.
        stored_axes: for each axis of the file, which of (column, row, slice) it is.
        stored_flips: for each axis of the file, whether it runs the other way.
        origin: the images that it was read from, if they are DICOM.
        identifiers: what the files say of patient and study, by the names of DICOM's attributes. Nothing of it, nor
            ``name``, is written anywhere unless it is asked for.
    """

    hu: np.ndarray
    affine: np.ndarray
    positions: np.ndarray
    offsets: np.ndarray
    name: str
    notes: tuple[str, ...] = ()
    stored_axes: tuple[int, int, int] = (0, 1, 2)
    stored_flips: tuple[bool, bool, bool] = (False, False, False)
    origin: Origin | None = None
    identifiers: Mapping[str, str] = field(default_factory=dict)

    @property
    def instances(self) -> tuple[str, ...]:
        """SOP instance UID of each slice, for DICOM."""
        return self.origin.instances if self.origin else ()

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance between columns and between rows in mm."""
        x, y = np.linalg.norm(self.affine[:3, :2], axis=0)
        return float(x), float(y)

    @property
    def slice_interval(self) -> float:
        """Distance between slices in mm, where there are gaps that of the others."""
        return usual_interval(self.positions)

    @property
    def widest_gap(self) -> float:
        """mm between slices up to which they are interpolated, and detections linked."""
        return widest_gap(self.slice_interval)

    @property
    def normal(self) -> np.ndarray:
        """(3,), of length 1, perpendicular to the slices and towards the feet, in patient coordinates."""
        normal = np.cross(self.affine[:3, 0], self.affine[:3, 1])
        normal = normal / np.linalg.norm(normal)
        return normal if normal @ self.affine[:3, 2] > 0 else -normal

    def position_of(self, column: float, row: float, index: int) -> np.ndarray:
        """Patient coordinates (x, y, z) in mm, LPS, of a point of a slice, (0, 0) the centre of its first pixel."""
        columns, rows = self.affine[:3, 0], self.affine[:3, 1]
        x, y = self.spacing
        offset = self.offsets[index, 0] / x * columns + self.offsets[index, 1] / y * rows
        return self.affine[:3, 3] + column * columns + row * rows + self.positions[index] * self.normal + offset


def usual_interval(positions: np.ndarray) -> float:
    """The mean distance of slices at (D,) ``positions`` in mm, without gaps."""
    steps = np.diff(positions)
    median = np.median(steps)
    usual = steps[~_is_gap(steps, median)]
    return float(usual.mean() if len(usual) else median)


def widest_gap(interval: float) -> float:
    """See :attr:`Volume.widest_gap`."""
    return max(2.5 * interval, WIDEST_GAP)


def _is_gap(steps: np.ndarray, interval: float) -> np.ndarray:
    return np.abs(steps - interval) > max(GAP * interval, GAP)  # positions may have been rounded to 0.1 mm


def size_problem(height: int, width: int, depth: int, spacing: tuple[float, float] = (1.0, 1.0)) -> str:
    """Why slices of this size and number, with this distance of columns and rows in mm, are no volume of a body; "" if
    they can be."""
    if depth < 2:
        return f"expected several slices, got {depth}"
    if min(height, width) < SMALLEST_SIDE:
        return f"expected slices of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, got {height} x {width}"
    field = max(width * spacing[0], height * spacing[1])
    if min(spacing) < SMALLEST_PIXEL or max(spacing) > LARGEST_PIXEL or field > LARGEST_FIELD:
        return (
            f"expected pixels of {SMALLEST_PIXEL:g} to {LARGEST_PIXEL:g} mm and slices of up to {LARGEST_FIELD:g} mm, "
            f"got {width} x {height} pixels of {spacing[0]:.4g} x {spacing[1]:.4g} mm"
        )
    if max(spacing) > 3 * min(spacing):
        return (
            f"expected axial slices with pixels that are about as wide as high, got {spacing[0]:.3g} x "
            f"{spacing[1]:.3g} mm"
        )
    return ""


def oblique_problem(angle: float) -> str:
    """Why slices that are tilted by ``angle`` degrees against axial ones cannot be used; "" if they can be."""
    return f"expected axial slices, got some {angle:.0f} degrees from them" if angle > MOST_OBLIQUE else ""


def gap_notes(positions: np.ndarray, interval: float | None = None) -> tuple[str, ...]:
    """Name the gaps between slices at (D,) ``positions`` in mm, a sentence each.

    Args:
        positions: increasing.
        interval: that there should be; None is the usual one.
    """
    steps, interval = np.diff(positions), interval or usual_interval(positions)
    gaps = np.flatnonzero(_is_gap(steps, interval))
    notes = [
        f"{steps[k]:.2f} mm between slices, {positions[k] - positions[0]:.1f} mm from the first; elsewhere it is "
        f"{interval:.2f} mm."
        for k in gaps[:MOST_LISTED]
    ]
    if len(gaps) > MOST_LISTED:
        notes.append(f"There are {len(gaps) - MOST_LISTED} more such gaps.")
    return tuple(notes)


def to_int16(hu: np.ndarray) -> np.ndarray:
    """Round to whole HU, of any shape, int16; what lies outside of int16 is clipped.

    Raises:
        UnreadableVolume: if a value is not finite.
    """
    if not np.isfinite(hu).all():
        raise UnreadableVolume("expected HU, got values that are no finite numbers")
    info = np.iinfo(np.int16)
    return np.clip(np.rint(hu), info.min, info.max).astype(np.int16)
