"""Masks from RECIST axes, which is all that DeepLesion has."""

import numpy as np


def recist_ellipse(recist, points_per_quarter: int = 8) -> np.ndarray:
    """A smooth outline through the four end points of the RECIST axes.

    Four quarters of ellipses around the crossing of the axes; an ellipse where the axes halve each other.

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
    """Where the segments ab and cd cross; None where they do not."""
    directions = np.stack([b - a, c - d], axis=1)
    if abs(np.linalg.det(directions)) < 1e-6:
        return None
    s, t = np.linalg.solve(directions, c - a)
    return a + s * (b - a) if 0 <= s <= 1 and 0 <= t <= 1 else None
