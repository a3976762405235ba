import ast
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from a3d_det2.threads import BESIDE_OTHERS, available_cores, worker_environment
from tests.scripts import without_detectron2

# Before torch is loaded, for this process and those that tests start: tests may run beside each other (make test has a
# process for each core, by pytest-xdist) or beside something else.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_shared = worker_environment(_workers, max(1, available_cores() // _workers)) if _workers > 1 else BESIDE_OTHERS
for _name, _value in _shared.items():
    os.environ.setdefault(_name, _value)

REPO = Path(__file__).resolve().parents[1]
HAS_DETECTRON2 = find_spec("detectron2") is not None


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def official_csv() -> Path:
    """The official annotation rows of the test split, where they lie beside the checkout."""
    path = REPO.parent / "shared" / "deeplesion" / "DL_info_test.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory) -> Path:
    """A $DETECTRON2_DATASETS with a small phantom."""
    root = tmp_path_factory.mktemp("datasets")
    arguments = ["--train", "12", "--val", "4", "--test", "6", "--size", "96", "--context", "6"]
    command = without_detectron2("datasets/make_phantom.py", "--output", root / "phantom", *arguments)
    subprocess.run(command, check=True, cwd=REPO)
    return root


@pytest.fixture
def start_training(phantom_root, tmp_path) -> Callable:
    """Runs a script on the small phantom, with the log in tmp_path/log.txt."""

    def start(arguments: list, wait: bool) -> subprocess.Popen:
        environment = {**os.environ, "DETECTRON2_DATASETS": str(phantom_root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, arguments)]
        with open(tmp_path / "log.txt", "a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=REPO, start_new_session=True
            )
        if wait:
            assert process.wait(300) == 0, (tmp_path / "log.txt").read_text()[-3000:]
        return process

    return start


def _detectron2_tests() -> tuple[int, int]:
    """Files that need Detectron2, and the test functions in them."""
    files = [
        path for path in Path(__file__).parent.rglob("test_*.py") if 'importorskip("detectron2")' in path.read_text()
    ]
    functions = [
        node
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    return len(files), len(functions)


def pytest_terminal_summary(terminalreporter):
    if not HAS_DETECTRON2:
        files, functions = _detectron2_tests()
        terminalreporter.write_line(
            f"Left out: {functions} test functions in {files} files that need Detectron2, which is not installed in "
            f"{sys.prefix}. README.md, section Install, says how to get it.",
            yellow=True,
        )
