"""Masks from RECIST axes, which is all that DeepLesion has."""

import math

import cv2
import numpy as np


def weak_mask(image: np.ndarray, box, recist) -> tuple[np.ndarray, str]:
    """Make a mask of any lesion: :func:`grabcut_mask`, or where that fails, what :func:`recist_ellipse` encloses.

    Args:
        image, box, recist: see :func:`grabcut_mask`.

    Returns:
        (H, W) bool, and which of the two it is: "grabcut" or "ellipse".
    """
    try:
        mask = grabcut_mask(image, box, recist)
    except GrabCutFailed:
        mask = np.zeros(0)
    if mask.any():
        return mask, "grabcut"
    return _fill(image.shape, recist_ellipse(recist)), "ellipse"


class GrabCutFailed(ValueError):
    """GrabCut has nothing to tell lesion and background apart by."""


def grabcut_mask(image: np.ndarray, box, recist) -> np.ndarray:
    """Segment a lesion with GrabCut (Rother et al., 2004), as the published weak masks of DeepLesion were made.

    Outside the box is background, inside it probably lesion, the quadrilateral of the RECIST points certainly lesion;
    three iterations. The same arguments give the same mask. OpenCV's random generator is seeded.

    Args:
        image: (H, W), windowed to about [0, 255], as by :func:`window_hu`. Values outside are clipped: [-50, 0) to 0.
        box: x1, y1, x2, y2, 0-based pixels; x2 and y2 are the last ones inside.
        recist: (4, 2), x and y of both ends of the long axis, then of the short axis.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: if the image is not (H, W).
        GrabCutFailed: if no pixel is certainly background or none lesion.
    """
    if image.ndim != 2:
        raise ValueError(f"grabcut_mask takes one slice of shape (H, W). Got {image.shape} instead!")
    grey = np.clip(image, 0, 255).astype(np.uint8)
    labels = np.full(image.shape, cv2.GC_BGD, dtype=np.uint8)
    x1, y1 = (max(0, math.ceil(value)) for value in box[:2])
    x2, y2 = (max(0, math.floor(value) + 1) for value in box[2:])
    labels[y1:y2, x1:x2] = cv2.GC_PR_FGD
    labels[_fill(image.shape, np.asarray(recist)[[0, 2, 1, 3]])] = cv2.GC_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(cv2.merge([grey] * 3), labels, None, *models, 3, cv2.GC_INIT_WITH_MASK)
    except cv2.error as error:
        raise GrabCutFailed(f"GrabCut failed for the box {list(box)} in an image of {image.shape}: {error}") from error
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _fill(image_size: tuple[int, int], outline: np.ndarray) -> np.ndarray:
    """Fill a polygon, (n, 2) of x and y: (H, W) bool, with the pixels on its outline."""
    mask = np.zeros(image_size, dtype=np.uint8)
    cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 1)
    return mask.astype(bool)


def recist_ellipse(recist, points_per_quarter: int = 8) -> np.ndarray:
    """Draw a smooth outline through the four end points of the RECIST axes.

    It is made of four quarters of ellipses around the crossing of the axes: one ellipse where these halve each other.

    Args:
        recist: (4, 2), x and y of both ends of the long axis, then of the short axis.
        points_per_quarter: points on each quarter.

    Returns:
        (4 * points_per_quarter, 2) float64, in order around the outline.
    """
    long_a, long_b, short_a, short_b = points = np.asarray(recist, dtype=np.float64)
    centre = _crossing(long_a, long_b, short_a, short_b)
    if centre is None:
        centre = points.mean(axis=0)
    angles = np.linspace(0, np.pi / 2, points_per_quarter, endpoint=False)
    corners = (long_a, short_a, long_b, short_b)
    quarters = [
        centre + np.outer(np.cos(angles), start - centre) + np.outer(np.sin(angles), end - centre)
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True)
    ]
    return np.concatenate(quarters)


def _crossing(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray | None:
    """Find the point, (2,), where the segments ab and cd cross; None where they do not."""
    directions = np.stack([b - a, c - d], axis=1)
    if abs(np.linalg.det(directions)) < 1e-6:
        return None
    s, t = np.linalg.solve(directions, c - a)
    return a + s * (b - a) if 0 <= s <= 1 and 0 <= t <= 1 else None
