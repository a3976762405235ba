import csv
import math

import numpy as np
import pytest

from a3d_det2.data.deeplesion import load_deeplesion
from a3d_det2.data.dl_info import LESION_TYPES
from a3d_det2.evaluation.strata import build_strata


def image(interval=1.0, key=10, slice_range=(1, 20), lesions=(), spacing=(0.5, 0.9)):
    return {
        "file_name": f"root/000001_01_01/{key:03d}.png",
        "slice_interval": interval,
        "slice_range": slice_range,
        "spacing": spacing,
        "annotations": [{"diameters": (d, 1.0), "lesion_type": t} for d, t in lesions],
    }


def test_by_hand():
    images = [
        image(2.0, lesions=[(19.9, 1), (20, 2)]),  # 9.95 and 10 mm
        image(2.1, lesions=[(60, 2), (60.1, -1)], key=4),  # 30 and 30.05 mm; 6.3 mm from the first slice
        image(math.nan, lesions=[(math.nan, 1)]),
        image(5.0, key=19),  # 5 mm from the last slice
        image(0.0),
    ]
    groups = build_strata(images, {1: "bone", 2: "abdomen"}, context=6)
    by_image = {name: s.images.tolist() for name, s in groups["slice thickness"].items()}
    assert by_image == {
        "<= 2 mm": [True, False, False, False, False],
        "> 2 mm": [False, True, False, True, False],
        "5 mm": [False, False, False, True, False],
    }
    by_size = {name: s.lesions.tolist() for name, s in groups["lesion diameter"].items()}
    assert by_size == {
        "< 10 mm": [True, False, False, False, False],
        "10 to 30 mm": [False, True, True, False, False],
        "> 30 mm": [False, False, False, True, False],
    }
    by_type = {name: s.lesions.tolist() for name, s in groups["lesion type"].items()}
    assert by_type == {"bone": [True, False, False, False, True], "abdomen": [False, True, True, False, False]}
    by_end = {name: s.images.tolist() for name, s in groups["end of series"].items()}
    assert by_end == {
        "< 6 mm away": [False, False, False, True, False],
        ">= 6 mm away": [True, True, False, False, False],
    }


def test_what_is_not_known_makes_no_stratum():
    assert build_strata([{"annotations": [{}]}, {}], LESION_TYPES) == {}
    assert build_strata([], LESION_TYPES) == {}
    assert list(build_strata([image(lesions=[(9, 1)])])) == ["slice thickness", "lesion diameter", "end of series"]


@pytest.mark.parametrize("name", ["000001_01_01_010.png", "IMG_1.png", "030.png", "000.png"])
def test_a_slice_number_that_is_none_or_out_of_range(name):
    groups = build_strata([{**image(), "file_name": f"root/{name}"}])
    assert "end of series" not in groups


def test_slice_range_without_an_interval():
    assert build_strata([{"file_name": "root/010.png", "slice_range": [1, 20]}]) == {}


def test_official_test_split(official_csv):
    images = load_deeplesion(str(official_csv), "Images_png", "test", drop_noisy=True)
    groups = build_strata(images, LESION_TYPES)
    with open(official_csv, newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["Possibly_noisy"] == "0"]
    spacing = np.array([[float(v) for v in row["Spacing_mm_px_"].split(",")] for row in rows])
    diameter = np.array([float(row["Lesion_diameters_Pixel_"].split(",")[0]) for row in rows]) * spacing[:, 0]
    count = {name: int(stratum.lesions.sum()) for name, stratum in groups["lesion diameter"].items()}
    expected = [(diameter < 10).sum(), ((diameter >= 10) & (diameter <= 30)).sum(), (diameter > 30).sum()]
    assert list(count.values()) == expected == [786, 2850, 1276]
    for number, name in LESION_TYPES.items():
        assert groups["lesion type"][name].lesions.sum() == sum(int(r["Coarse_lesion_type"]) == number for r in rows)
    thick = {row["File_name"] for row, (_, _, z) in zip(rows, spacing, strict=True) if z > 2}
    assert groups["slice thickness"]["> 2 mm"].images.sum() == len(thick)
    five = {row["File_name"] for row, (_, _, z) in zip(rows, spacing, strict=True) if z == 5}
    assert groups["slice thickness"]["5 mm"].images.sum() == len(five)
    near = groups["end of series"]["< 6 mm away"].images
    assert near.sum() + groups["end of series"][">= 6 mm away"].images.sum() == len(images) == 4817
    assert near.sum() == pytest.approx(39)
