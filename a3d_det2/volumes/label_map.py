"""Lesions as a label map on the grid of the file that they were found in."""

from collections.abc import Sequence

import numpy as np

from .lesion import Lesion, LesionSlice, without_margin
from .volume import Volume

ROUNDING = 0.2  # of the interval, by which distances may differ from its multiples
LARGEST_GROWTH = 4  # of the number of slices, on a regular grid
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def draw_labels(volume: Volume, lesions: Sequence[Lesion], box_margin: np.ndarray) -> np.ndarray:
    """Draw lesions by their number: their masks, or without masks the ellipse in each box less ``box_margin``.

    Args:
        volume: in which they were found.
        lesions: where two overlap, the one that comes first is on top.
        box_margin: see :func:`.measure_lesions`.

    Returns:
        (D, H, W) uint16, 0 where there is none.
    """
    labels = np.zeros(volume.hu.shape, dtype=np.uint16)
    for lesion in reversed(lesions):
        for one in lesion.slices:
            if lesion.measured_from == "mask":
                top, left, pixels = one.mask
                rows, columns = np.nonzero(pixels)
                labels[one.index, rows + top, columns + left] = lesion.number
            else:
                _draw_ellipse(labels[one.index], one, box_margin, lesion.number)
    return labels


def _draw_ellipse(labels: np.ndarray, one: LesionSlice, box_margin: np.ndarray, number: int) -> None:
    box = without_margin(one.box, box_margin)
    low = np.maximum(np.floor(box[:2]).astype(int), 0)
    high = np.minimum(np.ceil(box[2:]).astype(int) + 1, labels.shape[::-1])
    if (low >= high).any():  # beside the slice
        return
    rows, columns = np.mgrid[low[1] : high[1], low[0] : high[0]]
    center, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2] + 1) / 2
    inside = ((columns - center[0]) / radius[0]) ** 2 + ((rows - center[1]) / radius[1]) ** 2 <= 1
    if not inside.any():  # as small as a pixel, and between four of them
        inside[(len(rows) - 1) // 2, (rows.shape[1] - 1) // 2] = True
    labels[low[1] : high[1], low[0] : high[0]][inside] = number


def regular_grid(volume: Volume) -> tuple[float, np.ndarray]:
    """A grid of one interval for slices that may lie unevenly.

    Returns:
        the interval in mm, and for each place of the grid the nearest slice, or -1 within gaps that are too wide for a
        lesion to go on.
    """
    positions, interval = volume.positions - volume.positions[0], volume.slice_interval
    steps = np.diff(positions)
    if np.abs(steps / interval - np.rint(steps / interval)).max() > ROUNDING:
        interval = max(float(steps.min()), float(positions[-1]) / (LARGEST_GROWTH * len(positions)))
    places = np.arange(round(positions[-1] / interval) + 1) * interval
    after = np.clip(np.searchsorted(positions, places), 1, len(positions) - 1)
    is_after = positions[after] - places < places - positions[after - 1]
    nearest = np.where(is_after, after, after - 1)
    is_on_slice = np.abs(positions[nearest] - places) <= interval / 2
    return interval, np.where(is_on_slice | (steps[after - 1] <= volume.widest_gap), nearest, -1)


def stored_grid(volume: Volume, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring a label map onto the grid of the file, which for uneven slices is a regular one.

    Args:
        labels: (D, H, W), in the orientation of the volume.

    Returns:
        the labels by the indices of the file, and its affine (4, 4) from these to patient coordinates, RAS, mm.
    """
    _, nearest = regular_grid(volume)
    if not np.array_equal(nearest, np.arange(len(labels))):
        labels = np.where((nearest >= 0)[:, None, None], labels[nearest], labels.dtype.type(0))
    last = volume.position_of(0, 0, len(volume.hu) - 1)
    affine = volume.affine.copy()
    affine[:3, 2] = (last - volume.position_of(0, 0, 0)) / (len(nearest) - 1)
    ours = labels.transpose(2, 1, 0)  # by (x, y, z)
    to_ours, stored = np.eye(4), ours.transpose(volume.stored_axes)
    to_ours[:3, :3] = 0
    for axis, (our_axis, is_flipped) in enumerate(zip(volume.stored_axes, volume.stored_flips, strict=True)):
        to_ours[our_axis, axis] = -1 if is_flipped else 1
        to_ours[our_axis, 3] = ours.shape[our_axis] - 1 if is_flipped else 0
        stored = np.flip(stored, axis) if is_flipped else stored
    return stored, LPS_TO_RAS @ affine @ to_ours


def stored_slices(volume: Volume, slices: np.ndarray) -> np.ndarray:
    """Bring slices, (n, H, W) in the orientation of the volume, to that of the images it was read from: (n, rows,
    columns), as a view."""
    stored = slices.transpose(0, *(2 - axis for axis in volume.stored_axes[1::-1]))
    flips = (slice(None, None, -1 if flip else 1) for flip in volume.stored_flips[1::-1])
    return stored[(slice(None), *flips)]


def stored_points(volume: Volume, points: np.ndarray) -> np.ndarray:
    """Bring points of a slice, (n, 2) of (x, y) in pixels, to those of the image it was read from: (column, row)."""
    axes = list(volume.stored_axes[:2])
    lengths = np.array(volume.hu.shape[:0:-1])[axes]
    points = np.asarray(points, dtype=np.float64)[:, axes]
    return np.where(volume.stored_flips[:2], lengths - 1 - points, points)


def stored_indices(volume: Volume, points: np.ndarray) -> np.ndarray:
    """Bring points, (n, 3) of (x, y, z) indices of the volume, to the indices of :func:`stored_grid`."""
    interval, nearest = regular_grid(volume)
    points = np.array(points, dtype=np.float64)
    positions = volume.positions - volume.positions[0]
    points[:, 2] = np.interp(points[:, 2], np.arange(len(positions)), positions) / interval
    lengths = np.array([*volume.hu.shape[:0:-1], len(nearest)])
    points = points[:, list(volume.stored_axes)]
    flipped = lengths[list(volume.stored_axes)] - 1 - points
    return np.where(volume.stored_flips, flipped, points)


def volume_indices(volume: Volume, points: np.ndarray) -> np.ndarray:
    """Bring points, (n, 3), of :func:`stored_indices` back to (x, y, z) indices of the volume."""
    interval, nearest = regular_grid(volume)
    lengths = np.array([*volume.hu.shape[:0:-1], len(nearest)])
    stored = np.where(volume.stored_flips, lengths[list(volume.stored_axes)] - 1 - np.asarray(points), points)
    found = np.empty_like(stored, dtype=np.float64)
    found[:, list(volume.stored_axes)] = stored
    positions = volume.positions - volume.positions[0]
    found[:, 2] = np.interp(found[:, 2] * interval, positions, np.arange(len(positions)))
    return found
