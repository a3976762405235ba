import csv
import filecmp
import math
import os
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from a3d_det2.data import load_deeplesion, load_slice_stack
from a3d_det2.data.phantom import COLUMNS, HU_OFFSET, random_series, render_slice, series_from_annotations, write_series
from a3d_det2.data.slices import read_slice
from tests.scripts import without_detectron2

OPTIONS = {"size": 96, "intervals": (0.5, 1.0, 2.0, 5.0), "context": 8.0, "seed": 3}


def key_index(rows):
    return int(rows[0]["Key_slice_index"])


def test_the_key_slice_does_not_tell_lesions_from_vessels():
    series, rows = random_series(0, "train", **OPTIONS)
    key = key_index(rows)
    swapped = replace(
        series, blobs=tuple(replace(b, depth=4.0 if b.is_vessel else math.inf, drift=(0, 0)) for b in series.blobs)
    )
    assert np.array_equal(render_slice(series, key), render_slice(swapped, key))
    assert not np.array_equal(render_slice(series, series.slices[0]), render_slice(swapped, series.slices[0]))


def test_lesions_end_and_vessels_go_on():
    series, rows = random_series(0, "train", **OPTIONS)
    key = key_index(rows)
    for blob in series.blobs:
        alone, bare = replace(series, blobs=(blob,)), replace(series, blobs=())
        for index in series.slices:
            drawn = np.abs(render_slice(alone, index) - render_slice(bare, index)) > 0
            away = abs(index - key) * series.interval
            assert drawn.any() == (blob.is_vessel or away < blob.depth)
            if blob.is_vessel:
                ys, xs = np.nonzero(drawn)
                centre = np.array([(xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2])
                assert np.abs(centre - [blob.x, blob.y]).max() < 0.004 * 96 * 10 + 1


@pytest.mark.parametrize(("size", "count", "limit"), [(192, 1500, 0.03), (96, 200, 0.08)])
def test_the_geometry_of_the_key_slice_does_not_tell_lesions_from_vessels(size, count, limit):
    """Size, shape, place and HU of the blobs: none ranks lesions above vessels, nor below them.

    In small images, where blobs find little room, lesions that are drawn first would be large and in the middle.
    """
    features = {
        "long": lambda b: b.long,
        "short / long": lambda b: b.short / b.long,
        "left to right": lambda b: b.x,
        "from the centre": lambda b: np.hypot(b.x - size / 2, b.y - size / 2),
        "|y|": lambda b: abs(b.y - size / 2),
        "hu": lambda b: b.hu,
    }
    options = {**OPTIONS, "size": size}
    blobs = [b for index in range(count) for b in random_series(index, "train", **options)[0].blobs]
    is_lesion = np.array([not b.is_vessel for b in blobs])
    m, n = is_lesion.sum(), (~is_lesion).sum()
    deviation = np.sqrt((m + n + 1) / (12 * m * n))  # of the area under the ROC curve, for chance
    for name, feature in features.items():
        ranks = np.argsort(np.argsort([feature(b) for b in blobs])) + 1
        area = (ranks[is_lesion].sum() - m * (m + 1) / 2) / (m * n)
        assert abs(area - 0.5) < 4 * deviation, name
    assert 4 * deviation < limit


def test_rows_are_complete_and_boxes_are_recist_plus_5_px(tmp_path):
    lesions = 0
    for index in range(20):
        series, rows = random_series(index, "val", **OPTIONS)
        for row in rows:
            assert tuple(row) == COLUMNS
            points = np.array(row["Measurement_coordinates"].split(","), dtype=float).reshape(4, 2)
            box = np.array(row["Bounding_boxes"].split(","), dtype=float)
            np.testing.assert_allclose(box[:2], points.min(0) - 5, atol=1e-3)
            np.testing.assert_allclose(box[2:], points.max(0) + 5, atol=1e-3)
            long, short = np.array(row["Lesion_diameters_Pixel_"].split(","), dtype=float)
            assert np.hypot(*(points[1] - points[0])) == pytest.approx(long, abs=1e-2)
            assert np.hypot(*(points[3] - points[2])) == pytest.approx(short, abs=1e-2)
            assert long >= short
            assert row["Train_Val_Test"] == 2
        lesions += len(rows)
        assert 1 <= len(rows) <= 3
        boxes = [b.box() for b in series.blobs]
        assert sum(b.is_vessel for b in series.blobs) >= 1
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert (a[2:] < b[:2]).any() or (b[2:] < a[:2]).any()
    assert lesions > 20


def test_lesion_stands_where_the_row_says(tmp_path):
    series, rows = random_series(1, "test", **OPTIONS)
    bare = replace(series, blobs=())
    key = key_index(rows)
    drawn = np.abs(render_slice(series, key) - render_slice(bare, key)) > 0
    for row in rows:
        x1, y1, x2, y2 = (float(v) - 1 for v in row["Bounding_boxes"].split(","))
        left, top = round(x1), round(y1)
        ys, xs = np.nonzero(drawn[top : round(y2) + 1, left : round(x2) + 1])
        # The lesion fills the RECIST extent, keeps within the box and has the box's centre.
        for low, high, pixels in ((x1, x2, xs + left), (y1, y2, ys + top)):
            assert low + 0.5 < pixels.min() < low + 6.6
            assert high - 6.6 < pixels.max() < high - 0.5
            assert (pixels.min() + pixels.max()) / 2 == pytest.approx((low + high) / 2, abs=1)


def test_written_slices_are_the_rendered_ones(tmp_path):
    series, rows = random_series(2, "test", **OPTIONS)
    write_series(series, str(tmp_path))
    assert sorted(os.listdir(tmp_path / series.name)) == [f"{k:03d}.png" for k in series.slices]
    key = key_index(rows)
    hu = read_slice(str(tmp_path / series.name / f"{key:03d}.png"))
    np.testing.assert_allclose(hu, render_slice(series, key), atol=0.5)
    assert hu.min() < -900 < 300 < hu.max() < 65535 - HU_OFFSET


def test_geometry_from_annotations():
    record = {
        "file_name": "x/000007_01_02/012.png",
        "width": 80,
        "height": 60,
        "slice_interval": 2.5,
        "slice_range": (10, 14),
        "annotations": [{"recist": [[20.0, 30.0], [40.0, 30.0], [30.0, 25.0], [30.0, 35.0]]}],
    }
    later = {**record, "file_name": "x/000007_01_02/032.png", "slice_range": (32, 33)}
    series = series_from_annotations([record, later], seed=0)
    assert (series.name, series.width, series.height, series.interval) == ("000007_01_02", 80, 60, 2.5)
    assert series.slices == (10, 11, 12, 13, 14, 32, 33)
    lesions = [b for b in series.blobs if not b.is_vessel]
    assert [(b.x, b.y, b.z, b.long, b.short) for b in lesions] == [(30, 30, 30.0, 10, 5), (30, 30, 80.0, 10, 5)]
    assert lesions[0].box().tolist() == pytest.approx([15, 20, 45, 40])
    assert render_slice(series, 12).shape == (60, 80)
    assert series_from_annotations([{**record, "slice_interval": math.nan}], seed=0).interval == 1.0
    with pytest.raises(ValueError, match="one series, got those of 2"):
        series_from_annotations([record, {**record, "file_name": "x/000008_01_02/012.png"}], seed=0)


def make_phantom(repo, output, *arguments):
    command = without_detectron2("datasets/make_phantom.py", "--output", output, *arguments)
    return subprocess.run(command, capture_output=True, text=True, cwd=repo)


def assert_same_tree(a, b):
    files = {p.relative_to(a) for p in a.rglob("*") if p.is_file()}
    assert files == {p.relative_to(b) for p in b.rglob("*") if p.is_file()}
    assert filecmp.cmpfiles(a, b, files, shallow=False)[1:] == ([], [])


def test_same_bytes_whatever_the_workers(repo, tmp_path):
    arguments = ["--train", "3", "--val", "1", "--test", "2", "--size", "48", "--context", "4"]
    for name, extra in (("a", ["1"]), ("b", ["2"]), ("c", ["2", "--seed", "1"])):
        run = make_phantom(repo, tmp_path / name, *arguments, "--workers", *extra)
        assert run.returncode == 0, run.stderr
        assert "phantom: 100%" in run.stderr
    assert_same_tree(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "DL_info.csv").read_bytes() != (tmp_path / "c" / "DL_info.csv").read_bytes()
    again = make_phantom(repo, tmp_path / "a", *arguments)
    assert again.returncode != 0
    assert "DL_info.csv exists" in again.stderr
    (tmp_path / "c" / "DL_info.csv").unlink()  # as an interrupted run leaves it
    assert "Images_png exists" in make_phantom(repo, tmp_path / "c", *arguments).stderr
    patients = {}
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        root = tmp_path / "a"
        records = load_deeplesion(str(root / "DL_info.csv"), str(root / "Images_png"), split)
        assert len(records) == count
        patients[split] = {r["patient"] for r in records}
        for record in records:
            stack = load_slice_stack(record["file_name"], 3, record["slice_interval"])
            assert stack.shape == (3, record["height"], record["width"])
    assert (
        not patients["train"] & patients["val"]
        | patients["val"] & patients["test"]
        | patients["train"] & patients["test"]
    )


def test_official_rows_can_be_given_pixels(repo, official_csv, tmp_path):
    run = make_phantom(repo, tmp_path / "out", "--from-csv", str(official_csv), "--limit", "3")
    assert run.returncode == 0, run.stderr
    with open(tmp_path / "out" / "DL_info.csv", newline="") as f, open(official_csv, newline="") as g:
        ours, theirs = list(csv.DictReader(f)), list(csv.DictReader(g))
    assert ours == [row for row in theirs if row["File_name"] in {r["File_name"] for r in ours}]
    records = load_deeplesion(str(tmp_path / "out" / "DL_info.csv"), str(tmp_path / "out" / "Images_png"), "test")
    assert len(records) == 3
    for record in records:
        assert load_slice_stack(record["file_name"], 7, record["slice_interval"]).shape == (7, 512, 512)
        first, last = record["slice_range"]
        on_disk = {int(name[:3]) for name in os.listdir(os.path.dirname(record["file_name"]))}
        assert set(range(first, last + 1)) <= on_disk
