"""The command on volumes: every kind of ground truth and of results, and what is wrong with them."""

import csv
import json
import pickle

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel")

from a3d_det2.engine.evaluate import main
from a3d_det2.volumes import Detection, read_volume
from a3d_det2.volumes.labelled import read_labels
from a3d_det2.volumes.linking import Linked
from a3d_det2.volumes.measurement import measure_lesions
from a3d_det2.volumes.phantom import random_volume, write_labels, write_nifti
from a3d_det2.volumes.writing import write_results


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Three CTs with their label maps, and results that are these lesions but for the last of each, and a false one."""
    folder = tmp_path_factory.mktemp("phantom")
    for name in ("cts", "labels", "found"):
        (folder / name).mkdir()
    for index, codes in enumerate(("LPS", "RAS", "PIR")):
        volume = random_volume(index, size=64, slice_interval=5.0, length=200.0, lesion_size=(20.0, 40.0))
        write_nifti(str(folder / "cts" / f"ct_{index}.nii.gz"), volume, codes=codes)
        labels = folder / "labels" / f"ct_{index}_labels.nii.gz"
        write_labels(str(labels), volume, codes=codes)
        lesions = read_labels(str(labels)).lesions
        linked = [
            Linked([Detection(s.index, s.box, 0.9 - 0.1 * i, s.mask) for s in lesion.slices], 0.9 - 0.1 * i)
            for i, lesion in enumerate(lesions[:-1])
        ]
        linked.append(Linked([Detection(k, np.array([2.0, 2, 9, 9]), 0.05) for k in (1, 2)], 0.05))
        ct = read_volume(str(folder / "cts" / f"ct_{index}.nii.gz"))
        found = folder / "found" / f"ct_{index}"
        found.mkdir()
        ours = measure_lesions(linked, ct, np.zeros(2))
        write_results(str(found), ct, ours, box_margin=np.zeros(2), how={}, outputs=["labels"])
    return folder


def run(capfd, *arguments):
    status = None
    try:
        main(["--volumes", *map(str, arguments)])
    except SystemExit as error:
        status = error.code
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    return printed.out, status


def test_label_maps(phantom, tmp_path, capfd):
    printed, status = run(
        capfd, "--ground-truth", phantom / "labels", "--results", f"ours={phantom / 'found'}", "--resamples", 50,
        "--images", phantom / "cts", "--output", tmp_path / "out", "--gallery", 2,
    )  # fmt: skip
    assert status is None
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rules"]
    assert next(iter(content)) == "iou3d_0.3"
    assert len(content) == 8
    first = content["iou3d_0.3"]["ours"]
    count = first["num_lesions"]
    for name, results in content.items():
        summary = results["ours"]
        assert (summary["num_images"], summary["num_lesions"]) == (3, count)
        assert summary["sensitivity"][-1] == pytest.approx((count - 3) / count), name
    assert first["agreement"]["long axis, mm"]["bias"] == pytest.approx(0, abs=1e-9)
    assert f"{count} lesions in 3 volumes, 0 of them without any" in printed
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [row["rule"] for row in rows] == list(content)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Lesions that nothing hits" in page
    assert "Not shown" not in page
    assert page.count("data:image/jpeg") == 4  # two misses, two false positives
    assert (tmp_path / "out" / "pictures" / "froc_picai.png").is_file()


def test_boxes_and_the_manual_test_set(tmp_path, capfd):
    boxes = np.array([[10, 10, 5, 19, 19, 8], [40, 40, 6, 49, 49, 9]], dtype=np.int64)
    truth = {"000001_01_01_1-20": boxes, "000002_01_01_1-20": np.zeros((0, 6))}
    with (tmp_path / "truth.pkl").open("wb") as f:
        pickle.dump({"val": {}, "test": truth}, f)
    rows = [f"000001_01_01_1-20,{','.join(map(str, box))},0.9" for box in boxes.tolist()]
    found = "\n".join(["volume,x1,y1,z1,x2,y2,z2,score", *rows])
    (tmp_path / "found.csv").write_text(found)
    command = ["--ground-truth", tmp_path / "truth.pkl", "--results", tmp_path / "found.csv"]
    printed, status = run(capfd, *command, "--rules", "iobb3d_0.3", "--resamples", 0)
    assert status is None
    assert "2 lesions in 2 volumes, 1 of them without any" in printed
    for rule in ("iobb3d_0.3", "iou3d_0.1", "iou3d_0.3"):  # IoBB is never alone
        assert rule in printed
    _, status = run(capfd, *command, "--rules", "iobb3d_0.3", "--resamples", 0, "--output", tmp_path / "out")
    assert status is None
    assert "takes a box on one slice for a whole lesion" in (tmp_path / "out" / "report.html").read_text()
    assert "100.00" in printed
    shifted = found.replace(",5,19,19,8,", ",6,19,19,9,").replace(",6,49,49,9,", ",7,49,49,10,")
    (tmp_path / "shifted.csv").write_text(shifted)
    printed, status = run(
        capfd, *command[:2], "--compare", f"a={tmp_path / 'found.csv'}", f"b={tmp_path / 'shifted.csv'}", "--rules",
        "iou3d_0.5",
    )  # fmt: skip
    assert status is None  # three of five slices in common: an IoU of 0.6
    assert "a minus b" in printed
    assert "+0.00" in printed
    _, status = run(capfd, *command, "--rules", "luna16")
    assert "luna16 needs the diameter in mm of each lesion, which 000001_01_01_1-20 lacks" in status
    _, status = run(capfd, *command, "--split", "val")
    assert "expected volumes, got none" in status


def test_what_cannot_be_read(phantom, tmp_path, capfd):
    found = phantom / "found"
    _, status = run(capfd, "--ground-truth", tmp_path / "none.csv", "--results", found)
    assert "none.csv" in status
    (tmp_path / "empty").mkdir()
    _, status = run(capfd, "--ground-truth", tmp_path / "empty", "--results", found)
    assert "expected volumes, got none" in status
    (tmp_path / "truth.pkl").write_bytes(pickle.dumps([1, 2]))
    _, status = run(capfd, "--ground-truth", tmp_path / "truth.pkl", "--results", found)
    assert "expected the splits val, test of the manual test set" in status
    labels = tmp_path / "labels"
    labels.mkdir()
    for name in ("ct_0.nii.gz", "ct_0_labels.nii.gz"):
        (labels / name).write_bytes((phantom / "labels" / "ct_0_labels.nii.gz").read_bytes())
    _, status = run(capfd, "--ground-truth", labels, "--results", found)
    assert "expected one label map of each volume, got ct_0.nii.gz and ct_0_labels.nii.gz" in status
    (labels / "ct_0.nii.gz").unlink()
    _, status = run(capfd, "--ground-truth", labels, "--results", found)
    assert "expected a volume of the ground truth, which has 1, such as 'ct_0'; got 'ct_1'" in status
    _, status = run(capfd, "--ground-truth", phantom / "labels", "--results", found, "--rules", "iou4d")
    assert status == 2
