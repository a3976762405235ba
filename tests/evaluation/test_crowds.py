import numpy as np

from a3d_det2.evaluation.crowds import lesions_alone, without_crowds
from a3d_det2.evaluation.detection_reader import detections_from_results
from a3d_det2.evaluation.matching import MatchRule

LESION, CROWD = [10.0, 10, 19, 19], [0.0, 0, 49, 49]
IMAGES = [
    {"image_id": "a", "annotations": [{"bbox": LESION}, {"bbox": CROWD, "iscrowd": 1}]},
    {"image_id": "b", "annotations": [{"bbox": LESION, "iscrowd": 0}]},
    {"image_id": "c"},
]


def found(image_id, x1, y1, x2, y2):
    return {"image_id": image_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.5}


def test_what_lies_in_a_crowd_is_left_out_unless_it_hits_a_lesion():
    results = [
        found("a", *LESION),
        found("a", 30, 30, 39, 39),  # in the crowd
        found("a", 40, 40, 59, 59),  # a quarter of it is
        found("a", 45, 0, 54, 9),  # a half of it is
        found("a", 60, 60, 69, 69),
        found("b", 30, 30, 39, 39),
        found("c", 30, 30, 39, 39),
    ]
    detections = detections_from_results(results, ["a", "b", "c"])
    kept = without_crowds(detections, IMAGES, MatchRule())
    assert np.array_equal(kept.boxes, detections.boxes[[0, 2, 4, 5, 6]])
    assert (kept.image.tolist(), len(kept.masks)) == ([0, 0, 0, 1, 2], 5)
    assert [len(image["annotations"]) for image in lesions_alone(IMAGES)] == [1, 1, 0]
    nothing = without_crowds(detections_from_results([], ["a", "b", "c"]), IMAGES, MatchRule())
    assert len(nothing.scores) == 0
