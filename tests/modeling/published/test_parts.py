import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks

from a3d_det2.modeling.published.boxes import PublishedBox2BoxTransform, clip_to_pixels
from a3d_det2.modeling.published.roi_heads import UnshiftedROIAlign
from tests.modeling.published import slow


@pytest.mark.parametrize(
    "box", [[3.0, 5, 22, 30], [10, 10, 10, 10], [11.2, 7.9, 12.1, 8.3], [0, 0, 95, 63], [90, 50, 99, 70]]
)
def test_regions_of_any_size(box):
    features = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    rois = torch.tensor([[0.0, box[0], box[1], box[2] + 1, box[3] + 1]], dtype=torch.float64)
    pooled = UnshiftedROIAlign((7, 7), 0.25, 2, aligned=True)(features, rois)
    np.testing.assert_allclose(pooled[0], slow.roi_align(features[0].numpy(), np.array(box), 7), atol=1e-9)


def test_a_box_beyond_the_border_keeps_a_line_of_pixels():
    boxes = torch.tensor([[-9.0, -9, -5, -5], [200, 10, 210, 20], [3, 4, 5, 6], [95.7, 0, 96, 64], [-1, -1, 200, 200]])
    clipped = clip_to_pixels(boxes, (64, 96))
    expected = [[0, 0, 1, 1], [95, 10, 96, 20], [3, 4, 5, 6], [95, 0, 96, 64], [0, 0, 96, 64]]
    assert clipped.tolist() == expected


def test_a_box_shrinks_as_far_as_it_grows():
    transform = PublishedBox2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    box = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    deltas = torch.tensor([[0.0, 0, -50, 50, 0, 0, 2, -2]])
    first, second = transform.apply_deltas(deltas, box)[0].split(4)
    assert (first[2:] - first[:2]).tolist() == pytest.approx([1.6, 6250], rel=1e-4)
    assert (second[2:] - second[:2]).tolist() == pytest.approx([100 * np.exp(0.4), 100 * np.exp(-0.4)], rel=1e-5)


def test_soft_targets(build):
    """As OpenCV resizes a crop of whole pixels."""
    head = build("published/a3d_7slice").roi_heads.mask_head
    masks = torch.zeros(4, 64, 96, dtype=torch.bool)
    masks[:, 20:41, 30:62] = True
    boxes = torch.tensor([[25.0, 15, 70, 50], [30.9, 20.9, 62.9, 41.9], [0, 0, 96, 64], [40, 30, 41, 31]])
    targets = head.targets(BitMasks(masks), boxes, 28)
    for mask, (x1, y1, x2, y2), found in zip(masks, boxes, targets, strict=True):
        crop = mask[int(y1) : int(y2 - 1) + 1, int(x1) : int(x2 - 1) + 1].numpy().astype(np.float32)
        np.testing.assert_allclose(found, cv2.resize(crop, (28, 28), interpolation=cv2.INTER_LINEAR), atol=1e-5)
    fractional = ((targets > 0) & (targets < 1)).float().mean((1, 2))
    assert fractional[0] > 0.02
    torch.testing.assert_close(targets[3], torch.ones(28, 28))
    with pytest.raises(ValueError, match="'bitmask' makes them, got PolygonMasks"):
        head.targets(PolygonMasks([]), boxes[:0], 28)


def test_initialisation(build):
    torch.manual_seed(0)
    ours, theirs = build("a3d_7slice"), build("published/a3d_7slice")
    for model, squeeze, predictor in ((ours, 0.41, 0.001), (theirs, 1.0, 1.0)):
        weight = model.backbone.bottom_up.squeeze["dense2"].weight
        assert float(weight.std() / (2 / weight[0].numel()) ** 0.5) == pytest.approx(squeeze, rel=0.1)
        assert float(model.roi_heads.mask_head.predictor.weight.std()) == pytest.approx(predictor, rel=0.5)
    fc1 = [model.roi_heads.box_head.fc1.weight for model in (ours, theirs)]
    # 1.36 with 25,088 inputs and 2,048 outputs.
    assert float(fc1[1].std() / fc1[0].std()) == pytest.approx(
        (2 / (1 + fc1[0].shape[0] / fc1[0].shape[1])) ** 0.5, rel=0.03
    )
    tsm = build("published/tsm_7slice").backbone.bottom_up.squeeze["dense2"].weight
    assert float(tsm.std() / (2 / tsm[0].numel()) ** 0.5) == pytest.approx(0.41, rel=0.1)
