"""What 3D Slicer reads: points and boxes where the lesions are."""

import json

import numpy as np

from a3d_det2.volumes import Detection
from a3d_det2.volumes.linking import Linked
from a3d_det2.volumes.markups import write_markups
from a3d_det2.volumes.measurement import measure_lesions
from tests.volumes.volumes import make_volume


def test_points_and_boxes(tmp_path):
    volume = make_volume(np.zeros((9, 40, 50)), spacing=(0.5, 2.0), interval=3.0, tilt=(0.0, 1.0))
    linked = [
        Linked([Detection(k, np.array([10.0, 12, 19, 15]), 0.9) for k in (2, 3, 4)], 0.9),
        Linked([Detection(7, np.array([30.0, 5, 31, 6]), 0.4)], 0.4),
    ]
    lesions = measure_lesions(linked, volume, np.zeros(2))
    write_markups(str(tmp_path / "lesions.mrk.json"), lesions)
    centers, *boxes = json.loads((tmp_path / "lesions.mrk.json").read_text())["markups"]
    assert (centers["type"], centers["coordinateSystem"], centers["coordinateUnits"]) == ("Fiducial", "LPS", "mm")
    assert [point["label"] for point in centers["controlPoints"]] == ["1", "2"]
    assert centers["controlPoints"][0]["description"] == "score 0.900, 8.0 x 5.0 mm"
    np.testing.assert_allclose(centers["controlPoints"][0]["position"], volume.position_of(14.5, 13.5, 3))
    for box, lesion in zip(boxes, lesions, strict=True):
        assert (box["type"], box["coordinateSystem"]) == ("ROI", "LPS")
        low, high = (np.array(box["center"]) + side * np.array(box["size"]) / 2 for side in (-1, 1))
        np.testing.assert_allclose([low, high], lesion.box)
    np.testing.assert_allclose(boxes[0]["size"], [5.0, 8.0 + 2.0, 9.0])  # two slices of tilt, 1 mm each


def test_no_lesion(tmp_path):
    write_markups(str(tmp_path / "lesions.mrk.json"), [])
    (centers,) = json.loads((tmp_path / "lesions.mrk.json").read_text())["markups"]
    assert centers["controlPoints"] == []
