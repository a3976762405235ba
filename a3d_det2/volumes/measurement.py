"""Lesions in mm: axes as RECIST measures them, extent, volume and place in the patient.

With masks all is measured on these. Without them a lesion is taken for the ellipse within its box on each slice, which
has first lost the margin that the boxes of the training data have around a lesion (5 pixels in DeepLesion).
"""

from collections.abc import Sequence

import cv2
import numpy as np

from .lesion import Detection, Lesion, LesionSlice, Mask, without_margin
from .linking import Linked, enclosing_box
from .volume import Volume


def measure_lesions(linked: Sequence[Linked], volume: Volume, box_margin: np.ndarray) -> list[Lesion]:
    """Measure lesions, and number them in the order in which they come.

    Args:
        linked: see :func:`.link_detections`.
        volume: in which they were found.
        box_margin: (2,), pixels in x and y between a lesion and its box, on every side.
    """
    return [measure_lesion(number, one, volume, box_margin) for number, one in enumerate(linked, 1)]


def measure_lesion(number: int, linked: Linked, volume: Volume, box_margin: np.ndarray) -> Lesion:
    """Measure one lesion; see :func:`measure_lesions`."""
    has_masks = all(d.mask is not None for d in linked.detections)
    slices = fill_gaps(linked.detections, volume.positions, volume.hu.shape[1:])
    spacing = np.array(volume.spacing)
    regions = [without_margin(one.box, box_margin) for one in slices]
    axes = [
        _mask_axes(one.mask, spacing) if has_masks else _box_axes(region, spacing)
        for one, region in zip(slices, regions, strict=True)
    ]
    lengths = [np.linalg.norm(np.diff(ends, axis=1)[:, 0] * spacing, axis=1) for ends in axes]
    largest = max(range(len(slices)), key=lambda i: (lengths[i][0], lengths[i][1], slices[i].score, -i))
    indices = np.array([one.index for one in slices])
    thickness = slab_thickness(indices, volume)
    if has_masks:
        areas = np.array([one.mask.pixels.sum() for one in slices])
        centers = np.array([_mask_center(one.mask) for one in slices])
    else:
        areas = np.array([np.pi / 4 * (region[2:] - region[:2] + 1).prod() for region in regions])
        centers = np.array([(region[:2] + region[2:]) / 2 for region in regions])
    weights = areas * thickness
    places = np.array([volume.position_of(*center, index) for center, index in zip(centers, indices, strict=True)])
    enclosing = enclosing_box([one.box for one in slices])
    return Lesion(
        number=number,
        score=linked.score,
        slices=tuple(slices),
        measured_from="mask" if has_masks else "box",
        largest=int(indices[largest]),
        long_axis=axes[largest][0],
        short_axis=axes[largest][1],
        long_mm=float(lengths[largest][0]),
        short_mm=float(lengths[largest][1]),
        extent_mm=float(thickness.sum()),
        volume_mm3=float(weights.sum() * spacing.prod()),
        center=np.average(places, axis=0, weights=weights),
        box=_box_in_patient(slices, volume),
        center_voxel=np.append(np.average(centers, axis=0, weights=weights), np.average(indices, weights=weights)),
        box_voxel=np.array([[*enclosing[:2], indices[0]], [*enclosing[2:], indices[-1]]]),
        category=linked.detections[0].category,
    )


def fill_gaps(detections: Sequence[Detection], positions: np.ndarray, size: tuple[int, int]) -> list[LesionSlice]:
    """Every slice of a lesion: between detections the box is interpolated, and the mask is that of the nearer one.

    Args:
        detections: from head to feet.
        positions: (D,) mm of the slices.
        size: (height, width) of a slice.
    """
    slices: list[LesionSlice] = []
    for detection, following in zip(detections, [*detections[1:], None], strict=True):
        slices.append(LesionSlice(detection.index, detection.box, detection.score, detection.mask))
        if following is None:
            break
        ends = positions[[detection.index, following.index]]
        for index in range(detection.index + 1, following.index):
            fraction = (positions[index] - ends[0]) / (ends[1] - ends[0])
            box = detection.box * (1 - fraction) + following.box * fraction
            nearer = detection if fraction < 0.5 else following
            slices.append(LesionSlice(index, box, float("nan"), _moved(nearer.mask, nearer.box, box, size)))
    return slices


def _moved(mask: Mask | None, box: np.ndarray, onto: np.ndarray, size: tuple[int, int]) -> Mask | None:
    """A mask, moved by whole pixels as its box is; where nothing of it would be left in the slice, as it was."""
    if mask is None:
        return None
    x, y = np.rint((onto[:2] + onto[2:] - box[:2] - box[2:]) / 2).astype(int).tolist()
    top, left, (height, width) = mask.top + y, mask.left + x, size
    pixels = mask.pixels[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    return Mask(max(top, 0), max(left, 0), pixels) if pixels.any() else mask


def slab_thickness(indices: np.ndarray, volume: Volume) -> np.ndarray:
    """mm along the normal that each slice of a lesion, (n,) one after the other, stands for: to the middle between it
    and its neighbours, and half an interval beyond the ends."""
    positions = volume.positions[indices]
    middles = (positions[1:] + positions[:-1]) / 2
    half = volume.slice_interval / 2
    return np.diff(np.concatenate([[positions[0] - half], middles, [positions[-1] + half]]))


def _box_axes(region: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(2, 2, 2): ends of the long and the short axis of the ellipse in a box that names pixels, to their edges."""
    center = (region[:2] + region[2:]) / 2
    half = (region[2:] - region[:2] + 1) / 2
    along = [np.array([half[0], 0.0]), np.array([0.0, half[1]])]
    along.sort(key=lambda side: -float(np.linalg.norm(side * spacing)))
    return np.array([[center - side, center + side] for side in along])


def _mask_axes(mask: Mask, spacing: np.ndarray) -> np.ndarray:
    """(2, 2, 2): ends of the longest diameter of a mask and of its longest one perpendicular to that, in pixels.

    A pixel reaches from edge to edge, as far as the middles of its edges. What is concave is measured as its hull.
    """
    rows, columns = np.nonzero(mask.pixels)
    centers = np.column_stack([columns + mask.left, rows + mask.top]).astype(np.float64)
    steps = np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]])
    points = ((centers[:, None] + steps).reshape(-1, 2) * spacing).astype(np.float32)
    hull = cv2.convexHull(points)[:, 0].astype(np.float64)
    distances = np.linalg.norm(hull[:, None] - hull[None], axis=2)
    i, j = np.unravel_index(distances.argmax(), distances.shape)
    along = (hull[j] - hull[i]) / distances[i, j]
    across = np.array([-along[1], along[0]])
    short = _widest_chord(np.column_stack([hull @ along, hull @ across]))
    ends = [short[0] * along + offset * across for offset in short[1:]]
    return np.array([[hull[i], hull[j]], ends]) / spacing


def _widest_chord(polygon: np.ndarray) -> tuple[float, float, float]:
    """Where a convex polygon, (n, 2) as (along, across), is widest across: (along, lowest, highest)."""
    first, last = polygon[:, 0].argmin(), polygon[:, 0].argmax()
    turned = np.roll(polygon, -first, axis=0)
    split = (last - first) % len(polygon)
    sides = [turned[: split + 1], np.concatenate([turned[split:], turned[:1]])[::-1]]
    # Width is linear between corners, so it is greatest at one.
    values = [np.interp(polygon[:, 0], side[:, 0], side[:, 1]) for side in sides]
    widest = np.abs(values[0] - values[1]).argmax()
    low, high = sorted((values[0][widest], values[1][widest]))
    return float(polygon[widest, 0]), float(low), float(high)


def _mask_center(mask: Mask) -> np.ndarray:
    rows, columns = np.nonzero(mask.pixels)
    return np.array([columns.mean() + mask.left, rows.mean() + mask.top])


def _box_in_patient(slices: Sequence[LesionSlice], volume: Volume) -> np.ndarray:
    """(2, 3), lowest and highest corner of what encloses the boxes, to the edges of their pixels and slices, LPS mm."""
    half = volume.slice_interval / 2 * volume.normal
    corners = [
        volume.position_of(x, y, one.index) + side * half
        for one in slices
        for x in (one.box[0] - 0.5, one.box[2] + 0.5)
        for y in (one.box[1] - 0.5, one.box[3] + 0.5)
        for side in (-1, 1)
    ]
    return np.array([np.min(corners, axis=0), np.max(corners, axis=0)])
