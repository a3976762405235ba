"""Lesions as a label map on the grid of the file that they were found in."""

from collections.abc import Sequence

import numpy as np

from .lesion import Lesion, LesionSlice, without_margin
from .volume import Volume

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
    rows, columns = np.mgrid[low[1] : high[1], low[0] : high[0]]
    center, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2] + 1) / 2
    inside = ((columns - center[0]) / radius[0]) ** 2 + ((rows - center[1]) / radius[1]) ** 2 <= 1
    labels[low[1] : high[1], low[0] : high[0]][inside] = number


def regular_grid(volume: Volume) -> np.ndarray:
    """Where the slices of a volume lie on a grid of one interval: (D,) indices, from 0 on.

    Where slices are missing, indices are left out. Where they lie so unevenly that two would be one, all are counted
    one by one.
    """
    indices = np.rint((volume.positions - volume.positions[0]) / volume.slice_interval).astype(int)
    return indices if (np.diff(indices) > 0).all() else np.arange(len(indices))


def stored_grid(volume: Volume, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring a label map onto the grid of the file.

    A missing slice gets the lesions that are on both sides of it, as they are on the one before.

    Args:
        labels: (D, H, W), in the orientation of the volume.

    Returns:
        the labels by the indices of the file, and its affine (4, 4) from these to patient coordinates, RAS, mm.
    """
    grid = regular_grid(volume)
    filled = np.zeros((grid[-1] + 1, *labels.shape[1:]), dtype=labels.dtype)
    filled[grid] = labels
    for k, step in enumerate(np.diff(grid)):
        if step > 1:
            both = np.intersect1d(labels[k], labels[k + 1])
            filled[grid[k] + 1 : grid[k + 1]] = np.where(np.isin(labels[k], both), labels[k], 0)
    last = volume.position_of(0, 0, len(volume.hu) - 1)
    affine = volume.affine.copy()
    affine[:3, 2] = (last - volume.position_of(0, 0, 0)) / grid[-1]
    ours = filled.transpose(2, 1, 0)  # by (x, y, z)
    to_ours, stored = np.eye(4), ours.transpose(volume.stored_axes)
    to_ours[:3, :3] = 0
    for axis, (our_axis, is_flipped) in enumerate(zip(volume.stored_axes, volume.stored_flips, strict=True)):
        to_ours[our_axis, axis] = -1 if is_flipped else 1
        to_ours[our_axis, 3] = ours.shape[our_axis] - 1 if is_flipped else 0
        stored = np.flip(stored, axis) if is_flipped else stored
    return np.ascontiguousarray(stored), LPS_TO_RAS @ affine @ to_ours


def stored_indices(volume: Volume, points: np.ndarray) -> np.ndarray:
    """Bring points, (n, 3) of (x, y, z) indices of the volume, to the indices of :func:`stored_grid`."""
    grid = regular_grid(volume)
    points = np.array(points, dtype=np.float64)
    points[:, 2] = np.interp(points[:, 2], np.arange(len(grid)), grid)
    lengths = np.array([*volume.hu.shape[:0:-1], grid[-1] + 1])
    points = points[:, list(volume.stored_axes)]
    flipped = lengths[list(volume.stored_axes)] - 1 - points
    return np.where(volume.stored_flips, flipped, points)
