"""The package's own names, their registration with Detectron2, and the model zoo."""

import importlib
import subprocess
import sys

import pytest

import a3d_det2
from a3d_det2 import model_zoo


def test_names_are_those_that_are_listed():
    assert set(a3d_det2.__all__) <= set(dir(a3d_det2))
    assert a3d_det2.layers.A3DConv.__name__ == "A3DConv"
    with pytest.raises(AttributeError, match="has no attribute 'LesionYOLO'"):
        _ = a3d_det2.LesionYOLO
    assert a3d_det2.__version__.count(".") == 2


def test_every_name_can_be_imported():
    pytest.importorskip("detectron2")
    for name in a3d_det2.__all__:
        assert getattr(a3d_det2, name).__name__ == name
    assert importlib.reload(a3d_det2).LesionRCNN is a3d_det2.LesionRCNN


@pytest.mark.parametrize(
    "how",
    [
        "from a3d_det2 import DeepLesionMapper",
        "from a3d_det2.config import add_a3d_config; from detectron2.config import get_cfg; add_a3d_config(get_cfg())",
        "import a3d_det2.registration",
    ],
)
def test_whoever_asks_for_detectron2s_side_has_all_registered(repo, how):
    pytest.importorskip("detectron2")
    code = f"""{how}
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_MASK_HEAD_REGISTRY
assert "build_a3d_densenet_fused_backbone" in BACKBONE_REGISTRY and "LesionRetinaNet" in META_ARCH_REGISTRY
assert "DiceMaskHead" in ROI_MASK_HEAD_REGISTRY and "deeplesion_train" in DatasetCatalog
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr


def test_config_files_by_name(repo):
    assert model_zoo.get_config_file("quick/a3d_7slice.yaml") == str(repo / "configs" / "quick" / "a3d_7slice.yaml")
    assert model_zoo.find_config_file(str(repo / "configs/a3d_7slice.yaml")) == str(repo / "configs/a3d_7slice.yaml")
    with pytest.raises(
        ValueError, match=r"Unknown config 'a4d.yaml'. Choose one of .*Base-DeepLesion-FPN.yaml, .*quick/"
    ):
        model_zoo.get_config_file("a4d.yaml")
    with pytest.raises(FileNotFoundError, match=r"no file 'configs/a4d.yaml'. Unknown config"):
        model_zoo.find_config_file("configs/a4d.yaml")


def test_a_config_by_name():
    pytest.importorskip("detectron2")
    cfg = model_zoo.get_config("alignshift_7slice.yaml")
    assert (cfg.MODEL.A3D.OPERATOR, cfg.MODEL.A3D.NUM_SLICES) == ("alignshift", 7)
    with pytest.raises(ValueError, match="no trained weights for a3d_7slice.yaml yet"):
        model_zoo.get_config("a3d_7slice.yaml", trained=True)


def test_a_model_by_name():
    pytest.importorskip("detectron2")
    model = model_zoo.get("quick/a3d_7slice.yaml", device="cpu")
    assert type(model) is a3d_det2.LesionRCNN
    assert model.backbone.bottom_up.num_slices == 7
