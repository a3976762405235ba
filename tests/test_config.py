from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from a3d_det2 import DiceMaskHead, LesionRCNN, LesionRetinaNet, PublishedRCNN, add_a3d_config
from a3d_det2.layers import FUSION_CONVS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FOUND = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))
LEAVES = [name for name in FOUND if not name.split("/")[-1].startswith("Base")]
PUBLISHED = ("none", "acs", "tsm", "alignshift", "a3d")
TABLE_2 = ("none", "i3d", "p3d", "acs", "tsm", "alignshift", "a3d")  # of the paper


def load(repo, leaf):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs" / f"{leaf}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def sample(slices: int, size: int = 64) -> dict:
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 30.0, 30.0], [30.0, 10.0, 60.0, 50.0]]))
    instances.gt_classes = torch.zeros(2, dtype=torch.int64)
    square = [[[8.0, 8, 30, 8, 30, 30, 8, 30]], [[30.0, 10, 60, 10, 60, 50, 30, 50]]]
    masks = PolygonMasks(square)
    instances.gt_masks = BitMasks.from_polygon_masks(masks, size, size)
    return {"image": torch.randn(slices, size, size) * 50, "instances": instances, "thickness": 5.0}


def operator_and_slices(leaf: str) -> tuple[str, int]:
    """What the name of a config says; "2d" is a network without fusion."""
    name = leaf.split("/")[-1]
    return name.split("_")[0].replace("2d", "none"), int(name[-6])


def test_every_operator_has_a_config_and_those_of_the_paper_have_two():
    assert {operator_and_slices(name)[0] for name in LEAVES} == set(FUSION_CONVS)
    assert {f"{operator}_{slices}slice" for operator in (*TABLE_2, "2d") for slices in (3, 7)} <= set(LEAVES)
    published = {name for name in LEAVES if name.startswith("published/")}
    assert published == {f"published/{operator}_{slices}slice" for operator in PUBLISHED for slices in (3, 7)}


# tests/modeling/published has all of the published ones, on a small scale.
@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if "published" not in leaf or leaf.endswith("a3d_7slice")])
def test_leaf_builds_trains_and_detects(repo, leaf):
    cfg = load(repo, leaf)
    # The published numbers of proposals serve 512 px; a test image has 64.
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16  # most of the parameters otherwise
    torch.manual_seed(0)
    model = build_model(cfg)
    operator, slices = operator_and_slices(leaf)
    assert (operator, slices) == (cfg.MODEL.A3D.OPERATOR, cfg.MODEL.A3D.NUM_SLICES)
    depth = 1 if "2d" in leaf else slices
    assert any(type(m) is FUSION_CONVS[operator] and m.num_slices == depth for m in model.modules())
    architecture = PublishedRCNN if "published" in leaf else LesionRetinaNet if "retinanet" in leaf else LesionRCNN
    assert type(model) is architecture
    assert f"./output/{leaf}" == cfg.OUTPUT_DIR
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 50
    assert (cfg.INPUT.RESAMPLING == "thin") == (operator == "alignshift")

    model.train()
    with EventStorage(0):
        losses = model([sample(slices)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    assert ("loss_mask" in losses) == cfg.MODEL.MASK_ON
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    model.eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.randn(slices, 64, 64), "thickness": 5.0, "height": 128, "width": 128}])
    detections = output["instances"]
    assert len(detections) > 0  # such a threshold of the score keeps the boxes of an untrained model
    assert detections.has("pred_masks") == cfg.MODEL.MASK_ON
    assert detections.image_size == (128, 128)


def test_published_setup(repo):
    cfg = load(repo, "a3d_7slice")
    model = build_model(cfg)
    shapes = model.backbone.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == {"p2": (512, 4)}
    generator = model.proposal_generator.anchor_generator
    assert generator.num_anchors == [18]
    # Centred on the first 4 x 4 pixels, which in continuous coordinates reach from 0 to 4.
    first = generator([torch.zeros(1, 1, 2, 2)])[0].tensor[1]
    assert first.tolist() == [2.0 - 8, 2.0 - 8, 2.0 + 8, 2.0 + 8]
    assert [tuple(p.shape) for p in model.roi_heads.box_head.parameters()] == [
        (2048, 512 * 49),
        (2048,),
        (2048, 2048),
        (2048,),
    ]
    assert isinstance(model.roi_heads.mask_head, DiceMaskHead)
    assert model.roi_heads.mask_head.layers(torch.zeros(1, 512, 14, 14)).shape == (1, 1, 28, 28)
    assert len(model.roi_heads.mask_head.conv_norm_relus) == 4
    fpn = build_model(load(repo, "a3d_fpn_7slice"))
    assert {name: (s.channels, s.stride) for name, s in fpn.backbone.output_shape().items()} == {
        "p2": (256, 4),
        "p3": (256, 8),
        "p4": (256, 16),
    }
    assert fpn.proposal_generator.anchor_generator.num_anchors == [6, 6, 6]


def test_detectron2s_own_trainer_takes_the_base_config(repo):
    """Its optimizer with clipped gradients, and its mapper's image format."""
    cfg = load(repo, "a3d_7slice")
    model = torch.nn.Linear(2, 2)
    optimizer = DefaultTrainer.build_optimizer(cfg, model)
    model(torch.full((1, 2), 1e4)).sum().backward()
    optimizer.step()
    assert model.weight.grad.norm() == pytest.approx(35.0, rel=1e-4)
    assert cfg.INPUT.FORMAT in ("RGB", "BGR")
