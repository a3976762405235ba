"""RECIST axes, the boxes that DeepLesion makes of them, and how both move under a transform.

A lesion's RECIST measurement is (4, 2): x and y of both ends of the long axis, then of the short axis.
"""

from collections.abc import Callable

import numpy as np

BOX_MARGIN = 5.0  # px that DeepLesion adds to the extent of the RECIST points on every side


def recist_box(recist: np.ndarray) -> np.ndarray:
    """Make the box that DeepLesion gives a lesion, (4,) XYXY, of its RECIST points, (4, 2); it is not clipped."""
    points = np.asarray(recist, dtype=np.float64)
    return np.concatenate([points.min(axis=0) - BOX_MARGIN, points.max(axis=0) + BOX_MARGIN])


def is_recist_box(box: np.ndarray, recist: np.ndarray, image_size: tuple[int, int]) -> bool:
    """Tell whether ``box``, (4,) XYXY, is :func:`recist_box`, to a tenth of a pixel, clipped to an image of (height,
    width) or not."""
    expected = recist_box(recist)
    clipped = np.clip(expected, 0, [*image_size[::-1]] * 2)
    return bool(np.all((np.abs(box - expected) < 0.1) | (np.abs(box - clipped) < 0.1)))


def transform_recist_box(recist: np.ndarray, apply_coords: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Make the box of a lesion after a transform of the image, from its RECIST points.

    A transform that turns the image turns the four corners of a box into those of a larger upright one; the RECIST
    points have no such corners. The margin is turned as a disc around each point. Without a rotation the result is the
    transformed box.

    Args:
        recist: (4, 2), before the transform.
        apply_coords: (n, 2) -> (n, 2), affine, as of an fvcore Transform.

    Returns:
        (4,) x1, y1, x2, y2, not clipped to the image.
    """
    points = np.array(recist, dtype=np.float64)  # a copy: some transforms change what they are given
    origin, right, down = apply_coords(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    margin = BOX_MARGIN * np.hypot(right - origin, down - origin)
    moved = apply_coords(points)
    return np.concatenate([moved.min(axis=0) - margin, moved.max(axis=0) + margin])
