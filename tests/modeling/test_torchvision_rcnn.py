import copy
import logging

import pytest
import torch
from torchvision.models.detection import FasterRCNN

from a3d_det2.engine import torchvision_loop
from a3d_det2.layers.thickness import slice_thickness
from a3d_det2.modeling import DenseNet3D, FusedTrunk
from a3d_det2.modeling.squeeze import SqueezedTrunk
from a3d_det2.modeling.torchvision_rcnn import BatchOnly, PyramidTrunk, build_lesion_rcnn

SMALL = """
MODEL.A3D.NUM_SLICES 3 MODEL.A3D.BLOCK_CONFIG [1,1,1] MODEL.A3D.GROWTH_RATE 8 MODEL.A3D.NUM_INIT_FEATURES 16
MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.ROI_MASK_HEAD.NUM_CONV 2
""".split()
FUSED = """
MODEL.BACKBONE.NAME build_a3d_densenet_fused_backbone MODEL.ANCHOR_GENERATOR.SIZES [[16,24,32]]
MODEL.RPN.IN_FEATURES ["p2"] MODEL.ROI_HEADS.IN_FEATURES ["p2"]
""".split()


@pytest.fixture
def config(repo):
    def make(*options):
        path = str(repo / "configs/quick/a3d_7slice.yaml")
        return torchvision_loop.load_config(path, [*SMALL, *map(str, options)])

    return make


def targets(masks):
    boxes = torch.tensor([[10.0, 12, 40, 44]])
    target = {"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64)}
    if masks:
        target["masks"] = torch.zeros(1, 64, 64, dtype=torch.uint8)
        target["masks"][:, 12:45, 10:41] = 1
    empty = {key: value[:0] for key, value in target.items()}
    return [target, empty]


@pytest.mark.parametrize("neck", [[], FUSED])
@pytest.mark.parametrize("masks", [False, True])
def test_trains_every_parameter_and_detects(config, neck, masks):
    torch.manual_seed(0)
    model = build_lesion_rcnn(config(*neck, "MODEL.MASK_ON", masks)).train()
    images = [torch.randn(3, 64, 64), torch.randn(3, 64, 48)]  # of two sizes, one without lesions
    losses = model(images, targets(masks))
    names = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert set(losses) == names | ({"loss_mask"} if masks else set())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    found = model.eval()(images)
    assert len(found) == 2
    for image, one in zip(images, found, strict=True):
        assert 0 < len(one["boxes"]) <= 50
        assert one["labels"].unique().tolist() == [1]
        if masks:
            assert one["masks"].shape == (len(one["boxes"]), 1, *image.shape[1:])


def test_images_are_neither_resized_nor_normalized():
    transform = BatchOnly(0, 0, [0.0], [1.0], size_divisible=16)
    image = torch.randn(5, 20, 30) * 100
    for training in (True, False):
        batch, boxes = transform.train(training)([image], [{"boxes": torch.tensor([[1.0, 2, 3, 4]])}])
        assert batch.image_sizes == [(20, 30)]
        assert torch.equal(batch.tensors[0, :, :20, :30], image)
        assert batch.tensors.shape == (1, 5, 32, 32)
        assert batch.tensors.abs().sum() == pytest.approx(image.abs().sum())  # padded with zeros
        assert boxes[0]["boxes"].tolist() == [[1, 2, 3, 4]]


def test_detections_are_given_in_the_size_asked_for(config):
    torch.manual_seed(0)
    model = build_lesion_rcnn(config("MODEL.MASK_ON", True)).eval()
    images = [torch.randn(3, 64, 64)]
    with torch.no_grad():
        (own,), (doubled,) = model(images), model(images, output_sizes=[(128, 192)])
        (again,) = model(images)
    torch.testing.assert_close(doubled["boxes"], own["boxes"] * torch.tensor([3.0, 2, 3, 2]))
    assert doubled["masks"].shape[-2:] == (128, 192)
    assert torch.equal(again["boxes"], own["boxes"])  # nothing stays behind


def test_thickness_reaches_the_operators(config):
    torch.manual_seed(0)
    model = build_lesion_rcnn(config("MODEL.A3D.OPERATOR", "alignshift", "INPUT.RESAMPLING", "thin")).eval()
    images = [torch.randn(3, 64, 64)] * 2
    features = {}
    model.backbone.register_forward_hook(lambda module, args, y: features.update(y))
    for thickness, equal in (([2.0, 1.0], True), ([2.0, 5.0], False)):
        model(images, None, torch.tensor(thickness))
        for y in features.values():
            assert torch.allclose(y[0], y[1]) == equal
    for call in (lambda: model(images), lambda: model.backbone(torch.zeros(2, 3, 64, 64))):
        with pytest.raises(ValueError, match=r"Expected the slice thickness in mm, a tensor of shape \(2,\). Got None"):
            call()
    with slice_thickness(torch.tensor([2.0, 5.0])):
        given = model.backbone(torch.stack(images))
    assert not torch.allclose(given["dense1"][0], given["dense1"][1])


def test_wrong_number_of_slices(config):
    with pytest.raises(ValueError, match=r"D = 3 slices \(MODEL.A3D.NUM_SLICES\). Got \(1, 7, 64, 64\)"):
        build_lesion_rcnn(config()).eval()([torch.randn(7, 64, 64)])


def test_a_copy_is_independent(config, tmp_path):
    model = build_lesion_rcnn(config()).eval()
    other = copy.deepcopy(model)
    images = [torch.randn(3, 64, 64)]
    assert torch.equal(model(images)[0]["boxes"], other(images)[0]["boxes"])
    torch.save(model, tmp_path / "whole.pth")
    whole = torch.load(tmp_path / "whole.pth", weights_only=False)
    assert torch.equal(model(images)[0]["boxes"], whole(images)[0]["boxes"])
    torch.nn.init.zeros_(other.backbone.bottom_up.trunk.conv0.weight)
    assert not torch.equal(model(images)[0]["boxes"], other(images)[0]["boxes"])


@pytest.mark.parametrize("neck", [PyramidTrunk, FusedTrunk])
def test_the_trunk_in_torchvisions_own_detector(neck):
    """As it is, without any class of ours around it."""
    trunk = DenseNet3D("a3d", 3, block_config=(1, 1), growth_rate=4, num_init_features=8)
    backbone = neck(SqueezedTrunk(trunk, 3, trunk.out_channels, trunk.out_strides), 16)
    levels = list(backbone.out_strides)
    assert {name: tuple(y.shape) for name, y in backbone(torch.zeros(1, 3, 64, 32)).items()} == {
        name: (1, 16, 64 // stride, 32 // stride) for name, stride in backbone.out_strides.items()
    }
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    model = FasterRCNN(
        backbone,
        num_classes=2,
        min_size=64,
        image_mean=[0.0],
        image_std=[1.0],
        rpn_anchor_generator=AnchorGenerator([[16]] * len(levels), [[1.0]] * len(levels)),
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
    )
    assert set(model([torch.randn(3, 64, 64)], targets(False)[:1])) >= {"loss_classifier", "loss_objectness"}


@pytest.mark.parametrize(
    ("key", "value", "choices"),
    [
        ("MODEL.META_ARCHITECTURE", "LesionRetinaNet", "LesionRCNN"),
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "StandardROIHeads"),
        ("MODEL.ROI_BOX_HEAD.NAME", "MyHead", "FastRCNNConvFCHead"),
        ("MODEL.BACKBONE.NAME", "build_a3d_resnet_fpn_backbone", "build_a3d_densenet_fpn_backbone and build_a3d_dens"),
    ],
)
def test_what_torchvision_does_not_have(config, key, value, choices):
    with pytest.raises(ValueError, match=f"{key} is '{value}': with torchvision there is only {choices}"):
        build_lesion_rcnn(config(key, value))


def test_other_settings_that_torchvision_does_not_have(config):
    with pytest.raises(ValueError, match=r"SOLVER.WEIGHT_DECAY_NORM is 0.0: with torchvision there is only 0.0001"):
        build_lesion_rcnn(config("SOLVER.WEIGHT_DECAY_NORM", 0.0))
    with pytest.raises(ValueError, match=r"IN_FEATURES are all levels, \['p2', 'p3', 'p4'\]. Got \['p2'\] and"):
        build_lesion_rcnn(config("MODEL.RPN.IN_FEATURES", ["p2"]))


def test_settings_of_what_is_off_are_not_looked_at(config):
    options = ["SOLVER.CLIP_GRADIENTS.FULL_MODEL", False]
    with pytest.raises(ValueError, match="FULL_MODEL is False: with torchvision there is only True"):
        build_lesion_rcnn(config(*options))
    with pytest.raises(ValueError, match="CLIP_TYPE is 'value': with torchvision there is only norm and full_model"):
        build_lesion_rcnn(config("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"))
    build_lesion_rcnn(config(*options, "SOLVER.CLIP_GRADIENTS.ENABLED", False))
    with pytest.raises(ValueError, match="RANDOM_FLIP is 'horizontl': .* only horizontal and vertical and none"):
        build_lesion_rcnn(config("INPUT.RANDOM_FLIP", "horizontl"))


def test_what_torchvision_does_otherwise_is_said(config, caplog):
    with caplog.at_level(logging.WARNING):
        build_lesion_rcnn(config())
    assert [message.split(" is ")[0] for message in caplog.messages] == [
        "MODEL.ANCHOR_GENERATOR.OFFSET",
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
    ]
    assert caplog.messages[0] == "MODEL.ANCHOR_GENERATOR.OFFSET is 0.5; torchvision has 0.0."
    caplog.clear()
    build_lesion_rcnn(config("MODEL.MASK_ON", True))
    assert sum("MASK_HEAD" in message for message in caplog.messages) == 2


def test_settings_reach_torchvision(config):
    options = """
        MODEL.RPN.POST_NMS_TOPK_TEST 7 MODEL.RPN.PRE_NMS_TOPK_TRAIN 11 MODEL.RPN.BATCH_SIZE_PER_IMAGE 13
        MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.25 MODEL.ROI_HEADS.NMS_THRESH_TEST 0.375 TEST.DETECTIONS_PER_IMAGE 3
        MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 17 MODEL.ROI_BOX_HEAD.NUM_FC 3 MODEL.PIXEL_MEAN [5.0] MODEL.PIXEL_STD [2.0]
        MODEL.RPN.PRE_NMS_TOPK_TEST 19 MODEL.RPN.POST_NMS_TOPK_TRAIN 23 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 5
        MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 3 MODEL.MASK_ON True MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 9
        MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO 4
    """
    model = build_lesion_rcnn(config(*options.split()))
    assert model.rpn._post_nms_top_n == {"training": 23, "testing": 7}
    assert model.rpn._pre_nms_top_n == {"training": 11, "testing": 19}
    for pool, size, ratio in ((model.roi_heads.box_roi_pool, 5, 3), (model.roi_heads.mask_roi_pool, 9, 4)):
        assert pool.featmap_names == ["dense1", "dense2", "dense3"]
        assert (pool.output_size, pool.sampling_ratio) == ((size, size), ratio)
    assert model.transform.size_divisible == 16
    assert model.rpn.fg_bg_sampler.batch_size_per_image == 13
    heads = model.roi_heads
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.25, 0.375, 3)
    assert heads.fg_bg_sampler.batch_size_per_image == 17
    assert sum(isinstance(m, torch.nn.Linear) for m in heads.box_head) == 3
    assert (model.transform.image_mean, model.transform.image_std) == ([5.0], [2.0])
    every = build_lesion_rcnn(config("MODEL.ANCHOR_GENERATOR.SIZES", [[20]]))
    assert every.rpn.anchor_generator.sizes == [[20]] * 3
    sizes = [[16, 24], [32, 48], [64, 96]]
    for base, level in zip(model.rpn.anchor_generator.cell_anchors, sizes, strict=True):
        areas = (base[:, 2] - base[:, 0]) * (base[:, 3] - base[:, 1])
        assert areas.sqrt().reshape(3, 2).mean(0).tolist() == pytest.approx(level, abs=0.6)
