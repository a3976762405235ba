import pytest

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_model

from a3d_det2 import LesionRCNN, add_a3d_config

LEAVES = [
    "a3d_3slice",
    "a3d_7slice",
    "none_3slice",
    "none_7slice",
    "a3d_fpn_3slice",
    "a3d_fpn_7slice",
    "quick/a3d_7slice",
    "quick/a3d_1slice",
    "quick/none_7slice",
]


def load(repo, leaf):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs" / f"{leaf}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def test_every_leaf_is_listed(repo):
    found = {p.relative_to(repo / "configs").with_suffix("").as_posix() for p in (repo / "configs").rglob("*.yaml")}
    assert {name for name in found if not name.startswith("Base")} == set(LEAVES)


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_builds(repo, leaf):
    cfg = load(repo, leaf)
    model = build_model(cfg)
    assert isinstance(model, LesionRCNN)
    operator, slices = leaf.removeprefix("quick/").replace("_fpn", "").split("_")
    assert (operator, int(slices[0])) == (cfg.MODEL.A3D.OPERATOR, cfg.MODEL.A3D.NUM_SLICES)
    trunk = next(m for name, m in model.named_modules() if name.endswith("trunk"))
    assert trunk.num_slices == int(slices[0])
    assert leaf.split("/")[-1] in cfg.OUTPUT_DIR
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 50
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 5e-5


def test_published_setup(repo):
    cfg = load(repo, "a3d_7slice")
    model = build_model(cfg)
    shapes = model.backbone.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == {"p2": (512, 4)}
    assert model.proposal_generator.anchor_generator.num_anchors == [18]
    assert [tuple(p.shape) for p in model.roi_heads.box_head.parameters()] == [
        (2048, 512 * 49),
        (2048,),
        (2048, 2048),
        (2048,),
    ]
    fpn = build_model(load(repo, "a3d_fpn_7slice"))
    assert {name: (s.channels, s.stride) for name, s in fpn.backbone.output_shape().items()} == {
        "p2": (256, 4),
        "p3": (256, 8),
        "p4": (256, 16),
    }
    assert fpn.proposal_generator.anchor_generator.num_anchors == [6, 6, 6]
