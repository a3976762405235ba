import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from a3d_det2 import DiceMaskHead
from a3d_det2.modeling.mask_head import dice_loss


def test_dice_by_hand():
    p = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]])
    t = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    expected = ((1 - 2.01 / 3.01) + (1 - 0.01 / 2.01)) / 2
    assert dice_loss(p, t).item() == pytest.approx(expected)
    assert dice_loss(t, t).item() == pytest.approx(0)
    assert dice_loss(p, t, smooth=1).item() == pytest.approx(((1 - 3 / 4) + (1 - 1 / 3)) / 2)


def test_dice_gradients():
    torch.manual_seed(0)
    p = torch.rand(3, 4, 5, dtype=torch.double, requires_grad=True)
    t = (torch.rand(3, 4, 5) > 0.5).double()
    assert torch.autograd.gradcheck(dice_loss, (p, t))


def proposals(masks, classes=(0,)):
    instances = Instances((20, 20))
    instances.proposal_boxes = Boxes(torch.tensor([[4.0, 4.0, 12.0, 12.0]] * len(classes)))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = masks
    return instances


def head(num_classes=1):
    torch.manual_seed(0)
    return DiceMaskHead(ShapeSpec(channels=2, height=14, width=14), num_classes=num_classes, conv_dims=[4, 4])


# The left half of the box.
POLYGON = PolygonMasks([[[4.0, 4, 8, 4, 8, 12, 4, 12]]])
BITMASK = BitMasks(torch.zeros(1, 20, 20, dtype=torch.bool))
BITMASK.tensor[0, 4:12, 4:8] = True


@pytest.mark.parametrize("masks", [POLYGON, BITMASK], ids=["polygon", "bitmask"])
def test_targets_are_the_masks_within_the_boxes(masks):
    module = head()
    module.layers = lambda x: torch.where(torch.arange(28) < 14, 50.0, -50.0).expand(len(x), 1, 28, 28)
    loss = module(torch.zeros(1, 2, 14, 14), [proposals(masks)])["loss_mask"]
    assert loss.item() == pytest.approx(0, abs=0.03)
    module.layers = lambda x: torch.where(torch.arange(28) < 14, -50.0, 50.0).expand(len(x), 1, 28, 28)
    loss = module(torch.zeros(1, 2, 14, 14), [proposals(masks)])["loss_mask"]
    assert loss.item() == pytest.approx(1, abs=0.05)


def test_each_region_is_judged_by_the_mask_of_its_class():
    module = head(num_classes=3)
    good = torch.where(torch.arange(28) < 14, 50.0, -50.0).expand(28, 28)
    module.layers = lambda x: torch.stack([-good, good, -good])[None]
    assert module(torch.zeros(1, 2, 14, 14), [proposals(POLYGON, [1])])["loss_mask"].item() == pytest.approx(
        0, abs=0.03
    )
    assert module(torch.zeros(1, 2, 14, 14), [proposals(POLYGON, [2])])["loss_mask"].item() == pytest.approx(
        1, abs=0.05
    )


def test_no_foreground_trains():
    module = head()
    empty = proposals(PolygonMasks([]), [])
    loss = module(torch.zeros(0, 2, 14, 14), [empty])["loss_mask"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None for p in module.parameters())


def test_inference_is_mask_rcnns():
    module = head().eval()
    instances = Instances((20, 20), pred_classes=torch.zeros(2, dtype=torch.int64))
    (out,) = module(torch.randn(2, 2, 14, 14), [instances])
    assert out.pred_masks.shape == (2, 1, 28, 28)
    assert ((out.pred_masks > 0) & (out.pred_masks < 1)).all()
