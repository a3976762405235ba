import subprocess
import sys


def test_the_evaluation_needs_neither_torch_nor_detectron2(repo):
    code = """
import sys
sys.modules.update(torch=None, detectron2=None)
from importlib import import_module
from pkgutil import walk_packages
import a3d_det2.evaluation as package
for module in walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith(".deeplesion_evaluation"):
        import_module(module.name)
import a3d_det2.engine.evaluate
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr
