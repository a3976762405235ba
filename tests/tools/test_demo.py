import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from a3d_det2.optional import detectron2_problem

TINY = """
MODEL.A3D.BLOCK_CONFIG [1,1,1] MODEL.A3D.GROWTH_RATE 8 MODEL.A3D.NUM_INIT_FEATURES 16 MODEL.FPN.OUT_CHANNELS 16
INPUT.MIN_SIZE_TRAIN (96,) INPUT.MAX_SIZE_TRAIN 96 INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 96
DATALOADER.NUM_WORKERS 0 SOLVER.MAX_ITER 20 SOLVER.STEPS ()
""".split()


def run(repo, output, *arguments, before=""):
    code = f"{before}import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, "tools/demo.py", "--output", str(output), *arguments, *TINY]
    return subprocess.run(command, cwd=repo, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_demo_says_which_engine_it_was(repo, phantom_root, tmp_path, engine):
    if engine == "detectron2" and detectron2_problem():
        pytest.skip("Detectron2 is not installed")
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")
    done = run(repo, tmp_path, "--engine", engine)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"Engine: {engine} (asked for)")
    assert lines[-1] == f"Engine: {engine}"
    assert any("20/20 [" in line or "iter: 19" in line for line in lines)  # progress is shown
    for name in ("a3d_7slice", "a3d_1slice"):
        report = json.loads((tmp_path / name / "inference" / "froc.json").read_text())
        assert f"{report['average']:.3f}" in done.stdout
        assert (tmp_path / name / "inference" / "froc.png").is_file()
    assert (tmp_path / "pictures" / "overview.png").is_file()
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "volume" / "viewer.html").is_file()
    lesions = json.loads((tmp_path / "volume" / "lesions.json").read_text())["lesions"]
    has_report = bool(lesions) and find_spec("highdicom") is not None
    assert (tmp_path / "volume" / "dicom" / "lesions_sr.dcm").is_file() == has_report
    assert "\nLesions in the CT" in done.stdout


def find(spec):
    """Code that makes Python find ``spec``, an expression, when asked for Detectron2."""
    return f"""
import importlib.machinery, importlib.util
namespace = importlib.machinery.ModuleSpec("detectron2", None, is_package=True)
namespace.submodule_search_locations = ["./detectron2"]
module = importlib.machinery.ModuleSpec("detectron2", None, origin="detectron2/__init__.py")
importlib.util.find_spec = lambda name: {spec}
"""


@pytest.mark.parametrize(
    ("spec", "engine", "why"),
    [
        ("module", "detectron2", "installed"),
        ("None", "torchvision", "not installed"),
        ("namespace", "torchvision", "not installed"),  # a folder of that name in the working directory
    ],
)
def test_the_engine_is_detectron2_where_it_is_installed(repo, tmp_path, spec, engine, why):
    """Without a phantom that can be read it ends in its first step."""
    (tmp_path / "phantom.log").mkdir()
    done = run(repo, tmp_path, before=find(spec))
    assert done.returncode != 0
    assert done.stdout.splitlines()[0].startswith(f"Engine: {engine} (Detectron2 is {why})")


def test_an_unknown_engine(repo, tmp_path):
    done = run(repo, tmp_path, "--engine", "mmdetection")
    assert done.returncode == 2
    assert "invalid choice: 'mmdetection'" in done.stderr
