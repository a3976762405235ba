import contextlib
import copy
import io
import json
import subprocess

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from a3d_det2.data import load_deeplesion
from a3d_det2.data.coco import read_coco, to_coco
from a3d_det2.data.mask_file import MASK_FILE, encode_mask, write_masks
from tests.scripts import without_detectron2


@pytest.fixture
def table(write_csv):
    return write_csv(
        {},
        {"Bounding_boxes": "2, 2, 9, 10"},
        {"File_name": "000002_01_01_020.png", "Spacing_mm_px_": "0.5, 0.5, NaN", "Possibly_noisy": "1"},
    )


def test_by_hand(table):
    coco = to_coco(load_deeplesion(table, "root/Images_png", "test"), "root/Images_png")
    first, second = coco["images"]
    assert first == {
        "id": "000001_02_03_014.png",
        "file_name": "000001_02_03/014.png",
        "width": 512,
        "height": 256,
        "patient": 1,
        "slice_interval": 5.0,
        "spacing": [0.7, 0.8],
        "slice_range": [8, 23],
    }
    assert second["slice_interval"] is None
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3]
    assert [a["image_id"] for a in coco["annotations"]] == [first["id"], first["id"], second["id"]]
    assert coco["annotations"][1] == {
        "id": 2,
        "image_id": "000001_02_03_014.png",
        "category_id": 0,
        "bbox": [1.0, 1.0, 7.0, 8.0],
        "area": 56.0,
        "iscrowd": 0,
        "row": 1,
        "recist": [[20.0, 30.0], [40.0, 30.0], [30.0, 25.0], [30.0, 35.0]],
        "diameters": [20.0, 10.0],
        "diameters_mm": pytest.approx([14.0, 7.0]),
        "lesion_type": 5,
    }


@pytest.fixture
def root(table, tmp_path):
    mask = np.zeros((256, 512), dtype=bool)
    mask[20:40, 15:45] = True
    names = ["000001_02_03_014.png"] * 2 + ["000002_01_01_020.png"]
    boxes = [[15, 20, 45, 40], [1, 1, 8, 9], [15, 20, 45, 40]]
    masks = [
        {"row": i, "image_id": name, "bbox": box, "source": "grabcut", **encode_mask(mask)}
        for i, (name, box) in enumerate(zip(names, boxes, strict=True))
    ]
    write_masks(str(tmp_path / MASK_FILE), masks)
    return tmp_path


def export(repo, root, *options):
    command = without_detectron2("datasets/export_coco.py", "--root", root, "--output", root / "coco.json")
    return subprocess.run([*command, *options], capture_output=True, text=True, cwd=repo)


def test_command_and_pycocotools(repo, root):
    """Perfect detections, under the image ids of an evaluation's results, score 1 in pycocotools."""
    done = export(repo, root, "--split", "test", "--keep-noisy")
    assert done.returncode == 0, done.stderr
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "coco.json"))
        results = [
            {"image_id": a["image_id"], "category_id": 0, "bbox": a["bbox"], "score": 0.9}
            for a in truth.loadAnns(truth.getAnnIds())
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert truth.annToMask(truth.anns[1]).sum() == truth.anns[1]["area"] == 600


def test_noisy_rows_and_split_files(repo, root):
    (root / "mine.txt").write_text("1")
    export(repo, root, "--split", "test")
    assert len(json.loads((root / "coco.json").read_text())["images"]) == 1
    done = export(repo, root, "--split", root / "mine.txt", "--keep-noisy")
    assert "2 key slices with 3 lesions" in done.stdout
    done = export(repo, root, "--split", "tset")
    assert done.returncode != 0
    assert "Unknown split 'tset'" in done.stderr


def test_numbers_that_json_has_not(write_csv):
    records = load_deeplesion(
        write_csv({"Lesion_diameters_Pixel_": "NaN, 3", "Spacing_mm_px_": "NaN, 1, -1"}), "", "test"
    )
    coco = to_coco(records, "")
    assert coco["annotations"][0]["diameters"] == [None, 3.0]
    assert coco["annotations"][0]["diameters_mm"] == [None, None]
    assert coco["images"][0]["spacing"] == [None, 1.0]
    json.dumps(coco, allow_nan=False)


def test_official_rows(official_csv):
    coco = to_coco(load_deeplesion(str(official_csv), "", "test"), "")
    assert (len(coco["images"]), len(coco["annotations"])) == (4831, 4927)
    json.dumps(coco, allow_nan=False)


def same(a, b):
    """Equal, with NaN equal to itself and coordinates to the last bit but one."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == pytest.approx(b, rel=1e-12, nan_ok=True) if isinstance(a, float) else a == b


def as_read(records):
    """What a COCO file can tell of dataset dicts."""
    records = copy.deepcopy(records)
    for record in records:
        record["slice_range"] = list(record["slice_range"])
    return records


def test_read_is_the_reverse(table, tmp_path):
    records = load_deeplesion(table, "root/Images_png", "test")
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(to_coco(records, "root/Images_png")))
    again = read_coco(str(path), "root/Images_png")
    assert len(again) == 2
    assert same(again, as_read(records))


def test_read_the_official_split(official_csv, tmp_path):
    records = load_deeplesion(str(official_csv), "Images_png", "test", drop_noisy=True)
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(to_coco(records, "Images_png")))
    assert same(read_coco(str(path), "Images_png"), as_read(records))


BARE = {
    "images": [{"id": 7, "file_name": "a.png", "width": 10, "height": 20}],
    "annotations": [{"id": 1, "image_id": 7, "bbox": [1, 2, 3, 4]}],
}


def test_read_what_other_tools_write(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(BARE))
    assert read_coco(str(path)) == [
        {
            "file_name": "a.png",
            "image_id": 7,
            "height": 20,
            "width": 10,
            "annotations": [{"bbox": [1, 2, 4, 6], "bbox_mode": 0, "category_id": 0, "iscrowd": 0}],
        }
    ]


def test_read_null_is_not_known(tmp_path):
    path = tmp_path / "coco.json"
    image = {**BARE["images"][0], "patient": None, "spacing": None, "slice_range": None, "slice_interval": None}
    annotation = {**BARE["annotations"][0], "diameters": None, "lesion_type": None}
    path.write_text(json.dumps({"images": [image], "annotations": [annotation]}))
    (record,) = read_coco(str(path))
    assert record.keys() == {"file_name", "image_id", "height", "width", "annotations", "slice_interval"}
    assert np.isnan(record["slice_interval"])
    assert "diameters" not in record["annotations"][0]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("images", [{}, {}], "entry 1 of images: expected an id, .*, that occurs once, got 7"),
        ("images", [{"id": None}], "entry 0 of images: expected an id, .*, that occurs once, got None"),
        ("annotations", [{}, {}], "entry 1 of annotations: expected an id, .*, that occurs once, got 1"),
        ("annotations", [{"image_id": 8}], "annotation 1: there is no image 8"),
        ("annotations", [{"iscrowd": 1}], "annotation 1: expected a lesion, got a crowd"),
        ("annotations", [{"image_id": [7]}], r"annotation 1: there is no image \[7\]"),
        ("annotations", [{"bbox": [1, 2, 3]}], r"annotation 1: expected 4 number\(s\) as bbox, got \[1, 2, 3\]"),
        ("annotations", [{"bbox": [1, 2, "3", 4]}], "annotation 1: expected 4 number"),
        ("annotations", [{"bbox": [1, 2, 10**400, 4]}], "annotation 1: expected 4 number"),
        ("annotations", [{"bbox": [1, None, 3, 4]}], "annotation 1: expected a bbox"),
        ("annotations", [{"bbox": [1, 2, -3, 4]}], "annotation 1: expected a bbox"),
        ("annotations", [{"bbox": [1, 2, float("nan"), 4]}], "annotation 1: expected a bbox"),
        ("annotations", [{"bbox": None}], "annotation 1: expected 4 number"),
        ("annotations", [{"diameters": []}], r"annotation 1: expected 2 number\(s\) as diameters, got \[\]"),
        (
            "annotations",
            [{"lesion_type": "liver"}],
            "annotation 1: expected a whole number as lesion_type, got 'liver'",
        ),
        ("images", [{"file_name": 3}], "image 7: expected printable text as file_name, got 3"),
        ("images", [{"width": None}], "image 7: expected a whole number as width, got None"),
        ("images", [{"patient": [1]}], r"image 7: expected a whole number or printable text as patient, got \[1\]"),
        ("images", [{"slice_interval": "5"}], r"image 7: expected 1 number\(s\) as slice_interval"),
        ("images", [{"spacing": 0.5}], r"image 7: expected 2 number\(s\) as spacing, got 0.5"),
        ("images", [{"slice_range": [1]}], r"image 7: expected 2 number\(s\) as slice_range, got \[1\]"),
        ("images", [{"slice_range": [1, None]}], r"image 7: expected 2 number\(s\) as slice_range"),
    ],
)
def test_read_errors_name_the_entry(tmp_path, kind, changes, message):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({**BARE, kind: [{**BARE[kind][0], **change} for change in changes]}))
    with pytest.raises(ValueError, match=f"coco.json, {message}"):
        read_coco(str(path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [{}], "annotations": []}', '{"images": ["a"]'])
def test_read_another_format(tmp_path, text):
    path = tmp_path / "coco.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"coco.json(: expected|, entry 0 of images: expected)"):
        read_coco(str(path))
