"""Proposals and detections are those of the published detector, see slow.py."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances

from tests.modeling.published import slow

LEAVES = [f"{op}_{slices}slice" for op in ("a3d", "tsm", "alignshift", "none", "acs") for slices in (3, 7)]
HEIGHT, WIDTH = 64, 96


def names_last_pixel(boxes: torch.Tensor) -> np.ndarray:
    return boxes.numpy().astype(np.float64) - [0, 0, 1, 1]


def slow_proposals(model, features) -> np.ndarray:
    (logits,), (deltas,) = model.proposal_generator.rpn_head([features])
    logits = logits.permute(0, 2, 3, 1).flatten().numpy()
    deltas = deltas.unflatten(1, (18, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4).numpy()
    best = np.argsort(-logits, kind="stable")[:6000]
    boxes = slow.decode(slow.anchors(HEIGHT // 4, WIDTH // 4)[best], deltas[best], (1, 1, 1, 1), (HEIGHT, WIDTH))
    return boxes[slow.nms(boxes, logits[best], 0.7)][:300]


def slow_detections(model, features, proposals, threshold) -> tuple[np.ndarray, np.ndarray]:
    pooled = np.stack([slow.roi_align(features[0].numpy(), box, 7) for box in proposals])
    heads = model.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(torch.from_numpy(pooled).float()))
    scores = logits.softmax(1)[:, 0].numpy()
    boxes = slow.decode(proposals, deltas.numpy(), (0.1, 0.1, 0.2, 0.2), (HEIGHT, WIDTH))
    boxes, scores = boxes[scores > threshold], scores[scores > threshold]
    kept = slow.nms(boxes, scores, 0.5)[:50]
    return boxes[kept], scores[kept]


@pytest.mark.parametrize("leaf", LEAVES)
def test_proposals_and_detections(build, leaf):
    model = build(f"published/{leaf}")
    image = torch.randn(model.backbone.bottom_up.num_slices, HEIGHT, WIDTH) * 50
    x = {"image": image, "thickness": 5.0}
    with torch.no_grad(), model.slice_scope([x]):
        features = model.backbone(image[None])["p2"]
        expected = slow_proposals(model, features)
        found, _ = model.proposal_generator(ImageList(image[None], [(HEIGHT, WIDTH)]), {"p2": features}, None)
        (output,) = model([x])
        threshold = {"alignshift": 1e-3}.get(leaf.split("_")[0], 5e-5)
        boxes, scores = slow_detections(model, features, expected, threshold)
    assert len(expected) > 150
    np.testing.assert_allclose(names_last_pixel(found[0].proposal_boxes.tensor), expected, atol=0.01)
    assert len(boxes) > 10
    np.testing.assert_allclose(output["instances"].scores, scores, atol=1e-4)
    np.testing.assert_allclose(output["instances"].pred_boxes.tensor, boxes, atol=0.01)


def test_without_the_published_rules_they_are_others(build):
    model = build("a3d_3slice")
    image = torch.randn(3, HEIGHT, WIDTH) * 50
    with torch.no_grad():
        features = model.backbone(image[None])["p2"]
        expected = slow_proposals(model, features)
        (found,), _ = model.proposal_generator(ImageList(image[None], [(HEIGHT, WIDTH)]), {"p2": features}, None)
    boxes = found.proposal_boxes.tensor.numpy().astype(np.float64)
    nearest = np.array([np.abs(boxes - box).max(1).min() for box in expected])
    assert (nearest < 0.5).mean() < 0.05


def test_outputs_of_another_size(build):
    """A box is moved by a pixel of the network's image, however large that is in the output."""
    model = build("published/a3d_3slice")
    image = torch.randn(3, HEIGHT, WIDTH) * 50
    with torch.no_grad():
        (same,), (twice,) = model([{"image": image}]), model([{"image": image, "height": 128, "width": 192}])
        (given,) = model.inference([{"image": image}], [Instances((HEIGHT, WIDTH), **_known(same["instances"]))])
    torch.testing.assert_close(twice["instances"].pred_boxes.tensor, 2 * same["instances"].pred_boxes.tensor)
    torch.testing.assert_close(given["instances"].pred_boxes.tensor, same["instances"].pred_boxes.tensor)


def _known(instances: Instances) -> dict:
    return {"pred_boxes": instances.pred_boxes, "pred_classes": instances.pred_classes}


def test_anchors_beyond_the_border_do_not_take_part(build):
    generator = build("published/a3d_3slice").proposal_generator
    generator.batch_size_per_image = 10**6  # nothing is left out at random
    lesions = np.array([[0.0, 3, 14, 12], [60, 40, 95, 63], [30, 20, 36, 27], [2, 50, 9, 63]])
    boxes = slow.anchors(HEIGHT // 4, WIDTH // 4)
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] < WIDTH) & (boxes[:, 3] < HEIGHT)
    iou = np.array([slow.overlaps(lesion, boxes) for lesion in lesions]) * inside
    expected = np.where(iou.max(0) >= 0.7, 1, np.where(iou.max(0) < 0.3, 0, -1))
    expected[(iou == iou.max(1, keepdims=True)).any(0)] = 1
    expected[~inside] = -1
    assert 0.1 < inside.mean() < 0.6

    anchors = [Boxes(torch.from_numpy(boxes + [0, 0, 1, 1]).float())]
    instances = Instances((HEIGHT, WIDTH), gt_boxes=Boxes(torch.from_numpy(lesions + [0, 0, 1, 1]).float()))
    (labels,), (matched,) = generator.label_and_sample_anchors(anchors, [instances])
    assert np.array_equal(labels, expected)
    best = lesions[iou.argmax(0)] + [0, 0, 1, 1]
    assert np.array_equal(matched[labels == 1], best[expected == 1])
    (none,), _ = generator.label_and_sample_anchors(anchors, [instances[:0]])
    assert np.array_equal(none, np.where(inside, 0, -1))
    generator.allowed_border = -1
    (of_all,), _ = generator.label_and_sample_anchors(anchors, [instances])
    assert (of_all[~torch.from_numpy(inside)] == 0).any()


def test_lesions_to_train_on_end_one_pixel_further_inside(build, monkeypatch):
    model = build("published/a3d_3slice", "MODEL.MASK_ON", "False").train()
    given = torch.tensor([[8.0, 8.0, 30.0, 30.0]])
    instances = Instances((HEIGHT, WIDTH), gt_boxes=Boxes(given.clone()), gt_classes=torch.zeros(1, dtype=torch.int64))
    seen = []
    generator = model.proposal_generator
    monkeypatch.setattr(
        generator,
        "label_and_sample_anchors",
        lambda a, gt: seen.append(gt) or type(generator).label_and_sample_anchors(generator, a, gt),
    )
    from detectron2.utils.events import EventStorage

    with EventStorage(0):
        model([{"image": torch.randn(3, HEIGHT, WIDTH) * 50, "instances": instances}])
    assert seen[0][0].gt_boxes.tensor.tolist() == [[8.0, 8.0, 31.0, 31.0]]
    assert torch.equal(instances.gt_boxes.tensor, given)
