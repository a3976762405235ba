import json
import math

import numpy as np
import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage, JSONWriter, TensorboardXWriter
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from a3d_det2 import DeepLesionEvaluator, register_ct_coco
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
    names = {"froc/avg", "froc/avg_thin", "froc/avg_thick", "ap/AP50", *(f"froc/sensitivity_{v}" for v in levels)}
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


@pytest.fixture
def ct_coco(tmp_path):
    """Two images with nodes and cysts, a class that none has, and a crowd; boxes have a width and a height."""
    images = [
        {"id": i, "file_name": f"{i}.png", "width": 100, "height": 100, "slice_interval": 1.0, "patient": i}
        for i in (1, 2)
    ]
    boxes = [(1, 5, A, 0), (1, 9, B, 0), (2, 5, A, 0), (2, 5, FAR, 1)]
    annotations = [
        {
            "id": n,
            "image_id": image,
            "category_id": category,
            "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
            "area": 81,
            "iscrowd": crowd,
        }
        for n, (image, category, b, crowd) in enumerate(boxes, 1)
    ]
    categories = [{"id": 5, "name": "node"}, {"id": 7, "name": "never"}, {"id": 9, "name": "cyst"}]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    yield str(path)
    for name in [name for name in DatasetCatalog if name.startswith("ct_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def of_classes(*rows):
    found = output(*[row[:2] for row in rows])
    found["instances"].pred_classes = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return found


def test_each_class_by_itself_beside_cocos_evaluator(ct_coco, tmp_path):
    register_ct_coco("ct_test", ct_coco, str(tmp_path))
    evaluators = DatasetEvaluators([DeepLesionEvaluator("ct_test", str(tmp_path)), COCOEvaluator("ct_test", ("bbox",))])
    evaluators.reset()
    # The cyst is taken for a node, which is a false positive of the nodes and no hit of the cysts.
    evaluators.process([{"image_id": 1}], [of_classes((A, 0.9, 0), (B, 0.8, 0))])
    evaluators.process([{"image_id": 2}], [of_classes((A, 0.7, 0), (A, 0.6, 2))])
    results = evaluators.evaluate()
    assert results.keys() == {"froc", "ap", "bbox"}
    froc = results["froc"]
    assert froc["avg_node"] == 1  # at 0.5 FPs per image both are found
    assert froc["avg_cyst"] == 0
    assert froc["avg"] == pytest.approx(0.5)
    assert "avg_never" not in froc
    report = json.loads((tmp_path / "froc.json").read_text())
    assert report["average"] == pytest.approx(0.5)
    assert {name: s["num_lesions"] for name, s in report["classes"].items()} == {"node": 2, "never": 0, "cyst": 1}
    assert report["classes"]["never"]["average"] is None
    assert report["AP50"] == pytest.approx(results["ap"]["AP50"])
    assert results["bbox"]["AP50"] == pytest.approx(results["ap"]["AP50"], abs=3)  # which leaves crowds out


def test_boxes_of_detectron2s_own_loader(ct_coco, tmp_path):
    """They have a width and a height."""
    DatasetCatalog.register("ct_stock", lambda: load_coco_json(ct_coco, str(tmp_path), "ct_stock"))
    evaluator = DeepLesionEvaluator("ct_stock", resamples=0)
    evaluator.process(
        [{"image_id": 1}, {"image_id": 2}], [of_classes((A, 0.9, 0), (B, 0.8, 2)), of_classes((A, 0.7, 0))]
    )
    assert evaluator.evaluate()["froc"] == {"avg": 1, "avg_node": 1, "avg_cyst": 1}


def test_a_dataset_of_one_class_takes_no_others(dataset):
    evaluator = DeepLesionEvaluator(dataset([(1.0, [A])]))
    evaluator.process([{"image_id": "0.png"}], [of_classes((A, 0.9, 2))])
    with pytest.raises(ValueError, match="entry 0: expected a category_id from 0 to 0, got 2"):
        evaluator.evaluate()


def test_a_class_that_the_dataset_does_not_have(ct_coco, tmp_path):
    register_ct_coco("ct_other", ct_coco, str(tmp_path))
    evaluator = DeepLesionEvaluator("ct_other")
    evaluator.process([{"image_id": 1}], [of_classes((A, 0.9, 3))])
    with pytest.raises(ValueError, match="results on ct_other, entry 0: expected a category_id from 0 to 2, got 3"):
        evaluator.evaluate()


def test_options_of_a_registration(ct_coco, tmp_path):
    with pytest.raises(TypeError, match="hu_ofset"):
        register_ct_coco("ct_wrong", ct_coco, str(tmp_path), hu_ofset=1024)
    with pytest.raises(TypeError, match="Expected a read_stack that data loaders can pickle"):
        register_ct_coco("ct_lambda", ct_coco, str(tmp_path), read_stack=lambda record: None)
    register_ct_coco("ct_meta", ct_coco, str(tmp_path), {"thing_colors": [[1, 2, 3]]}, hu_offset=1024)
    first, _ = DatasetCatalog.get("ct_meta")
    assert (first["hu_offset"], first["file_name"]) == (1024, str(tmp_path / "1.png"))
    metadata = MetadataCatalog.get("ct_meta")
    assert metadata.thing_classes == ["node", "never", "cyst"]
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 7: 1, 9: 2}
    assert metadata.thing_colors == [[1, 2, 3]]
