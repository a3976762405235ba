"""Detectors leave Python: traced, exported and in ONNX, for any size of images and any slice thickness."""

import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

import numpy as np
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from torch import nn

from a3d_det2 import model_zoo
from a3d_det2.kernels.mixing import plain_mixing
from a3d_det2.layers.thickness import slice_thickness

SIZES = [(128, 160), (96, 96), (200, 136)]


@pytest.fixture
def build():
    def build(*options):
        cfg = model_zoo.get_config("a3d_fpn_3slice.yaml")
        small = ["MODEL.DEVICE", "cpu", "MODEL.A3D.NORM", "BN", "MODEL.A3D.BLOCK_CONFIG", [2, 2, 2]]
        small += ["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16]
        cfg.merge_from_list([*small, *options])
        torch.manual_seed(0)
        return build_model(cfg).eval()

    return build


def raw(model, inputs):
    """As Detectron2's own export does it: boxes, masks and scores without postprocessing."""
    return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["a3d", "alignshift"])
def test_traced_detector(build, operator, tmp_path, monkeypatch):
    # So few rows in a stripe that one size would have several and another one.
    monkeypatch.setattr("a3d_det2.kernels.fast_block.STRIPE_BYTES", 1 << 14)
    model = build("MODEL.A3D.OPERATOR", operator, "MODEL.MASK_ON", operator == "alignshift")
    adapter = TracingAdapter(model, [{"image": torch.randn(3, *SIZES[0]), "thickness": torch.tensor(2.5)}], raw)
    with torch.no_grad():
        torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False).save(tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    kinds = {node.kind().split("::")[0] for node in loaded.inlined_graph.nodes()}
    assert kinds <= {"aten", "prim", "torchvision"}
    rng, boxes = torch.Generator().manual_seed(1), []
    for i in range(21 if operator == "a3d" else 6):
        image = torch.randn(3, *SIZES[i % 3], generator=rng) * 50
        thickness = torch.tensor((1.0, 5.0, 2.5)[i % 2])
        with torch.no_grad(), torch.jit.optimized_execution(False):
            found = loaded(image, thickness)
            with plain_mixing():
                expected = adapter(image, thickness)
            fast = adapter(image, thickness)
        for a, b, c in zip(found, expected, fast, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
            torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-3)
        boxes.append(found[0])
    assert sum(map(len, boxes)) > 60
    if operator == "alignshift":
        with torch.no_grad():
            thin, thick = (loaded(image, torch.tensor(value))[2] for value in (1.0, 8.0))
        assert not torch.equal(thin, thick)


def test_a_loaded_file_needs_nothing_of_this_package(build, tmp_path):
    model, image = build("MODEL.MASK_ON", False), torch.randn(3, *SIZES[1]) * 50
    adapter = TracingAdapter(model, [{"image": image, "thickness": torch.tensor(2.5)}], raw)
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        expected = traced(image, torch.tensor(2.5))
    traced.save(tmp_path / "model.ts")
    torch.save([image, *expected], tmp_path / "tensors.pth")
    code = """
import sys
for name in ("a3d_det2", "detectron2", "fvcore"):
    sys.modules[name] = None
import torch, torchvision
image, *expected = torch.load("tensors.pth")
found = torch.jit.load("model.ts")(image, torch.tensor(2.5))
for a, b in zip(found, expected):
    torch.testing.assert_close(a, b)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Maps(nn.Module):
    """Trunk and neck with the thickness as an input, and their maps as a tuple."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images, thickness):
        with slice_thickness(thickness):
            return tuple(self.backbone(images).values())


def dynamic():
    rows, columns = (torch.export.Dim(name, min=2, max=64) * 16 for name in ("rows", "columns"))
    return {2: rows, 3: columns}, {}


@pytest.mark.parametrize("operator", ["a3d", "alignshift"])
def test_exported_maps(build, operator):
    maps = Maps(build("MODEL.A3D.OPERATOR", operator, "MODEL.A3D.BLOCK_CONFIG", [1, 1, 1]).backbone).eval()
    with torch.no_grad():
        exported = torch.export.export(
            maps, (torch.randn(1, 3, 128, 160), torch.tensor([2.5])), dynamic_shapes=dynamic()
        )
        assert not any("a3d_det2" in str(node.target) for node in exported.graph.nodes)
        for size in ((128, 160), (64, 96)):
            x, thickness = torch.randn(1, 3, *size), torch.tensor([5.0])
            for a, b in zip(exported.module()(x, thickness), maps(x, thickness), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_maps_in_onnx(build, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    maps = Maps(build("MODEL.A3D.OPERATOR", "alignshift", "MODEL.A3D.BLOCK_CONFIG", [1, 1, 1]).backbone).eval()
    path = str(tmp_path / "maps.onnx")
    example = torch.randn(1, 3, 128, 160), torch.tensor([2.5])
    with torch.no_grad():
        torch.onnx.export(
            maps, example, path, dynamo=True, dynamic_shapes=dynamic(), input_names=["x", "t"], verbose=False
        )
        session = runtime.InferenceSession(path)
        for size, value in (((128, 160), 5.0), ((64, 96), 1.0)):
            x, thickness = torch.randn(1, 3, *size), torch.tensor([value])
            found = session.run(None, {"x": x.numpy(), "t": thickness.numpy()})
            for a, b in zip(found, maps(x, thickness), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
