"""The operators, the trunk, the reader and the metric work where Detectron2 is not installed."""

import subprocess
import sys

import pytest

PURE = [
    "a3d_det2",
    "a3d_det2.config",
    "a3d_det2.strict_checkpoint",
    "a3d_det2.layers",
    "a3d_det2.layers.convert",
    "a3d_det2.layers.cpu_kernel",
    "a3d_det2.layers.memory_format",
    "a3d_det2.layers.mixing",
    "a3d_det2.layers.norm",
    "a3d_det2.layers.triton_kernel",
    "a3d_det2.modeling",
    "a3d_det2.modeling.build",
    "a3d_det2.modeling.dense_block",
    "a3d_det2.modeling.densenet",
    "a3d_det2.modeling.fused_neck",
    "a3d_det2.modeling.pretrained",
    "a3d_det2.modeling.torchvision_rcnn",
    "a3d_det2.modeling.trunk",
    "a3d_det2.data",
    "a3d_det2.data.coco",
    "a3d_det2.data.deeplesion",
    "a3d_det2.data.dl_info",
    "a3d_det2.data.integrity",
    "a3d_det2.data.mask_file",
    "a3d_det2.data.once",
    "a3d_det2.data.packed",
    "a3d_det2.data.phantom",
    "a3d_det2.data.png",
    "a3d_det2.data.preparation",
    "a3d_det2.data.recist",
    "a3d_det2.data.sample",
    "a3d_det2.data.series",
    "a3d_det2.data.slices",
    "a3d_det2.data.splits",
    "a3d_det2.data.torch_dataset",
    "a3d_det2.data.transforms",
    "a3d_det2.data.unpack",
    "a3d_det2.data.weak_masks",
    "a3d_det2.evaluation",
    "a3d_det2.evaluation.average_precision",
    "a3d_det2.evaluation.bootstrap",
    "a3d_det2.evaluation.detections",
    "a3d_det2.evaluation.froc",
    "a3d_det2.evaluation.gallery",
    "a3d_det2.evaluation.mask_quality",
    "a3d_det2.evaluation.matching",
    "a3d_det2.evaluation.report",
    "a3d_det2.evaluation.results",
    "a3d_det2.evaluation.strata",
    "a3d_det2.evaluation.summary",
    "a3d_det2.evaluation.tables",
    "a3d_det2.evaluation.visualization",
]


def run(code: str, repo) -> subprocess.CompletedProcess:
    block = "import sys; sys.modules['detectron2'] = None\n"
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, cwd=repo)


def test_pure_modules_import(repo):
    lines = "\n".join(f"import {name}" for name in PURE)
    done = run(lines + "\nassert not [n for n in sys.modules if n.startswith('detectron2.')]", repo)
    assert done.returncode == 0, done.stderr


def test_layers_need_torch_alone(repo):
    code = """
for name in ("fvcore", "cv2", "matplotlib", "torchvision", "PIL"):
    sys.modules[name] = None
import torch
from a3d_det2.layers import A3DConv
from a3d_det2.modeling import DenseNet3D
print(A3DConv(2, 3, 3, 5, padding=1)(torch.zeros(1, 2, 5, 8, 8)).shape)
"""
    done = run(code, repo)
    assert done.returncode == 0, done.stderr
    assert "[1, 3, 5, 8, 8]" in done.stdout


def test_the_metric_needs_numpy_alone(repo):
    code = """
for name in ("torch", "fvcore", "cv2", "matplotlib", "torchvision", "PIL", "pycocotools"):
    sys.modules[name] = None
from a3d_det2.evaluation import froc_sensitivities
from a3d_det2.evaluation.bootstrap import ResampledFroc
print(froc_sensitivities([[[0, 0, 9, 9, 0.5]]], [[[0, 0, 9, 9]]]))
"""
    done = run(code, repo)
    assert done.returncode == 0, done.stderr
    assert "[1. 1. 1. 1. 1. 1.]" in done.stdout


@pytest.mark.parametrize("name", ["a3d_det2.checkpoint", "a3d_det2.modeling.backbone", "a3d_det2.data.dataset_mapper"])
def test_the_rest_says_what_is_missing(repo, name):
    done = run(f"import {name}", repo)
    assert done.returncode != 0
    assert "detectron2" in done.stderr
