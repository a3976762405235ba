"""Detectron2 and torchvision: what both have is the same."""

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from a3d_det2 import DeepLesionMapper, LesionCheckpointer, add_a3d_config
from a3d_det2.checkpoint.strict import StrictCheckpointer
from a3d_det2.data import load_deeplesion
from a3d_det2.data.torch_dataset import build_lesion_dataset
from a3d_det2.engine import torchvision_loop
from a3d_det2.modeling.torchvision_rcnn import build_lesion_rcnn

NECKS = {"fused": "a3d_7slice.yaml", "fpn": "a3d_fpn_7slice.yaml"}
SMALL = """
MODEL.DEVICE cpu MODEL.A3D.NUM_SLICES 3 MODEL.A3D.BLOCK_CONFIG [2,2,2] MODEL.A3D.GROWTH_RATE 8
MODEL.A3D.NUM_INIT_FEATURES 16 MODEL.A3D.NORM BN MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16
MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.MASK_ON False
""".split()


def detectron2_config(repo, name, options=()):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs" / name))
    cfg.merge_from_list(list(options))
    return cfg


def leaves(cfg, prefix=""):
    for key, value in cfg.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.mark.parametrize(
    "name", ["a3d_7slice.yaml", "alignshift_3slice.yaml", "a3d_fpn_7slice.yaml", "quick/a3d_1slice.yaml"]
)
def test_a_config_means_the_same(repo, name):
    ours = dict(leaves(torchvision_loop.load_config(str(repo / "configs" / name), [])))
    theirs = dict(leaves(detectron2_config(repo, name)))
    assert len(ours) > 80
    assert {key: value for key, value in ours.items() if value != theirs[key]} == {}


def train_a_little(engine, cfg):
    """Two steps, so that no weight and no statistic is what it was made as."""
    torch.manual_seed(0)
    model = (build_model if engine == "detectron2" else build_lesion_rcnn)(cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    boxes = torch.tensor([[10.0, 12, 40, 44]])
    for _ in range(2):
        image = torch.randn(3, 64, 64)
        if engine == "detectron2":
            instances = Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(1, dtype=torch.int64))
            with EventStorage():
                losses = model([{"image": image, "instances": instances, "height": 64, "width": 64}])
        else:
            losses = model([image], [{"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64)}])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("engine", ["detectron2", "torchvision"])
def test_a_trunk_of_one_engine_gives_the_same_features_in_the_other(repo, tmp_path, neck, engine):
    both = {
        "detectron2": detectron2_config(repo, NECKS[neck], SMALL),
        "torchvision": torchvision_loop.load_config(str(repo / "configs" / NECKS[neck]), SMALL),
    }
    checkpointers = {"detectron2": LesionCheckpointer, "torchvision": StrictCheckpointer}
    trained = train_a_little(engine, both[engine])
    checkpointers[engine](trained, str(tmp_path)).save("trained")
    other = next(name for name in both if name != engine)
    torch.manual_seed(1)
    model = (build_model if other == "detectron2" else build_lesion_rcnn)(both[other]).eval()
    heads = {name: p.clone() for name, p in model.named_parameters() if name.startswith("roi_heads.")}
    checkpointers[other](model).load(str(tmp_path / "trained.pth"))

    x = torch.randn(2, 3, 64, 64)
    # Each engine has its own FPN; the fused neck is ours.
    expected, got = ((m.backbone if neck == "fused" else m.backbone.bottom_up)(x) for m in (trained, model))
    assert expected.keys() == got.keys()
    for name, y in expected.items():
        assert torch.equal(y, got[name])
    assert all(torch.equal(p, heads[name]) for name, p in model.named_parameters() if name in heads)


@pytest.mark.parametrize("neck", NECKS)
def test_parameters_have_the_same_names(repo, neck):
    models = (
        build_model(detectron2_config(repo, NECKS[neck], SMALL)),
        build_lesion_rcnn(torchvision_loop.load_config(str(repo / "configs" / NECKS[neck]), SMALL)),
    )
    shared = ("backbone.bottom_up.", "backbone.neck.")
    theirs, ours = (
        {key: tuple(value.shape) for key, value in model.state_dict().items() if key.startswith(shared)}
        for model in models
    )
    assert ours == theirs
    assert any(".squeeze." in name for name in ours)
    assert any(".neck.laterals." in name for name in ours) == (neck == "fused")


def test_weights_of_the_other_engine_that_do_not_fit_are_an_error(repo, tmp_path, caplog):
    model = build_model(detectron2_config(repo, NECKS["fused"], SMALL))
    LesionCheckpointer(model, str(tmp_path)).save("theirs")
    path = str(repo / "configs" / NECKS["fused"])
    with caplog.at_level("INFO"):
        StrictCheckpointer(build_lesion_rcnn(torchvision_loop.load_config(path, SMALL))).load(
            str(tmp_path / "theirs.pth")
        )
    (message,) = (message for message in caplog.messages if "Not taken over" in message)
    assert "rpn.head.cls_logits.weight: not in the checkpoint" in message
    assert ".trunk." not in message
    narrower = torchvision_loop.load_config(path, [*SMALL, "MODEL.A3D.GROWTH_RATE", "4"])
    with pytest.raises(ValueError, match=r"theirs.pth: The weights do not fit[^$]*denselayer1.conv1.weight: exp"):
        StrictCheckpointer(build_lesion_rcnn(narrower)).load(str(tmp_path / "theirs.pth"))


def test_both_get_the_same_samples(repo, phantom_root):
    """Without what is drawn at random."""
    folder = phantom_root / "phantom"
    records = load_deeplesion(str(folder / "DL_info.csv"), str(folder / "Images_png"), "train")
    options = "INPUT.AFFINE.PROB 0.0 INPUT.RANDOM_FLIP none INPUT.MIN_SIZE_TRAIN (120,) MODEL.MASK_ON True".split()
    options += "INPUT.MAX_SIZE_TRAIN 200 INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 64".split()
    name = "quick/a3d_7slice.yaml"
    theirs = detectron2_config(repo, name, options)
    ours = torchvision_loop.load_config(str(repo / "configs" / name), options)
    for is_train in (True, False):
        mapper, dataset = DeepLesionMapper(theirs, is_train), build_lesion_dataset(ours, records, is_train)
        by_id = {record["image_id"]: mapper(record) for record in records}
        for i in range(len(records)):
            image, target, thickness, size, image_id = dataset[i]
            sample = by_id[image_id]
            # The same interpolation, in another order of its sums.
            torch.testing.assert_close(image, sample["image"], rtol=0, atol=0.01)
            assert (thickness, size) == (sample["thickness"], (sample["height"], sample["width"]))
            if is_train:
                assert torch.equal(target["boxes"], sample["instances"].gt_boxes.tensor)
                assert torch.equal(target["masks"].bool(), sample["instances"].gt_masks.tensor)
