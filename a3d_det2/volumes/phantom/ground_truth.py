"""Where the lesions of a phantom volume are."""

import math
from dataclasses import replace

import numpy as np

from ...data.recist import BOX_MARGIN
from .blobs import Blob
from .volume import PhantomVolume, labels


def truth(volume: PhantomVolume) -> dict:
    """Say where the lesions are, in numbers that JSON holds.

    Returns:
        name, seed, shape (D, H, W), spacing (x, y), slice_interval, oblique, tilt;
        affine: (4, 4), from (column, row, slice) to patient coordinates, LPS, mm;
        vessels: how many;
        lesions: of those with a voxel in the volume,
            number: its value in :func:`labels`.
            center_lps, center_voxel: (x, y, z) of the ellipsoid's centre; voxels are not rounded.
            axes_mm: whole lengths of the ellipsoid: long and short in the axial plane, and along z.
            angle: degrees of the long axis in the axial plane, from left to back.
            long_mm, short_mm: the first two of ``axes_mm``, what RECIST would measure on the best slice.
            volume_mm3: of the ellipsoid; voxels: how many the label map has.
            box_voxel: tight, [[x1, y1, z1], [x2, y2, z2]], the first and last voxels with its label.
            box_deeplesion: the same with ``BOX_MARGIN`` pixels more on each side in x and y, not clipped.
            box_lps: [[x, y, z] lowest, highest], mm, of the outer edges of the voxels of ``box_voxel``.
            central_slice: index of the slice nearest to the centre.
            is_cut: whether its label reaches the first or the last slice.
    """
    found = []
    for number, lesion in enumerate(volume.lesions, start=1):
        center = volume.to_patient(lesion.x, lesion.y, lesion.z)
        box, voxels = _box_of_labels(volume, lesion)
        if not voxels:
            continue
        low, high = (np.array(corner) for corner in box)
        corners = np.stack(np.meshgrid(*np.stack([low - 0.5, high + 0.5], axis=1), indexing="ij"), axis=-1)
        corners = corners.reshape(8, 3) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        axes = 2 * lesion.long, 2 * lesion.short, 2 * lesion.depth
        margin = np.array([BOX_MARGIN, BOX_MARGIN, 0])
        center_voxel = volume.to_voxel(center)
        found.append(
            {
                "number": number,
                "center_lps": _rounded(center),
                "center_voxel": _rounded(center_voxel),
                "axes_mm": _rounded(axes),
                "angle": round(math.degrees(lesion.angle), 3),
                "long_mm": round(axes[0], 4),
                "short_mm": round(axes[1], 4),
                "volume_mm3": round(math.pi / 6 * math.prod(axes), 3),
                "voxels": voxels,
                "box_voxel": box,
                "box_deeplesion": [(low - margin).tolist(), (high + margin).tolist()],
                "box_lps": [_rounded(corners.min(axis=0)), _rounded(corners.max(axis=0))],
                "central_slice": int(np.clip(round(center_voxel[2]), 0, volume.depth - 1)),
                "is_cut": box[0][2] == 0 or box[1][2] == volume.depth - 1,
            }
        )
    return {
        "name": volume.name,
        "seed": list(volume.seed),
        "shape": list(volume.shape),
        "spacing": [volume.pixel, volume.pixel],
        "slice_interval": volume.slice_interval,
        "oblique": volume.oblique,
        "tilt": volume.tilt,
        "affine": [_rounded(row, 9) for row in volume.affine],
        "vessels": len(volume.vessels),
        "lesions": found,
    }


def _box_of_labels(volume: PhantomVolume, lesion: Blob) -> tuple[list[list[int]], int]:
    """The first and last voxels of a lesion's label, and how many there are."""
    alone, found = replace(volume, lesions=(lesion,)), []
    # In oblique slices it lies where its enclosing box does.
    corners = [
        volume.to_voxel(volume.to_patient(lesion.x, lesion.y + dy, z))[2]
        for dy in (-lesion.long, lesion.long)
        for z in (lesion.first, lesion.last)
    ]
    for k in range(max(math.floor(min(corners)), 0), min(math.ceil(max(corners)) + 1, volume.depth)):
        rows, columns = np.nonzero(labels(alone, k))
        found.append(np.stack([columns, rows, np.full_like(rows, k)], axis=1))
    if not sum(map(len, found)):
        return [], 0
    voxels = np.concatenate(found)
    return [voxels.min(axis=0).tolist(), voxels.max(axis=0).tolist()], len(voxels)


def _rounded(values, digits: int = 4) -> list[float]:
    return [round(float(v), digits) for v in values]
