"""How well predicted masks outline the lesions that were found."""

from dataclasses import dataclass

import cv2
import numpy as np

from ..segmentation import decode_mask
from .detection_reader import Detections
from .matching import Matches
from .strata import long_diameter


@dataclass(frozen=True)
class MaskQuality:
    """The masks of the k lesions that a detection hits, where the first one to hit the lesion has a mask.

    Attributes:
        image: (k,) index of each lesion's image.
        dice: (k,) Dice coefficient with the lesion's mask; NaN where it has none.
        diameter_error: (k,) mm, long diameter of the predicted mask minus that of the annotation; NaN where that is
            not known.
    """

    image: np.ndarray
    dice: np.ndarray
    diameter_error: np.ndarray


def mask_quality(images: list[dict], matches: Matches, detections: Detections) -> MaskQuality:
    """Compare the predicted masks of the lesions found with the annotations.

    Args:
        images: dataset dicts as :func:`load_deeplesion` makes them, with ``segmentation`` (RLE or polygons) where there
            are masks.
        matches: which of ``detections`` hits which lesion of ``images``, these counted one image after the other.

    Raises:
        ValueError: if a mask, predicted or annotated, has not the size of its image, or is damaged.
    """
    lesions = [lesion for image in images for lesion in image.get("annotations", ())]
    rows = []
    for lesion, index, rank in zip(lesions, matches.lesion_image, matches.hit_by, strict=True):
        predicted = None if rank == len(matches.detection) else detections.masks[matches.detection[rank]]
        if predicted is None:
            continue
        image = images[index]
        mask = _decode(predicted, image, "predicted mask")
        dice = np.nan
        if lesion.get("segmentation"):
            truth = _decode(lesion["segmentation"], image, "annotated mask")
            dice = 2 * np.count_nonzero(mask & truth) / max(mask.sum() + truth.sum(), 1)
        annotated = long_diameter(image, lesion)
        measured = np.nan if np.isnan(annotated) else mask_diameter(mask, image["spacing"])
        rows.append((index, dice, measured - annotated))
    index, dice, error = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return MaskQuality(index.astype(np.int64), dice, error)


def mask_diameter(mask: np.ndarray, spacing: tuple[float, float]) -> float:
    """The longest distance between the centres of two pixels of a mask, as RECIST's long diameter is drawn.

    Args:
        mask: (H, W) bool or uint8.
        spacing: pixel size (x, y) in mm.

    Returns:
        mm; 0 for an empty mask.
    """
    points = cv2.findNonZero(mask.astype(np.uint8))
    if points is None:
        return 0.0
    corners = cv2.convexHull(points)[:, 0].astype(np.float64) * np.asarray(spacing)
    return float(np.linalg.norm(corners[:, None] - corners[None], axis=-1).max())


def _decode(segmentation: dict | list, image: dict, what: str) -> np.ndarray:
    """:func:`.decode_mask`, with errors that name the image and ``what`` the mask is."""
    try:
        return decode_mask(segmentation, image["height"], image["width"])
    except ValueError as error:
        raise ValueError(f"{image['image_id']}, {what}: {error}.") from error
