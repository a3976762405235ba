"""Lesions as markups of 3D Slicer: a point and a box for each, in a file that Slicer loads without an extension."""

import json
from collections.abc import Sequence

from .lesion import Lesion

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def write_markups(path: str, lesions: Sequence[Lesion]) -> None:
    """Write a list of the centres, and the box that encloses each lesion, in mm, LPS.

    Args:
        path: to write; Slicer knows the format by its end, ``.mrk.json``.
        lesions: see :class:`.VolumePredictor`.

    Raises:
        OSError: if it cannot be written.
    """
    common = {"coordinateSystem": "LPS", "coordinateUnits": "mm", "locked": True}
    points = [
        {
            "id": str(one.number),
            "label": str(one.number),
            "description": f"score {one.score:.3f}, {one.long_mm:.1f} x {one.short_mm:.1f} mm",
            "position": one.center.tolist(),
            "positionStatus": "defined",
        }
        for one in lesions
    ]
    centers = {"type": "Fiducial", "name": "Lesions", **common, "controlPoints": points}
    boxes = [
        {
            "type": "ROI",
            "name": f"Lesion {one.number}",
            **common,
            "roiType": "Box",
            "center": one.box.mean(axis=0).tolist(),
            "orientation": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            "size": (one.box[1] - one.box[0]).tolist(),
            "controlPoints": [{"position": one.box.mean(axis=0).tolist(), "positionStatus": "defined"}],
        }
        for one in lesions
    ]
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"@schema": SCHEMA, "markups": [centers, *boxes]}, f, indent=1, allow_nan=False)
