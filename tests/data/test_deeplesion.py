import math
import os
import time

import pytest

from a3d_det2.data import load_deeplesion
from a3d_det2.data.deeplesion import datasets_root, load_named
from a3d_det2.data.phantom import COLUMNS


def test_one_row_by_hand(write_csv):
    assert load_deeplesion(write_csv({}), "root", "test") == [
        {
            "file_name": "root/000001_02_03/014.png",
            "image_id": "000001_02_03_014.png",
            "height": 256,
            "width": 512,
            "patient": 1,
            "slice_interval": 5.0,
            "spacing": (0.7, 0.8),
            "slice_range": (8, 23),
            "annotations": [
                {
                    "bbox": [15.0, 20.0, 45.0, 40.0],
                    "bbox_mode": 0,
                    "category_id": 0,
                    "iscrowd": 0,
                    "row": 0,
                    "recist": [[20.0, 30.0], [40.0, 30.0], [30.0, 25.0], [30.0, 35.0]],
                    "diameters": (20.0, 10.0),
                    "lesion_type": 5,
                }
            ],
        }
    ]


def test_lesions_of_a_key_slice_come_together_in_file_order(write_csv):
    path = write_csv(
        {"Bounding_boxes": "2,2,9,9"}, {"File_name": "000002_01_01_001.png"}, {"Bounding_boxes": "5,5,8,8"}
    )
    first, second = load_deeplesion(path, "", "test")
    assert [a["bbox"][0] for a in first["annotations"]] == [1.0, 4.0]
    assert len(second["annotations"]) == 1


def test_splits_and_noisy_rows(write_csv):
    path = write_csv({"Train_Val_Test": "1"}, {"Train_Val_Test": "2", "Possibly_noisy": "1"}, {})
    assert [len(load_deeplesion(path, "", split)) for split in ("train", "val", "test")] == [1, 1, 1]
    assert load_deeplesion(path, "", "val", drop_noisy=True) == []


def test_boxes_are_clipped_to_the_image(write_csv):
    (record,) = load_deeplesion(write_csv({"Bounding_boxes": "-4, -3, 600, 300"}), "", "test")
    assert record["annotations"][0]["bbox"] == [0.0, 0.0, 512.0, 256.0]


def test_bad_spacing_is_kept_for_the_loader_with_one_warning(write_csv, caplog):
    names = ["000001_01_01_001.png", "000001_01_01_002.png", "000001_01_01_003.png"]
    bad = [{"File_name": n, "Spacing_mm_px_": f"0.7, 0.7, {z}"} for n, z in zip(names, ("NaN", 0, -5), strict=True)]
    records = load_deeplesion(write_csv(*bad, bad[0], {}), "", "test")
    assert math.isnan(records[0]["slice_interval"])
    assert [r["slice_interval"] for r in records[1:]] == [0.0, -5.0, 5.0]
    (warning,) = caplog.messages
    assert "3 of 4 key slices in the test split" in warning
    assert "Spacing_mm_px_ (000001_01_01_001.png is the first)" in warning


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("Bounding_boxes", "1, 2, 3", "4 numbers separated by commas, got '1, 2, 3'"),
        ("Bounding_boxes", "a, b, c, d", "4 numbers"),
        ("Bounding_boxes", "40, 20, 30, 30", "x1 < x2 and y1 < y2"),
        ("Bounding_boxes", "nan, 20, 30, 30", "x1 < x2 and y1 < y2"),
        ("Bounding_boxes", "600, 20, 700, 30", "within the 512 x 256 image"),
        ("Measurement_coordinates", "1, 2, 3, 4", "8 numbers"),
        ("Measurement_coordinates", "1, 2, 3, 4, 5, 6, 7, inf", "finite"),
        ("Spacing_mm_px_", "", "3 numbers"),
        ("Image_size", "512", "2 whole numbers"),
        ("Image_size", "0, 512", "positive width and height"),
        ("Slice_range", "8.5, 9", "2 whole numbers"),
        ("Slice_range", "9, 8", "the numbers of the first and last slice"),
        ("Slice_range", "1, 30000000", "the numbers of the first and last slice"),
        ("Train_Val_Test", "test", "a whole number, got 'test'"),
        ("Train_Val_Test", "4", r"1, 2 or 3 \(train, val, test\), got '4'"),
        ("Image_size", "512, 512", "what the row above says of the same File_name, got '512, 512'"),
        ("Possibly_noisy", "", "a whole number"),
        ("Coarse_lesion_type", "lung", "a whole number"),
        ("Patient_index", "x", "a whole number"),
        ("File_name", "key.png", "a name such as 000001_01_01_109.png"),
        ("File_name", "000001_01_01_109.jpg", "a name such as"),
    ],
)
def test_a_malformed_value_names_file_line_and_column(write_csv, column, value, expected):
    path = write_csv({}, {column: value})
    with pytest.raises(ValueError, match=f"DL_info.csv, line 3, column {column}: expected .*{expected}"):
        load_deeplesion(path, "", "test", drop_noisy=True)


def test_a_short_row_is_malformed(write_csv, tmp_path):
    path = write_csv({})
    with open(path, "a") as f:
        f.write("000001_02_03_015.png,1\n")
    with pytest.raises(ValueError, match="line 3, column Train_Val_Test"):
        load_deeplesion(path, "", "test")


def test_missing_columns_and_file(write_csv, tmp_path):
    path = write_csv({}, columns=[c for c in COLUMNS if c not in ("Slice_range", "Image_size")])
    with pytest.raises(ValueError, match=r"DL_info.csv: expected the columns .* Slice_range, Image_size missing"):
        load_deeplesion(path, "", "test")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="File_name.* missing"):
        load_deeplesion(str(tmp_path / "empty.csv"), "", "test")
    with pytest.raises(FileNotFoundError):
        load_deeplesion(str(tmp_path / "none.csv"), "", "test")


def test_encodings(write_csv):
    path = write_csv({})
    with open(path, "rb") as f:
        content = f.read()
    with open(path, "wb") as f:
        f.write(b"\xef\xbb\xbf" + content)  # a byte order mark, as spreadsheets write it
    assert len(load_deeplesion(path, "", "test")) == 1
    with open(path, "wb") as f:
        f.write(content.replace(b",F,", b",\xe9,"))
    with pytest.raises(ValueError, match="DL_info.csv: expected a CSV file in UTF-8"):
        load_deeplesion(path, "", "test")
    with open(path, "wb") as f:
        f.write(content.replace(b",F,", b"," + b"F" * 200_000 + b","))
    with pytest.raises(ValueError, match="DL_info.csv: expected a CSV file in UTF-8, .*larger than field limit"):
        load_deeplesion(path, "", "test")


def test_unknown_split(write_csv):
    with pytest.raises(ValueError, match="Unknown split 'dev'. Choose one of train, val, test, or a split file"):
        load_deeplesion(write_csv({}), "", "dev")


def test_official_rows(official_csv):
    start = time.perf_counter()
    records = load_deeplesion(str(official_csv), "no/such/folder", "test")
    assert time.perf_counter() - start < 2
    assert (len(records), sum(len(r["annotations"]) for r in records)) == (4831, 4927)
    clean = load_deeplesion(str(official_csv), "no/such/folder", "test", drop_noisy=True)
    assert (len(clean), sum(len(r["annotations"]) for r in clean)) == (4817, 4912)
    assert load_deeplesion(str(official_csv), "", "train") == []
    assert len({r["patient"] for r in records}) == 665


def test_datasets_by_name(write_csv, tmp_path, monkeypatch):
    (tmp_path / "phantom" / "splits").mkdir(parents=True)
    (tmp_path / "phantom" / "splits" / "fold1.txt").write_text("1")
    os.rename(
        write_csv({}, {"File_name": "000001_02_03_015.png", "Key_slice_index": "15", "Possibly_noisy": "1"}),
        tmp_path / "phantom" / "DL_info.csv",
    )
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("phantom_test", "phantom_fold1"):
        (record,) = load_named(name)  # without the noisy one
        assert record["file_name"] == str(tmp_path / "phantom" / "Images_png" / "000001_02_03" / "014.png")
        assert "segmentation" not in record["annotations"][0]
    with pytest.raises(ValueError, match="Unknown dataset 'phantom_fold2'. Choose one of deeplesion_train, .*_fold1"):
        load_named("phantom_fold2")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert datasets_root() == "datasets"
