import pytest

pytest.importorskip("detectron2")

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import FCOS, build_model
from detectron2.modeling.meta_arch import PanopticFPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from a3d_det2 import TakesSlices, add_a3d_config
from a3d_det2.layers.thickness import current_thickness, slice_thickness
from a3d_det2.modeling.meta_arch import thickness_of


@pytest.fixture(scope="module", params=["build_a3d_densenet_fpn_backbone", "build_a3d_densenet_fused_backbone"])
def model(request, repo):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs/quick/a3d_7slice.yaml"))
    cfg.MODEL.A3D.NUM_SLICES = 3
    cfg.MODEL.BACKBONE.NAME = request.param
    if "fused" in request.param:
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 24, 32]]
        cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2"]
    cfg.VIS_PERIOD = 1
    torch.manual_seed(0)
    return build_model(cfg)


def sample(height, width, boxes):
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    return {"image": torch.randn(3, height, width), "instances": instances, "height": 2 * height, "width": 2 * width}


def test_batch_of_different_sizes_with_an_image_without_lesions(model):
    model.train()
    batch = [sample(70, 100, [[10, 10, 40, 40]]), sample(64, 48, []), sample(33, 90, [[5, 5, 25, 25], [40, 4, 60, 30]])]
    with EventStorage(0) as storage:
        losses = model(batch)
        ((name, picture, _),) = storage._vis_data
    assert {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} <= losses.keys()
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == []
    assert picture.shape == (3, 70, 200)
    assert "GT" in name


def test_a_batch_without_any_lesion_trains(model):
    model.train()
    with EventStorage(1):
        losses = model([sample(64, 64, []), sample(64, 64, [])])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_inference_scales_boxes_to_the_original_size(model):
    model.eval()
    with torch.no_grad():
        one, two = model(
            [{"image": torch.randn(3, 70, 100), "height": 140, "width": 200}, {"image": torch.randn(3, 64, 48)}]
        )
    assert one["instances"].image_size == (140, 200)
    assert two["instances"].image_size == (64, 48)
    assert len(one["instances"]) <= 50
    assert one["instances"].pred_boxes.tensor[:, 2].max() <= 200


def test_inference_with_given_boxes(model):
    model.eval()
    given = Instances((64, 64), pred_boxes=Boxes(torch.tensor([[4.0, 4.0, 30.0, 30.0]])), pred_classes=torch.zeros(1))
    with torch.no_grad():
        (out,) = model.inference([{"image": torch.randn(3, 64, 64), "height": 128, "width": 128}], [given])
        (raw,) = model.inference([{"image": torch.randn(3, 64, 64)}], do_postprocess=False)
    assert out["instances"].pred_boxes.tensor.tolist() == [[8.0, 8.0, 60.0, 60.0]]
    assert isinstance(raw, Instances)


def test_precomputed_proposals(model, monkeypatch):
    monkeypatch.setattr(model, "proposal_generator", None)
    batch = [sample(64, 64, [[10, 10, 40, 40]])]
    batch[0]["proposals"] = Instances((64, 64), proposal_boxes=Boxes(torch.tensor([[8.0, 8.0, 42.0, 42.0]])))
    batch[0]["proposals"].objectness_logits = torch.zeros(1)
    model.train()
    with EventStorage(1):
        assert model(batch).keys() == {"loss_cls", "loss_box_reg"}
    model.eval()
    with torch.no_grad():
        assert len(model(batch)[0]["instances"]) > 0


@pytest.fixture(scope="module", params=["LesionRCNN", "LesionRetinaNet"])
def aware(request, repo):
    """Detectors whose operator needs the thickness."""
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs/quick/alignshift_7slice.yaml"))
    cfg.MODEL.META_ARCHITECTURE = request.param
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.IN_FEATURES = 1, ["p2", "p3", "p4"]
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.A3D.NUM_SLICES = 3
    torch.manual_seed(0)
    return build_model(cfg)


def test_thickness_reaches_the_backbone(aware):
    seen = []
    handle = aware.backbone.register_forward_pre_hook(lambda module, args: seen.append(current_thickness()))
    batch = [{**sample(64, 64, [[10, 10, 40, 40]]), "thickness": t} for t in (1.0, 5.0)]
    aware.train()
    with EventStorage(0):
        sum(aware(batch).values()).backward()
    aware.eval()
    with torch.no_grad():
        outputs = aware(batch)
    handle.remove()
    assert [t.tolist() for t in seen] == [[1.0, 5.0], [1.0, 5.0]]
    assert current_thickness() is None
    assert outputs[0]["instances"].image_size == (128, 128)
    assert [name for name, p in aware.named_parameters() if p.grad is None] == []


def test_thickness_changes_the_features(aware):
    aware.eval()
    image = torch.randn(3, 64, 64)
    with torch.no_grad():
        batch = aware.preprocess_image([{"image": image}] * 2).tensor
        with slice_thickness(torch.tensor([1.0, 5.0])):
            features = aware.backbone(batch)
    assert not any(torch.allclose(y[0], y[1]) for y in features.values())


@pytest.mark.parametrize(
    ("thickness", "message"),
    [
        ((None, None), r"Expected the slice thickness in mm, a tensor of shape \(2,\). Got None"),
        ((1.0, None), "Expected 'thickness' in every input. Got it in 1 of 2"),
        ((1.0, 0.0), r"must be positive, in mm. Got \[1.0, 0.0\]"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_bad_thickness_is_named(aware, thickness, message, training):
    batch = [sample(64, 64, [[10, 10, 40, 40]]) for _ in thickness]
    for x, t in zip(batch, thickness, strict=True):
        if t is not None:
            x["thickness"] = t
    with pytest.raises(ValueError, match=message), EventStorage(0):
        aware.train(training)(batch)


def test_thickness_is_a_number_or_a_tensor():
    batch = [{"thickness": 1}, {"thickness": torch.tensor(5.0)}, {"thickness": torch.tensor([2.5])}]
    assert thickness_of(batch, torch.device("cpu")).tolist() == [1.0, 5.0, 2.5]
    assert thickness_of([{}, {}], torch.device("cpu")) is None


@pytest.mark.parametrize("image", [torch.full((3, 8, 8), 255, dtype=torch.uint8), torch.full((3, 8, 8), 255.0)])
@pytest.mark.parametrize("training", [True, False])
def test_an_8_bit_image_is_noticed(model, image, training):
    """A 16-bit slice as Detectron2's own mapper reads it."""
    batch = [{**sample(8, 8, []), "image": image}]
    with (
        pytest.raises(ValueError, match=r"Expected slices in HU .* Got an 8-bit image, \(3, 8, 8\) of torch."),
        EventStorage(0),
    ):
        model.train(training)(batch)
    assert current_thickness() is None


def test_detectron2s_own_mapper_gives_what_is_noticed(repo, phantom_root, model):
    from detectron2.data import DatasetMapper

    from a3d_det2.data import load_deeplesion

    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs/quick/a3d_7slice.yaml"))
    folder = phantom_root / "phantom"
    record = load_deeplesion(str(folder / "DL_info.csv"), str(folder / "Images_png"), "train")[0]
    batch = [DatasetMapper(cfg, is_train=True)(record)]
    with pytest.raises(ValueError, match="Got an 8-bit image"), EventStorage(0):
        model.train()(batch)


def test_default_predictor_takes_windowed_slices(repo):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs/quick/a3d_7slice.yaml"))
    cfg.INPUT.MIN_SIZE_TEST = 0  # as it is; resizing is by Pillow, for colours
    predictor = DefaultPredictor(cfg)
    slices = np.random.default_rng(0).uniform(-50, 205, (128, 96, 7)).astype(np.float32)
    assert predictor(slices)["instances"].image_size == (128, 96)
    photo = np.full((128, 96, 7), 255, np.uint8)
    with pytest.raises(ValueError, match="Got an 8-bit image"):
        predictor(photo)


class LesionFCOS(TakesSlices, FCOS):
    """As somebody else would write it."""


class LesionPanopticFPN(TakesSlices, PanopticFPN):
    pass


@pytest.mark.parametrize("architecture", [LesionFCOS, LesionPanopticFPN])
def test_other_architectures_take_slices(repo, architecture):
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_backbone
    from detectron2.modeling.meta_arch.fcos import FCOSHead
    from detectron2.modeling.proposal_generator import build_proposal_generator
    from detectron2.modeling.roi_heads import build_roi_heads

    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / "configs/quick/alignshift_7slice.yaml"))
    cfg.MODEL.A3D.NUM_SLICES, cfg.MODEL.MASK_ON = 3, True
    backbone = build_backbone(cfg)
    common = {"backbone": backbone, "pixel_mean": [0.0], "pixel_std": [1.0]}
    levels = ["p2", "p3", "p4"]
    if architecture is LesionFCOS:
        shapes = [ShapeSpec(channels=64)] * 3
        head = FCOSHead(input_shape=shapes, num_classes=1, conv_dims=[16])
        common |= {"head": head, "head_in_features": levels, "num_classes": 1}
        model = architecture(**common)
    else:
        from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

        shapes = {name: backbone.output_shape()[name] for name in levels}
        sem_seg = SemSegFPNHead(shapes, num_classes=2, conv_dims=32, common_stride=4, norm="GN")
        rpn, heads = build_proposal_generator(cfg, shapes), build_roi_heads(cfg, shapes)
        model = architecture(**common, proposal_generator=rpn, roi_heads=heads, sem_seg_head=sem_seg)
    model.eval()
    image = torch.randn(3, 64, 64)
    seen = []
    model.backbone.register_forward_hook(lambda module, args, features: seen.append(features["p2"]))
    with torch.no_grad():
        outputs = [model([{"image": image, "thickness": t}]) for t in (1.0, 8.0)]
    assert all("instances" in output for (output,) in outputs)
    assert not torch.allclose(*seen)
    with pytest.raises(ValueError, match="Expected the slice thickness in mm"):
        model([{"image": image}])
