"""FROC: sensitivity over false positives per image, as the DeepLesion papers since MULAN compute it.

Pure NumPy. Legend: n detections and m lesions of an image, XYXY boxes in absolute pixels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FPS_PER_IMAGE = (0.5, 1, 2, 4, 8, 16)
AVERAGED_FPS = (0.5, 1, 2, 4)  # "Avg." of the papers is the mean over these


@dataclass(frozen=True)
class FrocCurve:
    """One point per detection, by falling score.

    Attributes:
        fps_per_image: (total detections,) false positives so far / images.
        sensitivity: (total detections,) lesions hit so far / lesions; NaN where there are no lesions.
        num_images, num_lesions: the two denominators.
    """

    fps_per_image: np.ndarray
    sensitivity: np.ndarray
    num_images: int
    num_lesions: int

    def at(self, fps_per_image: float | Sequence[float]) -> np.ndarray:
        """Sensitivity at the given false positives per image, interpolated linearly over the points.

        Where several points share a value, exactly there the last and highest sensitivity counts, and on the way to
        it from the left the first. Beyond the last point the last sensitivity goes on; before the first point it is 0.
        NaN where there are no lesions.
        """
        levels = np.asarray(fps_per_image, dtype=np.float64)
        if self.num_lesions == 0:
            return np.full(levels.shape, np.nan)
        if len(self.sensitivity) == 0:
            return np.zeros(levels.shape)
        return np.interp(levels, self.fps_per_image, self.sensitivity, left=0.0)


def paired_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of paired boxes with the +1 pixel convention: width = x2 - x1 + 1.

    Args:
        boxes, others: (..., 4), broadcast against each other.

    Returns:
        (...) float64
    """
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., 2:], others[..., 2:])
    intersection = np.clip(high - low + 1, 0, None).prod(axis=-1)
    areas = [(b[..., 2:] - b[..., :2] + 1).prod(axis=-1) for b in (boxes, others)]
    return intersection / (areas[0] + areas[1] - intersection)


def froc_curve(
    detections: Sequence[np.ndarray], ground_truths: Sequence[np.ndarray], iou_threshold: float = 0.5
) -> FrocCurve:
    """Match detections to lesions and accumulate by falling score.

    A detection that overlaps no lesion of its image by the threshold is a false positive. Any other hits every lesion
    it overlaps by the threshold; hitting only lesions that were hit before, it is neither a true nor a false positive.
    Equal scores keep the order of the input.

    Args:
        detections: per image an (n, 5) array of x1, y1, x2, y2, score. A detection with NaN as its score has no
            place in the order: it is left out, with a warning that counts them.
        ground_truths: per image an (m, 4) array of x1, y1, x2, y2.
        iou_threshold: lowest IoU of a hit, with the +1 pixel convention.

    Raises:
        ValueError: if the two have different lengths, or an array has the wrong shape.
    """
    if len(detections) != len(ground_truths):
        raise ValueError(f"Expected one entry per image in both. Got {len(detections)} and {len(ground_truths)}.")
    boxes = [_as_rows(d, 5, "detections", i) for i, d in enumerate(detections)]
    lesions = [_as_rows(g, 4, "ground_truths", i) for i, g in enumerate(ground_truths)]
    lesions_per_image = np.array([len(g) for g in lesions], dtype=np.int64)
    num_images, num_lesions = len(lesions), int(lesions_per_image.sum())

    image = np.repeat(np.arange(num_images), [len(d) for d in boxes])
    detection = np.concatenate([np.zeros((0, 5)), *boxes])
    lesion = np.concatenate([np.zeros((0, 4)), *lesions])
    nan = np.isnan(detection[:, 4])
    if nan.any():
        warnings.warn(f"{nan.sum()} of {len(nan)} detections have NaN as their score and are left out.", stacklevel=2)
        image, detection = image[~nan], detection[~nan]
    order = np.argsort(-detection[:, 4], kind="stable")
    image, detection = image[order], detection[order]

    # All pairs of a detection and a lesion of the same image, by rank of the detection.
    first_lesion = np.cumsum(lesions_per_image) - lesions_per_image
    partners = lesions_per_image[image]
    rank = np.repeat(np.arange(len(detection)), partners)
    within = np.arange(len(rank)) - np.repeat(np.cumsum(partners) - partners, partners)
    partner = first_lesion[image[rank]] + within
    overlaps = paired_iou(detection[rank, :4], lesion[partner]) >= iou_threshold

    false_positive = np.ones(len(detection), dtype=bool)
    false_positive[rank[overlaps]] = False
    hit_by = np.full(num_lesions, len(detection))  # rank of the first detection to hit the lesion
    np.minimum.at(hit_by, partner[overlaps], rank[overlaps])
    hits = np.bincount(hit_by, minlength=len(detection) + 1)[: len(detection)]
    with np.errstate(invalid="ignore"):
        sensitivity = np.cumsum(hits) / np.float64(num_lesions)
    return FrocCurve(np.cumsum(false_positive) / max(num_images, 1), sensitivity, num_images, num_lesions)


def froc_sensitivities(
    detections: Sequence[np.ndarray],
    ground_truths: Sequence[np.ndarray],
    fps_per_image: Sequence[float] = FPS_PER_IMAGE,
    iou_threshold: float = 0.5,
) -> np.ndarray:
    """Sensitivities at the given false positives per image; see :func:`froc_curve` and :meth:`FrocCurve.at`.

    Returns:
        (len(fps_per_image),) float64 in [0, 1]; NaN where there are no lesions.
    """
    return froc_curve(detections, ground_truths, iou_threshold).at(fps_per_image)


def _as_rows(array: np.ndarray, columns: int, name: str, index: int) -> np.ndarray:
    array = np.asarray(array, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, columns)
    if array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"{name}[{index}]: expected shape (n, {columns}), got {array.shape}.")
    return array
