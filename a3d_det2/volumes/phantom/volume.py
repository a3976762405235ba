"""A phantom volume, drawn slice by slice."""

import math
from dataclasses import dataclass

import numpy as np

from ...data.phantom import NOISE
from .blobs import Blob, cross_section, draw_blob
from .body import Body, draw_body


@dataclass(frozen=True, eq=False)
class PhantomVolume:
    """What there is to draw, and on which slices.

    Attributes:
        name: such as "volume_001".
        seed: of anatomy and noise, a tuple of whole numbers.
        width: of a slice in pixels; its height is the same.
        pixel: size of a pixel in mm.
        slice_interval: mm between slices, along the axis on which they follow each other.
        depth: number of slices.
        origin: (x, y, z) patient coordinates of the origin of body coordinates.
        body: the anatomy.
        lesions, vessels: from head to feet; lesion n is ``lesions[n - 1]``.
        oblique: degrees by which the whole grid is turned about x, around its middle.
        tilt: degrees by which each slice is tilted about x, as by the gantry; the step between slices stays.
    """

    name: str
    seed: tuple[int, ...]
    width: int
    pixel: float
    slice_interval: float
    depth: int
    origin: tuple[float, float, float]
    body: Body
    lesions: tuple[Blob, ...]
    vessels: tuple[Blob, ...]
    oblique: float = 0.0
    tilt: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return self.depth, self.width, self.width

    @property
    def directions(self) -> np.ndarray:
        """Unit vectors of columns, rows and slices as the rows of a (3, 3), in patient coordinates."""
        rows, step = math.radians(self.oblique + self.tilt), math.radians(self.oblique)
        return np.array([[1, 0, 0], [0, math.cos(rows), math.sin(rows)], [0, math.sin(step), -math.cos(step)]])

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), from (column, row, slice) to patient coordinates."""
        affine = np.eye(4)
        affine[:3, :3] = (self.directions * [[self.pixel], [self.pixel], [self.slice_interval]]).T
        middle = np.array([self.width - 1, self.width - 1, self.depth - 1]) / 2
        affine[:3, 3] = self.to_patient(0, 0, self.body.length / 2) - affine[:3, :3] @ middle
        return affine

    def to_patient(self, x: float, y: float, z: float) -> np.ndarray:
        """Patient coordinates of a point in body coordinates."""
        return np.array([self.origin[0] + x, self.origin[1] + y, self.origin[2] - z])

    def to_voxel(self, point: np.ndarray) -> np.ndarray:
        """(column, row, slice), not rounded, of a point in patient coordinates."""
        return np.linalg.solve(self.affine[:3, :3], np.asarray(point) - self.affine[:3, 3])

    def rows_and_columns(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Body coordinates of slice k: x of the columns (W,), y and z of the rows (H,)."""
        affine, indices = self.affine, np.arange(self.width)
        x, y, z = affine[:3, 3] + k * affine[:3, 2]
        return (
            x - self.origin[0] + indices * affine[0, 0],
            y - self.origin[1] + indices * affine[1, 1],
            self.origin[2] - z - indices * affine[2, 1],
        )


def render(volume: PhantomVolume, k: int) -> np.ndarray:
    """Draw slice k.

    Returns:
        (H, W) float32, in HU.
    """
    x, y, z = volume.rows_and_columns(k)
    image = draw_body(volume.body, x, y, z)
    for blob in (*volume.vessels, *volume.lesions):
        draw_blob(image, blob, x, y, z)
    noise = np.random.default_rng([*volume.seed, k + 1]).standard_normal(image.shape, dtype=np.float32)
    return image + np.float32(NOISE) * noise


def labels(volume: PhantomVolume, k: int) -> np.ndarray:
    """Mark the pixels of slice k whose centres lie in a lesion.

    Returns:
        (H, W) uint8: the number of the lesion, from 1; 0 elsewhere.
    """
    x, y, z = volume.rows_and_columns(k)
    out = np.zeros((len(y), len(x)), dtype=np.uint8)
    for number, lesion in enumerate(volume.lesions, start=1):
        section = cross_section(lesion, x, y, z)
        if section is not None:
            rows, columns, distance, _ = section
            out[rows, columns][distance <= 1] = number
    return out
