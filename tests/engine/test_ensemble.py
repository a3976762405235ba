"""Several views and checkpoints, merged, in both engines."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("ensemble_boxes")

from a3d_det2.engine import ensemble
from a3d_det2.engine.ensemble import Detectron2Ensemble, TorchvisionEnsemble, fuse
from a3d_det2.engine.predictor import LesionPredictor
from a3d_det2.engine.views import View
from a3d_det2.volumes.predictor import Found
from tests.engine.test_predictor import make_config, save_weights

VIEWS = ["TEST.VIEWS", "['hflip','vflip+x1.25']"]


def found(boxes, scores, classes=None, masks=None):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    classes = np.zeros(len(boxes), np.int64) if classes is None else np.array(classes)
    return Found(boxes, np.array(scores, dtype=np.float32), classes, masks)


def test_boxes_of_one_lesion():
    """By hand: the mean by scores, and half of the sum as the score; what one of two has found counts half."""
    one = found([[10, 10, 30, 30], [50, 5, 60, 15]], [0.8, 0.4])
    two = found([[12, 10, 32, 30]], [0.4])
    fused = fuse([one, two], (64, 128), 10)
    np.testing.assert_allclose(fused.boxes, [[10 + 2 / 3, 10, 30 + 2 / 3, 30], [50, 5, 60, 15]], rtol=1e-5)
    np.testing.assert_allclose(fused.scores, [0.6, 0.2], rtol=1e-5)
    assert fused.classes.tolist() == [0, 0]
    assert len(fuse([one, two], (64, 128), 1).boxes) == 1


def test_a_weak_second_box_changes_little():
    """Two detectors are sure of a lesion, and have each a weak box beside it that their NMS has left."""
    one = found([[10, 10, 30, 30], [17, 10, 37, 30]], [0.95, 0.01])
    two = found([[13, 10, 33, 30], [20, 10, 40, 30]], [0.95, 0.01])
    fused = fuse([one, two], (64, 64), 10)
    np.testing.assert_allclose(fused.scores[0], 0.95, atol=0.001)
    np.testing.assert_allclose(fused.boxes[0], [11.5, 10, 31.5, 30], atol=0.2)
    assert (fused.scores[1:] <= 0.01 + 1e-6).all()


def test_classes_stay_apart():
    one, two = found([[10, 10, 30, 30]], [0.8], [0]), found([[10, 10, 30, 30]], [0.6], [2])
    fused = fuse([one, two], (64, 64), 10)
    assert fused.classes.tolist() == [0, 2]
    np.testing.assert_allclose(fused.scores, [0.4, 0.3], rtol=1e-5)


def test_nothing_found():
    for masks in (None, np.zeros((0, 32, 48), bool)):
        fused = fuse([found([], [], masks=masks)] * 3, (32, 48), 10)
        assert fused.boxes.shape == (0, 4)
        assert fused.scores.shape == fused.classes.shape == (0,)
        assert fused.masks is None if masks is None else fused.masks.shape == (0, 32, 48)


def test_the_mask_is_that_of_the_nearest_box():
    masks = np.zeros((3, 32, 32), bool)
    masks[0, 1], masks[1, 2], masks[2, 3] = True, True, True
    one = found([[4, 4, 14, 14], [20, 20, 30, 30]], [0.9, 0.5], masks=masks[:2])
    two = found([[6, 4, 16, 14]], [0.1], masks=masks[2:])
    fused = fuse([one, two], (32, 32), 10)
    assert np.array_equal(fused.masks, masks[:2])


@pytest.fixture
def model(engine, tmp_path):
    """A detector that finds something, and what calls it."""
    cfg = make_config(engine)
    save_weights(engine, cfg, tmp_path / "model.pth")
    if hasattr(engine, "Trainer"):

        def call(model, image):
            image = {"image": image, "thickness": 2.0, "height": 96, "width": 96}
            return ensemble.of_instances(model([image])[0]["instances"])

        kind = Detectron2Ensemble
    else:

        def call(model, image):
            return ensemble.of_torchvision(model([image], None, torch.tensor([2.0]), [(96, 96)])[0])

        kind = TorchvisionEnsemble
    return LesionPredictor(cfg, str(tmp_path / "model.pth"), min_score=1e-5).model, kind, call


@torch.no_grad()
def test_alone_it_is_the_detector(model):
    detector, kind, call = model
    image = torch.rand(3, 96, 96)
    expected, got = call(detector, image), call(kind([detector], [], 100), image)
    assert len(expected.boxes) > 3
    order = np.argsort(-expected.scores, kind="stable")
    np.testing.assert_allclose(got.scores, expected.scores[order], atol=1e-6)
    np.testing.assert_allclose(np.sort(got.boxes, axis=0), np.sort(expected.boxes.clip(0, 96), axis=0), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("axis", [1, 2])
def test_a_mirrored_image_has_mirrored_boxes(model, axis):
    """Which the detector alone does not give."""
    detector, kind, call = model
    image = torch.rand(3, 96, 96)
    both = kind([detector], [View(axis == 2, axis == 1)], 100)
    plain, mirrored = call(both, image), call(both, image.flip(axis))
    np.testing.assert_allclose(mirrored.scores, plain.scores, atol=1e-5)
    columns = slice(2 - axis, None, 2)
    boxes = mirrored.boxes.copy()
    boxes[:, columns] = 95 - boxes[:, columns][:, ::-1]
    inside = ((plain.boxes > 0.5) & (plain.boxes < 94.5)).all(axis=1)  # others are clipped to the image
    assert inside.any()
    for box in plain.boxes[inside]:
        assert np.abs(boxes - box).max(axis=1).min() < 0.02


def test_an_evaluation(start, tmp_path, engine):
    assert start("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "('phantom_test',)") is None
    results, weights = tmp_path / "out/inference/coco_instances_results.json", tmp_path / "out" / "model_final.pth"
    plain = json.loads(results.read_text())
    options = ["MODEL.WEIGHTS", weights, "DATASETS.TEST", "('phantom_test',)"]
    assert start(*options, *VIEWS, "TEST.ENSEMBLE", f"['{weights}']", arguments=["--eval-only"]) is None
    merged = json.loads(results.read_text())
    assert {one["image_id"] for one in merged} == {one["image_id"] for one in plain}
    assert merged != plain
    assert merged[0].keys() == plain[0].keys()


def test_mistakes(start, tmp_path, monkeypatch):
    assert start("SOLVER.MAX_ITER", 1) is None
    weights = tmp_path / "out" / "model_final.pth"
    assert "TEST.VIEWS: expected a list whose entries are each a view" in start("TEST.VIEWS", "['turned']")
    assert "TEST.ENSEMBLE: expected none in a training" in start("TEST.ENSEMBLE", f"['{weights}']")
    options = ["MODEL.WEIGHTS", weights, "DATASETS.TEST", "('phantom_test',)"]
    error = start(*options, "TEST.ENSEMBLE", "['nowhere.pth']", arguments=["--eval-only"])
    assert "there is no file 'nowhere.pth'" in error
    monkeypatch.setattr(ensemble, "find_spec", lambda name: None)
    for arguments in ([], ["--eval-only"]):
        error = start(*options, *VIEWS, arguments=arguments)
        assert "need ensemble-boxes: pip install 'a3d_det2[ensemble]'" in error


def test_a_predictor(engine, tmp_path):
    cfg = make_config(engine)
    for name in ("a.pth", "b.pth"):
        save_weights(engine, cfg, tmp_path / name)
    options = [*VIEWS, "TEST.ENSEMBLE", f"['{tmp_path / 'b.pth'}']"]
    predictor = LesionPredictor(make_config(engine, *options), str(tmp_path / "a.pth"))
    one, other = predictor.weights_sha256.split("+")
    assert len(one) == len(other) == 64
    assert len(predictor.model.models) == 2
    assert len(predictor.model.views) == 3
    assert not any(part.training for part in predictor.model.modules())
