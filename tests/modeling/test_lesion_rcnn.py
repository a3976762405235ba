import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from a3d_det2 import add_a3d_config


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
    handle = aware.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    batch = [{**sample(64, 64, [[10, 10, 40, 40]]), "thickness": t} for t in (1.0, 5.0)]
    aware.train()
    with EventStorage(0):
        sum(aware(batch).values()).backward()
    aware.eval()
    with torch.no_grad():
        outputs = aware(batch)
    handle.remove()
    assert [t.tolist() for t in seen] == [[1.0, 5.0], [1.0, 5.0]]
    assert outputs[0]["instances"].image_size == (128, 128)
    assert [name for name, p in aware.named_parameters() if p.grad is None] == []


def test_thickness_changes_the_features(aware):
    aware.eval()
    image = torch.randn(3, 64, 64)
    with torch.no_grad():
        batch = aware.preprocess_image([{"image": image}] * 2).tensor
        features = aware.backbone(batch, torch.tensor([1.0, 5.0]))
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
