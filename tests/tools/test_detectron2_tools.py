"""Detectron2's own tools and helpers with this package, as docs/detectron2.md has them. Those that are scripts are run
from a checkout of Detectron2, $DETECTRON2_SOURCE, where there is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultPredictor
from fvcore.transforms.transform import HFlipTransform
from PIL import Image

from a3d_det2 import LesionCheckpointer, LesionRCNNWithTTA, PublishedRCNN, Trainer, model_zoo
from a3d_det2.data.slices import load_slice_stack, window_hu
from tests.engine.conftest import TINY


@pytest.fixture
def source():
    folder = Path(os.environ.get("DETECTRON2_SOURCE", ""))
    if not (folder / "tools" / "plain_train_net.py").is_file():
        pytest.skip("$DETECTRON2_SOURCE is no checkout of Detectron2")
    return folder


@pytest.fixture
def run(repo, phantom_root):
    def run(*command, timeout=None):
        environment = {**os.environ, "DETECTRON2_DATASETS": str(phantom_root), "PYTHONPATH": str(repo)}
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=repo,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    return run


CONFIG = ["--config-file", "quick/a3d_7slice.yaml"]
WRAPPER = "tools/detectron2_tool.py"


@pytest.mark.slow
def test_analyze_model_counts_the_mixing(run, source):
    tool = [WRAPPER, source / "tools" / "analyze_model.py", "--tasks", "flop", "structure", "--num-inputs", 1, *CONFIG]
    counted = {}
    for operator in ("a3d", "none"):
        text = run(*tool, "MODEL.A3D.OPERATOR", operator, *TINY)
        counted[operator] = float(re.search(r"\('einsum', ([0-9.e-]+)\)", text)[1]) if "einsum" in text else 0.0
        assert "DenseNet3D" in text
    assert counted["a3d"] > 0
    assert counted["none"] == 0


@pytest.mark.slow
def test_visualize_data_shows_key_slices(run, source, tmp_path):
    tool = [WRAPPER, source / "tools" / "visualize_data.py", "--output-dir", tmp_path, *CONFIG]
    run(*tool, "--source", "annotation", "DATASETS.TRAIN", "('phantom_test',)")
    pictures = [np.asarray(Image.open(path).convert("RGB")).astype(int) for path in tmp_path.glob("*.png")]
    assert pictures
    for picture in pictures:
        assert picture.max() > 200  # a box
        grey = np.abs(picture - picture.mean(2, keepdims=True)).max(2) < 8
        assert grey.mean() > 0.5


@pytest.mark.slow
def test_plain_train_net(run, source, tmp_path):
    options = [
        *TINY,
        "OUTPUT_DIR",
        tmp_path,
        "DATASETS.TRAIN",
        "('phantom_train',)",
        "DATASETS.TEST",
        "('phantom_test',)",
    ]
    text = run(WRAPPER, source / "tools" / "plain_train_net.py", *CONFIG, *options)
    assert "Evaluation results for phantom_test in csv format" in text
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.slow
def test_export_model(run, source, tmp_path):
    tool = source / "tools" / "deploy" / "export_model.py"
    text = run(
        WRAPPER, tool, "--format", "torchscript", "--export-method", "tracing", "--output", tmp_path, *CONFIG, *TINY
    )
    assert "Success" in text
    assert len(torch.jit.load(tmp_path / "model.ts")(torch.randn(3, 64, 64) * 50)) == 4


@pytest.mark.slow
def test_lazyconfig_train_net(run, source, tmp_path):
    """As it is, without the wrapper."""
    tool = source / "tools" / "lazyconfig_train_net.py"
    options = [
        "train.max_iter=2",
        "train.eval_period=2",
        f"train.output_dir={tmp_path}",
        "dataloader.train.num_workers=0",
    ]
    text = run(
        tool, "--config-file", "configs/lazy/quick_a3d_7slice.py", *options, "dataloader.train.total_batch_size=2"
    )
    assert "Task: froc" in text
    assert (tmp_path / "model_final.pth").is_file()


def test_lazy_models_read_channels_and_strides_off_the_trunk(repo):
    from detectron2.config import LazyConfig, instantiate

    cfg = LazyConfig.load(str(repo / "configs/lazy/a3d_fpn_7slice.py"))
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.backbone.bottom_up.out_channels == {"dense1": 256, "dense2": 512, "dense3": 1024}
    assert model.proposal_generator.anchor_generator.strides == [4, 8, 16]
    assert list(cfg.model.proposal_generator.anchor_generator.sizes) == [[16, 24], [32, 48], [96, 192]]


@pytest.mark.parametrize("name", ["a3d_fpn_7slice", "quick_a3d_7slice"])
def test_lazy_configs_are_those_of_the_yaml_configs(repo, name):
    from detectron2.config import LazyConfig, instantiate
    from detectron2.modeling import build_model

    lazy = LazyConfig.load(str(repo / f"configs/lazy/{name}.py"))
    assert {"model", "dataloader", "optimizer", "lr_multiplier", "train"} <= lazy.keys()
    cfg = model_zoo.get_config(f"{name.replace('quick_', 'quick/')}.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "MODEL.MASK_ON", False, "MODEL.A3D.NORM", "BN"])
    with torch.device("meta"):
        ours, theirs = instantiate(lazy.model), build_model(cfg)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    for part in ("proposal_generator", "roi_heads.box_predictor"):
        for key in ("smooth_l1_beta", "nms_thresh", "test_nms_thresh", "batch_size_per_image", "pre_nms_topk"):
            first, second = (getattr(model.get_submodule(part), key, None) for model in (ours, theirs))
            assert first == second, (part, key)
    anchors = [m.proposal_generator.anchor_generator for m in (ours, theirs)]
    assert (anchors[0].strides, anchors[0].offset) == (anchors[1].strides, anchors[1].offset)
    assert list(lazy.model.proposal_generator.anchor_generator.sizes) == [
        list(s) for s in cfg.MODEL.ANCHOR_GENERATOR.SIZES
    ]
    solver = cfg.SOLVER
    assert (lazy.optimizer.lr, lazy.train.max_iter) == (solver.BASE_LR, solver.MAX_ITER)
    assert list(lazy.lr_multiplier.scheduler.milestones) == [*solver.STEPS, solver.MAX_ITER]


def test_the_wrapper_says_what_it_needs(repo):
    done = subprocess.run([sys.executable, WRAPPER, "nowhere.py"], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Expected the path of one of Detectron2's tools, got ['nowhere.py']" in done.stderr


@pytest.fixture
def cfg(phantom_root, monkeypatch, tmp_path):
    """A config with weights of its own."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(phantom_root))
    cfg = model_zoo.get_config("quick/a3d_7slice.yaml")
    cfg.merge_from_list([*TINY, "OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", ("phantom_test",)])
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    LesionCheckpointer(model, str(tmp_path)).save("model")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    return cfg


def test_default_predictor(cfg):
    predictor = DefaultPredictor(cfg)
    record = DatasetCatalog.get("phantom_test")[0]
    stack = load_slice_stack(record["file_name"], cfg.MODEL.A3D.NUM_SLICES, record["slice_interval"])
    output = predictor(window_hu(stack, cfg.INPUT.HU_WINDOW).transpose(1, 2, 0))
    assert output["instances"].image_size == (record["height"], record["width"])
    assert len(output["instances"]) > 0


def test_test_time_augmentation_from_file_names(cfg):
    cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (64, 96), "TEST.AUG.MAX_SIZE", 128])
    model = Trainer.build_model(cfg).eval()
    record = DatasetCatalog.get("phantom_test")[0]
    augmented = LesionRCNNWithTTA(cfg, model)
    with torch.no_grad():
        (from_file,) = augmented([record])
        (from_image,) = augmented([augmented._read(record)])
    assert from_file["instances"].image_size == (record["height"], record["width"])
    torch.testing.assert_close(from_file["instances"].pred_boxes.tensor, from_image["instances"].pred_boxes.tensor)
    assert len(from_file["instances"]) > 0
    with pytest.raises(ValueError, match="Expected a LesionRCNN for test-time augmentation, got a PublishedRCNN"):
        LesionRCNNWithTTA(cfg, PublishedRCNN(cfg))


def test_boxes_of_a_flipped_image_come_back_to_their_pixels(cfg):
    """Pixels 10 to 19 of 128 are 108 to 117 of the mirror image."""
    cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (96,), "TEST.AUG.MAX_SIZE", 128])
    augmented = LesionRCNNWithTTA(cfg, Trainer.build_model(cfg).eval())
    image = augmented._read(DatasetCatalog.get("phantom_test")[0])
    _, transforms = augmented._get_augmented_inputs(image)
    mirrored = [t for t in transforms if any(isinstance(part, HFlipTransform) for part in t.transforms)]
    assert mirrored
    for transform in mirrored:
        width = next(part.width for part in transform.transforms if isinstance(part, HFlipTransform))
        scale = width / image["width"]
        box = np.array([[10.0, 20, 19, 29]])
        there = transform.apply_box(box)
        np.testing.assert_allclose(there[0, [0, 2]] + 0.5, width - (box[0, [2, 0]] + 0.5) * scale)
        np.testing.assert_allclose(transform.inverse().apply_box(there), box)
