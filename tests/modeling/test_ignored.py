"""Lesions that a detector shall learn neither to find nor not to find, in both engines."""

import pytest
import torch
from torch import nn

from a3d_det2.modeling.ignored import near_ignored

LESION, IGNORED = [10.0, 10.0, 30.0, 30.0], [40.0, 40.0, 60.0, 60.0]
ANCHORS = torch.tensor(
    [
        [10.0, 10, 30, 30],  # of the lesion
        [40, 40, 60, 60],  # of the ignored one
        [42, 40, 62, 60],  # IoU 0.82 with it
        [46, 44, 66, 64],  # 0.39
        [52, 50, 72, 70],  # 0.11
        [80, 80, 95, 95],  # background
    ]
)


def test_by_hand():
    ious = torch.tensor([[0.9, 0.5, 0.3, 0.29, 0.0], [0.0, 0.0, 0.0, 0.1, 0.2]])
    assert near_ignored(ious[:1], 0.3).tolist() == [True, True, True, False, False]
    # The second one has no anchor from 0.3 on: its best one counts.
    assert near_ignored(ious, 0.3).tolist() == [True, True, True, False, True]
    assert near_ignored(torch.zeros(1, 3), 0.3).tolist() == [False] * 3


def detectron2_rpn(**options):
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.proposal_generator.rpn import RPN

    from a3d_det2.modeling.lesion_rpn import LesionRPN

    kind = RPN if options.pop("plain", False) else LesionRPN
    anchors = DefaultAnchorGenerator(sizes=[[32]], aspect_ratios=[[1.0]], strides=[4])
    return kind(
        in_features=["p2"],
        head=nn.Identity(),
        anchor_generator=anchors,
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=6,
        positive_fraction=0.5,
        pre_nms_topk=(10, 10),
        post_nms_topk=(10, 10),
    )


def instances(boxes, classes):
    from detectron2.structures import Boxes, Instances

    made = Instances((100, 100))
    made.gt_boxes, made.gt_classes = Boxes(torch.tensor(boxes).reshape(-1, 4)), torch.tensor(classes, dtype=torch.long)
    return made


def test_labels_of_detectron2():
    pytest.importorskip("detectron2")
    from detectron2.structures import Boxes

    targets = [instances([LESION, IGNORED], [0, -1]), instances([LESION], [0]), instances([IGNORED], [-1])]
    labels, boxes = detectron2_rpn().label_and_sample_anchors([Boxes(ANCHORS)], targets)
    assert labels[0].tolist() == [1, -1, -1, -1, 0, 0]
    assert labels[1].tolist() == [1, 0, 0, 0, 0, 0]
    assert labels[2].tolist() == [0, -1, -1, -1, 0, 0]
    assert boxes[0][0].tolist() == LESION


def test_without_any_it_is_the_rpn_of_detectron2():
    pytest.importorskip("detectron2")
    from detectron2.structures import Boxes

    targets = [instances([LESION, IGNORED], [0, 0]), instances([], [])]
    found = []
    for plain in (False, True):
        torch.manual_seed(0)
        found.append(detectron2_rpn(plain=plain).label_and_sample_anchors([Boxes(ANCHORS)], targets))
    for ours, theirs in zip(found[0], found[1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_box_heads_of_detectron2_draw_none(repo):
    pytest.importorskip("detectron2")
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    from a3d_det2.engine import launching
    from tests.engine.test_predictor import make_config

    heads = build_model(make_config(launching)).roi_heads
    proposals = Instances((100, 100))
    proposals.proposal_boxes, proposals.objectness_logits = Boxes(ANCHORS), torch.zeros(len(ANCHORS))
    with EventStorage(0):
        (sampled,) = heads.label_and_sample_proposals([proposals], [instances([LESION, IGNORED], [0, -1])])
    drawn = {
        tuple(box): int(c) for box, c in zip(sampled.proposal_boxes.tensor.tolist(), sampled.gt_classes, strict=True)
    }
    assert drawn == {tuple(LESION): 0, **{tuple(ANCHORS[i].tolist()): 1 for i in (3, 4, 5)}}


def test_labels_of_torchvision():
    from a3d_det2.engine import torchvision_loop
    from a3d_det2.modeling.torchvision_rcnn import LesionRPN, build_lesion_rcnn
    from tests.engine.test_predictor import make_config

    model = build_lesion_rcnn(make_config(torchvision_loop))
    assert isinstance(model.rpn, LesionRPN)
    target = {"boxes": torch.tensor([LESION, IGNORED]), "labels": torch.tensor([1, -1])}
    only = {"boxes": torch.tensor([IGNORED]), "labels": torch.tensor([-1])}
    labels, boxes = model.rpn.assign_targets_to_anchors([ANCHORS, ANCHORS], [target, only])
    assert labels[0].tolist() == [1, -1, -1, -1, 0, 0]
    assert labels[1].tolist() == [0, -1, -1, -1, 0, 0]
    assert boxes[0][0].tolist() == LESION
    heads = model.roi_heads
    _, labels = heads.assign_targets_to_proposals([ANCHORS], [target["boxes"]], [target["labels"]])
    assert labels[0].tolist() == [1, -1, -1, 0, 0, 0]
    (drawn,) = heads.subsample(labels)
    assert sorted(drawn.tolist()) == [0, 3, 4, 5]
