"""Architectures and backbones of Detectron2 over slices, by the mixin or as they are."""

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import FCOS, META_ARCH_REGISTRY, PanopticFPN, build_backbone, build_model
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from a3d_det2 import LesionRCNN, TakesSlices, model_zoo
from a3d_det2.modeling import DenseNet3D


class LesionFCOS(TakesSlices, FCOS):
    pass


@META_ARCH_REGISTRY.register()
class LesionPanopticFPN(TakesSlices, PanopticFPN):
    pass


@pytest.fixture
def config():
    def config(name, *options):
        cfg = model_zoo.get_config(f"{name}.yaml")
        small = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.A3D.NORM", "BN", "MODEL.A3D.NUM_SLICES", 3]
        small += ["MODEL.A3D.BLOCK_CONFIG", [1, 1, 1, 1], "MODEL.A3D.GROWTH_RATE", 8, "MODEL.FPN.OUT_CHANNELS", 16]
        small += ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 30, "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.RESNETS.DEPTH", 18]
        small += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
        cfg.merge_from_list([*small, *options])
        return cfg

    return config


LEVELS = ["MODEL.FPN.IN_FEATURES", ["dense2", "dense3", "dense4"]]
P3_TO_P7 = ["p3", "p4", "p5", "p6", "p7"]


def sample(slices=3, size=128, **more):
    instances = Instances((size, size), gt_boxes=Boxes(torch.tensor([[20.0, 24, 60, 70]])))
    instances.gt_classes = torch.zeros(1, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.ones(1, size, size, dtype=torch.bool))
    return {"image": torch.randn(slices, size, size) * 50, "instances": instances, "thickness": 2.0, **more}


def trains_and_detects(model, x) -> dict:
    with EventStorage(0):
        losses = model.train()([x])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
    with torch.no_grad():
        (output,) = model.eval()([{k: v for k, v in x.items() if k != "instances"}])
    return output


@pytest.mark.parametrize("kind", ["densenet", "resnet"])
def test_retinanet_on_p3_to_p7(config, kind):
    in_features = LEVELS if kind == "densenet" else ["MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]]
    name = ["MODEL.BACKBONE.NAME", f"build_a3d_retinanet_{kind}_fpn_backbone"]
    more = ["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.RETINANET.IN_FEATURES", P3_TO_P7]
    sizes = ["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]]
    model = build_model(config("a3d_retinanet_7slice", *in_features, *name, *more, *sizes))
    strides = {name: shape.stride for name, shape in model.backbone.output_shape().items()}
    assert strides == {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    assert "instances" in trains_and_detects(model, sample())


def test_maps_that_are_not_there_are_named(config):
    sizes = ["MODEL.ANCHOR_GENERATOR.SIZES", [[32]], "MODEL.RETINANET.IN_FEATURES", P3_TO_P7]
    with pytest.raises(
        ValueError, match=r"'p6': expected IN_FEATURES of LesionRetinaNet .* of build_a3d_densenet_fpn_back"
    ):
        build_model(config("a3d_retinanet_7slice", *LEVELS, *sizes))


def test_fcos(config):
    backbone = build_backbone(
        config("a3d_retinanet_7slice", *LEVELS, "MODEL.BACKBONE.NAME", "build_a3d_retinanet_densenet_fpn_backbone")
    )
    head = FCOSHead(input_shape=[ShapeSpec(channels=16)] * 5, num_classes=1, conv_dims=[16, 16])
    arguments = {"pixel_mean": [0.0], "pixel_std": [1.0], "num_classes": 1, "head_in_features": P3_TO_P7}
    model = LesionFCOS(backbone=backbone, head=head, **arguments)
    assert "instances" in trains_and_detects(model, sample())


def test_panoptic(config):
    more = ["MODEL.META_ARCHITECTURE", "LesionPanopticFPN", "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3", "p4"]]
    more += [
        "MODEL.SEM_SEG_HEAD.NORM",
        "",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        4,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM",
        16,
        "MODEL.A3D.BLOCK_CONFIG",
        [1, 1, 1],
    ]
    model = build_model(config("a3d_fpn_3slice", *more))
    sem_seg = torch.zeros(128, 128, dtype=torch.int64)
    output = trains_and_detects(model, sample(sem_seg=sem_seg))
    assert {"instances", "sem_seg", "panoptic_seg"} <= output.keys()


def test_a_2d_backbone_has_the_slices_as_its_channels(config):
    more = [
        "MODEL.BACKBONE.NAME",
        "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES",
        ["res2", "res3", "res4", "res5"],
    ]
    more += ["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.ROI_HEADS.IN_FEATURES", ["p2"]]
    more += ["MODEL.RPN.IN_FEATURES", ["p2"], "MODEL.ANCHOR_GENERATOR.SIZES", [[32]], "MODEL.MASK_ON", False]
    model = build_model(config("a3d_fpn_3slice", *more, "MODEL.PIXEL_MEAN", [0.0] * 3, "MODEL.PIXEL_STD", [1.0] * 3))
    assert type(model) is LesionRCNN
    assert "instances" in trains_and_detects(model, sample())
    message = (
        r"expected one entry of MODEL.PIXEL_MEAN and PIXEL_STD for each of the 3 slices .*, got 1. Backbones of this"
    )
    with pytest.raises(ValueError, match=message), EventStorage(0):
        build_model(config("a3d_fpn_3slice", *more))([sample()])


def test_an_architecture_that_does_not_open_the_scope_of_the_thickness(config):
    model = build_model(
        config(
            "a3d_fpn_3slice",
            "MODEL.META_ARCHITECTURE",
            "GeneralizedRCNN",
            "MODEL.A3D.OPERATOR",
            "alignshift",
            "MODEL.A3D.BLOCK_CONFIG",
            [1, 1, 1],
        )
    )
    with pytest.raises(ValueError, match=r"thickness.*(LesionRCNN|TakesSlices)"), EventStorage(0):
        model([sample()])


def test_weights_that_detectron2s_own_checkpointer_would_leave_out(config, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    torchvision = pytest.importorskip("torchvision")
    torch.save(torchvision.models.densenet121().state_dict(), tmp_path / "densenet121.pth")
    model = build_model(config("a3d_fpn_3slice", "MODEL.A3D.BLOCK_CONFIG", [1, 1, 1]))
    with pytest.raises(
        ValueError, match="got those of a torchvision DenseNet. Into the trunk they are loaded by a3d_det2"
    ):
        DetectionCheckpointer(model).load(str(tmp_path / "densenet121.pth"))


def test_padding_constraints_are_handed_on(config, monkeypatch):
    backbone = build_backbone(config("a3d_3slice", "MODEL.A3D.BLOCK_CONFIG", [1, 1, 1]))
    assert backbone.padding_constraints == {}
    backbone.bottom_up.trunk.padding_constraints = {"square_size": 64}
    assert backbone.padding_constraints == {"square_size": 64}
    monkeypatch.setattr(DenseNet3D, "padding_constraints", {"square_size": 64}, raising=False)
    fpn = build_backbone(config("a3d_fpn_3slice", "MODEL.A3D.BLOCK_CONFIG", [1, 1, 1]))
    assert fpn.padding_constraints["square_size"] == 64
