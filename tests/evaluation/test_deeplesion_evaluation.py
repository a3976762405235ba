import json
import math

import numpy as np
import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage, JSONWriter, TensorboardXWriter
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from a3d_det2 import DeepLesionEvaluator
from a3d_det2.data.mask_file import encode_mask
from a3d_det2.evaluation import MatchRule

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
        "5 mm": (1, 2),
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


def test_metric_names_that_every_writer_shows(dataset, tmp_path, caplog):
    """Through what a trainer's evaluation goes: the log's table, metrics.json and TensorBoard."""
    evaluator = DeepLesionEvaluator(dataset([(1.0, [A]), (5.0, [B])]))
    evaluator.process([{"image_id": "0.png"}], [output((A, 0.5))])
    results = evaluator.evaluate()
    with caplog.at_level("INFO", logger="detectron2"):
        print_csv_format(results)
    with EventStorage() as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        for writer in (JSONWriter(str(tmp_path / "metrics.json")), TensorboardXWriter(str(tmp_path))):
            writer.write()
            writer.close()
    written = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    board = EventAccumulator(str(tmp_path)).Reload()
    levels = ("0.5", "1", "2", "4", "8", "16")
    names = {"froc/avg", "froc/avg_thin", "froc/avg_thick", "bbox/AP50", *(f"froc/sensitivity_{v}" for v in levels)}
    assert names <= written.keys()
    assert names <= set(board.Tags()["scalars"])
    assert written["froc/avg"] == pytest.approx(0.5)
    assert board.Scalars("froc/avg")[0].value == pytest.approx(0.5)
    assert all(name.split("/")[1] in caplog.text for name in names)


def test_masks(dataset):
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[:10, :10] = 1
    name = dataset([(1.0, [A])])
    record = DatasetCatalog.get(name)[0]
    record["spacing"] = (0.5, 0.5)
    record["annotations"][0] |= {"segmentation": encode_mask(mask), "diameters": (10.0, 10.0)}
    evaluator = DeepLesionEvaluator(name)
    found = output((A, 0.5))
    found["instances"].pred_masks = torch.zeros(1, 100, 100, dtype=torch.bool)
    found["instances"].pred_masks[:, :10, :5] = True
    evaluator.process([{"image_id": "0.png"}], [found])
    masks = evaluator.evaluate()["masks"]
    # 50 of 100 pixels; 9 and 4 pixels of 0.5 mm between centres, where 5 mm are annotated.
    assert masks == pytest.approx({"dice": 2 / 3, "diameter_error_mm": 5 - 0.5 * math.hypot(9, 4)})


def test_another_rule(dataset):
    name = dataset([(1.0, [A])])
    for rule, expected in ((MatchRule(), 0), (MatchRule(overlap="iobb"), 1)):
        evaluator = DeepLesionEvaluator(name, rule=rule, fps_per_image=(3,), resamples=10)
        evaluator.process([{"image_id": "0.png"}], [output(([2, 2, 5, 5], 0.5))])
        froc = evaluator.evaluate()["froc"]
        assert froc == {"avg": expected, "sensitivity_3": expected, "avg_thin": expected}
