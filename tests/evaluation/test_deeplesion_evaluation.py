import json
import math

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from a3d_det2 import DeepLesionEvaluator

A, B, FAR = [0, 0, 9, 9], [20, 20, 29, 29], [80, 80, 89, 89]


@pytest.fixture
def dataset(request):
    name = f"evaluation_{request.node.name}"

    def register(images):
        records = [
            {
                "image_id": f"{i}.png",
                "slice_interval": interval,
                "height": 100,
                "width": 100,
                "annotations": [{"bbox": b} for b in boxes],
            }
            for i, (interval, boxes) in enumerate(images)
        ]
        DatasetCatalog.register(name, lambda: records)
        return name

    yield register
    DatasetCatalog.pop(name, None)


def output(*rows):
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor([box for box, _ in rows], dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([score for _, score in rows])
    instances.pred_classes = torch.zeros(len(rows), dtype=torch.int64)
    return {"instances": instances}


def test_scores_writes_and_reports_by_thickness(dataset, tmp_path):
    evaluator = DeepLesionEvaluator(dataset([(1.0, [A]), (5.0, [A, B]), (math.nan, [])]), str(tmp_path))
    evaluator.process([{"image_id": "1.png"}], [output((A, 0.9), (FAR, 0.8))])
    evaluator.process([{"image_id": "0.png"}, {"image_id": "2.png"}], [output((FAR, 0.95)), output()])
    froc = evaluator.evaluate()["froc"]
    # By score: FP of image 0, hit of image 1, FP of image 1. Three images, three lesions.
    assert froc["sensitivity_0.5"] == pytest.approx(1 / 3)
    assert froc["avg"] == pytest.approx(1 / 3)
    assert froc["avg_thin"] == 0
    assert froc["avg_thick"] == pytest.approx(0.5)

    report = json.loads((tmp_path / "froc.json").read_text())
    assert (report["num_images"], report["num_lesions"], report["fps_per_image"]) == (3, 3, [0.5, 1, 2, 4, 8, 16])
    assert report["sensitivity"] == pytest.approx([1 / 3] * 6)
    assert report["average"] == pytest.approx(1 / 3)
    thickness = report["strata"]["slice thickness"]
    assert {name: (s["num_images"], s["num_lesions"]) for name, s in thickness.items()} == {
        "<= 2 mm": (1, 1),
        "> 2 mm": (1, 2),
    }
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {"image_id": "1.png", "category_id": 0, "bbox": [0.0, 0.0, 9.0, 9.0]}.items() <= results[0].items()
    assert len(results) == 3
    assert Image.open(tmp_path / "froc.png").size[0] > 500


def test_nothing_detected_and_no_lesions(dataset, tmp_path):
    evaluator = DeepLesionEvaluator(dataset([(1.0, []), (1.0, [])]), str(tmp_path))
    assert evaluator.evaluate() == {}
    assert json.loads((tmp_path / "froc.json").read_text())["average"] is None
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_images_without_detections_count(dataset):
    evaluator = DeepLesionEvaluator(dataset([(1.0, [A]), (1.0, [B])]))
    evaluator.process([{"image_id": "0.png"}], [output((A, 0.5))])
    assert evaluator.evaluate()["froc"]["sensitivity_16"] == 0.5
    evaluator.reset()
    assert evaluator.evaluate()["froc"]["sensitivity_16"] == 0


def test_dicts_without_annotations_have_no_lesions():
    DatasetCatalog.register("evaluation_bare", lambda: [{"image_id": "0.png", "slice_interval": 1.0}])
    evaluator = DeepLesionEvaluator("evaluation_bare")
    evaluator.process([{"image_id": "0.png"}], [output((A, 0.5))])
    assert evaluator.evaluate() == {}
    DatasetCatalog.pop("evaluation_bare")


def test_unknown_image(dataset):
    evaluator = DeepLesionEvaluator(dataset([(1.0, [A])]))
    evaluator.process([{"image_id": "9.png"}], [output((A, 0.5))])
    with pytest.raises(ValueError, match="entry 0: expected an image .* such as '0.png'; got '9.png'"):
        evaluator.evaluate()


def test_metric_names_that_every_writer_shows(dataset):
    froc = DeepLesionEvaluator(dataset([(1.0, [A])])).evaluate()["froc"]
    assert "avg" in froc
    assert all("-" not in name for name in froc)
