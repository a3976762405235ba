"""COCO's average precision of the same detections, by pycocotools."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .detection_reader import Detections
from .matching import is_box

MAX_DETECTIONS = 100  # of an image, as in COCO's AP


def average_precision(
    lesion_boxes: np.ndarray, lesion_image: np.ndarray, num_images: int, detections: Detections
) -> float:
    """AP at IoU 0.5, in COCO's convention: width = x2 - x1, a repeated hit is a false positive.

    Args:
        lesion_boxes: (m, 4) XYXY.
        lesion_image: (m,) index of each lesion's image.
        num_images: all images.
        detections: the best 100 of an image count.

    Returns:
        AP50 in percent, as Detectron2 has it; NaN without lesions.
    """
    if len(lesion_boxes) == 0:
        return float("nan")
    boxes = np.where(is_box(detections.boxes)[:, None], detections.boxes, 0)  # no area: hits nothing
    kept = _best_of_each_image(detections)
    rows = np.column_stack([detections.image, _xywh(boxes), detections.scores, np.ones(len(boxes))])[kept]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(num_images)],
            "categories": [{"id": 1}],
            "annotations": [
                {"id": i, "image_id": int(image), "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                for i, (image, box) in enumerate(zip(lesion_image, _xywh(lesion_boxes).tolist(), strict=True), 1)
            ],
        }
        truth.createIndex()
        if len(rows) == 0:
            return 0.0
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, np.inf]], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return 100 * float(evaluation.eval["precision"].mean())


def _best_of_each_image(detections: Detections) -> np.ndarray:
    """Indices of each image's best detections, in the order of the input, which decides between equal scores."""
    order = np.lexsort([-detections.scores, detections.image])  # stable
    image = detections.image[order]
    place = np.arange(len(order)) - np.searchsorted(image, image, side="left")
    return np.sort(order[place < MAX_DETECTIONS])


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
