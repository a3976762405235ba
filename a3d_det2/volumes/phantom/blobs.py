"""Lesions (ellipsoids) and vessels (tubes) of a phantom volume: the same sections on any slice, drawn by the same rule;
a lesion ends after a few mm, a vessel goes on. Coordinates are those of :mod:`.body`.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blob:
    """A lesion or a vessel: an ellipse on every axial slice; lengths in mm, places in body coordinates.

    Attributes:
        x, y, z: centre; of a vessel any point of its axis.
        long, short: semi-axes of the axial ellipse where it is largest; angle: of the long one, in radians.
        hu: value inside.
        first, last: z where it begins and ends; infinite where it goes on.
        tapers: mm over which the ellipse grows after ``first`` and shrinks before ``last``, as an ellipsoid does.
        drift: mm per mm of z that the centre moves, (x, y).
    """

    x: float
    y: float
    z: float
    long: float
    short: float
    angle: float
    hu: float
    first: float
    last: float
    tapers: tuple[float, float]
    drift: tuple[float, float] = (0.0, 0.0)

    @property
    def depth(self) -> float:
        """Half of its length along z."""
        return (self.last - self.first) / 2

    def centre(self, z):
        """The centre (x, y) of its ellipse at z, an array or a number."""
        return self.x + self.drift[0] * (z - self.z), self.y + self.drift[1] * (z - self.z)

    def size(self, z):
        """Of its ellipse at z, against the largest: 1 to 0."""
        into = np.maximum((self.first - z) / self.tapers[0], (z - self.last) / self.tapers[1]) + 1
        return np.sqrt(np.clip(1 - into.clip(0) ** 2, 0, 1))

    def recist(self, z: float) -> np.ndarray:
        """The ends (x, y) of the long, then of the short axis of its ellipse at z, (4, 2)."""
        along = self.long * np.array([math.cos(self.angle), math.sin(self.angle)])
        across = self.short * np.array([-math.sin(self.angle), math.cos(self.angle)])
        return np.array(self.centre(z)) + self.size(np.float64(z)) * np.array([along, -along, across, -across])


def draw_blob(image: np.ndarray, blob: Blob, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    """Draw a lesion or a vessel into ``image``, (H, W) HU.

    Args:
        image: of the slice.
        blob: what to draw.
        x: of the columns, (W,); y, z: of the rows, (H,), body coordinates.
    """
    section = cross_section(blob, x, y, z)
    if section is not None:
        rows, columns, distance, radius = section
        # An edge about one pixel wide.
        inside = np.clip((1 - distance) * (radius / np.float32(x[1] - x[0]))[:, None] + np.float32(0.5), 0, 1)
        window = image[rows, columns]
        window += inside * (np.float32(blob.hu) - window)


def cross_section(blob: Blob, x, y, z) -> tuple[slice, slice, np.ndarray, np.ndarray] | None:
    """Rows and columns that a blob may touch, (h, w) the distance of their pixels from its centre in radii, and (h,)
    its short semi-axis in mm on each row; None if it touches none."""
    if z.max() <= blob.first or z.min() >= blob.last:
        return None
    pixel = x[1] - x[0]
    cx, cy = blob.centre(z)
    reach = blob.long + 2 * pixel
    touched = np.flatnonzero((blob.first < z) & (z < blob.last) & (np.abs(y - cy) < reach))
    if not len(touched):
        return None
    rows = slice(touched[0], touched[-1] + 1)
    z, y, cx, cy = z[rows], y[rows], cx[rows], cy[rows]
    left = np.searchsorted(x, cx.min() - reach)
    right = np.searchsorted(x, cx.max() + reach)
    if left >= right:
        return None
    columns = slice(left, right)
    size = blob.size(z)
    scale = np.maximum(size, 1e-6)[:, None]
    dx, dy = x[None, columns] - cx[:, None], (y - cy)[:, None]
    cos, sin = math.cos(blob.angle), math.sin(blob.angle)
    along, across = (dx * cos + dy * sin) / (blob.long * scale), (dy * cos - dx * sin) / (blob.short * scale)
    return rows, columns, np.hypot(along, across).astype(np.float32), (blob.short * size).astype(np.float32)
