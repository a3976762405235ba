import json
import math
import time

import numpy as np
import pytest

from a3d_det2.evaluation.detection_reader import detections_from_results, read_detections

IDS = ["a.png", "b.png"]


def entry(image_id="a.png", bbox=(1, 2, 3, 4), score=0.5, **others):
    return {"image_id": image_id, "category_id": 0, "bbox": list(bbox), "score": score, **others}


def test_by_hand():
    mask = {"size": [9, 9], "counts": "abc"}
    found = detections_from_results([entry(), entry("b.png", (0, 0, 0.5, 0), 1, segmentation=mask)], IDS)
    assert found.image.tolist() == [0, 1]
    assert found.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 0.5, 0]]
    assert found.scores.tolist() == [0.5, 1]
    assert found.masks == [None, mask]
    assert found.warnings == []


def test_nothing_detected():
    found = detections_from_results([], IDS)
    assert (found.image.shape, found.boxes.shape, found.scores.shape, found.masks) == ((0,), (0, 4), (0,), [])
    assert found.warnings == []


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"annotations": []}, "results: expected a list of detections, got an object"),
        ("text", "expected a list of detections, got text"),
        ([entry(), "text"], "entry 1: expected image_id, bbox and score, got text"),
        ([entry(), None], "entry 1: expected image_id, bbox and score, got None"),
        (
            [{"image_id": "a.png", "score": 1}],
            "entry 0: expected image_id, bbox and score, got the keys image_id, score",
        ),
        ([entry(), entry(score="0.5")], "entry 1: expected a number as the score, got '0.5'"),
        ([entry(score=None)], "entry 0: expected a number as the score, got None"),
        ([entry(score=True)], "entry 0: expected a number as the score, got True"),
        ([entry(score=10**400)], "expected a number as the score, got one that no float holds"),
        ([entry(), entry(bbox=(1, 2, 3))], r"entry 1: expected a bbox of 4 numbers, got \[1, 2, 3\]"),
        ([entry(), entry(bbox=(1, 2, "3", 4))], "entry 1: expected a bbox of 4 numbers, got '3'"),
        ([entry(), entry(bbox=(1, 2, None, 4))], "entry 1: expected a bbox of 4 numbers, got None"),
        ([{**entry(), "bbox": "1234"}], "entry 0: expected a bbox of 4 numbers, got '1234'"),
        ([{**entry(), "bbox": None}], "entry 0: expected a bbox of 4 numbers, got None"),
        ([entry(), entry("c.png")], "entry 1: expected an image .* which has 2 images, such as 'a.png'; got 'c.png'"),
        ([entry(17)], "entry 0: expected an image of the ground truth, .*; got 17"),
        ([entry(["a.png"])], r"entry 0: expected an image of the ground truth, .*; got \['a.png'\]"),
        ([entry(segmentation=[[1, 2, 3, 4, 5, 6]])], "entry 0: expected the segmentation as run-length encoding"),
    ],
)
def test_what_cannot_be_understood_is_named(results, message):
    with pytest.raises(ValueError, match=message):
        detections_from_results(results, IDS)


def test_a_ground_truth_without_images():
    with pytest.raises(ValueError, match="the ground truth, which has none; got 'a.png'"):
        detections_from_results([entry()], [])


def test_a_ground_truth_with_an_image_id_twice():
    with pytest.raises(ValueError, match="3 images, but only 2 different image ids"):
        detections_from_results([entry()], [*IDS, "a.png"])


def test_nan_scores_are_left_out_and_counted():
    found = detections_from_results([entry(score=math.nan, segmentation={"size": [], "counts": ""}), entry()], IDS)
    assert found.scores.tolist() == [0.5]
    assert found.masks == [None]
    assert found.warnings == [
        "1 of 2 detections have NaN as their score; without a place in the order they are left out."
    ]


@pytest.mark.parametrize(
    "bbox", [(math.nan, 0, 1, 1), (0, 0, math.inf, 1), (-math.inf, 0, math.inf, 1), (5, 5, -3, -3)]
)
def test_boxes_that_are_none_are_counted_and_kept(bbox):
    found = detections_from_results([entry(), entry(bbox=bbox)], IDS)
    assert len(found.scores) == 2
    assert found.warnings == [
        "1 of 2 detections have a box that is not finite or of negative size; they count as false positives."
    ]


def test_repeated_detections_ids_and_categories_are_counted():
    results = [entry(), entry(score=0.6), entry(), entry(), entry("b.png")]
    assert detections_from_results(results, IDS).warnings == [
        "2 of 5 detections repeat another with the same image, box and score; they all count."
    ]
    results = [entry(id=1), entry(id=1, score=0.1), entry(id=2, score=0.2)]
    assert detections_from_results(results, IDS).warnings == [
        "1 of 3 detections have an id that another has; ids are not used."
    ]
    results = [entry(), {**entry(score=0.1), "category_id": 3}]
    assert detections_from_results(results, IDS).warnings == [
        "The detections have 2 categories, which are not told apart: each is a lesion."
    ]


def test_json_files(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([entry()]))
    assert read_detections(str(path), IDS).boxes.tolist() == [[1, 2, 4, 6]]
    path.write_text(json.dumps([entry(score=math.nan)]))  # Python writes NaN into JSON
    assert len(read_detections(str(path), IDS).scores) == 0
    path.write_text(json.dumps([entry()])[:-5])
    with pytest.raises(ValueError, match="results.json: expected detections as JSON, got a damaged file"):
        read_detections(str(path), IDS)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="results.json: expected detections as JSON, got a damaged file"):
        read_detections(str(path), IDS)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="results.json: expected detections as JSON, got a damaged file"):
        read_detections(str(path), IDS)
    path.write_text(json.dumps([entry("c.png")]))
    with pytest.raises(ValueError, match="results.json, entry 0"):
        read_detections(str(path), IDS)
    with pytest.raises(FileNotFoundError):
        read_detections(str(tmp_path / "none.json"), IDS)


def test_csv_files(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("score,image_id,x1,y1,x2,y2,note\n0.5,7,1,2,4,6,x\nnan,8,1,2,4,6,y\n")
    found = read_detections(str(path), [7, 8])
    assert (found.image.tolist(), found.boxes.tolist(), found.scores.tolist()) == ([0], [[1, 2, 4, 6]], [0.5])
    assert found.warnings[0].startswith("1 of 2 detections have NaN as their score")
    path.write_text("image_id,x1,y1,x2,y2,score\n")
    assert len(read_detections(str(path), [7]).scores) == 0
    for text, message in (
        ("image_id,x1,y1,x2\n", "results.csv: expected the columns .*, each once; got image_id, x1, y1, x2\\."),
        ("", "results.csv: expected the columns"),
        ("image_id,x1,y1,x2,y2,score\n7,1,2,3,4,high\n", "results.csv, entry 0: expected numbers .* got .*'high'"),
        ("image_id,x1,y1,x2,y2,score,score\n7,1,2,3,4,1,1\n", "results.csv: expected the columns .*, each once"),
        ("image_id,x1,y1,x2,y2,score\n7,1,2,3\n", "results.csv, entry 0: expected 6 values"),
        ("image_id,x1,y1,x2,y2,score\n7,1,2,3,4,0,5\n", "results.csv, entry 0: expected 6 values"),
        ("image_id,x1,y1,x2,y2,score\n7,1,2,3,4,1_0\n", "results.csv, entry 0: expected numbers"),
        (f"image_id,x1,y1,x2,y2,score\n7,1,2,3,4,{'1' * 200_000}\n", "results.csv: expected a CSV file"),
        ("image_id,x1,y1,x2,y2,score\n9,1,2,3,4,1\n", "entry 0: expected an image .* such as '7'; got '9'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_detections(str(path), [7])


def test_many_detections_take_no_longer_than_their_number_explains():
    """0.2 s here; a second would be half an hour at the square of their number."""
    rng = np.random.default_rng(0)
    count, images = 200_000, 5000
    boxes, scores = rng.random((count, 4)).tolist(), rng.random(count).tolist()
    image = rng.integers(0, images, count).tolist()
    results = [
        {"image_id": i, "category_id": 0, "bbox": box, "score": score}
        for i, box, score in zip(image, boxes, scores, strict=True)
    ]
    start = time.process_time()
    found = detections_from_results(results, range(images))
    assert time.process_time() - start < 10
    assert len(found.scores) == count
    assert found.warnings == []
