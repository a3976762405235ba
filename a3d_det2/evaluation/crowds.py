"""Crowds: regions of lesions that are not told apart, as COCO has them. They are no lesions to be found, and what is
found in them is no mistake."""

from dataclasses import replace

import numpy as np

from .detection_reader import Detections
from .matching import MatchRule, paired_overlap


def lesions_alone(images: list[dict]) -> list[dict]:
    """Dataset dicts without the annotations that are crowds."""
    return [
        {**image, "annotations": [a for a in image.get("annotations", ()) if not a.get("iscrowd")]} for image in images
    ]


def without_crowds(detections: Detections, images: list[dict], rule: MatchRule) -> Detections:
    """Leave out detections that hit no lesion and lie in a crowd: by the share of their own area, as COCO does, at the
    threshold of the rule.

    Args:
        detections: on the images.
        images: dataset dicts, with their crowds.
        rule: what a hit is.
    """
    keep = np.ones(len(detections.scores), dtype=bool)
    for i, image in enumerate(images):
        crowds = _boxes(image, is_crowd=True)
        if not len(crowds):
            continue
        (of_image,) = np.nonzero(detections.image == i)
        boxes = detections.boxes[of_image][:, None]
        hits = rule.hits(boxes, _boxes(image, is_crowd=False)).any(axis=1)
        with np.errstate(invalid="ignore"):
            inside = (paired_overlap(boxes, crowds, "iobb", rule.plus_one) >= rule.threshold).any(axis=1)
        keep[of_image] = hits | ~inside
    return replace(
        detections,
        image=detections.image[keep],
        boxes=detections.boxes[keep],
        scores=detections.scores[keep],
        masks=[mask for mask, kept in zip(detections.masks, keep, strict=True) if kept],
    )


def _boxes(image: dict, is_crowd: bool) -> np.ndarray:
    found = [a["bbox"] for a in image.get("annotations", ()) if bool(a.get("iscrowd")) == is_crowd]
    return np.array(found, dtype=np.float64).reshape(-1, 4)
