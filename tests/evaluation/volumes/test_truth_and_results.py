"""Reading of ground truths and results, and what is wrong with them."""

import json

import numpy as np
import pytest

from a3d_det2.evaluation.volumes import RULES, FoundVolume, TrueVolume, VolumeEvaluation
from a3d_det2.evaluation.volumes.results import read_lesions, read_results
from a3d_det2.evaluation.volumes.truth import from_manual_test_set, read_boxes, read_json_boxes

HEADER = "volume,x1,y1,z1,x2,y2,z2"


def write(path, *lines, encoding="utf-8", end="\n"):
    path.write_bytes(end.join(lines).encode(encoding))
    return str(path)


def test_boxes_of_a_csv_file(tmp_path):
    head = f"{HEADER},patient,lesion,diameter_mm,excluded,spacing_x,spacing_y,spacing_z"
    lines = ["a,0,0,0,9,9,3,p,L,12.5,0,0.5,0.5,2", "a,20,0,4,29,9,4,p,M,8,1,0.5,0.5,2", "b,,,,,,,q,,,,1,1,5"]
    for options in ({}, {"encoding": "utf-8-sig", "end": "\r\n"}):
        first, second = read_boxes(write(tmp_path / "truth.csv", head, *lines, **options))
        assert (first.id, first.patient, first.lesions, second.patient) == ("a", "p", ("L", "M"), "q")
        assert first.boxes.tolist() == [[0, 0, 0, 9, 9, 3], [20, 0, 4, 29, 9, 4]]
        assert first.excluded.tolist() == [False, True]
        assert first.long_mm.tolist() == [12.5, 8]
        assert np.isnan(first.key_boxes[0]).all()
        assert first.key_boxes[1].tolist() == [20, 0, 4, 29, 9, 4]
        assert (first.slice_interval, second.slice_interval, len(second.boxes)) == (2, 5, 0)


def test_empty_cells_and_rows(tmp_path):
    head = f"{HEADER},patient,diameter_mm,excluded"
    lines = [" a ,0,0,0,9,9,3,,,", "a,20,0,4,29,9,4,,8,True", ",,,,,,,,,", "b,,,,,,,q,,"]
    first, second = read_boxes(write(tmp_path / "truth.csv", head, *lines))
    assert (first.id, first.patient, second.patient) == ("a", None, "q")
    assert (np.isnan(first.long_mm[0]), first.long_mm[1], first.excluded.tolist()) == (True, 8, [False, True])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["volume,x1", "a,1"], "expected the columns volume, x1, y1, z1, x2, y2, z2, each once; got volume, x1"),
        ([HEADER, "a,0,0,0,9,9"], "line 2: expected 7 values, one a column"),
        ([HEADER, "a,0,0,0,9,9,x"], "line 2: expected a number as z2, got 'x'"),
        ([HEADER, "a,0,0,0,9,9,1_0"], "line 2: expected a number as z2, got '1_0'"),
        ([HEADER, "a,9,0,0,0,9,9"], "a, lesion 0: expected x1 <= x2"),
        ([HEADER, "a,0,0,0,9,9,nan"], "a, lesion 0: expected x1 <= x2"),
        (
            [f"{HEADER},lesion", "a,0,0,0,9,9,9,L", "a,1,1,1,2,2,2,L"],
            "each lesion, got 'L' twice",
        ),
        ([f"{HEADER},patient", "a,0,0,0,9,9,9,p", "a,1,1,1,2,2,2,q"], "expected one patient of the volume a"),
        ([f"{HEADER},excluded", "a,0,0,0,9,9,9,2"], "line 2: expected 0 or 1 as excluded, got '2'"),
        ([f"{HEADER},spacing_x", "a,0,0,0,9,9,9,1"], "expected three spacings above 0 of the volume a"),
    ],
)
def test_boxes_that_are_none(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        read_boxes(write(tmp_path / "truth.csv", *lines))


def test_boxes_of_a_json_file(tmp_path):
    lesions = [{"box": [0, 0, 0, 9, 9, 3], "lesion": "L", "diameter_mm": 12.5}]
    lesions.append({"box": [20, 0, 4, 29, 9, 4], "lesion": "M", "excluded": True})
    volumes = [{"volume": "a", "patient": 7, "spacing_mm": [0.5, 0.5, 2], "lesions": lesions}]
    volumes.append({"volume": "b", "patient": 8, "lesions": []})
    path = write(tmp_path / "truth.json", json.dumps(volumes))
    first, second = read_json_boxes(path)
    assert (first.id, first.patient, first.lesions, first.slice_interval) == ("a", "7", ("L", "M"), 2)
    assert (first.excluded.tolist(), first.long_mm[0], np.isnan(first.long_mm[1])) == ([False, True], 12.5, True)
    assert (second.id, len(second.boxes)) == ("b", 0)
    for content, message in (
        ({}, "expected a list of volumes"),
        ([{"volume": "a"}], "volume 0: expected a volume with its lesions .*lesions"),
        ([{"volume": "a", "lesions": [{"box": [0] * 6, "excluded": "false"}]}], "expected true or false as excluded"),
        ([{"volume": "a", "lesions": [{"box": [1, 2]}]}], "volume 0: expected a volume with its lesions"),
        ([{"volume": "a", "lesions": [], "spacing_mm": [1, 0, 1]}], "expected three spacings above 0"),
        ([{"volume": "a", "lesions": [{"box": [9, 0, 0, 0, 9, 9]}]}], "expected x1 <= x2"),
    ):
        with pytest.raises(ValueError, match=message):
            read_json_boxes(write(tmp_path / "truth.json", json.dumps(content)))
    with pytest.raises(ValueError, match="got a damaged file"):
        read_json_boxes(write(tmp_path / "truth.json", "["))


def test_results_of_a_csv_file(tmp_path):
    volumes = [TrueVolume("a", np.array([[0, 0, 0, 9, 9, 9]]), shape=(20, 20, 20)), TrueVolume("b", np.zeros((0, 6)))]
    head = f"{HEADER},score"
    lines = ["a,0,0,0,9,9,9,0.9", "a,0,0,0,99,9,9,0.5", "a,1,1,1,0,0,0,0.4", "a,0,0,0,9,9,9,nan"]
    (first, second), warnings = read_results(write(tmp_path / "found.csv", head, *lines), volumes)
    assert (len(first.boxes), len(second.boxes)) == (4, 0)
    assert warnings == [
        "1 of 4 results have NaN as their score; without a place in the order they are left out.",
        "1 of 4 results have a box that is not finite or of negative size; they hit nothing.",
        "1 of 4 results lie outside of their volume, all or in part.",
    ]
    with pytest.warns(UserWarning, match="1 of 4 detections have NaN"):
        matches = VolumeEvaluation(volumes, [first, second], RULES["iou3d_0.5"], resamples=0).matches
    assert (len(matches.score), matches.false_positive.sum(), matches.hit_by.tolist()) == (3, 2, [0])
    for line, message in (
        ("c,0,0,0,9,9,9,0.9", "line 2: expected a volume of the ground truth, which has 2, such as 'a'; got 'c'"),
        ("a,0,0,0,9,9,9,high", "line 2: expected a number as score, got 'high'"),
        ("a,0,0,0,9,9,9", "line 2: expected 8 values"),
    ):
        with pytest.raises(ValueError, match=message):
            read_results(write(tmp_path / "found.csv", head, line), volumes)
    with pytest.raises(FileNotFoundError):
        read_results(str(tmp_path / "none.csv"), volumes)


def lesion(**changes):
    one = {"id": 1, "score": 0.9, "box_voxel": [[0, 0, 0], [9, 9, 9]], "tight_box_voxel": [[1, 1, 0], [8, 8, 9]]}
    one |= {
        "center_voxel": [4.5, 4.5, 4.5],
        "center_lps_mm": [-4.5, -4.5, 4.5],
        "long_axis_mm": 10.0,
        "short_axis_mm": 9.0,
        "volume_mm3": 500.0,
    }
    return one | changes


def test_results_of_a_folder(tmp_path):
    volumes = [TrueVolume(name, np.array([[0, 0, 0, 9, 9, 9]]), affine=np.eye(4)) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"expected a folder for each volume with its lesions.json, got none"):
        read_results(str(tmp_path), volumes)

    def save(name, *lesions, **changes):
        (tmp_path / name).mkdir(exist_ok=True)
        content = {"format": "a3d_det2 lesions", "version": 1, "lesions": lesions} | changes
        (tmp_path / name / "lesions.json").write_text(json.dumps(content))

    save("a", lesion())
    (first, second), warnings = read_results(str(tmp_path), volumes)
    assert (first.boxes.tolist(), first.long_mm.tolist(), len(second.boxes)) == ([[0, 0, 0, 9, 9, 9]], [10.0], 0)
    assert warnings == ["1 of 2 volumes have no results: nothing is taken as found."]
    assert read_results(str(tmp_path), volumes, tight=True)[0][0].boxes.tolist() == [[1, 1, 0, 8, 8, 9]]
    save("a", lesion(center_lps_mm=[-4.5, -4.5, 40.0]))
    with pytest.raises(ValueError, match=r"expected lesions on the grid of the label map, got some 35.5 mm from it"):
        read_results(str(tmp_path), volumes)
    save("a", version=2)
    with pytest.raises(ValueError, match="expected results of the format 'a3d_det2 lesions', version 1"):
        read_results(str(tmp_path), volumes)
    save("a", {"id": 1})
    with pytest.raises(ValueError, match="expected lesions with their measurements, got something else"):
        read_results(str(tmp_path), volumes)
    (tmp_path / "a" / "lesions.json").write_text("{")
    with pytest.raises(ValueError, match="expected results as JSON, got a damaged file"):
        read_results(str(tmp_path), volumes)
    save("a", lesion())
    save("stranger", lesion())
    with pytest.raises(ValueError, match="got 'stranger'"):
        read_results(str(tmp_path), volumes)


def test_label_maps_of_another_grid(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    (tmp_path / "lesions.json").write_text(
        json.dumps({"format": "a3d_det2 lesions", "version": 1, "lesions": [lesion()]})
    )
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9), np.int16), np.eye(4)), tmp_path / "lesions.nii.gz")
    labels = np.ones((10, 10, 10), dtype=int)
    more = {"shape": labels.shape, "labels": lambda: labels, "numbers": np.array([1])}
    volume = TrueVolume("a", np.array([[0, 0, 0, 9, 9, 9]]), **more)
    found = read_lesions(str(tmp_path), volume)
    with pytest.raises(ValueError, match=r"expected a label map of \(10, 10, 10\) voxels, got \(9, 9, 9\)"):
        VolumeEvaluation([volume], [found], RULES["picai"])
    placed = TrueVolume("a", np.array([[0, 0, 0, 9, 9, 9]]), **more, affine=np.eye(4))
    path = tmp_path / "lesions.nii.gz"

    def problem():
        with pytest.raises(ValueError, match=r"lesions.nii.gz: ") as error:
            read_lesions(str(tmp_path), placed).labels()
        return str(error.value)

    nibabel.save(nibabel.Nifti1Image(np.ones((10, 10, 10), np.int16), np.diag([2, 1, 1, 1])), path)
    assert "expected the label map on the grid of the truth, got another affine" in problem()
    for values in (np.full((10, 10, 10), 0.5, np.float32), np.full((10, 10, 10), -1, np.int16)):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
        assert "expected labels, whole numbers from 0 to 65535, got other values" in problem()
    for damaged in (path.read_bytes()[:60], b"Dear colleague"):
        path.write_bytes(damaged)
        assert "expected a label map as NIfTI, got a damaged file" in problem()


def test_the_names_of_the_manual_test_set():
    boxes = {"000238_04_02_82-120": np.array([[1, 2, 83, 9, 9, 90]]), "000238_04_03_1-60": np.zeros((0, 6))}
    first, second = from_manual_test_set(boxes)
    assert (first.patient, second.patient, len(second.boxes)) == ("000238", "000238", 0)
    for odd in ({7: np.zeros((0, 6))}, {"a": None}, {"a": {}}, {"a": np.array(["x"])}):
        with pytest.raises(ValueError, match="Expected arrays of boxes by the names of sub-volumes"):
            from_manual_test_set(odd)


def test_volumes_that_do_not_fit():
    one, other = (TrueVolume(name, np.zeros((0, 6))) for name in ("a", "b"))
    found = FoundVolume("a", np.zeros((0, 6)), [])
    with pytest.raises(ValueError, match="Expected each volume once, got 'a' twice"):
        VolumeEvaluation([one, one], [found, found], RULES["iou3d_0.5"])
    with pytest.raises(ValueError, match="got other volumes"):
        VolumeEvaluation([other], [found], RULES["iou3d_0.5"])
    with pytest.raises(ValueError, match="expected boxes of the shape"):
        TrueVolume("a", np.zeros((2, 4)))
    with pytest.raises(ValueError, match="expected a box of 6 numbers for each of 1 scores"):
        FoundVolume("a", np.zeros((2, 6)), [0.5])
