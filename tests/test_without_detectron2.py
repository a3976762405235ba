"""What works, how fast it is imported and what is said where Detectron2 is not installed, or broken."""

import os
import subprocess
import sys

import pytest

from tests.test_imports import MODULES, is_for_detectron2

BLOCK = "import sys; sys.modules['detectron2'] = None\n"
ROOMS = ["a3d_det2", "a3d_det2.layers", "a3d_det2.modeling", "a3d_det2.data", "a3d_det2.evaluation", "a3d_det2.engine"]


def run(code: str, cwd, **environment) -> subprocess.CompletedProcess:
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)


def test_pure_modules_import(repo):
    lines = "\n".join(f"import {name}" for name in MODULES if not is_for_detectron2(name))
    done = run(BLOCK + lines, repo)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ROOMS)
def test_detectron2_is_not_loaded(repo, name):
    heavy = ["detectron2"]
    if name in ("a3d_det2", "a3d_det2.evaluation", "a3d_det2.engine"):
        heavy += ["torch", "matplotlib", "cv2", "pycocotools"]
    done = run(f"import sys, {name}; print([name for name in {heavy} if name in sys.modules])", repo)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_layers_need_torch_alone(repo):
    code = """
for name in ("fvcore", "cv2", "matplotlib", "torchvision", "PIL"):
    sys.modules[name] = None
import torch
from a3d_det2.layers import A3DConv
from a3d_det2.modeling import DenseNet3D
print(A3DConv(2, 3, 3, 5, padding=1)(torch.zeros(1, 2, 5, 8, 8)).shape)
"""
    done = run(BLOCK + code, repo)
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
    done = run(BLOCK + code, repo)
    assert done.returncode == 0, done.stderr
    assert "[1. 1. 1. 1. 1. 1.]" in done.stdout


@pytest.mark.parametrize("name", ["LesionRCNN", "Trainer"])
def test_the_rest_says_what_is_missing(repo, name):
    done = run(f"{BLOCK}from a3d_det2 import {name}", repo)
    assert done.returncode != 0
    assert f"ImportError: a3d_det2.{name} needs Detectron2: it is not installed. README.md, section Inst" in done.stderr
    done = run(f"{BLOCK}from a3d_det2 import add_a3d_config, AffineTransform; print('there')", repo)
    assert done.stdout == "there\n"


def test_a_folder_called_detectron2_is_not_detectron2(repo, tmp_path):
    """An environment without Detectron2, whose working directory has a checkout or a folder of results of that name."""
    (tmp_path / "detectron2").mkdir()
    hide = (
        "import importlib.machinery as m, sys; find = m.PathFinder.find_spec; "
        f"m.PathFinder.find_spec = lambda name, path=None, target=None: find(name, ['{tmp_path}'] "
        "if name == 'detectron2' else path, target)\n"
    )
    use = "import a3d_det2.layers, a3d_det2.data\ntry: a3d_det2.LesionRCNN\nexcept ImportError as error: print(error)"
    done = run(hide + use, tmp_path, PYTHONPATH=str(repo))
    assert f"needs Detectron2: it is not installed, and the folder {tmp_path}/detectron2 is not it." in done.stdout


def test_a_detectron2_without_its_dependencies(repo, tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("import a_dependency_that_is_not_there")
    use = "import a3d_det2.layers, a3d_det2.data\ntry: a3d_det2.LesionRCNN\nexcept ImportError as error: print(error)"
    done = run(use, tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{repo}")
    assert "cannot be imported (ModuleNotFoundError: No module named 'a_dependency_that_is_not_there')" in done.stdout
