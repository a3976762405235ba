import logging

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from a3d_det2 import add_a3d_config
from a3d_det2.checkpoint import load_torchvision_densenet
from a3d_det2.layers import A3DConv, AlignShiftConv, TSMConv
from a3d_det2.layers.thickness import slice_thickness
from a3d_det2.modeling.densenet import DenseBlock


def small_cfg(name="build_a3d_densenet_backbone", **a3d):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.PIXEL_MEAN = [0.0]
    cfg.MODEL.PIXEL_STD = [1.0]
    cfg.MODEL.FPN.IN_FEATURES = ["dense1", "dense2", "dense3"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    settings = {"BLOCK_CONFIG": [1, 1, 1], "GROWTH_RATE": 4, "NUM_INIT_FEATURES": 8, "BN_SIZE": 2, "NORM": "BN"}
    for key, value in {**settings, **a3d}.items():
        cfg.MODEL.A3D[key] = value
    return cfg


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("build_a3d_densenet_backbone", {"dense1": (12, 4), "dense2": (10, 8), "dense3": (9, 16)}),
        ("build_a3d_densenet_fpn_backbone", {"p2": (16, 4), "p3": (16, 8), "p4": (16, 16)}),
        ("build_a3d_densenet_fused_backbone", {"p2": (16, 4)}),
        ("build_densenet_2d_fused_backbone", {"p2": (16, 4)}),
    ],
)
def test_outputs_are_as_announced(name, expected):
    backbone = build_backbone(small_cfg(name))
    assert {key: (s.channels, s.stride) for key, s in backbone.output_shape().items()} == expected
    assert backbone.size_divisibility == 16
    features = backbone.eval()(torch.randn(2, 3, 64, 32))
    assert {key: tuple(y.shape) for key, y in features.items()} == {
        key: (2, channels, 64 // stride, 32 // stride) for key, (channels, stride) in expected.items()
    }


def test_all_slices_reach_the_maps_even_without_fusion():
    backbone = build_backbone(small_cfg(OPERATOR="none")).eval()
    x = torch.randn(1, 3, 32, 32)
    for k in range(3):
        changed = x.clone()
        changed[:, k] += 1
        assert not torch.allclose(backbone(x)["dense3"], backbone(changed)["dense3"])


def test_only_the_levels_that_the_neck_takes_are_squeezed():
    cfg = small_cfg("build_a3d_densenet_fpn_backbone")
    cfg.MODEL.FPN.IN_FEATURES = ["dense2", "dense3"]
    backbone = build_backbone(cfg)
    assert set(backbone.output_shape()) == {"p3", "p4"}
    assert set(backbone.bottom_up.squeeze) == {"dense2", "dense3"}
    sum(y.mean() for y in backbone(torch.randn(1, 3, 32, 32)).values()).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []
    cfg.MODEL.FPN.IN_FEATURES = ["dense1", "dense2"]
    with pytest.raises(ValueError, match=r"ending with 'dense3' .*Got .*dense2"):
        build_backbone(cfg)


@pytest.mark.parametrize("name", ["backbone", "fpn_backbone", "fused_backbone"])
def test_thickness_reaches_the_operators(name):
    backbone = build_backbone(small_cfg(f"build_a3d_densenet_{name}", OPERATOR="alignshift", BN_SIZE=4)).eval()
    x = torch.randn(1, 3, 32, 32).expand(2, -1, -1, -1)
    for thickness, equal in (([2.0, 1.0], True), ([2.0, 5.0], False)):
        with slice_thickness(torch.tensor(thickness)):
            features = backbone(x)
        for y in features.values():
            assert torch.allclose(y[0], y[1]) == equal
    with pytest.raises(ValueError, match=r"Expected the slice thickness in mm, a tensor of shape \(2,\). Got None"):
        backbone(x)


def test_operator_options_come_from_the_config():
    cfg = small_cfg(THICKNESS_AWARE=True)
    cfg.INPUT.SLICE_INTERVAL = 3.0
    convs = [m for m in build_backbone(cfg).modules() if isinstance(m, A3DConv)]
    assert {(conv.thickness_aware, conv.reference_thickness) for conv in convs} == {(True, 3.0)}
    cfg.MODEL.A3D.OPERATOR = "tsm"
    with pytest.raises(ValueError, match="THICKNESS_AWARE is an option of the operator a3d .* Got 'tsm'"):
        build_backbone(cfg)
    cfg.MODEL.A3D.OPERATOR, cfg.MODEL.A3D.THICKNESS_AWARE = "alignshift", False
    convs = [m for m in build_backbone(cfg).modules() if isinstance(m, AlignShiftConv)]
    assert {conv.reference_thickness for conv in convs} == {3.0}
    assert {conv.ends for conv in convs} == {"keep"}
    cfg.MODEL.A3D.N_FOLD, cfg.MODEL.A3D.ENDS, cfg.MODEL.A3D.REFERENCE_THICKNESS = 4, "zero", 1.5
    convs = [m for m in build_backbone(cfg).modules() if isinstance(m, AlignShiftConv)]
    assert {(conv.reference_thickness, conv.ends) for conv in convs} == {(1.5, "zero")}
    assert all(conv.fold == conv.in_channels // 4 for conv in convs)
    cfg.MODEL.A3D.OPERATOR, cfg.MODEL.A3D.ENDS = "tsm", "keep"
    convs = [m for m in build_backbone(cfg).modules() if isinstance(m, TSMConv)]
    assert {conv.ends for conv in convs} == {"keep"}


def test_slices_as_the_channels_of_a_2d_network():
    cfg = small_cfg("build_densenet_2d_fused_backbone", NUM_SLICES=5)
    backbone = build_backbone(cfg).eval()
    assert backbone.bottom_up.trunk.conv0.weight.shape == (8, 5, 7, 7)
    assert not any(isinstance(m, nn.Conv3d) for m in backbone.modules())
    assert not any("squeeze" in name for name in backbone.state_dict())
    x = torch.randn(1, 5, 32, 32)
    for k in range(5):
        changed = x.clone()
        changed[:, k] += 1
        assert not torch.allclose(backbone(x)["p2"], backbone(changed)["p2"])
    with pytest.raises(ValueError, match=r"with D = 5 slices .* Got \(1, 3, 32, 32\)"):
        backbone(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("slices", [1, 3, 5])
def test_a_2d_network_starts_from_imagenet(slices):
    torchvision = pytest.importorskip("torchvision")
    cfg = small_cfg(
        "build_densenet_2d_fused_backbone", NUM_SLICES=slices, GROWTH_RATE=32, NUM_INIT_FEATURES=64, BN_SIZE=4
    )
    cfg.MODEL.A3D.BLOCK_CONFIG = [6, 12, 24]
    backbone, imagenet = build_backbone(cfg), torchvision.models.densenet121().eval()
    load_torchvision_densenet(backbone.bottom_up.trunk, imagenet.state_dict(), "sum")
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        found = backbone.eval().bottom_up(grey.expand(-1, slices, -1, -1))["dense1"]
        expected = imagenet.features[:5](grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_one_slice():
    assert build_backbone(small_cfg(NUM_SLICES=1))(torch.randn(2, 1, 32, 32))["dense1"].shape == (2, 12, 8, 8)


@pytest.mark.parametrize("slices", [2, 4, 0, -1])
def test_even_num_slices(slices):
    with pytest.raises(ValueError, match=f"NUM_SLICES must be odd.* Got {slices} instead"):
        build_backbone(small_cfg(NUM_SLICES=slices))


def test_pixel_mean_has_one_entry():
    cfg = small_cfg()
    cfg.MODEL.PIXEL_MEAN = [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="PIXEL_MEAN must have one entry.* Got 3 entries"):
        build_backbone(cfg)


def test_unknown_operator_lists_the_choices():
    with pytest.raises(ValueError, match="Unknown fusion operator 'A3D'. Choose one of none, i3d"):
        build_backbone(small_cfg(OPERATOR="A3D"))


def test_wrong_number_of_slices():
    with pytest.raises(ValueError, match=r"D = 3 slices \(MODEL.A3D.NUM_SLICES\). Got \(1, 7, 32, 32\)"):
        build_backbone(small_cfg())(torch.randn(1, 7, 32, 32))


def test_sync_bn_falls_back_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="a3d_det2"):
        backbone = build_backbone(small_cfg(NORM="SyncBN"), ShapeSpec(channels=1))
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(m) for m in norms} == {nn.BatchNorm3d}
    assert "SyncBN, which needs CUDA and several processes; using BN on cpu with 1 process" in caplog.text


@pytest.mark.parametrize(
    ("operator", "resampling", "warns"),
    [("alignshift", "linear", True), ("tsm", "thin", True), ("alignshift", "thin", False), ("tsm", "linear", False)],
)
def test_resampling_that_does_not_suit_the_operator_is_named(operator, resampling, warns, caplog):
    cfg = small_cfg(OPERATOR=operator)
    cfg.INPUT.RESAMPLING = resampling
    with caplog.at_level(logging.WARNING, logger="a3d_det2"):
        build_backbone(cfg)
    assert (f"OPERATOR is '{operator}' and INPUT.RESAMPLING '{resampling}'" in caplog.text) == warns


def test_checkpointing_and_compilation_come_from_the_config():
    plain, other = build_backbone(small_cfg()), build_backbone(small_cfg(CHECKPOINTING="layer"))
    assert {block.checkpointing for block in plain.modules() if isinstance(block, DenseBlock)} == {""}
    assert {block.checkpointing for block in other.modules() if isinstance(block, DenseBlock)} == {"layer"}
    compiled = build_backbone(small_cfg(COMPILE=True))
    assert (plain.trunk._compiled_call_impl is None, compiled.trunk._compiled_call_impl is None) == (True, False)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    with pytest.raises(ValueError, match="not both: .* Got CHECKPOINTING 'layer' with COMPILE True"):
        build_backbone(small_cfg(CHECKPOINTING="layer", COMPILE=True))
    with pytest.raises(ValueError, match="Unknown checkpointing 'Layer'. Choose one of"):
        build_backbone(small_cfg(CHECKPOINTING="Layer"))
