import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from a3d_det2.evaluation.average_precision import average_precision
from a3d_det2.evaluation.detection_reader import Detections


def detections(image, boxes, scores):
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    return Detections(np.array(image, dtype=int), boxes, np.array(scores, dtype=float), [None] * len(boxes), [])


def by_coco(lesion_boxes, lesion_image, num_images, found):
    """COCO's own evaluation, with its ten thresholds, all areas and its summary."""

    def xywh(box):
        x1, y1, x2, y2 = map(float, box)
        return [x1, y1, x2 - x1, y2 - y1]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(num_images)],
            "categories": [{"id": 1}],
            "annotations": [
                {"id": k + 1, "image_id": int(i), "category_id": 1, "bbox": xywh(b), "iscrowd": 0,
                 "area": xywh(b)[2] * xywh(b)[3]}
                for k, (i, b) in enumerate(zip(lesion_image, lesion_boxes, strict=True))
            ],
        }  # fmt: skip
        truth.createIndex()
        results = [
            {"image_id": int(i), "category_id": 1, "bbox": xywh(b), "score": float(s)}
            for i, b, s in zip(found.image, found.boxes, found.scores, strict=True)
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[1]


@pytest.mark.parametrize("seed", range(5))
def test_is_that_of_coco(seed):
    rng = np.random.default_rng(seed)
    images, count = 10, 1500  # more than 100 of an image
    lesion_image = np.sort(rng.integers(0, images, 40))
    corner = rng.integers(0, 300, (40, 2))
    lesions = np.concatenate([corner, corner + rng.integers(8, 40, (40, 2))], axis=1).astype(float)
    image = rng.integers(0, images, count)
    corner = rng.integers(0, 300, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 60, (count, 2))], axis=1).astype(float)
    image[:80] = np.tile(lesion_image, 2)
    boxes[:80] = np.tile(lesions, (2, 1)) + rng.integers(-2, 3, (80, 4))
    found = detections(image, boxes, rng.integers(0, 50, count) / 50)
    expected = by_coco(lesions, lesion_image, images, found)
    assert 0 < expected < 100
    assert average_precision(lesions, lesion_image, images, found) == pytest.approx(expected, abs=1e-10)


def test_degenerate():
    lesions, images = np.array([[0, 0, 10, 10.0]]), np.array([0])
    perfect = detections([0], [[0, 0, 10, 10]], [0.5])
    assert average_precision(lesions, images, 2, perfect) == pytest.approx(100)
    assert average_precision(lesions, images, 2, detections([], [], [])) == 0
    assert np.isnan(average_precision(np.zeros((0, 4)), np.zeros(0, dtype=int), 2, perfect))
    bad = detections([0, 0, 0], [[np.nan] * 4, [10, 10, 0, 0], [0, 0, 10, 10]], [0.9, 0.8, 0.7])
    assert average_precision(lesions, images, 1, bad) == pytest.approx(100 / 3)
