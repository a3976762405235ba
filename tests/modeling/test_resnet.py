"""Detectron2's ResNet-FPN over slices, and the start from Detectron2's 2D models."""

import logging
import pickle
import re

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from a3d_det2 import LesionCheckpointer, add_a3d_config
from a3d_det2.layers import A3DConv, FusionConv, I3DConv, SliceConv

SMALL = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
SMALL += ["MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8]


def config(repo, *options):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs/a3d_resnet50_fpn_7slice.yaml"))
    cfg.merge_from_list([*SMALL, *options])
    return cfg


def randomised(model):
    """Norms with statistics of their own."""
    for key, value in model.state_dict().items():
        if key.endswith(("norm.running_mean", "norm.bias")):
            value.normal_(0, 0.1)
        elif key.endswith(("norm.running_var", "norm.weight")):
            value.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def zoo_model(repo):
    """A COCO-like 2D model: three colours, 80 classes, Detectron2's own backbone and mask head."""
    cfg = config(repo, "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_MASK_HEAD.NAME = "GeneralizedRCNN", "MaskRCNNConvUpsampleHead"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [103.5, 116.3, 123.7], [1.0, 1.0, 1.0]
    torch.manual_seed(0)
    return randomised(build_model(cfg))


def write(path, state_dict, **extra):
    with open(path, "wb") as f:
        model = {key: value.numpy() for key, value in state_dict.items()}
        pickle.dump({"model": model, "__author__": "test", **extra}, f)
    return str(path)


@pytest.fixture(scope="module")
def zoo_file(zoo_model, tmp_path_factory):
    return write(tmp_path_factory.mktemp("zoo") / "model_final_f10217.pkl", zoo_model.state_dict())


def test_convolutions_are_exchanged_and_the_stem_stays_slice_wise(repo):
    backbone = build_model(config(repo)).backbone
    convs = {name: m for name, m in backbone.bottom_up.trunk.named_modules() if isinstance(m, FusionConv)}
    assert len(convs) == 1 + 2 * 2 * 4 + 3
    assert {name for name, m in convs.items() if type(m) is SliceConv} == {"stem.conv1"}
    assert {type(m) for name, m in convs.items() if name != "stem.conv1"} == {A3DConv}
    shapes = backbone.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == {
        f"p{level}": (16, 2**level) for level in (2, 3, 4, 5, 6)
    }
    features = backbone.eval()(torch.randn(2, 7, 64, 128))
    assert {name: tuple(y.shape) for name, y in features.items()} == {
        f"p{level}": (2, 16, 64 >> level, 128 >> level) for level in (2, 3, 4, 5, 6)
    }


@pytest.mark.parametrize("stem", ["middle", "sum"])
def test_model_zoo_checkpoint_is_the_start(repo, zoo_model, zoo_file, stem, caplog):
    model = build_model(config(repo)).eval()
    with caplog.at_level(logging.INFO):
        LesionCheckpointer(model, stem_weights=stem).load(zoo_file)
    theirs = zoo_model.state_dict()
    trunk = model.backbone.bottom_up.trunk
    name = "backbone.bottom_up.res4.1.conv2"
    assert torch.equal(trunk.res4[1].conv2.weight, theirs[f"{name}.weight"])
    assert torch.equal(trunk.res4[1].conv2.norm.running_var, theirs[f"{name}.norm.running_var"])
    colour = theirs["backbone.bottom_up.stem.conv1.weight"]
    grey = colour[:, 1:2] if stem == "middle" else colour.sum(1, keepdim=True)
    assert torch.equal(trunk.stem.conv1.weight, grey)
    ours = model.state_dict()
    assert torch.equal(ours["backbone.fpn_output3.weight"], theirs["backbone.fpn_output3.weight"])
    for key in ("proposal_generator.rpn_head.conv.weight", "roi_heads.box_head.fc1.weight"):
        assert torch.equal(ours[key], theirs[key])
    (log,) = (record.getMessage() for record in caplog.records if "is the start of this one" in record.getMessage())
    new = {line.strip().split(":")[0] for line in log.splitlines()[1:]}
    heads = {f"roi_heads.{layer}.{part}" for part in ("weight", "bias") for layer in (
        "box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")}  # fmt: skip
    assert {key for key in new if not key.endswith(".fusion_weight") and ".squeeze." not in key} == heads
    assert sum(key.endswith(".fusion_weight") for key in new) == 19


def test_equal_slices_without_fusion_give_the_2d_features(repo, zoo_model, zoo_file):
    model = build_model(config(repo, "MODEL.A3D.OPERATOR", "none", "MODEL.A3D.NUM_SLICES", 3)).eval()
    LesionCheckpointer(model, stem_weights="sum").load(zoo_file)
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        ours = model.backbone.bottom_up.trunk(image.unsqueeze(2).expand(-1, -1, 3, -1, -1))
        theirs = zoo_model.backbone.bottom_up(image.expand(-1, 3, -1, -1))
    for name, expected in theirs.items():
        for k in range(3):
            torch.testing.assert_close(ours[name][:, :, k], expected, rtol=1e-4, atol=1e-4)


def test_windows_take_all_of_the_first_layer(repo, zoo_model, zoo_file, tmp_path):
    """Three windows in the place of the colours: of a model of the zoo, and of an ImageNet backbone."""
    windows = "[[-175.0,275.0],[-1024.0,-500.0],[100.0,1500.0]]"
    prefix, stem = "backbone.bottom_up.", "stem.conv1.weight"
    weights = {k.removeprefix(prefix): v for k, v in zoo_model.state_dict().items() if k.startswith(prefix)}
    for path in (zoo_file, write(tmp_path / "R-18.pkl", weights, matching_heuristics=True)):
        model = build_model(config(repo, "INPUT.HU_WINDOWS", windows))
        LesionCheckpointer(model).load(path)
        assert torch.equal(model.backbone.bottom_up.trunk.stem.conv1.weight, weights[stem])
        assert weights[stem].shape[1] == 3


def test_i3d_inflates_the_kernels_of_the_zoo(repo, zoo_model, zoo_file):
    model = build_model(config(repo, "MODEL.A3D.OPERATOR", "i3d"))
    LesionCheckpointer(model).load(zoo_file)
    conv = model.backbone.bottom_up.trunk.res3[0].conv1
    assert type(conv) is I3DConv
    kernel = zoo_model.state_dict()["backbone.bottom_up.res3.0.conv1.weight"]
    assert torch.equal(conv.weight[:, :, 1], kernel / 3)


def test_a_backbone_of_another_depth_is_an_error(repo, zoo_file):
    model = build_model(config(repo, "MODEL.RESNETS.DEPTH", 34))
    with pytest.raises(ValueError, match=r"model_final_f10217.pkl: [^$]*trunk.res2.2.conv1.weight: not in the check"):
        LesionCheckpointer(model).load(zoo_file)


@pytest.mark.parametrize("operator", ["a3d", "i3d"])
def test_imagenet_backbone(repo, zoo_model, tmp_path, operator):
    """As Detectron2's own ImageNet ResNets: the names lack their prefix, a classifier is left over."""
    prefix = "backbone.bottom_up."
    weights = {k.removeprefix(prefix): v for k, v in zoo_model.state_dict().items() if k.startswith(prefix)}
    weights["stem.fc.weight"] = torch.zeros(1000, 512)
    path = write(tmp_path / "R-18.pkl", weights, matching_heuristics=True)
    model = build_model(config(repo, "MODEL.A3D.OPERATOR", operator))
    LesionCheckpointer(model, stem_weights="sum").load(path)
    trunk = model.backbone.bottom_up.trunk
    assert torch.equal(trunk.stem.conv1.weight, weights["stem.conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(trunk.res5[0].shortcut.norm.weight, weights["res5.0.shortcut.norm.weight"])
    kernel = weights["res2.1.conv2.weight"]
    conv = trunk.res2[1].conv2
    assert torch.equal(conv.weight, conv.from_2d(kernel))
    del weights["res3.0.conv1.weight"]
    path = write(tmp_path / "R-18.pkl", weights, matching_heuristics=True)
    with pytest.raises(ValueError, match=r"trunk.res3.0.conv1.weight: not in the checkpoint"):
        LesionCheckpointer(model).load(path)


def test_own_checkpoints_stay_strict(repo, tmp_path):
    model = build_model(config(repo))
    LesionCheckpointer(model, str(tmp_path)).save("own")
    LesionCheckpointer(build_model(config(repo))).load(str(tmp_path / "own.pth"))
    with pytest.raises(ValueError, match=re.escape("cls_score.weight: expected shape (4, 16), got (2, 16)")):
        LesionCheckpointer(build_model(config(repo, "MODEL.ROI_HEADS.NUM_CLASSES", 3))).load(str(tmp_path / "own.pth"))


def test_out_features_must_reach_the_end_of_the_resnet(repo):
    options = ["MODEL.FPN.IN_FEATURES", ["res2", "res3"]]
    with pytest.raises(ValueError, match=r"ending with 'res5' .*Got \['res2', 'res3'\]"):
        build_model(config(repo, *options))


def test_a_deeper_imagenet_backbone_is_an_error(repo, zoo_model, tmp_path):
    prefix = "backbone.bottom_up."
    weights = {k.removeprefix(prefix): v for k, v in zoo_model.state_dict().items() if k.startswith(prefix)}
    weights["res4.6.conv1.weight"] = torch.zeros(3, 3, 1, 1)
    path = write(tmp_path / "R-101.pkl", weights, matching_heuristics=True)
    with pytest.raises(ValueError, match=r"R-101.pkl: [^$]*res4.6.conv1.weight: not in the model"):
        LesionCheckpointer(build_model(config(repo))).load(path)


def test_unknown_keys_of_a_2d_model_are_an_error(repo, zoo_model, tmp_path):
    path = write(tmp_path / "zoo.pkl", {**zoo_model.state_dict(), "foo.bar": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"zoo.pkl: [^$]*foo.bar: not in the model"):
        LesionCheckpointer(build_model(config(repo))).load(path)


def test_deformable_convolutions_are_named(repo):
    deform = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    deform += ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]]
    with pytest.raises(ValueError, match=r"Cannot convert res5.0.conv2, a DeformConv: it has a convolution's kernel"):
        build_model(config(repo, *deform))


def test_own_2d_kernels_do_not_become_i3d(repo, tmp_path):
    LesionCheckpointer(build_model(config(repo, "MODEL.A3D.OPERATOR", "none")), str(tmp_path)).save("none")
    with pytest.raises(ValueError, match=r"conv1.weight: expected shape \(64, 64, 3, 3, 3\), got \(64, 64, 3, 3\)"):
        LesionCheckpointer(build_model(config(repo, "MODEL.A3D.OPERATOR", "i3d"))).load(str(tmp_path / "none.pth"))
