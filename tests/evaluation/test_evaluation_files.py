import json
import os

import pytest

from a3d_det2.evaluation.evaluation_files import evaluate_results

IMAGES = [{"image_id": "a.png", "annotations": [{"bbox": [0, 0, 9, 9]}]}, {"image_id": "b.png"}]
HIT = {"image_id": "a.png", "category_id": 0, "bbox": [0, 0, 9, 9], "score": 0.5}


def test_files_and_metrics(tmp_path):
    metrics = evaluate_results([HIT], IMAGES, "mine", str(tmp_path / "inference"), resamples=10)
    levels = {f"sensitivity_{level}": 1 for level in ("0.5", "1", "2", "4", "8", "16")}
    assert metrics == {"froc": {"avg": 1, **levels}, "ap": {"AP50": pytest.approx(100)}}
    files = {"coco_instances_results.json", "froc.json", "froc.png"}
    assert set(os.listdir(tmp_path / "inference")) == files
    report = json.loads((tmp_path / "inference" / "froc.json").read_text())
    assert (report["dataset"], report["average"], report["average_interval"]) == ("mine", 1, [None, None])
    assert json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text()) == [HIT]


def test_what_cannot_be_written_leaves_the_file_that_was_there(tmp_path):
    evaluate_results([HIT], IMAGES, "mine", str(tmp_path), resamples=10)
    with pytest.raises(TypeError, match="not JSON serializable"):
        evaluate_results([HIT, {**HIT, "note": object()}], IMAGES, "mine", str(tmp_path), resamples=10)
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == [HIT]
    assert set(os.listdir(tmp_path)) == {"coco_instances_results.json", "froc.json", "froc.png"}
