"""Volumes that tests make themselves."""

import numpy as np

from a3d_det2.volumes import Volume
from a3d_det2.volumes.origin import Origin


def make_volume(hu, spacing=(1.0, 1.0), interval=2.0, positions=None, tilt=(0.0, 0.0), **options) -> Volume:
    """A volume of (D, H, W) HU; ``tilt`` is the shift of a slice against the one before, x and y in mm."""
    hu = np.asarray(hu, dtype=np.int16)
    depth = len(hu)
    positions = np.arange(depth) * interval if positions is None else np.array(positions, dtype=float)
    affine = np.diag([*spacing, -positions[-1] / (depth - 1), 1.0])
    offsets = np.arange(depth)[:, None] * np.array(tilt)
    return Volume(hu, affine, positions, offsets, "Nobody^Known", **options)


def make_origin(instances, size) -> Origin:
    """Single images, named by what need not be UIDs, that all lie in one place."""
    directions, positions = np.eye(3)[:2], np.zeros((len(instances), 3))
    return Origin("", "", instances, None, size, (1.0, 1.0), directions, positions)


def ellipsoids(shape, spacing, interval, lesions, body=True) -> np.ndarray:
    """(D, H, W) HU: a body of 0 in air, with ellipsoids of 150 HU, (center (x, y, z), radii) in mm from the corner."""
    lengths = (interval, *spacing[::-1])
    z, y, x = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, lengths, strict=True)), indexing="ij")
    hu = np.full(shape, -1000, dtype=np.int16)
    extent = np.array([shape[2] * spacing[0], shape[1] * spacing[1]])
    if body:
        u, v = (x / extent[0] - 0.5) / 0.4, (y / extent[1] - 0.5) / 0.35
        hu[u**2 + v**2 < 1] = 0
    for (cx, cy, cz), (rx, ry, rz) in lesions:
        hu[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 <= 1] = 150
    return hu
