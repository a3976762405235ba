import json
import shutil
import subprocess

import pytest

from tests.damage import Dataset, make_8_bit, resize, truncate
from tests.scripts import without_detectron2


@pytest.fixture
def dataset(phantom_root, tmp_path):
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")
    return Dataset(tmp_path / "phantom")


def check(dataset, repo, *options):
    dataset.save()
    report = dataset.root / "report.json"
    command = without_detectron2("datasets/check_deeplesion.py", "--root", dataset.root, "--json", report)
    done = subprocess.run([*command, "--workers", "2", *options], capture_output=True, text=True, cwd=repo)
    assert done.returncode in (0, 1), done.stderr
    return done, json.loads(report.read_text())


def found(report):
    """Kind -> where, without what a phantom always has."""
    ordinary = ("counts", "key_slice_at_end", "box_outside", "spacing_outlier")
    return {
        kind: [finding["where"] for finding in group["list"]]
        for kind, group in report["findings"].items()
        if kind not in ordinary
    }


def test_nothing_is_wrong_with_a_phantom(dataset, repo):
    done, report = check(dataset, repo)
    assert done.returncode == 0
    assert report["can_train"]
    assert found(report) == {}
    assert report["splits"]["train"]["key_slices"] == 12
    assert "Training can start." in done.stdout


def test_ten_kinds_of_damage(dataset, repo):
    rows = dataset.key_slices(1)
    assert len(rows) == 12
    dataset.path(rows[0], 1).unlink()
    dataset.path(rows[1]).unlink()
    truncate(dataset.path(rows[2], 1))
    make_8_bit(dataset.path(rows[3], -1))
    resize(dataset.path(rows[4], 1))
    x, y, _ = rows[5]["Spacing_mm_px_"].split(",")
    rows[5]["Spacing_mm_px_"] = f"{x}, {y}, NaN"
    rows[6]["Spacing_mm_px_"] = f"{x}, {y}, -2"
    x1, y1, x2, y2 = rows[7]["Bounding_boxes"].split(", ")
    rows[7]["Bounding_boxes"] = f"{x2}, {y2}, {x1}, {y1}"
    dataset.rows.append(dict(rows[8]))
    other = dataset.key_slices(2)[0]
    other["Patient_index"] = rows[9]["Patient_index"]

    def line(row):
        return f"line {[id(r) for r in dataset.rows].index(id(row)) + 2}"

    def where(row, offset=0):
        path = dataset.path(row, offset)
        return f"{path.parent.name}/{path.stem}"

    done, report = check(dataset, repo)
    expected = {
        "neighbour_missing": [where(rows[0], 1)],
        "key_slice_missing": [where(rows[1])],
        "neighbour_unreadable": [where(rows[2], 1)],
        "neighbour_8_bit": [where(rows[3], -1)],
        "neighbour_size": [where(rows[4], 1)],
        "spacing_invalid": [line(rows[5]), line(rows[6])],
        "row": [line(rows[7])],
        "duplicate": [f"line {len(dataset.rows) + 1}"],
        "patient_in_two_splits": [f"patient {other['Patient_index']}"],
    }
    # The series of a row that cannot be read is not looked at, unless it has other rows.
    assert found(report) == expected
    assert done.returncode == 1
    assert not report["can_train"]
    for places in expected.values():
        for place in places:
            assert place in done.stdout
    assert "Training cannot start." in done.stdout


@pytest.mark.parametrize("kind", ["unreadable", "8_bit", "size"])
def test_damaged_key_slices_keep_training_from_starting(dataset, repo, kind):
    row = dataset.key_slices(3)[0]
    {"unreadable": truncate, "8_bit": make_8_bit, "size": resize}[kind](dataset.path(row))
    done, report = check(dataset, repo)
    assert done.returncode == 1
    assert list(found(report)) == [f"key_slice_{kind}"]


def test_neighbours_do_not(dataset, repo):
    for row in dataset.key_slices(1):
        truncate(dataset.path(row, 1))
    done, report = check(dataset, repo, "--examples", "3")
    assert done.returncode == 0
    assert len(found(report)["neighbour_unreadable"]) == 12
    assert "12 slices that are no complete PNG" in done.stdout
    assert "and 9 more" in done.stdout
