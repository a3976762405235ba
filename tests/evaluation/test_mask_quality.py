import numpy as np
import pytest
from pycocotools import mask as coco_mask

from a3d_det2.evaluation.detection_reader import Detections
from a3d_det2.evaluation.mask_quality import mask_diameter, mask_quality
from a3d_det2.evaluation.matching import match


def rle(x1, y1, x2, y2, size=(50, 60)):
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    return coco_mask.encode(mask)


def image(**lesion):
    lesion = {"bbox": [5, 5, 24, 14], **lesion}
    return {"image_id": "a.png", "height": 50, "width": 60, "spacing": (0.5, 0.5), "annotations": [lesion]}


def quality(images, *found):
    boxes = np.array([box for box, _, _ in found], dtype=float).reshape(-1, 4)
    scores, masks = np.array([score for _, score, _ in found]), [mask for _, _, mask in found]
    detections = Detections(np.zeros(len(found), dtype=int), boxes, scores, masks, [])
    lesion_boxes = np.array([lesion["bbox"] for i in images for lesion in i["annotations"]])
    lesion_image = np.repeat(np.arange(len(images)), [len(i["annotations"]) for i in images])
    matches = match(boxes, scores, detections.image, lesion_boxes, lesion_image, len(images))
    return mask_quality(images, matches, detections)


BOX = [5, 5, 24, 14]


def test_by_hand():
    # 20 x 10 pixels against 20 x 5 of them: Dice = 2 * 100 / (200 + 100).
    lesion = image(segmentation=rle(5, 5, 24, 14), diameters=(20.0, 8.0))
    result = quality([lesion], (BOX, 0.5, rle(5, 5, 24, 9)), (BOX, 0.9, rle(5, 5, 24, 9)), (BOX, 0.1, rle(0, 0, 1, 1)))
    assert result.image.tolist() == [0]
    assert result.dice.tolist() == pytest.approx([2 / 3])
    # From the first to the last pixel's centre: 19 and 4 pixels of 0.5 mm.
    assert result.diameter_error.tolist() == pytest.approx([0.5 * np.hypot(19, 4) - 10])


def test_without_a_mask_or_a_diameter():
    assert np.isnan(quality([image(diameters=(20.0, 8.0))], (BOX, 0.9, rle(5, 5, 24, 9))).dice).all()
    assert np.isnan(quality([image(segmentation=rle(5, 5, 24, 14))], (BOX, 0.9, rle(5, 5, 24, 9))).diameter_error).all()
    missed = quality([image()], ([40, 40, 45, 45], 0.9, rle(40, 40, 45, 45)))
    assert len(missed.image) == len(missed.dice) == len(missed.diameter_error) == 0
    assert len(quality([image()], (BOX, 0.9, None)).image) == 0


def test_an_empty_mask_is_a_bad_one():
    empty = coco_mask.encode(np.zeros((50, 60), dtype=np.uint8, order="F"))
    result = quality([image(segmentation=rle(5, 5, 24, 14), diameters=(20.0, 8.0))], (BOX, 0.9, empty))
    assert result.dice.tolist() == [0]
    assert result.diameter_error.tolist() == [-10]


@pytest.mark.parametrize("kind", ["polygon", "uncompressed"])
def test_other_encodings_of_the_ground_truth(kind):
    # Pixels 5 to 24 and 5 to 14 both times.
    polygon = [[5, 5, 25, 5, 25, 15, 5, 15]]
    counts = [5 * 50 + 5] + [10, 40] * 19 + [10, 50 * 60 - 24 * 50 - 15]
    segmentation = polygon if kind == "polygon" else {"size": [50, 60], "counts": counts}
    result = quality([image(segmentation=segmentation)], (BOX, 0.9, rle(5, 5, 24, 14)))
    assert result.dice.tolist() == pytest.approx([1])


def test_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"a.png, predicted mask: .* of the image's size 50 x 60, got .*60, 50"):
        quality([image()], (BOX, 0.9, rle(5, 5, 24, 14, size=(60, 50))))


def test_diameter_of_an_ellipse():
    y, x = np.mgrid[:400, :400]
    mask = ((x - 200) / 150) ** 2 + ((y - 180) / 60) ** 2 <= 1
    assert mask_diameter(mask, (0.8, 0.8)) == pytest.approx(240, abs=1)
    assert mask_diameter(mask, (0.2, 0.8)) == pytest.approx(96, abs=1)  # the other axis is the longer one now
    assert mask_diameter(np.eye(5, dtype=bool)[:1] * 0, (1, 1)) == 0
    assert mask_diameter(np.eye(1, dtype=bool), (1, 1)) == 0


def uncompressed(*counts):
    return coco_mask.frPyObjects({"size": [50, 60], "counts": list(counts)}, 50, 60)


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [50, 60], "counts": "zzzzzzzz"},
        {"size": [50, 60], "counts": ""},
        {"size": [50, 60], "counts": "ä"},
        {"size": [50, 60], "counts": None},
        {"size": [50, 60]},
        uncompressed(1, 2, 3),
    ],
)
def test_damaged_runs_are_an_error(mask):
    good = rle(5, 5, 24, 14)
    with pytest.raises(ValueError, match=r"a.png, predicted mask: expected runs"):
        quality([image(segmentation=good)], (BOX, 0.9, mask))
    with pytest.raises(ValueError, match=r"a.png, annotated mask: expected runs"):
        quality([image(segmentation=mask)], (BOX, 0.9, good))


@pytest.mark.parametrize(
    "segmentation", ["text", [[1, 2, 3]], [1, 2, 3, 4, 5, 6], rle(5, 5, 24, 14, size=(60, 50)), [[]]]
)
def test_annotated_masks_that_are_none(segmentation):
    with pytest.raises(ValueError, match=r"a.png, annotated mask: expected a"):
        quality([image(segmentation=segmentation)], (BOX, 0.9, rle(5, 5, 24, 14)))
