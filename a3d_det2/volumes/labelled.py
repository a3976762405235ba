"""Lesions that somebody has drawn: a label map as NIfTI -> what is measured of lesions that are found."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .label_map import stored_indices
from .lesion import Detection, Lesion, Mask
from .linking import Linked
from .measurement import measure_lesion
from .nifti import NiftiFile
from .volume import UnreadableVolume, Volume

HIGHEST = 65535  # label; tables are as long


class LabelledLesions(NamedTuple):
    """The m lesions of a label map; voxels are those of the file.

    Attributes:
        numbers: (m,) int, their labels.
        lesions: measured on the slices that have the label, in DeepLesion's orientation; numbered by their labels.
        boxes: (m, 6), first and last voxel.
        key_boxes: (m, 6), the box on the slice where the lesion is longest.
        centers: (m, 3) voxels.
        heights: (m,) from 0 at the head's end to 1 at that of the feet.
        to_mm: (3, 3), from steps between voxels to mm.
        slice_axis: of the three, along which slices follow each other.
        shape: of the file.
        affine: (4, 4), from voxels to patient coordinates, RAS, mm.
        labels: reads the file again.
    """

    numbers: np.ndarray
    lesions: list[Lesion]
    boxes: np.ndarray
    key_boxes: np.ndarray
    centers: np.ndarray
    heights: np.ndarray
    to_mm: np.ndarray
    slice_axis: int
    shape: tuple[int, int, int]
    affine: np.ndarray
    labels: Callable[[], np.ndarray]


def read_labels(path: str) -> LabelledLesions:
    """Read a label map: whole numbers, one for each lesion, 0 where there is none.

    Raises:
        UnreadableVolume: if it is no such file.
    """
    import nibabel
    from scipy import ndimage

    file = NiftiFile(path)
    stored = _labels(path)
    ours = stored[tuple(slice(None, None, -1 if flip else 1) for flip in file.stored_flips)]
    ours = ours.transpose([file.stored_axes.index(axis) for axis in (2, 1, 0)])
    volume = file.volume(np.broadcast_to(np.int16(0), ours.shape))  # its pixels are not looked at
    places = ndimage.find_objects(ours)
    numbers = [number for number, place in enumerate(places, 1) if place is not None]
    lesions = [_measure(number, ours, places[number - 1], volume) for number in numbers]
    boxes = [_corners(volume, lesion.box_voxel) for lesion in lesions]
    keys = [_corners(volume, _on_largest(lesion)) for lesion in lesions]
    centers = np.array([lesion.center_voxel for lesion in lesions]).reshape(-1, 3)
    affine = nibabel.load(path).affine
    return LabelledLesions(
        numbers=np.array(numbers, dtype=np.int64),
        lesions=lesions,
        boxes=np.array(boxes).reshape(-1, 6),
        key_boxes=np.array(keys).reshape(-1, 6),
        centers=stored_indices(volume, centers),
        heights=centers[:, 2] / (len(ours) - 1),
        to_mm=affine[:3, :3],
        slice_axis=file.stored_axes.index(2),
        shape=stored.shape,
        affine=affine,
        labels=lambda: _labels(path),
    )


def _labels(path: str) -> np.ndarray:
    import nibabel

    try:
        values = np.asarray(nibabel.load(path).dataobj)
    except Exception as error:  # a file that is cut off, or another compression
        raise UnreadableVolume(f"{path}: expected a complete NIfTI file, got a damaged one ({error})") from error
    values = values.reshape(values.shape[:3]) if values.ndim > 3 and values[..., 0].size == values.size else values
    labels = values.astype(np.int64) if np.isfinite(values).all() else None
    if labels is None or (labels != values).any() or labels.min() < 0 or labels.max() > HIGHEST:
        raise UnreadableVolume(f"{path}: expected labels, whole numbers from 0 to {HIGHEST}, got other values")
    return labels


def _measure(number: int, labels: np.ndarray, place: tuple[slice, ...], volume: Volume) -> Lesion:
    first, top, left = (part.start for part in place)
    detections = []
    for index, pixels in enumerate(labels[place] == number, first):
        if pixels.any():
            rows, columns = np.nonzero(pixels)
            box = [left + columns.min(), top + rows.min(), left + columns.max(), top + rows.max()]
            detections.append(Detection(index, np.array(box, dtype=float), 1.0, Mask(top, left, pixels)))
    whole, *_ = single = [measure_lesion(number, Linked([one], 1.0), volume, np.zeros(2)) for one in detections]
    if len(single) > 1:
        # What is between slices that have the label is filled there, and so is counted on each of these alone.
        whole = measure_lesion(number, Linked(detections, 1.0), volume, np.zeros(2))
    longest = max(single, key=lambda one: (one.long_mm, one.short_mm))
    volumes = np.array([one.volume_mm3 for one in single])
    return replace(
        whole,
        largest=longest.largest,
        long_axis=longest.long_axis,
        short_axis=longest.short_axis,
        long_mm=longest.long_mm,
        short_mm=longest.short_mm,
        volume_mm3=float(volumes.sum()),
        center_voxel=np.average([one.center_voxel for one in single], axis=0, weights=volumes),
        center=np.average([one.center for one in single], axis=0, weights=volumes),
    )


def _on_largest(lesion: Lesion) -> np.ndarray:
    """(2, 3) corners of its box where it is largest."""
    box = lesion.on_slice(lesion.largest).box
    return np.array([[*box[:2], lesion.largest], [*box[2:], lesion.largest]], dtype=float)


def _corners(volume: Volume, corners: np.ndarray) -> np.ndarray:
    """(6,) of two corners, by the voxels of the file."""
    return np.rint(np.sort(stored_indices(volume, corners), axis=0)).ravel()
